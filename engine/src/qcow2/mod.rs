//! QEMU's qcow2 format, versions 2 and 3. Specification: `docs/interop/qcow2.rst` of QEMU.
//!
//! # The order of writes
//!
//! The device may keep any subset of what was written since the last flush, in any order, and tear it
//! at 512 bytes. What survives must still be an image in which no flushed byte is lost and no foreign
//! byte shows. These rules make it so; [`crate::barrier::Barrier`] names the places that wait for writes, and
//! the rule that asks for each.
//!
//! 1. **Before a link**: an L2 entry is written only when the refcounts that it relies on are durable
//!    (unless the dirty bit is), and when its data are, where anything but zeroes could show in their
//!    stead: the old content is not zero, or the new cluster may not read as zero. Without the dirty
//!    bit the data are waited for always, since they also make the file long enough. Under a cipher no
//!    unwritten cluster reads as zero: a new one is written whole, and waited for.
//!    With extended L2 entries this holds for each subcluster: what a cluster in use holds beneath a
//!    subcluster that was not allocated may be anything, so such data are waited for always as well.
//! 2. **Before an L1 entry**: the new L2 table that it points to is durable, with its refcount.
//! 3. **Before a free**: a cluster's refcount goes down, and the cluster may be used again or its
//!    space given back, only when the write that unlinked it is durable. Lowered refcounts therefore
//!    need no order of their own, and no cycle of dependencies can arise.
//! 4. **Before a hookup**: a new refcount block is durable before the refcount table points to it.
//! 5. **After a hookup**: the refcount table entry is durable before a cluster that the block counts is
//!    used. So even a dirty image maps nothing that its refcount table does not cover.
//! 6. **Before a switch**: a new refcount table with its blocks, or a new L1 table, is durable before
//!    the header points to it. The header's pointers and flags change by one write of sector 0.
//! 7. **After a switch**: what the switch replaced is freed under rule 3. The switch to a larger
//!    refcount table is durable before a cluster is used that only the new table covers (see 5).
//! 8. **Dirty before links**: with lazy refcounts, the dirty bit is durable before the first link that
//!    does without durable refcounts.
//! 9. **Clean last**: the dirty bit is cleared only when L2 tables and refcounts are durable.
//! 10. **Size last**: what a grown disk shows in its new part is durable before the new size is written.
//! 11. **Guest flush**: L2 tables are written under rule 1, then the device is flushed.
//! 12. **Before use**: an image that is opened for writing is flushed once. Whoever wrote it last may
//!     have been killed and left a mapping, a count or data volatile that rules 1 to 7 rely on.
//! 13. **Header rewrite**: what the header refers to behind sector 0 is durable before sector 0 refers to it,
//!     and no byte that the present sector 0 refers to changes before that. See `rewrite`.
//! 14. **Amend**: refcounts of another width stand beside the old ones and are durable before one write of
//!     sector 0 switches pointer and width together. The header says version 2 only when no table in the
//!     file holds, durably, an entry that version 2 does not know.
//! 15. **Make empty**: an L1 table without entries is durable before the header points to it, and
//!     that switch before anything that the old table led to is freed.
//! 16. **Before a raise**: COPIED is durably clear wherever a second reference is to be counted, in
//!     the active L1 table and in the L2 tables behind it: in those of the file, which may be others where a link failed.
//! 17. **Before a snapshot switch**: raised refcounts, copied L1 table, snapshot table and all guest
//!     data are durable before sector 0 lists a snapshot, forgets one, or moves the disk to one with
//!     its size. Without exception: the dirty bit excuses none of this.
//! 18. **After a snapshot switch**: it is durable before any reference goes that it gave up, and
//!     before the caller is told.
//! 19. **Before COPIED comes back**: what is left with one reference claims so when the lowered
//!     refcount is durable.
//! 20. **Bitmaps before a change**: the file says durably that an enabled bitmap is in use before the
//!     first change that the guest makes. Before the size changes, that holds for every bitmap.
//! 21. **Before a bitmap switch**: a stored bitmap, the directory, their refcounts, and what the guest
//!     wrote until then are durable before the header points to the directory.
//! 22. **Compressed bytes**: no sector that holds them is written twice, whoever else's bytes share its
//!     cluster; and they are durable before the L2 entry that points to them, dirty bit or not: what is
//!     half written does not decompress at all.
//! 23. **Two files**: an external data file has a cache of its own. The data file is flushed before an
//!     L2 entry exposes data in it, dirty bit or not, since what stood there may be anything; and a
//!     guest flush covers both files. Nothing else relies on it.
//! 24. **Raw data file**: what the mappings show and what the data file holds never differ. Zeroes are
//!     written to the file, and clusters stay mapped. Where another program left a cluster unmapped,
//!     or as zeroes, the file is zeroed there and the mapping is durable before the cluster changes.
//!     The promise is withdrawn durably (rule 13) before they may differ.
//! 25. **Before a key slot**: key material, and what of a slot's entry stands in another sector than its
//!     state, is durable before the sector is written whose state makes the slot active.
//! 26. **After a key slot**: that sector is durable before the caller is told that the secret opens the image.
//! 27. **Before a wipe**: the sector that makes a slot inactive is durable before anything of the slot is
//!     overwritten, so that no active slot is ever without its key material.
//! 28. **After a wipe**: the overwritten key material is durable before the caller is told.
//! 29. **Before a punch**: the space of a cluster that a discarded mapping keeps in reserve goes back only
//!     when the write that made the mapping say "zeroes" is durable, and not at all once a write has
//!     taken the cluster again.
//! 30. **After a shrink**: one write of sector 0 makes the disk smaller and its L1 table shorter. It is
//!     durable before anything is freed that lay beyond the new end, so that a power loss leaves the disk
//!     long with its old content, or short.
//! 31. **Before a cut**: L2 entries and refcount table entries that name clusters behind the new end of
//!     the file are durably gone before the file ends there.
//! 32. **Corrupt**: an image that is found corrupt says so durably before the failure is told; but not behind a failure that
//!     left in doubt what the file holds, which may be sound.
//! 33. **Repair**: each step leaves an image that the next repair can start from; see `check::repair`.
//!
//! A flush that fails may have dropped what it was to make durable, and a later one would not tell.
//! From then on nothing is allocated, no table is written back and no bit of the header is set, barrier or not. A file is
//! flushed once at a time, so that none succeeds beside one that fails.
//!
//! # Overlapping requests
//!
//! A request claims its range of guest clusters: shared to read and to overwrite in place, exclusive
//! to change a mapping. So a mapping stays as it was looked up while data move, and a cluster is
//! never freed under a reader. Tables, refcounts and header are behind one fair lock that is not held
//! while guest data move.

mod alloc;
mod amend;
mod bitmap;
pub mod bounds;
mod cache;
pub mod check;
pub mod compress;
pub mod create;
mod crypto;
mod data;
mod data_file;
mod discards;
mod empty;
pub mod entry;
pub mod extension;
mod feature;
mod free;
pub mod geometry;
mod grow;
pub mod header;
mod image;
mod key_slots;
mod l2;
mod metadata;
mod open;
pub mod order;
mod overlap;
pub mod packed;
mod preallocate;
mod read;
pub mod refblock;
mod reftable;
mod rewrite;
mod shrink;
pub mod snapshot;
mod status;
pub mod subcluster;
pub mod unit;
mod version;
mod width;
mod write;
mod zero;

pub use bitmap::{BitmapInfo, Standing, list_bitmaps};
pub use crypto::{Encryption, Unlock};
pub use discards::{DiscardedCluster, Discards, GuestDiscards, Pass};
pub use header::probe;
pub use image::Qcow2;
pub use open::{CacheSizes, Files, LazyRefcounts, OpenOptions};
pub use overlap::{OverlapChecks, Region};
