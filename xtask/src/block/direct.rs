//! A raw disk over a filter: requests go down byte by byte, as QEMU's raw format passes them on.
//!
//! Over a local file it makes no difference whether a disk asks in sectors or in bytes. blkdebug counts
//! requests, and its events tell them apart; so nothing is rounded here but what was probed, and a write that
//! is to be durable is told so instead of being followed by a flush.

use std::rc::Rc;

use blkdebug::config::BlockLimits;
use blkdebug::filter::Filter;
use blkdebug::layer::{Driver, Layer};
use engine::device::{
    Cause, DeviceError, Event, Extent, Limits, Op, Outcome, Port, Reply, Request, SECTOR_BYTES,
};
use engine::error::Error;

use super::disk::{Durable, Fallback};

/// What stands between a guest and a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Top {
    /// The raw format, which the caller named.
    Named,
    /// The raw format, which was found: it rounds to sectors.
    Probed,
    /// Nothing: the filter itself is the disk.
    Nothing,
}

/// A raw disk over a filter.
#[derive(Clone, Debug)]
pub(crate) struct Direct {
    layer: Layer<Raw>,
    filter: Option<Filter>,
}

/// The raw format as the block layer sees it.
#[derive(Debug)]
struct Raw {
    file: Port,
    top: Top,
    limits: BlockLimits,
    writes_through: bool,
}

impl Direct {
    /// A disk over `file`. `filter` is blkdebug where that is what `file` is, and not something else.
    pub(crate) fn new(file: Port, filter: Option<Filter>, top: Top) -> Self {
        let below = filter
            .as_ref()
            .map(Filter::block_limits)
            .unwrap_or_default();
        let align = match top {
            Top::Probed => SECTOR_BYTES,
            Top::Named | Top::Nothing => 1,
        };
        let raw = Raw {
            file,
            top,
            limits: BlockLimits {
                align,
                max_transfer: below.max_transfer,
                ..BlockLimits::default()
            },
            writes_through: filter.is_some(),
        };
        Self {
            layer: Layer::new(raw),
            filter,
        }
    }

    /// The disk as a device.
    pub(crate) fn port(&self) -> Port {
        Port::new(Rc::new(self.layer.clone()))
    }

    /// The length of the disk in bytes.
    pub(crate) fn virtual_bytes(&self) -> u64 {
        self.port().len().next_multiple_of(SECTOR_BYTES)
    }

    pub(crate) async fn read(&self, offset: u64, len_bytes: usize) -> Result<Vec<u8>, Error> {
        Ok(self.port().at(Event::None).read(offset, len_bytes).await?)
    }

    pub(crate) async fn write(
        &self,
        offset: u64,
        data: Vec<u8>,
        durable: Durable,
    ) -> Result<(), Error> {
        let port = self.port();
        let at = port.at(Event::None);
        match durable {
            Durable::AtOnce => at.write_fua(offset, data).await?,
            Durable::ByCacheMode => at.write(offset, data).await?,
        }
        Ok(())
    }

    pub(crate) async fn write_zeroes(
        &self,
        offset: u64,
        len_bytes: u64,
        unmap: bool,
        fallback: Fallback,
        durable: Durable,
    ) -> Result<(), Error> {
        let mut end = offset + len_bytes;
        let refused = match fallback {
            Fallback::Allowed => false,
            Fallback::Refused => self.needs_bytes(offset, &mut end),
        };
        if offset < end {
            let through = durable == Durable::AtOnce;
            self.layer
                .write_zeroes(offset, end - offset, unmap, through)
                .await?;
        }
        if refused {
            let op = Op::WriteZeroes {
                offset,
                len_bytes,
                unmap,
            };
            const NOT_SUPPORTED: Cause = Cause::Os(95);
            return Err(DeviceError::new(Event::None, &op, NOT_SUPPORTED).into());
        }
        Ok(())
    }

    /// Whether a part of these zeroes cannot be written but as bytes; `end` becomes the end of what can be.
    fn needs_bytes(&self, start: u64, end: &mut u64) -> bool {
        let Some(filter) = &self.filter else {
            *end = start;
            return true;
        };
        let limits = filter.block_limits();
        let fine = limits.align.max(1);
        let unit = fine.max(limits.opt_write_zero);
        let is_fine = start.is_multiple_of(fine) && end.is_multiple_of(fine);
        if is_fine && start.is_multiple_of(unit) && end.is_multiple_of(unit) {
            return false;
        }
        *end = if is_fine && start.is_multiple_of(unit) {
            *end - *end % unit
        } else {
            start
        };
        true
    }

    pub(crate) async fn discard(&self, offset: u64, len_bytes: u64) -> Result<(), Error> {
        Ok(self
            .port()
            .at(Event::None)
            .discard(offset, len_bytes)
            .await?)
    }
}

impl Raw {
    async fn ask(&self, event: Event, op: Op) -> Outcome {
        let event = match self.top {
            Top::Named | Top::Probed => event,
            Top::Nothing => Event::None,
        };
        self.file.device().submit(Request { event, op }).await
    }

    async fn announce(&self, event: Event) -> Outcome {
        match self.top {
            Top::Named | Top::Probed => self.file.device().reach(event).await,
            Top::Nothing => Ok(Reply::Done),
        }
    }
}

impl Driver for Raw {
    fn limits(&self) -> BlockLimits {
        self.limits
    }

    fn writes_through(&self) -> bool {
        self.writes_through
    }

    /// What the block layer tells the format, the format tells nobody.
    async fn meet(&self, _: Event) {}

    async fn carry_out(&self, request: Request) -> Outcome {
        let event = match request.op {
            Op::Read { .. } => Event::ReadAio,
            Op::Write { .. } => Event::WriteAio,
            Op::Flush => {
                self.announce(Event::FlushToOs).await?;
                self.announce(Event::FlushToDisk).await?;
                Event::None
            }
            Op::WriteZeroes { .. } | Op::Discard { .. } | Op::SetLen { .. } => Event::None,
        };
        self.ask(event, request.op).await
    }

    async fn flush_unchanged(&self, _: Event) -> Outcome {
        self.announce(Event::FlushToOs).await?;
        self.ask(Event::None, Op::Flush).await
    }

    async fn reach(&self, event: Event) -> Outcome {
        self.announce(event).await
    }

    fn len(&self) -> u64 {
        self.file.len()
    }

    fn extent(&self, offset: u64) -> Extent {
        self.file.extent(offset)
    }

    fn device_limits(&self) -> Limits {
        self.file.limits()
    }
}
