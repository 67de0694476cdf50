//! Goes through the crash states of an imported log.

use blkdebug::contract::Contract;
use blkdebug::record::{Recording, Tick};
use engine::device::{ContentHash, PageImage};
use xxhash_rust::xxh3::Xxh3;

use super::import::Imported;
use super::judge::{Bench, Judged};
use super::versions::Versions;
use crate::campaign::Proceed;
use crate::crash::explain::{Explanation, Failing, Relation, explain};
use crate::crash::explore::{Budget, Explorer};
use crate::crash::footprint::Footprint;
use crate::crash::state::{CrashState, Survivors};
use crate::guest::Level;
use crate::oracle::view::Backing;
use crate::oracle::{Verdict, Violation};
use crate::prng::Prng;

/// Sectors that the requests of a log may change, those of discards among them: a GiB.
const MOST_SECTORS: u64 = 1 << 21;

/// As many messages of a kind are kept.
const KEPT: usize = 4;
/// Of so many survivors one has its repair interrupted, and one serves a guest.
const REPAIR_EVERY: u64 = 16;
const SERVE_EVERY: u64 = 64;

/// What is gone through.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    /// Where the generators start.
    pub seed: u64,
    /// What the disk may do at power loss; none that destroys what was durable.
    pub contract: Contract,
    /// So many states at most.
    pub states: u64,
    /// The mildest levels that are let pass.
    pub accept: Option<Level>,
    /// What lies beneath the image.
    pub backing: Option<&'a Backing>,
}

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Flushes behind which the image was read by the subject, and the start.
    pub versions: u64,
    /// Moments at which the power was cut.
    pub cuts: u64,
    /// States that were generated, equal ones included.
    pub generated: u64,
    /// States that differed.
    pub distinct: u64,
    /// Those that others stood for.
    pub spared: u64,
    /// Those that others stood for, and that were judged all the same.
    pub audited: u64,
    /// States that were judged, those inside repairs included.
    pub judged: u64,
    /// Those inside repairs.
    pub nested: u64,
    /// States that had to be repaired.
    pub repairs: u64,
    /// States on which work went on.
    pub served: u64,
    /// States that could not be judged.
    pub not_measured: u64,
    /// Violations, those of a class already told of included.
    pub violations: u64,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Explored {
    /// What was done.
    pub progress: Progress,
    /// Requests before which the log does not hold an image yet; they were passed over.
    pub unborn: usize,
    /// The first violation of each class.
    pub findings: Vec<Finding>,
    /// Why some states could not be judged.
    pub not_measured: Vec<String>,
    /// How the harness contradicted itself.
    pub broken: Vec<String>,
    /// Folds every state with its verdict.
    pub digest: u128,
}

/// A violation, and how it came about.
#[derive(Debug)]
pub struct Finding {
    /// What is wrong.
    pub violation: Violation,
    /// What is in the wrong order, where that was found out.
    pub sentence: Option<String>,
    /// When the power was lost.
    pub cut: String,
    /// What became of the volatile requests, a line each.
    pub survivors: Vec<String>,
    /// What the power loss left.
    pub image: PageImage,
}

/// A log of which nothing can be said, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unexplorable {
    /// Never is there an image.
    #[error(
        "the log never comes to a sound qcow2 image that is durable (--base says what the disk held before){0}"
    )]
    NoImage(String),
    /// The image is of a kind that is not gone into.
    #[error("{0}")]
    BeyondReach(&'static str),
    /// It changes more sectors than memory has room for, each with what may become of it.
    #[error(
        "the {0} entries before entry {0} change as many sectors as are held in memory, discarded ones among them (take those \
         alone with --entries {0})"
    )]
    TooMuch(u64),
    /// The contract takes away what was durable.
    #[error("what a disk that is `{0}` destroys cannot be told from a log")]
    Destroys(Contract),
}

/// Judges the crash states of a log until `proceed` ends it.
pub fn explore(
    imported: &Imported,
    plan: &Plan<'_>,
    proceed: &mut dyn FnMut(&Progress) -> Proceed,
) -> Result<Explored, Unexplorable> {
    if plan.contract.destroys() {
        return Err(Unexplorable::Destroys(plan.contract));
    }
    must_fit(imported)?;
    let all = Versions::of(&imported.recording, plan.backing);
    let unborn = birth(imported, &all)?;
    if unborn == 0 {
        return Ok(go_through(imported, &all, plan, proceed));
    }
    let later = imported.beginning_at(unborn, all.image(unborn).clone());
    let versions = Versions::of(&later.recording, plan.backing);
    let explored = go_through(&later, &versions, plan, proceed);
    Ok(Explored { unborn, ..explored })
}

/// Each sector of a request survives or does not: a discard of much costs memory as data do, and a few bytes in the log.
fn must_fit(imported: &Imported) -> Result<(), Unexplorable> {
    let mut sum = 0_u64;
    for entry in &imported.recording.entries {
        let sectors = entry.op.sectors();
        sum = sum.saturating_add(sectors.end.saturating_sub(sectors.start));
        if sum > MOST_SECTORS {
            return Err(Unexplorable::TooMuch(entry.ordinal));
        }
    }
    Ok(())
}

/// Behind how many requests there is a sound image that is durable. One that was made by the log is not dirty: a dirty bit
/// would excuse that most of an image is missing whose start nobody gave.
fn birth(imported: &Imported, versions: &Versions<'_>) -> Result<usize, Unexplorable> {
    let entries = imported.recording.entries.iter().enumerate();
    let durable = entries.filter(|(_, entry)| entry.op.kind() == engine::device::OpKind::Flush);
    let mut candidates = std::iter::once(0).chain(durable.map(|(index, _)| index + 1));
    let born = candidates
        .find(|version| {
            versions.is_image(*version) && (*version == 0 || !versions.is_dirty(*version))
        })
        .ok_or_else(|| {
            let first = versions
                .witness(versions.count() - 1)
                .report
                .findings
                .first()
                .map(ToString::to_string);
            Unexplorable::NoImage(
                first.map_or_else(String::new, |first| format!("; at its end: {first}")),
            )
        })?;
    match versions.beyond_reach(born) {
        None => Ok(born),
        Some(why) => Err(Unexplorable::BeyondReach(why)),
    }
}

fn go_through(
    imported: &Imported,
    versions: &Versions<'_>,
    plan: &Plan<'_>,
    proceed: &mut dyn FnMut(&Progress) -> Proceed,
) -> Explored {
    let mut exploration = Exploration {
        imported,
        versions,
        plan,
        bench: Bench::new(versions, plan.backing, plan.accept),
        explored: Explored::default(),
        digest: Xxh3::new(),
        survived: 0,
        draw: Prng::from_seed(plan.seed),
    };
    if exploration.read_versions(proceed) == Proceed::GoOn {
        exploration.lose_power(proceed);
    }
    let Exploration {
        mut explored,
        digest,
        ..
    } = exploration;
    explored.digest = digest.digest128();
    explored
}

struct Exploration<'a> {
    imported: &'a Imported,
    versions: &'a Versions<'a>,
    plan: &'a Plan<'a>,
    bench: Bench<'a>,
    explored: Explored,
    digest: Xxh3,
    survived: u64,
    draw: Prng,
}

impl Exploration<'_> {
    fn recording(&self) -> &Recording {
        &self.imported.recording
    }

    /// Reads the disk behind each flush, without any loss: what is found there is what later states are held against.
    fn read_versions(&mut self, proceed: &mut dyn FnMut(&Progress) -> Proceed) -> Proceed {
        let imported = self.imported;
        let entries = imported.recording.entries.iter().enumerate();
        let flushed = entries.filter(|(_, entry)| entry.op.kind() == engine::device::OpKind::Flush);
        let mut last = None;
        for version in std::iter::once(0).chain(flushed.map(|(index, _)| index + 1)) {
            let image = self.versions.image(version).clone();
            let hash = image.content_hash();
            if last.replace(hash) == Some(hash) {
                continue;
            }
            self.explored.progress.versions += 1;
            let judged = self.bench.judge_version(version);
            let cut = match version.checked_sub(1) {
                None => "at the start, nothing lost".to_owned(),
                Some(index) => format!(
                    "behind the flush that is entry {}, nothing lost",
                    self.number(index)
                ),
            };
            self.settle(hash, judged.verdict, |violation| Finding {
                violation,
                sentence: None,
                cut,
                survivors: Vec::new(),
                image,
            });
            if proceed(&self.explored.progress) == Proceed::Stop {
                return Proceed::Stop;
            }
        }
        Proceed::GoOn
    }

    /// Which entry of the log a request is.
    fn number(&self, request: usize) -> u64 {
        self.recording().entries[request].ordinal
    }

    fn lose_power(&mut self, proceed: &mut dyn FnMut(&Progress) -> Proceed) {
        let (imported, versions) = (self.imported, self.versions);
        let marks: Vec<Tick> = imported.marks.iter().map(|mark| mark.at).collect();
        let budget = Budget {
            states: self.plan.states,
            ..Budget::default()
        };
        let mut sampling = self.draw.fork("crash");
        let key = |cut| u128::try_from(versions.window(cut).floor).expect("an index fits 128 bits");
        let mut explorer = Explorer::new(&imported.recording, self.plan.contract, budget, &marks)
            .with_draw(move |bound| sampling.below(bound))
            .with_expectation(key)
            .with_filter();
        let before = self.explored.progress;
        while let Some(state) = explorer.next() {
            let cut = state.cut;
            let footprint = self.visit(&state);
            if !explorer.learn(footprint) {
                let how = format!(
                    "at moment {} a state that others stand for was judged by other sectors",
                    cut.0
                );
                keep(&mut self.explored.broken, how);
            }
            let found = explorer.explored();
            let progress = &mut self.explored.progress;
            progress.cuts = before.cuts + found.cuts;
            progress.generated = before.generated + found.generated;
            progress.distinct = before.distinct + found.distinct;
            (progress.spared, progress.audited) = (found.spared, found.audited);
            if proceed(progress) == Proceed::Stop {
                return;
            }
        }
    }

    /// Judges a state, and what may come after it; says what its verdict hangs on.
    fn visit(&mut self, state: &CrashState) -> Option<Footprint> {
        let image = state.disks.image().clone();
        let judged = self.bench.judge(image.clone(), state.cut);
        let survived = judged.verdict.survived();
        if let Verdict::Violated(violation) = &judged.verdict
            && !self.is_known(violation)
        {
            let finding = self.tell(violation.clone(), state);
            self.explored.findings.push(finding);
        }
        self.settle(state.hash, judged.verdict.clone(), |violation| Finding {
            violation,
            sentence: None,
            cut: String::new(),
            survivors: Vec::new(),
            image,
        });
        let judgement = judged.judgement.as_ref()?;
        let repaired = !judgement.repairs.is_empty();
        self.explored.progress.repairs += u64::from(repaired);
        if !survived {
            return None;
        }
        self.survived += 1;
        if repaired && (self.explored.progress.repairs - 1).is_multiple_of(REPAIR_EVERY) {
            self.interrupt(&judged, state);
        }
        if (self.survived - 1).is_multiple_of(SERVE_EVERY) {
            self.serve(&judged, state);
        }
        judgement.footprint()
    }

    /// Loses power inside the repair of a state.
    fn interrupt(&mut self, judged: &Judged, outer: &CrashState) {
        let Some(judgement) = &judged.judgement else {
            return;
        };
        for recording in &judgement.repairs {
            let mut sampling = self
                .draw
                .fork_indexed("inner", self.explored.progress.judged);
            let budget = Budget {
                states: 24,
                every_parts: 3,
                samples: 2,
                torn_masks: 1,
            };
            let explorer = Explorer::new(recording, self.plan.contract, budget, &[])
                .with_draw(move |bound| sampling.below(bound));
            for state in explorer {
                let image = state.disks.into_image();
                let Some(again) = self.bench.judge_repair(judged, image.clone()) else {
                    continue;
                };
                self.explored.progress.nested += 1;
                let survivors = lines(self.recording(), &outer.survivors);
                let inner = lines(recording, &state.survivors);
                let cut = format!("{}, and again inside the repair", self.place(outer.cut));
                self.settle(state.hash, again.verdict, |violation| Finding {
                    violation,
                    sentence: None,
                    cut,
                    survivors: survivors.into_iter().chain(inner).collect(),
                    image,
                });
            }
        }
    }

    fn serve(&mut self, judged: &Judged, state: &CrashState) {
        let Some(verdict) = self.bench.serve(judged) else {
            return;
        };
        self.explored.progress.served += 1;
        let survivors = lines(self.recording(), &state.survivors);
        let cut = format!("{}, and work went on", self.place(state.cut));
        let image = state.disks.image().clone();
        self.settle(state.hash, verdict, |violation| Finding {
            violation,
            sentence: None,
            cut,
            survivors,
            image,
        });
    }

    /// Lets survive what can without a cure, and names what is in the wrong order.
    fn tell(&mut self, violation: Violation, state: &CrashState) -> Finding {
        let (imported, class) = (self.imported, violation.class.clone());
        let failing = Failing {
            recording: &imported.recording,
            cut: state.cut,
            survivors: &state.survivors,
            promises: &[],
        };
        let bench = &mut self.bench;
        let explained = explain(failing, &mut |state| {
            let judged = bench.judge(state.disks.image().clone(), state.cut);
            matches!(judged.verdict, Verdict::Violated(other) if other.class == class)
        });
        let (state, relation) = match explained {
            Ok(Some(Explanation { state, relation })) => (state, relation),
            Ok(None) | Err(_) => (state.clone(), Relation::Anyhow),
        };
        let image = state.disks.image().clone();
        let violation = match self.bench.judge(image.clone(), state.cut).verdict {
            Verdict::Violated(violation) => violation,
            Verdict::Survived | Verdict::NotMeasured(_) | Verdict::HarnessBroken(_) => violation,
        };
        Finding {
            violation,
            sentence: (relation != Relation::Anyhow).then(|| by_entry(&relation.to_string())),
            cut: self.place(state.cut),
            survivors: lines(self.recording(), &state.survivors),
            image,
        }
    }

    /// When a cut is, by the log's entries.
    fn place(&self, cut: Tick) -> String {
        let entries = &self.recording().entries;
        match entries
            .partition_point(|entry| entry.submitted <= cut)
            .checked_sub(1)
        {
            None => "power lost before the first entry".into(),
            Some(last) if entries[last].answered().is_some_and(|at| at <= cut) => {
                format!("power lost behind entry {}", self.number(last))
            }
            Some(last) => format!("power lost while entry {} was under way", self.number(last)),
        }
    }

    fn is_known(&self, violation: &Violation) -> bool {
        self.explored
            .findings
            .iter()
            .any(|finding| finding.violation.class == violation.class)
    }

    /// Counts and folds a verdict, and keeps what is wrong.
    fn settle(
        &mut self,
        hash: ContentHash,
        verdict: Verdict,
        finding: impl FnOnce(Violation) -> Finding,
    ) {
        self.explored.progress.judged += 1;
        self.digest.update(&hash.0.to_le_bytes());
        match verdict {
            Verdict::Survived => self.digest.update(&[0]),
            Verdict::Violated(violation) => {
                self.digest.update(violation.class.to_string().as_bytes());
                self.explored.progress.violations += 1;
                if !self.is_known(&violation) {
                    self.explored.findings.push(finding(violation));
                }
            }
            Verdict::NotMeasured(why) => {
                self.explored.progress.judged -= 1;
                self.explored.progress.not_measured += 1;
                keep(&mut self.explored.not_measured, why);
            }
            Verdict::HarnessBroken(how) => keep(&mut self.explored.broken, how),
        }
    }
}

/// What became of each volatile request.
fn lines(recording: &Recording, survivors: &Survivors) -> Vec<String> {
    let text = survivors.describe(recording);
    text.lines().map(by_entry).collect()
}

/// A text about requests that nobody made for any event: their numbers are those of the log's entries.
fn by_entry(text: &str) -> String {
    text.replace("none ", "the log's ")
}

fn keep(messages: &mut Vec<String>, message: String) {
    if messages.len() < KEPT && !messages.contains(&message) {
        messages.push(message);
    }
}
