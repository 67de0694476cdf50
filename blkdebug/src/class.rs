//! What a request's event says about the bytes it carries.
//!
//! These are groups of event names, which say that much by themselves; nothing is known here of what the bytes mean.

use engine::device::{Event, OpKind};

use crate::record::Entry;

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
    /// Every class, in declaration order.
    pub const ALL: [Self; 7] = [
        Self::Data,
        Self::L2,
        Self::L1,
        Self::RefcountBlock,
        Self::RefcountTable,
        Self::Header,
        Self::Length,
    ];

    /// The name used in rules, traces and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::L2 => "l2",
            Self::L1 => "l1",
            Self::RefcountBlock => "refcount-block",
            Self::RefcountTable => "refcount-table",
            Self::Header => "header",
            Self::Length => "length",
        }
    }

    /// The class of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.name() == name)
    }

    /// The class of a request.
    pub fn of(entry: &Entry) -> Self {
        Self::of_request(entry.event, entry.op.kind())
    }

    /// The class of a request with this event and of this kind.
    pub fn of_request(event: Event, kind: OpKind) -> Self {
        if kind == OpKind::SetLen {
            return Self::Length;
        }
        Self::of_event(event)
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
