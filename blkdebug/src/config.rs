//! blkdebug's configuration: which errors are injected when, and how the state moves.
//!
//! The language is that of QEMU's `blkdebug` (`docs/devel/testing/blkdebug.rst`): sections
//! `[inject-error]` and `[set-state]` of lines `key = "value"`; the same keys come as driver options
//! `inject-error.N.key`. It is read in two steps, as QEMU does it: all lines and options become
//! [`Sections`], whose keys and numbers are right; then these become a [`Config`], injections before
//! transitions. What is not known is refused in QEMU's words, with the line and the nearest right name.
//! Breakpoints are no part of it: they are set while a device runs ([`crate::filter`]); limits of
//! requests come as options only ([`BlockLimits`]).

mod limits;
mod lines;
mod section;

use engine::device::{Event, OpKind};

pub use self::limits::{BadLimit, BlockLimits, LimitKey};
pub use self::section::{Section, SectionKind, Sections};
use crate::rule::{Repeat, State, Transition};

/// The kinds of requests that a rule tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum IoType {
    /// Reads.
    Read,
    /// Writes of data.
    Write,
    /// Writes of zeroes.
    WriteZeroes,
    /// Discards.
    Discard,
    /// Flushes.
    Flush,
    /// Questions what a stretch is made of.
    BlockStatus,
}

/// An error that an event arms, and that requests after it meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Injection {
    /// The event that arms it.
    pub event: Event,
    /// The kind of request that fails; where it is absent, any but [`IoType::BlockStatus`].
    pub kind: Option<IoType>,
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

/// What is wrong with a configuration. The texts are QEMU's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// A line that says nothing at all.
    #[error("parse error")]
    Syntax,
    /// A line of more bytes than QEMU reads as one.
    #[error("parse error: a line has at most {} bytes", lines::MAX_LINE_LEN)]
    LongLine,
    /// A key before the first section.
    #[error("no group defined")]
    NoSection,
    /// A section of another name.
    #[error("There is no option group '{0}'")]
    UnknownSection(String),
    /// A section's own name that is none.
    #[error(
        "Parameter 'id' expects an identifier\nIdentifiers consist of letters, digits, '-', '.', '_', \
         starting with a letter."
    )]
    BadId,
    /// Two sections of one kind and name.
    #[error("Duplicate ID '{id}' for {}", section.name())]
    Duplicate {
        /// Their kind.
        section: SectionKind,
        /// Their name.
        id: String,
    },
    /// A key in a file that the section does not have.
    #[error("Invalid parameter '{key}'")]
    UnknownKey {
        /// The section.
        section: SectionKind,
        /// The key.
        key: String,
    },
    /// A key among options that the section does not have.
    #[error("[{}] section doesn't support the option '{key}'", section.name())]
    UnknownOption {
        /// The section.
        section: SectionKind,
        /// The key.
        key: String,
    },
    /// A section without an event.
    #[error("Missing event name for rule")]
    NoEvent,
    /// An event that there is not.
    #[error("invalid parameter value: {0}")]
    UnknownEvent(String),
    /// A kind of request that there is not.
    #[error("invalid parameter value: {0}")]
    UnknownIoType(String),
    /// A value that should be a number.
    #[error("Parameter '{0}' expects a number")]
    NotANumber(&'static str),
    /// A number of more than 64 bits.
    #[error("Value '{value}' is too large for parameter '{key}'")]
    TooLarge {
        /// Of which key.
        key: &'static str,
        /// The number.
        value: String,
    },
    /// An error number below zero, which would acknowledge what never happens.
    #[error("Parameter 'errno' expects a positive number: {0} is not an error")]
    NegativeErrno(i32),
    /// A value that should be on or off.
    #[error("Parameter '{0}' expects 'on' or 'off'")]
    NotAFlag(&'static str),
}

/// A problem, and where it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct BadLine {
    /// The line of a file, counted from one; for a section as a whole that of its heading. Options have none.
    pub line: Option<usize>,
    /// What is wrong there.
    pub problem: Problem,
}

impl std::fmt::Display for BadLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.told("line"))
    }
}

impl BadLine {
    /// The message, for a problem in the file of that name.
    pub fn in_file(&self, name: &str) -> String {
        self.told(&format!("{name}, line"))
    }

    fn told(&self, before_line: &str) -> String {
        let place = self.line.map(|line| format!("{before_line} {line}"));
        let parts: Vec<String> = place.into_iter().chain(self.problem.hint()).collect();
        if parts.is_empty() {
            self.problem.to_string()
        } else {
            format!("{} ({})", self.problem, parts.join(": "))
        }
    }
}

impl IoType {
    /// Every kind.
    pub const ALL: [Self; 6] = [
        Self::Read,
        Self::Write,
        Self::WriteZeroes,
        Self::Discard,
        Self::Flush,
        Self::BlockStatus,
    ];

    /// The name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::WriteZeroes => "write-zeroes",
            Self::Discard => "discard",
            Self::Flush => "flush",
            Self::BlockStatus => "block-status",
        }
    }

    /// The kind of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// The kind of a request; a change of length is of none.
    pub(crate) fn of(kind: OpKind) -> Option<Self> {
        match kind {
            OpKind::Read => Some(Self::Read),
            OpKind::Write => Some(Self::Write),
            OpKind::WriteZeroes => Some(Self::WriteZeroes),
            OpKind::Discard => Some(Self::Discard),
            OpKind::Flush => Some(Self::Flush),
            OpKind::SetLen => None,
        }
    }
}

impl Problem {
    /// What the writer may have meant.
    pub fn hint(&self) -> Option<String> {
        let nearest = match self {
            Self::UnknownSection(name) => nearest(name, SectionKind::ALL.map(SectionKind::name)),
            Self::UnknownKey { section, key } | Self::UnknownOption { section, key } => {
                if key == "delay-ns" && *section == SectionKind::InjectError {
                    return Some(
                        "QEMU has it since 10.0.13, and no request takes time here".into(),
                    );
                }
                if let Some((name, _)) = key.split_once('=') {
                    // Read as one word up to the value's end.
                    return Some(format!("leave a blank before the '=' behind '{name}'"));
                }
                nearest(key, section.keys().iter().copied())
            }
            Self::UnknownEvent(name) | Self::UnknownIoType(name) if name.is_empty() => {
                return Some("a value stands in double quotes, with a blank before the '='".into());
            }
            Self::UnknownEvent(name) => nearest(name, Event::ALL.map(Event::name)),
            Self::UnknownIoType(name) => nearest(name, IoType::ALL.map(IoType::name)),
            Self::Syntax
            | Self::LongLine
            | Self::NoSection
            | Self::BadId
            | Self::Duplicate { .. }
            | Self::NoEvent
            | Self::NotANumber(_)
            | Self::TooLarge { .. }
            | Self::NegativeErrno(_)
            | Self::NotAFlag(_) => None,
        };
        nearest.map(|name| format!("did you mean '{name}'?"))
    }

    /// The key whose value is wrong.
    fn key(&self) -> Option<&'static str> {
        match self {
            Self::UnknownEvent(_) => Some("event"),
            Self::UnknownIoType(_) => Some("iotype"),
            Self::NegativeErrno(_) => Some("errno"),
            Self::NotANumber(key) | Self::NotAFlag(key) | Self::TooLarge { key, .. } => Some(key),
            Self::Syntax
            | Self::LongLine
            | Self::NoSection
            | Self::UnknownSection(_)
            | Self::BadId
            | Self::Duplicate { .. }
            | Self::UnknownKey { .. }
            | Self::UnknownOption { .. }
            | Self::NoEvent => None,
        }
    }
}

/// The name among `names` that is nearest to what was written, where one is near enough to be meant.
pub fn nearest<'a>(written: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let written = written.to_lowercase();
    let reach = (written.chars().count() / 3).max(1);
    names
        .into_iter()
        .map(|name| (strsim::osa_distance(&written, name), name))
        .filter(|(distance, _)| *distance <= reach)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

impl Config {
    /// The configuration of a file's text.
    pub fn of_file(text: &str) -> Result<Self, BadLine> {
        let mut sections = Sections::default();
        sections.add_file(text)?;
        sections.config()
    }
}

#[cfg(test)]
mod tests;
