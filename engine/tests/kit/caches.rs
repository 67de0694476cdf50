//! Simulated disks with a cache each, which lose power together after a number of requests.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use engine::device::{Cause, Completion, Device, DeviceError, Op, PageImage, RamDevice, Request};

/// Small draws that follow from a seed.
pub(crate) struct Draw(u64);

impl Draw {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }
}

/// How many more requests that change something are carried out before the power goes.
pub(crate) type Power = Rc<Cell<u64>>;

/// A disk whose cache keeps everything until a flush.
pub(crate) struct CachedDisk {
    shown: RamDevice,
    durable: RefCell<PageImage>,
    /// What was asked for since the last flush.
    volatile: RefCell<Vec<Op>>,
    power: Power,
}

/// How much of what was not flushed survives.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mood {
    Nothing,
    Everything,
    Half,
    Most,
}

impl Mood {
    fn keeps(self, draw: &mut Draw) -> bool {
        match self {
            Self::Nothing => false,
            Self::Everything => true,
            Self::Half => draw.below(2) == 0,
            Self::Most => draw.below(8) > 0,
        }
    }
}

impl CachedDisk {
    pub(crate) fn new(image: PageImage, power: &Power) -> Rc<Self> {
        Rc::new(Self {
            shown: RamDevice::new(image.clone()),
            durable: RefCell::new(image),
            volatile: RefCell::default(),
            power: Rc::clone(power),
        })
    }

    /// What is left after the power went: any subset of the sectors that were not flushed, each extension
    /// or not, and garbage where an unmapping was not flushed.
    pub(crate) fn after_loss(&self, draw: &mut Draw) -> PageImage {
        let mut left = self.durable.borrow().clone();
        let moods = [Mood::Nothing, Mood::Everything, Mood::Half, Mood::Most];
        let mood = moods[usize::try_from(draw.below(4)).unwrap()];
        for op in &*self.volatile.borrow() {
            match op {
                Op::Write { offset, data, fua } => {
                    for (sector, bytes) in (offset / 512..).zip(data.chunks(512)) {
                        if *fua || mood.keeps(draw) {
                            left.write(sector * 512, bytes);
                        }
                    }
                }
                Op::WriteZeroes {
                    offset,
                    len_bytes,
                    unmap,
                } => {
                    let bytes = if *unmap { [0xee; 512] } else { [0; 512] };
                    scatter(&mut left, (*offset, *len_bytes), &bytes, mood, draw);
                }
                Op::Discard { offset, len_bytes } => {
                    let within = left.len().saturating_sub(*offset).min(*len_bytes);
                    scatter(&mut left, (*offset, within), &[0xee; 512], mood, draw);
                }
                Op::SetLen { len_bytes } if mood.keeps(draw) => left.set_len(*len_bytes),
                Op::SetLen { .. } | Op::Read { .. } | Op::Flush => {}
            }
        }
        left
    }
}

fn scatter(
    left: &mut PageImage,
    (offset, len_bytes): (u64, u64),
    bytes: &[u8; 512],
    mood: Mood,
    draw: &mut Draw,
) {
    for sector in offset / 512..(offset + len_bytes) / 512 {
        if mood.keeps(draw) {
            left.write(sector * 512, bytes);
        }
    }
}

impl Device for CachedDisk {
    fn submit(&self, request: Request) -> Completion {
        if matches!(request.op, Op::Read { .. }) {
            return self.shown.submit(request);
        }
        if self.power.get() == 0 {
            let error = DeviceError::new(request.event, &request.op, Cause::PowerOff);
            return Completion::ready(Err(error));
        }
        self.power.set(self.power.get() - 1);
        let op = request.op.clone();
        let completion = self.shown.submit(request);
        if op == Op::Flush {
            self.durable.replace(self.shown.snapshot());
            self.volatile.borrow_mut().clear();
        } else {
            self.volatile.borrow_mut().push(op);
        }
        completion
    }

    fn len(&self) -> u64 {
        self.shown.len()
    }
}
