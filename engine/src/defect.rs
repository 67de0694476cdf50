//! Defects planted on purpose, so that a harness can prove that it finds them.
//!
//! They exist only in builds with the feature `defects`, and there only in an image that was opened
//! with one. In every other build [`Planted::has`] is the constant `false` and the code that it
//! guards is gone.

use crate::barrier::Barrier;

macro_rules! defects {
    ($($(#[doc = $doc:literal])* $variant:ident $name:literal),* $(,)?) => {
        /// A planted defect.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Defect {
            $($(#[doc = $doc])* $variant,)*
        }

        impl Defect {
            /// Every defect.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The name used on command lines and in traces.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// What is wrong, in one line.
            pub fn describe(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc,)*).trim_ascii(),)* }
            }
        }
    };
}

defects! {
    /// The flush between refcounts and the L2 entries that rely on them is left out.
    LinkBeforeRefcounts "link-before-refcounts",
    /// The flush between data and the L2 entries that expose it is left out.
    LinkBeforeData "link-before-data",
    /// A new L2 table's content is not made durable before the L1 entry that points to it.
    L1BeforeL2 "l1-before-l2",
    /// A freed cluster may be reused before the change that unlinks it is durable.
    FreeBeforeUnlink "free-before-unlink",
    /// A refcount block is not made durable before the refcount table points to it.
    HookupBeforeBlock "hookup-before-block",
    /// A new refcount table and its blocks are not made durable before the header points to them.
    ReftableBeforeBlocks "reftable-before-blocks",
    /// Clusters are used before the refcount table entry that covers them is durable.
    UseBeforeHookup "use-before-hookup",
    /// Clusters are used before the switch to the refcount table that covers them is durable.
    UseBeforeSwitch "use-before-switch",
    /// A grown disk's size is written before what its new part shows is durable.
    SizeBeforeContent "size-before-content",
    /// Growing a disk returns before the new size is durable.
    SizeNotFlushed "size-not-flushed",
    /// What lies beyond the end of a smaller disk is freed before its size is durable.
    ShrinkFreesEarly "shrink-frees-early",
    /// The file is cut before it is durable that nothing names what is cut off.
    CutTooEarly "cut-too-early",
    /// Growing a disk that was shrunk shows what its last cluster held behind the old end.
    ShrunkTailShows "shrunk-tail-shows",
    /// Preallocating what a larger disk adds hides what its last cluster showed of the backing file.
    PreallocatedHides "preallocated-hides",
    /// What a larger disk preallocates is mapped after its size, and before the zeroes in it are durable.
    PreallocatedLate "preallocated-late",
    /// A new L1 table is not made durable before the header points to it.
    L1SwitchBeforeTable "l1-switch-before-table",
    /// COPIED may still stand on the disk when a second reference is counted.
    RaiseBeforeClaims "raise-before-claims",
    /// The header makes tables a snapshot's, or the disk's, before they are durable.
    SnapshotSwitchEarly "snapshot-switch-early",
    /// What a switch to other snapshots, or to a snapshot, unlinks may go before it is durable.
    SnapshotNotFlushed "snapshot-not-flushed",
    /// COPIED is set after a snapshot is deleted before the lowered refcounts are durable.
    CopiedBeforeCounts "copied-before-counts",
    /// The refcounts of a new snapshot are raised only after the header lists it.
    SnapshotRaisesLate "snapshot-raises-late",
    /// Taking a snapshot leaves COPIED set on what the snapshot shares.
    SnapshotKeepsCopied "snapshot-keeps-copied",
    /// Applying a snapshot leaves COPIED set on the L2 tables that it shares.
    ApplyKeepsCopied "apply-keeps-copied",
    /// Deleting a snapshot lowers its refcounts before the header forgets it.
    SnapshotFreesEarly "snapshot-frees-early",
    /// The guest's first change does not wait until enabled bitmaps are durably marked as in use.
    BitmapMarkedLate "bitmap-marked-late",
    /// Stored bitmaps are not made durable before the header points to their directory.
    BitmapSwitchBeforeContent "bitmap-switch-before-content",
    /// An operation on bitmaps returns before it is durable.
    BitmapNotFlushed "bitmap-not-flushed",
    /// Write-zeroes sets no bit in bitmaps.
    BitmapForgetsZeroes "bitmap-forgets-zeroes",
    /// Applying a snapshot sets no bit in bitmaps.
    BitmapForgetsSnapshot "bitmap-forgets-snapshot",
    /// Bits that are marked from outside stay in memory, and the bitmap is stored without them.
    MarkedBitsUnstored "marked-bits-unstored",
    /// The dirty bit is written after the first L2 update instead of before it.
    DirtyTooLate "dirty-too-late",
    /// Close clears the dirty bit before the refcounts are durable.
    CleanTooEarly "clean-too-early",
    /// A guest flush clears the dirty bit although refcounts are still postponed.
    FlushClearsDirty "flush-clears-dirty",
    /// A guest flush writes back the caches and does not flush the device.
    FlushSkipsDevice "flush-skips-device",
    /// A guest flush forgets the dirty L2 tables.
    FlushSkipsTables "flush-skips-tables",
    /// The link of a new cluster does not set COPIED.
    CopiedForgotten "copied-forgotten",
    /// Allocating writes to one guest cluster do not wait for each other.
    UnlockedUpdate "unlocked-update",
    /// Copy-on-write does not copy what lies behind the written range.
    CowTailLost "cow-tail-lost",
    /// A partial write into a recycled cluster does not zero the rest of it.
    RecycledNotZeroed "recycled-not-zeroed",
    /// A subcluster of a cluster in use is marked allocated before its data are durable.
    BitmapBeforeData "bitmap-before-data",
    /// A partial write to a subcluster of a cluster in use does not fill the rest of it.
    SubclusterNotFilled "subcluster-not-filled",
    /// Allocating a subcluster forgets which others read as zeroes.
    ZeroBitsLost "zero-bits-lost",
    /// Growing an overlay shows what the longer backing file has there.
    GrowShowsBacking "grow-shows-backing",
    /// The old cluster of a copy-on-write is never freed.
    OldClusterLeaked "old-cluster-leaked",
    /// Compressed clusters may be linked before their bytes are durable.
    CompressedLinkedEarly "compressed-linked-early",
    /// A compressed cluster that shares a host cluster is not counted there.
    SharersUncounted "sharers-uncounted",
    /// Compressed bytes start in the last sector of those before, which is written anew without them.
    CompressedTailRewritten "compressed-tail-rewritten",
    /// What an encrypted image's new cluster shows beside the written range was never encrypted.
    FreshClusterUnencrypted "fresh-cluster-unencrypted",
    /// Copy-on-write encrypts the copy under the numbers of another cluster.
    CopyUnderOldVector "copy-under-old-vector",
    /// Repair leaves the last refcount slice as it is, and reports success.
    RepairSkipsLast "repair-skips-last",
    /// Repair clears the dirty bit before its refcounts are durable.
    RepairCleansEarly "repair-cleans-early",
    /// Repair switches to rebuilt refcount structures before they are durable.
    RebuildSwitchesEarly "rebuild-switches-early",
    /// Repair takes the last entry of each L2 table for unused.
    RepairMissesLastEntry "repair-misses-last-entry",
    /// Repair leaves a snapshot table as it is whose entries say too little, and reports success.
    RepairSkipsSnapshots "repair-skips-snapshots",
    /// Repair of a snapshot table forgets the last snapshot.
    RepairDropsSnapshot "repair-drops-snapshot",
    /// Repair does not lengthen a file whose last mapped clusters lie beyond its end.
    RepairKeepsShortFile "repair-keeps-short-file",
    /// The space of a cluster that a discarded mapping keeps goes back before the mapping durably says
    /// "zeroes".
    PunchBeforeUnlink "punch-before-unlink",
    /// The space of a cluster that a discarded mapping keeps goes back although a write has taken it again.
    PunchReused "punch-reused",
    /// A discarded mapping that keeps its cluster does not say "zeroes".
    KeptForgetsZero "kept-forgets-zero",
    /// A detected write of zeroes zeroes whole clusters around it.
    DetectedRoundedOut "detected-rounded-out",
    /// A detected write of zeroes skips a cluster that is not allocated, although a backing file shows there.
    DetectedSkipsUnallocated "detected-skips-unallocated",
    /// Dropping idle parts of the caches drops what is in use and what was not written yet.
    CleaningDropsDirty "cleaning-drops-dirty",
    /// A refcount block's cluster is taken for free, and the check for overlaps misses that.
    OverlapMissesRefblock "overlap-misses-refblock",
    /// A snapshot's L2 table is taken for free, and the check for overlaps misses that.
    OverlapMissesSnapshot "overlap-misses-snapshot",
    /// A rewritten header is switched to before what lies behind its first sector is durable.
    HeaderBeforeNames "header-before-names",
    /// A change of the header returns before it is durable.
    HeaderNotFlushed "header-not-flushed",
    /// A commit empties the overlay before what it copied is durable in the backing image.
    CommitBeforeFlush "commit-before-flush",
    /// A commit flushes the overlay instead of the backing image before it empties the overlay.
    CommitFlushesOverlay "commit-flushes-overlay",
    /// A commit leaves what the backing image has where the overlay holds zeroes.
    CommitSkipsZeroes "commit-skips-zeroes",
    /// A rebase names the new backing file before what it copied is durable in the overlay.
    RebaseBeforeFlush "rebase-before-flush",
    /// A rebase names the new backing file before it copies anything.
    RebaseNamesFirst "rebase-names-first",
    /// A rebase takes what lies behind the end of a shorter new backing file for equal.
    RebaseIgnoresEnd "rebase-ignores-end",
    /// A stream names the base before what it copied is durable in the image.
    StreamBeforeFlush "stream-before-flush",
    /// A stream copies no zeroes, although they hide what the base has.
    StreamSkipsZeroes "stream-skips-zeroes",
    /// A stream copies what the first file beneath the image holds, and nothing from further down.
    StreamLooksOneDeep "stream-looks-one-deep",
    /// Refcounts of another width are switched to before they are durable.
    WidthBeforeBlocks "width-before-blocks",
    /// The header becomes version 2 before the zeroes that it cannot express are expanded durably.
    DowngradeBeforeZeroes "downgrade-before-zeroes",
    /// Zeroes that version 2 does not know stay in the tables of snapshots.
    DowngradeForgetsSnapshots "downgrade-forgets-snapshots",
    /// An emptied image's L1 table is switched to before it is durable.
    EmptyBeforeTable "empty-before-table",
    /// What an emptied image held is freed before the switch to the empty L1 table is durable.
    EmptyFreesEarly "empty-frees-early",
    /// The L2 entries that expose data in an external data file do not wait until that file is flushed.
    LinkBeforeDataFile "link-before-data-file",
    /// A guest flush flushes the image file and not the external data file.
    FlushSkipsDataFile "flush-skips-data-file",
    /// Zeroing a disk whose data file is raw changes mappings and leaves the data file as it is.
    RawZeroesByFlag "raw-zeroes-by-flag",
    /// A cluster of a raw data file changes before the L2 entry that shows it is durable.
    RawDataBeforeLink "raw-data-before-link",
    /// A key slot becomes active before its key material is durable.
    KeySlotBeforeMaterial "key-slot-before-material",
    /// L2 entries that cannot be right are taken for unallocated ones.
    BadEntryUnallocated "bad-entry-unallocated",
    /// Repair of an image that is not marked dirty drops mappings to clusters that are not counted.
    RepairDropsUncounted "repair-drops-uncounted",
    /// Adding a secret returns before the slot is durable.
    KeySlotNotFlushed "key-slot-not-flushed",
    /// The key material of a slot is wiped before it is durable that the slot is inactive.
    KeyWipeEarly "key-wipe-early",
    /// Taking a secret away returns before its wiped key material is durable.
    KeyWipeNotFlushed "key-wipe-not-flushed",
    /// A failed write of guest data counts as done.
    WriteErrorSwallowed "write-error-swallowed",
    /// An L2 slice whose write failed counts as written.
    CleanAfterFailedWrite "clean-after-failed-write",
    /// What a failed flush was to make durable counts as durable.
    FailedFlushTaken "failed-flush-taken",
    /// A new L2 table is freed when the write of the L1 entry that names it failed.
    HalfLinkedFreed "half-linked-freed",
    /// A cluster is linked although the write of its data failed.
    LinkedAfterFailure "linked-after-failure",
}

impl Defect {
    /// The defect of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .copied()
            .find(|defect| defect.name() == name)
    }
}

/// What is wrong with an image's engine on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Flaw {
    /// A planted defect.
    Defect(Defect),
    /// A barrier that is left out.
    Without(Barrier),
}

impl Flaw {
    /// The flaw of that name: a defect's, or `without:` and a barrier's.
    pub fn from_name(name: &str) -> Option<Self> {
        match name.strip_prefix("without:") {
            Some(barrier) => Barrier::from_name(barrier).map(Self::Without),
            None => Defect::from_name(name).map(Self::Defect),
        }
    }

    /// The name used on command lines and in traces.
    pub fn name(self) -> &'static str {
        match self {
            Self::Defect(defect) => defect.name(),
            Self::Without(barrier) => barrier.flaw_name(),
        }
    }
}

impl From<Defect> for Flaw {
    fn from(defect: Defect) -> Self {
        Self::Defect(defect)
    }
}

impl From<Barrier> for Flaw {
    fn from(barrier: Barrier) -> Self {
        Self::Without(barrier)
    }
}

/// The flaw that an image carries, if any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Planted {
    #[cfg(feature = "defects")]
    flaw: Option<Flaw>,
}

impl Planted {
    /// No flaw.
    pub const NONE: Self = Self {
        #[cfg(feature = "defects")]
        flaw: None,
    };

    /// This one.
    #[cfg(feature = "defects")]
    pub fn one(flaw: impl Into<Flaw>) -> Self {
        Self {
            flaw: Some(flaw.into()),
        }
    }

    /// Whether `defect` is planted.
    #[cfg(feature = "defects")]
    pub fn has(self, defect: Defect) -> bool {
        self.flaw == Some(Flaw::Defect(defect))
    }

    /// Whether `defect` is planted: never, in this build.
    #[cfg(not(feature = "defects"))]
    #[allow(clippy::unused_self, reason = "the same call in every build")]
    pub fn has(self, _: Defect) -> bool {
        false
    }

    /// Whether `barrier` is left out, by itself or by a defect.
    #[cfg(feature = "defects")]
    pub fn lacks(self, barrier: Barrier) -> bool {
        match self.flaw {
            None => false,
            Some(Flaw::Defect(defect)) => barrier.defect() == Some(defect),
            Some(Flaw::Without(one)) => one == barrier,
        }
    }

    /// Whether `barrier` is left out: never, in this build.
    #[cfg(not(feature = "defects"))]
    #[allow(clippy::unused_self, reason = "the same call in every build")]
    pub fn lacks(self, _: Barrier) -> bool {
        false
    }
}
