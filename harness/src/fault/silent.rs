//! Silent damage: sectors that hold something else than what was written last, and no error says so.
//!
//! At rest: a workload is lived through on an honest device; then a sector of a structure, or the length of the file, is
//! damaged, as rot, lost and misdirected writes damage it, and the image is judged as it is: every read is right, or
//! refused, or hangs on what was destroyed. The bytes before that are kept, so that what was destroyed is known, sector by
//! sector. In use: requests of a workload go wrong without a word ([`mod@live`]). And nothing is ever written where it
//! does not belong ([`owner`]). What the format cannot tell is counted by its reason and not reported: data have no
//! checksum, and a sector of a table that is as it was once, or of which a bit is another, is a sector of a table.

mod land;
pub mod live;
pub mod owner;
mod wound;

use std::collections::BTreeMap;

use blkdebug::class::Class;
use blkdebug::disks::{Disk, Disks};
use blkdebug::mask::Shape;
use blkdebug::record::Recording;
use blkdebug::rule::{Chance, Fault, Repeat, Rule, Tear};
use engine::defect::Flaw;
use engine::device::PageImage;
use rayon::prelude::*;

use super::draw::insert;
use crate::campaign::{Found, NoThreads, threads};
use crate::caught::catch;
use crate::crash::destroyed::Destroyed;
use crate::oracle::{Readings, Standing, Verdict, Violation};
use crate::prng::Prng;
use crate::run::{Bench, Case, Finding, Life, Schedule, live};
use crate::trace::{Expected, Trace};
use crate::workload::generate;
use crate::workload::ops::Operation;
use crate::workload::pin::Pins;
use crate::workload::shape::Scenario;

use land::Land;
use owner::{Blind, Trespasses, trespasses};

pub use wound::{Damage, NoWound, Wound, Wounded};

/// What came of one kind of damage to one class of bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standings {
    /// Images of which everything was read, and is right.
    pub right: u64,
    /// Images of which something was refused, and what was read is right.
    pub refused: u64,
    /// Images of which something was read that is wrong, and cannot be known to be.
    pub undetectable: u64,
    /// What came of the guest sectors that were read of them.
    pub readings: Readings,
}

/// A violation at rest, and the trace that shows it.
#[derive(Clone, Debug)]
pub struct AtRest {
    /// In which run.
    pub run: u64,
    /// What is wrong.
    pub violation: Violation,
    /// The trace.
    pub trace: Trace,
}

/// What came of damage.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// By class and kind.
    pub standings: BTreeMap<(Class, Damage), Standings>,
    /// Writes to what is another's that nobody could know, by what made it so.
    pub blind: BTreeMap<Blind, u64>,
    /// What is wrong with images that were damaged at rest.
    pub at_rest: Vec<AtRest>,
    /// What is wrong with workloads in which requests went wrong.
    pub in_use: Vec<Found>,
    /// What could not be judged, and why.
    pub broken: Vec<String>,
    /// Runs.
    pub runs: u64,
    /// Requests that went wrong without a word while an engine had the image open, by kind.
    pub live: BTreeMap<&'static str, u64>,
    /// What came of what the guest read then.
    pub readings: Readings,
}

impl Report {
    /// How many violations there are.
    pub fn violations(&self) -> usize {
        self.at_rest.len() + self.in_use.len()
    }

    /// Adds what came of later runs.
    fn add(&mut self, other: Self) {
        for (key, standings) in other.standings {
            let mine = self.standings.entry(key).or_default();
            mine.right += standings.right;
            mine.refused += standings.refused;
            mine.undetectable += standings.undetectable;
            mine.readings.add(&standings.readings);
        }
        for (blind, count) in other.blind {
            *self.blind.entry(blind).or_default() += count;
        }
        for (kind, count) in other.live {
            *self.live.entry(kind).or_default() += count;
        }
        self.at_rest.extend(other.at_rest);
        self.in_use.extend(other.in_use);
        self.broken.extend(other.broken);
        self.runs += other.runs;
        self.readings.add(&other.readings);
    }

    fn note(&mut self, trespasses: &Trespasses) {
        for (blind, count) in &trespasses.blind {
            *self.blind.entry(*blind).or_default() += count;
        }
    }
}

/// Damages the images of so many drawn workloads, each in several ways, and lets an engine with this flaw, if any, at them:
/// on so many threads, which changes nothing about the result.
pub fn silent(
    seed: u64,
    runs: u64,
    pins: Pins,
    flaw: Option<Flaw>,
    jobs: usize,
) -> Result<Report, NoThreads> {
    let pins = Pins {
        chain: Some(false),
        kill: Some(false),
        faults: Some(false),
        ..pins
    };
    let one = |run: u64| {
        let mut report = Report::default();
        let prng = Prng::from_seed(seed).fork_indexed("silent", run);
        let case = Case {
            scenario: Scenario {
                flaw,
                ..generate::scenario(&prng, &pins)
            },
            schedule: Schedule::Drawn(Box::new(prng.fork("schedule"))),
        };
        let at_rest = catch(|| damage_one(&case, run, &mut prng.fork("damage"), &mut report)).err();
        let in_use =
            catch(|| disturb_one(&case, run, &mut prng.fork("disturb"), &mut report)).err();
        for panic in at_rest.into_iter().chain(in_use) {
            report
                .broken
                .push(format!("run {run}: the harness {panic}"));
        }
        report.runs += 1;
        report
    };
    let done: Vec<Report> = threads(jobs)?.install(|| (0..runs).into_par_iter().map(one).collect());
    let mut whole = Report::default();
    for report in done {
        whole.add(report);
    }
    Ok(whole)
}

/// What came of one image that was damaged at rest.
#[derive(Clone, Debug)]
pub struct Judged {
    /// The verdict.
    pub verdict: Verdict,
    /// What became of what it holds.
    pub standing: Standing,
    /// What came of the guest sectors that were read.
    pub readings: Readings,
    /// What was written where it does not belong.
    pub trespasses: Trespasses,
    /// The disks as they were damaged.
    pub disks: Disks<PageImage>,
}

/// Judges the image that a life has left with a wound; `None` where that changes nothing.
pub fn judge(case: &Case, life: &Life, wound: Wound) -> Option<Judged> {
    let Wounded { image, sectors } = wound.of(life)?;
    let bench = Bench::of(case, life);
    let expectation = life.expect(life.recording().end());
    let mut disks: Disks<PageImage> = life.last.clone();
    *disks.get_mut(Disk::Image).expect("it is there") = image;
    let destroyed = disks.map(|disk, _| match disk {
        Disk::Image => Destroyed::of(&sectors),
        Disk::Backing | Disk::Base | Disk::Other | Disk::Data => Destroyed::default(),
    });
    let judged = bench.judge_destroyed(disks.clone(), &expectation, &destroyed);
    let mut verdict = judged.verdict.clone();
    let mut recordings: Vec<Recording> = judged.image.repairs.clone();
    // Whoever opens it need not check it first.
    for image in [&judged.image.state, judged.recovered()] {
        if verdict.survived() {
            let service = bench.serve_destroyed(&judged, image, &expectation, &destroyed);
            verdict = service.verdict;
            recordings.push(service.recording);
        }
    }
    let truth = Land::of(life.last.image());
    let mut found = Trespasses::default();
    for recording in &recordings {
        found.add(trespasses(&truth, recording, life.overlap_checks));
    }
    if let (true, Some(violation)) = (verdict.survived(), found.violation.clone()) {
        verdict = violation.into();
    }
    Some(Judged {
        verdict,
        standing: judged.standing(),
        readings: judged.image.readings.clone(),
        trespasses: found,
        disks,
    })
}

fn damage_one(case: &Case, run: u64, draw: &mut Prng, report: &mut Report) {
    let Ok(life) = live(case) else { return };
    for class in Class::ALL {
        for damage in Damage::ALL {
            let Some(wound) = Wound::draw(&life, class, damage, draw) else {
                continue;
            };
            let Some(judged) = judge(case, &life, wound) else {
                continue;
            };
            report.note(&judged.trespasses);
            let what = format!("{} of {}: {wound}", damage.name(), class.name());
            match judged.verdict {
                Verdict::Survived => {
                    let standings = report.standings.entry((class, damage)).or_default();
                    *match judged.standing {
                        Standing::Right => &mut standings.right,
                        Standing::Refused => &mut standings.refused,
                        Standing::Undetectable => &mut standings.undetectable,
                    } += 1;
                    standings.readings.add(&judged.readings);
                }
                Verdict::Violated(violation) => {
                    let trace = trace_of(case, &life, wound, &violation);
                    report.at_rest.push(AtRest {
                        run,
                        violation,
                        trace,
                    });
                }
                Verdict::NotMeasured(why) | Verdict::HarnessBroken(why) => {
                    report.broken.push(format!("run {run}, {what}: {why}"));
                }
            }
        }
    }
}

fn trace_of(case: &Case, life: &Life, wound: Wound, violation: &Violation) -> Trace {
    let first = violation.lines.first().cloned().unwrap_or_default();
    Trace {
        about: format!("{wound}, behind the workload: {first}"),
        scenario: case.scenario.clone(),
        choices: life.lived.choices.clone(),
        crash: None,
        damage: Some(wound),
        expected: Expected::Violated(violation.class.to_string()),
        shown: None,
        digest: Some(life.lived.digest),
    }
}

/// Lets requests go wrong without a word in the middle of a workload.
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
    // What was written is looked at by whoever opens the image next.
    let written = case.scenario.operations.iter().filter_map(|it| it.range());
    let reads = written.map(|extent| Operation::Read {
        offset: extent.offset,
        len_bytes: extent.len_bytes,
    });
    let reads: Vec<Operation> = reads.collect();
    for operation in std::iter::once(Operation::Reopen).chain(reads) {
        let end = case.scenario.operations.len();
        insert(&mut case.scenario, end, operation);
    }
    let Ok(life) = live(&case) else { return };
    for (_, injected) in &life.injected {
        *report.live.entry(injected.fault.name()).or_default() += 1;
    }
    if life.was_lied_to() {
        let told = live::judge(&life);
        report.readings.add(&told.readings);
        report.note(&told.trespasses);
    }
    for violation in life.violations() {
        report.in_use.push(Found {
            run,
            scenario: case.scenario.clone(),
            choices: life.lived.choices.clone(),
            finding: Finding {
                violation,
                crash: None,
            },
        });
    }
}

#[cfg(test)]
mod tests;
