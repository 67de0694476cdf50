//! The JSON form of a trace: the only place that knows it.
//!
//! Every structure here refuses fields that it does not know, so that a misspelt field is an error and
//! not a default. The version is read first, leniently, so that a newer format is told as such.

use blkdebug::contract::Contract;
use blkdebug::disks::Disk;
use engine::defect::Flaw;
use engine::preallocation::Preallocation;
use engine::qcow2::compress::Compression;
use engine::qcow2::create::DataFileContent;
use engine::qcow2::geometry::Geometry;
use engine::qcow2::{DiscardedCluster, Discards, GuestDiscards, OverlapChecks, Pass, Region};
use engine::zeroes::DetectZeroes;
use serde::{Deserialize, Serialize};

use super::faults::{
    FaultJson, TransitionJson, read_fault, read_transition, write_fault, write_transition,
};
use super::text::{self, BadText};
use super::{BadTrace, Crash, Cut, Expected, Loader, MAJOR, MINOR, Shown, Then, Trace, bytes};
use crate::fault::silent::NoWound;
use crate::oracle::Acceptance;
use crate::workload::given::Given;
use crate::workload::shape::{
    Backing, CacheShape, Chain, Encrypted, Extent, ImageShape, Management, OptionShape, Scenario,
    Start, backing_format,
};

const FORMAT: &str = "qrash-trace";

#[derive(Deserialize)]
struct VersionJson {
    format: Option<String>,
    version: Option<Version>,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Version {
    major: u32,
    minor: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TraceJson {
    format: String,
    version: Version,
    about: String,
    expected: ExpectedJson,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    shown: Option<ShownJson>,
    image: ImageJson,
    caches: CachesJson,
    #[serde(default, skip_serializing_if = "OptionsJson::is_plain")]
    options: OptionsJson,
    operations: Vec<String>,
    concurrency: usize,
    #[serde(default, skip_serializing_if = "is_off")]
    overlap: bool,
    #[serde(default)]
    choices: String,
    contract: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    faults: Vec<FaultJson>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    transitions: Vec<TransitionJson>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    defect: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    crash: Option<CrashJson>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    damage: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
}

/// What is left out is as [`OptionShape::default`] has it.
#[derive(Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OptionsJson {
    #[serde(default, skip_serializing_if = "is_off")]
    ignore_discards: bool,
    #[serde(default, skip_serializing_if = "is_off")]
    discard_no_unref: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pass_discards: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    detect_zeroes: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    overlap_checks: Option<Vec<String>>,
}

impl OptionsJson {
    fn is_plain(&self) -> bool {
        *self == Self::default()
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExpectedJson {
    verdict: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    class: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ShownJson {
    contract: String,
    breaks: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ImageJson {
    New(Box<NewJson>),
    Given(GivenJson),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a field of the format"
)]
struct NewJson {
    version: u32,
    cluster_bytes: u64,
    refcount_bits: u64,
    lazy_refcounts: bool,
    #[serde(default, skip_serializing_if = "is_off")]
    extended_l2: bool,
    virtual_bytes: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    backing: Option<BackingJson>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    chain: Option<ChainJson>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    data_file: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    unmapped: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    filled: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    encryption: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    compression: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    packed: Vec<String>,
    #[serde(default, skip_serializing_if = "is_off")]
    abandoned: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    preallocation: Option<String>,
    #[serde(default, skip_serializing_if = "is_none")]
    snapshots: u32,
    #[serde(default, skip_serializing_if = "is_off")]
    terse_snapshots: bool,
    #[serde(default, skip_serializing_if = "is_off")]
    claiming_snapshots: bool,
    #[serde(default, skip_serializing_if = "is_off")]
    unknown_autoclear: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    bitmaps: Vec<String>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_none(count: &u32) -> bool {
    *count == 0
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_off(switch: &bool) -> bool {
    !switch
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BackingJson {
    format: String,
    virtual_bytes: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ChainJson {
    cluster_bytes: u64,
    #[serde(default, skip_serializing_if = "is_off")]
    lazy_refcounts: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    held: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    base: Option<BackingJson>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    other: Option<BackingJson>,
}

/// An image from outside: its bytes where they are few, its path and hash otherwise.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct GivenJson {
    path: String,
    len_bytes: u64,
    hash: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    deflated: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CachesJson {
    l2_slices: usize,
    refcount_slices: usize,
    slice_bytes: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CrashJson {
    cut: String,
    moment: u64,
    survivors: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ignored_from: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    in_repair: Option<RepairJson>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    in_service: Option<ServiceJson>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ServiceJson {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    crash: Option<Box<CrashJson>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RepairJson {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    disk: Option<String>,
    attempt: usize,
    crash: Box<CrashJson>,
}

pub(super) fn write(trace: &Trace) -> String {
    let scenario = &trace.scenario;
    let json = TraceJson {
        format: FORMAT.into(),
        version: Version {
            major: MAJOR,
            minor: MINOR,
        },
        about: trace.about.clone(),
        expected: match &trace.expected {
            Expected::Survived => ExpectedJson {
                verdict: "survived".into(),
                class: None,
            },
            Expected::Violated(class) => ExpectedJson {
                verdict: "violated".into(),
                class: Some(class.clone()),
            },
        },
        shown: trace.shown.map(|shown| ShownJson {
            contract: shown.contract.name().into(),
            breaks: shown.breaks.name().into(),
        }),
        image: match &scenario.image {
            Start::New(shape) => ImageJson::New(Box::new(write_shape(shape))),
            Start::Given(given) => ImageJson::Given(write_given(given)),
        },
        caches: CachesJson {
            l2_slices: scenario.caches.l2_slices,
            refcount_slices: scenario.caches.refcount_slices,
            slice_bytes: scenario.caches.slice_bytes,
        },
        options: write_options(scenario.options),
        operations: scenario
            .operations
            .iter()
            .map(|operation| text::operation_text(*operation))
            .collect(),
        concurrency: scenario.concurrency,
        overlap: scenario.management == Management::Overlapping,
        choices: text::choices_text(&trace.choices),
        contract: scenario.contract.name().into(),
        faults: scenario.faults.iter().map(write_fault).collect(),
        transitions: scenario.transitions.iter().map(write_transition).collect(),
        defect: scenario.flaw.map(|flaw| flaw.name().into()),
        crash: trace.crash.as_ref().map(write_crash),
        damage: trace.damage.map(|wound| wound.to_string()),
        digest: trace.digest.map(|digest| format!("{digest:032x}")),
    };
    let mut text = serde_json::to_string_pretty(&json).expect("a trace has no map with odd keys");
    text.push('\n');
    text
}

/// The sources of discards by the names that `pass_discards` has for them.
fn passed(discards: &mut Discards) -> [(&'static str, &mut Pass); 4] {
    [
        ("request", &mut discards.request),
        ("snapshot", &mut discards.snapshot),
        ("other", &mut discards.other),
        ("replaced", &mut discards.replaced),
    ]
}

fn write_options(options: OptionShape) -> OptionsJson {
    let plain = OptionShape::default();
    let mut discards = options.discards;
    let sources = passed(&mut discards);
    let all = sources.iter().all(|(_, pass)| **pass == Pass::Yes);
    let named = sources.into_iter().filter(|(_, pass)| **pass == Pass::Yes);
    let names = named.map(|(name, _)| name.into()).collect();
    let regions = Region::ALL.into_iter();
    let regions = regions.filter(|region| options.overlap_checks.has(*region));
    let checked = regions.map(|region| region.name().into()).collect();
    OptionsJson {
        ignore_discards: options.discards.guest == GuestDiscards::Ignored,
        discard_no_unref: options.discards.cluster == DiscardedCluster::Kept,
        pass_discards: (!all).then_some(names),
        detect_zeroes: (options.detect_zeroes != plain.detect_zeroes)
            .then(|| options.detect_zeroes.name().into()),
        overlap_checks: (options.overlap_checks != plain.overlap_checks).then_some(checked),
    }
}

fn read_options(json: &OptionsJson) -> Result<OptionShape, BadTrace> {
    let mut options = OptionShape::default();
    if json.ignore_discards {
        options.discards.guest = GuestDiscards::Ignored;
    }
    if json.discard_no_unref {
        options.discards.cluster = DiscardedCluster::Kept;
    }
    if let Some(names) = &json.pass_discards {
        for (_, pass) in passed(&mut options.discards) {
            *pass = Pass::No;
        }
        for name in names {
            let mut sources = passed(&mut options.discards).into_iter();
            let (_, pass) = known("options.pass_discards", name, |name| {
                sources.find(|(one, _)| *one == name)
            })?;
            *pass = Pass::Yes;
        }
    }
    if let Some(name) = &json.detect_zeroes {
        options.detect_zeroes = known("options.detect_zeroes", name, DetectZeroes::from_name)?;
    }
    if let Some(names) = &json.overlap_checks {
        options.overlap_checks = OverlapChecks::none();
        for name in names {
            let region = known("options.overlap_checks", name, |name| {
                Region::ALL.into_iter().find(|region| region.name() == name)
            })?;
            options.overlap_checks = options.overlap_checks.with(region);
        }
    }
    Ok(options)
}

fn write_shape(shape: &ImageShape) -> NewJson {
    NewJson {
        version: shape.version,
        cluster_bytes: shape.geometry.cluster_bytes(),
        refcount_bits: 1 << shape.geometry.refcount_order(),
        lazy_refcounts: shape.lazy_refcounts,
        extended_l2: shape.geometry.has_subclusters(),
        virtual_bytes: shape.virtual_bytes,
        backing: shape.backing.map(write_backing),
        chain: shape.chain.as_ref().map(|chain| ChainJson {
            cluster_bytes: 1 << chain.cluster_bits,
            lazy_refcounts: chain.lazy_refcounts,
            held: write_extents(&chain.held),
            base: chain.base.map(write_backing),
            other: chain.other.map(write_backing),
        }),
        data_file: shape.data_file.map(|content| {
            match content {
                DataFileContent::Clusters => "clusters",
                DataFileContent::Raw => "raw",
            }
            .into()
        }),
        unmapped: write_extents(&shape.unmapped),
        filled: write_extents(&shape.filled),
        encryption: shape.encryption.map(|method| method.name().into()),
        compression: match shape.compression {
            Compression::Zlib => None,
            Compression::Zstd => Some(shape.compression.name().into()),
        },
        packed: write_extents(&shape.packed),
        abandoned: shape.abandoned,
        preallocation: match shape.preallocation {
            Preallocation::Off => None,
            Preallocation::Metadata | Preallocation::Falloc | Preallocation::Full => {
                Some(shape.preallocation.name().into())
            }
        },
        snapshots: shape.snapshots,
        terse_snapshots: shape.terse_snapshots,
        claiming_snapshots: shape.claiming_snapshots,
        unknown_autoclear: shape.unknown_autoclear,
        bitmaps: shape
            .bitmaps
            .iter()
            .map(|bitmap| text::bitmap_shape_text(*bitmap))
            .collect(),
    }
}

fn write_backing(backing: Backing) -> BackingJson {
    BackingJson {
        format: backing.format.name().into(),
        virtual_bytes: backing.virtual_bytes,
    }
}

fn write_extents(extents: &[Extent]) -> Vec<String> {
    let texts = extents.iter().map(|extent| text::extent_text(*extent));
    texts.collect()
}

fn write_given(given: &Given) -> GivenJson {
    GivenJson {
        path: given.path.clone(),
        len_bytes: given.len(),
        hash: format!("{:032x}", given.content_hash().0),
        deflated: bytes::pack(&given.image()),
    }
}

fn write_crash(crash: &Crash) -> CrashJson {
    let mut json = CrashJson {
        cut: text::cut_text(&crash.cut),
        moment: crash.cut.moment,
        survivors: crash.survivors.iter().map(text::survivor_text).collect(),
        ignored_from: crash.ignored_from.map(|request| request.to_string()),
        in_repair: None,
        in_service: None,
    };
    match &crash.then {
        None => {}
        Some(Then::Repair {
            disk,
            attempt,
            crash,
        }) => {
            json.in_repair = Some(RepairJson {
                disk: (*disk != Disk::Image).then(|| disk.name().into()),
                attempt: *attempt,
                crash: Box::new(write_crash(crash)),
            });
        }
        Some(Then::Service { crash }) => {
            json.in_service = Some(ServiceJson {
                crash: crash.as_deref().map(|crash| Box::new(write_crash(crash))),
            });
        }
    }
    json
}

pub(super) fn read(text: &str, loader: Loader<'_>) -> Result<Trace, BadTrace> {
    check_version(&serde_json::from_str(text).map_err(|error| syntax(&error))?)?;
    let json: TraceJson = serde_json::from_str(text).map_err(|error| syntax(&error))?;
    let scenario = read_scenario(&json, loader)?;
    scenario.check().map_err(|bad| meaning("scenario", &bad))?;
    let has_crash = json.crash.is_some();
    Ok(Trace {
        scenario,
        choices: text::choices(&json.choices).map_err(|bad| meaning("choices", &bad))?,
        crash: match json.crash {
            Some(crash) => Some(read_crash("crash", crash)?),
            None => None,
        },
        damage: match &json.damage {
            Some(_) if has_crash => {
                let problem = "the image is damaged at rest, or the power goes out: not both";
                return Err(meaning("damage", &problem));
            }
            Some(text) => Some(
                text.parse()
                    .map_err(|bad: NoWound| meaning("damage", &bad))?,
            ),
            None => None,
        },
        expected: read_expected(json.expected)?,
        shown: json.shown.as_ref().map(read_shown).transpose()?,
        digest: match json.digest {
            Some(digest) => Some(hex("digest", &digest)?),
            None => None,
        },
        about: json.about,
    })
}

fn check_version(found: &VersionJson) -> Result<(), BadTrace> {
    if found.format.as_deref() != Some(FORMAT) {
        return Err(BadTrace::Version(format!(
            "this is no trace: the field `format` is not \"{FORMAT}\""
        )));
    }
    match found.version {
        None => Err(BadTrace::Version("the trace names no version".into())),
        Some(Version { major, minor }) if major != MAJOR => Err(BadTrace::Version(format!(
            "the trace has format version {major}.{minor}, and this program reads version {MAJOR} only"
        ))),
        Some(Version { major, minor }) if minor > MINOR => Err(BadTrace::Version(format!(
            "the trace has format version {major}.{minor}, and this program reads versions up to \
             {MAJOR}.{MINOR}: use a newer qrash"
        ))),
        Some(_) => Ok(()),
    }
}

fn read_scenario(json: &TraceJson, loader: Loader<'_>) -> Result<Scenario, BadTrace> {
    let mut operations = Vec::new();
    for (index, operation) in json.operations.iter().enumerate() {
        let field = format!("operations[{index}]");
        operations.push(text::operation(operation).map_err(|bad| meaning(&field, &bad))?);
    }
    let mut faults = Vec::new();
    for (index, fault) in json.faults.iter().enumerate() {
        faults.push(read_fault(fault).map_err(|bad| meaning(&format!("faults[{index}]"), &bad))?);
    }
    let mut transitions = Vec::new();
    for (index, transition) in json.transitions.iter().enumerate() {
        let field = format!("transitions[{index}]");
        transitions.push(read_transition(transition).map_err(|bad| meaning(&field, &bad))?);
    }
    Ok(Scenario {
        image: match &json.image {
            ImageJson::New(shape) => Start::New(read_shape(shape)?),
            ImageJson::Given(given) => Start::Given(read_given(given, loader)?),
        },
        caches: CacheShape {
            l2_slices: json.caches.l2_slices,
            refcount_slices: json.caches.refcount_slices,
            slice_bytes: json.caches.slice_bytes,
        },
        options: read_options(&json.options)?,
        operations,
        concurrency: json.concurrency,
        management: if json.overlap {
            Management::Overlapping
        } else {
            Management::Alone
        },
        contract: known("contract", &json.contract, Contract::from_name)?,
        faults,
        transitions,
        flaw: match &json.defect {
            Some(name) => Some(known("defect", name, Flaw::from_name)?),
            None => None,
        },
    })
}

fn read_shape(json: &NewJson) -> Result<ImageShape, BadTrace> {
    let exponent = |value: u64| value.is_power_of_two().then(|| value.trailing_zeros());
    let geometry = exponent(json.cluster_bytes)
        .zip(exponent(json.refcount_bits))
        .and_then(|(cluster_bits, refcount_order)| Geometry::new(cluster_bits, refcount_order))
        .and_then(|geometry| {
            if json.extended_l2 {
                geometry.with_extended_l2()
            } else {
                Some(geometry)
            }
        });
    let mut bitmaps = Vec::new();
    for (index, bitmap) in json.bitmaps.iter().enumerate() {
        let field = format!("image.new.bitmaps[{index}]");
        bitmaps.push(text::bitmap_shape(bitmap).map_err(|bad| meaning(&field, &bad))?);
    }
    Ok(ImageShape {
        version: json.version,
        geometry: geometry.ok_or_else(|| BadTrace::Meaning {
            field: "image.new".into(),
            problem: format!(
                "no image has clusters of {} bytes, refcounts of {} bits, and{} extended L2 entries",
                json.cluster_bytes,
                json.refcount_bits,
                if json.extended_l2 { "" } else { " no" }
            ),
        })?,
        lazy_refcounts: json.lazy_refcounts,
        virtual_bytes: json.virtual_bytes,
        backing: read_backing("backing", json.backing.as_ref())?,
        chain: match &json.chain {
            Some(chain) => Some(read_chain(chain)?),
            None => None,
        },
        data_file: match &json.data_file {
            Some(name) => Some(known("image.new.data_file", name, data_file_content)?),
            None => None,
        },
        unmapped: read_extents("unmapped", &json.unmapped)?,
        filled: read_extents("filled", &json.filled)?,
        encryption: match &json.encryption {
            Some(name) => Some(known("image.new.encryption", name, Encrypted::from_name)?),
            None => None,
        },
        compression: match &json.compression {
            Some(name) => known("image.new.compression", name, Compression::from_name)?,
            None => Compression::Zlib,
        },
        packed: read_extents("packed", &json.packed)?,
        abandoned: json.abandoned,
        preallocation: match &json.preallocation {
            Some(name) => known("image.new.preallocation", name, Preallocation::from_name)?,
            None => Preallocation::Off,
        },
        snapshots: json.snapshots,
        terse_snapshots: json.terse_snapshots,
        claiming_snapshots: json.claiming_snapshots,
        unknown_autoclear: json.unknown_autoclear,
        bitmaps,
    })
}

fn read_backing(name: &str, json: Option<&BackingJson>) -> Result<Option<Backing>, BadTrace> {
    let Some(json) = json else {
        return Ok(None);
    };
    let field = format!("image.new.{name}.format");
    Ok(Some(Backing {
        format: known(&field, &json.format, backing_format)?,
        virtual_bytes: json.virtual_bytes,
    }))
}

fn data_file_content(name: &str) -> Option<DataFileContent> {
    match name {
        "clusters" => Some(DataFileContent::Clusters),
        "raw" => Some(DataFileContent::Raw),
        _ => None,
    }
}

fn read_chain(json: &ChainJson) -> Result<Chain, BadTrace> {
    if !json.cluster_bytes.is_power_of_two() {
        let problem = format!("{} is no size of a cluster", json.cluster_bytes);
        return Err(meaning("image.new.chain.cluster_bytes", &problem));
    }
    Ok(Chain {
        cluster_bits: json.cluster_bytes.trailing_zeros(),
        lazy_refcounts: json.lazy_refcounts,
        held: read_extents("chain.held", &json.held)?,
        base: read_backing("chain.base", json.base.as_ref())?,
        other: read_backing("chain.other", json.other.as_ref())?,
    })
}

fn read_extents(list: &str, texts: &[String]) -> Result<Vec<Extent>, BadTrace> {
    let mut extents = Vec::new();
    for (index, extent) in texts.iter().enumerate() {
        let field = format!("image.new.{list}[{index}]");
        extents.push(text::extent(extent).map_err(|bad| meaning(&field, &bad))?);
    }
    Ok(extents)
}

fn read_given(json: &GivenJson, loader: Loader<'_>) -> Result<Given, BadTrace> {
    let wrong = |problem: String| BadTrace::Meaning {
        field: "image.given".into(),
        problem,
    };
    let expected = hex("image.given.hash", &json.hash)?;
    let image = match &json.deflated {
        Some(deflated) => bytes::unpack(deflated, json.len_bytes),
        None => loader(&json.path),
    }
    .map_err(wrong)?;
    let found = image.content_hash().0;
    if found != expected {
        return Err(wrong(format!(
            "the bytes of {} have hash {found:032x}, and the trace was made from {expected:032x}",
            json.path
        )));
    }
    Ok(Given::new(json.path.clone(), &image))
}

fn read_crash(field: &str, json: CrashJson) -> Result<Crash, BadTrace> {
    let before = text::cut(&json.cut).map_err(|bad| meaning(&format!("{field}.cut"), &bad))?;
    let mut survivors = Vec::new();
    for (index, survivor) in json.survivors.iter().enumerate() {
        let field = format!("{field}.survivors[{index}]");
        survivors.push(text::survivor(survivor).map_err(|bad| meaning(&field, &bad))?);
    }
    let ignored_from = match &json.ignored_from {
        None => None,
        Some(name) => Some(known(
            &format!("{field}.ignored_from"),
            name,
            text::request_named,
        )?),
    };
    let then = match (json.in_repair, json.in_service) {
        (None, None) => None,
        (Some(repair), None) => Some(Then::Repair {
            disk: match &repair.disk {
                Some(name) => known(&format!("{field}.in_repair.disk"), name, Disk::from_name)?,
                None => Disk::Image,
            },
            attempt: repair.attempt,
            crash: read_inner(field, "in_repair", *repair.crash)?,
        }),
        (None, Some(ServiceJson { crash: None })) => Some(Then::Service { crash: None }),
        (None, Some(ServiceJson { crash: Some(crash) })) => Some(Then::Service {
            crash: Some(read_inner(field, "in_service", *crash)?),
        }),
        (Some(_), Some(_)) => {
            let both = "in_repair and in_service exclude each other";
            return Err(meaning(field, &both));
        }
    };
    Ok(Crash {
        cut: Cut {
            before,
            moment: json.moment,
        },
        survivors,
        ignored_from,
        then,
    })
}

fn read_inner(field: &str, within: &str, json: CrashJson) -> Result<Box<Crash>, BadTrace> {
    read_crash(&format!("{field}.{within}.crash"), json).map(Box::new)
}

fn read_expected(json: ExpectedJson) -> Result<Expected, BadTrace> {
    match (json.verdict.as_str(), json.class) {
        ("survived", None) => Ok(Expected::Survived),
        ("violated", Some(class)) => Ok(Expected::Violated(class)),
        _ => Err(BadTrace::Meaning {
            field: "expected".into(),
            problem: "the verdict is `survived`, or `violated` with a class".into(),
        }),
    }
}

fn read_shown(json: &ShownJson) -> Result<Shown, BadTrace> {
    Ok(Shown {
        contract: known("shown.contract", &json.contract, Contract::from_name)?,
        breaks: known("shown.breaks", &json.breaks, Acceptance::from_name)?,
    })
}

pub(super) fn known<T>(
    field: &str,
    name: &str,
    from_name: impl FnOnce(&str) -> Option<T>,
) -> Result<T, BadTrace> {
    from_name(name).ok_or_else(|| BadTrace::Meaning {
        field: field.into(),
        problem: format!("`{name}` is not known"),
    })
}

fn hex(field: &str, text: &str) -> Result<u128, BadTrace> {
    u128::from_str_radix(text, 16).map_err(|_| BadTrace::Meaning {
        field: field.into(),
        problem: format!("`{text}` is no hexadecimal number of 128 bits"),
    })
}

pub(super) fn meaning(field: &str, problem: &dyn std::fmt::Display) -> BadTrace {
    BadTrace::Meaning {
        field: field.into(),
        problem: problem.to_string(),
    }
}

fn syntax(error: &serde_json::Error) -> BadTrace {
    let text = error.to_string();
    // serde_json ends its messages with the position, which stands in front here.
    let problem = text.split(" at line ").next().unwrap_or(&text).to_owned();
    BadTrace::Syntax {
        line: error.line(),
        column: error.column(),
        problem,
    }
}

impl From<BadText> for BadTrace {
    fn from(bad: BadText) -> Self {
        meaning("trace", &bad)
    }
}
