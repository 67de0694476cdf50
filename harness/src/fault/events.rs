//! The event points that the engine raises, and those that it does not.

use engine::device::Event;

/// How a format raises an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Raised {
    /// With a request, which can be made to fail.
    WithRequest,
    /// By itself: what can be made to fail is the request that follows.
    Alone,
    /// Not at all, and why.
    Never(&'static str),
}

/// How the engine's qcow2 raises an event.
pub fn raised(event: Event) -> Raised {
    match event {
        Event::L1Update
        | Event::L1GrowWriteTable
        | Event::L1GrowActivateTable
        | Event::L2Load
        | Event::L2Update
        | Event::L2AllocCowRead
        | Event::L2AllocWrite
        | Event::ReadAio
        | Event::ReadCompressed
        | Event::WriteAio
        | Event::WriteCompressed
        | Event::CowRead
        | Event::ReftableLoad
        | Event::RefblockLoad
        | Event::RefblockUpdatePart
        | Event::RefblockAllocHookup
        | Event::RefblockAllocWrite
        | Event::RefblockAllocWriteBlocks
        | Event::RefblockAllocWriteTable
        | Event::RefblockAllocSwitchTable
        | Event::ClusterFree
        | Event::FlushToDisk
        | Event::PwritevZero
        | Event::EmptyImagePrepare
        | Event::None => Raised::WithRequest,
        Event::L1GrowAllocTable
        | Event::ReadBackingAio
        | Event::ReftableGrow
        | Event::RefblockAlloc
        | Event::ClusterAlloc
        | Event::FlushToOs => Raised::Alone,
        Event::ReftableUpdate => {
            Raised::Never("written once, as an image is created: the table is grown by switching")
        }
        Event::RefblockUpdate => Raised::Never("QEMU does not raise it either"),
        Event::L2UpdateCompressed => {
            Raised::Never("compressed clusters are linked with all others, by l2_update")
        }
        Event::CowWrite => {
            Raised::Never("what is copied is written with the guest's bytes, by write_aio")
        }
        Event::VmstateLoad | Event::VmstateSave => {
            Raised::Never("the VM state of a snapshot is not read or written")
        }
        Event::ClusterAllocBytes => {
            Raised::Never("compressed bytes take whole clusters by cluster_alloc")
        }
        Event::ClusterAllocSpace => {
            Raised::Never("new clusters read as zeroes or are written whole")
        }
        Event::L1ShrinkWriteTable | Event::L1ShrinkFreeL2Clusters => {
            Raised::Never("a smaller disk gives its L1 entries up by l1_update")
        }
        Event::CorWrite => Raised::Never(
            "of QEMU's block layer: what is copied on read is written by write_aio, as below QEMU's qcow2",
        ),
        Event::PwritevRmwHead
        | Event::PwritevRmwAfterHead
        | Event::PwritevRmwTail
        | Event::PwritevRmwAfterTail
        | Event::Pwritev
        | Event::PwritevDone => Raised::Never(
            "of QEMU's block layer, which aligns requests: those of the engine are whole sectors",
        ),
    }
}
