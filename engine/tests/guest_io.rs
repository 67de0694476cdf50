//! The engine against a plain vector: what a guest writes is what it reads, here and after reopening.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]

mod kit;

use std::rc::Rc;

use engine::device::{Port, RamDevice};
use engine::image::{Image, Unmap};
use engine::manage::Manage;
use engine::qcow2::create::{CreateOptions, create};
use engine::qcow2::{CacheSizes, LazyRefcounts, OpenOptions, Qcow2};
use kit::run;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Write(u64, u64, u8),
    Zero(u64, u64, Unmap),
    Discard(u64, u64),
    Flush,
    Grow(u64),
    Reopen,
}

#[derive(Clone, Debug)]
struct Setup {
    create: CreateOptions,
    lazy: LazyRefcounts,
    caches: CacheSizes,
    backing_sectors: Option<u64>,
}

fn setup() -> impl Strategy<Value = Setup> {
    let backing = prop::option::of(1u64..400);
    (
        2u32..=3,
        prop_oneof![3 => 9u32..=13, 1 => 14u32..=17],
        0u32..=6,
        1u64..300,
        any::<bool>(),
        1usize..6,
        backing,
    )
        .prop_map(
            |(version, cluster_bits, order, sectors, lazy, slices, backing_sectors)| Setup {
                create: CreateOptions {
                    virtual_bytes: sectors * 512,
                    version,
                    cluster_bits,
                    extended_l2: version == 3 && cluster_bits >= 14,
                    refcount_order: if version == 2 { 4 } else { order },
                    ..CreateOptions::default()
                },
                lazy: if lazy {
                    LazyRefcounts::On
                } else {
                    LazyRefcounts::Off
                },
                caches: CacheSizes {
                    l2_slices: slices,
                    refcount_slices: slices,
                    slice_bytes: 512,
                },
                backing_sectors,
            },
        )
}

fn step() -> impl Strategy<Value = Step> {
    let at = 0u64..400;
    let len = 1u64..40;
    prop_oneof![
        6 => (at.clone(), len.clone(), 1u8..255).prop_map(|(at, len, fill)| Step::Write(at, len, fill)),
        2 => (at.clone(), len.clone(), any::<bool>()).prop_map(|(at, len, unmap)| {
            Step::Zero(at, len, if unmap { Unmap::Allow } else { Unmap::Keep })
        }),
        2 => (at, len).prop_map(|(at, len)| Step::Discard(at, len)),
        1 => Just(Step::Flush),
        1 => (1u64..200).prop_map(Step::Grow),
        1 => Just(Step::Reopen),
    ]
}

struct Pair {
    device: Rc<RamDevice>,
    setup: Setup,
    image: Qcow2,
    model: Vec<u8>,
    backing: Vec<u8>,
}

impl Pair {
    fn new(setup: Setup) -> Self {
        let device = Rc::new(RamDevice::default());
        run(create(&Port::new(device.clone()), &setup.create)).unwrap();
        let len = usize::try_from(setup.create.virtual_bytes).unwrap();
        let backing: Vec<u8> = (0..setup.backing_sectors.unwrap_or(0) * 512)
            .map(|at| u8::try_from(at / 512 % 250).unwrap() + 1)
            .collect();
        let mut model = vec![0; len];
        let shown = len.min(backing.len());
        model[..shown].copy_from_slice(&backing[..shown]);
        let image = open(&device, &setup, &backing);
        Self {
            device,
            setup,
            image,
            model,
            backing,
        }
    }

    fn apply(&mut self, step: &Step) {
        let sectors = u64::try_from(self.model.len()).unwrap() / 512;
        let clip = |at: u64, len: u64| {
            let at = at % sectors;
            (at * 512, len.min(sectors - at) * 512)
        };
        let bounds = |offset: u64, len: u64| {
            let start = usize::try_from(offset).unwrap();
            start..start + usize::try_from(len).unwrap()
        };
        match *step {
            Step::Write(at, len, fill) => {
                let (offset, len) = clip(at, len);
                let range = bounds(offset, len);
                run(self.image.write(offset, vec![fill; range.len()])).unwrap();
                self.model[range].fill(fill);
            }
            Step::Zero(at, len, unmap) => {
                let (offset, len) = clip(at, len);
                run(self.image.write_zeroes(offset, len, unmap)).unwrap();
                self.model[bounds(offset, len)].fill(0);
            }
            Step::Discard(at, len) => {
                let (offset, len) = clip(at, len);
                run(self.image.discard(offset, len)).unwrap();
                let range = bounds(offset, len);
                let read = run(self.image.read(offset, range.len())).unwrap();
                for (got, kept) in read.iter().zip(&mut self.model[range]) {
                    assert!(*got == 0 || got == kept, "a discarded byte is old or zero");
                    *kept = *got;
                }
            }
            Step::Flush => run(self.image.flush()).unwrap(),
            Step::Grow(more) => {
                self.model
                    .resize(self.model.len() + usize::try_from(more * 512).unwrap(), 0);
                run(self
                    .image
                    .manage(Manage::grow(u64::try_from(self.model.len()).unwrap())))
                .unwrap();
            }
            Step::Reopen => {
                run(self.image.close()).unwrap();
                self.image = open(&self.device, &self.setup, &self.backing);
            }
        }
    }
}

fn open(device: &Rc<RamDevice>, setup: &Setup, backing: &[u8]) -> Qcow2 {
    let under = setup.backing_sectors.map(|sectors| {
        let port = Port::new(Rc::new(RamDevice::default()));
        let options = CreateOptions {
            virtual_bytes: sectors * 512,
            cluster_bits: 9,
            ..CreateOptions::default()
        };
        run(create(&port, &options)).unwrap();
        let image = run(Qcow2::open(port, None, &OpenOptions::default())).unwrap();
        run(image.write(0, backing.to_vec())).unwrap();
        let image: Rc<dyn Image> = Rc::new(image);
        image
    });
    let options = OpenOptions {
        lazy_refcounts: Some(setup.lazy),
        caches: setup.caches,
        ..OpenOptions::default()
    };
    run(Qcow2::open(Port::new(device.clone()), under, &options)).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_guest_reads_what_it_wrote(setup in setup(), steps in prop::collection::vec(step(), 1..40)) {
        let mut pair = Pair::new(setup);
        for step in &steps {
            pair.apply(step);
            let read = run(pair.image.read(0, pair.model.len())).unwrap();
            let wrong = read.iter().zip(&pair.model).position(|(got, want)| got != want);
            prop_assert_eq!(wrong, None, "first wrong byte after {:?}", step);
        }
        pair.apply(&Step::Reopen);
        let read = run(pair.image.read(0, pair.model.len())).unwrap();
        prop_assert!(read == pair.model, "after reopening");
    }
}
