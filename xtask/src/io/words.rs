//! The words of a command line: options, numbers and patterns, read and refused as qemu-io does.

use crate::block::size::{self, BadSize};

/// The longest request, in bytes.
pub(super) const MAX_REQUEST_BYTES: u64 = 2_147_483_136;

/// Options and operands of a command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Words {
    options: Vec<(char, String)>,
    pub(super) operands: Vec<String>,
}

impl Words {
    /// Whether an option was given.
    pub(super) fn has(&self, option: char) -> bool {
        self.options.iter().any(|(name, _)| *name == option)
    }

    /// The argument of an option; the last one counts.
    pub(super) fn get(&self, option: char) -> Option<&str> {
        self.options
            .iter()
            .rfind(|(name, _)| *name == option)
            .map(|(_, argument)| argument.as_str())
    }

    /// Options with their arguments, in their order.
    pub(super) fn options(&self) -> impl Iterator<Item = (char, &str)> {
        self.options
            .iter()
            .map(|(name, argument)| (*name, argument.as_str()))
    }

    /// Reads the words behind a command's name. In `known`, a letter before a colon takes an argument.
    pub(super) fn parse(known: &str, words: &[String]) -> Result<Self, String> {
        let mut parsed = Self::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            if word == "--" {
                parsed.operands.extend(words.by_ref().cloned());
                break;
            }
            let Some(bundle) = word.strip_prefix('-').filter(|bundle| !bundle.is_empty()) else {
                parsed.operands.push(word.clone());
                continue;
            };
            let mut letters = bundle.chars();
            while let Some(letter) = letters.next() {
                let at = known.find(letter).filter(|_| letter != ':');
                let Some(at) = at else {
                    return Err(format!("invalid option -- '{letter}'"));
                };
                if !known[at + letter.len_utf8()..].starts_with(':') {
                    parsed.options.push((letter, String::new()));
                    continue;
                }
                let argument = match letters.as_str() {
                    "" => words
                        .next()
                        .cloned()
                        .ok_or_else(|| format!("option requires an argument -- '{letter}'"))?,
                    rest => rest.to_owned(),
                };
                parsed.options.push((letter, argument));
                break;
            }
        }
        Ok(parsed)
    }
}

/// Takes a line apart at its spaces.
pub(super) fn split(line: &str) -> Vec<String> {
    line.split(' ')
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

/// A number of bytes.
pub(super) fn number(text: &str) -> Result<u64, String> {
    let too_large = || format!("Parsing error: argument too large -- {text}");
    if let Some(negative) = text.trim_start().strip_prefix('-')
        && size::parse(negative).is_ok()
    {
        return Err(too_large());
    }
    match size::parse(text) {
        Ok(bytes) if i64::try_from(bytes).is_ok() => Ok(bytes),
        Ok(_) | Err(BadSize::TooLarge) => Err(too_large()),
        Err(BadSize::Syntax) => Err(format!(
            "Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- {text}"
        )),
    }
}

/// A whole number as C writes it: decimal, hexadecimal behind `0x`, octal behind `0`.
pub(super) fn integer(text: &str) -> Option<u64> {
    let text = text.trim_start();
    if let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        u64::from_str_radix(digits, 16).ok()
    } else if text.len() > 1 && text.starts_with('0') {
        u64::from_str_radix(&text[1..], 8).ok()
    } else {
        text.parse().ok()
    }
}

/// A byte to fill a buffer with.
pub(super) fn pattern(text: &str) -> Result<u8, String> {
    integer(text)
        .and_then(|number| u8::try_from(number).ok())
        .ok_or_else(|| format!("{text} is not a valid pattern byte"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_and_operands_mix() {
        let parsed = Words::parse("qP:s:", &split(" -qP 1  0 -s2 64k -- -q")).unwrap();
        assert!(parsed.has('q') && !parsed.has('z'));
        assert_eq!((parsed.get('P'), parsed.get('s')), (Some("1"), Some("2")));
        assert_eq!(parsed.operands, ["0", "64k", "-q"]);
        let wrong = |text| Words::parse("qP:", &split(text)).unwrap_err();
        assert_eq!(wrong("-x"), "invalid option -- 'x'");
        assert_eq!(wrong("0 -1"), "invalid option -- '1'");
        assert_eq!(wrong("--quiet"), "invalid option -- '-'");
        assert_eq!(wrong("-P"), "option requires an argument -- 'P'");
    }

    #[test]
    fn numbers_and_patterns_are_read_as_c_reads_them() {
        assert_eq!(number("+1k"), Ok(1024));
        assert!(number("-1").unwrap_err().contains("too large"));
        assert!(number("8E").unwrap_err().contains("too large"));
        assert!(number("1kB").unwrap_err().contains("non-numeric"));
        for (text, byte) in [("0xab", 0xab), ("010", 8), ("0", 0), ("255", 255)] {
            assert_eq!(pattern(text), Ok(byte));
        }
        for text in ["256", "-1", "0x", "zz", "", "08"] {
            assert_eq!(
                pattern(text),
                Err(format!("{text} is not a valid pattern byte"))
            );
        }
    }
}
