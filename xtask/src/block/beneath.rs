//! An image as the device of a filter: what a guest of it would see.

use engine::device::{
    Cause, Completion, Device, DeviceError, Event, Extent, ExtentKind, Op, Reply, Request,
};
use engine::error::Error;
use engine::image::{StatusKind, Unmap};

use super::disk::{Disk, Durable, Fallback, ReadMode};
use super::failure::errno;
use super::open::at_once;
use super::{CacheMode, Node};

/// An open image.
pub(crate) struct ImageDevice {
    node: Node,
    disk: Disk,
}

impl ImageDevice {
    /// The disk of `node`. Only what is to be durable at once is.
    pub(crate) fn new(node: Node) -> Self {
        let disk = Disk::new(&node, CacheMode::WriteBack, ReadMode::Plain);
        Self { node, disk }
    }
}

impl Drop for ImageDevice {
    fn drop(&mut self) {
        // Whoever needs to know asked for a flush before.
        let _ = engine::device::drive(self.node.image().close());
    }
}

impl Device for ImageDevice {
    fn submit(&self, request: Request) -> Completion {
        let disk = self.disk.clone();
        Completion::of(async move {
            let Request { event, op } = request;
            let kept = without_data(&op);
            let done = carry_out(&disk, op).await;
            done.map_err(|error| match error {
                Error::Device(error) => error,
                Error::Unsupported(_) | Error::Refused(_) | Error::BadImage(_) => {
                    DeviceError::new(event, &kept, Cause::Os(errno(&error)))
                }
            })
        })
    }

    fn reach(&self, _: Event) -> Completion {
        Completion::ready(Ok(Reply::Done))
    }

    fn len(&self) -> u64 {
        self.node.virtual_bytes()
    }

    fn extent(&self, offset: u64) -> Extent {
        let len_bytes = self.len();
        let rest = len_bytes.saturating_sub(offset);
        if rest == 0 {
            return Extent::in_device_of(len_bytes, offset);
        }
        match at_once(self.node.image().status(offset, rest)) {
            Ok(status) => Extent {
                kind: match status.kind {
                    StatusKind::Zero => ExtentKind::Hole,
                    StatusKind::Data | StatusKind::Compressed | StatusKind::Unallocated => {
                        ExtentKind::Data
                    }
                },
                len_bytes: status.len_bytes,
            },
            Err(_) => Extent::in_device_of(len_bytes, offset),
        }
    }
}

/// The same request for a message, which says how much but not what.
fn without_data(op: &Op) -> Op {
    match op {
        Op::Write { offset, data, .. } => Op::WriteZeroes {
            offset: *offset,
            len_bytes: u64::try_from(data.len()).expect("a buffer's length fits 64 bits"),
            unmap: false,
        },
        other @ (Op::Read { .. }
        | Op::WriteZeroes { .. }
        | Op::Discard { .. }
        | Op::Flush
        | Op::SetLen { .. }) => other.clone(),
    }
}

async fn carry_out(disk: &Disk, op: Op) -> Result<Reply, Error> {
    match op {
        Op::Read { offset, len_bytes } => {
            return Ok(Reply::Data(disk.read(offset, len_bytes).await?));
        }
        Op::Write { offset, data, fua } => {
            let durable = if fua {
                Durable::AtOnce
            } else {
                Durable::ByCacheMode
            };
            disk.write(offset, data, durable).await?;
        }
        Op::WriteZeroes {
            offset,
            len_bytes,
            unmap,
        } => {
            let unmap = if unmap { Unmap::Allow } else { Unmap::Keep };
            let durable = Durable::ByCacheMode;
            disk.write_zeroes(offset, len_bytes, unmap, Fallback::Allowed, durable)
                .await?;
        }
        Op::Discard { offset, len_bytes } => disk.discard(offset, len_bytes).await?,
        Op::Flush => disk.flush().await?,
        Op::SetLen { .. } => {
            let text = "an image has the length that it was made with";
            return Err(engine::error::Refused::NotByFormat(text).into());
        }
    }
    Ok(Reply::Done)
}
