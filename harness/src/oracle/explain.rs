//! Says in words what an oracle found.

use std::fmt::Write as _;
use std::ops::Range;

use blkdebug::record::{Entry, Recording};
use similar::TextDiff;

use super::structure::{Miscount, StructureReport};
use super::verdict::{Oracle, Verdict, Violation};
use super::view::{Difference, GuestView};
use crate::guest::{Expectation, Level, SectorViolation};
use crate::subject::{Failure, Tally};
use crate::workload::stamp::{SectorValue, identify};

/// The kind of failure where the subject said that it failed.
pub(super) const FAILED: &str = "failed";
/// As many lines of each kind are shown; the rest is counted.
const SHOWN: usize = 8;

/// What the walk found.
pub(super) fn findings(report: &StructureReport, when: &str, oracle: Oracle) -> Violation {
    let first = &report.findings[0];
    let mut lines = vec![format!("{when}: {first}")];
    let others = report.findings.iter().skip(1).take(SHOWN);
    lines.extend(others.map(ToString::to_string));
    note_rest(&mut lines, report.finding_count, "findings");
    lines.extend(refcount_diff(report));
    Violation::new(oracle, first.rule(), first.site(), lines)
}

/// What is left that a repair should have put right.
pub(super) fn imperfect(oracle: Oracle, when: &str, report: &StructureReport) -> Violation {
    let (kind, what) = if report.finding_count > 0 {
        return findings(report, when, oracle);
    } else if report.corrupt() {
        ("marked-corrupt", "the image is marked corrupt".to_owned())
    } else if report.dirty() {
        ("still-dirty", "the image is still marked dirty".to_owned())
    } else if report.leak_count > 0 {
        (
            "leaks",
            format!("{} refcounts are too high", report.leak_count),
        )
    } else if report.copied_missing > 0 {
        let count = report.copied_missing;
        (
            "copied-missing",
            format!("{count} entries could claim COPIED and do not"),
        )
    } else {
        let count = report.terse_snapshots;
        (
            "terse-snapshots",
            format!("{count} snapshots leave out the size of their disk"),
        )
    };
    let site = report
        .miscounts
        .first()
        .and_then(|miscount| miscount.owner)
        .map_or("", super::structure::Owner::kind);
    let mut lines = vec![format!("{when}: {what}")];
    lines.extend(refcount_diff(report));
    Violation::new(oracle, kind, site, lines)
}

/// A repair that left bitmaps other than it found them.
pub(super) fn bitmaps_changed(doing: &str) -> Violation {
    let line = format!("{doing} changed what the bitmaps say");
    Violation::new(Oracle::Repair, "bitmaps-changed", "bitmaps", vec![line])
}

/// A subject that did not do what it was asked. `oracle` speaks for errors that it reported.
pub(super) fn failure(failure: &Failure, doing: &str, oracle: Oracle) -> Verdict {
    let (oracle, kind, site, line) = match failure {
        Failure::NotMeasured(why) => return Verdict::NotMeasured(format!("{doing}: {why}")),
        Failure::Panic(panic) => {
            let line = format!("{doing} {panic}");
            (Oracle::Progress, "panic", panic.place.clone(), line)
        }
        Failure::Hang { requests } => {
            let line = format!("{doing} does not end: it had made {requests} requests");
            (Oracle::Progress, "hang", String::new(), line)
        }
        Failure::Error { kind, message } => (
            oracle,
            FAILED,
            kind.clone(),
            format!("{doing} fails: {message}"),
        ),
    };
    Violation::new(oracle, kind, site, vec![line]).into()
}

/// A repair that reports that something is left.
pub(super) fn unfinished(tally: Tally) -> Violation {
    let line = format!(
        "check with repair reports that {} errors and {} leaks remain",
        tally.errors, tally.leaks
    );
    Violation::new(Oracle::Repair, "unfinished", "check", vec![line])
}

/// A second repair that still writes.
pub(super) fn not_idle(recording: &Recording, doing: &str) -> Violation {
    let written = recording.entries.iter().filter(|e| e.changes_content());
    let names: Vec<String> = written.map(|entry| entry.name().to_string()).collect();
    let mut lines = vec![format!("{doing} still writes: {}", names[0])];
    lines.extend(names.iter().skip(1).take(SHOWN).cloned());
    Violation::new(Oracle::Repair, "not-idempotent", "", lines)
}

/// A repair or a close that returned before what it wrote was durable.
pub(super) fn volatile(entry: &Entry, doing: &str) -> Violation {
    let line = format!("{doing} returned, and {} may still be lost", entry.name());
    let site = entry.event.name();
    Violation::new(Oracle::Repair, "volatile", site, vec![line])
}

/// A disk of the wrong size.
pub(super) fn size(found: u64, expectation: &Expectation<'_>) -> Violation {
    let legal: Vec<String> = expectation
        .virtual_sizes()
        .iter()
        .map(ToString::to_string)
        .collect();
    let line = format!(
        "the guest's disk has {found} bytes, which should be {}",
        legal.join(" or ")
    );
    Violation::new(Oracle::Guest, "size", "header", vec![line])
}

/// Sectors that hold what they may not.
pub(super) fn guest(worst: Level, misses: &[SectorViolation], count: usize) -> Violation {
    let mut shown: Vec<&SectorViolation> = misses.iter().collect();
    shown.sort_by_key(|miss| (std::cmp::Reverse(miss.level), miss.sector));
    let mut lines = vec![sentence(shown[0])];
    let (mut expected, mut found) = (String::new(), String::new());
    for miss in shown.iter().take(SHOWN) {
        let legal: Vec<String> = miss.legal.iter().map(ToString::to_string).collect();
        line(&mut expected, miss.sector, &legal.join(", or "));
        line(&mut found, miss.sector, &miss.found.to_string());
    }
    lines.extend(diff(&expected, &found));
    note_rest(&mut lines, to_u64(count), "sectors");
    Violation::new(Oracle::Guest, worst.name(), "", lines)
}

/// A sector that reads as something that nothing on the way to it accounts for.
pub(super) fn silently_wrong(miss: &SectorViolation, doing: &str) -> Violation {
    let legal: Vec<String> = miss.legal.iter().map(ToString::to_string).collect();
    let lines = vec![
        format!(
            "after {doing} guest sector {} reads as {}, and no sector that the disk destroyed accounts for that",
            miss.sector, miss.found
        ),
        format!("it may read as {}, or fail", legal.join(", or ")),
    ];
    Violation::new(Oracle::Guest, "silently-wrong", "", lines)
}

/// A repair that changed what the guest reads.
pub(super) fn changed(
    before: &GuestView<'_>,
    after: &GuestView<'_>,
    difference: Difference,
    doing: &str,
) -> Violation {
    let sector = difference.sector;
    let line = format!(
        "{doing} changed guest sector {sector}: it held {}, and now {}",
        value_at(before, sector),
        value_at(after, sector)
    );
    Violation::new(Oracle::Repair, "guest-changed", "", vec![line])
}

/// A subject that reads something other than its tables say.
pub(super) fn misread(
    view: &GuestView<'_>,
    difference: Difference,
    range: &Range<u64>,
    data: &[u8],
) -> Violation {
    let sector = difference.sector;
    let index = usize::try_from(sector - range.start / 512).expect("it lies within the data");
    let read = data.as_chunks::<512>().0.get(index).map(identify);
    let read = read.map_or_else(|| "nothing".into(), |value| value.to_string());
    let line = format!(
        "after recovery guest sector {sector} reads as {read}; by the tables it holds {}",
        value_at(view, sector)
    );
    Violation::new(Oracle::Repair, "misread", "", vec![line])
}

/// A subject that yields more or less than it was asked for.
pub(super) fn short_read() -> Violation {
    let line = "after recovery a read yields more or fewer bytes than it asked for".into();
    Violation::new(Oracle::Repair, "short-read", "", vec![line])
}

fn value_at(view: &GuestView<'_>, sector: u64) -> SectorValue {
    let run = view.runs(sector..sector + 1).next();
    run.map_or(SectorValue::Zero, |run| run.content(sector).value())
}

fn sentence(miss: &SectorViolation) -> String {
    let SectorViolation { sector, found, .. } = miss;
    match miss.level {
        Level::Lost => format!("guest sector {sector} lost a durable write: it holds {found}"),
        Level::Zeros => format!("guest sector {sector} holds zeroes that were never written to it"),
        Level::StaleOwn => format!("guest sector {sector} holds {found}"),
        Level::StaleForeign => {
            format!("guest sector {sector} holds what was never on this disk: {found}")
        }
    }
}

/// The refcounts as they are against those that the references call for.
fn refcount_diff(report: &StructureReport) -> Vec<String> {
    let (mut expected, mut found) = (String::new(), String::new());
    for miscount in report.miscounts.iter().take(SHOWN) {
        let Miscount {
            cluster,
            owner,
            references,
            refcount,
        } = miscount;
        let owner = owner.map_or_else(|| "nobody's".into(), |owner| owner.to_string());
        let _ = writeln!(
            expected,
            "host cluster {cluster} ({owner}): refcount {references}"
        );
        let _ = writeln!(
            found,
            "host cluster {cluster} ({owner}): refcount {refcount}"
        );
    }
    if expected.is_empty() {
        return Vec::new();
    }
    diff(&expected, &found)
}

fn line(text: &mut String, sector: u64, what: &str) {
    writeln!(text, "guest sector {sector}: {what}").expect("a string takes all");
}

fn diff(expected: &str, found: &str) -> Vec<String> {
    TextDiff::from_lines(expected, found)
        .unified_diff()
        .context_radius(0)
        .header("expected", "found")
        .to_string()
        .lines()
        .filter(|line| !line.starts_with("@@"))
        .map(ToOwned::to_owned)
        .collect()
}

fn note_rest(lines: &mut Vec<String>, count: u64, what: &str) {
    if count > to_u64(SHOWN) + 1 {
        lines.push(format!("{count} {what} in all"));
    }
}

fn to_u64(count: usize) -> u64 {
    u64::try_from(count).expect("a count fits 64 bits")
}
