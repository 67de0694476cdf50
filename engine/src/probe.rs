//! Rare situations that the engine gets into, each with a number and a name.
//!
//! A campaign that finds nothing proves little about a situation that it never led the engine into. Where the engine
//! stands in one it says so to its device ([`crate::device::Port::note`]), which may count. That exists only in builds
//! with the feature `defects`; in every other build the call is empty. It changes nothing, and nothing is decided by it.

macro_rules! probes {
    ($($(#[doc = $doc:literal])* $variant:ident $name:literal),* $(,)?) => {
        /// A rare situation.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Probe {
            $($(#[doc = $doc])* $variant,)*
        }

        impl Probe {
            /// Every probe, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The name used in reports.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// What the situation is, in one line.
            pub fn describe(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc,)*).trim_ascii(),)* }
            }

            /// The place in [`Self::ALL`].
            pub fn index(self) -> usize {
                let place = Self::ALL.iter().position(|probe| *probe == self);
                place.expect("every probe is listed")
            }
        }
    };
}

probes! {
    /// The refcount table grew while the dirty bit stood.
    ReftableGrewDirty "reftable-grew-while-dirty",
    /// The refcount table grew while refcounts were kept durable.
    ReftableGrewClean "reftable-grew-while-clean",
    /// Several refcount blocks were hooked up at once.
    BlocksTogether "refblocks-together",
    /// Clusters that belong together did not fit between two refcount blocks.
    RunBeyondBlocks "run-beyond-blocks",
    /// A freed cluster was taken again before the refcounts that called it free were written.
    ReusedBeforeWritten "reused-before-written",
    /// An L2 table was put where something else stood before.
    TableInUsedCluster "table-in-used-cluster",
    /// An L2 table that a snapshot shares was copied for a write.
    TableCopied "l2-table-copied",
    /// An L2 table that nothing named any more was freed.
    TableFreed "l2-table-freed",
    /// A changed L2 slice had to leave the cache.
    EvictedTable "evicted-dirty-l2",
    /// A changed L2 slice had to leave the cache, and wait for data that were not durable.
    EvictedEarly "evicted-before-data",
    /// A changed refcount slice had to leave the cache.
    EvictedCounts "evicted-dirty-refcounts",
    /// A guest's flush made clusters free that were waiting for it.
    FlushFreed "flush-freed",
    /// A write copied what stands before it in its cluster and what stands behind it.
    CopiedBothSides "cow-head-and-tail",
    /// A write that replaces several clusters copied at either end.
    CopiedBothEnds "cow-both-ends",
    /// A write overwrote some clusters in place and needed new ones for the rest.
    WrittenInPart "in-place-then-new",
    /// A write took the cluster again that zeroes had kept.
    ReserveTaken "reserve-taken",
    /// A write allocated a subcluster of a cluster in use.
    SubclusterAdded "subcluster-added",
    /// A request waited for another one's claim on a cluster.
    ClaimWaited "claim-waited",
    /// A write replaced a compressed cluster.
    CompressedReplaced "compressed-replaced",
    /// A compressed cluster was discarded or zeroed.
    CompressedDropped "compressed-dropped",
    /// The bytes of a compressed cluster lie in two host clusters.
    CompressedStraddles "compressed-straddles",
    /// A host cluster of compressed bytes could take no more sharers.
    SharersFull "sharers-full",
    /// Zeroes kept the cluster that they replaced.
    ZeroKept "zero-kept-cluster",
    /// A cluster was written again before the space that it had kept went back.
    PunchVoid "punch-void",
    /// The L1 table grew while the dirty bit stood.
    L1GrewDirty "l1-grew-while-dirty",
    /// Growing cleared what was mapped behind the old end of the disk.
    LeftoversHidden "grow-hid-leftovers",
    /// Growing hid what the backing file has behind the old end of the disk.
    BackingHidden "grow-hid-backing",
    /// A smaller disk gave up refcount blocks.
    BlocksCut "refblocks-cut",
    /// The disk went back to a snapshot of another size.
    AppliedOtherSize "snapshot-of-other-size",
    /// Another snapshot could not be counted in refcounts so narrow.
    SnapshotOverflow "snapshot-overflow",
    /// A deleted snapshot left clusters that only the disk names, which may be written in place again.
    ClaimsRenewed "claims-renewed",
    /// Refcounts got another width while there were snapshots.
    WidthWithSnapshots "width-with-snapshots",
    /// Zeroes that version 2 cannot express were expanded.
    ZeroesExpanded "zeroes-expanded",
    /// A bitmap was in use when the image was opened: whoever wrote it last lost power.
    BitmapInUse "bitmap-in-use",
    /// The header was longer than a sector when it was written.
    LongHeader "long-header",
    /// A repair wrote new refcount structures.
    RepairRebuilt "repair-rebuilt",
    /// A repair lengthened a file whose end was lost.
    RepairLengthened "repair-lengthened",
    /// A repair corrected COPIED.
    RepairCopied "repair-copied",
    /// A repair freed leaks, and nothing was wrong besides.
    RepairLeaksOnly "repair-leaks-only",
    /// A repair completed the entries of the snapshot table.
    RepairSnapshots "repair-snapshots",
    /// A repair forgot the autoclear bits of what is not known.
    RepairForgot "repair-forgot-unknown",
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn probes_are_told_apart_by_name_and_number() {
        let names: BTreeSet<&str> = Probe::ALL.iter().map(|probe| probe.name()).collect();
        assert_eq!(names.len(), Probe::ALL.len());
        for (index, probe) in Probe::ALL.iter().enumerate() {
            assert_eq!(probe.index(), index);
            assert!(probe.describe().ends_with('.'), "{}", probe.name());
        }
    }
}
