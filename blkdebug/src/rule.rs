//! Which requests go wrong.
//!
//! A rule selects requests by event, kind, class, sector and state, by the operation of the guest on whose behalf they
//! are made, by how many came before, and by chance; and says what happens to them instead ([`Fault`]).
//! The state starts at 1, as QEMU's does, and a transition on an event changes it before the request that carries the event
//! is looked at. A rule hits the requests that carry its event. With [`Rule::after`] it hits those that
//! follow an event on behalf of the same operation: some events are raised where no request is due.
//! QEMU's own form, where an event arms its rules anew and replaces what was armed, is that of [`crate::filter`].

use engine::device::{Event, OpKind, Request, SECTOR_BYTES};

use crate::class::Class;
use crate::disks::Disk;
use crate::fault::Ruling;
pub use crate::fault::{Fault, Tear, When};
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
    /// The device that the requests are made of.
    pub disk: Disk,
    /// The event that the request carries, or any.
    pub event: Option<Event>,
    /// The event that must have been reached before, on behalf of the same operation of the guest, or none.
    pub after: Option<Event>,
    /// Its kind, or any.
    pub kind: Option<OpKind>,
    /// What its event says of the bytes, or anything.
    pub class: Option<Class>,
    /// A sector that it must contain, or any; a flush contains none.
    pub sector: Option<u64>,
    /// The state that the rules must be in, or any.
    pub state: Option<State>,
    /// The operations of the guest on whose behalf it must be made.
    pub during: During,
    /// How many requests that match are let pass before the first hit.
    pub skip: u64,
    /// Of those that match and are not skipped, which are hit; all of them where there is no chance in it.
    pub chance: Option<Chance>,
    /// How often it hits.
    pub repeat: Repeat,
    /// What happens.
    pub fault: Fault,
}

/// A range of operations of the guest, by number from 0. What is done on behalf of none, such as the first opening,
/// comes before all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct During {
    /// The first, or none where it begins before all of them.
    pub from: Option<u64>,
    /// The first that is no longer in the range, or none where it does not end.
    pub until: Option<u64>,
}

/// A coin that falls the same way every time: whether request number so many is hit is a function of that number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Chance {
    /// One request of so many is hit; 0 counts as 1.
    pub one_in: u64,
    /// Which of them.
    pub seed: u64,
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
    armed: Vec<Armed>,
    transitions: Vec<Transition>,
    state: State,
    hits: u64,
}

/// A rule, and what it has seen.
#[derive(Clone, Debug)]
struct Armed {
    rule: Rule,
    /// On behalf of which operations the event was reached that it waits for.
    reached: Vec<Option<u64>>,
    /// How many requests matched.
    matched: u64,
    /// How many bytes were written, where space runs out.
    spent: u64,
}

/// A request that a rule hit.
pub(crate) struct Hit {
    pub(crate) after: Option<Event>,
    pub(crate) fault: Fault,
    pub(crate) ruling: Ruling,
}

impl Rule {
    /// A rule that hits the first request of any kind, anywhere, and does this to it.
    pub fn new(fault: Fault) -> Self {
        Self {
            disk: Disk::Image,
            event: None,
            after: None,
            kind: None,
            class: None,
            sector: None,
            state: None,
            during: During::default(),
            skip: 0,
            chance: None,
            repeat: Repeat::Once,
            fault,
        }
    }

    fn matches(&self, request: &Request, state: State, operation: Option<u64>) -> bool {
        let kind = request.op.kind();
        let class = || Class::of_request(request.event, kind);
        self.event.is_none_or(|event| event == request.event)
            && self.kind.is_none_or(|wanted| wanted == kind)
            && self.class.is_none_or(|wanted| wanted == class())
            && self.state.is_none_or(|wanted| wanted == state)
            && self.sector.is_none_or(|sector| touches(request, sector))
            && self.during.contains(operation)
            && self.fault.applies_to(request)
    }
}

impl During {
    /// Whether it contains an operation, or what is done on behalf of none.
    pub fn contains(self, operation: Option<u64>) -> bool {
        match operation {
            None => self.from.is_none(),
            Some(number) => {
                self.from.is_none_or(|from| from <= number)
                    && self.until.is_none_or(|until| number < until)
            }
        }
    }
}

impl Chance {
    /// Whether request number so many is hit.
    pub(crate) fn hits(self, number: u64) -> bool {
        // SplitMix64: neighbouring numbers share nothing afterwards.
        let mut word = self
            .seed
            .wrapping_add(number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ word >> 31).is_multiple_of(self.one_in.max(1))
    }
}

impl Armed {
    fn new(rule: Rule) -> Self {
        Self {
            rule,
            reached: Vec::new(),
            matched: 0,
            spent: 0,
        }
    }

    /// Whether it is for such a request.
    fn matches(&self, request: &Request, state: State, operation: Option<u64>) -> bool {
        let is_live = self.rule.after.is_none() || self.reached.contains(&operation);
        is_live && self.rule.matches(request, state, operation)
    }

    /// Whether it hits a request that it is shown once.
    fn hits(&mut self, request: &Request, state: State, operation: Option<u64>) -> bool {
        if !self.matches(request, state, operation) {
            return false;
        }
        if let Fault::Full(budget) = self.rule.fault
            && self.spent.saturating_add(request.op.range().1) <= budget
        {
            return false;
        }
        let number = self.matched;
        self.matched += 1;
        number >= self.rule.skip && self.rule.chance.is_none_or(|chance| chance.hits(number))
    }
}

impl Rules {
    /// These rules, tried in order, and these transitions.
    pub fn new(rules: Vec<Rule>, transitions: Vec<Transition>) -> Self {
        Self {
            armed: rules.into_iter().map(Armed::new).collect(),
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

    /// Makes the transitions of `event`, which is reached on behalf of an operation of the guest, or of none: the state
    /// moves once, by what it was before. Arms the rules that wait for it.
    pub(crate) fn announce(&mut self, event: Event, operation: Option<u64>) {
        let before = self.state;
        for transition in &self.transitions {
            if transition.event == event && transition.from.is_none_or(|from| from == before) {
                self.state = transition.to;
            }
        }
        for armed in &mut self.armed {
            if armed.rule.after == Some(event) && !armed.reached.contains(&operation) {
                armed.reached.push(operation);
            }
        }
    }

    /// Decides about a request whose range is known to be sane, by the first rule that hits it. It is made on behalf of an
    /// operation of the guest, or of none, and becomes what is carried out of it.
    pub(crate) fn rule_on(&mut self, request: &mut Request, operation: Option<u64>) -> Option<Hit> {
        let state = self.state;
        let mut armed = self.armed.iter_mut();
        let index = armed.position(|armed| armed.hits(request, state, operation));
        let Some(index) = index else {
            self.charge(request, state, operation, request.op.range().1);
            return None;
        };
        self.hits += 1;
        let hit = &self.armed[index];
        let (after, fault) = (hit.rule.after, hit.rule.fault.clone());
        let asked = request.clone();
        let ruling = fault.rule(request, hit.spent);
        let is_gone = hit.rule.repeat == Repeat::Once;
        let written_bytes = match &ruling.effect {
            Effect::Whole => asked.op.range().1,
            Effect::Dropped => 0,
            Effect::Torn(mask) => SECTOR_BYTES * count(mask.iter().count()),
        };
        self.charge(&asked, state, operation, written_bytes);
        if is_gone {
            self.armed.remove(index);
        } else if let Fault::Full(budget) = fault {
            // What fitted has happened, and nothing more will.
            self.armed[index].spent = budget;
        }
        Some(Hit {
            after,
            fault,
            ruling,
        })
    }

    /// Notes what was written of a request, with every rule by which space runs out, whoever let it fail.
    fn charge(&mut self, request: &Request, state: State, operation: Option<u64>, bytes: u64) {
        for armed in &mut self.armed {
            let runs_out = matches!(armed.rule.fault, Fault::Full(_));
            if runs_out && armed.matches(request, state, operation) {
                armed.spent = armed.spent.saturating_add(bytes);
            }
        }
    }
}

fn count(sectors: usize) -> u64 {
    u64::try_from(sectors).expect("a request's sectors can be counted")
}

fn touches(request: &Request, sector: u64) -> bool {
    let (offset, len_bytes) = request.op.range();
    let start = sector.saturating_mul(SECTOR_BYTES);
    start < offset.saturating_add(len_bytes) && offset < start.saturating_add(SECTOR_BYTES)
}

#[cfg(test)]
mod tests {
    use engine::device::{Cause, Op};

    use super::*;
    use crate::mask::{SectorMask, Shape};

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

    fn ruling(rules: &mut Rules, request: &Request) -> Ruling {
        let hit = rules.rule_on(&mut request.clone(), None);
        hit.map_or_else(Ruling::whole, |hit| hit.ruling)
    }

    fn fails(rules: &mut Rules, request: &Request) -> bool {
        ruling(rules, request).answer.is_err()
    }

    #[test]
    fn a_rule_that_waits_for_an_event_hits_what_follows_it() {
        let mut rules = Rules::new(
            vec![Rule {
                after: Some(Event::ClusterAlloc),
                ..Rule::new(Fault::Fail(Cause::IO))
            }],
            vec![],
        );
        assert!(!fails(&mut rules, &flush()));
        rules.announce(Event::ClusterAlloc, None);
        assert!(fails(&mut rules, &flush()));
    }

    #[test]
    fn what_follows_an_event_is_of_the_same_operation() {
        let rule = Rule {
            after: Some(Event::ClusterAlloc),
            repeat: Repeat::Always,
            ..Rule::new(Fault::Fail(Cause::IO))
        };
        let mut rules = Rules::new(vec![rule], vec![]);
        rules.announce(Event::ClusterAlloc, Some(3));
        rules.announce(Event::ClusterAlloc, Some(5));
        let hits = [None, Some(3), Some(4), Some(5)]
            .map(|operation| rules.rule_on(&mut flush(), operation).is_some());
        assert_eq!(hits, [false, true, false, true]);
    }

    #[test]
    fn space_is_taken_by_what_was_written_whoever_let_it_fail() {
        let failing = Rule {
            event: Some(Event::L2Update),
            repeat: Repeat::Always,
            ..Rule::new(Fault::Fail(Cause::IO))
        };
        let persisting = Rule {
            event: Some(Event::L1Update),
            ..Rule::new(Fault::Persist(Cause::IO, None))
        };
        let full = Rule {
            repeat: Repeat::Always,
            ..Rule::new(Fault::Full(3 * 512))
        };
        for rules in [
            vec![failing.clone(), persisting.clone(), full.clone()],
            vec![full, failing, persisting],
        ] {
            let mut rules = Rules::new(rules, vec![]);
            // Nothing of it happens.
            assert!(fails(&mut rules, &write(Event::L2Update, 0, 3)));
            assert!(!fails(&mut rules, &write(Event::WriteAio, 0, 1)));
            // All of it does.
            assert!(fails(&mut rules, &write(Event::L1Update, 0, 2)));
            assert!(fails(&mut rules, &write(Event::WriteAio, 0, 1)));
        }
    }

    #[test]
    fn a_rule_selects_by_class_and_by_the_guests_operation() {
        let rule = Rule {
            class: Some(Class::L2),
            during: During {
                from: Some(3),
                until: Some(5),
            },
            repeat: Repeat::Always,
            ..Rule::new(Fault::Fail(Cause::IO))
        };
        let mut rules = Rules::new(vec![rule], vec![]);
        let mut hits = |event, operation| {
            let hit = rules.rule_on(&mut write(event, 0, 1), operation);
            hit.is_some()
        };
        let on_l2 = [None, Some(2), Some(3), Some(4), Some(5)].map(|at| hits(Event::L2Update, at));
        assert_eq!(on_l2, [false, false, true, true, false]);
        assert!(!hits(Event::WriteAio, Some(3)));
        let opening = During {
            from: None,
            until: Some(0),
        };
        assert!(opening.contains(None) && !opening.contains(Some(0)));
    }

    #[test]
    fn chance_is_the_same_every_time_and_as_frequent_as_it_says() {
        let chance = Chance { one_in: 4, seed: 7 };
        let draw = || {
            (0..4000)
                .map(|number| chance.hits(number))
                .collect::<Vec<_>>()
        };
        assert_eq!(draw(), draw());
        let hits = draw().into_iter().filter(|hit| *hit).count();
        assert!((900..1100).contains(&hits), "{hits}");
        let other = Chance { seed: 8, ..chance };
        assert!((0..4000).any(|number| other.hits(number) != chance.hits(number)));
    }

    #[test]
    fn a_full_device_takes_what_fits_and_then_nothing() {
        let rule = Rule {
            repeat: Repeat::Always,
            ..Rule::new(Fault::Full(3 * 512))
        };
        let mut rules = Rules::new(vec![rule], vec![]);
        let one = |rules: &mut Rules, count| ruling(rules, &write(Event::WriteAio, 0, count));
        assert_eq!(one(&mut rules, 2), Ruling::whole());
        let partly = one(&mut rules, 2);
        assert_eq!(partly.answer, Err(Cause::NO_SPACE));
        let first = SectorMask::from_fn(2, |sector| sector == 0);
        assert_eq!(partly.effect, Effect::Torn(first));
        assert_eq!(one(&mut rules, 1).effect, Effect::Dropped);
        assert!(!fails(&mut rules, &flush()), "a flush takes no space");
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
        rules.announce(Event::L1Update, None);
        assert_eq!(
            rules.state(),
            State(2),
            "one event makes one step, not a chain"
        );
        assert!(fails(&mut rules, &flush()));
        rules.announce(Event::L1Update, None);
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
        assert_eq!(ruling(&mut tearing, &flush()).effect, Effect::Whole);
        assert_eq!(
            ruling(&mut tearing, &write(Event::None, 0, 3)).effect,
            Effect::Torn(SectorMask::from_fn(3, |sector| sector == 0))
        );
        let mut dropping = Rules::new(vec![Rule::new(Fault::Drop)], vec![]);
        assert_eq!(ruling(&mut dropping, &read).effect, Effect::Whole);
        assert_eq!(ruling(&mut dropping, &flush()).effect, Effect::Dropped);
    }
}
