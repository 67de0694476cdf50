//! Making a new, empty image.
//!
//! Specification: "Header", "Refcounts". The layout is qemu-img's: header, refcount table, refcount
//! blocks, L1 table, encryption header, with the same fields, extensions and L1 size. The first sector is written last,
//! after a flush, so that a file either is a whole image or is none.

use super::bounds::{MAX_L1_BYTES, MAX_REFTABLE_BYTES};
use super::compress::Compression;
use super::crypto::{self, Encryption};
use super::geometry::Geometry;
use super::header::{
    Extension, Header, MAX_BACKING_NAME, V2_LEN, V3_LEN_WRITTEN, autoclear, compatible,
    incompatible,
};
use super::preallocate::{NewTables, Unwritten};
use super::unit::{HostCluster, HostOffset, byte_count};
use super::{Files, OpenOptions, Qcow2, data_file, extension, feature, refblock};
use crate::device::{Event, Port, SECTOR_BYTES};
use crate::error::{Error, Refused, Structure};
use crate::image::Image;
use crate::preallocation::{Preallocation, occupy};

const SECTOR: usize = 512;

/// What a new image is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateOptions {
    /// The size of the guest's disk: a multiple of 512.
    pub virtual_bytes: u64,
    /// 2 or 3.
    pub version: u32,
    /// Binary logarithm of the cluster size, 9 to 21.
    pub cluster_bits: u32,
    /// Binary logarithm of the refcount width in bits, 0 to 6; 4 in version 2.
    pub refcount_order: u32,
    /// Whether refcount updates may be postponed; version 3 only.
    pub lazy_refcounts: bool,
    /// How compressed clusters are to be compressed; other than zlib in version 3 only.
    pub compression: Compression,
    /// How guest data are to be encrypted, if they are.
    pub encryption: Option<NewEncryption>,
    /// Whether L2 entries are extended, so that clusters have subclusters; version 3 only, from
    /// clusters of 16 KiB on.
    pub extended_l2: bool,
    /// How much of the disk has its place before the guest writes there.
    pub preallocation: Preallocation,
    /// What lies beneath.
    pub backing: Option<Backing>,
    /// The external file that guest data are to stand in, if they are; version 3 only.
    pub data_file: Option<NewDataFile>,
}

/// The external data file of a new image, as it is recorded in the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewDataFile {
    /// Its name.
    pub name: String,
    /// What it is by itself.
    pub content: DataFileContent,
}

/// What an external data file is by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DataFileContent {
    /// Clusters that mean something only to the image.
    Clusters,
    /// A raw image of the disk, at every moment. Nothing can lie beneath such a disk.
    Raw,
}

/// How the guest data of a new image are to be encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NewEncryption {
    /// With the legacy method, under the secret that the image is opened with.
    Aes,
    /// With LUKS: header and key material as [`crate::luks::format`] makes them.
    Luks(Vec<u8>),
}

/// The backing file of a new image, as it is recorded in the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backing {
    /// Its name.
    pub name: String,
    /// Its format: without it a reader would have to guess.
    pub format: BackingFormat,
}

/// The formats of backing files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BackingFormat {
    /// The bytes of the file are those of the disk.
    Raw,
    /// A qcow2 image.
    Qcow2,
}

impl BackingFormat {
    /// The name that stands in the image.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }

    /// The format of that name.
    pub fn from_name(name: &[u8]) -> Option<Self> {
        [Self::Raw, Self::Qcow2]
            .into_iter()
            .find(|format| format.name().as_bytes() == name)
    }
}

impl Default for CreateOptions {
    /// An empty disk, and for the rest what qemu-img would choose.
    fn default() -> Self {
        Self {
            virtual_bytes: 0,
            version: 3,
            cluster_bits: 16,
            refcount_order: 4,
            lazy_refcounts: false,
            compression: Compression::Zlib,
            encryption: None,
            extended_l2: false,
            preallocation: Preallocation::Off,
            backing: None,
            data_file: None,
        }
    }
}

/// Makes `file` an empty image, and `data` its external data file. What the files held before is cut off.
///
/// A raw data file is mapped from start to end. Power lost on the way leaves no image, or one that reads
/// as zeroes, as its data file does.
pub async fn create_with_data_file(
    file: &Port,
    data: &Port,
    options: &CreateOptions,
) -> Result<(), Error> {
    validate(options)?;
    let Some(data_file) = &options.data_file else {
        return refuse("a data file was given for an image that has its data in itself".into());
    };
    // An older image in the file must not show the data file's new content.
    let at = file.at(Event::None);
    at.set_len(0).await?;
    at.flush().await?;
    data_file::create(data, options.virtual_bytes).await?;
    occupy(data, 0, options.virtual_bytes, options.preallocation).await?;
    data.at(Event::FlushToDisk).flush().await?;
    create_image(file, options).await?;
    let is_raw = data_file.content == DataFileContent::Raw;
    // Every cluster has its place there already; what is mapped hides what lies beneath.
    let is_mapped = options.preallocation != Preallocation::Off && options.backing.is_none();
    if !(is_raw || is_mapped) || options.encryption.is_some() {
        return Ok(());
    }
    let files = Files {
        image: file.clone(),
        data: Some(data.clone()),
        backing: None,
    };
    let image = Qcow2::open_files(files, &OpenOptions::default(), &[]).await?;
    image.map_new_data_file().await?;
    image.close().await
}

/// Makes `file` an empty image that has its data in itself. What the file held before is cut off.
pub async fn create(file: &Port, options: &CreateOptions) -> Result<(), Error> {
    if options.data_file.is_some() {
        return Err(Refused::NoDataFile.into());
    }
    create_image(file, options).await
}

async fn create_image(file: &Port, options: &CreateOptions) -> Result<(), Error> {
    let geometry = validate(options)?;
    let luks: &[u8] = match &options.encryption {
        Some(NewEncryption::Luks(bytes)) => bytes,
        Some(NewEncryption::Aes) | None => &[],
    };
    let layout = Layout::new(geometry, options, luks.len())?;
    let mut first = header(options, geometry, &layout).encode();
    first.resize(first.len().next_multiple_of(SECTOR), 0);
    let names = first.split_off(SECTOR);
    let at = file.at(Event::None);
    at.set_len(0).await?;
    at.flush().await?;
    at.set_len(layout.file_bytes()).await?;
    layout.write_refcounts(file).await?;
    if preallocates_itself(options) {
        let tables = layout.tables(unwritten(options)?, options.virtual_bytes);
        tables.write(file).await?;
        let (data, len_bytes) = (tables.data.0, layout.data_clusters << options.cluster_bits);
        occupy(file, data, len_bytes, options.preallocation).await?;
    }
    if !luks.is_empty() {
        let mut bytes = luks.to_vec();
        bytes.resize(bytes.len().next_multiple_of(SECTOR), 0);
        at.write(layout.luks_offset().0, bytes).await?;
    }
    if !names.is_empty() {
        at.write(SECTOR_BYTES, names).await?;
    }
    at.flush().await?;
    at.write(0, first).await?;
    at.flush().await?;
    Ok(())
}

fn validate(options: &CreateOptions) -> Result<Geometry, Error> {
    let CreateOptions {
        virtual_bytes,
        version,
        cluster_bits,
        refcount_order,
        lazy_refcounts,
        compression,
        encryption: _,
        extended_l2,
        preallocation,
        ref backing,
        ref data_file,
    } = *options;
    if !(2..=3).contains(&version) {
        return refuse(format!("version {version} is not 2 or 3"));
    }
    if !Geometry::CLUSTER_BITS.contains(&cluster_bits) {
        return refuse(format!(
            "cluster bits {cluster_bits} are not within 9..=21: the cluster size is a power of two from 512 bytes to 2 MiB"
        ));
    }
    let Some(mut geometry) = Geometry::new(cluster_bits, refcount_order) else {
        return refuse(format!(
            "refcount order {refcount_order} is not within 0..=6: the refcount width is a power of two up to 64 bits"
        ));
    };
    if version == 2 && refcount_order != 4 {
        return refuse("version 2 has refcounts of 16 bits: use version 3 for others".into());
    }
    if version == 2 && lazy_refcounts {
        return refuse("version 2 has no lazy refcounts: use version 3".into());
    }
    if version == 2 && compression != Compression::Zlib {
        return refuse(format!(
            "version 2 has no compression type {}: use version 3",
            compression.name()
        ));
    }
    if extended_l2 {
        geometry = extended(geometry, version)?;
    }
    if !virtual_bytes.is_multiple_of(512) {
        return refuse(format!(
            "disk size {virtual_bytes} is not a multiple of 512"
        ));
    }
    let most_bytes = MAX_L1_BYTES / 8 * geometry.l1_span_bytes();
    if virtual_bytes > most_bytes {
        return refuse(format!(
            "disk size {virtual_bytes} is more than {most_bytes}, the most that clusters of {} bytes can map",
            geometry.cluster_bytes()
        ));
    }
    if let Some(data_file) = data_file {
        geometry = external(geometry, data_file, options)?;
    }
    if preallocation != Preallocation::Off {
        if preallocates_itself(options) {
            unwritten(options)?;
        }
        if backing.is_some() && !extended_l2 {
            return refuse("with a backing file, preallocation takes extended L2 entries: a cluster that has its place would hide what lies beneath".into());
        }
    }
    if let Some(backing) = backing {
        validate_backing(backing, options, geometry)?;
    }
    Ok(geometry)
}

/// Whether the image file has the places of all guest data.
fn preallocates_itself(options: &CreateOptions) -> bool {
    options.preallocation != Preallocation::Off && options.data_file.is_none()
}

/// What clusters are mapped as that have their place before the guest writes there.
fn unwritten(options: &CreateOptions) -> Result<Unwritten, Error> {
    Unwritten::of(options.version, options.encryption.is_some())
}

fn extended(geometry: Geometry, version: u32) -> Result<Geometry, Error> {
    if version == 2 {
        return refuse("version 2 has no extended L2 entries: use version 3".into());
    }
    geometry.with_extended_l2().map_or_else(
        || {
            refuse(format!(
                "extended L2 entries need clusters of at least 16384 bytes, not {}",
                geometry.cluster_bytes()
            ))
        },
        Ok,
    )
}

fn external(
    geometry: Geometry,
    data_file: &NewDataFile,
    options: &CreateOptions,
) -> Result<Geometry, Error> {
    if options.version == 2 {
        return refuse("version 2 has no external data files: use version 3".into());
    }
    if data_file.name.is_empty() {
        return refuse("the name of a data file is not empty".into());
    }
    if data_file.content == DataFileContent::Raw && options.backing.is_some() {
        return refuse(
            "a raw external data file shows all of the disk: nothing can lie beneath it".into(),
        );
    }
    if header_end(options, geometry) > geometry.cluster_len() {
        return refuse(format!(
            "a data file name of {} bytes does not fit the first cluster: use a shorter name or clusters of more than {} bytes",
            data_file.name.len(),
            geometry.cluster_bytes()
        ));
    }
    Ok(geometry.with_external_data())
}

/// Where the extensions end in the first cluster.
fn header_end(options: &CreateOptions, geometry: Geometry) -> usize {
    let mut extensions_bytes = Vec::new();
    let extensions = extensions(options, geometry, &Layout::default_of(geometry));
    extension::encode(&extensions, &mut extensions_bytes);
    header_len(options.version) + extensions_bytes.len()
}

fn validate_backing(
    backing: &Backing,
    options: &CreateOptions,
    geometry: Geometry,
) -> Result<(), Error> {
    let len = backing.name.len();
    if len == 0 || len > MAX_BACKING_NAME {
        return refuse(format!(
            "a backing file name of {len} bytes is not within 1..={MAX_BACKING_NAME}"
        ));
    }
    let end = header_end(options, geometry) + len;
    if end > geometry.cluster_len() {
        return refuse(format!(
            "a backing file name of {len} bytes does not fit the first cluster: use a shorter name or clusters of more than {} bytes",
            geometry.cluster_bytes()
        ));
    }
    Ok(())
}

fn refuse<T>(text: String) -> Result<T, Error> {
    Err(Refused::Option(text).into())
}

fn header(options: &CreateOptions, geometry: Geometry, layout: &Layout) -> Header {
    let lazy = if options.lazy_refcounts {
        compatible::LAZY_REFCOUNTS
    } else {
        0
    };
    let content = options.data_file.as_ref().map(|file| file.content);
    Header {
        version: options.version,
        geometry,
        virtual_bytes: options.virtual_bytes,
        l1_offset: layout.l1_offset(),
        l1_entries: geometry.l1_entries_for(options.virtual_bytes),
        reftable_offset: geometry.offset_of(HostCluster(1)),
        reftable_clusters: layout.reftable_clusters,
        snapshot_count: 0,
        snapshots_offset: HostOffset(0),
        incompatible: match options.compression {
            Compression::Zlib => 0,
            Compression::Zstd => incompatible::COMPRESSION_TYPE,
        } | if geometry.has_subclusters() {
            incompatible::EXTENDED_L2
        } else {
            0
        } | if geometry.has_external_data() {
            incompatible::DATA_FILE
        } else {
            0
        },
        compatible: lazy,
        autoclear: match content {
            Some(DataFileContent::Raw) => autoclear::RAW_DATA_FILE,
            Some(DataFileContent::Clusters) | None => 0,
        },
        encryption: options.encryption.as_ref().map(|new| match new {
            NewEncryption::Aes => Encryption::Aes,
            NewEncryption::Luks(bytes) => Encryption::Luks {
                offset: layout.luks_offset(),
                len_bytes: byte_count(bytes.len()),
            },
        }),
        compression: options.compression,
        header_bytes: u64::try_from(header_len(options.version)).expect("a header is short"),
        backing_at: 0,
        backing_name: options
            .backing
            .as_ref()
            .map(|backing| backing.name.clone().into_bytes()),
        extensions: extensions(options, geometry, layout),
    }
}

pub(super) fn header_len(version: u32) -> usize {
    if version == 2 { V2_LEN } else { V3_LEN_WRITTEN }
}

/// In QEMU's order; the names of features only where the first cluster has room to spare.
fn extensions(options: &CreateOptions, geometry: Geometry, layout: &Layout) -> Vec<Extension> {
    let mut extensions = Vec::new();
    if let Some(backing) = &options.backing {
        extensions.push(Extension {
            kind: extension::BACKING_FORMAT,
            data: backing.format.name().into(),
        });
    }
    if let Some(data_file) = &options.data_file {
        extensions.push(Extension {
            kind: extension::DATA_FILE,
            data: data_file.name.clone().into_bytes(),
        });
    }
    if let Some(NewEncryption::Luks(bytes)) = &options.encryption {
        let len_bytes = byte_count(bytes.len());
        extensions.push(crypto::pointer(layout.luks_offset(), len_bytes));
    }
    if options.version >= 3 && geometry.cluster_bytes() > 4096 {
        extensions.push(Extension {
            kind: extension::FEATURE_NAMES,
            data: feature::standard_table(),
        });
    }
    extensions
}

/// Where the structures of a new image stand: the header, the refcount table, the first refcount
/// block, the L1 table, the other refcount blocks, the encryption header, and what is preallocated: L2
/// tables and data. One after the other from cluster 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    geometry: Geometry,
    reftable_clusters: u64,
    blocks: u64,
    l1_clusters: u64,
    luks_clusters: u64,
    l2_tables: u64,
    data_clusters: u64,
}

impl Layout {
    /// The least number of refcount blocks and table clusters that count everything, themselves
    /// included.
    fn new(geometry: Geometry, options: &CreateOptions, luks_len: usize) -> Result<Self, Error> {
        let virtual_bytes = options.virtual_bytes;
        let l1_entries = geometry.l1_entries_for(virtual_bytes);
        let (l2_tables, data_clusters) = if preallocates_itself(options) {
            (l1_entries, geometry.clusters_for(virtual_bytes))
        } else {
            (0, 0)
        };
        let mut layout = Self {
            geometry,
            reftable_clusters: 1,
            blocks: 1,
            l1_clusters: geometry.clusters_for(l1_entries * 8),
            luks_clusters: geometry.clusters_for(byte_count(luks_len)),
            l2_tables,
            data_clusters,
        };
        loop {
            let blocks = layout.clusters().div_ceil(geometry.refcounts_per_block());
            let reftable_clusters = geometry.clusters_for(blocks * 8);
            if (blocks, reftable_clusters) == (layout.blocks, layout.reftable_clusters) {
                return Ok(layout);
            }
            layout.blocks = blocks;
            layout.reftable_clusters = reftable_clusters;
            if layout.reftable_clusters * geometry.cluster_bytes() > MAX_REFTABLE_BYTES {
                return Err(Refused::TableFull(Structure::RefcountTable).into());
            }
        }
    }

    fn clusters(self) -> u64 {
        self.metadata_clusters() + self.luks_clusters + self.l2_tables + self.data_clusters
    }

    /// Header, refcounts and L1 table.
    fn metadata_clusters(self) -> u64 {
        1 + self.reftable_clusters + self.blocks + self.l1_clusters
    }

    /// An image of nothing: its extensions are as long as those of any other.
    fn default_of(geometry: Geometry) -> Self {
        Self {
            geometry,
            reftable_clusters: 1,
            blocks: 1,
            l1_clusters: 0,
            luks_clusters: 0,
            l2_tables: 0,
            data_clusters: 0,
        }
    }

    /// Where the encryption header stands.
    fn luks_offset(self) -> HostOffset {
        self.geometry
            .offset_of(HostCluster(self.metadata_clusters()))
    }

    /// The tables that map every cluster of a preallocated disk.
    fn tables(self, unwritten: Unwritten, virtual_bytes: u64) -> NewTables {
        let l2 = self.metadata_clusters() + self.luks_clusters;
        let offset_of = |cluster| self.geometry.offset_of(HostCluster(cluster));
        NewTables {
            geometry: self.geometry,
            unwritten,
            clusters: self.geometry.clusters_for(virtual_bytes),
            l1: self.l1_offset(),
            l2: offset_of(l2),
            data: offset_of(l2 + self.l2_tables),
        }
    }

    fn file_bytes(self) -> u64 {
        self.clusters() * self.geometry.cluster_bytes()
    }

    fn l1_offset(self) -> HostOffset {
        if self.l1_clusters == 0 {
            return HostOffset(0);
        }
        self.geometry
            .offset_of(HostCluster(2 + self.reftable_clusters))
    }

    fn block_offset(self, index: u64) -> HostOffset {
        let after_table = 1 + self.reftable_clusters + index;
        self.geometry.offset_of(HostCluster(if index == 0 {
            after_table
        } else {
            after_table + self.l1_clusters
        }))
    }

    /// The refcount table, and each block with a count of one for every cluster of the file.
    async fn write_refcounts(self, file: &Port) -> Result<(), Error> {
        let geometry = self.geometry;
        let mut table = Vec::with_capacity(geometry.cluster_len());
        let per_block = geometry.refcounts_per_block();
        for index in 0..self.blocks {
            let offset = self.block_offset(index);
            table.extend_from_slice(&offset.0.to_be_bytes());
            let used = per_block.min(self.clusters() - index * per_block);
            let mut block = vec![0; geometry.cluster_len()];
            for entry in 0..usize::try_from(used).expect("a refcount block fits memory") {
                refblock::set_refcount(&mut block, entry, geometry.refcount_order(), 1);
            }
            file.at(Event::RefblockAllocWrite)
                .write(offset.0, block)
                .await?;
        }
        table.resize(table.len().next_multiple_of(geometry.cluster_len()), 0);
        file.at(Event::ReftableUpdate)
            .write(geometry.cluster_bytes(), table)
            .await?;
        Ok(())
    }
}
