use blkdebug::class::Class;
use blkdebug::contract::Contract;
use blkdebug::mask::{SectorMask, Shape};
use blkdebug::rule::{Chance, During, Fault, Repeat, Rule, State, Tear, Transition, When};
use engine::barrier::Barrier;
use engine::defect::{Defect, Flaw};
use engine::device::Cause;
use proptest::prelude::*;

use super::*;
use crate::fault::silent::Wound;
use crate::prng::Prng;
use crate::workload::generate::scenario;
use crate::workload::given::Given;
use crate::workload::pin::Pins;
use crate::workload::shape::Start;

fn no_files(_: &str) -> Result<PageImage, String> {
    Err("no file is read here".into())
}

fn request() -> impl Strategy<Value = RequestRef> {
    let event = prop::sample::select(Event::ALL.to_vec());
    let kind = prop::sample::select(OpKind::ALL.to_vec());
    let disk = prop::sample::select(Disk::ALL.to_vec());
    (disk, event, kind, any::<u64>()).prop_map(|(disk, event, kind, ordinal)| RequestRef {
        disk,
        event,
        kind,
        ordinal,
    })
}

fn crash() -> impl Strategy<Value = Crash> {
    let edge = prop_oneof![Just(Edge::Submission), Just(Edge::Completion)];
    let sectors = || {
        prop::collection::btree_set(0usize..100, 0..20)
            .prop_map(|set| set.into_iter().collect::<Vec<_>>())
    };
    let content = prop_oneof![
        Just(Left::Whole),
        sectors().prop_map(Left::Sectors),
        (sectors(), sectors()).prop_map(|(asked, garbage)| Left::Scattered { asked, garbage }),
    ];
    let length = prop_oneof![Just(LengthLeft::Kept), Just(LengthLeft::Lost)];
    let survivor = (request(), content, length).prop_map(|(request, content, length)| Survivor {
        request,
        content,
        length,
    });
    let power_loss = (
        prop::option::of((edge, request())),
        any::<u64>(),
        prop::collection::vec(survivor, 0..5),
        prop::option::of(request()),
    )
        .prop_map(|(before, moment, survivors, ignored_from)| Crash {
            cut: Cut { before, moment },
            survivors,
            ignored_from,
            then: None,
        })
        .boxed();
    let disk = prop::sample::select(Disk::ALL.to_vec());
    let then = prop_oneof![
        Just(None),
        Just(Some(Then::Service { crash: None })),
        (disk, 0usize..3, power_loss.clone()).prop_map(|(disk, attempt, inner)| {
            Some(Then::Repair {
                disk,
                attempt,
                crash: Box::new(inner),
            })
        }),
        power_loss.clone().prop_map(|inner| Some(Then::Service {
            crash: Some(Box::new(inner)),
        })),
    ];
    (power_loss, then).prop_map(|(outer, then)| Crash { then, ..outer })
}

fn rule() -> impl Strategy<Value = Rule> {
    let exact = prop::collection::btree_set(0usize..70, 1..9).prop_map(|set| {
        let end = set.last().unwrap() + 1;
        Tear::Exact(SectorMask::from_fn(end, |sector| set.contains(&sector)))
    });
    let shape = prop::sample::select(Shape::ALL.to_vec()).prop_map(Tear::Shape);
    let tear = prop_oneof![exact, shape];
    let errno = || {
        let named = [Cause::PowerOff, Cause::BadRequest, Cause::ReadOnly];
        prop_oneof![
            (1i32..100).prop_map(Cause::Os),
            prop::sample::select(named.to_vec())
        ]
    };
    let fault = prop_oneof![
        errno().prop_map(Fault::Fail),
        Just(Fault::Drop),
        tear.clone().prop_map(Fault::Tear),
        (errno(), prop::option::of(tear)).prop_map(|(cause, part)| Fault::Persist(cause, part)),
        errno().prop_map(Fault::Forget),
        (errno(), any::<u64>(), any::<u64>())
            .prop_map(|(cause, one_in, seed)| Fault::ForgetSome(cause, Chance { one_in, seed })),
        any::<u64>().prop_map(Fault::Full),
        any::<u64>().prop_map(Fault::EndAt),
        prop::sample::select(When::ALL.to_vec()).prop_map(Fault::PowerCut),
        any::<i64>().prop_map(Fault::Misdirect),
        any::<u64>().prop_map(Fault::Duplicate),
        any::<u64>().prop_map(Fault::Flip),
        any::<u64>().prop_map(Fault::Shorten),
    ];
    let bounds = (
        prop::option::of(any::<u64>()),
        prop::option::of(any::<u64>()),
    );
    let chance = (any::<u64>(), any::<u64>()).prop_map(|(one_in, seed)| Chance { one_in, seed });
    let selected = (
        prop::sample::select(Disk::ALL.to_vec()),
        prop::option::of(request()),
        prop::option::of(request()),
        prop::option::of(prop::sample::select(Class::ALL.to_vec())),
        prop::option::of(any::<u64>()),
        prop::option::of(any::<u32>()),
    );
    let when = (
        bounds,
        any::<u64>(),
        prop::option::of(chance),
        any::<bool>(),
    );
    (selected, when, fault).prop_map(|(selected, when, fault)| {
        let (disk, request, after, class, sector, state) = selected;
        let ((from, until), skip, chance, once) = when;
        Rule {
            disk,
            event: request.map(|request| request.event),
            after: after.map(|after| after.event),
            kind: request.map(|request| request.kind),
            class,
            sector,
            state: state.map(State),
            during: During { from, until },
            skip,
            chance,
            repeat: if once { Repeat::Once } else { Repeat::Always },
            fault,
        }
    })
}

fn transition() -> impl Strategy<Value = Transition> {
    (request(), prop::option::of(any::<u32>()), any::<u32>()).prop_map(|(request, from, to)| {
        Transition {
            event: request.event,
            from: from.map(State),
            to: State(to),
        }
    })
}

fn flaw() -> impl Strategy<Value = Flaw> {
    let defects = Defect::ALL.iter().copied().map(Flaw::Defect);
    let barriers = Barrier::ALL.iter().copied().map(Flaw::Without);
    prop::sample::select(defects.chain(barriers).collect::<Vec<Flaw>>())
}

prop_compose! {
    fn trace()(
        seed: u64,
        about in ".*",
        crash in prop::option::of(crash()),
        faults in prop::collection::vec(rule(), 0..3),
        transitions in prop::collection::vec(transition(), 0..3),
        contract in prop::sample::select(Contract::ALL.to_vec()),
        flaw in prop::option::of(flaw()),
        class in prop::option::of(".*"),
        shown in prop::option::of((
            prop::sample::select(Contract::ALL.to_vec()),
            prop::sample::select(Acceptance::ALL.to_vec()),
        )),
        choices in prop::collection::vec(0u32..9, 0..50),
        digest: Option<u128>,
    ) -> Trace {
        let drawn = scenario(&Prng::from_seed(seed), &Pins::default());
        let mut choices = choices;
        while choices.last() == Some(&0) {
            choices.pop();
        }
        Trace {
            about,
            scenario: Scenario { contract, faults, transitions, flaw, ..drawn },
            choices,
            crash,
            damage: None,
            expected: class.map_or(Expected::Survived, Expected::Violated),
            shown: shown.map(|(contract, breaks)| Shown { contract, breaks }),
            digest,
        }
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(trace in trace()) {
        let text = trace.to_json();
        prop_assert_eq!(Trace::from_json(&text, &no_files), Ok(trace));
    }

    #[test]
    fn a_damaged_trace_is_refused_or_means_something(
        seed in 0u64..50, at: prop::sample::Index, byte in any::<char>(),
    ) {
        let mut chars: Vec<char> = sample(seed).to_json().chars().collect();
        let index = at.index(chars.len());
        chars[index] = byte;
        let text: String = chars.into_iter().collect();
        if let Ok(trace) = Trace::from_json(&text, &no_files) {
            prop_assert!(trace.scenario.check().is_ok());
        }
    }
}

fn sample(seed: u64) -> Trace {
    Trace {
        about: String::new(),
        scenario: scenario(&Prng::from_seed(seed), &Pins::default()),
        choices: vec![1, 0, 2],
        crash: None,
        damage: Some(Wound::Misdirected { sector: 3, to: 9 }),
        expected: Expected::Survived,
        shown: None,
        digest: None,
    }
}

fn given(image: &PageImage) -> Trace {
    let mut trace = sample(1);
    trace.scenario.image = Start::Given(Given::new("real.qcow2".into(), image));
    trace
}

fn message(text: &str) -> String {
    Trace::from_json(text, &no_files).unwrap_err().to_string()
}

#[test]
fn a_small_image_travels_inside_its_trace() {
    let mut image = PageImage::zeroed(10_000);
    image.write(512, &[7; 512]);
    image.write(9_990, &[8; 10]);
    let trace = given(&image);
    assert_eq!(Trace::from_json(&trace.to_json(), &no_files), Ok(trace));
}

#[test]
fn a_large_image_is_fetched_by_path_and_must_be_the_same() {
    let mut image = PageImage::zeroed(0);
    let mut prng = Prng::from_seed(1);
    let noise: Vec<u8> = (0..1 << 18)
        .flat_map(|_| prng.bits().to_le_bytes())
        .collect();
    image.write(0, &noise);
    let trace = given(&image);
    let text = trace.to_json();
    assert!(text.len() < 10_000, "{}", text.len());
    let same = image.clone();
    assert_eq!(Trace::from_json(&text, &|_| Ok(same.clone())), Ok(trace));
    image.write(0, &[0; 512]);
    let error = Trace::from_json(&text, &|_| Ok(image.clone())).unwrap_err();
    assert!(
        error.to_string().contains("the trace was made from"),
        "{error}"
    );
    assert!(message(&text).contains("no file is read here"));
}

#[test]
fn an_unknown_version_is_refused_as_such() {
    let newer = |major: u32, minor: u32| {
        let version = format!("\"major\": {major},\n    \"minor\": {minor}");
        let own = format!("\"major\": {MAJOR},\n    \"minor\": {MINOR}");
        let text = sample(1).to_json().replace(&own, &version);
        // What a newer version adds is not what is complained about.
        message(&text.replace("\"about\"", "\"novelty\""))
    };
    assert!(newer(2, 0).contains("version 2.0, and this program reads version 1 only"));
    let known = format!("versions up to {MAJOR}.{MINOR}: use a newer qrash");
    assert!(newer(MAJOR, MINOR + 1).contains(&known));
    assert!(message("{}").contains("no trace"));
}

#[test]
fn what_is_wrong_is_told_in_one_line_with_its_place() {
    let text = sample(1).to_json();
    for (bad, parts) in [
        (text[..100].to_owned(), ["line 8", "EOF"]),
        (
            text.replace("\"concurrency\"", "\"concurency\""),
            ["column", "unknown field `concurency`"],
        ),
        (
            text.replace("\"contract\": \"epoch-torn\"", "\"contract\": \"epic\""),
            ["contract:", "`epic` is not known"],
        ),
        (
            text.replace("\"operations\": [", "\"operations\": [\n\"wrte 0 512\","),
            ["operations[0]:", "`wrte 0 512`"],
        ),
        (
            text.replace("\"operations\": [", "\"operations\": [\n\"write 0 511\","),
            ["scenario:", "whole sectors"],
        ),
        (
            text.replace(
                "\"operations\": [",
                "\"operations\": [\n\"write 0 512000000000000\",",
            ),
            ["scenario:", "at most"],
        ),
    ] {
        let message = message(&bad);
        assert!(!message.contains('\n'), "{message}");
        for part in parts {
            assert!(message.contains(part), "{message}");
        }
    }
}
