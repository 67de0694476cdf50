//! What the engine makes of an image of unknown origin.

use std::fmt;
use std::ops::Range;
use std::rc::Rc;

use engine::defect::Planted;
use engine::device::{PageImage, Port, drive};
use engine::error::Error;
use engine::image::{Access, Image};
use engine::luks::Secret;
use engine::qcow2::check::{self, CheckOptions, CheckReport, Repair};
use engine::qcow2::{OpenOptions, Qcow2};

use super::atlas::number;
use crate::caught::{Panic, catch};
use crate::crash::state::{CrashState, Survivors};
use crate::oracle::structure::{StructureReport, layout, walk};
use crate::oracle::view::GuestView;
use crate::sectors::merge;
use crate::sim::stage::secrets;
use crate::subject::Metered;
use crate::workload::ops::{Operation, OperationId};
use crate::workload::perform::perform;

/// No more of a disk is read, at its start, at its end, and wherever something is mapped.
const READ_BYTES: u64 = 64 << 10;
/// No more places of a disk are read.
const READ_PLACES: usize = 32;

/// What came of examining an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Whether it could be opened for reading.
    pub opened: bool,
    /// Whether it could be opened for writing, after whatever repair that asks for.
    pub opened_for_writing: bool,
    /// Whether the repair of everything left nothing to be found.
    pub repaired: bool,
    /// Bytes that were read and compared with what the tables say.
    pub compared_bytes: u64,
    /// What must never happen.
    pub problems: Vec<Problem>,
}

/// What must never happen, and while doing what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// A panic.
    Panic(&'static str, Panic),
    /// So many requests that it will not end.
    Hang(&'static str),
    /// A read answered with bytes other than those that the tables lead to.
    WrongRead {
        /// The first guest sector that differs.
        sector: u64,
    },
    /// A repair said that nothing is left, and a check disagrees.
    Unrepaired {
        /// Errors that remain.
        errors: u64,
        /// Leaks that remain.
        leaks: u64,
    },
    /// A second repair still found something to write.
    Restless,
    /// The image was found corrupt, and the mark that says so may still be lost when that is told.
    UnmarkedCorrupt,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panic(task, panic) => write!(f, "{task} {panic}"),
            Self::Hang(task) => write!(f, "{task} does not end"),
            Self::WrongRead { sector } => {
                write!(f, "guest sector {sector} reads other than the tables say")
            }
            Self::Unrepaired { errors, leaks } => write!(
                f,
                "a repair that claims success leaves {errors} errors and {leaks} leaks"
            ),
            Self::Restless => f.write_str("a second repair writes again"),
            Self::UnmarkedCorrupt => {
                f.write_str("the mark of a corrupt image is not durable when the failure is told")
            }
        }
    }
}

/// Puts an image without backing file through reading, checking, repairing and writing, each on a
/// copy of its own.
///
/// `planted` is a defect of the engine, for whoever wants to see that it is noticed.
pub fn examine(image: &PageImage, planted: Planted) -> Report {
    let mut report = Report::default();
    let found = walk(image);
    let subject = Subject {
        planted,
        secrets: affordable_secrets(image, &found),
    };
    read_only(image, &found, &subject, &mut report);
    for repair in [Repair::None, Repair::Leaks, Repair::All] {
        check_and_repair(image, (repair, planted), &mut report);
    }
    write(image, &subject, &mut report);
    report
}

/// The engine as it is used here.
struct Subject {
    planted: Planted,
    secrets: Vec<Secret>,
}

impl Subject {
    async fn open(&self, port: Port, access: Access) -> Result<Qcow2, Error> {
        let options = OpenOptions {
            access,
            planted: self.planted,
            ..OpenOptions::default()
        };
        Qcow2::open_with_secrets(port, None, &options, &self.secrets).await
    }
}

/// What opens the images of a run, unless to try it takes long: how long is for the header to say, and
/// so for whoever wrote it. Specification: "LUKS1 On-Disk Format Specification", the partition header.
fn affordable_secrets(image: &PageImage, found: &StructureReport) -> Vec<Secret> {
    const MAX_ITERATIONS: u64 = 1 << 14;
    const SLOTS_AT: u64 = 208;
    const SLOT_BYTES: u64 = 48;
    let place = found.layout.map(|layout| layout.encryption_header);
    let iterations = match place {
        Some((offset, len_bytes)) if len_bytes > 0 => {
            let digest = number(image, offset + 164, 4);
            let slots =
                (0..8).map(|slot| number(image, offset + SLOTS_AT + slot * SLOT_BYTES + 4, 4));
            slots.fold(digest, u64::saturating_add)
        }
        Some(_) | None => 0,
    };
    if iterations > MAX_ITERATIONS {
        Vec::new()
    } else {
        secrets().to_vec()
    }
}

/// Lets `work` loose on a copy of the image, and hands the copy back with its result.
fn attempt<T, F: Future<Output = Result<T, Error>>>(
    task: &'static str,
    image: &PageImage,
    report: &mut Report,
    work: impl FnOnce(Rc<Metered>) -> F,
) -> (Option<Result<T, Error>>, PageImage) {
    let disk = Metered::new(image);
    let outcome = match catch(|| drive(work(Rc::clone(&disk)))) {
        Ok(Some(outcome)) => Some(outcome),
        Ok(None) => {
            report.problems.push(Problem::Hang(task));
            None
        }
        Err(panic) => {
            report.problems.push(Problem::Panic(task, panic));
            None
        }
    };
    (outcome, disk.current())
}

fn read_only(image: &PageImage, found: &StructureReport, subject: &Subject, report: &mut Report) {
    let view = GuestView::new(image, found, None);
    let mut reads = Vec::new();
    let (outcome, _) = attempt("reading", image, report, async |disk| {
        let open = subject.open(disk.port(), Access::ReadOnly).await?;
        for range in places(open.virtual_bytes(), view.as_ref()) {
            let len = usize::try_from(range.end - range.start).expect("a read is bounded");
            if let Ok(data) = open.read(range.start, len).await {
                reads.push((range.start, data));
            }
        }
        Ok(())
    });
    report.opened = matches!(outcome, Some(Ok(())));
    let Some(view) = view else { return };
    for (offset, data) in reads {
        report.compared_bytes += u64::try_from(data.len()).expect("a read is bounded");
        if let Some(difference) = view.difference_to_data(offset / 512, &data) {
            let sector = difference.sector;
            report.problems.push(Problem::WrongRead { sector });
            return;
        }
    }
}

/// The ranges of a disk that are read.
fn places(virtual_bytes: u64, view: Option<&GuestView<'_>>) -> Vec<Range<u64>> {
    let last = virtual_bytes.saturating_sub(READ_BYTES);
    let mut ranges = vec![0..READ_BYTES.min(virtual_bytes), last..virtual_bytes];
    let mapped = view.into_iter().flat_map(GuestView::mapped_sectors);
    ranges.extend(mapped.take(READ_PLACES).map(|sectors| {
        let start = sectors.start.saturating_mul(512);
        start
            ..sectors
                .end
                .saturating_mul(512)
                .min(start.saturating_add(READ_BYTES))
    }));
    merge(ranges, virtual_bytes)
}

fn check_and_repair(image: &PageImage, how: (Repair, Planted), report: &mut Report) {
    let (repair, _) = how;
    let task = match repair {
        Repair::None => "checking",
        Repair::Leaks => "repairing leaks",
        Repair::All => "repairing",
    };
    let (outcome, after) = attempt(task, image, report, async |disk| {
        run(&disk.port(), how).await
    });
    let (Some(Ok(first)), Repair::All) = (outcome, repair) else {
        return;
    };
    let (outcome, again) = attempt("repairing again", &after, report, async |disk| {
        run(&disk.port(), (repair, Planted::NONE)).await
    });
    if again.content_hash() != after.content_hash() {
        report.problems.push(Problem::Restless);
    }
    report.repaired = first.errors_remaining() == 0 && first.remaining.leaks == 0;
    if report.repaired
        && let Some(Ok(second)) = outcome
        && (second.found.corruptions > 0 || second.found.leaks > 0)
    {
        report.problems.push(Problem::Unrepaired {
            errors: second.found.corruptions,
            leaks: second.found.leaks,
        });
    }
}

async fn run(port: &Port, (repair, planted): (Repair, Planted)) -> Result<CheckReport, Error> {
    check::check(port, repair, &CheckOptions { planted }).await
}

/// Opens for writing and uses the disk; requests that fail do so one by one.
fn write(image: &PageImage, subject: &Subject, report: &mut Report) {
    let mut unmarked = false;
    let (outcome, _) = attempt("writing", image, report, async |disk| {
        let open = subject.open(disk.port(), Access::ReadWrite).await?;
        let end = open.virtual_bytes();
        let cluster = open.geometry().cluster_bytes();
        for (id, operation) in (0..).zip(operations(end, cluster)) {
            let failed = perform(&open, OperationId(id), operation).await.is_err();
            unmarked |= failed && is_marked(&disk.current()) && !is_marked(&durable(&disk));
        }
        let _ = open.close().await;
        Ok(())
    });
    report.opened_for_writing = matches!(outcome, Some(Ok(())));
    if unmarked {
        report.problems.push(Problem::UnmarkedCorrupt);
    }
}

fn is_marked(image: &PageImage) -> bool {
    layout(image).is_some_and(|layout| layout.corrupt)
}

/// What a power loss now would certainly leave.
fn durable(disk: &Metered) -> PageImage {
    let recording = disk.recording();
    let nothing = Survivors::from_parts(Vec::new());
    let state = CrashState::build(&recording, recording.end(), &nothing);
    state
        .expect("there are no survivors to misname")
        .disks
        .into_image()
}

fn operations(end: u64, cluster: u64) -> Vec<Operation> {
    use engine::image::Unmap;
    use engine::preallocation::Preallocation;
    let at = |offset: u64, len_bytes: u64| {
        let offset = offset.min(end) / 512 * 512;
        (offset, len_bytes.min(READ_BYTES).min(end - offset))
    };
    let write = |(offset, len_bytes)| Operation::Write { offset, len_bytes };
    let zero = |(offset, len_bytes), unmap| Operation::WriteZeroes {
        offset,
        len_bytes,
        unmap,
    };
    let discard = |(offset, len_bytes)| Operation::Discard { offset, len_bytes };
    let virtual_bytes = end.saturating_add(cluster) / 512 * 512;
    vec![
        write(at(0, 512)),
        write(at(cluster / 2, cluster)),
        write(at(end.saturating_sub(cluster), cluster)),
        Operation::Flush,
        zero(at(cluster, cluster), Unmap::Allow),
        zero(at(0, 2 * cluster), Unmap::Keep),
        discard(at(0, 4 * cluster)),
        Operation::Flush,
        write(at(cluster, 3 * cluster)),
        write(at(end / 2, 2 * cluster)),
        Operation::Grow {
            virtual_bytes,
            preallocation: Preallocation::Metadata,
        },
        Operation::Shrink {
            virtual_bytes: virtual_bytes / 1024 * 512,
        },
        write(at(0, cluster)),
    ]
}

#[cfg(all(test, feature = "defects"))]
mod tests {
    use engine::barrier::Barrier;
    use engine::defect::{Defect, Flaw};

    use super::*;
    use crate::malformed::Specimens;
    use crate::workload::pin::Pins;

    /// How many of so many damaged images show a problem of an engine with this defect.
    fn noticed(planted: Planted) -> usize {
        let mut specimens = Specimens::new(1, Pins::default());
        let problems = (0..400).map(|index| examine(&specimens.get(index).image, planted).problems);
        problems.filter(|problems| !problems.is_empty()).count()
    }

    #[test]
    fn a_repair_that_leaves_something_is_noticed_and_a_sound_one_is_not() {
        assert_eq!(noticed(Planted::NONE), 0);
        assert!(noticed(Planted::one(Defect::RepairSkipsLast)) > 0);
        assert!(noticed(Planted::one(Defect::RepairMissesLastEntry)) > 0);
    }

    #[test]
    fn a_corrupt_image_that_is_not_durably_marked_is_noticed() {
        let unmarked = Planted::one(Flaw::Without(Barrier::CorruptMark));
        let mut specimens = Specimens::new(1, Pins::default());
        let mut images = (0..2000).map(|index| specimens.get(index).image);
        let found = images.find_map(|image| examine(&image, unmarked).problems.pop());
        assert_eq!(found, Some(Problem::UnmarkedCorrupt));
    }
}
