//! A disk that answers at once, records, and gives up on whoever asks too much of it.

use std::cell::Cell;
use std::rc::Rc;

use blkdebug::record::{Clock, Recording};
use blkdebug::volatile::{Answering, VolatileDisk};
use engine::device::{Completion, Device, Event, Limits, OpKind, PageImage, Port, Request};
use engine::probe::Probe;

use crate::guide::rare::Hits;

/// Answers so many requests, and no more: whoever waits for the next one waits for ever.
#[derive(Debug)]
pub(crate) struct Metered {
    disk: VolatileDisk,
    clock: Clock,
    left: Cell<u64>,
    hits: Rc<Hits>,
}

impl Metered {
    /// A disk with the content of `image`. What a subject may ask of it follows from its length.
    pub(crate) fn new(image: &PageImage) -> Rc<Self> {
        Self::on(Clock::default(), image, &Rc::default())
    }

    /// The same on a clock that other disks are on, counting rare situations there.
    pub(crate) fn on(clock: Clock, image: &PageImage, hits: &Rc<Hits>) -> Rc<Self> {
        const FIXED: u64 = 50_000;
        const PER_SECTOR: u64 = 4;
        let sectors = image.len() / 512;
        Rc::new(Self {
            disk: VolatileDisk::new(image.clone(), clock.clone(), Answering::AtOnce),
            clock,
            left: Cell::new(FIXED + sectors.saturating_mul(PER_SECTOR).min(FIXED * 20)),
            hits: Rc::clone(hits),
        })
    }

    pub(crate) fn port(self: &Rc<Self>) -> Port {
        Port::new(Rc::<Self>::clone(self))
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    pub(crate) fn current(&self) -> PageImage {
        self.disk.current()
    }

    /// Whether anybody has read of it.
    pub(crate) fn was_read(&self) -> bool {
        let recording = self.recording();
        let mut entries = recording.entries.iter();
        entries.any(|entry| entry.op.kind() == OpKind::Read)
    }

    /// What happened so far.
    pub(crate) fn recording(&self) -> Recording {
        self.disk.recording()
    }

    /// What happened, without a copy; nothing is asked of the disk after that.
    pub(crate) fn take_recording(&self) -> Recording {
        self.disk.take_recording()
    }
}

impl Device for Metered {
    fn submit(&self, request: Request) -> Completion {
        match self.left.get().checked_sub(1) {
            None => Completion::pending().0,
            Some(left) => {
                self.left.set(left);
                self.disk.submit(request)
            }
        }
    }

    fn reach(&self, event: Event) -> Completion {
        self.disk.reach(event)
    }

    fn note(&self, probe: Probe) {
        self.hits.count(probe);
    }

    fn len(&self) -> u64 {
        self.disk.len()
    }

    fn limits(&self) -> Limits {
        self.disk.limits()
    }
}
