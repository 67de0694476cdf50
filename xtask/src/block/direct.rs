//! A raw disk over a filter: requests go down byte by byte, as QEMU's raw format passes them on.
//!
//! Over a local file it makes no difference whether a disk asks in sectors or in bytes. blkdebug counts
//! requests, and its events tell them apart; so nothing is rounded here but what was probed, and a write that
//! is to be durable is told so instead of being followed by a flush.

use std::fmt;
use std::rc::Rc;

use blkdebug::config::BlockLimits;
use blkdebug::filter::Filter;
use blkdebug::layer::{Driver, Layer};
use blkdebug::verify::Verify;
use engine::device::{
    Cause, Completion, Device, DeviceError, Event, Extent, Limits, Op, Outcome, Port, Reply,
    Request, SECTOR_BYTES,
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
    way: Way,
    filter: Option<Filter>,
}

/// The filter that is a disk, or stands below the raw format.
#[derive(Clone, Debug)]
pub(crate) enum Below {
    Blkdebug(Filter),
    Blkverify(Verify),
    /// An image, which no filter stands before.
    Image(Port),
}

/// Where requests go.
#[derive(Clone, Debug)]
enum Way {
    Format(Layer<Raw>),
    Filter(Below),
}

/// A filter that nobody above tells of events.
struct Bare(Rc<dyn Device>);

const NOT_SUPPORTED: Cause = Cause::Os(95);

/// The raw format as the block layer sees it.
struct Raw {
    file: Rc<dyn Device>,
    limits: BlockLimits,
    writes_through: bool,
}

impl Below {
    fn device(&self) -> Rc<dyn Device> {
        match self {
            Self::Blkdebug(filter) => Rc::new(filter.clone()),
            Self::Blkverify(verify) => Rc::new(verify.clone()),
            Self::Image(port) => port.device(),
        }
    }
}

impl Direct {
    /// A disk over a filter.
    pub(crate) fn new(below: Below, top: Top) -> Self {
        let filter = match &below {
            Below::Blkdebug(filter) => Some(filter.clone()),
            Below::Blkverify(_) | Below::Image(_) => None,
        };
        let align = match top {
            Top::Probed => SECTOR_BYTES,
            Top::Named => 1,
            Top::Nothing => {
                let way = Way::Filter(below);
                return Self { way, filter };
            }
        };
        let limits = filter.as_ref().map(Filter::block_limits);
        let raw = Raw {
            file: below.device(),
            limits: BlockLimits {
                align,
                max_transfer: limits.unwrap_or_default().max_transfer,
                ..BlockLimits::default()
            },
            writes_through: filter.is_some(),
        };
        let way = Way::Format(Layer::before(raw));
        Self { way, filter }
    }

    /// The disk as a device.
    pub(crate) fn port(&self) -> Port {
        match &self.way {
            Way::Format(layer) => Port::new(Rc::new(layer.clone())),
            Way::Filter(below) => Port::new(Rc::new(Bare(below.device()))),
        }
    }

    /// blkdebug, where that is what the disk stands on.
    pub(crate) fn filter(&self) -> Option<&Filter> {
        self.filter.as_ref()
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
            self.zero(offset, end - offset, unmap, through).await?;
        }
        if refused {
            let op = Op::WriteZeroes {
                offset,
                len_bytes,
                unmap,
            };
            return Err(DeviceError::new(Event::None, &op, NOT_SUPPORTED).into());
        }
        Ok(())
    }

    async fn zero(&self, offset: u64, len_bytes: u64, unmap: bool, through: bool) -> Outcome {
        match &self.way {
            Way::Format(layer) => layer.write_zeroes(offset, len_bytes, unmap, through).await,
            Way::Filter(Below::Blkdebug(filter)) => {
                filter.write_zeroes(offset, len_bytes, unmap, through).await
            }
            Way::Filter(Below::Blkverify(verify)) => {
                verify.write_zeroes(offset, len_bytes, unmap, through).await
            }
            Way::Filter(Below::Image(port)) => {
                let at = port.at(Event::None);
                at.write_zeroes(offset, len_bytes, unmap).await?;
                if through {
                    at.flush().await?;
                }
                Ok(Reply::Done)
            }
        }
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

impl Device for Bare {
    fn submit(&self, request: Request) -> Completion {
        let (event, op) = (Event::None, request.op);
        self.0.submit(Request { event, op })
    }

    fn len(&self) -> u64 {
        self.0.len()
    }

    fn extent(&self, offset: u64) -> Extent {
        self.0.extent(offset)
    }

    fn limits(&self) -> Limits {
        self.0.limits()
    }
}

impl fmt::Debug for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Raw")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

impl Raw {
    async fn ask(&self, event: Event, op: Op) -> Outcome {
        self.file.submit(Request { event, op }).await
    }

    async fn announce(&self, event: Event) -> Outcome {
        self.file.reach(event).await
    }
}

impl Driver for Raw {
    fn below(&self) -> &Rc<dyn Device> {
        &self.file
    }

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
}
