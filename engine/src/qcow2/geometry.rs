//! The sizes of an image, validated once and passed on.

use super::unit::{GuestOffset, HostCluster, HostOffset};

/// The sizes that follow from an image's header. Specification: "Guest clusters", "Refcount table".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    cluster_bits: u32,
    refcount_order: u32,
    extended_l2: bool,
    external_data: bool,
}

/// Where a guest offset is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Index into the L1 table.
    pub l1_index: u64,
    /// Index into the L2 table.
    pub l2_index: u64,
    /// Bytes from the start of the cluster.
    pub within: u64,
}

impl Geometry {
    /// Cluster sizes from 512 bytes to 2 MiB.
    pub const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
    /// Refcount widths from 1 to 64 bits.
    pub const REFCOUNT_ORDER: std::ops::RangeInclusive<u32> = 0..=6;
    /// The smallest clusters that have subclusters of a sector or more: 16 KiB.
    pub const MIN_EXTENDED_BITS: u32 = 14;

    /// The geometry of these sizes, or `None` where a size is not allowed.
    pub fn new(cluster_bits: u32, refcount_order: u32) -> Option<Self> {
        (Self::CLUSTER_BITS.contains(&cluster_bits)
            && Self::REFCOUNT_ORDER.contains(&refcount_order))
        .then_some(Self {
            cluster_bits,
            refcount_order,
            extended_l2: false,
            external_data: false,
        })
    }

    /// The same sizes with extended L2 entries, or `None` where clusters are too small for them.
    /// Specification: "Extended L2 Entries".
    pub fn with_extended_l2(self) -> Option<Self> {
        (self.cluster_bits >= Self::MIN_EXTENDED_BITS).then_some(Self {
            extended_l2: true,
            ..self
        })
    }

    /// The same, with guest data in an external file: each cluster stands there at its guest offset, and
    /// offset 0 is a place like any other. Specification: "External data file".
    #[must_use]
    pub fn with_external_data(self) -> Self {
        Self {
            external_data: true,
            ..self
        }
    }

    /// Whether guest data stand in an external file, where no refcounts count them.
    pub fn has_external_data(self) -> bool {
        self.external_data
    }

    /// The same with refcounts of another width, or `None` where that is not allowed.
    pub fn with_refcount_order(self, refcount_order: u32) -> Option<Self> {
        Self::REFCOUNT_ORDER
            .contains(&refcount_order)
            .then_some(Self {
                refcount_order,
                ..self
            })
    }

    /// Whether L2 entries are extended, so that clusters have subclusters.
    pub fn has_subclusters(self) -> bool {
        self.extended_l2
    }

    /// Bytes in an L2 entry.
    pub fn l2_entry_bytes(self) -> u64 {
        if self.extended_l2 { 16 } else { 8 }
    }

    /// Bytes in a subcluster: what can be mapped by itself. A cluster without extended L2 entries.
    pub fn subcluster_bytes(self) -> u64 {
        if self.extended_l2 {
            self.cluster_bytes() / 32
        } else {
            self.cluster_bytes()
        }
    }

    /// Binary logarithm of the cluster size.
    pub fn cluster_bits(self) -> u32 {
        self.cluster_bits
    }

    /// Binary logarithm of the refcount width in bits.
    pub fn refcount_order(self) -> u32 {
        self.refcount_order
    }

    /// Bytes in a cluster.
    pub fn cluster_bytes(self) -> u64 {
        1 << self.cluster_bits
    }

    /// Bytes in a cluster, as the length of a buffer.
    pub fn cluster_len(self) -> usize {
        1 << self.cluster_bits
    }

    /// Entries in an L2 table, which is also the number of guest clusters that an L1 entry covers.
    pub fn l2_entries(self) -> u64 {
        self.cluster_bytes() / self.l2_entry_bytes()
    }

    /// Guest bytes that one L1 entry covers.
    pub fn l1_span_bytes(self) -> u64 {
        self.cluster_bytes() * self.l2_entries()
    }

    /// L1 entries that a guest disk of `virtual_bytes` needs.
    pub fn l1_entries_for(self, virtual_bytes: u64) -> u64 {
        virtual_bytes.div_ceil(self.l1_span_bytes())
    }

    /// Refcounts in a refcount block.
    pub fn refcounts_per_block(self) -> u64 {
        (self.cluster_bytes() * 8) >> self.refcount_order
    }

    /// The highest refcount that fits.
    pub fn max_refcount(self) -> u64 {
        u64::MAX >> (64 - (1u32 << self.refcount_order))
    }

    /// Clusters that `bytes` take.
    pub fn clusters_for(self, bytes: u64) -> u64 {
        bytes.div_ceil(self.cluster_bytes())
    }

    /// `bytes` rounded up to whole clusters.
    pub fn round_up(self, bytes: u64) -> u64 {
        self.clusters_for(bytes) * self.cluster_bytes()
    }

    /// Where the mapping of a guest offset stands.
    pub fn place(self, offset: GuestOffset) -> Place {
        let cluster = offset.0 >> self.cluster_bits;
        Place {
            l1_index: cluster / self.l2_entries(),
            l2_index: cluster % self.l2_entries(),
            within: self.within(offset.0),
        }
    }

    /// Bytes from the start of the cluster that `offset` lies in.
    pub fn within(self, offset: u64) -> u64 {
        offset & (self.cluster_bytes() - 1)
    }

    /// Whether a host offset is the start of a cluster.
    pub fn is_aligned(self, offset: HostOffset) -> bool {
        self.within(offset.0) == 0
    }

    /// The cluster that a host offset lies in.
    pub fn cluster_of(self, offset: HostOffset) -> HostCluster {
        HostCluster(offset.0 >> self.cluster_bits)
    }

    /// The host offset of a cluster's first byte.
    pub fn offset_of(self, cluster: HostCluster) -> HostOffset {
        HostOffset(cluster.0 << self.cluster_bits)
    }
}
