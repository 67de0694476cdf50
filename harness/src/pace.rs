//! Where a run stands, for whoever counts or times its stages. The harness itself has no clock.

/// The stages of a run: it lives through its workload, and then judges one crash state after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// The image is made, and the workload lived through.
    Live,
    /// The next crash state is found, told from those seen before, and built.
    Explore,
    /// The structures before recovery are walked.
    StructureBefore,
    /// The guest's sectors before recovery are held against the history.
    GuestBefore,
    /// The subject recovers the image and reads the guest's sectors.
    Recover,
    /// The structures after recovery are walked.
    StructureAfter,
    /// The guest's sectors after recovery are held against those before.
    GuestAfter,
    /// A check with repair of everything.
    Check,
    /// Recovery and check once more.
    Again,
    /// Work after recovery.
    Serve,
    /// The verdict is counted and folded into the digest.
    Account,
}

impl Stage {
    /// All, in the order in which a run comes to them.
    pub const ALL: [Self; 11] = [
        Self::Live,
        Self::Explore,
        Self::StructureBefore,
        Self::GuestBefore,
        Self::Recover,
        Self::StructureAfter,
        Self::GuestAfter,
        Self::Check,
        Self::Again,
        Self::Serve,
        Self::Account,
    ];

    /// The name used in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Explore => "explore",
            Self::StructureBefore => "structure before",
            Self::GuestBefore => "guest before",
            Self::Recover => "recover",
            Self::StructureAfter => "structure after",
            Self::GuestAfter => "guest after",
            Self::Check => "check",
            Self::Again => "again",
            Self::Serve => "serve",
            Self::Account => "account",
        }
    }
}

/// Told where a run stands.
pub trait Observer {
    /// The stage begins; the one before has ended.
    fn begin(&self, stage: Stage);
}

/// One who does not care.
impl Observer for () {
    fn begin(&self, _stage: Stage) {}
}
