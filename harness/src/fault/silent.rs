//! Silent damage: sectors that hold something else than what was written last, and no error says so.
//!
//! A workload is lived through on an honest device; then a sector of a structure is damaged, as rot, lost and misdirected
//! writes damage it, and the image is judged as it is: detect or be right. The bytes before that are kept, so that what was
//! destroyed is known, sector by sector. What the format cannot tell is counted and not reported: another bit in an entry is
//! an entry, and a sector of data, or of a table, that is as it was once is what it was.

use std::collections::BTreeMap;

use blkdebug::class::Class;
use blkdebug::disks::{Disk, Disks};
use blkdebug::mask::Shape;
use blkdebug::record::{Entry, RecordedOp};
use blkdebug::rule::{Chance, Fault, Repeat, Rule, Tear};
use engine::defect::Flaw;
use engine::device::{PageImage, SECTOR_BYTES};

use crate::caught::{Panic, catch};
use crate::crash::destroyed::{Destroyed, Ruin};
use crate::oracle::{Oracle, Standing, Verdict};
use crate::prng::Prng;
use crate::run::{Bench, Case, Life, Schedule, live};
use crate::workload::generate;
use crate::workload::pin::Pins;
use crate::workload::shape::Scenario;

/// What became of a sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Damage {
    /// One bit is another.
    Flipped,
    /// It holds what nobody wrote.
    Rotten,
    /// The last write to it never happened.
    Lost,
    /// The last write to it went to another sector.
    Misdirected,
}

impl Damage {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Flipped, Self::Rotten, Self::Lost, Self::Misdirected];

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Flipped => "flipped bit",
            Self::Rotten => "rot",
            Self::Lost => "lost write",
            Self::Misdirected => "misdirected write",
        }
    }
}

/// What came of one kind of damage to one class of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standings {
    /// Images of which everything was read, and is right.
    pub right: u64,
    /// Images of which something was refused, and what was read is right.
    pub refused: u64,
    /// Images of which something was read that is wrong, and cannot be known to be.
    pub undetectable: u64,
}

/// What came of damage.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// By class and kind.
    pub standings: BTreeMap<(Class, Damage), Standings>,
    /// What is wrong: the run, what was damaged, and the verdict.
    pub found: Vec<(u64, String, Verdict)>,
    /// Runs.
    pub runs: u64,
    /// Requests that went wrong without a word while an engine had the image open.
    pub live: u64,
}

/// Damages the images of so many drawn workloads, each in several ways, and lets an engine with this flaw, if any, at them.
pub fn silent(seed: u64, runs: u64, pins: Pins, flaw: Option<Flaw>) -> Result<Report, Panic> {
    let pins = Pins {
        chain: Some(false),
        kill: Some(false),
        faults: Some(false),
        ..pins
    };
    let mut report = Report::default();
    for run in 0..runs {
        let prng = Prng::from_seed(seed).fork_indexed("silent", run);
        let case = Case {
            scenario: Scenario {
                flaw,
                ..generate::scenario(&prng, &pins)
            },
            schedule: Schedule::Drawn(Box::new(prng.fork("schedule"))),
        };
        catch(|| damage_one(&case, run, &mut prng.fork("damage"), &mut report))?;
        catch(|| disturb_one(&case, run, &mut prng.fork("disturb"), &mut report))?;
        report.runs += 1;
    }
    Ok(report)
}

fn damage_one(case: &Case, run: u64, draw: &mut Prng, report: &mut Report) {
    let Ok(life) = live(case) else { return };
    let image = life.last.image().clone();
    let bench = Bench::of(case, &life);
    let expectation = life.expect(life.recording().end());
    for class in Class::ALL {
        for damage in Damage::ALL {
            let Some(hurt) = hurt(&life, &image, class, damage, draw) else {
                continue;
            };
            let mut disks: Disks<PageImage> = life.last.clone();
            *disks.get_mut(Disk::Image).expect("it is there") = hurt.image;
            let destroyed = disks.map(|disk, _| match disk {
                Disk::Image => Destroyed::of(&hurt.sectors),
                Disk::Backing | Disk::Base | Disk::Other | Disk::Data => Destroyed::default(),
            });
            let judged = bench.judge_destroyed(disks, &expectation, &destroyed);
            let mut verdict = judged.verdict.clone();
            if verdict.survived() {
                verdict = bench.serve_destroyed(&judged, &expectation, &destroyed);
            }
            if !verdict.survived() {
                let what = format!(
                    "{} of {} at {:?}",
                    damage.name(),
                    class.name(),
                    hurt.sectors
                );
                report.found.push((run, what, verdict));
                continue;
            }
            let standings = report.standings.entry((class, damage)).or_default();
            *match judged.standing() {
                Standing::Right => &mut standings.right,
                Standing::Refused => &mut standings.refused,
                Standing::Undetectable => &mut standings.undetectable,
            } += 1;
        }
    }
}

/// Lets requests go wrong without a word in the middle of a workload. What an engine makes of tables that change in its
/// hands is its own affair, but that it ends and does not panic.
fn disturb_one(case: &Case, run: u64, draw: &mut Prng, report: &mut Report) {
    let mut case = case.clone();
    for _ in 0..draw.between(1, 2) {
        let fault = match draw.below(6) {
            0 => Fault::Flip(draw.below(1 << 15)),
            1 => Fault::Misdirect([-8, -2, -1, 1, 2, 8][draw.index(6)]),
            2 => Fault::Shorten(draw.below(3)),
            3 => Fault::Drop,
            4 => Fault::Tear(Tear::Shape(*draw.pick(&Shape::ALL))),
            _ => Fault::Duplicate(draw.between(1, 9)),
        };
        case.scenario.faults.push(Rule {
            chance: Some(Chance {
                one_in: draw.between(2, 30),
                seed: draw.below(1 << 16),
            }),
            repeat: Repeat::Always,
            ..Rule::new(fault)
        });
    }
    let Ok(life) = live(&case) else { return };
    report.live += life.faults;
    let ends = |kind: &str| matches!(kind, "panic" | "hang" | "endless");
    for violation in life.violations() {
        if violation.class.oracle == Oracle::Progress && ends(&violation.class.kind) {
            let what = format!("while it was open, with {:?}", case.scenario.faults);
            report.found.push((run, what, violation.into()));
        }
    }
}

/// An image of which something was destroyed, and what.
struct Hurt {
    image: PageImage,
    sectors: Vec<(u64, Ruin)>,
}

/// Damages a sector that a request of the class wrote last; `None` where there is none to be damaged so.
fn hurt(
    life: &Life,
    image: &PageImage,
    class: Class,
    damage: Damage,
    draw: &mut Prng,
) -> Option<Hurt> {
    let entries = &life.lived.recordings[0].entries;
    let writes: Vec<&Entry> = entries
        .iter()
        .filter(|entry| Class::of(entry) == class && entry.succeeded().is_some())
        .filter(|entry| matches!(entry.op, RecordedOp::Write { .. }))
        .collect();
    if writes.is_empty() {
        return None;
    }
    let write = writes[draw.index(writes.len())];
    let index = draw.index(write.op.sector_count().max(1));
    let sector = write.op.sectors().start + u64::try_from(index).ok()?;
    let (at, len) = (sector * SECTOR_BYTES, 512);
    if at >= image.len() {
        return None;
    }
    let now = image.read_vec(at, len);
    let mut hurt = image.clone();
    let mut sectors = vec![(sector, Ruin::Stale)];
    match damage {
        Damage::Flipped => {
            let mut bytes = now.clone();
            let bit = draw.index(len * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            hurt.write(at, &bytes);
        }
        Damage::Rotten => {
            let mut bytes = now.clone();
            bytes.fill_with(|| u8::try_from(draw.below(256)).expect("less than 256"));
            hurt.write(at, &bytes);
            sectors[0].1 = Ruin::Garbage;
        }
        Damage::Lost => hurt.write(at, &before(life, sector)),
        Damage::Misdirected => {
            let other = draw.below(image.len().div_ceil(SECTOR_BYTES));
            hurt.write(at, &before(life, sector));
            hurt.write(other * SECTOR_BYTES, &now);
            if other != sector {
                sectors.push((other, Ruin::Stale));
            }
        }
    }
    (hurt.content_hash() != image.content_hash()).then_some(Hurt {
        image: hurt,
        sectors,
    })
}

/// What a sector of the image held before the last write to it.
fn before(life: &Life, sector: u64) -> Vec<u8> {
    let recording = &life.lived.recordings[0];
    let touching = recording
        .entries
        .iter()
        .filter(|entry| entry.succeeded().is_some() && entry.op.sectors().contains(&sector));
    let mut touching: Vec<&Entry> = touching.collect();
    touching.sort_by_key(|entry| entry.succeeded());
    touching.pop();
    match touching.last() {
        None => recording.bases.image().read_vec(sector * SECTOR_BYTES, 512),
        Some(entry) => match &entry.op {
            RecordedOp::Write { run, .. } => {
                let index = usize::try_from(sector - run.sectors().start);
                run.sector(index.expect("a request fits memory")).to_vec()
            }
            RecordedOp::Read { .. }
            | RecordedOp::WriteZeroes { .. }
            | RecordedOp::Discard { .. }
            | RecordedOp::Flush
            | RecordedOp::SetLen { .. } => vec![0; 512],
        },
    }
}

#[cfg(all(test, feature = "defects"))]
mod tests {
    use engine::defect::Defect;

    use super::*;

    #[test]
    fn whoever_takes_garbage_for_unallocated_is_found_out() {
        let flaw = Flaw::Defect(Defect::BadEntryUnallocated);
        let found = |flaw| silent(1, 12, Pins::default(), flaw).unwrap().found.len();
        assert_eq!(found(None), 0);
        assert!(found(Some(flaw)) > 0);
    }
}
