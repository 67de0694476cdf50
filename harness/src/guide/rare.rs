//! Rare situations, and how often a campaign was in each.
//!
//! Some the engine tells of itself ([`engine::probe::Probe`]), others can be told from outside: from the requests, from
//! what the guest asked for meanwhile, and from what a power loss left. A campaign that was never in one of them says so.

use std::cell::Cell;
use std::rc::Rc;

use engine::device::{Completion, Device, Event, Extent, Limits, Port, Request};
use engine::probe::Probe;

macro_rules! sightings {
    ($($(#[doc = $doc:literal])* $variant:ident $name:literal),* $(,)?) => {
        /// A rare situation that can be told from outside.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Sighting {
            $($(#[doc = $doc])* $variant,)*
        }

        impl Sighting {
            /// Every one, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The name used in reports.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// What the situation is, in one line.
            pub fn describe(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc,)*).trim_ascii(),)* }
            }
        }
    };
}

sightings! {
    /// A refcount block was added while a snapshot was taken, gone back to or deleted.
    BlockInSnapshot "refblock-in-snapshot",
    /// The refcount table grew while a snapshot was taken, gone back to or deleted.
    ReftableInSnapshot "reftable-grew-in-snapshot",
    /// The L1 table grew while a write was in flight.
    L1BesideWrite "l1-grew-beside-write",
    /// The guest asked for a flush while a write was in flight.
    FlushBesideWrite "flush-beside-write",
    /// An operation on the image as a whole was in flight beside a write.
    ManagedBesideWrite "managed-beside-write",
    /// A crash state had refcounts that were too low, under the dirty bit.
    LowCounts "state-with-low-counts",
    /// A crash state had leaks, without the dirty bit.
    Leaks "state-with-leaks",
    /// A crash state could have claimed COPIED and did not.
    CopiedMissing "state-without-copied",
    /// A table survived in part.
    TableTorn "table-torn",
    /// What a write added survived, and the length that covers it did not.
    LengthLost "length-lost",
    /// A discard left garbage.
    Garbage "discard-left-garbage",
    /// Writes to one disk survived, and those to another were lost.
    DisksApart "disks-apart",
    /// Power was lost inside the repair of what a power loss inside a repair had left.
    ThirdLoss "third-power-loss",
}

const PROBES: usize = Probe::ALL.len();
const ALL: usize = PROBES + Sighting::ALL.len();

/// How often each rare situation was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sightings([u64; ALL]);

impl Default for Sightings {
    fn default() -> Self {
        Self([0; ALL])
    }
}

/// A rare situation as reports tell of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rare {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub about: &'static str,
    /// How often it was there.
    pub count: u64,
}

impl Sightings {
    /// How many situations there are.
    pub const KINDS: usize = ALL;

    /// Counts one more.
    pub fn saw(&mut self, sighting: Sighting) {
        let place = Sighting::ALL.iter().position(|one| *one == sighting);
        self.0[PROBES + place.expect("every sighting is listed")] += 1;
    }

    /// Adds what was counted on devices.
    pub fn add_hits(&mut self, hits: &Hits) {
        for (count, hits) in self.0.iter_mut().zip(&hits.0) {
            *count += hits.get();
        }
    }

    /// Adds what was counted elsewhere.
    pub fn add(&mut self, other: &Self) {
        for (count, more) in self.0.iter_mut().zip(other.0) {
            *count = count.saturating_add(more);
        }
    }

    /// The numbers alone, in the order of [`Self::iter`].
    pub fn counts(&self) -> &[u64] {
        &self.0
    }

    /// Each situation, in the order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = Rare> {
        let probes = Probe::ALL.iter().map(|it| (it.name(), it.describe()));
        let sightings = Sighting::ALL.iter().map(|it| (it.name(), it.describe()));
        probes
            .chain(sightings)
            .zip(self.0)
            .map(|((name, about), count)| Rare { name, about, count })
    }

    /// Those numbers under their names; a name that is not known says nothing.
    pub fn from_named<'a>(named: impl Iterator<Item = (&'a str, u64)>) -> Self {
        let mut sightings = Self::default();
        let names: Vec<&str> = sightings.iter().map(|rare| rare.name).collect();
        for (name, count) in named {
            if let Some(place) = names.iter().position(|one| *one == name) {
                sightings.0[place] = count;
            }
        }
        sightings
    }
}

/// What devices were told of rare situations.
#[derive(Debug)]
pub struct Hits([Cell<u64>; PROBES]);

impl Default for Hits {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Cell::new(0)))
    }
}

impl Hits {
    /// The same device, which counts what it is told.
    pub fn counting(self: &Rc<Self>, port: &Port) -> Port {
        Port::new(Rc::new(Counting {
            device: port.device(),
            hits: Rc::clone(self),
        }))
    }

    /// Counts one more.
    pub(crate) fn count(&self, probe: Probe) {
        let count = &self.0[probe.index()];
        count.set(count.get() + 1);
    }
}

/// A device before another one, that counts.
struct Counting {
    device: Rc<dyn Device>,
    hits: Rc<Hits>,
}

impl Device for Counting {
    fn submit(&self, request: Request) -> Completion {
        self.device.submit(request)
    }

    fn reach(&self, event: Event) -> Completion {
        self.device.reach(event)
    }

    fn note(&self, probe: Probe) {
        self.hits.count(probe);
    }

    fn len(&self) -> u64 {
        self.device.len()
    }

    fn extent(&self, offset: u64) -> Extent {
        self.device.extent(offset)
    }

    fn is_empty(&self) -> bool {
        self.device.is_empty()
    }

    fn limits(&self) -> Limits {
        self.device.limits()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    #[cfg(feature = "defects")]
    use engine::device::RamDevice;

    use super::*;

    #[test]
    fn names_tell_situations_apart() {
        let all = Sightings::default();
        let names: BTreeSet<&str> = all.iter().map(|rare| rare.name).collect();
        assert_eq!(names.len(), Sightings::KINDS);
        assert!(all.iter().all(|rare| rare.about.ends_with('.')));
    }

    #[test]
    #[cfg(feature = "defects")]
    fn a_device_counts_what_it_is_told() {
        let hits = Rc::new(Hits::default());
        let port = hits.counting(&Port::new(Rc::new(RamDevice::default())));
        port.note(Probe::TableCopied);
        port.note(Probe::TableCopied);
        let mut sightings = Sightings::default();
        sightings.add_hits(&hits);
        sightings.saw(Sighting::Leaks);
        let seen: Vec<(&str, u64)> = sightings
            .iter()
            .filter(|rare| rare.count > 0)
            .map(|rare| (rare.name, rare.count))
            .collect();
        assert_eq!(seen, [("l2-table-copied", 2), ("state-with-leaks", 1)]);
        let named = sightings.iter().map(|rare| (rare.name, rare.count));
        assert_eq!(Sightings::from_named(named), sightings);
    }
}
