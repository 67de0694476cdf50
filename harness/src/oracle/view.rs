//! The guest's disk as an independent reader finds it, by the tables that the structure walk decoded.

use std::cell::OnceCell;
use std::ops::Range;
use std::rc::Rc;

use aes::Aes128;
use cbc::cipher::{Array, BlockModeDecrypt, InnerIvInit, KeyInit};
use engine::device::{ContentHash, PageImage};
use engine::zeroes::leading_zeroes;
use xts_mode::Xts128;
use xxhash_rust::xxh3::xxh3_128;

use crate::guest;
use crate::workload::shape::{TEST_KEY, TEST_SECRET};
use crate::workload::stamp::{SectorValue, identify};

use super::inflated::{Cluster, Method, inflated};
use super::structure::{Layout, Mapped, Mapping, SnapshotDisk, StructureReport};
use super::walked::walked;

/// An image below the one that is judged. It never changes.
#[derive(Clone, Debug)]
pub struct Backing {
    image: PageImage,
    format: Format,
}

#[derive(Clone, Debug)]
enum Format {
    Raw,
    Qcow2 {
        report: Rc<StructureReport>,
        below: Option<Box<Backing>>,
    },
}

impl Backing {
    /// The bytes of the file are those of the disk.
    pub fn raw(image: PageImage) -> Self {
        Self {
            image,
            format: Format::Raw,
        }
    }

    /// A qcow2 image, over another or over nothing.
    pub fn qcow2(image: PageImage, below: Option<Self>) -> Self {
        Self {
            format: Format::Qcow2 {
                report: walked(&image),
                below: below.map(Box::new),
            },
            image,
        }
    }

    /// The bytes of the file.
    pub fn image(&self) -> &PageImage {
        &self.image
    }

    /// Names what this file and those below it hold, and how they are read.
    pub fn content_hash(&self) -> ContentHash {
        let own = self.image.content_hash().0;
        let below = self.below().map_or(0, |below| below.content_hash().0);
        let format = u128::from(self.is_raw());
        let words = [own, below, format].map(u128::to_le_bytes);
        ContentHash(xxh3_128(&words.concat()))
    }

    /// Whether the bytes of the file are those of the disk.
    pub fn is_raw(&self) -> bool {
        matches!(self.format, Format::Raw)
    }

    /// The image below this one.
    pub fn below(&self) -> Option<&Self> {
        match &self.format {
            Format::Raw => None,
            Format::Qcow2 { below, .. } => below.as_deref(),
        }
    }

    fn run_from(&self, sector: u64, until: u64) -> Run<'_> {
        let (view, sectors) = match &self.format {
            Format::Raw => (None, self.image.len().div_ceil(512)),
            Format::Qcow2 { report, below } => {
                match GuestView::new(&self.image, report, below.as_deref()) {
                    None => return Run::new(sector..u64::MAX, Source::Unreadable),
                    Some(view) => {
                        let sectors = view.layout.virtual_sectors();
                        (Some(view), sectors)
                    }
                }
            }
        };
        if sector >= sectors {
            return Run::new(sector..u64::MAX, Source::Zeroes);
        }
        match view {
            Some(view) => {
                // What lies beneath may be longer than this image, which hides the rest.
                let mut run = view.run_from(sector, until);
                run.sectors.end = run.sectors.end.min(sectors);
                run
            }
            None => Run::new(
                sector..sectors,
                Source::Stored {
                    image: &self.image,
                    first: sector,
                },
            ),
        }
    }
}

/// A guest's disk.
#[derive(Clone, Copy, Debug)]
pub struct GuestView<'a> {
    image: &'a PageImage,
    layout: &'a Layout,
    mapped: &'a [Mapped],
    backing: Option<&'a Backing>,
    /// The file that data clusters stand in: the image's own, or another.
    data: &'a PageImage,
}

/// Consecutive guest sectors with a common source.
#[derive(Clone, Debug)]
pub struct Run<'a> {
    /// The guest sectors.
    pub sectors: Range<u64>,
    source: Source<'a>,
}

#[derive(Clone, Debug)]
enum Source<'a> {
    Zeroes,
    /// In this file, from this sector on.
    Stored {
        image: &'a PageImage,
        first: u64,
    },
    /// In a file, encrypted.
    Encrypted(Box<Encrypted<'a>>),
    /// In these bytes, from this sector on.
    Inflated {
        cluster: Cluster,
        first: usize,
    },
    /// The tables, or the compressed bytes, cannot be right.
    Unreadable,
}

/// Encrypted sectors, which are decrypted when somebody looks at one of them.
#[derive(Clone, Debug)]
struct Encrypted<'a> {
    image: &'a PageImage,
    /// Where they stand in the file.
    first: u64,
    /// Where they are on the guest's disk.
    guest_sector: u64,
    /// How: the number in the header.
    method: u32,
    plain: OnceCell<Vec<u8>>,
}

impl Encrypted<'_> {
    /// The sectors in clear, `count` of them.
    fn plain(&self, count: u64) -> &[[u8; 512]] {
        let plain = self.plain.get_or_init(|| {
            let len = usize::try_from(count * 512).expect("a cluster fits memory");
            let mut bytes = self.image.read_vec(self.first * 512, len);
            decrypt(self.method, self.guest_sector, self.first, &mut bytes);
            bytes
        });
        plain.as_chunks().0
    }

    /// Whether the sector at `index` is the same as another's at `other_index`: the same bytes under the
    /// same numbers.
    fn same(&self, index: u64, other: &Self, other_index: u64) -> bool {
        let place = |of: &Self, index| (of.method, of.first + index, of.guest_sector + index);
        place(self, index) == place(other, other_index)
            && self.image.stored_hash(self.first + index)
                == other.image.stored_hash(other.first + other_index)
    }
}

/// Where two disks differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The first guest sector that differs.
    pub sector: u64,
}

impl<'a> GuestView<'a> {
    /// The disk of `image`, of which `report` is the walk; `None` where the header is illegible.
    pub fn new(
        image: &'a PageImage,
        report: &'a StructureReport,
        backing: Option<&'a Backing>,
    ) -> Option<Self> {
        Some(Self {
            image,
            layout: report.layout.as_ref()?,
            mapped: &report.mapped,
            backing,
            data: image,
        })
    }

    /// The same beside this file, which holds the guest data of an image that says so.
    #[must_use]
    pub fn with_data(self, data: Option<&'a PageImage>) -> Self {
        Self {
            data: data
                .filter(|_| self.layout.external_data)
                .unwrap_or(self.data),
            ..self
        }
    }

    /// The disk of a snapshot of `image`.
    pub fn of_snapshot(
        image: &'a PageImage,
        disk: &'a SnapshotDisk,
        backing: Option<&'a Backing>,
    ) -> Self {
        Self {
            image,
            layout: &disk.layout,
            mapped: &disk.mapped,
            backing,
            data: image,
        }
    }

    /// The size of the disk in bytes.
    pub fn virtual_bytes(&self) -> u64 {
        self.layout.virtual_bytes
    }

    /// Whether its data stand in a file that is a raw image of it.
    pub fn has_raw_data(&self) -> bool {
        self.layout.has_raw_data()
    }

    /// Sectors in a cluster.
    pub fn cluster_sectors(&self) -> u64 {
        self.layout.cluster_sectors()
    }

    /// The first sector of the first cluster that the image does not map, which may lie beyond the disk.
    pub fn first_unmapped(&self) -> u64 {
        let gap = self
            .mapped
            .iter()
            .zip(0u64..)
            .find(|(mapped, cluster)| mapped.guest_cluster != *cluster)
            .map(|(_, cluster)| cluster);
        let all = u64::try_from(self.mapped.len()).expect("a count fits 64 bits");
        gap.unwrap_or(all) * self.layout.cluster_sectors()
    }

    /// The sectors of the clusters that the image maps, in ascending ranges that do not touch, clipped to the disk.
    pub fn mapped_sectors(&self) -> impl Iterator<Item = Range<u64>> {
        let sectors = self.layout.cluster_sectors();
        let end = self.layout.virtual_sectors();
        let adjacent = |one: &Mapped, next: &Mapped| next.guest_cluster == one.guest_cluster + 1;
        let together = self.mapped.chunk_by(adjacent);
        together.map(move |clusters| {
            let start = clusters[0].guest_cluster * sectors;
            let len = u64::try_from(clusters.len()).expect("a count fits 64 bits") * sectors;
            start..(start + len).min(end)
        })
    }

    /// The runs that make up `sectors`, which lie on the disk.
    pub fn runs(&self, sectors: Range<u64>) -> impl Iterator<Item = Run<'a>> {
        let view = *self;
        let mut at = sectors.start;
        let mut near = 0;
        std::iter::from_fn(move || {
            if at >= sectors.end {
                return None;
            }
            let mut run = view.run_near(&mut near, at, sectors.end);
            run.sectors.end = run.sectors.end.min(sectors.end);
            at = run.sectors.end;
            Some(run)
        })
    }

    /// What the disk shows within `sectors`, ascending ranges on the disk, as a start for a ledger.
    pub fn content(&self, sectors: impl IntoIterator<Item = Range<u64>>) -> guest::Content {
        let runs = sectors.into_iter().flat_map(|range| self.runs(range));
        guest::Content::from_values(runs.filter(|run| !run.is_zeroes()).flat_map(|run| {
            let sectors = run.sectors.clone();
            sectors.map(move |sector| (sector, run.content(sector).value()))
        }))
    }

    /// Where the two disks differ first within `sectors`, which lie on both. Costs next to nothing where
    /// both images share their pages.
    pub fn difference(&self, other: &GuestView<'_>, sectors: Range<u64>) -> Option<Difference> {
        let mut at = sectors.start;
        let (mut here, mut there) = (0, 0);
        while at < sectors.end {
            let until = sectors.end;
            let mut one = self.run_near(&mut here, at, until);
            let mut two = other.run_near(&mut there, at, until);
            let end = one.sectors.end.min(two.sectors.end).min(sectors.end);
            (one.sectors.end, two.sectors.end) = (end, end);
            if let Some(sector) = one.difference(&two, at..end) {
                return Some(Difference { sector });
            }
            at = end;
        }
        None
    }

    /// Where the disk differs first from `data`, which somebody read from `sector` on.
    pub fn difference_to_data(&self, sector: u64, data: &[u8]) -> Option<Difference> {
        let count = u64::try_from(data.len() / 512).expect("a buffer's length fits 64 bits");
        let mut rest = data;
        for run in self.runs(sector..sector + count) {
            let sectors = run.sectors.end - run.sectors.start;
            let len = usize::try_from(sectors).expect("it is in memory") * 512;
            let (data, behind) = rest.split_at(len);
            if let Some(sector) = run.difference_to_data(data) {
                return Some(Difference { sector });
            }
            rest = behind;
        }
        None
    }

    /// What the disk shows at `sector`, and from there on as far as that goes on. Beyond `until` nobody looks.
    fn run_from(&self, sector: u64, until: u64) -> Run<'a> {
        self.run_near(&mut 0, sector, until)
    }

    /// The same for whoever goes through the disk in order: `near` starts at 0, and is where the last one was found.
    fn run_near(&self, near: &mut usize, sector: u64, until: u64) -> Run<'a> {
        let cluster_sectors = self.layout.cluster_sectors();
        let cluster = sector / cluster_sectors;
        let before = |mapped: &Mapped| mapped.guest_cluster < cluster;
        let rest = &self.mapped[*near..];
        let index = *near
            + match rest.first() {
                Some(first) if before(first) => 1 + rest[1..].partition_point(before),
                Some(_) | None => 0,
            };
        *near = index;
        let next = self.mapped.get(index);
        if let Some(mapped) = next
            && mapped.guest_cluster == cluster
        {
            let (mapping, sectors) = self.subcluster(mapped, sector);
            return match mapping {
                Some(mapping) => {
                    let source = self.source(mapping, sector, sector % cluster_sectors);
                    let end = self.contiguous_end(index, sectors.end, until);
                    Run::new(sector..end, source)
                }
                None => self.unmapped(sector, sectors.end, until),
            };
        }
        let end = next.map_or(u64::MAX, |next| next.guest_cluster * cluster_sectors);
        self.unmapped(sector, end, until)
    }

    /// Where the clusters end that follow one another, on the disk and in the file, from the mapped cluster at `index`
    /// on, whose part in question ends at `end`.
    fn contiguous_end(&self, index: usize, end: u64, until: u64) -> u64 {
        /// So far ahead one looks: two disks that go on in different ways are compared run by run.
        const MOST_CLUSTERS: usize = 64;
        let cluster_sectors = self.layout.cluster_sectors();
        let Mapping::Data(mut last) = self.mapped[index].mapping else {
            return end;
        };
        if self.layout.encryption != 0 {
            return end;
        }
        let pairs = self.mapped[index..].windows(2).take(MOST_CLUSTERS);
        let following = pairs.take_while(|pair| {
            let goes_on = pair[1].guest_cluster == pair[0].guest_cluster + 1
                && pair[1].guest_cluster * cluster_sectors < until
                && pair[1].mapping == Mapping::Data(last + self.layout.cluster_bytes());
            last += self.layout.cluster_bytes();
            goes_on
        });
        end + u64::try_from(following.count()).expect("a count fits 64 bits") * cluster_sectors
    }

    /// What a mapped cluster shows at `sector`, and from there on to where it shows something else;
    /// `None` where it shows what lies beneath.
    fn subcluster(&self, mapped: &Mapped, sector: u64) -> (Option<Mapping>, Range<u64>) {
        let cluster_sectors = self.layout.cluster_sectors();
        let start = mapped.guest_cluster * cluster_sectors;
        let Mapping::Split {
            offset,
            allocated,
            zero,
        } = mapped.mapping
        else {
            return (Some(mapped.mapping), sector..start + cluster_sectors);
        };
        let unit = cluster_sectors / 32;
        let kind = |index: u64| match (allocated >> index & 1, zero >> index & 1) {
            (1, _) => Some(Mapping::Data(offset)),
            (_, 1) => Some(Mapping::Zero),
            _ => None,
        };
        let index = (sector - start) / unit;
        let end = (index..32).find(|other| kind(*other) != kind(index));
        (kind(index), sector..start + end.unwrap_or(32) * unit)
    }

    /// What lies beneath, from `sector` up to `end` at most.
    fn unmapped(&self, sector: u64, end: u64, until: u64) -> Run<'a> {
        match self.backing {
            None => Run::new(sector..end, Source::Zeroes),
            Some(backing) => {
                let mut run = backing.run_from(sector, until.min(end));
                run.sectors.end = run.sectors.end.min(end);
                run
            }
        }
    }

    /// The source of a mapped cluster from its sector `within` on.
    fn source(&self, mapping: Mapping, guest_sector: u64, within: u64) -> Source<'a> {
        match mapping {
            Mapping::Zero => Source::Zeroes,
            Mapping::Data(offset) if self.layout.encryption != 0 => {
                Source::Encrypted(Box::new(Encrypted {
                    image: self.data,
                    first: offset / 512 + within,
                    guest_sector,
                    method: self.layout.encryption,
                    plain: OnceCell::new(),
                }))
            }
            Mapping::Data(offset) => Source::Stored {
                image: self.data,
                first: offset / 512 + within,
            },
            Mapping::Compressed { offset, len_bytes } => match self.inflate(offset, len_bytes) {
                Some(cluster) => Source::Inflated {
                    cluster,
                    first: usize::try_from(within).expect("a cluster fits memory"),
                },
                None => Source::Unreadable,
            },
            Mapping::Split { .. } => unreachable!("a subcluster is not split"),
            Mapping::Bad => Source::Unreadable,
        }
    }

    fn inflate(&self, offset: u64, len_bytes: u64) -> Option<Cluster> {
        let len = usize::try_from(len_bytes).ok()?;
        let method = if self.layout.zstd {
            Method::Zstd
        } else {
            Method::Deflate
        };
        let full = usize::try_from(self.layout.cluster_bytes()).expect("a cluster fits memory");
        inflated(method, &self.image.read_vec(offset, len), full)
    }
}

/// Decrypts a cluster of a run's image, of which the keys are known. Specification: "Data encryption":
/// the legacy method counts the guest's sectors, LUKS those of the file.
fn decrypt(method: u32, guest_sector: u64, host_sector: u64, cluster: &mut [u8]) {
    let vector = |sector: u64| {
        let mut vector = [0; 16];
        vector[..8].copy_from_slice(&sector.to_le_bytes());
        vector.into()
    };
    let key = |bytes: &[u8]| Aes128::new_from_slice(bytes).expect("half a key is 16 bytes");
    if method == 1 {
        let cipher = key(TEST_SECRET);
        for (sector, bytes) in (guest_sector..).zip(cluster.chunks_exact_mut(512)) {
            let mut chain = cbc::Decryptor::inner_iv_init(cipher.clone(), &vector(sector));
            chain.decrypt_blocks(Array::slice_as_chunks_mut(bytes).0);
        }
    } else {
        let (data, tweak) = TEST_KEY.split_at(16);
        let cipher = Xts128::new(key(data), key(tweak));
        for (sector, bytes) in (host_sector..).zip(cluster.chunks_exact_mut(512)) {
            cipher.decrypt_sector(bytes, vector(sector));
        }
    }
}

/// What a sector holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content<'a> {
    /// Zeroes.
    Zeroes,
    /// These bytes, which are not all zero.
    Bytes(&'a [u8; 512]),
    /// Nobody can tell: the tables, or the compressed bytes, cannot be right.
    Unreadable,
}

impl Content<'_> {
    /// The value by which a ledger knows this content. What is unreadable has one that no sector was ever
    /// given.
    pub fn value(self) -> SectorValue {
        match self {
            Self::Zeroes => SectorValue::Zero,
            Self::Bytes(bytes) => identify(bytes),
            Self::Unreadable => SectorValue::Other(0),
        }
    }
}

impl<'a> Run<'a> {
    fn new(sectors: Range<u64>, source: Source<'a>) -> Self {
        Self { sectors, source }
    }

    /// Whether all of it reads zero because nothing is mapped to it.
    pub fn is_zeroes(&self) -> bool {
        matches!(self.source, Source::Zeroes)
    }

    /// A hash of what the run holds; `None` where it holds nothing, or nobody can tell what. Runs of the same sectors
    /// with the same hash hold the same.
    pub fn content_hash(&self) -> Option<u128> {
        let stored = |image: &PageImage, first: u64| {
            let sectors = first..first + (self.sectors.end - self.sectors.start);
            (image.hash_of(sectors), first)
        };
        let (content, place, method) = match &self.source {
            Source::Zeroes | Source::Unreadable => return None,
            Source::Stored { image, first } => {
                let (content, first) = stored(image, *first);
                (content, first, 0)
            }
            Source::Encrypted(encrypted) => {
                let (content, first) = stored(encrypted.image, encrypted.first);
                (content, first, encrypted.method)
            }
            Source::Inflated { cluster, first } => {
                let first = u64::try_from(*first).expect("a cluster's length fits 64 bits");
                (cluster.hash, first, u32::MAX)
            }
        };
        let mut bytes = [0; 28];
        bytes[..16].copy_from_slice(&content.to_le_bytes());
        bytes[16..24].copy_from_slice(&place.to_le_bytes());
        bytes[24..].copy_from_slice(&method.to_le_bytes());
        Some(xxh3_128(&bytes))
    }

    /// The run in pieces that end where multiples of so many sectors do.
    pub fn pieces(&self, sectors: u64) -> impl Iterator<Item = Range<u64>> + use<> {
        let whole = self.sectors.clone();
        let mut at = whole.start;
        std::iter::from_fn(move || {
            let start = at;
            at = (start + 1).next_multiple_of(sectors).min(whole.end);
            (start < whole.end).then_some(start..at)
        })
    }

    /// What `sector`, one of the run's, holds.
    pub fn content(&self, sector: u64) -> Content<'_> {
        match self.stored(sector) {
            Ok(Some(bytes)) if *bytes != [0; 512] => Content::Bytes(bytes),
            Ok(_) => Content::Zeroes,
            Err(Unreadable) => Content::Unreadable,
        }
    }

    /// The bytes behind `sector`; `None` stands for zeroes.
    fn stored(&self, sector: u64) -> Result<Option<&[u8; 512]>, Unreadable> {
        let index = sector - self.sectors.start;
        match &self.source {
            Source::Zeroes => Ok(None),
            Source::Unreadable => Err(Unreadable),
            Source::Stored { image, first } => Ok(image.sector(first + index)),
            Source::Encrypted(encrypted) => {
                let plain = encrypted.plain(self.sectors.end - self.sectors.start);
                Ok(plain.get(usize::try_from(index).expect("a cluster fits memory")))
            }
            Source::Inflated { cluster, first } => {
                let index = usize::try_from(index).expect("a cluster fits memory");
                Ok(cluster.bytes.as_chunks::<512>().0.get(first + index))
            }
        }
    }

    /// The first of `sectors`, all of them in both runs, that differs.
    fn difference(&self, other: &Run<'_>, sectors: Range<u64>) -> Option<u64> {
        if self.is_zeroes() && other.is_zeroes() || self.is_shared_with(other, &sectors) {
            return None;
        }
        let mut sector = sectors.start;
        while sector < sectors.end {
            if let (Source::Encrypted(one), Source::Encrypted(two)) = (&self.source, &other.source)
                && one.same(
                    sector - self.sectors.start,
                    two,
                    sector - other.sectors.start,
                )
            {
                sector += 1;
            } else if let (Ok(Some(one)), Ok(Some(two))) =
                (self.stored(sector), other.stored(sector))
                && std::ptr::eq(one, two)
            {
                sector += self.left_of_page(sector);
            } else if self.content(sector) != other.content(sector) {
                return Some(sector);
            } else {
                sector += 1;
            }
        }
        None
    }

    /// Whether both have these sectors in the same place of images that share it, or have the same there.
    fn is_shared_with(&self, other: &Run<'_>, sectors: &Range<u64>) -> bool {
        let place = |run: &Run<'_>, first: u64| first + (sectors.start - run.sectors.start);
        match (&self.source, &other.source) {
            (
                Source::Stored { image, first },
                Source::Stored {
                    image: and,
                    first: second,
                },
            ) => {
                let (here, there) = (place(self, *first), place(other, *second));
                let place = here..here + (sectors.end - sectors.start);
                here == there && image.is_same_within(and, place)
            }
            _ => false,
        }
    }

    /// The first sector that differs from `data`, which somebody read in the run's place.
    fn difference_to_data(&self, data: &[u8]) -> Option<u64> {
        let within = match &self.source {
            Source::Unreadable => Some(0),
            Source::Zeroes => {
                let zeroes = leading_zeroes(data);
                (zeroes < data.len()).then_some(zeroes)
            }
            Source::Stored { image, first } => image.difference(first * 512, data),
            Source::Encrypted(_) | Source::Inflated { .. } => {
                let sectors = data.as_chunks::<512>().0.iter();
                let mut sectors = sectors.zip(self.sectors.clone());
                let differs = |(bytes, sector)| !matches!(self.stored(sector), Ok(Some(stored)) if stored == bytes);
                sectors.position(differs).map(|index| index * 512)
            }
        };
        let sector =
            |within| self.sectors.start + u64::try_from(within / 512).expect("it is in memory");
        within.map(sector)
    }

    /// How many sectors from this one on stand in the same page. Images share whole pages.
    fn left_of_page(&self, sector: u64) -> u64 {
        const SECTORS_PER_PAGE: u64 = 8;
        match &self.source {
            Source::Stored { first, .. } => {
                SECTORS_PER_PAGE - (first + (sector - self.sectors.start)) % SECTORS_PER_PAGE
            }
            Source::Zeroes
            | Source::Encrypted(_)
            | Source::Inflated { .. }
            | Source::Unreadable => 1,
        }
    }
}

/// The tables, or the compressed bytes, cannot be right.
struct Unreadable;

#[cfg(test)]
mod tests;
