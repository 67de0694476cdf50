//! What a request's event says about the bytes it carries.

use blkdebug::record::Entry;
use engine::device::{Event, OpKind};

/// A class of an image's bytes. Most crash bugs are two classes that reach the disk in the wrong
/// order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Guest data, and whatever its event does not tell.
    Data,
    /// Tables that map guest data.
    L2,
    /// The table of those tables.
    L1,
    /// Refcounts.
    RefcountBlock,
    /// The table of refcount blocks.
    RefcountTable,
    /// The header, and what is written without an event of its own.
    Header,
    /// A change of length.
    Length,
}

impl Class {
    /// The class of a request.
    pub fn of(entry: &Entry) -> Self {
        if entry.op.kind() == OpKind::SetLen {
            return Self::Length;
        }
        Self::of_event(entry.event)
    }

    fn of_event(event: Event) -> Self {
        match event {
            Event::L2Load
            | Event::L2Update
            | Event::L2UpdateCompressed
            | Event::L2AllocCowRead
            | Event::L2AllocWrite
            | Event::L1ShrinkFreeL2Clusters => Self::L2,
            Event::L1Update
            | Event::L1GrowAllocTable
            | Event::L1GrowWriteTable
            | Event::L1GrowActivateTable
            | Event::L1ShrinkWriteTable => Self::L1,
            Event::RefblockLoad
            | Event::RefblockUpdate
            | Event::RefblockUpdatePart
            | Event::RefblockAlloc
            | Event::RefblockAllocWrite
            | Event::RefblockAllocWriteBlocks
            | Event::ClusterAlloc
            | Event::ClusterAllocBytes
            | Event::ClusterFree
            | Event::ClusterAllocSpace => Self::RefcountBlock,
            Event::ReftableLoad
            | Event::ReftableGrow
            | Event::ReftableUpdate
            | Event::RefblockAllocHookup
            | Event::RefblockAllocWriteTable
            | Event::RefblockAllocSwitchTable => Self::RefcountTable,
            Event::EmptyImagePrepare | Event::None => Self::Header,
            Event::ReadAio
            | Event::ReadBackingAio
            | Event::ReadCompressed
            | Event::WriteAio
            | Event::WriteCompressed
            | Event::VmstateLoad
            | Event::VmstateSave
            | Event::CowRead
            | Event::CowWrite
            | Event::CorWrite
            | Event::FlushToOs
            | Event::FlushToDisk
            | Event::PwritevRmwHead
            | Event::PwritevRmwAfterHead
            | Event::PwritevRmwTail
            | Event::PwritevRmwAfterTail
            | Event::Pwritev
            | Event::PwritevZero
            | Event::PwritevDone => Self::Data,
        }
    }
}
