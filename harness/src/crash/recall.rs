//! What is known of images by what it hangs on.
//!
//! Whatever is a function of some sectors of an image, and of its length, is the same for every image that is the same
//! there. Most crash states are that to a state before them.

use std::collections::BTreeMap;
use std::rc::Rc;

use engine::device::{ContentHash, PageImage};

use super::footprint::Footprint;

/// Facts of images, each by the content of the sectors that it hangs on.
#[derive(Clone, Debug)]
pub(crate) struct Recall<T> {
    /// The one that served last comes first.
    places: Vec<Place<T>>,
}

/// Facts that hang on the same sectors.
#[derive(Clone, Debug)]
struct Place<T> {
    read: Rc<Footprint>,
    facts: BTreeMap<ContentHash, T>,
}

impl<T> Default for Recall<T> {
    fn default() -> Self {
        Self { places: Vec::new() }
    }
}

impl<T: Clone> Recall<T> {
    /// So many sets of sectors are told apart: to hold an image against more of them costs what is won.
    pub(crate) const MOST: usize = 12;

    /// What is known of this image, and what that hangs on.
    pub(crate) fn of(&mut self, image: &PageImage) -> Option<(Rc<Footprint>, T)> {
        let mut places = self.places.iter().enumerate();
        let (at, fact) = places.find_map(|(at, place)| {
            let fact = place.facts.get(&place.read.tag(image))?;
            Some((at, fact.clone()))
        })?;
        self.places[..=at].rotate_right(1);
        Some((Rc::clone(&self.places[0].read), fact))
    }

    /// Takes note of a fact that hangs on what was read of this image. Sectors that served nobody for long are forgotten.
    pub(crate) fn learn(&mut self, image: &PageImage, read: Footprint, fact: T) {
        let tag = read.tag(image);
        let known = self.places.iter().position(|place| *place.read == read);
        let at = known.unwrap_or_else(|| {
            self.places.truncate(Self::MOST - 1);
            self.places.push(Place {
                read: Rc::new(read),
                facts: BTreeMap::new(),
            });
            self.places.len() - 1
        });
        self.places[at].facts.insert(tag, fact);
        self.places[..=at].rotate_right(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fact_holds_where_what_it_hangs_on_is_the_same() {
        let image = PageImage::from_bytes(&[7; 16 * 512]);
        let mut recall = Recall::default();
        recall.learn(&image, Footprint::of(vec![0..1, 4..6]), "seven");
        for (sector, known) in [(0, false), (1, true), (5, false), (6, true)] {
            let mut other = image.clone();
            other.write(sector * 512, &[8]);
            let fact = recall.of(&other).map(|(_, fact)| fact);
            assert_eq!(fact, known.then_some("seven"), "{sector}");
        }
        let mut longer = image.clone();
        longer.set_len(17 * 512);
        assert_eq!(recall.of(&longer), None);
    }

    #[test]
    fn what_served_last_is_forgotten_last() {
        let image = PageImage::from_bytes(&vec![7; 64 * 512]);
        let mut recall = Recall::default();
        let place = |at: u64| Footprint::of(std::iter::once(at..at + 1).collect());
        let mut marked = image.clone();
        marked.write(0, &[8]);
        recall.learn(&marked, place(0), 0);
        for at in 1..3 * u64::try_from(Recall::<u64>::MOST).expect("a few") {
            let mut other = image.clone();
            other.write(at * 512, &[9]);
            recall.learn(&other, place(at), at);
            let (read, fact) = recall.of(&marked).expect("it was asked for each time");
            assert_eq!((&*read, fact), (&place(0), 0));
        }
        assert_eq!(recall.places.len(), Recall::<u64>::MOST);
        let mut early = image.clone();
        early.write(512, &[9]);
        assert_eq!(recall.of(&early), None);
    }
}
