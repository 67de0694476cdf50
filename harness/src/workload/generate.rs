//! Drawing scenarios: small images near their limits, and workloads that are all alike inside and
//! unlike each other.
//!
//! Each workload uses a random subset of the kinds of operation with random weights, and a few hot
//! places where the format has seams: cluster and L2 boundaries, the end of the disk. Sizes are drawn
//! so that tables are often one entry short of growing. Clusters are mostly small, since a small image
//! is judged in microseconds.

mod chain;
mod data_file;
mod key_slots;
mod kills;
mod options;
mod resizing;
mod snapshots;

use blkdebug::contract::Contract;
use engine::image::Unmap;
use engine::manage::{Amend, BitmapState};
use engine::preallocation::Preallocation;
use engine::qcow2::compress::Compression;
use engine::qcow2::create::BackingFormat;
use engine::qcow2::geometry::Geometry;

use super::given::Given;
use super::ops::{BitmapChange, BitmapOperation, Operation};
use super::pin::{Pins, Room};
use super::shape::{
    Backing, BitmapShape, BitmapStanding, CacheShape, Encrypted, Extent, ImageShape, Management,
    Scenario, Start,
};
use crate::fault;
use crate::prng::Prng;

const SECTOR: u64 = 512;
/// Stamped backing files and filled ranges are kept below this, since every sector counts.
const MAX_STAMPED_BYTES: u64 = 256 << 10;
/// One operation writes no more than this.
const MAX_WRITE_BYTES: u64 = 96 << 10;

/// Draws a scenario without faults and defects, on the disk that promises least.
pub fn scenario(prng: &Prng, pins: &Pins) -> Scenario {
    let narrowed = resizing::narrowed(pins);
    let chained = chain::is_drawn(prng, pins);
    let pins = &if chained {
        chain::pins(prng, pins)
    } else {
        data_file::pins(prng, &narrowed)
    };
    let mut draw = prng.fork("image");
    let mut shape = match room(&mut draw, pins) {
        Room::Any => image(&mut draw, pins),
        Room::Block => tight_image(&mut draw, pins, Room::Block),
        Room::Table => tight_image(&mut draw, pins, Room::Table),
    };
    if !chained {
        resizing::preallocate(prng, pins, &mut shape);
    }
    data_file::unmap(prng, &mut shape);
    let mut draw = prng.fork("workload");
    // What is encrypted is not compressed.
    let compression = shape.encryption.map_or(pins.compression, |_| Some(None));
    let pins = Pins {
        compression,
        ..*pins
    };
    let bitmaps = (shape.version == 3).then(|| shape.bitmaps.clone());
    let mut operations = workload(
        &mut draw,
        shape.virtual_bytes,
        shape.geometry,
        bitmaps,
        &pins,
    );
    if !chained {
        resizing::add(
            prng,
            &pins,
            shape.geometry,
            shape.virtual_bytes,
            &mut operations,
        );
    }
    snapshots::add(prng, &pins, &mut shape, &mut operations);
    key_slots::add(prng, &pins, shape.encryption, &mut operations);
    data_file::add(prng, &pins, &shape, &mut operations);
    if chained {
        chain::add(prng, &pins, &mut shape, &mut operations);
    }
    shape.unknown_autoclear = shape.version == 3 && prng.fork("unknown autoclear").chance(1, 8);
    if let Some(count) = pins.operations {
        // What was added takes the place of others, and one reopening may follow.
        operations.truncate(count + 1);
    }
    if !chained {
        // Behind that, so that where kills are asked for, no run goes without.
        kills::add(prng, &pins, shape.abandoned, &mut operations);
    }
    around(prng, &pins, Start::New(shape), operations)
}

/// Draws a scenario for an image of which size and geometry are known.
pub fn scenario_on(
    prng: &Prng,
    pins: &Pins,
    given: Given,
    virtual_bytes: u64,
    geometry: Geometry,
) -> Scenario {
    let mut draw = prng.fork("workload");
    let mut operations = workload(&mut draw, virtual_bytes, geometry, None, pins);
    resizing::add(prng, pins, geometry, virtual_bytes, &mut operations);
    kills::add(prng, pins, false, &mut operations);
    around(prng, pins, Start::Given(given), operations)
}

fn around(prng: &Prng, pins: &Pins, image: Start, mut operations: Vec<Operation>) -> Scenario {
    let options = options::add(prng, pins, &mut operations);
    let concurrency = pins
        .concurrency
        .unwrap_or_else(|| [1, 2, 2, 3, 4][prng.fork("concurrency").index(5)]);
    let mut scenario = Scenario {
        image,
        caches: caches(&mut prng.fork("caches")),
        options,
        operations,
        concurrency,
        management: management(&mut prng.fork("management"), pins),
        contract: Contract::default(),
        faults: Vec::new(),
        transitions: Vec::new(),
        flaw: None,
    };
    if pins.faults == Some(true) {
        fault::draw::add(prng, &mut scenario);
    }
    scenario
}

fn management(draw: &mut Prng, pins: &Pins) -> Management {
    let drawn = draw.chance(1, 2);
    if pins.overlap.unwrap_or(drawn) {
        Management::Overlapping
    } else {
        Management::Alone
    }
}

fn image(draw: &mut Prng, pins: &Pins) -> ImageShape {
    let (version, geometry, lazy_refcounts) = format(draw, pins);
    let virtual_bytes = pins
        .virtual_bytes
        .unwrap_or_else(|| virtual_bytes(draw, geometry).min(data_file::most_bytes(pins)));
    let virtual_bytes = if pins.chain == Some(true) {
        virtual_bytes.min(chain::most_bytes(geometry))
    } else {
        virtual_bytes
    };
    let backing = backing(draw, virtual_bytes, geometry, pins);
    let filled = filled(draw, virtual_bytes, geometry);
    let encryption = encryption(draw, geometry, pins);
    let (compression, mut packed) = packed(draw, version, virtual_bytes, geometry, pins);
    if encryption.is_some() {
        packed.clear();
    }
    let drawn_abandoned = draw.chance(1, 24);
    let bitmaps = bitmaps(draw, version, virtual_bytes, pins);
    ImageShape {
        version,
        geometry,
        lazy_refcounts,
        virtual_bytes,
        backing,
        chain: None,
        data_file: pins.data_file.flatten(),
        unmapped: Vec::new(),
        filled,
        encryption,
        compression,
        packed,
        abandoned: version == 3 && pins.abandoned.unwrap_or(drawn_abandoned),
        preallocation: Preallocation::Off,
        snapshots: 0,
        terse_snapshots: false,
        claiming_snapshots: false,
        unknown_autoclear: false,
        bitmaps,
    }
}

fn format(draw: &mut Prng, pins: &Pins) -> (u32, Geometry, bool) {
    let needs_v3 = pins.lazy_refcounts == Some(true)
        || pins.extended_l2 == Some(true)
        || pins.refcount_order.is_some_and(|order| order != 4)
        || pins.compression == Some(Some(Compression::Zstd));
    let drawn_version = if draw.chance(1, 8) { 2 } else { 3 };
    let version = match pins.version {
        Some(version) => version,
        None if needs_v3 => 3,
        None => drawn_version,
    };
    // 512, 1k, 2k, 4k, .. 2M
    let cluster_weights = [36, 12, 8, 24, 4, 3, 3, 4, 1, 1, 1, 1, 1];
    let drawn_bits = 9 + u32::try_from(draw.weighted(&cluster_weights)).expect("13 weights");
    let drawn_order = u32::try_from(draw.below(7)).expect("less than 7");
    let drawn_lazy = draw.chance(1, 2);
    let refcount_order = if version == 2 {
        4
    } else {
        pins.refcount_order.unwrap_or(drawn_order)
    };
    let mut subclusters = draw.fork("subclusters");
    let drawn_extended = subclusters.chance(1, 12);
    // 16k, 32k, .. 2M: clusters that have subclusters are large, and most runs want the smallest.
    let larger = subclusters.weighted(&[32, 4, 3, 1, 1, 1, 1, 1]);
    let extended_bits = Geometry::MIN_EXTENDED_BITS + u32::try_from(larger).expect("there are few");
    let small = pins
        .cluster_bits
        .is_some_and(|bits| bits < Geometry::MIN_EXTENDED_BITS);
    let extended = version == 3 && !small && pins.extended_l2.unwrap_or(drawn_extended);
    let drawn_bits = if extended { extended_bits } else { drawn_bits };
    let mut geometry = Geometry::new(pins.cluster_bits.unwrap_or(drawn_bits), refcount_order)
        .expect("drawn and pinned sizes are allowed");
    if extended {
        geometry = geometry
            .with_extended_l2()
            .expect("clusters are large enough");
    }
    let lazy_refcounts = version == 3 && pins.lazy_refcounts.unwrap_or(drawn_lazy);
    (version, geometry, lazy_refcounts)
}

fn virtual_bytes(draw: &mut Prng, geometry: Geometry) -> u64 {
    let cluster = geometry.cluster_bytes();
    let span = geometry.l1_span_bytes();
    let l1_cluster_span = span * (cluster / 8);
    let bytes = match draw.weighted(&[12, 6, 2]) {
        // A few clusters.
        0 => draw.between(1, 24) * cluster,
        // Around the end of an L2 table's reach.
        1 => span * draw.between(1, 3) + draw.below(5) * cluster - 2 * cluster,
        // An L1 table that fills its cluster, where that is not too far away.
        _ if l1_cluster_span <= 64 << 20 => l1_cluster_span - draw.below(3) * cluster,
        _ => draw.between(1, 64) * cluster,
    };
    let less = if draw.chance(1, 3) {
        draw.below(cluster / SECTOR) * SECTOR
    } else {
        0
    };
    (bytes - less).max(SECTOR)
}

fn backing(
    draw: &mut Prng,
    virtual_bytes: u64,
    geometry: Geometry,
    pins: &Pins,
) -> Option<Backing> {
    let drawn = *draw.pick(&[
        None,
        None,
        Some(BackingFormat::Raw),
        Some(BackingFormat::Qcow2),
    ]);
    let format = pins.backing.unwrap_or(drawn)?;
    let slack = draw.between(1, 4 * geometry.cluster_bytes() / SECTOR) * SECTOR;
    let bytes = match draw.below(3) {
        0 => virtual_bytes,
        1 => virtual_bytes.saturating_sub(slack).max(SECTOR),
        _ => virtual_bytes + slack,
    };
    Some(Backing {
        format,
        virtual_bytes: bytes.min(MAX_STAMPED_BYTES),
    })
}

fn filled(draw: &mut Prng, virtual_bytes: u64, geometry: Geometry) -> Vec<Extent> {
    if draw.chance(1, 2) {
        return Vec::new();
    }
    let cluster = geometry.cluster_bytes();
    let most = virtual_bytes.min(MAX_STAMPED_BYTES);
    if most == virtual_bytes && draw.chance(1, 4) {
        return vec![Extent {
            offset: 0,
            len_bytes: virtual_bytes,
        }];
    }
    let places = Places::draw(draw, virtual_bytes, geometry);
    let mut extents: Vec<Extent> = (0..draw.between(1, 4))
        .map(|_| {
            let wanted = draw.between(1, 4) * cluster;
            places.range(draw, wanted.min(MAX_STAMPED_BYTES / 4))
        })
        .collect();
    extents.sort_unstable();
    extents.dedup();
    extents
}

/// A LUKS header takes a megabyte: in small clusters it would be most of what there is to look at.
fn encryption(draw: &mut Prng, geometry: Geometry, pins: &Pins) -> Option<Encrypted> {
    let drawn = match draw.below(48) {
        0..3 => Some(Encrypted::Aes),
        // Opening one costs a thousand times what opening another does.
        3 if geometry.cluster_bits() >= 12 => Some(Encrypted::Luks),
        _ => None,
    };
    pins.encryption.unwrap_or(drawn)
}

fn compression(draw: &mut Prng, version: u32, pins: &Pins) -> Compression {
    let drawn = if version == 3 {
        *draw.pick(&Compression::ALL)
    } else {
        Compression::Zlib
    };
    pins.compression.map_or(drawn, Option::unwrap_or_default)
}

/// What is compressed before the run: ranges of whole clusters.
fn packed(
    draw: &mut Prng,
    version: u32,
    virtual_bytes: u64,
    geometry: Geometry,
    pins: &Pins,
) -> (Compression, Vec<Extent>) {
    let compression = compression(draw, version, pins);
    if pins.compression == Some(None) || draw.chance(1, 2) {
        return (compression, Vec::new());
    }
    let places = Places::draw(draw, virtual_bytes, geometry);
    let mut extents: Vec<Extent> = (0..draw.between(1, 4))
        .map(|_| {
            let wanted = draw.between(1, 6) * geometry.cluster_bytes();
            let range = places.range(draw, wanted.min(MAX_STAMPED_BYTES / 4));
            places.whole_clusters(range)
        })
        .collect();
    extents.sort_unstable();
    extents.dedup();
    (compression, extents)
}

/// Few images have bitmaps before a run; where they are asked for, most have.
fn bitmaps(draw: &mut Prng, version: u32, virtual_bytes: u64, pins: &Pins) -> Vec<BitmapShape> {
    let likely = if pins.bitmaps == Some(true) { 12 } else { 2 };
    let drawn = draw.chance(likely, 16);
    if !drawn || version < 3 || pins.bitmaps == Some(false) {
        return Vec::new();
    }
    (0..u8::try_from(draw.between(1, 3)).expect("at most 3"))
        .map(|number| BitmapShape {
            number,
            granularity_bits: granularity_bits(draw, virtual_bytes),
            standing: *draw.pick(&[
                BitmapStanding::Enabled,
                BitmapStanding::Enabled,
                BitmapStanding::Enabled,
                BitmapStanding::Enabled,
                BitmapStanding::Disabled,
                BitmapStanding::Disabled,
                BitmapStanding::Inconsistent,
            ]),
        })
        .collect()
}

fn granularity_bits(draw: &mut Prng, virtual_bytes: u64) -> u8 {
    let least = (virtual_bytes / MAX_BITS).next_power_of_two().max(SECTOR);
    let more = [0, 0, 1, 3, 7][draw.index(5)];
    let bits = least.trailing_zeros() + more;
    u8::try_from(bits.min(31)).expect("a binary logarithm is small")
}

fn caches(draw: &mut Prng) -> CacheShape {
    CacheShape {
        l2_slices: *draw.pick(&[1, 2, 3, 16]),
        refcount_slices: *draw.pick(&[1, 2, 3, 16]),
        slice_bytes: *draw.pick(&[512, 512, 1024, 4096]),
    }
}

/// How tight the image shall be. A full refcount table takes a file of 2 MiB, so that is rare.
fn room(draw: &mut Prng, pins: &Pins) -> Room {
    let drawn = [Room::Any, Room::Block, Room::Table][draw.weighted(&[95, 32, 1])];
    let free = pins.virtual_bytes.is_none() && pins.version.is_none_or(|version| version == 3);
    let small = pins.cluster_bits.is_none_or(|bits| bits <= 10) && pins.extended_l2 != Some(true);
    let dense = |least| pins.refcount_order.is_none_or(|order| order >= least);
    let table = small && pins.cluster_bits.is_none_or(|bits| bits == 9) && dense(6);
    match pins.room.unwrap_or(drawn) {
        Room::Block if free && small && dense(4) => Room::Block,
        Room::Table if free && table => Room::Table,
        Room::Any | Room::Block | Room::Table => Room::Any,
    }
}

/// An image that is a few clusters short of needing another refcount block, or a larger refcount
/// table: everything below is filled.
fn tight_image(draw: &mut Prng, pins: &Pins, room: Room) -> ImageShape {
    let (bits, order) = match room {
        Room::Table => (9, 6),
        Room::Any | Room::Block => (*draw.pick(&[9, 9, 9, 10]), *draw.pick(&[4, 5, 5, 6, 6, 6])),
    };
    let geometry = Geometry::new(
        pins.cluster_bits.unwrap_or(bits),
        pins.refcount_order.unwrap_or(order),
    )
    .expect("drawn and pinned sizes are allowed");
    let (cluster, per_block) = (geometry.cluster_bytes(), geometry.refcounts_per_block());
    let blocks = match room {
        Room::Table => cluster / 8,
        Room::Any | Room::Block => 1 + draw.below(2),
    };
    // Header, refcount table, one cluster of L1 table, the refcount blocks, and what is left free.
    let taken = 3 + blocks + draw.below(4);
    let left = (blocks * per_block).saturating_sub(taken);
    // Workloads come back to the start of a disk more than to its end, so that is where there often is room.
    let gap = if draw.chance(1, 2) { 16 } else { 0 };
    // The L2 tables, one per `l2_entries`, are what is left beside the data.
    let fits = |data: &u64| data + (gap + data).div_ceil(geometry.l2_entries()) <= left;
    let data = (1..=left).rev().find(fits).unwrap_or(1);
    let drawn_lazy = draw.chance(1, 2);
    let virtual_bytes = (gap + data + draw.between(8, 64)) * cluster;
    let backing = match room {
        Room::Table => None,
        Room::Any | Room::Block => backing(draw, virtual_bytes, geometry, pins),
    };
    ImageShape {
        version: 3,
        geometry,
        lazy_refcounts: pins.lazy_refcounts.unwrap_or(drawn_lazy),
        virtual_bytes,
        backing,
        chain: None,
        data_file: pins.data_file.flatten(),
        unmapped: Vec::new(),
        filled: vec![Extent {
            offset: gap * cluster,
            len_bytes: data * cluster,
        }],
        encryption: pins.encryption.flatten(),
        compression: compression(draw, 3, pins),
        packed: Vec::new(),
        abandoned: false,
        preallocation: Preallocation::Off,
        snapshots: 0,
        terse_snapshots: false,
        claiming_snapshots: false,
        unknown_autoclear: false,
        bitmaps: bitmaps(draw, 3, virtual_bytes, pins),
    }
}

/// The places of a disk that a workload comes back to.
struct Places {
    hot: Vec<u64>,
    virtual_bytes: u64,
    cluster_bytes: u64,
    /// What can be mapped by itself, where that is less than a cluster.
    subcluster_bytes: Option<u64>,
}

impl Places {
    fn draw(draw: &mut Prng, virtual_bytes: u64, geometry: Geometry) -> Self {
        let cluster = geometry.cluster_bytes();
        let span = geometry.l1_span_bytes();
        let clusters = virtual_bytes.div_ceil(cluster);
        let hot = (0..draw.between(1, 5))
            .map(|_| match draw.below(5) {
                0 => draw.below(clusters.min(16)) * cluster,
                1 => (draw.between(1, virtual_bytes.div_ceil(span)) * span).saturating_sub(cluster),
                2 => (clusters - 1) * cluster,
                3 => (virtual_bytes.div_ceil(span) - 1) * span,
                _ => draw.below(clusters) * cluster,
            })
            .map(|offset| offset.min((virtual_bytes - SECTOR) / cluster * cluster))
            .collect();
        Self {
            hot,
            virtual_bytes,
            cluster_bytes: cluster,
            subcluster_bytes: geometry
                .has_subclusters()
                .then(|| geometry.subcluster_bytes()),
        }
    }

    /// A range near a hot place, of about `wanted` bytes and within the disk.
    fn range(&self, draw: &mut Prng, wanted: u64) -> Extent {
        let cluster = self.cluster_bytes;
        let within = match draw.below(5) {
            0 | 1 => self.subcluster_seam(draw),
            2 => SECTOR.min(cluster - SECTOR),
            3 => cluster - SECTOR,
            _ => draw.below(cluster / SECTOR) * SECTOR,
        };
        let neighbour = draw.below(3) * cluster;
        let last = self.virtual_bytes - SECTOR;
        let hot = *draw.pick(&self.hot);
        let offset = if draw.chance(1, 4) {
            // Just past a hot place.
            hot + neighbour + within
        } else {
            hot + within
        };
        let offset = offset.min(last);
        Extent {
            offset,
            len_bytes: wanted.clamp(SECTOR, self.virtual_bytes - offset),
        }
    }

    /// Where a subcluster starts, among the first and the last of a cluster; 0 without subclusters.
    fn subcluster_seam(&self, draw: &mut Prng) -> u64 {
        self.subcluster_bytes
            .map_or(0, |bytes| *draw.pick(&[0, 1, 2, 3, 4, 16, 30, 31]) * bytes)
    }

    fn len_bytes(&self, draw: &mut Prng) -> u64 {
        let cluster = self.cluster_bytes;
        if let Some(subcluster) = self.subcluster_bytes
            && draw.chance(1, 2)
        {
            let more = draw.below(2) * SECTOR;
            return draw.between(1, 6) * subcluster + more;
        }
        match draw.below(8) {
            0 | 1 => SECTOR,
            2 => 2 * SECTOR,
            3 | 4 => cluster,
            5 => cluster + SECTOR,
            6 => draw.between(1, 3 * cluster / SECTOR) * SECTOR,
            _ => draw.between(2, 6) * cluster,
        }
    }

    /// The clusters that a range touches.
    fn whole_clusters(&self, range: Extent) -> Extent {
        let offset = range.offset / self.cluster_bytes * self.cluster_bytes;
        let end = range.end().next_multiple_of(self.cluster_bytes);
        Extent {
            offset,
            len_bytes: end.min(self.virtual_bytes) - offset,
        }
    }

    /// Whole clusters near a hot place, or anywhere: only what is unallocated takes compressed data.
    fn compressed_range(&self, draw: &mut Prng, geometry: Geometry) -> Extent {
        let mut range = self.operation_range(draw);
        if draw.chance(1, 2) {
            let clusters = geometry.clusters_for(self.virtual_bytes);
            range.offset = draw.below(clusters) * self.cluster_bytes;
            range.len_bytes = range.len_bytes.min(self.virtual_bytes - range.offset);
        }
        self.whole_clusters(range)
    }

    fn operation_range(&self, draw: &mut Prng) -> Extent {
        let wanted = self.len_bytes(draw).min(MAX_WRITE_BYTES);
        self.range(draw, wanted)
    }
}

const KINDS: usize = 13;
/// The kinds that change an image as a whole, from this one on.
const MANAGED: usize = 9;
const BITMAPS: usize = 12;
/// Bitmaps have numbers below this.
const MAX_BITMAPS: u8 = 4;
/// A bitmap has no more bits than this at the start, so that it is judged soon.
const MAX_BITS: u64 = 1 << 18;

fn workload(
    draw: &mut Prng,
    virtual_bytes: u64,
    geometry: Geometry,
    bitmaps: Option<Vec<BitmapShape>>,
    pins: &Pins,
) -> Vec<Operation> {
    let weights = kind_weights(draw, bitmaps.is_some(), pins);
    let mut bitmaps = bitmaps.unwrap_or_default();
    let big_clusters = geometry.cluster_bits() > 16;
    let drawn_count = match draw.below(4) {
        _ if big_clusters => draw.between(2, 6),
        0 => draw.between(2, 8),
        1 | 2 => draw.between(5, 20),
        _ => draw.between(15, 40),
    };
    let count = pins
        .operations
        .unwrap_or_else(|| usize::try_from(drawn_count).expect("at most 40"));
    let mut places = Places::draw(draw, virtual_bytes, geometry);
    let mut operations = Vec::with_capacity(count + 1);
    for _ in 0..count {
        let mut operation = operation(draw, &places, &weights, geometry, &mut bitmaps);
        if let Operation::Grow { virtual_bytes, .. } = &mut operation {
            *virtual_bytes = bounded(pins, geometry, places.virtual_bytes, *virtual_bytes);
            places = Places::draw(draw, *virtual_bytes, geometry);
        }
        operations.push(operation);
    }
    if draw.chance(1, 3) {
        operations.push(Operation::Reopen);
    }
    operations
}

/// A random subset of the kinds, skewed; writing is nearly always among them.
fn kind_weights(draw: &mut Prng, may_have_bitmaps: bool, pins: &Pins) -> [u64; KINDS] {
    const MOST: [u64; KINDS] = [4, 16, 6, 6, 6, 8, 1, 1, 10, 2, 1, 1, 4];
    let mut weights = MOST.map(|most| {
        if draw.chance(1, 2) {
            draw.between(1, most)
        } else {
            0
        }
    });
    if let Some(managed) = pins.manage {
        for (kind, weight) in weights.iter_mut().enumerate().take(BITMAPS).skip(MANAGED) {
            *weight = if managed.allows(kind - MANAGED) { 6 } else { 0 };
        }
    }
    if weights[1] == 0 && draw.chance(7, 8) {
        weights[1] = draw.between(1, MOST[1]);
    }
    match pins.compression {
        Some(None) => weights[8] = 0,
        Some(Some(_)) => weights[8] = MOST[8],
        None => {}
    }
    if !may_have_bitmaps || pins.bitmaps == Some(false) {
        weights[BITMAPS] = 0;
    } else if pins.bitmaps == Some(true) {
        weights[BITMAPS] = weights[BITMAPS].max(3);
        weights[7] = weights[7].max(1);
    } else if !draw.chance(1, 4) {
        weights[BITMAPS] = 0;
    }
    if weights.iter().all(|&weight| weight == 0) {
        weights[1] = 1;
    }
    weights
}

fn operation(
    draw: &mut Prng,
    places: &Places,
    weights: &[u64; KINDS],
    geometry: Geometry,
    bitmaps: &mut Vec<BitmapShape>,
) -> Operation {
    let kind = draw.weighted(weights);
    let Extent { offset, len_bytes } = places.operation_range(draw);
    match kind {
        0 => Operation::Read { offset, len_bytes },
        1 => Operation::Write { offset, len_bytes },
        2 | 3 => Operation::WriteZeroes {
            offset,
            len_bytes,
            unmap: if kind == 2 { Unmap::Keep } else { Unmap::Allow },
        },
        4 => Operation::Discard { offset, len_bytes },
        5 => Operation::Flush,
        // Whoever has an inconsistent bitmap is refused another size.
        6 if bitmaps.iter().copied().any(is_inconsistent) => Operation::Flush,
        6 => Operation::Grow {
            virtual_bytes: grown(draw, places.virtual_bytes, geometry),
            preallocation: Preallocation::Off,
        },
        7 => Operation::Reopen,
        8 => {
            let Extent { offset, len_bytes } = places.compressed_range(draw, geometry);
            Operation::WriteCompressed { offset, len_bytes }
        }
        9 => Operation::Amend(amend(draw)),
        10 => Operation::Rename {
            name_bytes: name_bytes(draw, geometry),
        },
        11 => Operation::Empty,
        _ => {
            let range = Extent { offset, len_bytes };
            let virtual_bytes = places.virtual_bytes;
            Operation::Bitmap(bitmap_operation(draw, virtual_bytes, range, bitmaps))
        }
    }
}

/// One change, or several; whatever another version needs comes along, so that few are refused.
fn amend(draw: &mut Prng) -> Amend {
    let any = Amend::default();
    let refcount_order = u32::try_from(draw.below(7)).expect("less than 7");
    match draw.below(8) {
        0 | 1 => Amend {
            version: Some(2),
            refcount_order: Some(4),
            ..any
        },
        2 => Amend {
            version: Some(3),
            ..any
        },
        3 => Amend {
            version: Some(3),
            lazy_refcounts: Some(true),
            ..any
        },
        4 => Amend {
            lazy_refcounts: Some(false),
            ..any
        },
        5 => Amend {
            version: Some(3),
            lazy_refcounts: Some(draw.chance(1, 2)),
            refcount_order: Some(refcount_order),
        },
        _ => Amend {
            version: Some(3),
            refcount_order: Some(refcount_order),
            ..any
        },
    }
}

/// A name that fits sector 0, one that crosses its end, or one as long as the format allows.
fn name_bytes(draw: &mut Prng, geometry: Geometry) -> u32 {
    let bytes = match draw.below(4) {
        0 => draw.between(1, 300),
        _ if geometry.cluster_bytes() <= 512 => draw.between(1, 380),
        1 => draw.between(300, 520),
        _ => draw.between(1, 1023),
    };
    u32::try_from(bytes).expect("at most 1023")
}

fn is_inconsistent(bitmap: BitmapShape) -> bool {
    bitmap.standing == BitmapStanding::Inconsistent
}

/// An operation that the bitmaps there are allow, and that concerns this range if it concerns one.
fn bitmap_operation(
    draw: &mut Prng,
    virtual_bytes: u64,
    range: Extent,
    bitmaps: &mut Vec<BitmapShape>,
) -> BitmapOperation {
    let free = (0..MAX_BITMAPS).find(|number| bitmaps.iter().all(|one| one.number != *number));
    let state = *draw.pick(&[
        BitmapState::Enabled,
        BitmapState::Enabled,
        BitmapState::Disabled,
    ]);
    let standing = match state {
        BitmapState::Enabled => BitmapStanding::Enabled,
        BitmapState::Disabled => BitmapStanding::Disabled,
    };
    if let Some(number) = free.filter(|_| bitmaps.is_empty() || draw.chance(1, 4)) {
        let granularity_bits = granularity_bits(draw, virtual_bytes);
        bitmaps.push(BitmapShape {
            number,
            granularity_bits,
            standing,
        });
        let change = BitmapChange::Create {
            granularity_bits,
            state,
        };
        return BitmapOperation { number, change };
    }
    let index = draw.index(bitmaps.len());
    let number = bitmaps[index].number;
    let source = *draw.pick(bitmaps);
    let kind = draw.below(7);
    let change = match kind {
        _ if is_inconsistent(bitmaps[index]) => BitmapChange::Remove,
        0 => BitmapChange::Remove,
        1 | 2 => BitmapChange::SetState(state),
        3 if !is_inconsistent(source) => BitmapChange::Merge {
            source: source.number,
        },
        4 => BitmapChange::Mark { range },
        _ => BitmapChange::Clear,
    };
    match change {
        BitmapChange::Remove => drop(bitmaps.remove(index)),
        BitmapChange::SetState(_) => bitmaps[index].standing = standing,
        BitmapChange::Create { .. }
        | BitmapChange::Clear
        | BitmapChange::Merge { .. }
        | BitmapChange::Mark { .. } => {}
    }
    BitmapOperation { number, change }
}

/// The size that a disk of `old_bytes` grows to where `drawn_bytes` is drawn: no more than an image of that
/// kind can grow by while each of its crash states is looked at as a whole.
fn bounded(pins: &Pins, geometry: Geometry, old_bytes: u64, drawn_bytes: u64) -> u64 {
    let most = data_file::most_growth(pins).min(chain::most_growth(pins, geometry));
    drawn_bytes.min(old_bytes.saturating_add(most))
}

fn grown(draw: &mut Prng, virtual_bytes: u64, geometry: Geometry) -> u64 {
    let cluster = geometry.cluster_bytes();
    let span = geometry.l1_span_bytes();
    let more = match draw.below(4) {
        0 => SECTOR,
        1 => draw.between(1, 8) * cluster,
        // Into the next L2 table.
        2 => span - virtual_bytes % span + cluster,
        // Out of the clusters of the L1 table, where that is not too far away.
        _ if cluster <= 1024 => span * (cluster / 8),
        _ => draw.between(1, 8) * SECTOR,
    };
    virtual_bytes + more
}

#[cfg(test)]
mod tests;
