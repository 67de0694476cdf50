//! What an oracle says of a crash state.

use std::fmt;
use std::str::FromStr;

use crate::guest::Level;

/// The oracles, cheap to strong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Oracle {
    /// No panic and no hang.
    Progress,
    /// The structures, by an independent walk.
    Structure,
    /// Recovery succeeds, is complete, changes no guest byte, and needs no second run.
    Repair,
    /// What the guest finds, sector by sector.
    Guest,
    /// Work after recovery.
    Service,
}

/// The judgement of one state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Everything that was promised holds.
    Survived,
    /// A promise is broken.
    Violated(Violation),
    /// The oracles cannot tell, and why.
    NotMeasured(String),
    /// The harness contradicts itself, and how.
    HarnessBroken(String),
}

/// How far what a guest finds may miss what is legal, strictest first. What a sector lost for good is never let pass, nor
/// is anything but a guest's sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Acceptance {
    /// Not at all.
    Strict,
    /// By zeroes.
    Zeros,
    /// By what the same disk holds or held elsewhere.
    StaleOwn,
    /// By anything.
    StaleForeign,
}

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// What kind of failure this is.
    pub class: FailureClass,
    /// What is wrong, for people: the first line is a sentence that stands alone.
    pub lines: Vec<String>,
}

/// What two failures must have in common to be the same failure: a minimiser keeps it.
///
/// It is written `oracle/kind/site`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FailureClass {
    /// Who noticed.
    pub oracle: Oracle,
    /// The rule that is broken, or the level by which the guest's data miss what is legal.
    pub kind: String,
    /// The structure or the place in the code, where that is known.
    pub site: String,
}

impl Oracle {
    /// Every oracle.
    pub const ALL: [Self; 5] = [
        Self::Progress,
        Self::Structure,
        Self::Repair,
        Self::Guest,
        Self::Service,
    ];

    /// The name used in reports and traces.
    pub fn name(self) -> &'static str {
        match self {
            Self::Progress => "progress",
            Self::Structure => "structure",
            Self::Repair => "repair",
            Self::Guest => "guest",
            Self::Service => "service",
        }
    }
}

impl Acceptance {
    /// All of them, strictest first.
    pub const ALL: [Self; 4] = [
        Self::Strict,
        Self::Zeros,
        Self::StaleOwn,
        Self::StaleForeign,
    ];

    /// The name used in reports and traces.
    pub fn name(self) -> &'static str {
        self.level().map_or("strict", Level::name)
    }

    /// That of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.name() == name)
    }

    /// The mildest level that is let pass.
    pub fn level(self) -> Option<Level> {
        match self {
            Self::Strict => None,
            Self::Zeros => Some(Level::Zeros),
            Self::StaleOwn => Some(Level::StaleOwn),
            Self::StaleForeign => Some(Level::StaleForeign),
        }
    }

    /// What is broken by what fails under this, and under nothing milder.
    pub fn broken(self) -> &'static str {
        match self {
            Self::Strict => "strict, and nothing milder",
            Self::Zeros => "strict and zeros",
            Self::StaleOwn => "strict, zeros and stale-own",
            Self::StaleForeign => "every level",
        }
    }
}

impl Verdict {
    /// Whether the state passed: neither a violation nor an oracle that could not tell.
    pub fn survived(&self) -> bool {
        *self == Self::Survived
    }
}

impl Violation {
    /// A violation of this class, explained by `lines`.
    pub fn new(
        oracle: Oracle,
        kind: impl Into<String>,
        site: impl Into<String>,
        lines: Vec<String>,
    ) -> Self {
        Self {
            class: FailureClass {
                oracle,
                kind: kind.into(),
                site: site.into(),
            },
            lines,
        }
    }
}

impl From<Violation> for Verdict {
    fn from(violation: Violation) -> Self {
        Self::Violated(violation)
    }
}

impl fmt::Display for FailureClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.oracle.name(), self.kind, self.site)
    }
}

/// The text is not a failure class.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a failure class, which is written oracle/kind/site")]
pub struct NoFailureClass(String);

impl FromStr for FailureClass {
    type Err = NoFailureClass;

    fn from_str(text: &str) -> Result<Self, NoFailureClass> {
        let mut parts = text.splitn(3, '/');
        let (Some(oracle), Some(kind), Some(site)) = (parts.next(), parts.next(), parts.next())
        else {
            return Err(NoFailureClass(text.into()));
        };
        let oracle = Oracle::ALL
            .into_iter()
            .find(|known| known.name() == oracle)
            .ok_or_else(|| NoFailureClass(text.into()))?;
        Ok(Self {
            oracle,
            kind: kind.into(),
            site: site.into(),
        })
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.class)?;
        self.lines.iter().try_for_each(|line| write!(f, "\n{line}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_comes_back_from_its_text() {
        for (oracle, site) in [(Oracle::Guest, ""), (Oracle::Progress, "engine/src/a.rs:7")] {
            let class = FailureClass {
                oracle,
                kind: "lost".into(),
                site: site.into(),
            };
            assert_eq!(class.to_string().parse(), Ok(class));
        }
        for text in ["", "guest/lost", "gast/lost/x"] {
            assert!(text.parse::<FailureClass>().is_err());
        }
    }
}
