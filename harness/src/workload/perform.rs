//! Carrying an operation out on an open image.

use std::iter;

use blkdebug::disks::Disk;
use engine::error::Error;
use engine::image::Image;
use engine::luks::{NewSlot, Secret};
use engine::manage::{BackingName, DataFileChange, LastSlot, Manage, NewSnapshot, Resizing};

use super::ops::{
    BitmapChange, BitmapOperation, DataFileOperation, KeySlotChange, KeySlotOperation, Operation,
    OperationId, SnapshotChange, SnapshotOperation, bitmap_name,
};
use super::shape::{TEST_CIPHER, TEST_SECRETS};
use super::stamp::{Writer, stamp_range, thin_stamp_range};
use crate::guest::name_of;
use crate::prng::Prng;

/// Carries out any operation but reopening, killing and those on chains, for which an open image is not
/// enough: they are the caller's. Yields what was read.
///
/// # Panics
/// Where it is asked for one of those.
pub async fn perform(
    image: &dyn Image,
    id: OperationId,
    operation: Operation,
) -> Result<Vec<u8>, Error> {
    match operation {
        Operation::Read { offset, len_bytes } => {
            let len = usize::try_from(len_bytes).expect("a read fits memory");
            return image.read(offset, len).await;
        }
        Operation::Write { offset, len_bytes } => {
            let data = stamp_range(Writer::Operation(id), offset, len_bytes);
            image.write(offset, data).await
        }
        Operation::WriteCompressed { offset, len_bytes } => {
            let data = thin_stamp_range(Writer::Operation(id), offset, len_bytes);
            image.write_compressed(offset, data).await
        }
        Operation::WriteBlank { offset, len_bytes } => {
            let len = usize::try_from(len_bytes).expect("a write fits memory");
            image.write(offset, vec![0; len]).await
        }
        Operation::WriteZeroes {
            offset,
            len_bytes,
            unmap,
        } => image.write_zeroes(offset, len_bytes, unmap).await,
        Operation::Discard { offset, len_bytes } => image.discard(offset, len_bytes).await,
        Operation::Flush => image.flush().await,
        Operation::DropIdle => image.drop_idle().await,
        Operation::Grow {
            virtual_bytes,
            preallocation,
        } => {
            let resizing = Resizing::Grow(preallocation);
            let operation = Manage::Resize {
                virtual_bytes,
                resizing,
            };
            image.manage(operation).await
        }
        Operation::Shrink { virtual_bytes } => image.manage(Manage::shrink(virtual_bytes)).await,
        Operation::Amend(amend) => image.manage(Manage::Amend(amend)).await,
        Operation::Rename { name_bytes } => {
            let name = backing_name(name_bytes);
            let backing = BackingName { name, format: None };
            image.manage(Manage::SetBacking(Some(backing))).await
        }
        Operation::DataFile(operation) => image.manage(data_file_change(operation)).await,
        Operation::Empty => image.manage(Manage::MakeEmpty).await,
        Operation::Snapshot(operation) => image.manage(snapshot(operation)).await,
        Operation::Bitmap(operation) => image.manage(managed(operation)).await,
        Operation::KeySlot(operation) => image.manage(key_slot(id, operation)).await,
        Operation::Chain(_) | Operation::Reopen | Operation::Kill => {
            unreachable!("it takes more than an open image")
        }
    }
    .map(|()| Vec::new())
}

/// How an image calls a file that it lies over.
pub(crate) fn file_name(disk: Disk) -> &'static str {
    disk.name()
}

/// The name of the backing file that an operation writes into the header, empty for none; `None` where it
/// leaves the name alone.
pub(crate) fn backing_after(operation: Operation) -> Option<String> {
    if let Operation::Rename { name_bytes } = operation {
        return Some(backing_name(name_bytes));
    }
    let Operation::Chain(operation) = operation else {
        return None;
    };
    let onto = operation.moves_onto()?;
    Some(onto.map_or("", file_name).to_owned())
}

/// The name of that length that [`Operation::Rename`] gives.
fn backing_name(bytes: u32) -> String {
    "b".repeat(usize::try_from(bytes).expect("a name fits memory"))
}

/// The name of that length that [`Operation::DataFile`] gives.
pub(crate) fn data_file_name(bytes: u32) -> String {
    "d".repeat(usize::try_from(bytes).expect("a name fits memory"))
}

/// A change of what is said of the data file, as the engine is asked for it.
fn data_file_change(operation: DataFileOperation) -> Manage {
    let DataFileOperation { name_bytes, raw } = operation;
    let name = name_bytes.map(data_file_name);
    Manage::SetDataFile(DataFileChange { name, raw })
}

/// An operation on a key slot as the engine is asked for it. Its random bytes are the operation's own.
fn key_slot(id: OperationId, operation: KeySlotOperation) -> Manage {
    let KeySlotOperation { slot, change } = operation;
    let slot = usize::from(slot);
    match change {
        KeySlotChange::Fill { secret } => {
            let secret = Secret::new(TEST_SECRETS[usize::from(secret)].to_vec());
            let mut draw = Prng::from_seed(id.0.into()).fork("key slot");
            let words = NewSlot::random_len(TEST_CIPHER) / 8;
            let random = (0..words).flat_map(|_| draw.bits().to_le_bytes());
            let new = NewSlot::new(secret, 1, random.collect());
            Manage::KeySlotFill { slot, new }
        }
        KeySlotChange::Erase => Manage::KeySlotErase {
            slot,
            last: LastSlot::Keep,
        },
    }
}

/// An operation on a snapshot as the engine is asked for it.
pub(crate) fn snapshot(operation: SnapshotOperation) -> Manage {
    let SnapshotOperation { snapshot, change } = operation;
    let name = name_of(snapshot);
    match change {
        SnapshotChange::Create => Manage::SnapshotCreate(NewSnapshot {
            name,
            date_seconds: snapshot,
            ..NewSnapshot::default()
        }),
        SnapshotChange::Apply => Manage::SnapshotApply { snapshot: name },
        SnapshotChange::Delete => Manage::SnapshotDelete { snapshot: name },
    }
}

/// An operation on a bitmap as the engine is asked for it.
pub fn managed(operation: BitmapOperation) -> Manage {
    let BitmapOperation { number, change } = operation;
    let name = bitmap_name(number);
    match change {
        BitmapChange::Create {
            granularity_bits,
            state,
        } => Manage::BitmapCreate {
            name,
            granularity_bytes: 1 << granularity_bits,
            state,
        },
        BitmapChange::Remove => Manage::BitmapRemove { name },
        BitmapChange::SetState(state) => Manage::BitmapSetState { name, state },
        BitmapChange::Clear => Manage::BitmapClear { name },
        BitmapChange::Merge { source } => Manage::BitmapMerge {
            target: name,
            sources: vec![bitmap_name(source)],
        },
        BitmapChange::Mark { range } => Manage::BitmapMark {
            name,
            ranges: iter::once(range.offset..range.end()).collect(),
        },
    }
}
