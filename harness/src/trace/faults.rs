//! The faults of a trace as JSON.

use blkdebug::class::Class;
use blkdebug::disks::Disk;
use blkdebug::mask::{SectorMask, Shape};
use blkdebug::rule::{Chance, During, Fault, Repeat, Rule, State, Tear, Transition, When};
use engine::device::{Cause, Event, OpKind};
use serde::{Deserialize, Serialize};

use super::json::{known, meaning};
use super::{BadTrace, text};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FaultJson {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    disk: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    event: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    after: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kind: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    class: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sector: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    state: Option<u32>,
    /// Operations of the guest, by their place in the list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    from: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until: Option<u64>,
    #[serde(default)]
    skip: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    chance: Option<ChanceJson>,
    once: bool,
    action: ActionJson,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ChanceJson {
    one_in: u64,
    seed: u64,
}

/// Why a request fails: a Linux errno, or a name where no operating system has said so.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum CauseJson {
    Errno(i32),
    Name(String),
}

/// The causes that are no errnos, by name.
const NAMED: [(&str, Cause); 3] = [
    ("power-off", Cause::PowerOff),
    ("bad-request", Cause::BadRequest),
    ("read-only", Cause::ReadOnly),
];

impl CauseJson {
    fn of(cause: Cause) -> Self {
        let name = match cause {
            Cause::Os(errno) => return Self::Errno(errno),
            Cause::PowerOff => "power-off",
            Cause::BadRequest => "bad-request",
            Cause::ReadOnly => "read-only",
        };
        Self::Name(name.into())
    }

    fn cause(&self) -> Result<Cause, BadTrace> {
        let from_name = |name: &str| {
            let mut named = NAMED.into_iter();
            named.find_map(|(known, cause)| (known == name).then_some(cause))
        };
        match self {
            Self::Errno(errno) => Ok(Cause::Os(*errno)),
            Self::Name(name) => known("action", name, from_name),
        }
    }
}

/// What a flush fails with, and which of the writes that it loses.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ForgetJson {
    errno: CauseJson,
    one_in: u64,
    seed: u64,
}

/// Numbers are Linux errnos, bytes, sectors or requests, as the name says.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum ActionJson {
    Fail(CauseJson),
    Drop,
    /// The name of a shape.
    Tear(String),
    TearExactly(ExactJson),
    FailThenPersist(PersistJson),
    FailFlushAndDrop(CauseJson),
    FailFlushAndDropSome(ForgetJson),
    FullAfter(u64),
    EndAt(u64),
    PowerCut(String),
    Misdirect(i64),
    Duplicate(u64),
    Flip(u64),
    ShortRead(u64),
}

/// A list of sectors, and how many sectors the request that it was made for has.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExactJson {
    sectors: String,
    count: usize,
}

/// What of a request happens that is reported as failed: everything, or a shape, or sectors.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PersistJson {
    errno: CauseJson,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tear: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tear_exactly: Option<ExactJson>,
}

impl ExactJson {
    fn of(mask: &SectorMask) -> Self {
        Self {
            sectors: text::sectors_text(&mask.iter().collect::<Vec<_>>()),
            count: mask.sector_count(),
        }
    }

    fn mask(&self) -> Result<SectorMask, BadTrace> {
        let picked = text::sectors(&self.sectors).map_err(|bad| meaning("action", &bad))?;
        let end = picked.last().map_or(0, |last| last + 1);
        let count = self.count.min(end);
        Ok(SectorMask::from_fn(count, |sector| {
            picked.binary_search(&sector).is_ok()
        }))
    }
}

/// A change of the state of the rules, on every disk by itself.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TransitionJson {
    event: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    state: Option<u32>,
    new_state: u32,
}

pub(super) fn write_transition(transition: &Transition) -> TransitionJson {
    TransitionJson {
        event: transition.event.name().into(),
        state: transition.from.map(|state| state.0),
        new_state: transition.to.0,
    }
}

pub(super) fn read_transition(json: &TransitionJson) -> Result<Transition, BadTrace> {
    Ok(Transition {
        event: known("event", &json.event, Event::from_name)?,
        from: json.state.map(State),
        to: State(json.new_state),
    })
}

pub(super) fn write_fault(rule: &Rule) -> FaultJson {
    FaultJson {
        disk: (rule.disk != Disk::Image).then(|| rule.disk.name().into()),
        event: rule.event.map(|event| event.name().into()),
        after: rule.after.map(|event| event.name().into()),
        kind: rule.kind.map(|kind| kind.name().into()),
        class: rule.class.map(|class| class.name().into()),
        sector: rule.sector,
        state: rule.state.map(|state| state.0),
        from: rule.during.from,
        until: rule.during.until,
        skip: rule.skip,
        chance: rule
            .chance
            .map(|Chance { one_in, seed }| ChanceJson { one_in, seed }),
        once: rule.repeat == Repeat::Once,
        action: write_action(&rule.fault),
    }
}

fn write_action(fault: &Fault) -> ActionJson {
    match fault {
        Fault::Fail(cause) => ActionJson::Fail(CauseJson::of(*cause)),
        Fault::Persist(cause, part) => ActionJson::FailThenPersist(PersistJson {
            errno: CauseJson::of(*cause),
            tear: match part {
                Some(Tear::Shape(shape)) => Some(shape.name().into()),
                Some(Tear::Exact(_)) | None => None,
            },
            tear_exactly: match part {
                Some(Tear::Exact(mask)) => Some(ExactJson::of(mask)),
                Some(Tear::Shape(_)) | None => None,
            },
        }),
        Fault::Forget(cause) => ActionJson::FailFlushAndDrop(CauseJson::of(*cause)),
        Fault::ForgetSome(cause, Chance { one_in, seed }) => {
            ActionJson::FailFlushAndDropSome(ForgetJson {
                errno: CauseJson::of(*cause),
                one_in: *one_in,
                seed: *seed,
            })
        }
        Fault::Full(bytes) => ActionJson::FullAfter(*bytes),
        Fault::EndAt(bytes) => ActionJson::EndAt(*bytes),
        Fault::PowerCut(when) => ActionJson::PowerCut(when.name().into()),
        Fault::Drop => ActionJson::Drop,
        Fault::Tear(Tear::Shape(shape)) => ActionJson::Tear(shape.name().into()),
        Fault::Tear(Tear::Exact(mask)) => ActionJson::TearExactly(ExactJson::of(mask)),
        Fault::Misdirect(sectors) => ActionJson::Misdirect(*sectors),
        Fault::Duplicate(answers) => ActionJson::Duplicate(*answers),
        Fault::Flip(bit) => ActionJson::Flip(*bit),
        Fault::Shorten(sectors) => ActionJson::ShortRead(*sectors),
    }
}

pub(super) fn read_fault(json: &FaultJson) -> Result<Rule, BadTrace> {
    let event = |field: &str, name: &Option<String>| match name {
        Some(name) => known(field, name, Event::from_name).map(Some),
        None => Ok(None),
    };
    Ok(Rule {
        disk: match &json.disk {
            Some(name) => known("disk", name, Disk::from_name)?,
            None => Disk::Image,
        },
        event: event("event", &json.event)?,
        after: event("after", &json.after)?,
        kind: match &json.kind {
            Some(name) => Some(known("kind", name, OpKind::from_name)?),
            None => None,
        },
        class: match &json.class {
            Some(name) => Some(known("class", name, Class::from_name)?),
            None => None,
        },
        sector: json.sector,
        state: json.state.map(State),
        during: During {
            from: json.from,
            until: json.until,
        },
        skip: json.skip,
        chance: json.chance.as_ref().map(|chance| Chance {
            one_in: chance.one_in,
            seed: chance.seed,
        }),
        repeat: if json.once {
            Repeat::Once
        } else {
            Repeat::Always
        },
        fault: read_action(&json.action)?,
    })
}

fn read_action(action: &ActionJson) -> Result<Fault, BadTrace> {
    let shape = |name: &str| known("action.tear", name, Shape::from_name).map(Tear::Shape);
    Ok(match action {
        ActionJson::Fail(cause) => Fault::Fail(cause.cause()?),
        ActionJson::Drop => Fault::Drop,
        ActionJson::Tear(name) => Fault::Tear(shape(name)?),
        ActionJson::TearExactly(exact) => Fault::Tear(Tear::Exact(exact.mask()?)),
        ActionJson::FailThenPersist(persist) => {
            let part = match (&persist.tear, &persist.tear_exactly) {
                (Some(name), None) => Some(shape(name)?),
                (None, Some(exact)) => Some(Tear::Exact(exact.mask()?)),
                (None, None) => None,
                (Some(_), Some(_)) => {
                    let text = "a request is torn in one way: tear or tear_exactly";
                    return Err(meaning("action.fail-then-persist", &text));
                }
            };
            Fault::Persist(persist.errno.cause()?, part)
        }
        ActionJson::FailFlushAndDrop(cause) => Fault::Forget(cause.cause()?),
        ActionJson::FailFlushAndDropSome(forget) => Fault::ForgetSome(
            forget.errno.cause()?,
            Chance {
                one_in: forget.one_in,
                seed: forget.seed,
            },
        ),
        ActionJson::FullAfter(bytes) => Fault::Full(*bytes),
        ActionJson::EndAt(bytes) => Fault::EndAt(*bytes),
        ActionJson::PowerCut(name) => {
            Fault::PowerCut(known("action.power-cut", name, When::from_name)?)
        }
        ActionJson::Misdirect(sectors) => Fault::Misdirect(*sectors),
        ActionJson::Duplicate(answers) => Fault::Duplicate(*answers),
        ActionJson::Flip(bit) => Fault::Flip(*bit),
        ActionJson::ShortRead(sectors) => Fault::Shorten(*sectors),
    })
}
