//! What a run starts from: the image, the workload, the disk, and nothing left to chance.
//!
//! A scenario and a list of choices are the whole input of a run.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;

use blkdebug::contract::Contract;
use blkdebug::disks::Disk;
use blkdebug::rule::{Rule, Transition};
use engine::defect::Flaw;
use engine::luks::{Algorithm, CipherSpec, Mode, SLOTS, Vector};
use engine::manage::RawPromise;
use engine::preallocation::Preallocation;
use engine::qcow2::compress::Compression;
use engine::qcow2::create::{BackingFormat, DataFileContent};
use engine::qcow2::geometry::Geometry;
use engine::qcow2::{Discards, OverlapChecks};
use engine::zeroes::DetectZeroes;

use super::given::Given;
use super::ops::{
    DataFileOperation, DiskChange, KeySlotChange, KeySlotOperation, Operation, SnapshotChange,
    SnapshotOperation,
};
use super::stamp::Writer;
use crate::guest::Content;

/// Everything about a run but its schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scenario {
    /// The image that the run starts with.
    pub image: Start,
    /// How much of its tables the engine may keep in memory.
    pub caches: CacheShape,
    /// What else the engine is told when it opens the image.
    pub options: OptionShape,
    /// What is done to it.
    pub operations: Vec<Operation>,
    /// How many operations may be in flight at once; at least 1.
    pub concurrency: usize,
    /// Whether operations on the image as a whole are in flight beside the guest's.
    pub management: Management,
    /// What the disk may do at a power loss.
    pub contract: Contract,
    /// Which requests go wrong.
    pub faults: Vec<Rule>,
    /// How the state changes that rules may ask for; each disk is in one of its own.
    pub transitions: Vec<Transition>,
    /// What is wrong in the engine on purpose, if anything.
    pub flaw: Option<Flaw>,
}

/// How operations on the image as a whole go with those of the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Management {
    /// They wait for everything in flight, and all that follows waits for them.
    #[default]
    Alone,
    /// Growing, amending, renaming, and operations on bitmaps and snapshots are in flight beside the
    /// guest's; one at a time. What moves the disk to other content as a whole stays alone.
    Overlapping,
}

/// The image that a run starts with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// A new one.
    New(ImageShape),
    /// One that someone has.
    Given(Given),
}

/// An image as it is before a run.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is told apart by its name, and most are off"
)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageShape {
    /// 2 or 3.
    pub version: u32,
    /// Cluster size, refcount width, and whether L2 entries are extended.
    pub geometry: Geometry,
    /// Whether the image's header asks for lazy refcounts.
    pub lazy_refcounts: bool,
    /// The size of the guest's disk.
    pub virtual_bytes: u64,
    /// What lies beneath.
    pub backing: Option<Backing>,
    /// What else there is for operations on chains; with a backing file only.
    pub chain: Option<Chain>,
    /// What the external file is by itself that the guest's data stand in, if they do. Version 3 only.
    pub data_file: Option<DataFileContent>,
    /// Ranges that the image says are zeroes, before anything was filled, without leaving it to the data file:
    /// other programs do so. Only with a raw one, whose every cluster is mapped otherwise.
    pub unmapped: Vec<Extent>,
    /// What the guest wrote long ago, each range stamped with [`Writer::Image`].
    pub filled: Vec<Extent>,
    /// How the guest's data are encrypted, if they are.
    pub encryption: Option<Encrypted>,
    /// How compressed clusters are compressed.
    pub compression: Compression,
    /// What the guest wrote in compressed form, after that, where the clusters are whole and nothing is
    /// stored of them; as ever elsewhere. Each range is stamped with [`Writer::Image`] too.
    pub packed: Vec<Extent>,
    /// Whether whoever wrote it last lost power with the dirty bit set, before any refcount reached the
    /// disk. Version 3 only.
    pub abandoned: bool,
    /// How many snapshots were taken while it was filled: the first after a part of `filled`, the next
    /// after more of it. They have the numbers from 0 up.
    pub snapshots: u32,
    /// Whether the entries of those leave out the size of their disk, as entries of version 2 do. Version 3 only,
    /// where a repair makes up for that, or a change of the size.
    pub terse_snapshots: bool,
    /// Whether the tables of those claim COPIED wherever they can, as those of other programs do: the flag is
    /// accurate in the tables of the disk alone.
    pub claiming_snapshots: bool,
    /// Whether its header has an autoclear bit of a feature that nobody knows. Version 3 only.
    pub unknown_autoclear: bool,
    /// How much of it had its place before it was filled. With a backing file it takes extended L2
    /// entries, and under a cipher version 3.
    pub preallocation: Preallocation,
    /// The bitmaps that it has, in order; made before the ranges were filled. Version 3 only.
    pub bitmaps: Vec<BitmapShape>,
}

/// How a run's image encrypts. The keys are [`TEST_SECRET`] and [`TEST_KEY`], which are no secrets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Encrypted {
    /// The legacy method.
    Aes,
    /// LUKS with AES-128 in XTS mode.
    Luks,
}

/// What opens every encrypted image of a run; also the key of the legacy method.
pub const TEST_SECRET: &[u8; 16] = b"not a secret !!!";
/// What the key slots of LUKS images are filled with in a run; the first one opens them before it.
pub const TEST_SECRETS: [&[u8; 16]; 4] = [
    TEST_SECRET,
    b"one is no secret",
    b"two is no secret",
    b"six is no secret",
];
/// The cipher of every LUKS image of a run.
pub const TEST_CIPHER: CipherSpec = CipherSpec {
    algorithm: Algorithm::Aes(16),
    mode: Mode::Xts,
    vector: Vector::Plain64,
};
/// The key of the data of every LUKS image of a run.
pub const TEST_KEY: [u8; 32] = *b"neither is this one a secret ...";

impl Encrypted {
    /// Both methods.
    pub const ALL: [Self; 2] = [Self::Aes, Self::Luks];

    /// The name in traces and options.
    pub fn name(self) -> &'static str {
        match self {
            Self::Aes => "aes",
            Self::Luks => "luks",
        }
    }

    /// The method of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.name() == name)
    }
}

/// A bitmap as it is before a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BitmapShape {
    /// Its number, by which operations name it.
    pub number: u8,
    /// Binary logarithm of the bytes that a bit stands for, 9 to 31.
    pub granularity_bits: u8,
    /// What it is good for.
    pub standing: BitmapStanding,
}

/// What a bitmap is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BitmapStanding {
    /// Writes are noted in it.
    Enabled,
    /// They are not.
    Disabled,
    /// Whoever had the image open last was killed.
    Inconsistent,
}

/// Files that make a chain of what lies beneath an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Binary logarithm of the cluster size of the qcow2 files among them, the backing file included.
    pub cluster_bits: u32,
    /// Whether these ask for lazy refcounts.
    pub lazy_refcounts: bool,
    /// What the backing file holds itself, if it is qcow2: elsewhere it shows the base.
    pub held: Vec<Extent>,
    /// What the backing file lies over, every sector stamped with [`Writer::Base`].
    pub base: Option<Backing>,
    /// Another file that the image can be put over, every sector stamped with [`Writer::Other`].
    pub other: Option<Backing>,
}

/// A file beneath an image, every sector of which is stamped with [`Writer::Backing`] unless a [`Chain`]
/// says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backing {
    /// Its format.
    pub format: BackingFormat,
    /// The size of its guest disk: less than, equal to or more than that of the overlay.
    pub virtual_bytes: u64,
}

/// The format of that name, as traces and options spell it.
pub fn backing_format(name: &str) -> Option<BackingFormat> {
    [BackingFormat::Raw, BackingFormat::Qcow2]
        .into_iter()
        .find(|format| format.name() == name)
}

/// A range of the guest's disk, in bytes and multiples of 512.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Extent {
    /// Where it starts.
    pub offset: u64,
    /// How long it is.
    pub len_bytes: u64,
}

/// The sizes of the engine's caches: small ones evict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheShape {
    /// How many slices of L2 tables are kept.
    pub l2_slices: usize,
    /// How many slices of refcount blocks are kept.
    pub refcount_slices: usize,
    /// Bytes in a slice: a power of two from 512 up; a cluster is the most that is used.
    pub slice_bytes: u64,
}

/// What holds while the image is open and leaves no mark in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionShape {
    /// What becomes of discards and of the space of freed clusters.
    pub discards: Discards,
    /// What is done with a write of zeroes.
    pub detect_zeroes: DetectZeroes,
    /// What writes are checked against.
    pub overlap_checks: OverlapChecks,
}

impl Default for OptionShape {
    /// The disk is told of every freed cluster: whoever frees one too early shall lose something.
    fn default() -> Self {
        Self {
            discards: Discards::ALL_PASSED,
            detect_zeroes: DetectZeroes::Off,
            overlap_checks: OverlapChecks::default(),
        }
    }
}

/// Why a scenario cannot be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadScenario(pub String);

impl fmt::Display for BadScenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadScenario {}

impl Extent {
    /// The first byte behind the range.
    pub fn end(self) -> u64 {
        self.offset.saturating_add(self.len_bytes)
    }

    /// The sectors of the range.
    pub fn sectors(self) -> Range<u64> {
        self.offset / 512..self.end() / 512
    }
}

impl ImageShape {
    /// An image of version 3 with nothing in it, beneath it or about it.
    pub fn plain(geometry: Geometry, virtual_bytes: u64) -> Self {
        Self {
            version: 3,
            geometry,
            lazy_refcounts: false,
            virtual_bytes,
            backing: None,
            chain: None,
            data_file: None,
            unmapped: Vec::new(),
            filled: Vec::new(),
            encryption: None,
            compression: Compression::Zlib,
            packed: Vec::new(),
            abandoned: false,
            snapshots: 0,
            terse_snapshots: false,
            claiming_snapshots: false,
            unknown_autoclear: false,
            preallocation: Preallocation::Off,
            bitmaps: Vec::new(),
        }
    }

    /// What the guest's disk holds before the run.
    pub fn content(&self) -> Content {
        let mut content = Content::zeroes();
        for (sectors, writer) in self.shown_by(Disk::Backing) {
            let end = sectors.end.min(self.virtual_bytes / 512);
            content.stamp(sectors.start.min(end)..end, writer);
        }
        for extent in self.filled.iter().chain(&self.packed) {
            content.stamp(extent.sectors(), Writer::Image);
        }
        content
    }

    /// What lies beneath, however large the image's own disk is.
    pub fn beneath(&self) -> Content {
        self.content_of(Disk::Backing)
    }

    /// What a file beneath shows; zeroes where there is no such file.
    pub fn content_of(&self, disk: Disk) -> Content {
        let mut content = Content::zeroes();
        for (sectors, writer) in self.shown_by(disk) {
            content.stamp(sectors, writer);
        }
        content
    }

    /// The file of a disk beneath, if there is one.
    pub fn file(&self, disk: Disk) -> Option<Backing> {
        let chain = self.chain.as_ref();
        match disk {
            Disk::Image | Disk::Data => None,
            Disk::Backing => self.backing,
            Disk::Base => chain.and_then(|chain| chain.base),
            Disk::Other => chain.and_then(|chain| chain.other),
        }
    }

    /// The stamped sectors that a file beneath shows, the later over the earlier.
    fn shown_by(&self, disk: Disk) -> Vec<(Range<u64>, Writer)> {
        let Some(file) = self.file(disk) else {
            return Vec::new();
        };
        let whole = 0..file.virtual_bytes / 512;
        match (disk, &self.chain) {
            (Disk::Image | Disk::Data, _) => Vec::new(),
            (Disk::Backing, Some(chain)) if file.format == BackingFormat::Qcow2 => {
                let base = chain.base.map(|base| {
                    let end = base.virtual_bytes.min(file.virtual_bytes) / 512;
                    (0..end, Writer::Base)
                });
                let held = chain.held.iter();
                let held = held.map(|extent| (extent.sectors(), Writer::Backing));
                base.into_iter().chain(held).collect()
            }
            (Disk::Backing, _) => vec![(whole, Writer::Backing)],
            (Disk::Base, _) => vec![(whole, Writer::Base)],
            (Disk::Other, _) => vec![(whole, Writer::Other)],
        }
    }

    /// How many ranges of `filled` a snapshot from before the run holds.
    pub fn filled_before(&self, snapshot: u32) -> usize {
        let share = self.filled.len() * usize::try_from(snapshot + 1).expect("a small number");
        share / usize::try_from(self.snapshots + 1).expect("a small number")
    }

    /// What a snapshot from before the run holds.
    pub fn snapshot_content(&self, snapshot: u32) -> Content {
        let filled = self.filled[..self.filled_before(snapshot)].to_vec();
        let then = Self {
            filled,
            packed: Vec::new(),
            ..self.clone()
        };
        then.content()
    }

    fn check(&self) -> Result<(), BadScenario> {
        let require = |holds: bool, text: String| holds.then_some(()).ok_or(BadScenario(text));
        require(
            matches!(self.version, 2 | 3),
            format!("image version {} is not 2 or 3", self.version),
        )?;
        require(
            self.version == 3
                || (self.geometry.refcount_order() == 4
                    && !self.geometry.has_subclusters()
                    && !self.lazy_refcounts
                    && !self.abandoned
                    && !self.unknown_autoclear),
            "an image of version 2 has refcounts of 16 bits, no extended L2 entries, no dirty bit and no autoclear bits"
                .into(),
        )?;
        require(
            self.virtual_bytes.is_multiple_of(512) && self.virtual_bytes <= MAX_VIRTUAL_BYTES,
            format!(
                "disk size {} is not a multiple of 512, at most {MAX_VIRTUAL_BYTES}",
                self.virtual_bytes
            ),
        )?;
        require(
            self.snapshots <= MAX_SNAPSHOTS,
            format!("{} snapshots: at most {MAX_SNAPSHOTS}", self.snapshots),
        )?;
        require(
            !self.terse_snapshots || self.version == 3,
            "only an image of version 3 is said to leave out the size of a snapshot's disk".into(),
        )?;
        if let Some(backing) = self.backing {
            require(
                backing.virtual_bytes.is_multiple_of(512),
                format!(
                    "backing size {} is not a multiple of 512",
                    backing.virtual_bytes
                ),
            )?;
        }
        require(
            self.version == 3 || self.compression == Compression::Zlib,
            "an image of version 2 has no compression type but zlib".into(),
        )?;
        require(
            self.version == 3 || self.bitmaps.is_empty(),
            "an image of version 2 has no bitmaps".into(),
        )?;
        let may_preallocate = (self.backing.is_none() || self.geometry.has_subclusters())
            && (self.encryption.is_none() || self.version == 3);
        require(
            self.preallocation == Preallocation::Off || may_preallocate,
            "preallocation takes extended L2 entries where something lies beneath, and version 3 under a cipher"
                .into(),
        )?;
        for (index, bitmap) in self.bitmaps.iter().enumerate() {
            let before = &self.bitmaps[..index];
            require(
                before.iter().all(|other| other.number != bitmap.number),
                format!("two bitmaps have the number {}", bitmap.number),
            )?;
        }
        if let Some(chain) = &self.chain {
            self.check_chain(chain)?;
        }
        if let Some(content) = self.data_file {
            self.check_data_file(content)?;
        }
        require(
            self.unmapped.is_empty() || self.data_file == Some(DataFileContent::Raw),
            "only with a raw data file is it told what is not mapped".into(),
        )?;
        let ranges = self.filled.iter().chain(&self.packed).chain(&self.unmapped);
        for extent in ranges {
            check_range(extent.offset, extent.len_bytes)?;
            require(
                extent.end() <= self.virtual_bytes,
                format!("the range at {:#x} reaches beyond the disk", extent.offset),
            )?;
        }
        Ok(())
    }

    fn check_data_file(&self, content: DataFileContent) -> Result<(), BadScenario> {
        let whole = self.version == 3 && self.snapshots == 0 && self.packed.is_empty();
        if !whole || self.encryption.is_some() || self.chain.is_some() {
            return Err(BadScenario(
                "an image with a data file has version 3, no snapshots, nothing compressed or encrypted, and \
                 no chain"
                    .into(),
            ));
        }
        if content == DataFileContent::Raw && self.backing.is_some() {
            let text = "nothing lies beneath a raw data file";
            return Err(BadScenario(text.into()));
        }
        Ok(())
    }

    fn check_chain(&self, chain: &Chain) -> Result<(), BadScenario> {
        let refuse = |text: &str| Err(BadScenario(text.into()));
        let Some(backing) = self.backing else {
            return refuse("a chain needs a backing file");
        };
        if self.snapshots > 0 || !self.bitmaps.is_empty() {
            return refuse("an image over a chain has no snapshots and no bitmaps");
        }
        if !Geometry::CLUSTER_BITS.contains(&chain.cluster_bits) {
            return refuse("the files of a chain have clusters of 512 bytes to 2 MiB");
        }
        let holds = chain.base.is_some() || !chain.held.is_empty();
        if backing.format == BackingFormat::Raw && holds {
            return refuse("a raw backing file lies over nothing and holds all of itself");
        }
        for extent in &chain.held {
            check_range(extent.offset, extent.len_bytes)?;
            if extent.end() > backing.virtual_bytes {
                return refuse("the backing file holds something beyond its end");
            }
        }
        for file in [Some(backing), chain.base, chain.other]
            .into_iter()
            .flatten()
        {
            check_range(0, file.virtual_bytes)?;
        }
        Ok(())
    }
}

impl Scenario {
    /// Whether the scenario means anything; what is read from outside is asked this once.
    pub fn check(&self) -> Result<(), BadScenario> {
        if let Start::New(shape) = &self.image {
            shape.check()?;
        }
        if self.caches.l2_slices == 0 || self.caches.refcount_slices == 0 {
            return Err(BadScenario("a cache needs at least one slice".into()));
        }
        if !self.caches.slice_bytes.is_power_of_two() || self.caches.slice_bytes < 512 {
            return Err(BadScenario(
                "a cache slice is a power of two from 512 bytes up".into(),
            ));
        }
        if self.concurrency == 0 {
            return Err(BadScenario("concurrency is at least 1".into()));
        }
        if self.operations.len() > MAX_OPERATIONS {
            return Err(BadScenario(format!(
                "{} operations: at most {MAX_OPERATIONS}",
                self.operations.len()
            )));
        }
        let before = match &self.image {
            Start::New(shape) => shape.snapshots,
            Start::Given(_) => 0,
        };
        let mut data_file = match &self.image {
            Start::New(shape) => shape.data_file,
            Start::Given(_) => None,
        };
        let repoints = |operation: &&Operation| operation.disk_change() == DiskChange::Repointed;
        if self.operations.iter().filter(repoints).count() > MAX_REPOINTS {
            return Err(BadScenario(format!(
                "an image is repointed at most {MAX_REPOINTS} times"
            )));
        }
        let mut taken: BTreeSet<u32> = (0..before).collect();
        for operation in &self.operations {
            if let Some(Extent { offset, len_bytes }) = operation.range() {
                check_range(offset, len_bytes)?;
            }
            self.check_chained(*operation)?;
            check_on_data_file(*operation, &mut data_file)?;
            check_operation(*operation)?;
            if let Operation::Snapshot(SnapshotOperation {
                snapshot,
                change: SnapshotChange::Create,
            }) = *operation
                && !taken.insert(snapshot)
            {
                return Err(BadScenario(format!("snapshot {snapshot} is taken twice")));
            }
        }
        Ok(())
    }

    /// Operations on chains need one; and where there is one, the history of what lies beneath is told
    /// by them alone.
    fn check_chained(&self, operation: Operation) -> Result<(), BadScenario> {
        let shape = match &self.image {
            Start::New(shape) => Some(shape),
            Start::Given(_) => None,
        };
        let shape = shape.filter(|shape| shape.chain.is_some());
        if operation == Operation::Kill && shape.is_some() {
            let text = "a process that has a chain open is not killed: what it left of a commit is not followed";
            return Err(BadScenario(text.into()));
        }
        let there = |disk: Option<Disk>| {
            let is_there = |disk| shape.is_some_and(|shape| shape.file(disk).is_some());
            disk.is_none_or(is_there)
        };
        if let Operation::Chain(operation) = operation {
            let (holds, text) = match operation.moves_onto() {
                None => (shape.is_some(), "a commit needs a chain"),
                Some(disk) => (
                    shape.is_some() && there(disk),
                    "a rebase, stream or repoint needs a chain with that file",
                ),
            };
            return holds.then_some(()).ok_or_else(|| BadScenario(text.into()));
        }
        let is_untold = matches!(
            operation,
            Operation::Rename { .. }
                | Operation::Empty
                | Operation::Snapshot(_)
                | Operation::Bitmap(_)
        );
        if shape.is_some() && is_untold {
            let text = "an image over a chain is not renamed, emptied, taken a snapshot of or given bitmaps";
            return Err(BadScenario(text.into()));
        }
        Ok(())
    }
}

/// Whether the numbers of an operation mean something, whatever the image.
fn check_operation(operation: Operation) -> Result<(), BadScenario> {
    if let Operation::Grow { virtual_bytes, .. } | Operation::Shrink { virtual_bytes } = operation {
        check_range(virtual_bytes, 512)?;
    }
    if let Operation::DataFile(DataFileOperation {
        name_bytes: Some(name_bytes),
        ..
    }) = operation
        && name_bytes > 1023
    {
        return Err(BadScenario(
            "a data file's name has at most 1023 bytes".into(),
        ));
    }
    if let Operation::Rename { name_bytes } = operation
        && !(1..=1023).contains(&name_bytes)
    {
        let text = format!("a name of {name_bytes} bytes: from 1 to 1023");
        return Err(BadScenario(text));
    }
    if let Operation::KeySlot(KeySlotOperation { slot, change }) = operation {
        let known = match change {
            KeySlotChange::Fill { secret } => usize::from(secret) < TEST_SECRETS.len(),
            KeySlotChange::Erase => true,
        };
        if !known || usize::from(slot) >= SLOTS {
            let text = format!(
                "key slot {slot}: there are {SLOTS} slots, and the secrets of {}",
                TEST_SECRETS.len()
            );
            return Err(BadScenario(text));
        }
    }
    Ok(())
}

/// A disk is no larger than this, and nothing reaches beyond.
const MAX_VIRTUAL_BYTES: u64 = 1 << 50;
/// One range that is stamped is no longer than this, since it is held in memory.
const MAX_RANGE_BYTES: u64 = 64 << 20;
/// An image has no more snapshots than this before a run.
const MAX_SNAPSHOTS: u32 = 100;
/// A workload has no more operations than this.
const MAX_OPERATIONS: usize = 10_000;
/// What lies beneath after one repointing follows from all that came before: the work of telling doubles
/// with each.
const MAX_REPOINTS: usize = 8;

/// What cannot be asked of an image whose data stand in another file, which is by itself what `content` says
/// before this operation and after it; and what can be asked only of such an image.
fn check_on_data_file(
    operation: Operation,
    content: &mut Option<DataFileContent>,
) -> Result<(), BadScenario> {
    let raw = *content == Some(DataFileContent::Raw);
    let is_mapped_anew = matches!(
        operation,
        Operation::WriteCompressed { .. } | Operation::Snapshot(_)
    );
    let is_shown_anew = matches!(operation, Operation::Empty | Operation::Rename { .. });
    let is_told = matches!(operation, Operation::DataFile(_));
    let refused = match content {
        Some(_) => is_mapped_anew || (raw && is_shown_anew),
        None => is_told,
    };
    if refused {
        let text = "an image with a data file has nothing compressed and no snapshots, one with a raw file \
                    is not emptied or put over another, and only one with a data file says something of it";
        return Err(BadScenario(text.into()));
    }
    if let Operation::DataFile(change) = operation
        && change.raw == RawPromise::Withdraw
    {
        *content = Some(DataFileContent::Clusters);
    }
    Ok(())
}

fn check_range(offset: u64, len_bytes: u64) -> Result<(), BadScenario> {
    if len_bytes > MAX_RANGE_BYTES || offset > MAX_VIRTUAL_BYTES {
        return Err(BadScenario(format!(
            "{len_bytes} bytes at {offset}: a range is at most {MAX_RANGE_BYTES} bytes long, below \
             {MAX_VIRTUAL_BYTES}"
        )));
    }
    let aligned = offset.is_multiple_of(512) && len_bytes.is_multiple_of(512) && len_bytes > 0;
    if aligned {
        Ok(())
    } else {
        Err(BadScenario(format!(
            "{len_bytes} bytes at {offset} are not a range of whole sectors"
        )))
    }
}
