//! Command lines as `getopt_long` reads them: options and operands in any order, short options in
//! bundles, long ones by any unambiguous beginning, `--` before operands that look like options.
//!
//! Written out here because scripts rely on abbreviations and on the messages, and no crate that is in
//! use offers both.

use super::Stop;

/// One option of a command.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Opt {
    pub(crate) long: &'static str,
    pub(crate) short: Option<char>,
    pub(crate) takes: Takes,
    pub(crate) help: &'static str,
}

/// Whether an option takes an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Takes {
    Nothing,
    Argument,
}

/// An option without an argument.
pub(crate) const fn flag(short: Option<char>, long: &'static str, help: &'static str) -> Opt {
    Opt {
        long,
        short,
        takes: Takes::Nothing,
        help,
    }
}

/// An option with an argument.
pub(crate) const fn value(short: Option<char>, long: &'static str, help: &'static str) -> Opt {
    Opt {
        long,
        short,
        takes: Takes::Argument,
        help,
    }
}

/// Options that mean the same in every command that has them.
pub(crate) const HELP: Opt = flag(Some('h'), "help", "tell the options");
pub(crate) const QUIET: Opt = flag(Some('q'), "quiet", "say nothing that is not an error");
pub(crate) const PROGRESS: Opt = flag(Some('p'), "progress", "show how far it is");
pub(crate) const FORMAT: Opt = value(Some('f'), "format", "the format of FILENAME");
pub(crate) const IMAGE_OPTS: Opt = flag(None, "image-opts", "FILENAME is a set of options");
pub(crate) const CACHE: Opt = value(Some('t'), "cache", "the cache mode (writeback)");
pub(crate) const FORCE_SHARE: Opt = flag(
    Some('U'),
    "force-share",
    "others may write the image meanwhile",
);
pub(crate) const OBJECT: Opt = value(None, "object", "a secret that options refer to");
pub(crate) const OUTPUT: Opt = value(None, "output", "human or json");

/// What a command line said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Parsed {
    /// Options by their long names in the order given; the argument is empty where there is none.
    pub(crate) options: Vec<(&'static str, String)>,
    /// The rest.
    pub(crate) operands: Vec<String>,
}

impl Parsed {
    /// Whether an option was given.
    pub(crate) fn has(&self, long: &str) -> bool {
        self.options.iter().any(|(name, _)| *name == long)
    }

    /// The argument of an option; the last one counts.
    pub(crate) fn get(&self, long: &str) -> Option<&str> {
        self.all(long).last()
    }

    /// The arguments of an option that may be given several times.
    pub(crate) fn all<'a>(&'a self, long: &str) -> impl Iterator<Item = &'a str> {
        self.options
            .iter()
            .filter(move |(name, _)| *name == long)
            .map(|(_, argument)| argument.as_str())
    }
}

/// Reads the arguments of `command`.
pub(crate) fn parse(
    command: &'static str,
    specs: &[Opt],
    arguments: &[String],
) -> Result<Parsed, Stop> {
    read(specs, arguments).map_err(|text| Stop::Misuse {
        command,
        text: format!("{} {command}: {text}", super::PROGRAM),
    })
}

/// Reads arguments; what is wrong is told as getopt tells it, without the program's name.
pub(crate) fn read(specs: &[Opt], arguments: &[String]) -> Result<Parsed, String> {
    let mut parsed = Parsed::default();
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        if argument == "--" {
            parsed.operands.extend(arguments.by_ref().cloned());
        } else if let Some(long) = argument.strip_prefix("--") {
            let (name, given) = match long.split_once('=') {
                Some((name, given)) => (name, Some(given.to_owned())),
                None => (long, None),
            };
            let spec = find_long(specs, name, argument)?;
            let given = match (spec.takes, given) {
                (Takes::Nothing, None) => String::new(),
                (Takes::Nothing, Some(_)) => {
                    return Err(format!(
                        "option '--{}' doesn't allow an argument",
                        spec.long
                    ));
                }
                (Takes::Argument, Some(given)) => given,
                (Takes::Argument, None) => arguments
                    .next()
                    .cloned()
                    .ok_or_else(|| format!("option '--{}' requires an argument", spec.long))?,
            };
            parsed.options.push((spec.long, given));
        } else if argument.len() > 1 && argument.starts_with('-') {
            read_bundle(specs, &argument[1..], &mut arguments, &mut parsed)?;
        } else {
            parsed.operands.push(argument.clone());
        }
    }
    Ok(parsed)
}

fn read_bundle<'a>(
    specs: &[Opt],
    bundle: &str,
    following: &mut impl Iterator<Item = &'a String>,
    parsed: &mut Parsed,
) -> Result<(), String> {
    let mut rest = bundle.chars();
    while let Some(short) = rest.next() {
        let spec = specs
            .iter()
            .find(|spec| spec.short == Some(short))
            .ok_or_else(|| format!("invalid option -- '{short}'"))?;
        if spec.takes == Takes::Nothing {
            parsed.options.push((spec.long, String::new()));
            continue;
        }
        let given = match rest.as_str() {
            "" => following
                .next()
                .cloned()
                .ok_or_else(|| format!("option requires an argument -- '{short}'"))?,
            rest => rest.to_owned(),
        };
        parsed.options.push((spec.long, given));
        return Ok(());
    }
    Ok(())
}

fn find_long<'a>(specs: &'a [Opt], name: &str, argument: &str) -> Result<&'a Opt, String> {
    if let Some(exact) = specs.iter().find(|spec| spec.long == name) {
        return Ok(exact);
    }
    let candidates: Vec<&Opt> = specs
        .iter()
        .filter(|spec| spec.long.starts_with(name))
        .collect();
    match candidates.as_slice() {
        [] => Err(format!(
            "unrecognized option '{}'",
            argument.split('=').next().unwrap_or(argument)
        )),
        [one] => Ok(one),
        several => {
            let names: Vec<String> = several
                .iter()
                .map(|spec| format!(" '--{}'", spec.long))
                .collect();
            Err(format!(
                "option '{argument}' is ambiguous; possibilities:{}",
                names.concat()
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPECS: [Opt; 4] = [
        flag(Some('q'), "quiet", ""),
        value(Some('f'), "format", ""),
        flag(None, "force", ""),
        value(None, "output", ""),
    ];

    fn parsed(arguments: &[&str]) -> Result<Parsed, String> {
        let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
        parse("verb", &SPECS, &arguments).map_err(|stop| match &stop {
            Stop::Misuse { text, .. } => text.clone(),
            Stop::Failed(_) | Stop::FailedWith(..) | Stop::Code(_) => format!("{stop:?}"),
        })
    }

    #[test]
    fn options_and_operands_come_in_any_order() {
        let whole = parsed(&["a", "-qfraw", "b", "--outp=json", "--", "-q"]).unwrap();
        assert_eq!(whole.operands, ["a", "b", "-q"]);
        assert!(whole.has("quiet") && !whole.has("force"));
        assert_eq!(whole.get("format"), Some("raw"));
        assert_eq!(whole.get("output"), Some("json"));
        assert_eq!(
            parsed(&["-f", "a", "--format", "b"]).unwrap().get("format"),
            Some("b")
        );
        assert_eq!(parsed(&["-"]).unwrap().operands, ["-"]);
    }

    #[test]
    fn what_is_wrong_is_told_as_getopt_tells_it() {
        for (arguments, text) in [
            (&["--bogus"][..], "unrecognized option '--bogus'"),
            (&["-T"], "invalid option -- 'T'"),
            (&["-f"], "option requires an argument -- 'f'"),
            (&["--format"], "option '--format' requires an argument"),
            (&["--quiet=1"], "option '--quiet' doesn't allow an argument"),
            (
                &["--fo"],
                "option '--fo' is ambiguous; possibilities: '--format' '--force'",
            ),
        ] {
            assert_eq!(parsed(arguments), Err(format!("qemu-img verb: {text}")));
        }
    }
}
