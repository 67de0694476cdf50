//! blkdebug's configuration: which errors are injected when, and how the state moves.
//!
//! The language is that of QEMU's `blkdebug` (`docs/devel/testing/blkdebug.rst`): sections
//! `[inject-error]` and `[set-state]` of lines `key = "value"`; the same keys come as driver options
//! `inject-error.N.key`. What is not known is refused with its line. Breakpoints are no part of it:
//! they are set while a device runs ([`crate::filter`]).

use std::collections::{BTreeMap, BTreeSet};

use engine::device::{Event, OpKind};

use crate::rule::{Repeat, State, Transition};

/// An error that an event arms, and that requests after it meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Injection {
    /// The event that arms it.
    pub event: Event,
    /// The kind of request that fails; any but a change of length where it is absent.
    pub kind: Option<OpKind>,
    /// What the request fails with; zero lets it pass and keeps it from the rules behind this one.
    pub errno: i32,
    /// A sector that the request must contain, or any; a flush contains none.
    pub sector: Option<u64>,
    /// The state that the event must find, or any.
    pub state: Option<State>,
    /// Whether the rule is gone after its first hit.
    pub repeat: Repeat,
}

/// Everything that a configuration says, in its order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// What goes wrong.
    pub injections: Vec<Injection>,
    /// How the state moves.
    pub transitions: Vec<Transition>,
}

/// The kinds of sections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SectionKind {
    /// `[inject-error]`
    InjectError,
    /// `[set-state]`
    SetState,
}

/// One section: keys and values that are known to belong there, not yet looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    kind: SectionKind,
    values: BTreeMap<String, String>,
}

/// What is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Neither a section, nor a key with its value, nor a comment.
    #[error("expected [inject-error], [set-state] or key = \"value\"")]
    Syntax,
    /// A key before the first section.
    #[error("no group defined")]
    NoSection,
    /// A section of another name.
    #[error("There is no option group '{0}'")]
    UnknownSection(String),
    /// Two sections of one kind and name.
    #[error("Duplicate ID '{id}' for {}", section.name())]
    Duplicate {
        /// Their kind.
        section: SectionKind,
        /// Their name.
        id: String,
    },
    /// A key that the section does not have.
    #[error("[{}] section doesn't support the option '{key}'", section.name())]
    UnknownKey {
        /// The section.
        section: SectionKind,
        /// The key.
        key: String,
    },
    /// A section without an event.
    #[error("Missing event name for rule")]
    NoEvent,
    /// A value that its key does not take.
    #[error("invalid parameter value: {0}")]
    BadValue(String),
    /// A value that should be a number.
    #[error("Parameter '{0}' expects a number")]
    NotANumber(&'static str),
    /// A value that should be on or off.
    #[error("Parameter '{0}' expects 'on' or 'off'")]
    NotAFlag(&'static str),
    /// Something that QEMU has, and this program does not.
    #[error("iotype '{0}' is not supported yet")]
    NotYet(String),
}

/// A problem in a configuration file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct BadLine {
    /// The line, counted from one; for a section as a whole that of its heading.
    pub line: usize,
    /// What is wrong there.
    pub problem: Problem,
}

impl SectionKind {
    /// Every kind.
    pub const ALL: [Self; 2] = [Self::InjectError, Self::SetState];

    /// The name in brackets.
    pub fn name(self) -> &'static str {
        match self {
            Self::InjectError => "inject-error",
            Self::SetState => "set-state",
        }
    }

    fn keys(self) -> &'static [&'static str] {
        match self {
            Self::InjectError => &[
                "event",
                "state",
                "iotype",
                "errno",
                "sector",
                "once",
                "immediately",
            ],
            Self::SetState => &["event", "state", "new_state"],
        }
    }

    fn from_name(name: &str) -> Result<Self, Problem> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| Problem::UnknownSection(name.to_owned()))
    }
}

impl Section {
    /// An empty section.
    pub fn new(kind: SectionKind) -> Self {
        Self {
            kind,
            values: BTreeMap::new(),
        }
    }

    /// Sets a key; the last value counts.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), Problem> {
        if !self.kind.keys().contains(&key) {
            return Err(Problem::UnknownKey {
                section: self.kind,
                key: key.to_owned(),
            });
        }
        self.values.insert(key.to_owned(), value.to_owned());
        Ok(())
    }

    fn get(&self, key: &'static str) -> Option<&str> {
        self.values.get(key).map(String::as_str)
    }

    fn number(&self, key: &'static str) -> Result<Option<i128>, Problem> {
        let Some(text) = self.get(key) else {
            return Ok(None);
        };
        let (sign, digits) = match text.strip_prefix('-') {
            Some(digits) => (-1, digits),
            None => (1, text),
        };
        let number = match digits.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => digits.parse(),
        };
        let number = number.map_err(|_| Problem::NotANumber(key))?;
        Ok(Some(sign * i128::from(number)))
    }

    fn flag(&self, key: &'static str) -> Result<bool, Problem> {
        match self.get(key) {
            None | Some("off" | "no" | "false" | "n") => Ok(false),
            Some("on" | "yes" | "true" | "y") => Ok(true),
            Some(_) => Err(Problem::NotAFlag(key)),
        }
    }

    fn event(&self) -> Result<Event, Problem> {
        let name = self.get("event").ok_or(Problem::NoEvent)?;
        Event::from_name(name).ok_or_else(|| Problem::BadValue(name.to_owned()))
    }

    /// Zero stands for any state, and a number that no state has for one that is never reached.
    fn state(&self) -> Result<Option<State>, Problem> {
        Ok(match self.number("state")? {
            None | Some(0) => None,
            Some(number) => Some(State(u32::try_from(number).unwrap_or(u32::MAX))),
        })
    }

    fn kind(&self) -> Result<Option<OpKind>, Problem> {
        match self.get("iotype") {
            None => Ok(None),
            Some(name @ "block-status") => Err(Problem::NotYet(name.to_owned())),
            Some(name) => OpKind::from_name(name)
                .filter(|kind| *kind != OpKind::SetLen)
                .map(Some)
                .ok_or_else(|| Problem::BadValue(name.to_owned())),
        }
    }

    fn injection(&self) -> Result<Injection, Problem> {
        // A failure is always told at once: nobody here depends on a turn of an event loop before it.
        self.flag("immediately")?;
        Ok(Injection {
            event: self.event()?,
            kind: self.kind()?,
            errno: match self.number("errno")? {
                None => 5,
                Some(errno) => i32::try_from(errno.max(0)).unwrap_or(0),
            },
            sector: match self.number("sector")? {
                None | Some(-1) => None,
                Some(sector) => Some(u64::try_from(sector).unwrap_or(u64::MAX)),
            },
            state: self.state()?,
            repeat: if self.flag("once")? {
                Repeat::Once
            } else {
                Repeat::Always
            },
        })
    }

    fn transition(&self) -> Result<Transition, Problem> {
        let to = self.number("new_state")?.unwrap_or(0);
        Ok(Transition {
            event: self.event()?,
            from: self.state()?,
            to: State(u32::try_from(to).unwrap_or(u32::MAX)),
        })
    }
}

impl Config {
    /// Takes in a section.
    pub fn add(&mut self, section: &Section) -> Result<(), Problem> {
        match section.kind {
            SectionKind::InjectError => self.injections.push(section.injection()?),
            SectionKind::SetState => self.transitions.push(section.transition()?),
        }
        Ok(())
    }

    /// Takes in the text of a configuration file.
    pub fn add_file(&mut self, text: &str) -> Result<(), BadLine> {
        let mut open: Option<(usize, Section)> = None;
        let mut ids = BTreeSet::new();
        for (index, line) in text.lines().enumerate() {
            let bad = |problem| BadLine {
                line: index + 1,
                problem,
            };
            match parse_line(line).map_err(bad)? {
                Line::Blank => {}
                Line::Heading { name, id } => {
                    self.end_section(open.take())?;
                    let kind = SectionKind::from_name(name).map_err(bad)?;
                    if let Some(id) = id
                        && !ids.insert((kind, id))
                    {
                        let id = id.to_owned();
                        return Err(bad(Problem::Duplicate { section: kind, id }));
                    }
                    open = Some((index + 1, Section::new(kind)));
                }
                Line::Pair { key, value } => {
                    let (_, section) = open.as_mut().ok_or_else(|| bad(Problem::NoSection))?;
                    section.set(key, value).map_err(bad)?;
                }
            }
        }
        self.end_section(open)
    }

    fn end_section(&mut self, open: Option<(usize, Section)>) -> Result<(), BadLine> {
        let Some((line, section)) = open else {
            return Ok(());
        };
        self.add(&section)
            .map_err(|problem| BadLine { line, problem })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line<'a> {
    Blank,
    Heading { name: &'a str, id: Option<&'a str> },
    Pair { key: &'a str, value: &'a str },
}

fn parse_line(line: &str) -> Result<Line<'_>, Problem> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(Line::Blank);
    }
    if let Some(heading) = line.strip_prefix('[') {
        let (heading, rest) = heading.split_once(']').ok_or(Problem::Syntax)?;
        must_be_idle(rest)?;
        return match heading.split_once(' ') {
            None => Ok(Line::Heading {
                name: heading,
                id: None,
            }),
            Some((name, id)) => Ok(Line::Heading {
                name,
                id: Some(quoted(id.trim())?.0),
            }),
        };
    }
    let (key, value) = line.split_once('=').ok_or(Problem::Syntax)?;
    let (value, rest) = quoted(value.trim_start())?;
    must_be_idle(rest)?;
    Ok(Line::Pair {
        key: key.trim_end(),
        value,
    })
}

/// What stands between the quotes at the start of `text`, and what follows.
fn quoted(text: &str) -> Result<(&str, &str), Problem> {
    text.strip_prefix('"')
        .and_then(|text| text.split_once('"'))
        .ok_or(Problem::Syntax)
}

fn must_be_idle(rest: &str) -> Result<(), Problem> {
    let rest = rest.trim_start();
    if rest.is_empty() || rest.starts_with('#') {
        Ok(())
    } else {
        Err(Problem::Syntax)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, BadLine> {
        let mut config = Config::default();
        config.add_file(text).map(|()| config)
    }

    #[test]
    fn a_file_is_read_as_qemu_reads_it() {
        let config = read(
            "# what goes wrong\n\
             [inject-error \"first\"]\n\
             event = \"l2_update\"\n\
             iotype = \"write\"\n\
             errno = \"28\"\n\
             sector = \"0x10\"\n\
             state = \"2\"\n\
             once = \"on\"\n\
             immediately = \"off\"\n\
             \n\
             [inject-error]\n\
               event   =   \"none\"  # always\n\
             [set-state]\n\
             event = \"l2_load\"\n\
             state = \"1\"\n\
             new_state = \"2\"\n",
        );
        let config = config.unwrap();
        assert_eq!(
            config.injections,
            [
                Injection {
                    event: Event::L2Update,
                    kind: Some(OpKind::Write),
                    errno: 28,
                    sector: Some(16),
                    state: Some(State(2)),
                    repeat: Repeat::Once,
                },
                Injection {
                    event: Event::None,
                    kind: None,
                    errno: 5,
                    sector: None,
                    state: None,
                    repeat: Repeat::Always,
                },
            ]
        );
        assert_eq!(
            config.transitions,
            [Transition {
                event: Event::L2Load,
                from: Some(State(1)),
                to: State(2),
            }]
        );
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        for (text, says) in [
            ("a = \"1\"", "line 1: no group defined"),
            ("\n[bogus]", "line 2: There is no option group 'bogus'"),
            (
                "[set-state]\nevent = \"none\"\nerrno = \"1\"",
                "line 3: [set-state] section doesn't support the option 'errno'",
            ),
            ("[inject-error]\n\n", "line 1: Missing event name for rule"),
            (
                "[inject-error]\nevent = \"bogus\"\n[set-state]",
                "line 1: invalid parameter value: bogus",
            ),
            (
                "[inject-error]\nevent = \"none\"\nerrno = \"x\"",
                "line 1: Parameter 'errno' expects a number",
            ),
            (
                "[inject-error]\nevent = \"none\"\nonce = \"x\"",
                "line 1: Parameter 'once' expects 'on' or 'off'",
            ),
            (
                "[inject-error]\nevent = \"none\"\niotype = \"set-len\"",
                "line 1: invalid parameter value: set-len",
            ),
            (
                "[inject-error]\nevent = \"none\"\niotype = \"block-status\"",
                "line 1: iotype 'block-status' is not supported yet",
            ),
            (
                "[inject-error \"a\"]\nevent = \"none\"\n[inject-error \"a\"]",
                "line 3: Duplicate ID 'a' for inject-error",
            ),
            (
                "[inject-error]\nevent = none",
                "line 2: expected [inject-error], [set-state] or key = \"value\"",
            ),
            (
                "[inject-error",
                "line 1: expected [inject-error], [set-state] or key = \"value\"",
            ),
        ] {
            assert_eq!(read(text).unwrap_err().to_string(), says, "{text}");
        }
    }
}
