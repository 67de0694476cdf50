//! Every trace of the corpus comes to what it says, and its run is the one that was recorded.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]
#![allow(
    clippy::print_stderr,
    reason = "what was not measured is told where it is seen"
)]

use std::fs;
use std::path::{Path, PathBuf};

use blkdebug::contract::Contract;
use harness::run::{Unreplayable, replay};
use harness::trace::{Expected, MINOR, Trace};

fn corpus() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus");
    let mut traces: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "json")
        })
        .collect();
    traces.sort();
    traces
}

#[test]
fn every_trace_comes_to_what_it_says() {
    let traces = corpus();
    assert!(traces.len() >= 12, "the corpus holds at least the canaries");
    let mut wrong = Vec::new();
    for path in traces {
        let text = fs::read_to_string(&path).unwrap();
        let trace = Trace::from_json(&text, &|name| Err(format!("{name}: not in the corpus")));
        let trace = trace.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        match replay(&trace) {
            Ok(replayed) if !replayed.is_as(&trace.expected) => wrong.push(format!(
                "{}: {:?} instead of {:?}",
                path.display(),
                replayed.verdict,
                trace.expected
            )),
            // Damage is a sector's number: of another run it shows something else, or nothing.
            Ok(replayed) if trace.damage.is_some() && replayed.same_run != Some(true) => {
                let digest = replayed.digest;
                wrong.push(format!("{}: another run, {digest:032x}", path.display()));
            }
            Ok(_) => {}
            Err(Unreplayable::NoDefects(defect)) => {
                eprintln!(
                    "NOT MEASURED: {} needs the planted defect {defect}",
                    path.display()
                );
            }
            Err(error) => wrong.push(format!("{}: {error}", path.display())),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Where nothing was destroyed, a disk that may destroy excuses nothing.
#[test]
fn what_a_disk_may_destroy_excuses_nothing_that_it_left_whole() {
    let mut wrong = Vec::new();
    let mut judged = 0;
    for path in corpus() {
        let text = fs::read_to_string(&path).unwrap();
        let trace = Trace::from_json(&text, &|name| Err(format!("{name}: not in the corpus")));
        let mut trace = trace.unwrap();
        let is_of_structure = matches!(&trace.expected, Expected::Violated(class)
            if class.starts_with("structure/"));
        if !is_of_structure || trace.crash.is_none() {
            continue;
        }
        trace.scenario.contract = Contract::EpochTornGarbage;
        match replay(&trace) {
            Ok(replayed) if replayed.is_as(&trace.expected) => judged += 1,
            Ok(replayed) => wrong.push(format!("{}: {:?}", path.display(), replayed.verdict)),
            // There power is lost once.
            Err(Unreplayable::NoDefects(_) | Unreplayable::NothingPromised(_)) => {}
            Err(error) => wrong.push(format!("{}: {error}", path.display())),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(
        judged > 0 || !cfg!(feature = "defects"),
        "nothing was judged"
    );
}

#[test]
fn a_trace_reads_back_as_it_was_written() {
    for path in corpus() {
        let text = fs::read_to_string(&path).unwrap();
        let trace = Trace::from_json(&text, &|name| Err(name.to_owned())).unwrap();
        // An older one comes back as one of today, with nothing else changed.
        let now = (0..MINOR).fold(text, |text, minor| {
            text.replace(
                &format!("\"minor\": {minor}\n"),
                &format!("\"minor\": {MINOR}\n"),
            )
        });
        assert_eq!(trace.to_json(), now, "{}", path.display());
    }
}
