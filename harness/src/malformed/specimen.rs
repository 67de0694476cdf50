//! Damaged images in any number, each a function of seed and index.

use std::collections::BTreeMap;

use engine::device::PageImage;

use super::atlas::Atlas;
use super::damage::{Change, Draw, FuzzBytes, damage};
use crate::prng::Prng;
use crate::sim::stage::Stage;
use crate::workload::generate;
use crate::workload::pin::Pins;
use crate::workload::shape::{Encrypted, Start};

/// So many images in a row are made from one sound image.
const PER_BASE: u64 = 32;
/// One sound image in so many is encrypted with LUKS, where the options leave that open: campaigns have
/// fewer, since each takes long.
const PER_LUKS: u64 = 16;
/// A fuzzer chooses among so many sound images, and so many are kept.
const KEPT: u64 = 64;

/// Damaged images, drawn from a seed.
#[derive(Clone, Debug)]
pub struct Specimens {
    prng: Prng,
    pins: Pins,
    bases: BTreeMap<u64, Base>,
}

#[derive(Clone, Debug)]
struct Base {
    image: PageImage,
    atlas: Atlas,
}

/// A damaged image.
#[derive(Clone, Debug)]
pub struct Specimen {
    /// Its bytes.
    pub image: PageImage,
    /// What was done to it.
    pub changes: Vec<Change>,
}

impl Specimens {
    /// The images of `seed`, made from sound ones that `pins` restricts.
    pub fn new(seed: u64, pins: Pins) -> Self {
        Self {
            prng: Prng::from_seed(seed),
            pins,
            bases: BTreeMap::new(),
        }
    }

    /// Image number `index`.
    pub fn get(&mut self, index: u64) -> Specimen {
        let draw = self.prng.fork_indexed("damage", index);
        self.damaged(index / PER_BASE, draw)
    }

    /// The image that a fuzzer's bytes choose.
    pub fn chosen_by(&mut self, bytes: &[u8]) -> Specimen {
        let mut draw = FuzzBytes(bytes);
        let number = draw.below(KEPT);
        self.damaged(number, draw)
    }

    /// Sound image number `number`, damaged as `draw` chooses.
    fn damaged(&mut self, number: u64, mut draw: impl Draw) -> Specimen {
        if !self.bases.contains_key(&number) {
            self.bases.retain(|have, _| have.abs_diff(number) < KEPT);
            let base = self.draw_base(number);
            self.bases.insert(number, base);
        }
        let base = &self.bases[&number];
        let mut image = base.image.clone();
        let changes = damage(&mut image, &base.atlas, &mut draw);
        Specimen { image, changes }
    }

    /// A sound image as campaigns start with. Those with a backing file lose it: what is not
    /// mapped reads zero then, by the engine and by the oracle.
    fn draw_base(&self, number: u64) -> Base {
        let prng = self.prng.fork_indexed("base", number);
        let mut pins = self.pins;
        if number.is_multiple_of(PER_LUKS) {
            pins.encryption.get_or_insert(Some(Encrypted::Luks));
        }
        let start = generate::scenario(&prng, &pins).image;
        let stage = match &start {
            Start::New(_) => Stage::prepare(&start),
            Start::Given(_) => unreachable!("drawn scenarios start with new images"),
        };
        let image = stage.expect("the engine makes drawn images").image;
        let atlas = Atlas::draw(&image).expect("the engine writes headers of qcow2");
        Base { image, atlas }
    }
}
