//! How little it takes to show a violation: the weakest contract, and what could be let pass.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]
#![allow(
    clippy::print_stderr,
    reason = "what was not measured is told where it is seen"
)]

use std::fs;
use std::path::Path;

use blkdebug::contract::Contract;
use harness::reduce::reduce_trace;
use harness::run::replay;
use harness::trace::Trace;

/// What a trace of the corpus comes to when it is made smaller, starting under this contract.
fn shown(name: &str, from: Contract) -> Option<(String, String)> {
    if !cfg!(feature = "defects") {
        eprintln!("NOT MEASURED: {name} needs a planted defect");
        return None;
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../corpus/{name}.json"));
    let text = fs::read_to_string(path).unwrap();
    let mut trace = Trace::from_json(&text, &|name| Err(name.to_owned())).unwrap();
    trace.scenario.contract = from;
    let reduced = reduce_trace(&trace).unwrap();
    assert_eq!(reduced.trace.shown, Some(reduced.shown));
    assert_eq!(reduced.trace.scenario.contract, reduced.shown.contract);
    let replayed = replay(&reduced.trace).unwrap();
    assert!(replayed.is_as(&reduced.trace.expected));
    Some((
        reduced.shown.contract.to_string(),
        reduced.shown.breaks.name().to_owned(),
    ))
}

/// One operation each, so that little is tried.
#[test]
fn a_violation_names_the_weakest_disk_and_the_mildest_level() {
    for (name, contract, breaks) in [
        ("hookup-before-block", "epoch", "stale-foreign"),
        ("flush-skips-device", "prefix", "stale-foreign"),
        ("grow-shows-backing", "perfect", "stale-own"),
        ("cow-tail-lost", "perfect", "strict"),
    ] {
        let Some(found) = shown(name, Contract::EpochTorn) else {
            return;
        };
        assert_eq!(found, (contract.to_owned(), breaks.to_owned()), "{name}");
    }
}
