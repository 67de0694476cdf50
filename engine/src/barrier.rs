//! The places where a write waits until others are durable, each with a number and a name.
//!
//! A harness that finds nothing proves little unless every barrier can be taken away and is then missed.
//! In builds with the feature `defects` an image can be opened that leaves one of them out:
//! [`crate::defect::Flaw::Without`]. A barrier that nothing misses is not needed.
//!
//! Creating an image, raw images and the copying between images of a chain are not numbered: nothing
//! stands in a new image yet, and the others have planted defects of their own.

use crate::defect::Defect;

macro_rules! barriers {
    ($($(#[doc = $doc:literal])* $variant:ident $name:literal $rule:literal $($defect:ident)?,)*) => {
        /// A place where a write waits until others are durable. The rules are those of [`crate::qcow2`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Barrier {
            $($(#[doc = $doc])* $variant,)*
        }

        impl Barrier {
            /// Every barrier, in the order of their rules.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The name used in tables.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The name of the flaw that leaves it out, used on command lines and in traces.
            pub fn flaw_name(self) -> &'static str {
                match self { $(Self::$variant => concat!("without:", $name),)* }
            }

            /// What is durable before what, in one line.
            pub fn describe(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc,)*).trim_ascii(),)* }
            }

            /// The number of the rule that asks for it.
            pub fn rule(self) -> u8 {
                match self { $(Self::$variant => $rule,)* }
            }

            /// The planted defect that leaves it out as well, perhaps with others.
            pub fn defect(self) -> Option<Defect> {
                match self {
                    $(Self::$variant => None $(.or(Some(Defect::$defect)))?,)*
                }
            }
        }
    };
}

barriers! {
    /// Refcounts and data before the L2 entries that rely on them.
    BeforeLink "before-link" 1 LinkBeforeData,
    /// An L2 table before the L1 entry that points to it.
    BeforeL1 "before-l1" 2 L1BeforeL2,
    /// A refcount block before the refcount table entry.
    BeforeHookup "before-hookup" 4 HookupBeforeBlock,
    /// The refcount table entry before use of what the block counts.
    AfterHookup "after-hookup" 5 UseBeforeHookup,
    /// A refcount table and its blocks before the header that points to it.
    BeforeReftableSwitch "before-reftable-switch" 6 ReftableBeforeBlocks,
    /// An L1 table before the header that points to it.
    BeforeL1Switch "before-l1-switch" 6 L1SwitchBeforeTable,
    /// The header before clusters are used that only the new refcount table covers.
    AfterReftableSwitch "after-reftable-switch" 7 UseBeforeSwitch,
    /// The dirty bit before the first link that does without durable refcounts.
    DirtyBit "dirty-bit" 8,
    /// L2 tables before the clusters that they gave up are freed and bitmaps are stored, as an image settles.
    BeforeReap "before-reap" 9 CleanTooEarly,
    /// L2 tables and refcounts before the dirty bit is cleared.
    BeforeClean "before-clean" 9 CleanTooEarly,
    /// The cleared dirty bit before close returns.
    AfterClean "after-clean" 9,
    /// The content of a grown disk before its size.
    BeforeSize "before-size" 10 SizeBeforeContent,
    /// The size before grow returns.
    AfterSize "after-size" 10 SizeNotFlushed,
    /// What the guest asked to be durable.
    GuestFlush "guest-flush" 11 FlushSkipsDevice,
    /// What stands in the file before anything builds on it.
    BeforeUse "before-use" 12,
    /// What stands in the file before a repair of its snapshot table builds on it.
    BeforeRestate "before-restate" 12,
    /// What lies behind sector 0 before the header that refers to it.
    BeforeHeaderSwitch "before-header-switch" 13 HeaderBeforeNames,
    /// A rewritten header before its change returns.
    AfterHeaderSwitch "after-header-switch" 13 HeaderNotFlushed,
    /// The changed compatible bits before the amendment returns.
    AfterCompatible "after-compatible" 13 HeaderNotFlushed,
    /// Refcounts of another width before the header that points to them.
    BeforeWidthSwitch "before-width-switch" 14 WidthBeforeBlocks,
    /// The switch to refcounts of another width before the amendment returns and the old ones are freed.
    AfterWidthSwitch "after-width-switch" 14 HeaderNotFlushed,
    /// Expanded zeroes before the header of a version that knows none.
    BeforeDowngrade "before-downgrade" 14 DowngradeBeforeZeroes,
    /// The empty L1 table before the header that points to it.
    BeforeEmptySwitch "before-empty-switch" 15 EmptyBeforeTable,
    /// The switch to the empty L1 table before what it unlinked is freed.
    AfterEmptySwitch "after-empty-switch" 15 EmptyFreesEarly,
    /// Cleared COPIED before the second references of a new snapshot are counted.
    BeforeRaise "before-raise" 16 RaiseBeforeClaims,
    /// L2 tables before what they gave up is freed, so that the counts are exact as snapshots change.
    CatchUp "catch-up" 16 RaiseBeforeClaims,
    /// Counts and tables before the header lists a snapshot, or forgets one.
    BeforeSnapshotSwitch "before-snapshot-switch" 17 SnapshotSwitchEarly,
    /// Counts and tables before the header moves the disk to a snapshot.
    BeforeApplySwitch "before-apply-switch" 17 SnapshotSwitchEarly,
    /// A switch of snapshots before what it unlinked goes, and before it is told.
    AfterSnapshotSwitch "after-snapshot-switch" 18 SnapshotNotFlushed,
    /// A repaired snapshot table before the repair goes on.
    AfterRestate "after-restate" 18 SnapshotNotFlushed,
    /// Lowered refcounts before COPIED claims them.
    BeforeCopied "before-copied" 19 CopiedBeforeCounts,
    /// The mark of an enabled bitmap before the first change.
    BeforeChange "before-change" 20 BitmapMarkedLate,
    /// Cleared autoclear bits before the image is used.
    ClearedAutoclear "cleared-autoclear" 20,
    /// Stored bitmaps and their directory before the header that points to it.
    BeforeBitmapSwitch "before-bitmap-switch" 21 BitmapSwitchBeforeContent,
    /// The switch before an operation on bitmaps returns, and before anything old is freed.
    AfterBitmapSwitch "after-bitmap-switch" 21 BitmapNotFlushed,
    /// The L2 entry that shows a cluster of a raw data file before the cluster changes.
    BeforeRawData "before-raw-data" 24 RawDataBeforeLink,
    /// Key material before the slot that refers to it is active.
    BeforeKeySlot "before-key-slot" 25 KeySlotBeforeMaterial,
    /// The active slot before it is told.
    AfterKeySlot "after-key-slot" 26 KeySlotNotFlushed,
    /// The inactive slot before its key material is overwritten.
    BeforeKeyWipe "before-key-wipe" 27 KeyWipeEarly,
    /// The overwritten key material before it is told.
    AfterKeyWipe "after-key-wipe" 28 KeyWipeNotFlushed,
    /// A smaller disk's header before anything goes that lay beyond its end.
    AfterShrink "after-shrink" 30 ShrinkFreesEarly,
    /// L2 entries that name nothing behind the new end of the file, before it ends there.
    BeforeCut "before-cut" 31 CutTooEarly,
    /// Refcount table entries that name nothing behind the new end of the file, before it ends there.
    BeforeBlockCut "before-block-cut" 31 CutTooEarly,
    /// The mark of a corrupt image before the failure is told.
    CorruptMark "corrupt-mark" 32,
    /// What a repair has read, and cleared autoclear bits of unknown features, before anything else is written.
    RepairRead "repair-read" 33,
    /// Rebuilt refcount structures before the header that points to them.
    RepairSwitch "repair-switch" 33 RebuildSwitchesEarly,
    /// Refcounts before COPIED claims them.
    RepairCopied "repair-copied" 33,
    /// Everything that was repaired before the dirty and corrupt bits are cleared.
    RepairMarks "repair-marks" 33,
    /// Everything that was repaired before the repair returns.
    RepairDone "repair-done" 33,
}

impl Barrier {
    /// The barrier of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .copied()
            .find(|barrier| barrier.name() == name)
    }

    /// Its number, from 1 on.
    pub fn number(self) -> usize {
        Self::ALL
            .iter()
            .position(|one| *one == self)
            .map_or(0, |position| position + 1)
    }
}
