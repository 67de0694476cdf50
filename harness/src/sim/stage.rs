//! The disks as they are before a run, and what a guest finds on them.

use std::future::ready;
use std::rc::Rc;
use std::sync::LazyLock;

use engine::defect::Planted;
use engine::device::{Event, PageImage, Port, RamDevice, drive};
use engine::error::{Error, Refused};
use engine::image::{Access, Image, LocalFuture, Unmap};
use engine::luks::{self, Hash, NewVolume, Secret};
use engine::manage::{BitmapState, Manage};
use engine::qcow2::create::{self, BackingFormat, CreateOptions, NewEncryption};
use engine::qcow2::geometry::Geometry;
use engine::qcow2::header::incompatible;
use engine::qcow2::{CacheSizes, OpenOptions, Qcow2};

use super::client::Opener;
use crate::guest::{Content, Past, name_of};
use crate::oracle::Witness;
use crate::oracle::structure::walk;
use crate::oracle::view::{self, Content as SectorContent, GuestView, merge};
use crate::workload::ops::{BitmapChange, BitmapOperation, Operation, OperationId};
use crate::workload::perform::{managed, perform};
use crate::workload::shape::{
    Backing, BitmapStanding, CacheShape, Encrypted, ImageShape, Start, TEST_CIPHER, TEST_KEY,
    TEST_SECRETS,
};
use crate::workload::stamp::{SectorValue, Writer, identify, stamp_range, thin_stamp_range};

/// The disks as they are before a run.
#[derive(Clone, Debug)]
pub struct Stage {
    /// The image's file.
    pub image: PageImage,
    /// The file of what lies beneath.
    pub backing: Option<BackingFile>,
    /// What a guest finds.
    pub content: Content,
    /// What a guest would find if the image held nothing.
    pub beneath: Content,
    /// The snapshots that are there.
    pub past: Vec<Past>,
    /// How large its disk is.
    pub virtual_bytes: u64,
    /// Cluster size and refcount width.
    pub geometry: Geometry,
}

/// The file of what lies beneath an image.
#[derive(Clone, Debug)]
pub struct BackingFile {
    /// Its format.
    pub format: BackingFormat,
    /// Its bytes.
    pub bytes: PageImage,
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

impl BackingFile {
    /// The same as the oracles read it.
    pub fn view(&self) -> view::Backing {
        match self.format {
            BackingFormat::Raw => view::Backing::raw(self.bytes.clone()),
            BackingFormat::Qcow2 => view::Backing::qcow2(self.bytes.clone(), None),
        }
    }
}

impl Stage {
    /// Makes the image that a run starts with.
    pub fn prepare(start: &Start) -> Result<Self, StageError> {
        match start {
            Start::New(shape) => new_image(shape),
            Start::Given(given) => given_image(&given.bytes),
        }
    }
}

fn new_image(shape: &ImageShape) -> Result<Stage, StageError> {
    let backing = match shape.backing {
        Some(backing) => Some(BackingFile {
            format: backing.format,
            bytes: backing_file(backing)?,
        }),
        None => None,
    };
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
        backing: shape.backing.map(|backing| create::Backing {
            name: "backing".into(),
            format: backing.format,
        }),
        data_file: None,
    };
    at_once(create::create(&port(&file), &options))?;
    if !shape.bitmaps.is_empty() {
        at_once(add_bitmaps(&file, backing.as_ref(), shape))?;
    }
    if !shape.filled.is_empty() || !shape.packed.is_empty() || shape.snapshots > 0 {
        at_once(fill(&file, backing.as_ref(), shape))?;
    }
    let mut image = file.snapshot();
    outdate(&mut image, shape);
    if shape.terse_snapshots {
        shorten_snapshots(&mut image);
    }
    if shape.abandoned {
        abandon(&mut image);
    }
    Ok(Stage {
        image,
        backing,
        content: shape.content(),
        beneath: shape.beneath(),
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
        backing: None,
        content: Content::from_values(values),
        beneath: Content::zeroes(),
        past: Witness::new(bytes.clone()).past(None),
        virtual_bytes: view.virtual_bytes(),
        geometry,
    })
}

async fn add_bitmaps(
    file: &Rc<RamDevice>,
    backing: Option<&BackingFile>,
    shape: &ImageShape,
) -> Result<(), Error> {
    let disks = Disks {
        file: port(file),
        backing: backing.map(|backing| (backing.format, ram_port(&backing.bytes))),
        options: OpenOptions::default(),
    };
    let image = disks.open().await?;
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
            let at = stored.flags_at + 3;
            let mut flags = [0];
            image.read(at, &mut flags);
            image.write(at, &[flags[0] | IN_USE]);
        }
    }
}

async fn fill(
    file: &Rc<RamDevice>,
    backing: Option<&BackingFile>,
    shape: &ImageShape,
) -> Result<(), Error> {
    let disks = Disks {
        file: port(file),
        backing: backing.map(|backing| (backing.format, ram_port(&backing.bytes))),
        options: OpenOptions::default(),
    };
    let image = disks.open().await?;
    let mut snapshots = 0..shape.snapshots;
    let mut next = snapshots.next();
    for filled in 0..=shape.filled.len() {
        while let Some(snapshot) = next.filter(|next| shape.filled_before(*next) == filled) {
            let id = OperationId(0);
            perform(&*image, id, Operation::SnapshotCreate { snapshot }).await?;
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
    let word = |offset| {
        let mut bytes = [0; 8];
        image.read(offset, &mut bytes);
        u64::from_be_bytes(bytes)
    };
    let (table, clusters) = (word(48), word(52) & 0xffff_ffff);
    let cluster_bytes = 1 << (word(16) >> 24 & 0xff);
    let incompatible = word(72) | incompatible::DIRTY;
    image.write(72, &incompatible.to_be_bytes());
    image.write_zeroes(table, clusters * cluster_bytes);
}

fn backing_file(backing: Backing) -> Result<PageImage, StageError> {
    let data = stamp_range(Writer::Backing, 0, backing.virtual_bytes);
    if backing.format == BackingFormat::Raw {
        return Ok(PageImage::from_bytes(&data));
    }
    let file = Rc::new(RamDevice::default());
    let options = CreateOptions {
        virtual_bytes: backing.virtual_bytes,
        cluster_bits: 12,
        ..CreateOptions::default()
    };
    at_once(async {
        create::create(&port(&file), &options).await?;
        let image = Qcow2::open(port(&file), None, &OpenOptions::default()).await?;
        image.write(0, data).await?;
        image.close().await
    })?;
    Ok(file.snapshot())
}

/// Opens the image under test over its backing file.
#[derive(Clone, Debug)]
pub struct Disks {
    /// The image's file.
    pub file: Port,
    /// What lies beneath.
    pub backing: Option<(BackingFormat, Port)>,
    /// How the image is opened.
    pub options: OpenOptions,
}

impl Opener for Disks {
    fn open(&self) -> LocalFuture<'static, Rc<dyn Image>> {
        let disks = self.clone();
        Box::pin(async move {
            let backing = match disks.backing {
                Some((format, port)) => Some(open_backing(format, port).await?),
                None => None,
            };
            let image =
                Qcow2::open_with_secrets(disks.file, backing, &disks.options, &secrets()).await?;
            let image: Rc<dyn Image> = Rc::new(image);
            Ok(image)
        })
    }
}

async fn open_backing(format: BackingFormat, port: Port) -> Result<Rc<dyn Image>, Error> {
    let read_only = OpenOptions {
        access: Access::ReadOnly,
        ..OpenOptions::default()
    };
    Ok(match format {
        BackingFormat::Raw => Rc::new(Beneath(port)),
        BackingFormat::Qcow2 => Rc::new(Qcow2::open(port, None, &read_only).await?),
    })
}

/// The options of a run's image.
pub fn open_options(caches: CacheShape, planted: Planted) -> OpenOptions {
    OpenOptions {
        caches: CacheSizes {
            l2_slices: caches.l2_slices,
            refcount_slices: caches.refcount_slices,
            slice_bytes: caches.slice_bytes,
        },
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

/// A raw file that is only read.
#[derive(Debug)]
struct Beneath(Port);

impl Image for Beneath {
    fn virtual_bytes(&self) -> u64 {
        self.0.len().next_multiple_of(512)
    }

    fn read(&self, offset: u64, len_bytes: usize) -> LocalFuture<'_, Vec<u8>> {
        let at = self.0.at(Event::ReadAio);
        Box::pin(async move { Ok(at.read(offset, len_bytes).await?) })
    }

    fn write(&self, _: u64, _: Vec<u8>) -> LocalFuture<'_, ()> {
        read_only()
    }

    fn write_zeroes(&self, _: u64, _: u64, _: Unmap) -> LocalFuture<'_, ()> {
        read_only()
    }

    fn discard(&self, _: u64, _: u64) -> LocalFuture<'_, ()> {
        read_only()
    }

    fn flush(&self) -> LocalFuture<'_, ()> {
        Box::pin(ready(Ok(())))
    }

    fn manage(&self, _: Manage) -> LocalFuture<'_, ()> {
        read_only()
    }

    fn close(&self) -> LocalFuture<'_, ()> {
        Box::pin(ready(Ok(())))
    }
}

fn read_only() -> LocalFuture<'static, ()> {
    Box::pin(ready(Err(Refused::ReadOnly.into())))
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
    use std::sync::Arc;

    use super::*;
    use crate::prng::Prng;
    use crate::workload::generate::scenario;
    use crate::workload::pin::Pins;
    use crate::workload::shape::Given;

    #[test]
    fn the_engine_and_the_oracles_find_what_the_shape_says() {
        for seed in 0..200 {
            let start = scenario(&Prng::from_seed(seed), &Pins::default()).image;
            let stage = Stage::prepare(&start).unwrap();
            let backing = stage.backing.as_ref().map(BackingFile::view);
            let report = walk(&stage.image);
            let abandoned = matches!(&start, Start::New(shape) if shape.abandoned);
            assert!(report.is_perfect() != abandoned, "{start:?}");
            let view = GuestView::new(&stage.image, &report, backing.as_ref()).unwrap();
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
        let pins = Pins::parse("backing=none,encrypt=off").unwrap();
        for seed in 0..200 {
            let start = scenario(&Prng::from_seed(seed), &pins).image;
            let made = Stage::prepare(&start).unwrap();
            let given = Stage::prepare(&Start::Given(Given {
                path: "given.qcow2".into(),
                bytes: Arc::new(made.image),
            }))
            .unwrap();
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
