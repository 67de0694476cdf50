//! Devices that stand between a format and its file.

use engine::device::{Completion, Device, Event, Extent, FileDevice, Limits, Op, Reply, Request};

use super::CacheMode;

/// A file under a cache mode.
#[derive(Debug)]
pub(crate) struct CachedFile {
    file: FileDevice,
    mode: CacheMode,
}

impl CachedFile {
    pub(crate) fn new(file: FileDevice, mode: CacheMode) -> Self {
        Self { file, mode }
    }
}

impl Device for CachedFile {
    fn submit(&self, request: Request) -> Completion {
        match (self.mode, request.op) {
            (CacheMode::Unsafe, Op::Flush) => Completion::ready(Ok(Reply::Done)),
            (CacheMode::Unsafe, Op::Write { offset, data, .. }) => self.file.submit(Request {
                event: request.event,
                op: Op::Write {
                    offset,
                    data,
                    fua: false,
                },
            }),
            (CacheMode::WriteBack | CacheMode::WriteThrough | CacheMode::Unsafe, op) => {
                self.file.submit(Request {
                    event: request.event,
                    op,
                })
            }
        }
    }

    fn reach(&self, event: Event) -> Completion {
        self.file.reach(event)
    }

    fn extent(&self, offset: u64) -> Extent {
        self.file.extent(offset)
    }

    fn len(&self) -> u64 {
        self.file.len()
    }

    fn limits(&self) -> Limits {
        self.file.limits()
    }
}
