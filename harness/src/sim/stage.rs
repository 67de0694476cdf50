//! The disks as they are before a run, and what a guest finds on them.

use std::rc::Rc;
use std::sync::LazyLock;

use blkdebug::disks::{Disk, Disks};
use engine::defect::Planted;
use engine::device::{ContentHash, Event, PageImage, Port, RamDevice, drive};
use engine::error::{Error, Refused};
use engine::image::{Access, Image, Unmap};
use engine::luks::{self, Hash, NewVolume, Secret};
use engine::manage::{BitmapState, DataFileChange, Manage, RawPromise};
use engine::qcow2::create::{self, BackingFormat, CreateOptions, NewDataFile, NewEncryption};
use engine::qcow2::geometry::Geometry;
use engine::qcow2::header::{autoclear, incompatible};
use engine::qcow2::{CacheSizes, OpenOptions, Qcow2};
use engine::raw::Raw;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use super::client::Opener;
use super::files::{File, Files, Follow};
use crate::guest::{Content, Past, name_of};
use crate::oracle::Witness;
use crate::oracle::structure::{layout, walk};
use crate::oracle::view::{self, Content as SectorContent, GuestView};
use crate::sectors::merge;
use crate::workload::ops::{
    BitmapChange, BitmapOperation, Operation, OperationId, SnapshotChange, SnapshotOperation,
};
use crate::workload::perform::{file_name, managed, perform};
use crate::workload::shape::{
    Backing, BitmapStanding, Encrypted, Extent, ImageShape, Scenario, Start, TEST_CIPHER, TEST_KEY,
    TEST_SECRETS,
};
use crate::workload::stamp::{SectorValue, Writer, identify, stamp_range, thin_stamp_range};

/// An autoclear bit that no feature has.
const UNKNOWN_AUTOCLEAR: u64 = 1 << 40;

/// The disks as they are before a run.
#[derive(Clone, Debug)]
pub struct Stage {
    /// The image's file.
    pub image: PageImage,
    /// The file that its guest data stand in, where that is another.
    pub data: Option<PageImage>,
    /// The files beneath, the one that the image lies over first.
    pub beneath: Vec<LowerFile>,
    /// Whether the image's header says which of them it lies over; it is the first otherwise.
    pub follow: Follow,
    /// What a guest finds.
    pub content: Content,
    /// What a guest would find if the image held nothing.
    pub shown_beneath: Content,
    /// The snapshots that are there.
    pub past: Vec<Past>,
    /// How large its disk is.
    pub virtual_bytes: u64,
    /// Cluster size and refcount width.
    pub geometry: Geometry,
}

/// A file beneath an image.
#[derive(Clone, Debug)]
pub struct LowerFile {
    /// Where it stands.
    pub disk: Disk,
    /// Its format.
    pub format: BackingFormat,
    /// Its bytes.
    pub bytes: PageImage,
    /// What it lies over.
    pub over: Option<Disk>,
    /// The size of its disk in bytes.
    pub virtual_bytes: u64,
    /// What it shows.
    pub content: Content,
}

/// Why there is nothing to start from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StageError {
    /// The engine could not make or open the image on a disk without faults.
    #[error("{0}")]
    Engine(#[from] Error),
    /// The engine waits for something that cannot happen.
    #[error("the engine hangs on a disk that completes every request at once")]
    Hang,
    /// There is nothing that the oracles could go by.
    #[error("the image's header cannot be read")]
    Illegible,
}

impl Stage {
    /// Makes the image that a run starts with.
    pub fn prepare(start: &Start) -> Result<Self, StageError> {
        match start {
            Start::New(shape) => new_image(shape),
            Start::Given(given) => given_image(&given.image()),
        }
    }

    /// Whether files beneath may be written to, or the image be put over another.
    pub fn is_chain(&self) -> bool {
        self.follow == Follow::Header
    }

    /// The file of a disk beneath the image.
    pub fn file(&self, disk: Disk) -> Option<&LowerFile> {
        self.beneath.iter().find(|file| file.disk == disk)
    }

    /// The file that the image of a disk lies over where the disks hold this: by name, if that tells.
    pub fn over(&self, disk: Disk, disks: &Disks<PageImage>) -> Option<Disk> {
        if disk != Disk::Image {
            return self.file(disk)?.over;
        }
        match self.follow {
            Follow::Always => self.beneath.first().map(|file| file.disk),
            Follow::Header => {
                let name = layout(disks.image())?.backing_name;
                let names = |file: &&LowerFile| xxh3_64(file_name(file.disk).as_bytes()) == name;
                self.beneath.iter().find(names).map(|file| file.disk)
            }
        }
    }

    /// What a disk holds, by these contents or as it was.
    fn bytes<'a>(&'a self, disk: Disk, disks: &'a Disks<PageImage>) -> &'a PageImage {
        let then = || self.file(disk).map(|file| &file.bytes);
        let bytes = disks.get(disk).or_else(then);
        bytes.expect("there is a file on each disk that is asked about")
    }

    /// A file beneath as the oracles read it, where the disks hold this.
    pub fn view(&self, disk: Disk, disks: &Disks<PageImage>) -> view::Backing {
        let bytes = self.bytes(disk, disks).clone();
        let file = self
            .file(disk)
            .expect("only files that there are lie beneath");
        match file.format {
            BackingFormat::Raw => view::Backing::raw(bytes),
            BackingFormat::Qcow2 => {
                let below = file.over.map(|over| self.view(over, disks));
                view::Backing::qcow2(bytes, below)
            }
        }
    }

    /// Names what a file beneath holds and what lies beneath it.
    pub fn hash(&self, disk: Disk, disks: &Disks<PageImage>) -> ContentHash {
        let own = self.bytes(disk, disks).content_hash();
        match self.over(disk, disks) {
            None => own,
            Some(over) => {
                let below = self.hash(over, disks);
                let words = [own.0.to_le_bytes(), below.0.to_le_bytes()];
                ContentHash(xxh3_128(&words.concat()))
            }
        }
    }

    /// The files of a run on these devices; `beneath` are those of the files beneath, in order.
    pub fn files(
        &self,
        image: Port,
        data: Option<Port>,
        beneath: Vec<Port>,
        options: OpenOptions,
    ) -> Files {
        let files = self.beneath.iter().zip(beneath);
        Files {
            image,
            data,
            beneath: files
                .map(|(file, port)| File {
                    disk: file.disk,
                    format: file.format,
                    port,
                    over: file.over,
                })
                .collect(),
            follow: self.follow,
            options,
        }
    }
}

fn new_image(shape: &ImageShape) -> Result<Stage, StageError> {
    let beneath = lower_files(shape)?;
    let file = Rc::new(RamDevice::default());
    let options = CreateOptions {
        virtual_bytes: shape.virtual_bytes,
        version: shape.version,
        cluster_bits: shape.geometry.cluster_bits(),
        refcount_order: shape.geometry.refcount_order(),
        lazy_refcounts: shape.lazy_refcounts,
        compression: shape.compression,
        encryption: shape.encryption.map(encryption),
        extended_l2: shape.geometry.has_subclusters(),
        preallocation: shape.preallocation,
        backing: shape.backing.map(|backing| create::Backing {
            name: file_name(Disk::Backing).into(),
            format: backing.format,
        }),
        data_file: shape.data_file.map(|content| NewDataFile {
            name: "data".into(),
            content,
        }),
    };
    let data = shape.data_file.map(|_| Rc::new(RamDevice::default()));
    match &data {
        Some(data) => {
            let (file, data) = (port(&file), port(data));
            at_once(create::create_with_data_file(&file, &data, &options))?;
        }
        None => at_once(create::create(&port(&file), &options))?,
    }
    let files = Files {
        image: port(&file),
        data: data.as_ref().map(port),
        beneath: beneath
            .iter()
            .map(|file| File {
                disk: file.disk,
                format: file.format,
                port: ram_port(&file.bytes),
                over: file.over,
            })
            .collect(),
        follow: Follow::Always,
        options: OpenOptions::default(),
    };
    if !shape.unmapped.is_empty() {
        at_once(unmap(&files, shape))?;
    }
    if !shape.bitmaps.is_empty() {
        at_once(add_bitmaps(&files, shape))?;
    }
    if !shape.filled.is_empty() || !shape.packed.is_empty() || shape.snapshots > 0 {
        at_once(fill(&files, shape))?;
    }
    let mut image = file.snapshot();
    outdate(&mut image, shape);
    if shape.claiming_snapshots {
        claim_in_snapshots(&mut image, shape.geometry);
    }
    if shape.terse_snapshots {
        shorten_snapshots(&mut image);
    }
    if shape.abandoned {
        abandon(&mut image);
    }
    if shape.unknown_autoclear {
        let bits = word(&image, 88) | UNKNOWN_AUTOCLEAR;
        image.write(88, &bits.to_be_bytes());
    }
    Ok(Stage {
        image,
        data: data.map(|data| data.snapshot()),
        beneath,
        follow: if shape.chain.is_some() {
            Follow::Header
        } else {
            Follow::Always
        },
        content: shape.content(),
        shown_beneath: shape.beneath(),
        past: (0..shape.snapshots)
            .map(|snapshot| past(shape, snapshot))
            .collect(),
        virtual_bytes: shape.virtual_bytes,
        geometry: shape.geometry,
    })
}

fn encryption(method: Encrypted) -> NewEncryption {
    match method {
        Encrypted::Aes => NewEncryption::Aes,
        Encrypted::Luks => NewEncryption::Luks(VOLUME.clone()),
    }
}

/// Header and key material of every LUKS image of a run: with one iteration, and [`TEST_KEY`] under the first
/// of [`TEST_SECRETS`].
static VOLUME: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let new = NewVolume {
        cipher: TEST_CIPHER,
        hash: Hash::Sha256,
        slot_iterations: 1,
        digest_iterations: 1,
    };
    // The first draw is the key.
    let mut draws = 0u8;
    let mut source = |into: &mut [u8]| {
        if draws == 0 {
            into.copy_from_slice(&TEST_KEY);
        } else {
            into.fill(draws);
        }
        draws += 1;
    };
    let bytes = luks::format(&new, &secrets()[0], &mut source);
    bytes.expect("the volume is within every limit")
});

/// What opens the images of a run.
pub fn secrets() -> [Secret; TEST_SECRETS.len()] {
    TEST_SECRETS.map(|secret| Secret::new(secret.to_vec()))
}

/// An image whose content is known only to itself.
fn given_image(bytes: &PageImage) -> Result<Stage, StageError> {
    let report = walk(bytes);
    let view = GuestView::new(bytes, &report, None).ok_or(StageError::Illegible)?;
    let mut values = Vec::new();
    for sectors in merge(view.mapped_sectors().collect(), view.virtual_bytes() / 512) {
        for run in view.runs(sectors) {
            let values_of = |sector| (sector, value(run.content(sector)));
            values.extend(run.sectors.clone().map(values_of));
        }
    }
    let options = OpenOptions {
        access: Access::ReadOnly,
        ..OpenOptions::default()
    };
    let geometry = at_once(async {
        let image = Qcow2::open(ram_port(bytes), None, &options).await?;
        Ok(image.geometry())
    })?;
    Ok(Stage {
        image: bytes.clone(),
        data: None,
        beneath: Vec::new(),
        follow: Follow::Always,
        content: Content::from_values(values),
        shown_beneath: Content::zeroes(),
        past: Witness::new(bytes.clone()).past(None),
        virtual_bytes: view.virtual_bytes(),
        geometry,
    })
}

/// Lets the image say of ranges of a raw data file that they are zeroes. The engine does so only where nothing
/// is promised of that file; it is promised again afterwards, since every byte of the file is zero.
/// Specification: "Header", bytes 88 to 95 (autoclear features).
async fn unmap(files: &Files, shape: &ImageShape) -> Result<(), Error> {
    let image = files.open().await?.image;
    let withdrawal = DataFileChange {
        name: None,
        raw: RawPromise::Withdraw,
    };
    image.manage(Manage::SetDataFile(withdrawal)).await?;
    for Extent { offset, len_bytes } in &shape.unmapped {
        let unmap = Unmap::Allow;
        image.write_zeroes(*offset, *len_bytes, unmap).await?;
    }
    image.close().await?;
    let header = files.image.at(Event::None);
    let mut sector = header.read(0, 512).await?;
    sector[95] |= u8::try_from(autoclear::RAW_DATA_FILE).expect("it is in the last byte");
    Ok(header.write(0, sector).await?)
}

async fn add_bitmaps(files: &Files, shape: &ImageShape) -> Result<(), Error> {
    let image = files.open().await?.image;
    for bitmap in &shape.bitmaps {
        let state = match bitmap.standing {
            BitmapStanding::Enabled | BitmapStanding::Inconsistent => BitmapState::Enabled,
            BitmapStanding::Disabled => BitmapState::Disabled,
        };
        let change = BitmapChange::Create {
            granularity_bits: bitmap.granularity_bits,
            state,
        };
        let number = bitmap.number;
        let operation = managed(BitmapOperation { number, change });
        image.manage(operation).await?;
    }
    image.close().await
}

/// Sets the flag of bitmaps that whoever was killed left behind.
fn outdate(image: &mut PageImage, shape: &ImageShape) {
    const IN_USE: u8 = 1;
    for (stored, bitmap) in walk(image).bitmaps.iter().zip(&shape.bitmaps) {
        if bitmap.standing == BitmapStanding::Inconsistent {
            let at = stored.flags_at() + 3;
            let mut flags = [0];
            image.read(at, &mut flags);
            image.write(at, &[flags[0] | IN_USE]);
        }
    }
}

async fn fill(files: &Files, shape: &ImageShape) -> Result<(), Error> {
    let image = files.open().await?.image;
    let mut snapshots = 0..shape.snapshots;
    let mut next = snapshots.next();
    for filled in 0..=shape.filled.len() {
        while let Some(snapshot) = next.filter(|next| shape.filled_before(*next) == filled) {
            let id = OperationId(0);
            let change = SnapshotChange::Create;
            let operation = Operation::Snapshot(SnapshotOperation { snapshot, change });
            perform(&*image, id, operation).await?;
            next = snapshots.next();
        }
        if let Some(extent) = shape.filled.get(filled) {
            let data = stamp_range(Writer::Image, extent.offset, extent.len_bytes);
            image.write(extent.offset, data).await?;
        }
    }
    for extent in &shape.packed {
        let data = thin_stamp_range(Writer::Image, extent.offset, extent.len_bytes);
        match image.write_compressed(extent.offset, data.clone()).await {
            Err(Error::Refused(Refused::NotVacant { .. } | Refused::NotWholeClusters { .. })) => {
                image.write(extent.offset, data).await?;
            }
            stored => stored?,
        }
    }
    image.close().await
}

fn past(shape: &ImageShape, snapshot: u32) -> Past {
    Past {
        name: name_of(snapshot),
        content: shape.snapshot_content(snapshot),
        virtual_bytes: shape.virtual_bytes,
    }
}

/// Sets COPIED in the L1 table of every snapshot, and in the L2 tables that only snapshots have, wherever an entry
/// names a cluster that is not compressed. Specification: "L1 table entry" and "L2 table entry", bit 63: the flag is
/// accurate in the active L1 table and in what that leads to.
fn claim_in_snapshots(image: &mut PageImage, geometry: Geometry) {
    const COPIED: u64 = 1 << 63;
    const COMPRESSED: u64 = 1 << 62;
    const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
    let tables = |image: &PageImage, at: u64, entries: u64| -> Vec<u64> {
        let words = (0..entries).map(|index| word(image, at + index * 8) & OFFSET);
        words.collect()
    };
    let active = tables(image, word(image, 40), word(image, 32) & 0xffff_ffff);
    let claim = |image: &mut PageImage, at: u64| {
        let entry = word(image, at);
        if entry & OFFSET != 0 && entry & COMPRESSED == 0 {
            image.write(at, &(entry | COPIED).to_be_bytes());
        }
    };
    let entry_bytes = if geometry.has_subclusters() { 16 } else { 8 };
    for (l1_offset, l1_entries) in snapshot_tables(image) {
        for (table, index) in tables(image, l1_offset, l1_entries).into_iter().zip(0..) {
            claim(image, l1_offset + index * 8);
            if table != 0 && !active.contains(&table) {
                for entry in 0..geometry.l2_entries() {
                    claim(image, table + entry * entry_bytes);
                }
            }
        }
    }
}

/// Where the L1 table of each snapshot starts, and how many entries it has.
fn snapshot_tables(image: &PageImage) -> Vec<(u64, u64)> {
    let count = word(image, 56) & 0xffff_ffff;
    let mut at = word(image, 64);
    let mut found = Vec::new();
    for _ in 0..count {
        let lengths = word(image, at + 8);
        found.push((word(image, at), lengths >> 32));
        let names_bytes = (lengths >> 16 & 0xffff) + (lengths & 0xffff);
        let extra_bytes = word(image, at + 32) & 0xffff_ffff;
        at += (40 + extra_bytes + names_bytes).next_multiple_of(8);
    }
    found
}

/// Takes the extra data out of every entry of the snapshot table. Specification: "Header", bytes 60 to 71;
/// "Snapshots".
fn shorten_snapshots(image: &mut PageImage) {
    let number = |bytes: &[u8]| {
        let digits = bytes.iter();
        digits.fold(0, |value: u64, byte| value << 8 | u64::from(*byte))
    };
    let header = image.read_vec(60, 12);
    let (count, table) = (number(&header[..4]), number(&header[4..]));
    let mut short = Vec::new();
    let mut at = table;
    for _ in 0..count {
        let mut head = image.read_vec(at, 40);
        let extra_bytes = number(&head[36..]);
        let names_bytes = number(&head[12..14]) + number(&head[14..16]);
        let names = image.read_vec(at + 40 + extra_bytes, mem_len(names_bytes));
        head[36..].fill(0);
        short.extend([head, names].concat());
        short.resize(short.len().next_multiple_of(8), 0);
        at += (40 + extra_bytes + names_bytes).next_multiple_of(8);
    }
    short.resize(mem_len(at - table), 0);
    image.write(table, &short);
}

fn mem_len(bytes: u64) -> usize {
    usize::try_from(bytes).expect("the table of a few snapshots is short")
}

/// What is left of an image whose dirty bit reached the disk, and no refcount after it.
/// Specification: "Header", bytes 48 to 59 (refcount table) and 72 to 79 (incompatible features).
fn abandon(image: &mut PageImage) {
    let word = |offset| word(image, offset);
    let (table, clusters) = (word(48), word(52) & 0xffff_ffff);
    let cluster_bytes = 1 << (word(16) & 0xff);
    let incompatible = word(72) | incompatible::DIRTY;
    image.write(72, &incompatible.to_be_bytes());
    image.write_zeroes(table, clusters * cluster_bytes);
}

/// The number of 64 bits at an offset of the header.
fn word(image: &PageImage, offset: u64) -> u64 {
    let mut bytes = [0; 8];
    image.read(offset, &mut bytes);
    u64::from_be_bytes(bytes)
}

/// The files beneath an image.
fn lower_files(shape: &ImageShape) -> Result<Vec<LowerFile>, StageError> {
    let has_base = shape.file(Disk::Base).is_some();
    let mut files = Vec::new();
    for disk in [Disk::Backing, Disk::Base, Disk::Other] {
        if let Some(backing) = shape.file(disk) {
            files.push(LowerFile {
                disk,
                format: backing.format,
                bytes: lower_file(shape, disk, backing)?,
                over: (disk == Disk::Backing && has_base).then_some(Disk::Base),
                virtual_bytes: backing.virtual_bytes,
                content: shape.content_of(disk),
            });
        }
    }
    Ok(files)
}

fn lower_file(shape: &ImageShape, disk: Disk, backing: Backing) -> Result<PageImage, StageError> {
    let writer = match disk {
        Disk::Image | Disk::Data | Disk::Backing => Writer::Backing,
        Disk::Base => Writer::Base,
        Disk::Other => Writer::Other,
    };
    if backing.format == BackingFormat::Raw {
        let data = stamp_range(writer, 0, backing.virtual_bytes);
        return Ok(PageImage::from_bytes(&data));
    }
    let mut held = vec![Extent {
        offset: 0,
        len_bytes: backing.virtual_bytes,
    }];
    let mut options = CreateOptions {
        virtual_bytes: backing.virtual_bytes,
        cluster_bits: 12,
        ..CreateOptions::default()
    };
    if let Some(chain) = &shape.chain {
        options.cluster_bits = chain.cluster_bits;
        options.lazy_refcounts = chain.lazy_refcounts;
        if disk == Disk::Backing {
            held.clone_from(&chain.held);
            options.backing = chain.base.map(|base| create::Backing {
                name: file_name(Disk::Base).into(),
                format: base.format,
            });
        }
    }
    // What is written in part is filled up from what lies beneath.
    let below: Option<Rc<dyn Image>> = match shape.file(Disk::Base) {
        Some(base) if options.backing.is_some() => {
            let bytes = lower_file(shape, Disk::Base, base)?;
            Some(at_once(open_lower(base.format, ram_port(&bytes)))?)
        }
        Some(_) | None => None,
    };
    let file = Rc::new(RamDevice::default());
    at_once(async {
        create::create(&port(&file), &options).await?;
        let image = Qcow2::open(port(&file), below, &OpenOptions::default()).await?;
        for extent in &held {
            let data = stamp_range(writer, extent.offset, extent.len_bytes);
            image.write(extent.offset, data).await?;
        }
        image.close().await
    })?;
    Ok(file.snapshot())
}

async fn open_lower(format: BackingFormat, port: Port) -> Result<Rc<dyn Image>, Error> {
    let read_only = OpenOptions {
        access: Access::ReadOnly,
        ..OpenOptions::default()
    };
    Ok(match format {
        BackingFormat::Raw => Rc::new(Raw::open(port, Access::ReadOnly)),
        BackingFormat::Qcow2 => Rc::new(Qcow2::open(port, None, &read_only).await?),
    })
}

/// The options of a run's image.
pub fn open_options(scenario: &Scenario, planted: Planted) -> OpenOptions {
    let (caches, options) = (scenario.caches, scenario.options);
    OpenOptions {
        caches: CacheSizes {
            l2_slices: caches.l2_slices,
            refcount_slices: caches.refcount_slices,
            slice_bytes: caches.slice_bytes,
        },
        discards: options.discards,
        detect_zeroes: options.detect_zeroes,
        overlap_checks: options.overlap_checks,
        planted,
        ..OpenOptions::default()
    }
}

fn at_once<T>(future: impl Future<Output = Result<T, Error>>) -> Result<T, StageError> {
    Ok(drive(future).ok_or(StageError::Hang)??)
}

fn port(file: &Rc<RamDevice>) -> Port {
    Port::new(Rc::<RamDevice>::clone(file))
}

fn ram_port(bytes: &PageImage) -> Port {
    Port::new(Rc::new(RamDevice::new(bytes.clone())))
}

fn value(content: SectorContent<'_>) -> SectorValue {
    match content {
        SectorContent::Zeroes => SectorValue::Zero,
        SectorContent::Bytes(bytes) => identify(bytes),
        // No value of its own: the judge finds it unreadable as well.
        SectorContent::Unreadable => SectorValue::Other(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prng::Prng;
    use crate::workload::generate::scenario;
    use crate::workload::given::Given;
    use crate::workload::pin::Pins;

    #[test]
    fn the_engine_and_the_oracles_find_what_the_shape_says() {
        for seed in 0..200 {
            let start = scenario(&Prng::from_seed(seed), &Pins::default()).image;
            let stage = Stage::prepare(&start).unwrap();
            let disks = Disks::one(stage.image.clone());
            let over = stage.over(Disk::Image, &disks);
            let backing = over.map(|over| stage.view(over, &disks));
            let report = walk(&stage.image);
            let unsound = matches!(&start, Start::New(shape)
                if shape.abandoned || shape.terse_snapshots && shape.snapshots > 0);
            assert!(report.is_perfect() != unsound, "{start:?}");
            let view = GuestView::new(&stage.image, &report, backing.as_ref()).unwrap();
            let view = view.with_data(stage.data.as_ref());
            assert_eq!(view.virtual_bytes(), stage.virtual_bytes);
            for range in stage.content.ranges() {
                for run in view.runs(range) {
                    for sector in run.sectors.clone() {
                        assert_eq!(value(run.content(sector)), stage.content.value(sector));
                    }
                }
            }
        }
    }

    #[test]
    fn an_image_from_outside_starts_with_what_it_holds() {
        let pins = Pins::parse("backing=none,encrypt=off,data_file=off").unwrap();
        for seed in 0..200 {
            let start = scenario(&Prng::from_seed(seed), &pins).image;
            let made = Stage::prepare(&start).unwrap();
            let given = Given::new("given.qcow2".into(), &made.image);
            let given = Stage::prepare(&Start::Given(given)).unwrap();
            assert_eq!(given.virtual_bytes, made.virtual_bytes);
            assert_eq!(given.geometry, made.geometry);
            for sector in made.content.ranges().flatten() {
                assert_eq!(given.content.value(sector), made.content.value(sector));
            }
            let held = |content: &Content| content.ranges().flatten().count();
            assert_eq!(held(&given.content), held(&made.content));
        }
    }
}
