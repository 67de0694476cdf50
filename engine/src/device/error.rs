//! Why a device did not do what it was asked.

use super::{Event, Op, OpKind};

/// A request that failed. It may have been carried out in part.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{} at offset {offset:#x}, {len_bytes} bytes: {cause}", kind.name(), event_suffix(*event))]
pub struct DeviceError {
    /// On whose behalf the request was made.
    pub event: Event,
    /// What was asked.
    pub kind: OpKind,
    /// Where, in bytes.
    pub offset: u64,
    /// How much, in bytes.
    pub len_bytes: u64,
    /// What went wrong.
    pub cause: Cause,
}

/// What went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    /// The operating system, or a fault that stands for it, said so: a positive Linux errno.
    #[error("{}", errno_text(*.0))]
    Os(i32),
    /// The power is off.
    #[error("the power is off")]
    PowerOff,
    /// The request does not fit the device's [`super::Limits`] or address range.
    #[error("the request does not fit the device's alignment or size limits")]
    BadRequest,
    /// The device was opened for reading only.
    #[error("the device is read-only")]
    ReadOnly,
}

impl Cause {
    /// `EIO`
    pub const IO: Self = Self::Os(5);
    /// `ENOSPC`
    pub const NO_SPACE: Self = Self::Os(28);
}

impl DeviceError {
    /// The failure of `op`.
    pub fn new(event: Event, op: &Op, cause: Cause) -> Self {
        let (offset, len_bytes) = op.range();
        Self {
            event,
            kind: op.kind(),
            offset,
            len_bytes,
            cause,
        }
    }
}

fn event_suffix(event: Event) -> String {
    if event == Event::None {
        String::new()
    } else {
        format!(" ({event})")
    }
}

fn errno_text(errno: i32) -> String {
    std::io::Error::from_raw_os_error(errno).to_string()
}
