//! Where a campaign stands, as a file: so that one that was stopped goes on another time, and comes to the same.
//!
//! It holds the counts, the digest so far and what was learned: features, signatures, and the runs that are kept, each as
//! a trace. What is read may come from anywhere: it ends with a campaign that can go on or with a line that says what
//! is wrong.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use xxhash_rust::xxh3::xxh3_128;

use crate::campaign::{Campaign, End, Plan, Progress};
use crate::guide::feature::NumberSet;
use crate::guide::rare::Sightings;
use crate::guide::way::{Late, Way, Yield, Yields};
use crate::guide::{Guide, GuideCounts, Kept};
use crate::run::Counts;
use crate::trace::{Expected, Trace};
use crate::workload::given::Given;
use crate::workload::shape::Start;

const FORMAT: &str = "qrash-campaign";
const VERSION: u32 = 1;

/// Why a campaign cannot go on from a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadStanding(String);

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StandingJson {
    format: String,
    version: u32,
    /// Names seed, options and effort: the campaign that this is of.
    plan: String,
    runs: u64,
    digest: String,
    counts: Counts,
    not_measured: Vec<String>,
    broken: Vec<String>,
    rare: BTreeMap<String, u64>,
    ways: BTreeMap<String, YieldJson>,
    senseless: u64,
    repeated: u64,
    run_again: u64,
    /// Numbers of 64 bits, each as 16 digits, one behind the other.
    features: String,
    /// As `features`.
    signatures: String,
    kept: Vec<KeptJson>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct YieldJson {
    runs: u64,
    kept: u64,
    cost: u64,
    gain: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeptJson {
    run: u64,
    gain: u64,
    picked: u64,
    toggled: bool,
    trace: Value,
}

/// A campaign of this plan as text. Only what stands between two batches can go on as if it had not stopped.
pub fn write_standing(plan: &Plan, campaign: &Campaign) -> String {
    let guide = &campaign.guide;
    let rare = guide.rare.iter().filter(|rare| rare.count > 0);
    let ways = Way::ALL.into_iter().map(|way| {
        let Yield { runs, kept, late } = guide.yields.of(way);
        let Late { cost, gain } = late;
        let json = YieldJson {
            runs,
            kept,
            cost,
            gain,
        };
        (way.name().to_owned(), json)
    });
    let json = StandingJson {
        format: FORMAT.into(),
        version: VERSION,
        plan: name_of(plan),
        runs: campaign.progress.runs,
        digest: format!("{:032x}", campaign.digest),
        counts: campaign.progress.counts,
        not_measured: campaign.not_measured.clone(),
        broken: campaign.broken.clone(),
        rare: rare
            .map(|rare| (rare.name.to_owned(), rare.count))
            .collect(),
        ways: ways.collect(),
        senseless: guide.counts.senseless,
        repeated: guide.counts.repeated,
        run_again: guide.counts.run_again,
        features: digits(&guide.features),
        signatures: digits(&guide.signatures),
        kept: guide.kept.iter().map(kept_json).collect(),
    };
    let mut text = serde_json::to_string(&json).expect("numbers and texts are JSON");
    text.push('\n');
    text
}

/// Reads where a campaign of this plan stands. One that has ended with a violation, or because the harness contradicted
/// itself, is refused: nothing may follow, and what was found is in the traces, not in the text.
pub fn read_standing(plan: &Plan, text: &str) -> Result<Campaign, BadStanding> {
    let json: StandingJson =
        serde_json::from_str(text).map_err(|error| BadStanding(error.to_string()))?;
    if json.format != FORMAT || json.version != VERSION {
        let found = format!("{} {}", json.format, json.version);
        return Err(BadStanding(format!(
            "this is `{found}`, and `{FORMAT} {VERSION}` is read here"
        )));
    }
    if json.plan != name_of(plan) {
        return Err(BadStanding(
            "it is of a campaign with another seed or other options".into(),
        ));
    }
    let mut guide = Guide {
        features: numbers("features", &json.features)?,
        signatures: numbers("signatures", &json.signatures)?,
        rare: Sightings::from_named(json.rare.iter().map(|(name, n)| (name.as_str(), *n))),
        yields: Yields::default(),
        counts: GuideCounts {
            senseless: json.senseless,
            repeated: json.repeated,
            run_again: json.run_again,
        },
        kept: Vec::with_capacity(json.kept.len()),
    };
    for way in Way::ALL {
        if let Some(YieldJson {
            runs,
            kept,
            cost,
            gain,
        }) = json.ways.get(way.name())
        {
            let late = Late {
                cost: *cost,
                gain: *gain,
            };
            let (runs, kept) = (*runs, *kept);
            guide.yields.set(way, Yield { runs, kept, late });
        }
    }
    for (index, kept) in json.kept.iter().enumerate() {
        let bad = |problem| BadStanding(format!("kept[{index}]: {problem}"));
        guide.kept.push(read_kept(plan, kept).map_err(bad)?);
    }
    let digest = u128::from_str_radix(&json.digest, 16)
        .map_err(|_| BadStanding(format!("digest: `{}` is no number", json.digest)))?;
    let campaign = Campaign {
        progress: Progress {
            runs: json.runs,
            counts: json.counts,
        },
        found: Vec::new(),
        not_measured: json.not_measured,
        broken: json.broken,
        digest,
        guide,
    };
    match campaign.end() {
        None => Ok(campaign),
        Some(end) => Err(BadStanding(ended(json.runs, &end))),
    }
}

/// Why a campaign does not go on that has ended by itself, in one line.
fn ended(runs: u64, end: &End) -> String {
    match end {
        End::Found(violations) => format!(
            "the campaign ended after {runs} runs, with {violations} violation{}: the traces lie beside this file, and \
             summary.json there names them",
            if *violations == 1 { "" } else { "s" }
        ),
        End::Broken(how) => format!(
            "the campaign ended after {runs} runs, for the harness is broken, and has no traces: {}",
            how.lines().next().unwrap_or_default()
        ),
    }
}

/// Names everything that decides about the runs of a campaign but their number.
fn name_of(plan: &Plan) -> String {
    let Plan {
        seed,
        runs: _,
        pins,
        contract,
        given,
        flaw,
        effort,
        guidance,
    } = plan;
    let given = given.as_ref().map(|(given, virtual_bytes, geometry)| {
        let hash = given.content_hash().0;
        format!("{hash:032x} {virtual_bytes} {geometry:?}")
    });
    let text = format!("{seed} {pins:?} {contract:?} {given:?} {flaw:?} {effort:?} {guidance:?}");
    format!("{:032x}", xxh3_128(text.as_bytes()))
}

fn kept_json(kept: &Kept) -> KeptJson {
    let Kept {
        run,
        scenario,
        choices,
        crash,
        gain,
        picked,
        toggled,
    } = kept;
    let trace = Trace {
        about: format!("Run {run} showed something new."),
        scenario: scenario.clone(),
        choices: choices.clone(),
        crash: crash.clone(),
        damage: None,
        expected: Expected::Survived,
        shown: None,
        digest: None,
    };
    let mut json: Value =
        serde_json::from_str(&trace.to_json()).expect("what is written as JSON is JSON");
    if let Some(given) = json
        .pointer_mut("/image/given")
        .and_then(Value::as_object_mut)
    {
        // The plan has the image; here it would stand once for each run.
        given.remove("deflated");
    }
    KeptJson {
        run: *run,
        gain: *gain,
        picked: *picked,
        toggled: *toggled,
        trace: json,
    }
}

fn read_kept(plan: &Plan, json: &KeptJson) -> Result<Kept, String> {
    let given = plan.given.as_ref().map(|(given, _, _)| given);
    let loader = |path: &str| {
        let given =
            given.ok_or_else(|| format!("the campaign starts from no image, nor from {path}"));
        given.map(Given::image)
    };
    let trace =
        Trace::from_json(&json.trace.to_string(), &loader).map_err(|bad| bad.to_string())?;
    let starts_alike = matches!(
        (&trace.scenario.image, given),
        (Start::New(_), None) | (Start::Given(_), Some(_))
    );
    if !starts_alike {
        return Err("it starts from another kind of image than the campaign".into());
    }
    Ok(Kept {
        run: json.run,
        scenario: trace.scenario,
        choices: trace.choices,
        crash: trace.crash,
        gain: json.gain,
        picked: json.picked,
        toggled: json.toggled,
    })
}

fn digits(numbers: &NumberSet) -> String {
    let numbers = numbers.sorted();
    let mut text = String::with_capacity(numbers.len() * 16);
    for number in numbers {
        // Writing to a text never fails.
        let _ = write!(text, "{number:016x}");
    }
    text
}

fn numbers(field: &str, text: &str) -> Result<NumberSet, BadStanding> {
    let bad = || BadStanding(format!("{field}: not a list of numbers of 16 digits each"));
    if !text.is_ascii() || !text.len().is_multiple_of(16) {
        return Err(bad());
    }
    let numbers = (0..text.len() / 16).map(|at| &text[at * 16..(at + 1) * 16]);
    numbers
        .map(|digits| u64::from_str_radix(digits, 16).map_err(|_| bad()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::campaign::{BATCH_RUNS, Proceed, carry_on};
    use crate::guide::Guidance;
    use crate::run::Effort;
    use crate::workload::pin::Pins;

    fn plan(seed: u64, guidance: Guidance) -> Plan {
        let mut effort = Effort::campaign();
        effort.states.states = 20;
        effort.inner_states.states = 4;
        Plan {
            seed,
            runs: 150,
            pins: Pins::parse("operations=6").unwrap(),
            contract: None,
            given: None,
            flaw: None,
            effort,
            guidance,
        }
    }

    fn whole(plan: &Plan) -> Campaign {
        carry_on(plan, 1, Campaign::default(), &mut |_| Proceed::GoOn).unwrap()
    }

    /// The campaign, stopped after each of these numbers of batches and gone on with from text.
    fn in_parts(plan: &Plan, stops: &[u64]) -> Campaign {
        let mut campaign = Campaign::default();
        for stop in stops {
            let mut until = |campaign: &Campaign| {
                if campaign.progress.runs >= stop * BATCH_RUNS {
                    Proceed::Stop
                } else {
                    Proceed::GoOn
                }
            };
            let stopped = carry_on(plan, 2, campaign, &mut until).unwrap();
            assert!(stopped.is_between_batches());
            let text = write_standing(plan, &stopped);
            campaign = read_standing(plan, &text).unwrap();
            assert!(campaign.guide == stopped.guide, "what was learned is kept");
            assert_eq!(campaign.progress.counts, stopped.progress.counts);
        }
        carry_on(plan, 1, campaign, &mut |_| Proceed::GoOn).unwrap()
    }

    #[test]
    fn a_campaign_that_was_stopped_comes_to_the_same() {
        for guidance in [Guidance::On, Guidance::Off] {
            let plan = plan(7, guidance);
            let (whole, parts) = (whole(&plan), in_parts(&plan, &[2, 5]));
            assert_eq!(parts.digest, whole.digest);
            assert_eq!(parts.progress.counts, whole.progress.counts);
            assert!(parts.guide == whole.guide, "the same was learned");
            let neighbours = whole.guide.yields.of(Way::Neighbour).runs;
            assert_eq!(neighbours > 0, guidance == Guidance::On);
        }
    }

    #[test]
    fn a_campaign_that_is_complete_is_not_gone_on_with() {
        let mut plan = plan(7, Guidance::On);
        plan.runs = 3 * BATCH_RUNS;
        let by_runs = whole(&plan);
        let again = read_standing(&plan, &write_standing(&plan, &by_runs)).unwrap();
        let again = carry_on(&plan, 1, again, &mut |_| Proceed::GoOn).unwrap();
        assert_eq!(again.digest, by_runs.digest);

        plan.runs = u64::MAX;
        let states = by_runs.progress.counts.states_judged;
        let mut until = |campaign: &Campaign| {
            if campaign.progress.counts.states_judged >= states {
                Proceed::Stop
            } else {
                Proceed::GoOn
            }
        };
        let by_states = carry_on(&plan, 1, Campaign::default(), &mut until).unwrap();
        assert_eq!(by_states.digest, by_runs.digest);
        let again = read_standing(&plan, &write_standing(&plan, &by_states)).unwrap();
        let again = carry_on(&plan, 1, again, &mut until).unwrap();
        assert_eq!(again.digest, by_states.digest);
        assert_eq!(again.progress.runs, by_states.progress.runs);
    }

    #[test]
    fn a_campaign_that_found_something_is_not_gone_on_with() {
        let plan = plan(7, Guidance::Off);
        let mut stopped = carry_on(&plan, 1, Campaign::default(), &mut |_| Proceed::Stop).unwrap();
        stopped.progress.counts.violations = 2;
        let text = write_standing(&plan, &stopped);
        assert_eq!(
            read_standing(&plan, &text).unwrap_err().to_string(),
            "the campaign ended after 16 runs, with 2 violations: the traces lie beside this file, and summary.json \
             there names them"
        );
        // Nor where what was found is not known any more.
        let again = carry_on(&plan, 1, stopped, &mut |_| Proceed::GoOn).unwrap();
        assert_eq!(again.progress.runs, BATCH_RUNS);
    }

    #[test]
    fn a_campaign_with_a_broken_harness_is_not_gone_on_with() {
        let plan = plan(7, Guidance::Off);
        let mut stopped = carry_on(&plan, 1, Campaign::default(), &mut |_| Proceed::Stop).unwrap();
        stopped.broken.push("run 3: one thing\nand more".into());
        let text = write_standing(&plan, &stopped);
        assert_eq!(
            read_standing(&plan, &text).unwrap_err().to_string(),
            "the campaign ended after 16 runs, for the harness is broken, and has no traces: run 3: one thing"
        );
        let again = carry_on(&plan, 1, stopped, &mut |_| Proceed::GoOn).unwrap();
        assert_eq!(again.progress.runs, BATCH_RUNS);
    }

    #[test]
    fn what_is_of_another_campaign_or_damaged_is_refused() {
        let plan = plan(7, Guidance::On);
        let stopped = carry_on(&plan, 1, Campaign::default(), &mut |_| Proceed::Stop).unwrap();
        let text = write_standing(&plan, &stopped);
        let other = Plan {
            seed: 8,
            ..plan.clone()
        };
        let refused = |text: &str| read_standing(&plan, text).unwrap_err().to_string();
        let of_another = read_standing(&other, &text).unwrap_err().to_string();
        assert_eq!(
            of_another,
            "it is of a campaign with another seed or other options"
        );
        assert!(refused("{}").contains("missing field"));
        let short = text.replacen("\"features\":\"", "\"features\":\"0", 1);
        assert!(refused(&short).starts_with("features: "));
        let no_digits = text.replacen("\"signatures\":\"0", "\"signatures\":\"x", 1);
        let no_digits = no_digits.replacen("\"signatures\":\"1", "\"signatures\":\"x", 1);
        assert!(no_digits == text || refused(&no_digits).starts_with("signatures: "));
        let wrong = text.replacen("\"concurrency\":", "\"concurrency\":0,\"x\":", 1);
        assert!(refused(&wrong).starts_with("kept[0]: "));
        for cut in [1, 10, 100] {
            let part = &text[..text.len() - cut - 1];
            assert!(read_standing(&plan, part).is_err());
        }
    }
}
