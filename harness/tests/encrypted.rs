//! Encrypted images through the harness: nothing is found on them, and what is planted is.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]

use engine::defect::Defect;
use harness::campaign::{Plan, Proceed, campaign};
use harness::guide::Guidance;
use harness::run::Effort;
use harness::workload::pin::Pins;

/// How many violations so many runs come to, and how many states were judged.
fn violations(options: &str, defect: Option<Defect>, runs: u64) -> (u64, u64) {
    let plan = Plan {
        seed: 1,
        runs,
        pins: Pins::parse(options).unwrap(),
        contract: None,
        given: None,
        flaw: defect.map(Into::into),
        effort: Effort::campaign(),
        guidance: Guidance::Off,
    };
    let campaign = campaign(&plan, 2, &mut |_| Proceed::GoOn).unwrap();
    let counts = campaign.progress.counts;
    assert_eq!(counts.not_measured, 0, "{:?}", campaign.not_measured);
    assert!(campaign.broken.is_empty(), "{:?}", campaign.broken);
    (counts.violations, counts.states_judged)
}

#[test]
fn an_encrypted_image_keeps_every_promise() {
    for method in ["aes", "luks"] {
        let options = format!("encrypt={method},cluster_size=4k,operations=6");
        let (found, judged) = violations(&options, None, 24);
        assert_eq!(found, 0, "{method}");
        assert!(judged > 500, "{method}: {judged}");
    }
}

#[cfg(feature = "defects")]
#[test]
fn what_is_planted_in_the_encryption_is_found() {
    let options = "encrypt=aes,operations=6";
    for defect in [Defect::FreshClusterUnencrypted, Defect::CopyUnderOldVector] {
        assert!(violations(options, Some(defect), 24).0 > 0, "{defect:?}");
    }
}
