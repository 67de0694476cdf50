//! A case: a configuration, an image, and commands on it.
//!
//! `NAME.conf` is the configuration; `NAME.io` beside it says what is done. Its lines are commands of qemu-io,
//! comments behind `#`, and settings:
//!
//! | line | meaning |
//! |---|---|
//! | `@image raw 64k`, `@image qcow2 1M` | the image, named `image`; full of data, every sector another |
//! | `@image empty-qcow2 1M` | a qcow2 image in which nothing is allocated |
//! | `@reference` | a raw file `reference` with the content of the disk |
//! | `@with -f raw` | words before the name |
//! | `@name blkdebug:rules:image` | what is opened; this where nothing is said |
//! | `@options driver=..` | options that are opened in the place of a name |
//! | `@img map -f raw ..` | arguments of a call of qemu-img, after the commands |
//! | `@leaks` | leaks are accepted: which clusters a failed request leaves is each engine's own |
//! | `@stderr` | the error streams must agree too: here QEMU's must start what is said here |

use std::fs;
use std::path::Path;

/// What is done to an image, and by which rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::differential) struct Case {
    pub(in crate::differential) name: String,
    /// The configuration file.
    pub(super) rules: String,
    pub(super) image: Kind,
    pub(super) bytes: u64,
    pub(super) has_reference: bool,
    pub(super) with: Vec<String>,
    pub(super) opened: Opened,
    pub(super) commands: Vec<String>,
    pub(super) img: Vec<Vec<String>>,
    pub(super) leaks: bool,
    pub(super) messages: bool,
}

/// How an image is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Raw,
    /// qcow2, all of it allocated.
    Full,
    /// qcow2, nothing of it allocated.
    Empty,
}

/// What is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Opened {
    Name(String),
    Options(String),
}

/// The name of a configuration on either side.
pub(super) const RULES: &str = "rules";
/// The name of the image.
pub(super) const IMAGE: &str = "image";

impl Case {
    /// A case on a raw image of 64 KiB without commands.
    pub(super) fn new(name: &str, rules: String) -> Self {
        Self {
            name: name.to_owned(),
            rules,
            image: Kind::Raw,
            bytes: 64 << 10,
            has_reference: false,
            with: Vec::new(),
            opened: Opened::Name(format!("blkdebug:{RULES}:{IMAGE}")),
            commands: Vec::new(),
            img: Vec::new(),
            leaks: false,
            messages: false,
        }
    }

    /// Reads what is done.
    pub(super) fn parse(name: &str, rules: String, text: &str) -> Result<Self, String> {
        let mut case = Self::new(name, rules);
        for (line, number) in text.lines().zip(1..) {
            let line = line.trim_end();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let Some(setting) = line.strip_prefix('@') else {
                case.commands.push(line.to_owned());
                continue;
            };
            let (key, value) = setting.split_once(' ').unwrap_or((setting, ""));
            let words = || value.split_whitespace().map(str::to_owned).collect();
            match key {
                "image" => case
                    .set_image(value)
                    .ok_or_else(|| format!("{name}.io, line {number}: no image is '{value}'"))?,
                "reference" => case.has_reference = true,
                "with" => case.with = words(),
                "name" => case.opened = Opened::Name(value.to_owned()),
                "options" => case.opened = Opened::Options(value.to_owned()),
                "img" => case.img.push(words()),
                "leaks" => case.leaks = true,
                "stderr" => case.messages = true,
                _ => {
                    return Err(format!(
                        "{name}.io, line {number}: nothing is called '@{key}'"
                    ));
                }
            }
        }
        Ok(case)
    }

    fn set_image(&mut self, value: &str) -> Option<()> {
        let (kind, size) = value.split_once(' ')?;
        self.image = match kind {
            "raw" => Kind::Raw,
            "qcow2" => Kind::Full,
            "empty-qcow2" => Kind::Empty,
            _ => return None,
        };
        self.bytes = crate::block::size::parse(size).ok()?;
        Some(())
    }

    /// What is done, in the form of a file.
    pub(super) fn text(&self) -> String {
        let kind = match self.image {
            Kind::Raw => "raw",
            Kind::Full => "qcow2",
            Kind::Empty => "empty-qcow2",
        };
        let mut lines = vec![format!("@image {kind} {}", self.bytes)];
        if self.has_reference {
            lines.push("@reference".into());
        }
        if !self.with.is_empty() {
            lines.push(format!("@with {}", self.with.join(" ")));
        }
        lines.push(match &self.opened {
            Opened::Name(name) => format!("@name {name}"),
            Opened::Options(options) => format!("@options {options}"),
        });
        for (is_set, key) in [(self.leaks, "@leaks"), (self.messages, "@stderr")] {
            if is_set {
                lines.push(key.into());
            }
        }
        lines.extend(self.commands.iter().cloned());
        lines.extend(
            self.img
                .iter()
                .map(|words| format!("@img {}", words.join(" "))),
        );
        lines.push(String::new());
        lines.join("\n")
    }
}

/// The cases of a folder, in the order of their names.
pub(super) fn load(folder: &Path) -> Result<Vec<Case>, String> {
    let told = |error: std::io::Error| format!("{}: {error}", folder.display());
    let mut cases = Vec::new();
    for entry in fs::read_dir(folder).map_err(told)? {
        let path = entry.map_err(told)?.path();
        if path.extension().is_none_or(|extension| extension != "conf") {
            continue;
        }
        let stem = path.file_stem().unwrap_or_default();
        let name = stem.to_string_lossy().into_owned();
        let rules = fs::read_to_string(&path).map_err(told)?;
        let done = path.with_extension("io");
        let text = fs::read_to_string(&done);
        let text = text.map_err(|error| format!("{}: {error}", done.display()))?;
        cases.push(Case::parse(&name, rules, &text)?);
    }
    if cases.is_empty() {
        return Err(format!("{} holds no case", folder.display()));
    }
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(cases)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_is_read_and_written() {
        let text = "@image qcow2 65536\n@reference\n@with -t writeback\n@options driver=x\n@leaks\n\
                    write 0 512\nflush\n@img map a\n";
        let case = Case::parse("a", String::new(), text).unwrap();
        assert_eq!(case.text(), text);
        assert_eq!((case.image, case.bytes), (Kind::Full, 65536));
        assert_eq!(case.commands, ["write 0 512", "flush"]);
        let refused = |text: &str| Case::parse("a", String::new(), text).unwrap_err();
        assert_eq!(
            refused("\n@imge raw 1M"),
            "a.io, line 2: nothing is called '@imge'"
        );
        assert_eq!(
            refused("@image vmdk 1M"),
            "a.io, line 1: no image is 'vmdk 1M'"
        );
    }

    #[test]
    fn there_are_sixty_kept_cases_and_every_key_and_limit_is_in_one() {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../corpus/blkdebug"));
        let cases = load(folder).unwrap();
        assert!(cases.len() >= 60, "{}", cases.len());
        let has = |text: &str| {
            cases
                .iter()
                .any(|case| case.rules.contains(text) || case.text().contains(text))
        };
        for text in [
            "event = ",
            "state = ",
            "iotype = ",
            "errno = ",
            "sector = ",
            "once = ",
            "immediately = ",
            "new_state = ",
            "inject-error.0.",
            "set-state.0.",
            "align=",
            "max-transfer=",
            "opt-write-zero=",
            "max-write-zero=",
            "opt-discard=",
            "max-discard=",
            "take-child-perms.0",
            "unshare-child-perms.0",
            "json:",
            "break ",
            "wait_break ",
            "resume ",
            "remove_break ",
            "blkverify:",
            "driver=blkverify",
        ] {
            assert!(has(text), "no case has '{text}'");
        }
        for kind in blkdebug::config::IoType::ALL {
            assert!(has(&format!("iotype = \"{}\"", kind.name())), "{kind:?}");
        }
    }
}
