//! Sections of a configuration: keys and values that belong there, and what they come to.

use std::collections::{BTreeMap, BTreeSet};

use engine::device::Event;

use super::lines::{self, Line};
use super::{BadLine, Config, Injection, IoType, Problem};
use crate::rule::{Repeat, State, Transition};

/// The kinds of sections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SectionKind {
    /// `[inject-error]`
    InjectError,
    /// `[set-state]`
    SetState,
}

/// One section: keys that it has, with numbers and flags that are right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    kind: SectionKind,
    /// The line of its heading in a file.
    line: Option<usize>,
    values: BTreeMap<&'static str, Value>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Value {
    text: String,
    line: Option<usize>,
}

/// The sections of a file and of options, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sections(Vec<Section>);

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

    pub(super) fn keys(self) -> &'static [&'static str] {
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
            line: None,
            values: BTreeMap::new(),
        }
    }

    /// Sets a key by an option; the last value counts.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), Problem> {
        self.set_at(None, key, value)
            .ok_or_else(|| Problem::UnknownOption {
                section: self.kind,
                key: key.to_owned(),
            })?
    }

    /// Sets a key, or hands back nothing where there is none of that name.
    fn set_at(
        &mut self,
        line: Option<usize>,
        key: &str,
        value: &str,
    ) -> Option<Result<(), Problem>> {
        let key = *self.kind.keys().iter().find(|known| **known == key)?;
        let text = value.to_owned();
        self.values.insert(key, Value { text, line });
        let checked = match key {
            "state" | "new_state" | "errno" | "sector" => self.number(key).map(drop),
            "once" | "immediately" => self.flag(key).map(drop),
            _ => Ok(()),
        };
        Some(checked)
    }

    fn get(&self, key: &'static str) -> Option<&str> {
        self.values.get(key).map(|value| value.text.as_str())
    }

    fn number(&self, key: &'static str) -> Result<Option<u64>, Problem> {
        self.get(key).map(|text| number(key, text)).transpose()
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
        Event::from_name(name).ok_or_else(|| Problem::UnknownEvent(name.to_owned()))
    }

    /// Zero stands for any state.
    fn state(&self) -> Result<Option<State>, Problem> {
        let state = self.number("state")?.map_or(0, low_half);
        Ok((state != 0).then_some(State(state)))
    }

    fn kind(&self) -> Result<Option<IoType>, Problem> {
        let named = |name: &str| {
            IoType::from_name(name).ok_or_else(|| Problem::UnknownIoType(name.to_owned()))
        };
        self.get("iotype").map(named).transpose()
    }

    fn injection(&self) -> Result<Injection, Problem> {
        // A failure is always told at once: nobody here depends on a turn of an event loop before it.
        let event = self.event()?;
        let errno = self.number("errno")?.map_or(5, low_half).cast_signed();
        if errno < 0 {
            return Err(Problem::NegativeErrno(errno));
        }
        Ok(Injection {
            event,
            state: self.state()?,
            errno,
            sector: self.number("sector")?.filter(|sector| *sector != u64::MAX),
            repeat: if self.flag("once")? {
                Repeat::Once
            } else {
                Repeat::Always
            },
            kind: self.kind()?,
        })
    }

    fn transition(&self) -> Result<Transition, Problem> {
        Ok(Transition {
            event: self.event()?,
            from: self.state()?,
            to: State(self.number("new_state")?.map_or(0, low_half)),
        })
    }

    /// Says where in a file a problem of this section is.
    fn locate(&self, problem: Problem) -> BadLine {
        let value = problem.key().and_then(|key| self.values.get(key));
        BadLine {
            line: value.map_or(self.line, |value| value.line),
            problem,
        }
    }
}

/// A number as C reads it: decimal, hexadecimal behind `0x`, octal behind `0`; a negative one wraps around.
fn number(key: &'static str, text: &str) -> Result<u64, Problem> {
    let blank = |character: char| character.is_ascii_whitespace() || character == '\u{b}';
    let unsigned = text.trim_start_matches(blank);
    let (negative, unsigned) = match unsigned.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, unsigned.strip_prefix('+').unwrap_or(unsigned)),
    };
    let (radix, digits) = if let Some(digits) = unsigned
        .strip_prefix("0x")
        .or_else(|| unsigned.strip_prefix("0X"))
    {
        (16, digits)
    } else if unsigned.len() > 1 && unsigned.starts_with('0') {
        (8, &unsigned[1..])
    } else {
        (10, unsigned)
    };
    if digits.is_empty() || !digits.chars().all(|digit| digit.is_digit(radix)) {
        return Err(Problem::NotANumber(key));
    }
    let magnitude = u64::from_str_radix(digits, radix).map_err(|_| Problem::TooLarge {
        key,
        value: text.to_owned(),
    })?;
    Ok(if negative {
        magnitude.wrapping_neg()
    } else {
        magnitude
    })
}

/// What a C `int` keeps of a number.
fn low_half(number: u64) -> u32 {
    u32::try_from(number & u64::from(u32::MAX)).expect("32 bits are left")
}

impl Sections {
    /// Takes in a section of options.
    pub fn add(&mut self, section: Section) {
        self.0.push(section);
    }

    /// Takes in the sections of others, behind its own.
    pub fn append(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    /// Takes in the text of a configuration file.
    pub fn add_file(&mut self, text: &str) -> Result<(), BadLine> {
        let first = self.0.len();
        let mut ids = BTreeSet::new();
        let mut claim = |section: SectionKind, id: &str| {
            let id = identifier(id)?.to_owned();
            if ids.insert((section, id.clone())) {
                Ok(())
            } else {
                Err(Problem::Duplicate { section, id })
            }
        };
        for (line, text) in (1..).zip(text.split_inclusive('\n')) {
            let bad = |problem| BadLine {
                line: Some(line),
                problem,
            };
            match lines::read(text).map_err(bad)? {
                Line::Blank => {}
                Line::Heading { name, id } => {
                    let kind = SectionKind::from_name(name).map_err(bad)?;
                    id.map_or(Ok(()), |id| claim(kind, id)).map_err(bad)?;
                    self.0.push(Section {
                        line: Some(line),
                        ..Section::new(kind)
                    });
                }
                Line::Pair { key, value } => {
                    let section = self.0[first..].last_mut();
                    let section = section.ok_or_else(|| bad(Problem::NoSection))?;
                    if key == "id" {
                        // A name may stand in the section too.
                        claim(section.kind, value).map_err(bad)?;
                        continue;
                    }
                    let unknown = Problem::UnknownKey {
                        section: section.kind,
                        key: key.to_owned(),
                    };
                    let set = section.set_at(Some(line), key, value);
                    set.unwrap_or(Err(unknown)).map_err(bad)?;
                }
            }
        }
        Ok(())
    }

    /// What they come to: the errors first, and then how the state moves.
    pub fn config(&self) -> Result<Config, BadLine> {
        let mut config = Config::default();
        for section in self.of(SectionKind::InjectError) {
            let injection = section.injection();
            let injection = injection.map_err(|problem| section.locate(problem))?;
            config.injections.push(injection);
        }
        for section in self.of(SectionKind::SetState) {
            let transition = section.transition();
            let transition = transition.map_err(|problem| section.locate(problem))?;
            config.transitions.push(transition);
        }
        Ok(config)
    }

    fn of(&self, kind: SectionKind) -> impl Iterator<Item = &Section> {
        self.0.iter().filter(move |section| section.kind == kind)
    }
}

fn identifier(text: &str) -> Result<&str, Problem> {
    let fits = |character: char| character.is_ascii_alphanumeric() || "-._".contains(character);
    let starts = text.starts_with(|character: char| character.is_ascii_alphabetic());
    if starts && text.chars().all(fits) {
        Ok(text)
    } else {
        Err(Problem::BadId)
    }
}
