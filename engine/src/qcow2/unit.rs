//! Quantities that must not be mixed: where the guest stands, where the file stands, which cluster.

use std::fmt;

macro_rules! quantity {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{:#x}"), self.0)
            }
        }
    };
}

quantity! {
    /// A byte offset on the guest's disk.
    GuestOffset, "guest offset "
}
quantity! {
    /// A byte offset in the image file.
    HostOffset, "host offset "
}
quantity! {
    /// The number of a cluster of the image file: its host offset divided by the cluster size.
    HostCluster, "host cluster "
}
quantity! {
    /// The number of a cluster of the guest's disk: its guest offset divided by the cluster size.
    GuestCluster, "guest cluster "
}

/// The length of a buffer as a byte count.
pub(crate) fn byte_count(len: usize) -> u64 {
    u64::try_from(len).expect("a length in memory fits 64 bits")
}

/// A count of bytes or entries as a length in memory.
pub(crate) fn mem_len(count: u64) -> usize {
    usize::try_from(count).expect("a bounded count fits the address space")
}
