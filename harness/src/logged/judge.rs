//! Judges one crash state of an imported log: the log's own history first, then all that is asked of any image.

use blkdebug::record::Tick;
use engine::device::PageImage;
use engine::qcow2::OpenOptions;

use super::versions::{Versions, Window};
use crate::guest::{Content, Expectation, Ledger, Level};
use crate::oracle::view::{Backing, GuestView};
use crate::oracle::{Judge, Judgement, Verdict, Witness};
use crate::sectors::merge;
use crate::subject::EngineSubject;
use crate::workload::ops::Moment;

/// Judges the crash states of one log.
#[derive(Debug)]
pub struct Bench<'a> {
    versions: &'a Versions<'a>,
    backing: Option<&'a Backing>,
    subject: EngineSubject,
    accept: Option<Level>,
    /// The version that is durable at the cut that was judged last.
    floor: Option<(usize, Witness)>,
}

/// What came of judging a state.
#[derive(Debug)]
pub struct Judged {
    /// The verdict.
    pub verdict: Verdict,
    /// The judgement of the image, if it came to that.
    pub judgement: Option<Judgement>,
    ledger: Option<Ledger>,
}

impl Judged {
    /// What the image must show from then on: what it shows now.
    pub fn expectation(&self) -> Option<Expectation<'_>> {
        self.ledger.as_ref().map(|ledger| ledger.expect(Moment(0)))
    }
}

impl<'a> Bench<'a> {
    /// That of these versions.
    pub fn new(
        versions: &'a Versions<'a>,
        backing: Option<&'a Backing>,
        accept: Option<Level>,
    ) -> Self {
        let subject = EngineSubject::new(OpenOptions::default(), backing.cloned());
        Self {
            versions,
            backing,
            subject,
            accept,
            floor: None,
        }
    }

    /// Judges what a power loss at `cut` left.
    pub fn judge(&mut self, image: PageImage, cut: Tick) -> Judged {
        let window = self.versions.window(cut);
        let found = Witness::new(image);
        let is_sound = found.report.finding_count == 0 && found.report.not_measured.is_none();
        if is_sound && let Some(violation) = self.versions.check(&found, window, self.accept) {
            return Judged {
                verdict: violation.into(),
                judgement: None,
                ledger: None,
            };
        }
        let ledger = self.ledger(&found, window);
        self.stand_at(window.floor);
        let base = self.floor.as_ref().map(|(_, witness)| witness);
        let judgement = self
            .judge_of(base)
            .judge(found.image, &ledger.expect(Moment(0)), None);
        Judged {
            verdict: judgement.verdict.clone(),
            judgement: Some(judgement),
            ledger: Some(ledger),
        }
    }

    /// Judges a version itself, and reads all of its disk.
    pub fn judge_version(&mut self, version: usize) -> Judged {
        let found = self.versions.witness(version);
        let content = whole_disk(&found, self.backing);
        let ledger = start_with(&found, content, self.backing);
        let judgement = self
            .judge_of(None)
            .judge(found.image, &ledger.expect(Moment(0)), None);
        Judged {
            verdict: judgement.verdict.clone(),
            judgement: Some(judgement),
            ledger: Some(ledger),
        }
    }

    /// Judges what a second power loss left, inside a repair of what `judged` is about.
    pub fn judge_repair(&self, judged: &Judged, image: PageImage) -> Option<Judgement> {
        let before = judged.judgement.as_ref()?;
        let expectation = judged.expectation()?;
        let base = self.floor.as_ref().map(|(_, witness)| witness);
        Some(
            self.judge_of(base)
                .judge(image, &expectation, Some(&before.state)),
        )
    }

    /// Lets work go on with what was recovered.
    pub fn serve(&self, judged: &Judged) -> Option<Verdict> {
        let judgement = judged.judgement.as_ref()?;
        let recovered = judgement.recovered.as_ref().unwrap_or(&judgement.state);
        let expectation = judged.expectation()?;
        let base = self.floor.as_ref().map(|(_, witness)| witness);
        Some(
            self.judge_of(base)
                .judge_service(recovered, &expectation)
                .verdict,
        )
    }

    /// The history that begins with what an image shows. Only what is not as at the floor is looked at, unless there are
    /// snapshots: with these, what the disk shows is judged everywhere.
    fn ledger(&self, found: &Witness, window: Window) -> Ledger {
        if !found.report.snapshots.is_empty() {
            return start_with(found, whole_disk(found, self.backing), self.backing);
        }
        let clusters = self.versions.changed_clusters(found, window.floor);
        let view = GuestView::new(&found.image, &found.report, self.backing);
        let content = view.map_or_else(Content::zeroes, |view| view.content(clusters));
        start_with(found, content, self.backing)
    }

    fn stand_at(&mut self, floor: usize) {
        if self.floor.as_ref().is_none_or(|(known, _)| *known != floor) {
            self.floor = Some((floor, self.versions.witness(floor)));
        }
    }

    fn judge_of<'b>(&'b self, base: Option<&'b Witness>) -> Judge<'b> {
        Judge {
            subject: &self.subject,
            backing: self.backing,
            data: None,
            base,
            accept: None,
            observer: &(),
        }
    }
}

/// A history without operations that begins with this image, of which the disk shows `content`.
fn start_with(found: &Witness, content: Content, backing: Option<&Backing>) -> Ledger {
    let sound = found.report.finding_count == 0;
    let past = if sound {
        found.past(backing)
    } else {
        Vec::new()
    };
    let bytes = found.report.layout.map_or(0, |layout| layout.virtual_bytes);
    let ledger = Ledger::from_start(content, Content::zeroes(), bytes, past, &[]);
    ledger.with_bitmaps(&found.report.bitmaps)
}

/// All that the guest's disk shows.
fn whole_disk(found: &Witness, backing: Option<&Backing>) -> Content {
    let view = GuestView::new(&found.image, &found.report, backing);
    view.map_or_else(Content::zeroes, |view| {
        let sectors = view.virtual_bytes() / 512;
        // What lies beneath may show anywhere.
        let everywhere = backing.map(|_| 0..sectors);
        let ranges: Vec<_> = view.mapped_sectors().chain(everywhere).collect();
        view.content(merge(ranges, sectors))
    })
}
