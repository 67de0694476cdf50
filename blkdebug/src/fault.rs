//! What may happen to a request instead of what was asked.
//!
//! An *honest* fault says so: who asked is told of the failure, or is told nothing more. A *silent* one is acknowledged
//! as if all were well. What a device is told to do to a request it does to that request alone: a read that yields
//! other bytes leaves the medium as it is, so that the truth stays known and a fault that is gone is gone.

use engine::device::{Cause, Op, OpKind, Request, SECTOR_BYTES};

use crate::mask::{SectorMask, Shape};
use crate::record::Effect;
use crate::rule::Chance;

/// What happens to a request instead of what was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It fails with this cause, and nothing of it happens.
    Fail(Cause),
    /// It fails with this cause, and happens all the same, wholly or in part.
    Persist(Cause, Option<Tear>),
    /// A flush fails with this cause, and everything that was not durable is gone: no read shows it, and no later
    /// flush makes it durable. That is what operating systems do that take pages for clean once they could not be written.
    Forget(Cause),
    /// The same, but only those of the writes are gone that chance hits, numbered as the device recorded them. The others stay
    /// in its cache, as volatile as they were.
    ForgetSome(Cause, Chance),
    /// A write fails for want of space once so many bytes were written; what fits of it happens.
    Full(u64),
    /// A write, or a length, that reaches beyond so many bytes fails for want of space; what fits of a write happens.
    EndAt(u64),
    /// The power goes out.
    PowerCut(When),
    /// It is acknowledged, and nothing of it ever happens.
    Drop,
    /// It is acknowledged, and only some of its sectors ever happen.
    Tear(Tear),
    /// It is acknowledged, and happens so many sectors further on, or before.
    Misdirect(i64),
    /// It happens, and once more after so many further requests were answered.
    Duplicate(u64),
    /// One bit of what is read or written is another: that one, counted from the first of the request, modulo its length.
    Flip(u64),
    /// Of a read only so many sectors are read; the rest of the answer is zeroes.
    ///
    /// That is what a short read of a file becomes in the drivers that an image is read through: they take it for the end
    /// of the file, behind which everything is zero. One that is reported is [`Self::Fail`].
    Shorten(u64),
}

/// Which sectors of a torn request happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tear {
    /// Those of a shape.
    Shape(Shape),
    /// Exactly these, counted from the request's first; none beyond the mask's end.
    Exact(SectorMask),
}

/// When the power goes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum When {
    /// Before the request reaches the device.
    Before,
    /// While it is in flight: any part of it may happen.
    During,
    /// Once it was carried out, before anybody is told.
    After,
}

/// What a device does with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ruling {
    /// What is answered.
    pub(crate) answer: Result<(), Cause>,
    /// What of it happens.
    pub(crate) effect: Effect,
    /// What else happens.
    pub(crate) twist: Twist,
}

/// What else happens with a request than an answer and an effect can tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Twist {
    /// Nothing.
    #[default]
    None,
    /// What was not durable is gone when it is answered, or what of it chance hits.
    Forget(Option<Chance>),
    /// It happens once more after so many answers.
    Again(u64),
    /// The power goes out.
    PowerCut(When),
    /// A bit of what was read is another.
    Flip(u64),
    /// Behind so many sectors the answer is zeroes.
    Shorten(u64),
}

impl When {
    /// Each of them.
    pub const ALL: [Self; 3] = [Self::Before, Self::During, Self::After];

    /// The name used in rules and traces.
    pub fn name(self) -> &'static str {
        match self {
            Self::Before => "before",
            Self::During => "during",
            Self::After => "after",
        }
    }

    /// That of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|when| when.name() == name)
    }
}

impl Ruling {
    /// All is well.
    pub(crate) fn whole() -> Self {
        Self {
            answer: Ok(()),
            effect: Effect::Whole,
            twist: Twist::None,
        }
    }

    fn failing(cause: Cause, effect: Effect) -> Self {
        Self {
            answer: Err(cause),
            effect,
            twist: Twist::None,
        }
    }

    fn twisted(twist: Twist) -> Self {
        Self {
            twist,
            ..Self::whole()
        }
    }

    fn with_effect(effect: Effect) -> Self {
        Self {
            effect,
            ..Self::whole()
        }
    }
}

impl Fault {
    /// The name used in reports; one for each kind of fault, whatever its numbers.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Fail(_) => "fail",
            Self::Persist(_, None) => "fail-then-persist",
            Self::Persist(_, Some(_)) => "fail-then-tear",
            Self::Forget(_) => "fail-flush-and-drop",
            Self::ForgetSome(..) => "fail-flush-and-drop-some",
            Self::Full(_) => "full",
            Self::EndAt(_) => "end-at",
            Self::PowerCut(When::Before) => "power-cut-before",
            Self::PowerCut(When::During) => "power-cut-during",
            Self::PowerCut(When::After) => "power-cut-after",
            Self::Drop => "drop",
            Self::Tear(_) => "tear",
            Self::Misdirect(_) => "misdirect",
            Self::Duplicate(_) => "duplicate",
            Self::Flip(_) => "flip",
            Self::Shorten(_) => "short-read",
        }
    }

    /// Whether who asked is told the truth, or nothing at all: a device that has only such faults keeps what it
    /// acknowledged.
    pub fn is_honest(&self) -> bool {
        match self {
            Self::Fail(_)
            | Self::Persist(..)
            | Self::Forget(_)
            | Self::ForgetSome(..)
            | Self::Full(_)
            | Self::EndAt(_)
            | Self::PowerCut(_)
            // Twice in a row is as good as once.
            | Self::Duplicate(0) => true,
            Self::Drop
            | Self::Tear(_)
            | Self::Misdirect(_)
            | Self::Duplicate(_)
            | Self::Flip(_)
            | Self::Shorten(_) => false,
        }
    }

    /// What whoever makes the request is told that it failed with, or `None` where nothing is told.
    pub fn cause(&self) -> Option<Cause> {
        match self {
            Self::Fail(cause)
            | Self::Persist(cause, _)
            | Self::Forget(cause)
            | Self::ForgetSome(cause, _) => Some(*cause),
            Self::Full(_) | Self::EndAt(_) => Some(Cause::NO_SPACE),
            Self::PowerCut(_)
            | Self::Drop
            | Self::Tear(_)
            | Self::Misdirect(_)
            | Self::Duplicate(_)
            | Self::Flip(_)
            | Self::Shorten(_) => None,
        }
    }

    /// Whether a device loses with it what it had acknowledged and not made durable.
    pub fn forgets(&self) -> bool {
        match self {
            Self::Forget(_) | Self::ForgetSome(..) => true,
            Self::Fail(_)
            | Self::Persist(..)
            | Self::Full(_)
            | Self::EndAt(_)
            | Self::PowerCut(_)
            | Self::Drop
            | Self::Tear(_)
            | Self::Misdirect(_)
            | Self::Duplicate(_)
            | Self::Flip(_)
            | Self::Shorten(_) => false,
        }
    }

    /// Whether it can be done to a request: a read cannot be acknowledged without its data, only what has sectors can be
    /// torn, and so on.
    pub(crate) fn applies_to(&self, request: &Request) -> bool {
        let kind = request.op.kind();
        let has_sectors = matches!(kind, OpKind::Write | OpKind::WriteZeroes | OpKind::Discard);
        let (offset, len_bytes) = request.op.range();
        match self {
            Self::Fail(_) | Self::PowerCut(_) => true,
            Self::Persist(_, part) => has_sectors || kind == OpKind::SetLen && part.is_none(),
            Self::Forget(_) | Self::ForgetSome(..) => kind == OpKind::Flush,
            Self::Full(_) => matches!(kind, OpKind::Write | OpKind::WriteZeroes),
            Self::EndAt(end) => {
                let grows = matches!(kind, OpKind::Write | OpKind::WriteZeroes | OpKind::SetLen);
                grows && offset.saturating_add(len_bytes) > *end
            }
            Self::Drop => kind != OpKind::Read,
            Self::Tear(_) | Self::Duplicate(_) => has_sectors,
            Self::Misdirect(by) => {
                let there = shifted(offset, *by);
                (has_sectors || kind == OpKind::Read)
                    && there.is_some_and(|there| {
                        there.saturating_add(len_bytes) <= engine::device::PageImage::MAX_LEN
                    })
            }
            Self::Flip(_) => matches!(kind, OpKind::Read | OpKind::Write) && len_bytes > 0,
            Self::Shorten(sectors) => {
                kind == OpKind::Read && len_bytes > sectors.saturating_mul(SECTOR_BYTES)
            }
        }
    }

    /// What a device does with a request that this applies to. `spent` is how many bytes went through before, where space
    /// runs out; the request becomes what is carried out of it.
    pub(crate) fn rule(&self, request: &mut Request, spent: u64) -> Ruling {
        match self {
            Self::Fail(cause) => Ruling::failing(*cause, Effect::Dropped),
            Self::Persist(cause, part) => {
                let part = part.as_ref();
                let effect = part.map_or(Effect::Whole, |tear| Effect::Torn(tear.mask(request)));
                Ruling::failing(*cause, effect)
            }
            Self::Forget(cause) => Ruling {
                twist: Twist::Forget(None),
                ..Ruling::failing(*cause, Effect::Dropped)
            },
            Self::ForgetSome(cause, chance) => Ruling {
                twist: Twist::Forget(Some(*chance)),
                ..Ruling::failing(*cause, Effect::Dropped)
            },
            Self::Full(budget) => no_space(request, budget.saturating_sub(spent)),
            Self::EndAt(end) => {
                let room = end.saturating_sub(request.op.range().0);
                no_space(request, room)
            }
            Self::PowerCut(when) => Ruling::twisted(Twist::PowerCut(*when)),
            Self::Drop => Ruling::with_effect(Effect::Dropped),
            Self::Tear(tear) => Ruling::with_effect(Effect::Torn(tear.mask(request))),
            Self::Misdirect(by) => {
                move_by(&mut request.op, *by);
                Ruling::whole()
            }
            Self::Duplicate(after) => Ruling::twisted(Twist::Again(*after)),
            Self::Flip(bit) => match &mut request.op {
                Op::Write { data, .. } => {
                    flip(data, *bit);
                    Ruling::whole()
                }
                Op::Read { .. }
                | Op::WriteZeroes { .. }
                | Op::Discard { .. }
                | Op::Flush
                | Op::SetLen { .. } => Ruling::twisted(Twist::Flip(*bit)),
            },
            Self::Shorten(sectors) => Ruling::twisted(Twist::Shorten(*sectors)),
        }
    }
}

impl Tear {
    fn mask(&self, request: &Request) -> SectorMask {
        let count = sector_count(request);
        match self {
            Self::Shape(shape) => SectorMask::of_shape(*shape, count),
            Self::Exact(mask) => SectorMask::from_words(mask.words(), count),
        }
    }
}

/// Another bit, counted from the lowest of the first byte, modulo the length of what holds some.
pub(crate) fn flip(data: &mut [u8], bit: u64) {
    let count = u64::try_from(data.len()).expect("a buffer's length fits 64 bits") * 8;
    let bit = bit.checked_rem(count).unwrap_or(0);
    let byte = usize::try_from(bit / 8).expect("it is within the buffer");
    if let Some(byte) = data.get_mut(byte) {
        *byte ^= 1 << (bit % 8);
    }
}

/// Fails for want of space where only so many bytes fit, which happen.
fn no_space(request: &Request, fits_bytes: u64) -> Ruling {
    let fits = usize::try_from(fits_bytes / SECTOR_BYTES).unwrap_or(usize::MAX);
    let effect = match request.op.kind() {
        OpKind::Write | OpKind::WriteZeroes if fits > 0 => {
            let count = sector_count(request);
            Effect::Torn(SectorMask::from_fn(count, |sector| sector < fits))
        }
        OpKind::Write
        | OpKind::WriteZeroes
        | OpKind::Read
        | OpKind::Discard
        | OpKind::Flush
        | OpKind::SetLen => Effect::Dropped,
    };
    Ruling::failing(Cause::NO_SPACE, effect)
}

fn sector_count(request: &Request) -> usize {
    let sectors = request.op.range().1 / SECTOR_BYTES;
    usize::try_from(sectors).expect("a request's sectors can be counted")
}

fn shifted(offset: u64, by: i64) -> Option<u64> {
    let bytes = i64::try_from(SECTOR_BYTES).ok()?.checked_mul(by)?;
    offset.checked_add_signed(bytes)
}

fn move_by(op: &mut Op, by: i64) {
    match op {
        Op::Read { offset, .. }
        | Op::Write { offset, .. }
        | Op::WriteZeroes { offset, .. }
        | Op::Discard { offset, .. } => {
            *offset = shifted(*offset, by).expect("it applies to what can be moved so far");
        }
        Op::Flush | Op::SetLen { .. } => {}
    }
}

#[cfg(test)]
mod tests {
    use engine::device::Event;

    use super::*;

    fn write(sector: u64, count: usize) -> Request {
        Request {
            event: Event::None,
            op: Op::Write {
                offset: sector * 512,
                data: vec![0; count * 512],
                fua: false,
            },
        }
    }

    #[test]
    fn what_fits_of_a_write_happens_where_space_runs_out() {
        let first_two = Effect::Torn(SectorMask::from_fn(4, |sector| sector < 2));
        let full = Fault::Full(2048).rule(&mut write(0, 4), 1024);
        assert_eq!(
            (full.answer, full.effect),
            (Err(Cause::NO_SPACE), first_two.clone())
        );
        let end = Fault::EndAt(8 * 512);
        assert!(!end.applies_to(&write(4, 4)));
        assert!(end.applies_to(&write(6, 4)));
        assert_eq!(end.rule(&mut write(6, 4), 0).effect, first_two);
        assert_eq!(end.rule(&mut write(8, 4), 0).effect, Effect::Dropped);
    }

    #[test]
    fn nothing_is_moved_before_the_first_sector() {
        let fault = Fault::Misdirect(-3);
        assert!(!fault.applies_to(&write(2, 1)));
        let mut request = write(3, 1);
        assert!(fault.applies_to(&request));
        fault.rule(&mut request, 0);
        assert_eq!(request.op.range().0, 0);
    }

    #[test]
    fn one_bit_is_flipped_wherever_the_request_ends() {
        let mut data = [0; 512];
        flip(&mut data, 4096 + 9);
        assert_eq!(data[1], 2);
        assert_eq!(data.iter().filter(|byte| **byte != 0).count(), 1);
        flip(&mut [], 5);
    }
}
