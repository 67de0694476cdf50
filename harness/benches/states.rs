//! Crash states judged a second on one core: drawn workloads from image to verdict, everything
//! included. Criterion's elements are distinct states that were opened, walked, repaired, walked again
//! and read back.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use harness::campaign::Plan;
use harness::guide::Guidance;
use harness::run::{Effort, run};
use harness::workload::pin::Pins;

/// So many drawn workloads make one iteration.
const RUNS: u64 = 16;

fn plan(options: &str) -> Plan {
    Plan {
        seed: 1,
        runs: RUNS,
        pins: Pins::parse(options).expect("the options are constant"),
        contract: None,
        given: None,
        flaw: None,
        effort: Effort::campaign(),
        guidance: Guidance::Off,
    }
}

/// Judges every state of the plan, and says how many there were.
fn judge_all(plan: &Plan) -> u64 {
    (0..plan.runs)
        .map(|index| {
            let outcome = run(&plan.case(index), &plan.effort).expect("the harness does not panic");
            assert_eq!(
                outcome.counts.violations, 0,
                "a bench is of runs in which nothing is wrong"
            );
            outcome.counts.states_judged
        })
        .sum()
}

fn states(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("states");
    group.sample_size(10);
    for (name, options) in [
        ("drawn", ""),
        (
            "lazy 512 bytes",
            "lazy_refcounts=on,cluster_size=512,room=any",
        ),
        ("lazy 4 KiB", "lazy_refcounts=on,cluster_size=4k"),
        ("strict 64 KiB", "lazy_refcounts=off,cluster_size=64k"),
    ] {
        let plan = plan(options);
        group.throughput(Throughput::Elements(judge_all(&plan)));
        group.bench_function(name, |bencher| bencher.iter(|| judge_all(black_box(&plan))));
    }
    group.finish();
}

criterion_group!(benches, states);
criterion_main!(benches);
