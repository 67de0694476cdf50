//! Opening an image: reading what it says of itself, repairing what it promised to repair.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use super::bitmap::Bitmaps;
use super::cache::Cache;
use super::check::repair_all;
use super::crypto::{Area, Crypto, Unlock};
use super::discards::Discards;
use super::entry::{L1Entry, L1Word, ReftableWord};
use super::free::Deferred;
use super::geometry::Geometry;
use super::header::{self, Header, HeaderSector};
use super::image::Qcow2;
use super::metadata::{Metadata, Refcounting};
use super::order::{Order, Stamp};
use super::overlap::OverlapChecks;
use super::snapshot::Snapshots;
use super::unit::{HostCluster, HostOffset, byte_count, mem_len};
use crate::barrier::Barrier;
use crate::defect::Planted;
use crate::device::{Event, Port};
use crate::error::{BadImage, Error, Problem, Refused, Structure};
use crate::image::{Access, Image};
use crate::luks::Secret;
use crate::sync::{Mutex, RangeLock};
use crate::zeroes::{DetectZeroes, trailing_zeroes};

/// How an image is opened.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Whether the image may be written.
    pub access: Access,
    /// Whether refcount updates are postponed; `None` leaves that to the image.
    pub lazy_refcounts: Option<LazyRefcounts>,
    /// The id or name of an internal snapshot that is shown in the place of the disk. Only for reading.
    pub snapshot: Option<String>,
    /// How much of the tables is kept in memory.
    pub caches: CacheSizes,
    /// What becomes of discards and of the space of freed clusters.
    pub discards: Discards,
    /// What is done with a write of zeroes.
    pub detect_zeroes: DetectZeroes,
    /// What writes are checked against.
    pub overlap_checks: OverlapChecks,
    /// The defect that the image carries: none, but in a build that can plant them.
    pub planted: Planted,
}

/// Whether refcount updates are postponed under the dirty bit. Version 2 has no such bit and never
/// postpones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LazyRefcounts {
    /// They are durable before anything relies on them.
    Off,
    /// They are postponed.
    On,
}

/// Cache sizes in slices of tables; at least one of each is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheSizes {
    /// Slices of L2 tables.
    pub l2_slices: usize,
    /// Slices of refcount blocks.
    pub refcount_slices: usize,
    /// Bytes in a slice: a power of two from 512 up; a cluster is the most that is used.
    pub slice_bytes: u64,
}

impl Default for CacheSizes {
    /// 32 MiB of L2 tables and 4 MiB of refcounts, read and written in pages of 4 KiB.
    fn default() -> Self {
        Self {
            l2_slices: 8192,
            refcount_slices: 1024,
            slice_bytes: 4096,
        }
    }
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            access: Access::ReadWrite,
            lazy_refcounts: None,
            snapshot: None,
            caches: CacheSizes::default(),
            discards: Discards::default(),
            detect_zeroes: DetectZeroes::Off,
            overlap_checks: OverlapChecks::default(),
            planted: Planted::NONE,
        }
    }
}

/// What an image is made of. The caller has opened all of it: no name from an image is followed here.
pub struct Files {
    /// The image file.
    pub image: Port,
    /// The external data file of an image whose header says that guest data are in one
    /// ([`Header::data_file_name`] says which), and of no other. It may be written exactly where the image
    /// may, and must be another file than the image.
    pub data: Option<Port>,
    /// What lies beneath.
    pub backing: Option<Rc<dyn Image>>,
}

impl Qcow2 {
    /// Opens the image in `file` over its backing file, which the caller has opened.
    ///
    /// For writing, an image whose dirty bit is set is repaired first, and one that is marked corrupt
    /// is refused.
    pub async fn open(
        file: Port,
        backing: Option<Rc<dyn Image>>,
        options: &OpenOptions,
    ) -> Result<Self, Error> {
        Self::open_with_secrets(file, backing, options, &[]).await
    }

    /// The same where the guest's data may be encrypted.
    pub async fn open_with_secrets(
        file: Port,
        backing: Option<Rc<dyn Image>>,
        options: &OpenOptions,
        secrets: &[Secret],
    ) -> Result<Self, Error> {
        let files = Files {
            image: file,
            data: None,
            backing,
        };
        Self::open_files(files, options, secrets).await
    }

    /// The same where the guest's data may stand in an external data file, or be encrypted. The first
    /// secret that opens a LUKS slot is used; the legacy method takes the first of all, and cannot tell a
    /// wrong one.
    pub async fn open_files(
        files: Files,
        options: &OpenOptions,
        secrets: &[Secret],
    ) -> Result<Self, Error> {
        Self::open_unlocked(files, options, Unlock::Secrets(secrets)).await
    }

    /// The same, where the key of a LUKS volume may be at hand already.
    pub async fn open_unlocked(
        files: Files,
        options: &OpenOptions,
        unlock: Unlock<'_>,
    ) -> Result<Self, Error> {
        let Files {
            image: file,
            data,
            backing,
        } = files;
        if options.snapshot.is_some() {
            options.access.must_be_read_only()?;
        }
        let (header, sector0) = header::load(&file).await?;
        header.must_fit(data.as_ref(), backing.as_ref())?;
        let crypto = Crypto::open(&file, &header, unlock).await?;
        let (header, sector0) = match options.access {
            Access::ReadOnly => (header, sector0),
            Access::ReadWrite => prepare_for_writing(&file, (header, sector0), options).await?,
        };
        let order = Rc::new(Order::new(file, data, options.planted));
        if options.access == Access::ReadWrite {
            order.barrier(Barrier::BeforeUse, order.latest()).await?;
        }
        let snapshots = Snapshots::load(&order, &header).await?;
        let state = (options, snapshots);
        let mut metadata = load(Rc::clone(&order), &header, sector0, state).await?;
        if options.access == Access::ReadWrite {
            metadata.settle_autoclear(&header).await?;
        }
        if let Some(snapshot) = &options.snapshot {
            metadata.show_snapshot(snapshot).await?;
        }
        let virtual_bytes = metadata.virtual_bytes;
        let tracks = Cell::new(metadata.bitmaps.tracks());
        // What is encrypted there is no image of the disk, whatever the header says.
        let raw_data = header.has_raw_data_file() && crypto.is_none();
        Ok(Self {
            order,
            metadata: Mutex::new(metadata),
            claims: RangeLock::default(),
            backing,
            geometry: header.geometry,
            version: Cell::new(header.version),
            compression: header.compression,
            crypto,
            key_area: header
                .luks_range()
                .map(|(offset, len_bytes)| Area { offset, len_bytes }),
            access: options.access,
            virtual_bytes: Cell::new(virtual_bytes),
            growing_to: Cell::new(0),
            raw_data: Cell::new(raw_data),
            discards: options.discards,
            detect_zeroes: options.detect_zeroes,
            planted: options.planted,
            tracks,
        })
    }
}

impl Header {
    /// Refuses files that do not belong to an image with this header.
    fn must_fit(&self, data: Option<&Port>, backing: Option<&Rc<dyn Image>>) -> Result<(), Error> {
        let refuse = |text: &str| Err(Refused::Option(text.into()).into());
        match (self.geometry.has_external_data(), data) {
            (true, None) => Err(Refused::NoDataFile.into()),
            (false, Some(_)) => {
                refuse("a data file can only be given for images with an external data file")
            }
            (true, Some(_)) if self.has_raw_data_file() && backing.is_some() => {
                refuse("a raw external data file shows all of the disk: nothing can lie beneath it")
            }
            (true, Some(_)) | (false, None) => Ok(()),
        }
    }
}

/// Repairs what says that it needs it, and yields what its header says then.
async fn prepare_for_writing(
    file: &Port,
    (header, sector0): (Header, HeaderSector),
    options: &OpenOptions,
) -> Result<(Header, HeaderSector), Error> {
    let refuse = |problem: Problem| BadImage {
        structure: Structure::Header,
        offset: 0,
        index: None,
        problem,
    };
    if header.is_corrupt() {
        return Err(refuse(Problem::MarkedCorrupt).into());
    }
    if !header.is_dirty() {
        return Ok((header, sector0));
    }
    // What lazy refcounts promise: the dirty bit is gone when this returns.
    // Few openings repair, and this is most of what an opening would have to hold.
    let report = Box::pin(repair_all(file, (header, sector0), options.planted)).await?;
    let errors = report.errors_remaining();
    if let Some(error) = report.unreadable {
        // The device failed, which says nothing of the image.
        return Err(error.into());
    }
    if errors > 0 {
        return Err(refuse(Problem::Unrepaired { errors }).into());
    }
    header::load(file).await
}

/// The tables of an image with these snapshots.
pub(super) async fn load(
    order: Rc<Order>,
    header: &Header,
    sector0: HeaderSector,
    (options, snapshots): (&OpenOptions, Snapshots),
) -> Result<Metadata, Error> {
    let geometry = header.geometry;
    let file = order.file();
    let l1_len = mem_len(header.l1_entries * 8);
    let at = file.at(Event::None);
    let l1 = words(&at.read(header.l1_offset.0, l1_len).await?, L1Word);
    let reftable_len = mem_len(header.reftable_clusters * geometry.cluster_bytes());
    let at = file.at(Event::ReftableLoad);
    let reftable = words(
        &at.read(header.reftable_offset.0, reftable_len).await?,
        ReftableWord,
    );
    let fresh_from = geometry.clusters_for(file.len());
    let lazy = match options.lazy_refcounts {
        Some(choice) => choice == LazyRefcounts::On,
        None => header.wants_lazy_refcounts(),
    };
    let refcounting = if lazy && header.version >= 3 {
        Refcounting::Lazy
    } else {
        Refcounting::Strict
    };
    let mut metadata = Metadata {
        order,
        planted: options.planted,
        geometry,
        version: header.version,
        refcounting,
        sector0,
        sector0_in_doubt: false,
        incompatible: header.incompatible,
        dirty: header.is_dirty(),
        corrupt: header.is_corrupt(),
        virtual_bytes: header.virtual_bytes,
        l1_offset: header.l1_offset,
        l1,
        l1_in_doubt: BTreeSet::new(),
        reftable_offset: header.reftable_offset,
        reftable,
        l2: Cache::new(
            geometry,
            options.caches.l2_slices,
            options.caches.slice_bytes,
        ),
        refcounts: Cache::new(
            geometry,
            options.caches.refcount_slices,
            options.caches.slice_bytes,
        ),
        refcounts_written: Stamp::default(),
        owners: BTreeMap::new(),
        bitmaps: Bitmaps::default(),
        deferred: Deferred::default(),
        discards: options.discards,
        overlap_checks: options.overlap_checks,
        snapshots,
        inactive_tables: None,
        active_tables: None,
        free_hint: 0,
        fresh_from,
        doubtful_end: 0,
        packing: None,
    };
    if options.access == Access::ReadWrite {
        metadata.bitmaps = Bitmaps::load(metadata.order.file(), header).await?;
        let file_end = geometry.round_up(metadata.order.file().len());
        metadata.bitmaps.require_writable(file_end)?;
        metadata.owners = owners(header, geometry, &metadata)?;
    }
    Ok(metadata)
}

/// What the clusters of metadata hold, so far as the tables in memory tell. Entries that cannot be
/// right are passed over here: they are refused where they are used. A cluster that two structures
/// claim, or one refcount block for two ranges, is refused at once: to write for one is to destroy the
/// other. Only an L2 table may be named more than once.
fn owners(
    header: &Header,
    geometry: Geometry,
    metadata: &Metadata,
) -> Result<BTreeMap<HostCluster, Structure>, BadImage> {
    /// Few small images have more.
    const ROOM: usize = 16;
    let mut claims = Vec::with_capacity(ROOM);
    let mut own = |offset: HostOffset, len_bytes: u64, owner: Structure| {
        let first = geometry.cluster_of(offset).0;
        let clusters = first..first + geometry.clusters_for(len_bytes);
        claims.extend(clusters.map(|cluster| Claim {
            cluster: HostCluster(cluster),
            owner,
            offset,
            len_bytes,
        }));
    };
    own(HostOffset(0), 1, Structure::Header);
    let len_bytes = byte_count(metadata.reftable.len()) * 8;
    own(header.reftable_offset, len_bytes, Structure::RefcountTable);
    own(header.l1_offset, header.l1_entries * 8, Structure::L1Table);
    if let Some((offset, len_bytes)) = header.luks_range() {
        own(offset, len_bytes, Structure::EncryptionHeader);
    }
    if header.snapshot_count > 0 {
        let (offset, len_bytes) = metadata.snapshots.table();
        own(offset, len_bytes, Structure::SnapshotTable);
    }
    for word in used(&metadata.l1, |word| word.0) {
        if let Ok(L1Entry::Table { offset, .. }) = word.decode(geometry) {
            own(offset, 1, Structure::L2Table);
        }
    }
    for word in used(&metadata.reftable, |word| word.0) {
        if let Ok(Some(offset)) = word.decode(geometry) {
            own(offset, 1, Structure::RefcountBlock);
        }
    }
    for (structure, offset, len_bytes) in metadata.bitmaps.metadata() {
        own(offset, len_bytes, structure);
    }
    // A map is made faster from what is in order; who came first stays first.
    claims.sort_by_key(|claim| claim.cluster);
    let meet = |pair: &&[Claim]| {
        let shared = pair.iter().all(|it| it.owner == Structure::L2Table);
        pair[0].cluster == pair[1].cluster && !shared
    };
    match claims.windows(2).find(meet) {
        None => Ok(claims.iter().map(|it| (it.cluster, it.owner)).collect()),
        Some(pair) => {
            let (one, other) = (pair[0], pair[1]);
            Err(overlap(
                other.owner,
                other.offset,
                one.owner,
                other.len_bytes,
            ))
        }
    }
}

/// A structure's claim to one of its clusters.
#[derive(Clone, Copy)]
struct Claim {
    cluster: HostCluster,
    owner: Structure,
    /// Where the structure starts.
    offset: HostOffset,
    len_bytes: u64,
}

fn overlap(structure: Structure, offset: HostOffset, owner: Structure, len_bytes: u64) -> BadImage {
    let problem = Problem::Overlap { owner, len_bytes };
    BadImage {
        structure,
        offset: offset.0,
        index: None,
        problem,
    }
}

/// The words of a table. Most of a large one is zero.
fn words<T: Clone>(bytes: &[u8], word: impl Fn(u64) -> T) -> Vec<T> {
    let all = bytes.as_chunks().0;
    let used = (bytes.len() - trailing_zeroes(bytes)).div_ceil(8);
    let mut words = Vec::with_capacity(all.len());
    let values = all.iter().take(used);
    words.extend(values.map(|bytes| word(u64::from_be_bytes(*bytes))));
    words.resize(all.len(), word(0));
    words
}

/// The words of a table that are not zero.
fn used<T>(words: &[T], value: impl Fn(&T) -> u64 + Copy) -> impl Iterator<Item = &T> {
    /// Most of a large table is zero, and told to be so many words at a time.
    const AT_ONCE: usize = 64;
    let pieces = words.chunks(AT_ONCE);
    let stored = pieces.filter(move |words| words.iter().fold(0, |all, it| all | value(it)) != 0);
    stored.flat_map(move |words| words.iter().filter(move |word| value(word) != 0))
}
