//! The image header: what an image says of itself.
//!
//! Specification: "Header", "Header extensions", "Feature name table". Limits are QEMU's. What decodes
//! has tables that are aligned, of bounded size, apart from each other, and large enough for the
//! guest's disk; whether they lie within the file is for check to say.
//!
//! A running engine changes the header only through [`HeaderSector`]: every pointer switch and every
//! flag is one write of the file's first 512 bytes, which no disk tears. Bytes that it does not know
//! stay as they are.

use super::bounds::{Bounded, Extent, MAX_L1_BYTES, MAX_REFTABLE_BYTES};
use super::compress::Compression;
use super::crypto::Encryption;
use super::unit::HostOffset;
use super::{extension, feature, geometry::Geometry};
use crate::device::{Event, Port};
use crate::error::{BadImage, Error, Problem, Structure, Unsupported};

/// Bytes of a version 2 header.
pub(crate) const V2_LEN: usize = 72;
/// Bytes of the shortest version 3 header.
const V3_LEN: usize = 104;
/// Bytes of the header that QEMU writes: with the compression type, and padded.
pub(crate) const V3_LEN_WRITTEN: usize = 112;
/// Where the compression type stands.
const COMPRESSION_AT: usize = 104;
/// `QFI\xfb`
const MAGIC: [u8; 4] = [0x51, 0x46, 0x49, 0xfb];

/// The most internal snapshots.
pub const MAX_SNAPSHOTS: u32 = 65536;
/// The longest name of a backing file, in bytes.
pub const MAX_BACKING_NAME: usize = 1023;

/// A parsed and validated header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// Cluster size and refcount width.
    pub geometry: Geometry,
    /// The size of the guest's disk in bytes.
    pub virtual_bytes: u64,
    /// Where the active L1 table stands.
    pub l1_offset: HostOffset,
    /// Entries in the active L1 table.
    pub l1_entries: u64,
    /// Where the refcount table stands.
    pub reftable_offset: HostOffset,
    /// Clusters that the refcount table takes.
    pub reftable_clusters: u64,
    /// Internal snapshots.
    pub snapshot_count: u32,
    /// Where the snapshot table stands.
    pub snapshots_offset: HostOffset,
    /// Feature bits that must be understood to open the image.
    pub incompatible: u64,
    /// Feature bits that may be ignored.
    pub compatible: u64,
    /// Feature bits that a writer who does not know them clears.
    pub autoclear: u64,
    /// How guest data are encrypted, where they are.
    pub encryption: Option<Encryption>,
    /// How compressed clusters are compressed.
    pub compression: Compression,
    /// Where the header ends and the extensions start, in bytes.
    pub header_bytes: u64,
    /// Where the backing file's name stands, in bytes; 0 without one. [`Self::encode`] chooses its own
    /// place.
    pub backing_at: u64,
    /// The backing file's name as it stands in the image, where there is one.
    pub backing_name: Option<Vec<u8>>,
    /// The header extensions in file order, without the end marker.
    pub extensions: Vec<Extension>,
}

/// A header extension as it stands in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extension {
    /// Its type.
    pub kind: u32,
    /// Its bytes, without padding.
    pub data: Vec<u8>,
}

/// Incompatible feature bits.
pub mod incompatible {
    /// Refcounts may be wrong; they must be repaired before the image is written.
    pub const DIRTY: u64 = 1 << 0;
    /// The image's structures are damaged.
    pub const CORRUPT: u64 = 1 << 1;
    /// Guest data stand in an external file.
    pub const DATA_FILE: u64 = 1 << 2;
    /// The compression type is in the header.
    pub const COMPRESSION_TYPE: u64 = 1 << 3;
    /// L2 entries have subcluster bitmaps.
    pub const EXTENDED_L2: u64 = 1 << 4;
}

/// Compatible feature bits.
pub mod compatible {
    /// Refcount updates may be postponed.
    pub const LAZY_REFCOUNTS: u64 = 1 << 0;
}

/// Autoclear feature bits.
pub mod autoclear {
    /// The bitmaps extension is up to date.
    pub const BITMAPS: u64 = 1 << 0;
    /// The external data file is a raw image of the disk.
    pub const RAW_DATA_FILE: u64 = 1 << 1;
    /// All that are known here.
    pub const KNOWN: u64 = BITMAPS | RAW_DATA_FILE;
}

/// Why bytes are no header, before it is known where they stand.
#[derive(Debug)]
pub(crate) enum Malformed {
    /// The bytes at hand end before the header does.
    NeedMore,
    /// An extension that reaches beyond the space for extensions.
    Extension {
        /// Where it starts.
        offset: usize,
        /// Its type.
        kind: u32,
        /// Its length in bytes.
        len: usize,
    },
    /// Anything else.
    Error(Error),
}

impl<E: Into<Error>> From<E> for Malformed {
    fn from(error: E) -> Self {
        Self::Error(error.into())
    }
}

/// Whether these first bytes of a file are those of a qcow2 image. Version 1 is another format.
pub fn probe(bytes: &[u8]) -> bool {
    bytes.len() >= 8 && bytes[..4] == MAGIC && be_u32(bytes, 4) >= 2
}

/// Reads the header of the image in `file`.
pub async fn read(file: &Port) -> Result<Header, Error> {
    load(file).await.map(|(header, _)| header)
}

/// Reads the header of the image in `file`, and the sector that it starts with. No more is read than
/// cluster 0, and mostly one sector.
pub async fn load(file: &Port) -> Result<(Header, HeaderSector), Error> {
    let file_bytes = file.len();
    let mut len = 512;
    loop {
        let bytes = file.at(Event::None).read(0, len).await?;
        match parse(&bytes, file_bytes) {
            Ok(header) => return Ok((header, HeaderSector::new(&bytes))),
            Err(Malformed::NeedMore) if len < 1 << 21 => len *= 8,
            Err(malformed) => return Err(malformed.into_error(file_bytes)),
        }
    }
}

impl Header {
    /// The header that `bytes`, the first of a file of `file_bytes` bytes, hold. They need not be
    /// more than cluster 0, and need not be so many where the header and its extensions end before.
    pub fn decode(bytes: &[u8], file_bytes: u64) -> Result<Self, Error> {
        parse(bytes, file_bytes).map_err(|malformed| malformed.into_error(file_bytes))
    }

    /// The bytes of the header, its extensions and the backing file's name, from offset 0.
    ///
    /// # Panics
    /// Where the header is not one that [`Self::decode`] would accept.
    pub fn encode(&self) -> Vec<u8> {
        let header_len = usize::try_from(self.header_bytes).expect("a header fits cluster 0");
        let mut bytes = vec![0; header_len];
        self.put_fields(&mut bytes);
        extension::encode(&self.extensions, &mut bytes);
        if let Some(name) = &self.backing_name {
            let at = bytes.len();
            Self::put_backing(&mut bytes, at, name.len());
            bytes.extend_from_slice(name);
        }
        assert!(
            bytes.len() <= self.geometry.cluster_len(),
            "a header fits cluster 0"
        );
        bytes
    }

    /// Puts the header's own fields into the first bytes of an image, without the backing file's name.
    pub(crate) fn put_fields(&self, bytes: &mut [u8]) {
        bytes[..4].copy_from_slice(&MAGIC);
        put_u32(bytes, 4, self.version);
        Self::put_backing(bytes, 0, 0);
        put_u32(bytes, 20, self.geometry.cluster_bits());
        put_u64(bytes, 24, self.virtual_bytes);
        put_u32(bytes, 32, self.encryption.map_or(0, Encryption::code));
        put_table(bytes, L1, self.l1_offset, self.l1_entries);
        put_table(
            bytes,
            REFTABLE,
            self.reftable_offset,
            self.reftable_clusters,
        );
        put_u32(bytes, 60, self.snapshot_count);
        put_u64(bytes, 64, self.snapshots_offset.0);
        if self.version >= 3 {
            put_u64(bytes, 72, self.incompatible);
            put_u64(bytes, 80, self.compatible);
            put_u64(bytes, 88, self.autoclear);
            put_u32(bytes, 96, self.geometry.refcount_order());
            let len = u32::try_from(self.header_bytes).expect("a header fits cluster 0");
            put_u32(bytes, 100, len);
            if usize::try_from(self.header_bytes).is_ok_and(|len| len > COMPRESSION_AT) {
                bytes[COMPRESSION_AT] = self.compression.code();
            }
        }
    }

    /// Says where the backing file's name stands, and how long it is.
    pub(crate) fn put_backing(bytes: &mut [u8], at: usize, len: usize) {
        let at = u64::try_from(at).expect("a name is in cluster 0");
        put_u64(bytes, 8, at);
        let len = u32::try_from(len).expect("a backing name is short");
        put_u32(bytes, 16, len);
    }

    /// The bytes of the first extension of that kind.
    pub fn extension(&self, kind: u32) -> Option<&[u8]> {
        self.extensions
            .iter()
            .find(|extension| extension.kind == kind)
            .map(|extension| extension.data.as_slice())
    }

    /// The name of the external data file as it stands in the image, where guest data are in one and the
    /// image names it.
    pub fn data_file_name(&self) -> Option<&[u8]> {
        self.extension(extension::DATA_FILE)
            .filter(|_| self.geometry.has_external_data())
    }

    /// Whether the external data file is, by itself, a raw image of the guest's disk.
    pub fn has_raw_data_file(&self) -> bool {
        self.geometry.has_external_data() && self.autoclear & autoclear::RAW_DATA_FILE != 0
    }

    /// Whether valid persistent bitmaps are in the image: a writer would have to keep them.
    pub fn has_bitmaps(&self) -> bool {
        self.autoclear & autoclear::BITMAPS != 0 && self.extension(extension::BITMAPS).is_some()
    }
}

/// The first 512 bytes of an image file, kept in memory and patched field by field.
///
/// They are apart from the tables that they are kept with, which move about while an image is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderSector(Box<[u8]>);

/// Where a table's pointer stands in the header.
#[derive(Clone, Copy)]
struct PointerField {
    offset_at: usize,
    count_at: usize,
}

const L1: PointerField = PointerField {
    offset_at: 40,
    count_at: 36,
};
const REFTABLE: PointerField = PointerField {
    offset_at: 48,
    count_at: 56,
};

impl HeaderSector {
    /// The sector that `bytes`, the first of a file, start with; a shorter file is padded with
    /// zeroes.
    pub fn new(bytes: &[u8]) -> Self {
        let mut sector = bytes[..bytes.len().min(512)].to_vec();
        sector.resize(512, 0);
        Self(sector.into_boxed_slice())
    }

    /// The bytes to write at offset 0.
    pub fn bytes(&self) -> Vec<u8> {
        self.0.to_vec()
    }

    /// Points to another active L1 table.
    ///
    /// # Panics
    /// Where `entries` exceeds [`MAX_L1_BYTES`].
    pub fn set_l1(&mut self, offset: HostOffset, entries: u64) {
        assert!(entries <= MAX_L1_BYTES / 8, "an L1 table is bounded");
        put_table(&mut self.0, L1, offset, entries);
    }

    /// Points to another refcount table.
    ///
    /// # Panics
    /// Where `clusters` exceeds [`MAX_REFTABLE_BYTES`] of any cluster size.
    pub fn set_reftable(&mut self, offset: HostOffset, clusters: u64) {
        assert!(
            clusters <= MAX_REFTABLE_BYTES / 512,
            "a refcount table is bounded"
        );
        put_table(&mut self.0, REFTABLE, offset, clusters);
    }

    /// Points to another refcount table, whose blocks have counts of another width.
    ///
    /// # Panics
    /// As [`Self::set_reftable`], and where the image is of version 2, which has one width only.
    pub fn set_refcounts(&mut self, offset: HostOffset, clusters: u64, refcount_order: u32) {
        assert!(
            be_u32(&self.0, 4) >= 3,
            "version 2 has refcounts of 16 bits"
        );
        self.set_reftable(offset, clusters);
        put_u32(&mut self.0, 96, refcount_order);
    }

    /// Sets the compatible feature bits.
    ///
    /// # Panics
    /// Where the image is of version 2, which has none.
    pub fn set_compatible(&mut self, bits: u64) {
        self.put_features(80, bits);
    }

    /// Points to another snapshot table.
    pub fn set_snapshots(&mut self, offset: HostOffset, count: u32) {
        put_u32(&mut self.0, 60, count);
        put_u64(&mut self.0, 64, offset.0);
    }

    /// Sets the size of the guest's disk.
    pub fn set_virtual_bytes(&mut self, virtual_bytes: u64) {
        put_u64(&mut self.0, 24, virtual_bytes);
    }

    /// Sets the incompatible feature bits.
    ///
    /// # Panics
    /// Where the image is of version 2, which has none.
    pub fn set_incompatible(&mut self, bits: u64) {
        self.put_features(72, bits);
    }

    /// Sets the autoclear feature bits.
    ///
    /// # Panics
    /// Where the image is of version 2, which has none.
    pub fn set_autoclear(&mut self, bits: u64) {
        self.put_features(88, bits);
    }

    fn put_features(&mut self, at: usize, bits: u64) {
        assert!(be_u32(&self.0, 4) >= 3, "version 2 has no feature bits");
        put_u64(&mut self.0, at, bits);
    }
}

impl Malformed {
    fn into_error(self, file_bytes: u64) -> Error {
        match self {
            Self::Error(error) => error,
            Self::NeedMore => bad(Structure::Header, 0, Problem::BeyondEnd { file_bytes }),
            Self::Extension { offset, kind, len } => bad(
                Structure::HeaderExtension,
                u64::try_from(offset).expect("an offset in cluster 0 is small"),
                Problem::Field(format!(
                    "type {kind:#x} claims {len} bytes, more than the space for extensions holds"
                )),
            ),
        }
    }
}

fn parse(bytes: &[u8], file_bytes: u64) -> Result<Header, Malformed> {
    if bytes.len() < V2_LEN {
        return Err(Malformed::NeedMore);
    }
    if bytes[..4] != MAGIC {
        return Err(field(0, "the magic number is not that of qcow2"));
    }
    let version = be_u32(bytes, 4);
    if !(2..=3).contains(&version) {
        return Err(Unsupported::Version(version).into());
    }
    if file_bytes < u64::try_from(if version == 2 { V2_LEN } else { V3_LEN }).unwrap_or(0) {
        return Err(bad(Structure::Header, 0, Problem::BeyondEnd { file_bytes }).into());
    }
    let header_len = header_len(bytes, version)?;
    let geometry = geometry(bytes, version)?;
    if header_len > geometry.cluster_len() {
        return Err(field(
            100,
            &format!("header length {header_len} exceeds the cluster size"),
        ));
    }
    let backing_at = backing_at(bytes, header_len, geometry)?;
    let end = backing_at.unwrap_or(geometry.cluster_len());
    let extensions = extension::decode(bytes, header_len, end)?;
    let header = Header {
        version,
        geometry,
        virtual_bytes: be_u64(bytes, 24),
        l1_offset: HostOffset(be_u64(bytes, L1.offset_at)),
        l1_entries: u64::from(be_u32(bytes, L1.count_at)),
        reftable_offset: HostOffset(be_u64(bytes, REFTABLE.offset_at)),
        reftable_clusters: u64::from(be_u32(bytes, REFTABLE.count_at)),
        snapshot_count: be_u32(bytes, 60),
        snapshots_offset: HostOffset(be_u64(bytes, 64)),
        incompatible: v3_u64(bytes, version, 72),
        compatible: v3_u64(bytes, version, 80),
        autoclear: v3_u64(bytes, version, 88),
        encryption: encryption(bytes, &extensions, geometry)?,
        compression: compression(bytes, header_len, version)?,
        header_bytes: u64::try_from(header_len).expect("a header fits cluster 0"),
        backing_at: be_u64(bytes, 8),
        backing_name: backing_name(bytes, backing_at, geometry)?,
        extensions,
    };
    require_known_features(&header)?;
    header.require_sane_tables()?;
    Ok(header)
}

fn header_len(bytes: &[u8], version: u32) -> Result<usize, Malformed> {
    if version == 2 {
        return Ok(V2_LEN);
    }
    if bytes.len() < V3_LEN {
        return Err(Malformed::NeedMore);
    }
    let len = usize::try_from(be_u32(bytes, 100)).expect("32 bits fit a length");
    if len < V3_LEN || len % 8 != 0 {
        return Err(field(
            100,
            &format!("header length {len} is not a multiple of 8 from {V3_LEN} on"),
        ));
    }
    Ok(len)
}

fn geometry(bytes: &[u8], version: u32) -> Result<Geometry, Malformed> {
    let cluster_bits = be_u32(bytes, 20);
    let refcount_order = if version == 2 { 4 } else { be_u32(bytes, 96) };
    let geometry = Geometry::new(cluster_bits, refcount_order).ok_or_else(|| {
        if Geometry::CLUSTER_BITS.contains(&cluster_bits) {
            field(
                96,
                &format!("refcount order {refcount_order} is not within 0..=6"),
            )
        } else {
            field(
                20,
                &format!("cluster bits {cluster_bits} are not within 9..=21"),
            )
        }
    })?;
    let features = v3_u64(bytes, version, 72);
    let geometry = if features & incompatible::DATA_FILE == 0 {
        geometry
    } else {
        geometry.with_external_data()
    };
    if features & incompatible::EXTENDED_L2 == 0 {
        return Ok(geometry);
    }
    geometry.with_extended_l2().ok_or_else(|| {
        field(
            20,
            &format!(
                "cluster bits {cluster_bits} are not within 14..=21, as extended L2 entries need"
            ),
        )
    })
}

/// Where the backing file's name stands, if there is one.
fn backing_at(
    bytes: &[u8],
    header_len: usize,
    geometry: Geometry,
) -> Result<Option<usize>, Malformed> {
    let offset = be_u64(bytes, 8);
    if offset == 0 {
        return Ok(None);
    }
    usize::try_from(offset)
        .ok()
        .filter(|offset| (header_len..=geometry.cluster_len()).contains(offset))
        .map(Some)
        .ok_or_else(|| {
            field(
                8,
                &format!(
                    "backing file name at {offset:#x} is not between header and end of cluster 0"
                ),
            )
        })
}

fn backing_name(
    bytes: &[u8],
    at: Option<usize>,
    geometry: Geometry,
) -> Result<Option<Vec<u8>>, Malformed> {
    let len = usize::try_from(be_u32(bytes, 16)).expect("32 bits fit a length");
    let Some(at) = at.filter(|_| len > 0) else {
        return Ok(None);
    };
    if len > MAX_BACKING_NAME.min(geometry.cluster_len() - at) {
        return Err(field(
            16,
            &format!("backing file name of {len} bytes does not fit 1023 bytes or cluster 0"),
        ));
    }
    let name = bytes.get(at..at + len).ok_or(Malformed::NeedMore)?;
    Ok(Some(name.to_vec()))
}

/// Refuses what would be misread.
fn require_known_features(header: &Header) -> Result<(), Malformed> {
    let known = incompatible::DIRTY
        | incompatible::CORRUPT
        | incompatible::DATA_FILE
        | incompatible::COMPRESSION_TYPE
        | incompatible::EXTENDED_L2;
    let unknown = header.incompatible & !known;
    if unknown != 0 {
        let table = header.extension(extension::FEATURE_NAMES).unwrap_or(&[]);
        return Err(unsupported(feature::names_of_incompatible(unknown, table)));
    }
    Ok(())
}

/// How guest data are encrypted.
fn encryption(
    bytes: &[u8],
    extensions: &[Extension],
    geometry: Geometry,
) -> Result<Option<Encryption>, Malformed> {
    let pointer = extensions
        .iter()
        .find(|extension| extension.kind == extension::ENCRYPTION)
        .map(|extension| extension.data.as_slice());
    match be_u32(bytes, 32) {
        0 => Ok(None),
        1 => Ok(Some(Encryption::Aes)),
        2 => match Encryption::luks(pointer, geometry) {
            Ok(luks) => Ok(Some(luks)),
            Err(problem) => Err(field(32, &problem)),
        },
        method => Err(unsupported(format!("encryption method {method}"))),
    }
}

/// How compressed clusters are compressed: the feature bit says that it is not zlib.
fn compression(bytes: &[u8], header_len: usize, version: u32) -> Result<Compression, Malformed> {
    let bit = v3_u64(bytes, version, 72) & incompatible::COMPRESSION_TYPE != 0;
    let code = if header_len > COMPRESSION_AT {
        *bytes.get(COMPRESSION_AT).ok_or(Malformed::NeedMore)?
    } else {
        0
    };
    match (bit, code) {
        (false, 0) => Ok(Compression::Zlib),
        (true, 1) => Ok(Compression::Zstd),
        (true, 2..) => Err(unsupported(format!("compression type ({code})"))),
        (true, 0) | (false, _) => Err(field(
            104,
            &format!("compression type {code} contradicts its incompatible feature bit"),
        )),
    }
}

impl Header {
    fn require_sane_tables(&self) -> Result<(), Malformed> {
        if !self.virtual_bytes.is_multiple_of(512) {
            return Err(field(
                24,
                &format!("disk size {} is not a multiple of 512", self.virtual_bytes),
            ));
        }
        if self.l1_entries < self.geometry.l1_entries_for(self.virtual_bytes) {
            return Err(field(
                36,
                &format!(
                    "L1 table of {} entries is too small for a disk of {} bytes",
                    self.l1_entries, self.virtual_bytes
                ),
            ));
        }
        if self.reftable_clusters == 0 {
            return Err(field(56, "there is no refcount table"));
        }
        if self.snapshot_count > MAX_SNAPSHOTS {
            return Err(field(
                60,
                &format!(
                    "{} snapshots, more than {MAX_SNAPSHOTS}",
                    self.snapshot_count
                ),
            ));
        }
        let cluster_bytes = self.geometry.cluster_bytes();
        let claims = [
            Claim {
                what: Bounded::L1Table,
                structure: Structure::L1Table,
                field: 40,
                place: (self.l1_offset, self.l1_entries * 8),
            },
            Claim {
                what: Bounded::RefcountTable,
                structure: Structure::RefcountTable,
                field: 48,
                place: (self.reftable_offset, self.reftable_clusters * cluster_bytes),
            },
            Claim {
                what: Bounded::SnapshotTable,
                structure: Structure::SnapshotTable,
                field: 64,
                place: (self.snapshots_offset, u64::from(self.snapshot_count) * 40),
            },
        ];
        let mut before: Vec<(Structure, Extent)> = Vec::new();
        for claim in claims.iter().filter(|claim| claim.place.1 > 0) {
            let extent = claim.extent(self.geometry)?;
            for (structure, other) in &before {
                if other.overlaps(extent) {
                    let text = format!("{} overlaps the {structure}", claim.structure);
                    return Err(field(claim.field, &text));
                }
            }
            before.push((claim.structure, extent));
        }
        Ok(())
    }
}

/// What the header says of a table's place.
struct Claim {
    what: Bounded,
    structure: Structure,
    field: u64,
    place: (HostOffset, u64),
}

impl Claim {
    fn extent(&self, geometry: Geometry) -> Result<Extent, Malformed> {
        Extent::new(self.what, self.place, geometry).map_err(|excess| {
            let (offset, bytes) = self.place;
            field(
                self.field,
                &format!(
                    "{} of {bytes} bytes at {:#x} {excess}",
                    self.structure, offset.0
                ),
            )
        })
    }
}

fn bad(structure: Structure, offset: u64, problem: Problem) -> Error {
    Error::BadImage(BadImage {
        structure,
        offset,
        index: None,
        problem,
    })
}

fn field(offset: u64, problem: &str) -> Malformed {
    Malformed::Error(bad(
        Structure::Header,
        offset,
        Problem::Field(problem.to_owned()),
    ))
}

fn unsupported(names: String) -> Malformed {
    Unsupported::Features(names).into()
}

fn v3_u64(bytes: &[u8], version: u32, at: usize) -> u64 {
    if version == 2 { 0 } else { be_u64(bytes, at) }
}

fn put_table(bytes: &mut [u8], at: PointerField, offset: HostOffset, count: u64) {
    let count = u32::try_from(count).expect("a table's length fits its header field");
    put_u64(bytes, at.offset_at, offset.0);
    put_u32(bytes, at.count_at, count);
}

pub(crate) fn be_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(
        bytes[at..at + 4]
            .try_into()
            .expect("four bytes are four bytes"),
    )
}

pub(crate) fn be_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(
        bytes[at..at + 8]
            .try_into()
            .expect("eight bytes are eight bytes"),
    )
}

fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

fn put_u64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
}
