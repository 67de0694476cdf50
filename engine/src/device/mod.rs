//! The seam between the formats and whatever stores their bytes.
//!
//! A [`Device`] takes a [`Request`] with owned buffers and hands back a [`Completion`], a future of
//! its [`Outcome`]. The vocabulary is closed: six operations ([`Op`]) and the 48 event names of
//! QEMU's blkdebug ([`Event`]), which say on whose behalf a request is made.
//!
//! What every device promises, so that formats need not ask:
//! - a read beyond the end yields zeroes, and never grows anything;
//! - a write beyond the end grows the device, and what lies between reads zero;
//! - nothing happens in submission order unless the caller waits for one completion before it
//!   submits the next; only a flush says anything about durability: it covers the requests that
//!   had *completed* when it was submitted.

mod claim;
mod completion;
mod error;
mod event;
mod file;
mod page_image;
mod port;
mod ram;
mod request;

pub use claim::{Claim, ClaimError, FileClaims, Permission};
pub use completion::{Completer, Completion, Outcome, Reply, drive};
pub use error::{Cause, DeviceError};
pub use event::Event;
pub use file::FileDevice;
pub use page_image::{
    ContentHash, PageImage, RunningHash, SectorHash, SectorRun, StoredSectors, sector_hash,
};
pub use port::{At, Port};
pub use ram::RamDevice;
pub use request::{Extent, ExtentKind, Limits, Op, OpKind, Request, Unmapped};

use crate::probe::Probe;

/// Bytes in a sector: the unit in which a disk writes atomically.
pub const SECTOR_BYTES: u64 = 512;

/// Something that stores bytes, and may take its time.
pub trait Device {
    /// Hands a request to the device. Dropping the completion does not take the request back.
    fn submit(&self, request: Request) -> Completion;

    /// Announces that the caller stands at `event`, where no request is due. A device below may
    /// park the caller there, or let the event arm a fault.
    fn reach(&self, event: Event) -> Completion {
        let _ = event;
        Completion::ready(Ok(Reply::Done))
    }

    /// Is told that the engine stands in a rare situation. Nothing comes of it but that it can be counted.
    fn note(&self, probe: Probe) {
        let _ = probe;
    }

    /// The length in bytes, with the effect of every request that has completed.
    fn len(&self) -> u64;

    /// What stands at `offset`, and how far that goes. A device that does not know says data up to its
    /// end; behind the end there is a hole without end.
    fn extent(&self, offset: u64) -> Extent {
        Extent::in_device_of(self.len(), offset)
    }

    /// Whether the device holds no byte at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What requests must look like to be taken.
    fn limits(&self) -> Limits {
        Limits::default()
    }
}
