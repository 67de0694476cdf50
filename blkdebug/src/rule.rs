//! Which requests go wrong, and how.
//!
//! A rule selects requests by event, kind, sector and state, and says what happens to them instead.
//! The state is QEMU's: it starts at 1, and a transition on an event changes it after the rules of
//! that event were evaluated. A rule hits the requests that carry its event; QEMU's wider form, where
//! an event arms a rule for whatever request follows, is that of [`crate::filter`].

use engine::device::{Cause, Event, OpKind, Request, SECTOR_BYTES};

use crate::mask::{SectorMask, Shape};
use crate::record::Effect;

/// A state of the rules; transitions lead from one to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct State(pub u32);

impl Default for State {
    /// The state that rules start in.
    fn default() -> Self {
        Self(1)
    }
}

/// What happens to a request instead of what was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It fails with this cause, and nothing of it happens.
    Fail(Cause),
    /// It is acknowledged, and nothing of it ever happens.
    Drop,
    /// It is acknowledged, and only some of its sectors ever happen.
    Tear(Tear),
}

/// Which sectors of a torn request happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tear {
    /// Those of a shape.
    Shape(Shape),
    /// Exactly these, counted from the request's first; none beyond the mask's end.
    Exact(SectorMask),
}

/// How often a rule hits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Repeat {
    /// The first time only; then the rule is gone.
    #[default]
    Once,
    /// Each time.
    Always,
}

/// Selects requests and says what happens to them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The event that the request carries, or any.
    pub event: Option<Event>,
    /// Its kind, or any.
    pub kind: Option<OpKind>,
    /// A sector that it must contain, or any; a flush contains none.
    pub sector: Option<u64>,
    /// The state that the rules must be in, or any.
    pub state: Option<State>,
    /// How many requests that match are let pass before the first hit.
    pub skip: u64,
    /// How often it hits.
    pub repeat: Repeat,
    /// What happens.
    pub fault: Fault,
}

/// A change of state on an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transition {
    /// The event.
    pub event: Event,
    /// The state that the rules must be in, or any.
    pub from: Option<State>,
    /// The state afterwards.
    pub to: State,
}

/// The rules of a device, and the state they are in.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    armed: Vec<Rule>,
    transitions: Vec<Transition>,
    state: State,
    hits: u64,
}

/// What the rules decide about a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ruling {
    pub(crate) answer: Result<(), Cause>,
    pub(crate) effect: Effect,
}

impl Rule {
    /// A rule that hits the first request of any kind, anywhere, and does this to it.
    pub fn new(fault: Fault) -> Self {
        Self {
            event: None,
            kind: None,
            sector: None,
            state: None,
            skip: 0,
            repeat: Repeat::Once,
            fault,
        }
    }

    fn matches(&self, request: &Request, state: State) -> bool {
        self.event.is_none_or(|event| event == request.event)
            && self.kind.is_none_or(|kind| kind == request.op.kind())
            && self.state.is_none_or(|wanted| wanted == state)
            && self.sector.is_none_or(|sector| touches(request, sector))
            && self.fault.applies_to(request.op.kind())
    }
}

impl Fault {
    /// A read cannot be acknowledged without its data, and only what has sectors can be torn.
    fn applies_to(&self, kind: OpKind) -> bool {
        match self {
            Self::Fail(_) => true,
            Self::Drop => kind != OpKind::Read,
            Self::Tear(_) => match kind {
                OpKind::Write | OpKind::WriteZeroes | OpKind::Discard => true,
                OpKind::Read | OpKind::Flush | OpKind::SetLen => false,
            },
        }
    }

    fn ruling(&self, request: &Request) -> Ruling {
        match self {
            Self::Fail(cause) => Ruling {
                answer: Err(*cause),
                effect: Effect::Dropped,
            },
            Self::Drop => Ruling {
                answer: Ok(()),
                effect: Effect::Dropped,
            },
            Self::Tear(tear) => Ruling {
                answer: Ok(()),
                effect: Effect::Torn(tear.mask(request)),
            },
        }
    }
}

impl Tear {
    fn mask(&self, request: &Request) -> SectorMask {
        let sectors = request.op.range().1 / SECTOR_BYTES;
        let count = usize::try_from(sectors).expect("a request's sectors can be counted");
        match self {
            Self::Shape(shape) => SectorMask::of_shape(*shape, count),
            Self::Exact(mask) => SectorMask::from_words(mask.words(), count),
        }
    }
}

impl Rules {
    /// These rules, tried in order, and these transitions.
    pub fn new(rules: Vec<Rule>, transitions: Vec<Transition>) -> Self {
        Self {
            armed: rules,
            transitions,
            ..Self::default()
        }
    }

    /// The state that the rules are in.
    pub fn state(&self) -> State {
        self.state
    }

    /// How many requests were hit.
    pub fn hits(&self) -> u64 {
        self.hits
    }

    /// Makes the transitions of `event`: the state moves once, by what it was before.
    pub(crate) fn announce(&mut self, event: Event) {
        let before = self.state;
        for transition in &self.transitions {
            if transition.event == event && transition.from.is_none_or(|from| from == before) {
                self.state = transition.to;
            }
        }
    }

    /// Decides about a request whose range is known to be sane, by the first rule that hits it.
    pub(crate) fn rule_on(&mut self, request: &Request) -> Ruling {
        let whole = Ruling {
            answer: Ok(()),
            effect: Effect::Whole,
        };
        let state = self.state;
        let hit = self.armed.iter_mut().position(|rule| {
            if !rule.matches(request, state) {
                return false;
            }
            let due = rule.skip == 0;
            rule.skip = rule.skip.saturating_sub(1);
            due
        });
        let Some(index) = hit else {
            return whole;
        };
        self.hits += 1;
        let ruling = self.armed[index].fault.ruling(request);
        if self.armed[index].repeat == Repeat::Once {
            self.armed.remove(index);
        }
        ruling
    }
}

fn touches(request: &Request, sector: u64) -> bool {
    let (offset, len_bytes) = request.op.range();
    let start = sector.saturating_mul(SECTOR_BYTES);
    start < offset.saturating_add(len_bytes) && offset < start.saturating_add(SECTOR_BYTES)
}

#[cfg(test)]
mod tests {
    use engine::device::Op;

    use super::*;

    fn write(event: Event, sector: u64, count: usize) -> Request {
        Request {
            event,
            op: Op::Write {
                offset: sector * 512,
                data: vec![1; count * 512],
                fua: false,
            },
        }
    }

    fn flush() -> Request {
        Request {
            event: Event::FlushToDisk,
            op: Op::Flush,
        }
    }

    fn fails(rules: &mut Rules, request: &Request) -> bool {
        rules.rule_on(request).answer.is_err()
    }

    #[test]
    fn a_rule_selects_by_event_kind_and_sector() {
        let mut rules = Rules::new(
            vec![Rule {
                event: Some(Event::L2Update),
                kind: Some(OpKind::Write),
                sector: Some(5),
                repeat: Repeat::Always,
                ..Rule::new(Fault::Fail(Cause::IO))
            }],
            vec![],
        );
        assert!(fails(&mut rules, &write(Event::L2Update, 4, 2)));
        assert!(!fails(&mut rules, &write(Event::L2Update, 6, 2)));
        assert!(!fails(&mut rules, &write(Event::L1Update, 4, 2)));
        assert!(!fails(&mut rules, &flush()));
        assert_eq!(rules.hits(), 1);
    }

    #[test]
    fn a_flush_contains_no_sector() {
        let mut rules = Rules::new(
            vec![Rule {
                sector: Some(0),
                ..Rule::new(Fault::Fail(Cause::IO))
            }],
            vec![],
        );
        assert!(!fails(&mut rules, &flush()));
        assert!(fails(&mut rules, &write(Event::None, 0, 1)));
    }

    #[test]
    fn once_is_once_and_the_nth_is_the_nth() {
        let mut rules = Rules::new(
            vec![Rule {
                skip: 2,
                ..Rule::new(Fault::Fail(Cause::NO_SPACE))
            }],
            vec![],
        );
        let outcomes: Vec<bool> = (0..5).map(|_| fails(&mut rules, &flush())).collect();
        assert_eq!(outcomes, [false, false, true, false, false]);
    }

    #[test]
    fn a_rule_waits_for_its_state() {
        let mut rules = Rules::new(
            vec![Rule {
                state: Some(State(2)),
                ..Rule::new(Fault::Fail(Cause::IO))
            }],
            vec![
                Transition {
                    event: Event::L1Update,
                    from: None,
                    to: State(2),
                },
                Transition {
                    event: Event::L1Update,
                    from: Some(State(2)),
                    to: State(3),
                },
            ],
        );
        assert!(!fails(&mut rules, &flush()));
        rules.announce(Event::L1Update);
        assert_eq!(
            rules.state(),
            State(2),
            "one event makes one step, not a chain"
        );
        assert!(fails(&mut rules, &flush()));
        rules.announce(Event::L1Update);
        assert_eq!(rules.state(), State(3));
    }

    #[test]
    fn tearing_needs_sectors_and_dropping_needs_no_answer() {
        let read = Request {
            event: Event::None,
            op: Op::Read {
                offset: 0,
                len_bytes: 512,
            },
        };
        let mut tearing = Rules::new(
            vec![Rule::new(Fault::Tear(Tear::Shape(Shape::OnlyFirst)))],
            vec![],
        );
        assert_eq!(tearing.rule_on(&flush()).effect, Effect::Whole);
        assert_eq!(
            tearing.rule_on(&write(Event::None, 0, 3)).effect,
            Effect::Torn(SectorMask::from_fn(3, |sector| sector == 0))
        );
        let mut dropping = Rules::new(vec![Rule::new(Fault::Drop)], vec![]);
        assert_eq!(dropping.rule_on(&read).effect, Effect::Whole);
        assert_eq!(dropping.rule_on(&flush()).effect, Effect::Dropped);
    }
}
