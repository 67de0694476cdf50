//! Hunting a planted defect, or a barrier that is left out: a harness that cannot find it proves nothing by finding nothing else.

use engine::barrier::Barrier;
use engine::defect::{Defect, Flaw};
use engine::preallocation::Preallocation;
use engine::qcow2::create::BackingFormat;

use crate::campaign::{NoThreads, Plan, Proceed, Progress, campaign};
use crate::guide::Guidance;
use crate::reduce::{Reduced, reduce};
use crate::run::{Case, Effort, Schedule, replay, run};
use crate::trace::Trace;
use crate::workload::pin::{Managed, Pins, Room};
use crate::workload::shape::Encrypted;
use crate::workload::shape::Scenario;

/// The seed that canaries are hunted with.
const SEED: u64 = 1;
/// A canary that so many runs do not find is not found.
const RUNS: u64 = 20_000;

/// What came of a hunt.
#[derive(Clone, Debug)]
pub struct Hunt {
    /// How many runs it took, or how many were in vain.
    pub runs: u64,
    /// How many crash states were judged in them.
    pub states: u64,
    /// The violation that gave the defect away, made small.
    pub found: Option<Reduced>,
    /// Whether the trace of it comes to the same verdict.
    pub replays: bool,
    /// Whether the same workload under the same schedule passes once the flaw is gone: what was found is then the
    /// flaw's doing.
    pub passes_without: bool,
}

/// Plants a flaw and runs drawn workloads until it is found. After every
/// batch of runs `between` is told how far it is, and decides.
pub fn hunt(
    flaw: Flaw,
    jobs: usize,
    between: &mut dyn FnMut(&Progress) -> Proceed,
) -> Result<Hunt, NoThreads> {
    let mut campaign = campaign(&plan(flaw, SEED, Guidance::default()), jobs, between)?;
    campaign.found.sort_by_key(|found| found.finding.is_late());
    let found = campaign.found.iter().find_map(|found| reduce(found).ok());
    let replays = found.as_ref().is_some_and(|reduced| {
        let expected = &reduced.trace.expected;
        replay(&reduced.trace).is_ok_and(|replayed| replayed.is_as(expected))
    });
    let passes_without = found.as_ref().is_some_and(|one| passes_without(&one.trace));
    Ok(Hunt {
        runs: campaign.progress.runs,
        states: campaign.progress.counts.states_judged,
        found,
        replays,
        passes_without,
    })
}

fn passes_without(trace: &Trace) -> bool {
    let case = Case {
        scenario: Scenario {
            flaw: None,
            ..trace.scenario.clone()
        },
        schedule: Schedule::Given(trace.choices.clone()),
    };
    run(&case, &Effort::campaign())
        .is_ok_and(|outcome| outcome.findings.is_empty() && outcome.broken.is_empty())
}

/// What came of looking for a planted defect with one seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// Whether it was seen.
    pub seen: bool,
    /// How many crash states were judged until then.
    pub states: u64,
}

/// Plants a flaw and runs the workloads of a campaign of this seed until something is found, of whatever class. After
/// every batch of runs `between` is told how far it is, and decides.
pub fn sight(
    flaw: Flaw,
    (seed, guidance): (u64, Guidance),
    jobs: usize,
    between: &mut dyn FnMut(&Progress) -> Proceed,
) -> Result<Sighting, NoThreads> {
    let campaign = campaign(&plan(flaw, seed, guidance), jobs, between)?;
    Ok(Sighting {
        seen: !campaign.found.is_empty(),
        states: campaign.progress.counts.states_judged,
    })
}

fn plan(flaw: Flaw, seed: u64, guidance: Guidance) -> Plan {
    let pins = match flaw {
        Flaw::Defect(defect) => pins(defect),
        Flaw::Without(barrier) => pins_without(barrier),
    };
    Plan {
        seed,
        runs: RUNS,
        pins,
        contract: None,
        given: None,
        flaw: Some(flaw),
        effort: effort(),
        guidance,
    }
}

/// One violation is enough, and more runs find it sooner than more states of a run.
fn effort() -> Effort {
    let mut effort = Effort {
        first_only: true,
        ..Effort::campaign()
    };
    effort.states.states = 150;
    effort
}

/// What is not drawn, so that the images are such as the defect shows on.
fn pins(defect: Defect) -> Pins {
    match defect {
        Defect::ReftableBeforeBlocks | Defect::UseBeforeSwitch => Pins {
            room: Some(Room::Table),
            // Such an image is large; nothing else shall make it slow.
            compression: Some(None),
            encryption: Some(None),
            snapshots: Some(false),
            manage: Some(Managed::None),
            ..Pins::default()
        },
        Defect::HookupBeforeBlock | Defect::UseBeforeHookup => in_room(Room::Block),
        Defect::WidthBeforeBlocks => managed(Managed::Amend),
        // Zeroes become data only where something lies beneath.
        Defect::DowngradeBeforeZeroes => Pins {
            version: Some(3),
            ..managed(Managed::Amend)
        },
        Defect::DowngradeForgetsSnapshots => Pins {
            version: Some(3),
            snapshots: Some(true),
            ..managed(Managed::Amend)
        },
        // Repointing has no canary of its own: it is the same change of the header as renaming, with the same
        // two places to go wrong at.
        Defect::HeaderBeforeNames | Defect::HeaderNotFlushed => managed(Managed::Rename),
        Defect::EmptyBeforeTable | Defect::EmptyFreesEarly => managed(Managed::Empty),
        Defect::BitmapBeforeData | Defect::SubclusterNotFilled | Defect::ZeroBitsLost => {
            subclusters()
        }
        Defect::RepairSkipsSnapshots | Defect::RepairDropsSnapshot => Pins {
            abandoned: Some(true),
            snapshots: Some(true),
            ..Pins::default()
        },
        Defect::RebuildSwitchesEarly => pinned("abandoned=on"),
        Defect::CompressedLinkedEarly => pinned("compression=zlib,lazy_refcounts=on"),
        Defect::FreshClusterUnencrypted | Defect::CopyUnderOldVector => encrypted(Encrypted::Aes),
        Defect::KeySlotBeforeMaterial
        | Defect::KeySlotNotFlushed
        | Defect::KeyWipeEarly
        | Defect::KeyWipeNotFlushed => key_slots(),
        Defect::SharersUncounted | Defect::CompressedTailRewritten => pinned("compression=zstd"),
        Defect::RaiseBeforeClaims
        | Defect::SnapshotSwitchEarly
        | Defect::SnapshotNotFlushed
        | Defect::CopiedBeforeCounts
        | Defect::SnapshotRaisesLate
        | Defect::SnapshotKeepsCopied
        | Defect::ApplyKeepsCopied
        | Defect::SnapshotFreesEarly => pinned("snapshots=on"),
        Defect::BitmapMarkedLate
        | Defect::BitmapSwitchBeforeContent
        | Defect::BitmapNotFlushed
        | Defect::BitmapForgetsZeroes
        | Defect::MarkedBitsUnstored => pinned("bitmaps=on"),
        Defect::BitmapForgetsSnapshot => pinned("bitmaps=on,snapshots=on"),
        Defect::PunchBeforeUnlink | Defect::PunchReused | Defect::KeptForgetsZero => {
            pinned("version=3,discard=unmap,discard_no_unref=on")
        }
        Defect::DetectedRoundedOut => pinned("detect_zeroes=on"),
        Defect::DetectedSkipsUnallocated => pinned("detect_zeroes=on,backing=raw"),
        Defect::OverlapMissesSnapshot => pinned("options=on,snapshots=on"),
        Defect::CleaningDropsDirty | Defect::OverlapMissesRefblock => pinned("options=on"),
        Defect::ShrinkFreesEarly
        | Defect::ShrunkTailShows
        | Defect::CutTooEarly
        | Defect::PreallocatedHides
        | Defect::PreallocatedLate => resized(defect),
        Defect::LinkBeforeRefcounts
        | Defect::LinkBeforeData
        | Defect::L1BeforeL2
        | Defect::FreeBeforeUnlink
        | Defect::SizeBeforeContent
        | Defect::SizeNotFlushed
        | Defect::L1SwitchBeforeTable
        | Defect::DirtyTooLate
        | Defect::CleanTooEarly
        | Defect::FlushClearsDirty
        | Defect::FlushSkipsDevice
        | Defect::FlushSkipsTables
        | Defect::CopiedForgotten
        | Defect::UnlockedUpdate
        | Defect::CowTailLost
        | Defect::RecycledNotZeroed
        | Defect::GrowShowsBacking
        | Defect::OldClusterLeaked
        | Defect::RepairSkipsLast
        | Defect::RepairCleansEarly
        | Defect::RepairMissesLastEntry
        | Defect::RepairKeepsShortFile => Pins::default(),
        Defect::LinkBeforeDataFile | Defect::FlushSkipsDataFile => pinned("data_file=on"),
        Defect::RawZeroesByFlag | Defect::RawDataBeforeLink => pinned("data_file=raw"),
        Defect::CommitBeforeFlush
        | Defect::CommitFlushesOverlay
        | Defect::CommitSkipsZeroes
        | Defect::RebaseBeforeFlush
        | Defect::RebaseNamesFirst
        | Defect::RebaseIgnoresEnd
        | Defect::StreamBeforeFlush => pinned("chain=on"),
        // It takes two files beneath.
        Defect::StreamSkipsZeroes | Defect::StreamLooksOneDeep => {
            pinned("chain=on,backing=qcow2,operations=12")
        }
    }
}

/// What is fixed where a barrier is left out by itself, if not what is fixed for the defect that leaves it out.
const FIXED_WITHOUT: [(Barrier, &str); 13] = [
    (Barrier::DirtyBit, "lazy_refcounts=on"),
    (Barrier::AfterClean, "lazy_refcounts=on"),
    (Barrier::AfterCompatible, "manage=amend"),
    (Barrier::AfterWidthSwitch, "manage=amend"),
    (Barrier::BeforeRestate, "abandoned=on,snapshots=on"),
    (Barrier::AfterRestate, "abandoned=on,snapshots=on"),
    (Barrier::ClearedAutoclear, "version=3"),
    (Barrier::BeforeCut, "shrink=on"),
    (
        Barrier::BeforeBlockCut,
        "shrink=on,cluster_size=512,refcount_bits=64",
    ),
    (Barrier::RepairRead, "abandoned=on"),
    (Barrier::RepairCopied, "abandoned=on"),
    (Barrier::RepairMarks, "abandoned=on"),
    (Barrier::RepairDone, "abandoned=on"),
];

/// What is not drawn where a barrier is left out.
fn pins_without(barrier: Barrier) -> Pins {
    let mut fixed = FIXED_WITHOUT.iter().filter(|(one, _)| *one == barrier);
    match fixed.next() {
        Some((_, options)) => pinned(options),
        None => barrier.defect().map_or_else(Pins::default, pins),
    }
}

fn pinned(options: &str) -> Pins {
    Pins::parse(options).expect("the options are constant")
}

fn subclusters() -> Pins {
    Pins {
        extended_l2: Some(true),
        cluster_bits: Some(15),
        ..Pins::default()
    }
}

/// Disks that become smaller, and larger.
fn resized(defect: Defect) -> Pins {
    let is_cut = defect == Defect::CutTooEarly;
    let is_late = defect == Defect::PreallocatedLate;
    let hides = defect == Defect::PreallocatedHides;
    let preallocates = is_late || hides;
    Pins {
        backing: hides.then_some(Some(BackingFormat::Raw)),
        shrink: Some(true),
        preallocation: preallocates.then_some(Preallocation::Metadata),
        // The file is cut at a refcount block where blocks count little.
        cluster_bits: is_cut.then_some(9),
        refcount_order: is_cut.then_some(6),
        // Otherwise the refcounts are waited for, and the zeroes with them.
        lazy_refcounts: is_late.then_some(true),
        ..Pins::default()
    }
}

fn encrypted(method: Encrypted) -> Pins {
    Pins {
        encryption: Some(Some(method)),
        ..Pins::default()
    }
}

fn in_room(room: Room) -> Pins {
    Pins {
        room: Some(room),
        ..Pins::default()
    }
}

fn key_slots() -> Pins {
    Pins {
        cluster_bits: Some(12),
        key_slots: Some(true),
        manage: Some(Managed::None),
        ..encrypted(Encrypted::Luks)
    }
}

fn managed(kinds: Managed) -> Pins {
    Pins {
        manage: Some(kinds),
        ..Pins::default()
    }
}
