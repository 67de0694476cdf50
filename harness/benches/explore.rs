//! How fast crash states are found: distinct states, each built, and duplicates, which are not.

use std::hint::black_box;

use blkdebug::contract::Contract;
use blkdebug::record::{Clock, Recording};
use blkdebug::volatile::{Answering, VolatileDisk};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use engine::device::{Device, Event, Op, PageImage, Request};
use harness::crash::explore::{Budget, Explorer};

/// Eight epochs of eight writes, data and metadata by turns, on a file of 4 MiB that grows.
fn recording() -> Recording {
    let base = PageImage::from_bytes(&vec![0xA5; 4 << 20]);
    let disk = VolatileDisk::new(base, Clock::default(), Answering::AtOnce);
    let submit = |event, op| drop(black_box(disk.submit(Request { event, op })));
    let write = |event, sector: u64, sectors: usize, fill: u8| {
        let op = Op::Write {
            offset: sector * 512,
            data: vec![fill; sectors * 512],
            fua: false,
        };
        submit(event, op);
    };
    for epoch in 0..8_u8 {
        for index in 0..4 {
            let place = u64::from(epoch * 4 + index);
            write(Event::WriteAio, 8100 + place * 8, 8, epoch + 1);
            write(Event::L2Update, 64 + place % 6, 1, epoch + 1);
        }
        submit(Event::None, Op::Flush);
    }
    disk.into_recording()
}

/// A linear congruential generator: draws need only be cheap and the same each time.
fn draws(mut seed: u64) -> impl FnMut(u64) -> u64 {
    move |bound| {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % bound
    }
}

fn explore(criterion: &mut Criterion) {
    let recording = recording();
    let mut group = criterion.benchmark_group("explore");
    for contract in [Contract::Epoch, Contract::EpochTorn] {
        let explorer =
            || Explorer::new(&recording, contract, Budget::default(), &[]).with_draw(draws(1));
        let mut counted = explorer();
        counted.by_ref().for_each(drop);
        group.throughput(Throughput::Elements(counted.explored().generated));
        group.bench_function(contract.name(), |bencher| {
            bencher.iter(|| explorer().fold(0, |sum, state| sum ^ state.hash.0));
        });
    }
    group.finish();
}

criterion_group!(benches, explore);
criterion_main!(benches);
