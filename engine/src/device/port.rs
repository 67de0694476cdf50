//! How a format talks to its device: each request carries its cause.
//!
//! `file.at(Event::L2Update).write(offset, data).await?`

use std::fmt;
use std::rc::Rc;

use super::{Device, DeviceError, Event, Extent, Limits, Op, Reply, Request};
use crate::probe::Probe;

/// A device as the formats hold it.
#[derive(Clone)]
pub struct Port(Rc<dyn Device>);

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Port")
            .field("len", &self.0.len())
            .finish_non_exhaustive()
    }
}

/// A device as seen from one event point.
#[derive(Clone, Copy, Debug)]
pub struct At<'a> {
    port: &'a Port,
    event: Event,
}

impl Port {
    /// Wraps a device.
    pub fn new(device: Rc<dyn Device>) -> Self {
        Self(device)
    }

    /// The device itself, for one that stands before it.
    pub fn device(&self) -> Rc<dyn Device> {
        Rc::clone(&self.0)
    }

    /// The device, with `event` as the cause of what follows.
    pub fn at(&self, event: Event) -> At<'_> {
        At { port: self, event }
    }

    /// The length of the device in bytes.
    pub fn len(&self) -> u64 {
        self.0.len()
    }

    /// What stands at `offset`, and how far that goes.
    pub fn extent(&self, offset: u64) -> Extent {
        self.0.extent(offset)
    }

    /// Tells the device that the engine stands in a rare situation.
    #[cfg(feature = "defects")]
    pub fn note(&self, probe: Probe) {
        self.0.note(probe);
    }

    /// Tells the device that the engine stands in a rare situation: nobody counts, in this build.
    #[cfg(not(feature = "defects"))]
    #[allow(clippy::unused_self, reason = "the same call in every build")]
    pub fn note(&self, _: Probe) {}

    /// Whether the device holds no byte at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What requests must look like to be taken.
    pub fn limits(&self) -> Limits {
        self.0.limits()
    }
}

impl At<'_> {
    async fn request(self, op: Op) -> Result<Reply, DeviceError> {
        self.port
            .0
            .submit(Request {
                event: self.event,
                op,
            })
            .await
    }

    /// Reads exactly `len_bytes` bytes; what lies beyond the end is zero.
    pub async fn read(self, offset: u64, len_bytes: usize) -> Result<Vec<u8>, DeviceError> {
        match self.request(Op::Read { offset, len_bytes }).await? {
            Reply::Data(data) => {
                assert_eq!(data.len(), len_bytes, "a read is answered in full");
                Ok(data)
            }
            Reply::Done => unreachable!("a read is answered with data"),
        }
    }

    /// Writes into the device's volatile cache.
    pub async fn write(self, offset: u64, data: Vec<u8>) -> Result<(), DeviceError> {
        self.request(Op::Write {
            offset,
            data,
            fua: false,
        })
        .await
        .map(drop)
    }

    /// Writes through to the medium: durable on return, with no promise for any other request.
    pub async fn write_fua(self, offset: u64, data: Vec<u8>) -> Result<(), DeviceError> {
        self.request(Op::Write {
            offset,
            data,
            fua: true,
        })
        .await
        .map(drop)
    }

    /// Makes a range read as zeroes.
    pub async fn write_zeroes(
        self,
        offset: u64,
        len_bytes: u64,
        unmap: bool,
    ) -> Result<(), DeviceError> {
        self.request(Op::WriteZeroes {
            offset,
            len_bytes,
            unmap,
        })
        .await
        .map(drop)
    }

    /// Gives up the content of a range.
    pub async fn discard(self, offset: u64, len_bytes: u64) -> Result<(), DeviceError> {
        self.request(Op::Discard { offset, len_bytes })
            .await
            .map(drop)
    }

    /// Makes durable what had completed before.
    pub async fn flush(self) -> Result<(), DeviceError> {
        self.request(Op::Flush).await.map(drop)
    }

    /// Sets the length of the device.
    pub async fn set_len(self, len_bytes: u64) -> Result<(), DeviceError> {
        self.request(Op::SetLen { len_bytes }).await.map(drop)
    }

    /// Announces the event where no request is due.
    pub async fn reach(self) -> Result<(), DeviceError> {
        self.port.0.reach(self.event).await.map(drop)
    }
}
