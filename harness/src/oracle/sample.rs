//! Small images made by hand, for the oracles' tests.

use engine::device::PageImage;

pub(crate) const COPIED: u64 = 1 << 63;
pub(crate) const COMPRESSED: u64 = 1 << 62;

/// An image of one L2 table: header, refcount table, refcount block, L1 table, L2 table, then whatever
/// is added, one cluster each.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) image: PageImage,
    pub(crate) cluster_bits: u32,
    pub(crate) refcount_order: u32,
    next: u64,
}

impl Sample {
    pub(crate) const REFTABLE: u64 = 1;
    pub(crate) const REFBLOCK: u64 = 2;
    pub(crate) const L1: u64 = 3;
    pub(crate) const L2: u64 = 4;

    /// Version 3, clusters of 4 KiB, refcounts of 16 bits.
    pub(crate) fn new() -> Self {
        Self::with(3, 12, 4)
    }

    pub(crate) fn with(version: u32, cluster_bits: u32, refcount_order: u32) -> Self {
        let mut sample = Self {
            image: PageImage::default(),
            cluster_bits,
            refcount_order,
            next: 5,
        };
        let offset = |cluster: u64| cluster << cluster_bits;
        sample.image.set_len(offset(5));
        sample.image.write(0, &0x5146_49fb_u32.to_be_bytes());
        sample.image.write(4, &version.to_be_bytes());
        sample.image.write(20, &cluster_bits.to_be_bytes());
        sample.long(24, offset(8));
        sample.image.write(36, &1_u32.to_be_bytes());
        sample.long(40, offset(Self::L1));
        sample.long(48, offset(Self::REFTABLE));
        sample.image.write(56, &1_u32.to_be_bytes());
        if version >= 3 {
            sample.image.write(96, &refcount_order.to_be_bytes());
            sample.image.write(100, &104_u32.to_be_bytes());
        }
        sample.long(offset(Self::REFTABLE), offset(Self::REFBLOCK));
        sample.long(offset(Self::L1), offset(Self::L2) | COPIED);
        for cluster in 0..5 {
            sample.count(cluster, 1);
        }
        sample
    }

    pub(crate) fn offset(&self, cluster: u64) -> u64 {
        cluster << self.cluster_bits
    }

    /// Writes a big-endian word.
    pub(crate) fn long(&mut self, at: u64, value: u64) {
        self.image.write(at, &value.to_be_bytes());
    }

    pub(crate) fn dirty(mut self) -> Self {
        self.long(72, 1);
        self
    }

    /// Sets a refcount, whatever its width.
    pub(crate) fn count(&mut self, cluster: u64, value: u64) {
        let bits = 1u64 << self.refcount_order;
        let base = self.offset(Self::REFBLOCK);
        for bit in 0..bits {
            let position = if bits < 8 {
                cluster * bits + bit
            } else {
                // Big endian: the lowest bit of a count stands in its last byte.
                (cluster * bits / 8 + (bits - 1 - bit) / 8) * 8 + bit % 8
            };
            let mut byte = [0];
            self.image.read(base + position / 8, &mut byte);
            let mask = 1 << (position % 8);
            byte[0] = if value >> bit & 1 == 1 {
                byte[0] | mask
            } else {
                byte[0] & !mask
            };
            self.image.write(base + position / 8, &byte);
        }
    }

    /// Sets the L2 entry of a guest cluster.
    pub(crate) fn entry(&mut self, guest_cluster: u64, word: u64) {
        self.long(self.offset(Self::L2) + guest_cluster * 8, word);
    }

    /// A new cluster at the end of the file with a refcount of one.
    pub(crate) fn cluster(&mut self) -> u64 {
        let cluster = self.next;
        self.next += 1;
        self.image.set_len(self.offset(self.next));
        self.count(cluster, 1);
        cluster
    }

    /// Maps a guest cluster to a new data cluster that is filled with `byte`.
    pub(crate) fn map(&mut self, guest_cluster: u64, byte: u8) -> u64 {
        let cluster = self.cluster();
        self.entry(guest_cluster, self.offset(cluster) | COPIED);
        let len = 1 << self.cluster_bits;
        self.image.write(self.offset(cluster), &vec![byte; len]);
        cluster
    }

    /// Adds one snapshot whose L1 table is a copy of the active one. Counts are left to the caller.
    pub(crate) fn snapshot(&mut self) {
        let (table, l1) = (self.cluster(), self.cluster());
        self.image.write(60, &1_u32.to_be_bytes());
        self.long(64, self.offset(table));
        self.long(self.offset(table), self.offset(l1));
        self.image
            .write(self.offset(table) + 8, &1_u32.to_be_bytes());
        self.image
            .write(self.offset(table) + 36, &16_u32.to_be_bytes());
        let mut disk_bytes = [0; 8];
        self.image.read(24, &mut disk_bytes);
        self.image.write(self.offset(table) + 48, &disk_bytes);
        self.long(self.offset(l1), self.offset(Self::L2));
    }
}
