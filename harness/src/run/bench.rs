//! Who judges the crash states of a life: the image, and each file beneath it that was written to.
//!
//! A power loss goes through all disks at once. The image is judged over the file that its header names,
//! as that file was left; then each file that the workload wrote to is judged as an image of its own:
//! structure, repair, and what it shows.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use blkdebug::contract::Contract;
use blkdebug::disks::{Disk, Disks};
use blkdebug::record::{Recording, Tick};
use engine::device::{ContentHash, PageImage};
use engine::qcow2::create::BackingFormat;

use super::Case;
use super::live::{Life, planted};
use crate::crash::destroyed::{Destroyed, Honest};
use crate::guest::{Expectation, Level};
use crate::guide::rare::Hits;
use crate::oracle::view::Backing;
use crate::oracle::{Damage, Judge, Judgement, Service, Standing, Verdict, Witness, judge_raw};
use crate::pace::Observer;
use crate::sim::stage::{Stage, open_options};
use crate::subject::EngineSubject;
use crate::workload::ops::Moment;

/// Judges the crash states of one life.
pub struct Bench<'a> {
    stage: &'a Stage,
    /// The engine, beside no other file yet.
    engine: EngineSubject,
    observer: &'a dyn Observer,
    /// The image before the workload.
    base: Witness,
    /// The image as it was found by each process after the first.
    found: Vec<&'a Witness>,
    /// Where the files beneath never change: what the image is always judged with.
    always: Option<Rc<Tools>>,
    /// The files that passed, by disk, content and expectation, and at which cut at the latest.
    passed: RefCell<BTreeMap<(Disk, ContentHash, u128), Moment>>,
    /// What happened, where the disks may destroy what had been durable: what they destroyed follows from it.
    destroying: Option<&'a Recording>,
    /// What disks may hold that destroy nothing, at the cut that was judged last.
    honest: RefCell<Option<(Tick, Rc<Honest>)>>,
    /// Whether disks may lie about what is durable.
    lies: bool,
    /// Whether operations failed because requests did.
    behind_faults: bool,
    accept: Option<Level>,
    /// What the engine told of rare situations.
    pub(super) hits: Rc<Hits>,
}

/// What one image is judged with.
#[derive(Debug)]
struct Tools {
    backing: Option<Backing>,
    /// The file of the image's guest data, as it was left.
    data: Option<PageImage>,
    subject: EngineSubject,
}

/// What came of judging what a power loss left.
#[derive(Clone, Debug)]
pub struct Judged {
    /// The verdict.
    pub verdict: Verdict,
    /// What was left.
    pub disks: Disks<PageImage>,
    /// That of the image alone.
    pub image: Judgement,
    /// Those of the files beneath that are images themselves and were not known to pass.
    pub beneath: Vec<(Disk, Judgement)>,
}

impl Judged {
    /// The judgement of the image of one disk, if it was made.
    pub fn of(&self, disk: Disk) -> Option<&Judgement> {
        if disk == Disk::Image {
            return Some(&self.image);
        }
        let mut beneath = self.beneath.iter();
        let found = beneath.find(|(other, _)| *other == disk);
        found.map(|(_, judgement)| judgement)
    }

    /// How much work it was, as [`Judgement::work`] counts it.
    pub fn work(&self) -> u64 {
        let beneath = self.beneath.iter().map(|(_, judgement)| judgement.work());
        beneath.fold(self.image.work(), u64::saturating_add)
    }

    /// What wrote to an image in order to repair it: on which disk, and as which attempt on it.
    pub fn repairs(&self) -> impl Iterator<Item = (Disk, usize, &Recording)> {
        let image = std::iter::once((Disk::Image, &self.image));
        let beneath = self.beneath.iter().map(|(disk, of)| (*disk, of));
        image.chain(beneath).flat_map(|(disk, of)| {
            let attempts = of.repairs.iter().enumerate();
            attempts.map(move |(attempt, recording)| (disk, attempt, recording))
        })
    }

    /// What the state came to: the worst of what its images did.
    pub fn standing(&self) -> Standing {
        let beneath = self.beneath.iter().map(|(_, of)| of.standing);
        beneath.fold(self.image.standing, Standing::max)
    }

    /// The image as recovery left it.
    pub fn recovered(&self) -> &Witness {
        let recovered = self.image.recovered.as_ref();
        recovered.unwrap_or(&self.image.state)
    }
}

impl Tools {
    fn judge<'a>(
        &'a self,
        base: Option<&'a Witness>,
        accept: Option<Level>,
        observer: &'a dyn Observer,
    ) -> Judge<'a> {
        Judge {
            subject: &self.subject,
            backing: self.backing.as_ref(),
            data: self.data.as_ref(),
            base,
            accept,
            observer,
        }
    }
}

impl<'a> Bench<'a> {
    /// That of this life.
    pub fn of(case: &Case, life: &'a Life) -> Self {
        Self::timed(case, life, &())
    }

    /// The same, which tells somebody where it stands.
    pub fn timed(case: &Case, life: &'a Life, observer: &'a dyn Observer) -> Self {
        let stage = &life.stage;
        let options = open_options(&case.scenario, planted(&case.scenario));
        let hits = Rc::default();
        let mut bench = Self {
            stage,
            engine: EngineSubject::new(options, None).counting(&hits),
            observer,
            base: Witness::new(stage.image.clone()),
            found: life.later.iter().map(|process| &process.found).collect(),
            always: None,
            passed: RefCell::default(),
            destroying: case.scenario.contract.destroys().then(|| life.recording()),
            honest: RefCell::default(),
            lies: case.scenario.contract == Contract::Liar,
            behind_faults: life.fails_honestly(),
            accept: None,
            hits,
        };
        if !stage.is_chain() && stage.data.is_none() {
            let disks = Disks::one(stage.image.clone());
            bench.always = Some(bench.tools(Disk::Image, &disks));
        }
        bench
    }

    /// An image that was not in order to begin with, and did not ask for a repair as it was opened: whoever closes it
    /// leaves it no worse.
    fn disorder(&self, expectation: &Expectation<'_>) -> Option<&Witness> {
        let before = self.found(expectation).unwrap_or(&self.base);
        let kept = !before.report.is_perfect() && !before.report.dirty();
        kept.then_some(before)
    }

    /// What the image of a disk is judged with where the others hold this.
    fn tools(&self, disk: Disk, disks: &Disks<PageImage>) -> Rc<Tools> {
        if let Some(always) = &self.always {
            return Rc::clone(always);
        }
        let over = self.stage.over(disk, disks);
        let backing = over.map(|over| self.stage.view(over, disks));
        let data = match disk {
            Disk::Image => disks.get(Disk::Data).or(self.stage.data.as_ref()),
            Disk::Backing | Disk::Base | Disk::Other | Disk::Data => None,
        };
        Rc::new(Tools {
            subject: self.engine.beside(backing.clone(), data.cloned()),
            data: data.cloned(),
            backing,
        })
    }

    /// What the image was before the history that is judged, where that says what it shows.
    fn base(&self, expectation: &Expectation<'_>) -> Option<&Witness> {
        self.always.as_ref()?;
        Some(self.found(expectation).unwrap_or(&self.base))
    }

    /// The image as it was found by the process that is judged, if another was killed before.
    fn found(&self, expectation: &Expectation<'_>) -> Option<&Witness> {
        let later = expectation.ledger().process().checked_sub(1)?;
        self.found.get(later).copied()
    }

    /// The same, letting pass what misses by no more than this.
    #[must_use]
    pub fn accepting(self, accept: Option<Level>) -> Self {
        Self { accept, ..self }
    }

    /// What the disks destroyed of what they hold at a cut; `None` where that is nothing, and what is left is what disks
    /// may leave that destroy nothing.
    fn destroyed(&self, disks: &Disks<PageImage>, cut: Moment) -> Option<Disks<Destroyed>> {
        let recording = self.destroying?;
        let cut = Tick(cut.0);
        let mut known = self.honest.borrow_mut();
        if known.as_ref().is_none_or(|(of, _)| *of != cut) {
            *known = Some((cut, Rc::new(Honest::at(recording, cut))));
        }
        let destroyed = known.as_ref().map(|(_, honest)| honest.destroyed(disks))?;
        let is_honest = destroyed.iter().all(|(_, of)| self.is_honest(of));
        (!is_honest).then_some(destroyed)
    }

    /// Whether a disk that destroys nothing may hold what this is about.
    fn is_honest(&self, destroyed: &Destroyed) -> bool {
        // What a disk does not lie about goes wrong as garbage, and that is known by the sector.
        destroyed.is_none() && (!self.lies || destroyed.is_exact())
    }

    /// Judges what a power loss left on the disks that were written to.
    pub fn judge(&self, disks: Disks<PageImage>, expectation: &Expectation<'_>) -> Judged {
        let tools = self.tools(Disk::Image, &disks);
        let judge = tools.judge(self.base(expectation), self.accept, self.observer);
        let image = disks.image().clone();
        let destroyed = self.destroyed(&disks, expectation.cut());
        let (image, ending) = match &destroyed {
            None => {
                let judged = judge.judge(image, expectation, None);
                (
                    judged.with_autoclear_of(&self.base.image),
                    Ending::PowerLoss,
                )
            }
            Some(destroyed) => {
                let damage = damage(destroyed, Disk::Image);
                let judged = judge.judge_damaged(image, expectation, &damage);
                (judged, Ending::Damaged(destroyed))
            }
        };
        let judged = Judged {
            verdict: image.verdict.clone(),
            disks,
            image,
            beneath: Vec::new(),
        };
        self.judge_beneath(judged, expectation, ending)
    }

    /// Judges what a workload left that closed the image in good order: nothing is left that a repair
    /// could improve.
    pub fn judge_closed(&self, disks: Disks<PageImage>, expectation: &Expectation<'_>) -> Judged {
        let tools = self.tools(Disk::Image, &disks);
        let judge = tools.judge(self.base(expectation), self.accept, self.observer);
        let image = disks.image().clone();
        let image = if self.behind_faults {
            judge.judge_closed_behind_faults(image, expectation)
        } else {
            judge.judge_closed(image, expectation, self.disorder(expectation))
        };
        let judged = Judged {
            verdict: image.verdict.clone(),
            disks,
            image,
            beneath: Vec::new(),
        };
        self.judge_beneath(judged, expectation, Ending::Closed)
    }

    /// Judges disks that hold what they cannot hold by themselves: these sectors were destroyed, power loss or not.
    pub fn judge_destroyed(
        &self,
        disks: Disks<PageImage>,
        expectation: &Expectation<'_>,
        destroyed: &Disks<Destroyed>,
    ) -> Judged {
        let tools = self.tools(Disk::Image, &disks);
        let judge = tools.judge(self.base(expectation), self.accept, self.observer);
        let damage = damage(destroyed, Disk::Image);
        let image = judge.judge_damaged(disks.image().clone(), expectation, &damage);
        Judged {
            verdict: image.verdict.clone(),
            disks,
            image,
            beneath: Vec::new(),
        }
    }

    /// Lets the subject work on what [`Self::judge_destroyed`] let pass: on what was judged, or on what recovery made of it.
    pub fn serve_destroyed(
        &self,
        judged: &Judged,
        image: &Witness,
        expectation: &Expectation<'_>,
        destroyed: &Disks<Destroyed>,
    ) -> Service {
        let tools = self.tools(Disk::Image, &judged.disks);
        let judge = tools.judge(None, self.accept, self.observer);
        let damage = damage(destroyed, Disk::Image);
        judge.serve_damaged(image, expectation, &damage)
    }

    fn judge_beneath(
        &self,
        mut judged: Judged,
        expectation: &Expectation<'_>,
        ending: Ending<'_>,
    ) -> Judged {
        let written = judged.disks.others().map(|(disk, _)| disk);
        let written: Vec<Disk> = written.filter(|disk| *disk != Disk::Data).collect();
        for disk in written {
            if !judged.verdict.survived() {
                break;
            }
            let verdict = self.judge_file(disk, &mut judged, expectation, ending);
            judged.verdict = in_file(verdict, disk);
        }
        judged
    }

    /// Judges a file beneath the image as an image of its own.
    fn judge_file(
        &self,
        disk: Disk,
        judged: &mut Judged,
        expectation: &Expectation<'_>,
        ending: Ending<'_>,
    ) -> Verdict {
        let (Some(file), Some(content)) = (self.stage.file(disk), judged.disks.get(disk)) else {
            return Verdict::HarnessBroken(format!("there is no file `{}`", disk.name()));
        };
        // What was destroyed of another file is none of this one's.
        let ending = match ending {
            Ending::Damaged(destroyed) if !self.concerns(destroyed, disk) => Ending::PowerLoss,
            Ending::PowerLoss | Ending::Closed | Ending::Damaged(_) => ending,
        };
        let known = (
            disk,
            self.stage.hash(disk, &judged.disks),
            expectation.key(),
        );
        let cut = expectation.cut();
        let passed = self.passed.borrow().get(&known).copied();
        if matches!(ending, Ending::PowerLoss) && passed.is_some_and(|earlier| earlier <= cut) {
            return Verdict::Survived;
        }
        let Some(expected) = expectation.of_file(disk) else {
            let how = format!("nothing is expected of `{}`", disk.name());
            return Verdict::HarnessBroken(how);
        };
        let verdict = match file.format {
            BackingFormat::Raw => match ending {
                Ending::PowerLoss | Ending::Closed => judge_raw(content, &expected),
                // Whoever reads it reads what is there.
                Ending::Damaged(_) => Verdict::Survived,
            },
            BackingFormat::Qcow2 => {
                let tools = self.tools(disk, &judged.disks);
                let judge = tools.judge(None, self.accept, self.observer);
                let judgement = match ending {
                    Ending::PowerLoss => judge.judge(content.clone(), &expected, None),
                    Ending::Closed => judge.judge_closed(content.clone(), &expected, None),
                    Ending::Damaged(destroyed) => {
                        let damage = damage(destroyed, disk);
                        judge.judge_damaged(content.clone(), &expected, &damage)
                    }
                };
                let verdict = judgement.verdict.clone();
                judged.beneath.push((disk, judgement));
                verdict
            }
        };
        // Of what is damaged less is asked.
        if verdict.survived() && !matches!(ending, Ending::Damaged(_)) {
            self.passed.borrow_mut().insert(known, cut);
        }
        verdict
    }

    /// Whether anything was destroyed that the image of a disk is judged by.
    fn concerns(&self, destroyed: &Disks<Destroyed>, disk: Disk) -> bool {
        let is_raw = self
            .stage
            .file(disk)
            .is_some_and(|file| file.format == BackingFormat::Raw);
        let mut others = destroyed.iter().filter(|(other, _)| match other {
            Disk::Image | Disk::Data => false,
            Disk::Backing | Disk::Base | Disk::Other => *other == disk || !is_raw,
        });
        others.any(|(_, of)| !self.is_honest(of))
    }

    /// Judges what a second power loss left, inside a repair of the image of `disk`; the others are as
    /// the first one left them.
    ///
    /// # Panics
    /// Where the image of that disk was not judged.
    pub fn judge_repair(
        &self,
        judged: &Judged,
        disk: Disk,
        image: PageImage,
        expectation: &Expectation<'_>,
    ) -> Judgement {
        let before = judged
            .of(disk)
            .expect("only what was judged is judged again");
        let before = Some(&before.state);
        let tools = self.tools(disk, &judged.disks);
        if disk == Disk::Image {
            let judge = tools.judge(self.base(expectation), self.accept, self.observer);
            let again = judge.judge(image, expectation, before);
            return again.with_autoclear_of(&self.base.image);
        }
        let expected = expectation.of_file(disk);
        let expected = expected.expect("what was judged is in the history");
        let again = tools
            .judge(None, self.accept, self.observer)
            .judge(image, &expected, before);
        Judgement {
            verdict: in_file(again.verdict, disk),
            ..again
        }
    }

    /// Lets work go on with the recovered image.
    pub fn serve(&self, judged: &Judged, expectation: &Expectation<'_>) -> Service {
        let tools = self.tools(Disk::Image, &judged.disks);
        let judge = tools.judge(self.base(expectation), self.accept, self.observer);
        if self.destroying.is_none() {
            return judge.judge_service(judged.recovered(), expectation);
        }
        let service = match self.destroyed(&judged.disks, expectation.cut()) {
            None => judge.judge_service(judged.recovered(), expectation),
            Some(destroyed) => {
                let damage = damage(&destroyed, Disk::Image);
                judge.serve_damaged(judged.recovered(), expectation, &damage)
            }
        };
        // What such a disk destroys in the middle of that work is not judged.
        Service {
            ledger: None,
            ..service
        }
    }

    /// Judges what a power loss left in that work, on the disks that it wrote to.
    pub fn judge_in_service(
        &self,
        judged: &Judged,
        left: Disks<PageImage>,
        expectation: &Expectation<'_>,
    ) -> Judgement {
        let mut disks = judged.disks.clone();
        for (disk, content) in left.iter() {
            disks.put(disk, content.clone());
        }
        let tools = self.tools(Disk::Image, &disks);
        let judge = tools.judge(self.base(expectation), self.accept, self.observer);
        judge.judge_in_service(judged.recovered(), left.into_image(), expectation)
    }
}

/// How a workload ended.
#[derive(Clone, Copy, Debug)]
enum Ending<'a> {
    PowerLoss,
    Closed,
    /// By a power loss that destroyed this.
    Damaged(&'a Disks<Destroyed>),
}

/// What concerns the image of one disk.
fn damage(destroyed: &Disks<Destroyed>, disk: Disk) -> Damage {
    let of = |disk| destroyed.get(disk).cloned().unwrap_or_default();
    let is_beneath = |other: Disk| other != disk && other != Disk::Image && other != Disk::Data;
    let mut beneath = destroyed.iter().filter(|(other, _)| is_beneath(*other));
    Damage {
        image: of(disk),
        data: of(Disk::Data),
        beneath: beneath.any(|(_, destroyed)| !destroyed.is_none()),
    }
}

/// The same complaint, about a file beneath the image.
fn in_file(verdict: Verdict, disk: Disk) -> Verdict {
    match verdict {
        Verdict::Violated(mut violation) => {
            let site = &violation.class.site;
            violation.class.site = if site.is_empty() {
                disk.name().into()
            } else {
                format!("{}/{site}", disk.name())
            };
            let line = format!("in the file `{}`, beneath the image:", disk.name());
            violation.lines.insert(0, line);
            Verdict::Violated(violation)
        }
        Verdict::Survived | Verdict::NotMeasured(_) | Verdict::HarnessBroken(_) => verdict,
    }
}
