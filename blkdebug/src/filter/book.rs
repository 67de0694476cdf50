//! What blkdebug knows: rules, which of them are armed, the state, breakpoints, and who waits.

use engine::device::{Completer, Completion, Event, SECTOR_BYTES};

use crate::config::{Config, Injection, IoType};
use crate::rule::{Repeat, State, Transition};

/// The rules of a device and what became of them.
#[derive(Debug, Default)]
pub(super) struct Book {
    injections: Vec<Injection>,
    /// Which of them are armed, by index, in their order.
    armed: Vec<usize>,
    transitions: Vec<Transition>,
    breakpoints: Vec<Breakpoint>,
    /// Who waits, in the order of parking.
    parked: Vec<Parked>,
    state: State,
}

#[derive(Debug)]
struct Breakpoint {
    event: Event,
    tag: String,
}

#[derive(Debug)]
struct Parked {
    tag: String,
    completer: Completer,
}

impl Book {
    /// The rules of a device that was just opened.
    pub(super) fn new(config: Config) -> Self {
        let mut book = Self {
            injections: config.injections,
            transitions: config.transitions,
            ..Self::default()
        };
        book.arm(Event::None);
        book
    }

    pub(super) fn set_breakpoint(&mut self, event: Event, tag: &str) {
        let tag = tag.to_owned();
        self.breakpoints.push(Breakpoint { event, tag });
    }

    /// Removes breakpoints, and tells whether there was one.
    pub(super) fn remove_breakpoints(&mut self, tag: &str) -> bool {
        let before = self.breakpoints.len();
        self.breakpoints.retain(|breakpoint| breakpoint.tag != tag);
        self.breakpoints.len() < before
    }

    pub(super) fn is_parked(&self, tag: &str) -> bool {
        self.parked.iter().any(|parked| parked.tag == tag)
    }

    /// Takes out who waits under that tag, the last that was parked first.
    pub(super) fn unpark(&mut self, tag: &str) -> Option<Completer> {
        let at = self.parked.iter().rposition(|parked| parked.tag == tag)?;
        Some(self.parked.remove(at).completer)
    }

    /// Meets an event: what it arms, where the state moves, and what the caller waits for.
    pub(super) fn meet(&mut self, event: Event) -> Vec<(String, Completion)> {
        self.arm(event);
        self.park(event)
    }

    /// Arms what `event` arms, and then moves the state by what it was before. Of several transitions the
    /// first counts.
    fn arm(&mut self, event: Event) {
        let state = self.state;
        let met = |at: Event, from: Option<State>| {
            at == event && from.is_none_or(|wanted| wanted == state)
        };
        let armed: Vec<usize> = (0..self.injections.len())
            .filter(|index| met(self.injections[*index].event, self.injections[*index].state))
            .collect();
        if !armed.is_empty() {
            self.armed = armed;
        }
        let mut transitions = self.transitions.iter();
        if let Some(made) = transitions.find(|made| met(made.event, made.from)) {
            self.state = made.to;
        }
    }

    /// Spends the breakpoints of `event`, the last that was set first.
    fn park(&mut self, event: Event) -> Vec<(String, Completion)> {
        let mut waits = Vec::new();
        let at_event = |breakpoint: &Breakpoint| breakpoint.event == event;
        while let Some(at) = self.breakpoints.iter().rposition(at_event) {
            let tag = self.breakpoints.remove(at).tag;
            let (completion, completer) = Completion::pending();
            self.parked.push(Parked {
                tag: tag.clone(),
                completer,
            });
            waits.push((tag, completion));
        }
        waits
    }

    /// What the first armed injection that fits says of a request of that kind on these bytes.
    pub(super) fn fault(&mut self, kind: IoType, offset: u64, len_bytes: u64) -> Option<i32> {
        let mut armed = self.armed.iter();
        let at = armed.position(|index| self.injections[*index].fits(kind, offset, len_bytes))?;
        let index = self.armed[at];
        let injection = &self.injections[index];
        if injection.errno == 0 {
            return None;
        }
        let errno = injection.errno;
        if injection.repeat == Repeat::Once {
            self.armed.remove(at);
            self.injections.remove(index);
            for other in &mut self.armed {
                if *other > index {
                    *other -= 1;
                }
            }
        }
        Some(errno)
    }
}

impl Injection {
    fn fits(&self, kind: IoType, offset: u64, len_bytes: u64) -> bool {
        let is_kind = match self.kind {
            Some(wanted) => wanted == kind,
            None => kind != IoType::BlockStatus,
        };
        is_kind
            && self.sector.is_none_or(|sector| {
                let start = sector.saturating_mul(SECTOR_BYTES);
                offset <= start && start < offset.saturating_add(len_bytes)
            })
    }
}
