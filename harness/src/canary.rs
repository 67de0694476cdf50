//! Hunting a planted defect, or a barrier that is left out: a harness that cannot find it proves nothing by finding nothing else.

use blkdebug::contract::Contract;
use engine::barrier::Barrier;
use engine::defect::{Defect, Flaw, Planted};
use engine::preallocation::Preallocation;
use engine::qcow2::create::BackingFormat;

use crate::campaign::{Found, NoThreads, Plan, Proceed, Progress, campaign};
use crate::guide::Guidance;
use crate::malformed::{Problem, Specimens, examine};
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

/// What came of a hunt on damaged images.
#[derive(Clone, Debug)]
pub struct DamageHunt {
    /// How many images it took, or how many were in vain.
    pub images: u64,
    /// What the engine with the flaw did to the last of them that must never happen.
    pub problem: Option<Problem>,
    /// Whether the engine without the flaw does right by that image.
    pub passes_without: bool,
}

/// Whether the flaw shows on damaged images alone. No power loss leaves such an image, so that no workload meets what it
/// leaves out.
pub fn is_about_damage(flaw: Flaw) -> bool {
    flaw == Flaw::Without(Barrier::CorruptMark)
}

/// Plants a flaw and puts damaged images before the engine until it shows. After every image `proceed` decides.
pub fn hunt_damage(flaw: Flaw, proceed: &mut dyn FnMut() -> Proceed) -> DamageHunt {
    let mut specimens = Specimens::new(SEED, Pins::default());
    let mut images = 0;
    while images < RUNS {
        let image = specimens.get(images).image;
        images += 1;
        if let Some(problem) = examine(&image, planted(flaw)).problems.pop() {
            return DamageHunt {
                images,
                problem: Some(problem),
                passes_without: examine(&image, Planted::NONE).problems.is_empty(),
            };
        }
        if proceed() == Proceed::Stop {
            break;
        }
    }
    DamageHunt {
        images,
        problem: None,
        passes_without: false,
    }
}

/// An engine with the flaw: none in a build that cannot plant any.
fn planted(flaw: Flaw) -> Planted {
    #[cfg(feature = "defects")]
    return Planted::one(flaw);
    #[cfg(not(feature = "defects"))]
    {
        let _ = flaw;
        Planted::NONE
    }
}

/// What came of looking for a planted defect with one seed.
#[derive(Clone, Debug)]
pub struct Sighting {
    /// What gave it away; a violation with one power loss where there is one.
    pub found: Option<Found>,
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
    let mut campaign = campaign(&plan(flaw, seed, guidance), jobs, between)?;
    campaign.found.sort_by_key(|found| found.finding.is_late());
    Ok(Sighting {
        found: campaign.found.into_iter().next(),
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
        contract: contract(flaw),
        given: None,
        flaw: Some(flaw),
        effort: effort(),
        guidance,
    }
}

/// The contract that a flaw shows under, where that is not the usual one.
fn contract(flaw: Flaw) -> Option<Contract> {
    match flaw {
        Flaw::Defect(Defect::BadEntryUnallocated) => Some(Contract::EpochTornGarbage),
        Flaw::Defect(Defect::RepairDropsUncounted) => Some(Contract::Liar),
        Flaw::Defect(_) | Flaw::Without(_) => None,
    }
}

/// One violation is enough, and more runs find it sooner than more states of a run.
fn effort() -> Effort {
    let mut effort = Effort {
        first_only: true,
        ..Effort::campaign()
    };
    effort.states.states = 150;
    effort.work = 400_000;
    effort
}

/// What is not drawn, so that the images are such as the defect shows on.
fn pins(defect: Defect) -> Pins {
    match defect {
        Defect::ReftableBeforeBlocks | Defect::UseBeforeSwitch => Pins {
            room: Some(Room::Table),
            // What shows the use of a table that the header does not name yet is a lost length, which only the dirty bit
            // lets come to that.
            lazy_refcounts: (defect == Defect::UseBeforeSwitch).then_some(true),
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
        Defect::DowngradeForgetsSnapshots => pinned("version=3,snapshots=on,manage=amend"),
        // Repointing has no canary of its own: it is the same change of the header as renaming, with the same
        // two places to go wrong at.
        Defect::HeaderBeforeNames | Defect::HeaderNotFlushed => managed(Managed::Rename),
        Defect::EmptyBeforeTable | Defect::EmptyFreesEarly => managed(Managed::Empty),
        Defect::BitmapBeforeData | Defect::SubclusterNotFilled | Defect::ZeroBitsLost => {
            subclusters()
        }
        Defect::WriteErrorSwallowed
        | Defect::CleanAfterFailedWrite
        | Defect::FailedFlushTaken
        | Defect::HalfLinkedFreed
        | Defect::LinkedAfterFailure => failing(),
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
        Defect::PunchBeforeUnlink | Defect::PunchReused | Defect::KeptForgetsZero => keeping(),
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
        | Defect::RepairKeepsShortFile
        | Defect::BadEntryUnallocated
        | Defect::RepairDropsUncounted => Pins::default(),
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
        Defect::StreamSkipsZeroes | Defect::StreamLooksOneDeep => two_beneath(),
    }
}

/// What is fixed where a barrier is left out by itself, if not what is fixed for the defect that leaves it out.
const FIXED_WITHOUT: [(Barrier, &str); 15] = [
    (Barrier::DirtyBit, "lazy_refcounts=on"),
    (Barrier::AfterClean, "lazy_refcounts=on"),
    (Barrier::AfterCompatible, "manage=amend"),
    (Barrier::AfterWidthSwitch, "manage=amend"),
    (Barrier::BeforeUse, "kill=on"),
    // It takes a kill between two requests of the first opening.
    (
        Barrier::BeforeRestate,
        "abandoned=on,snapshots=on,kill=on,cluster_size=512,operations=1,room=any,size=4k,backing=none,encrypt=off,\
         compression=off,bitmaps=off,manage=off,options=off",
    ),
    (
        Barrier::AfterRestate,
        "snapshots=on,version=3,abandoned=off",
    ),
    (Barrier::ClearedAutoclear, "version=3"),
    (Barrier::CatchUp, "snapshots=on,refcount_bits=2"),
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

/// Requests fail, in short workloads.
fn failing() -> Pins {
    pinned("faults=on,operations=8")
}

/// The image lies over two files.
fn two_beneath() -> Pins {
    pinned("chain=on,backing=qcow2,operations=12")
}

/// Discarded mappings keep their clusters.
fn keeping() -> Pins {
    pinned("version=3,discard=unmap,discard_no_unref=on")
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
