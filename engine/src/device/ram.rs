//! A device in memory that completes every request at once and never forgets.

use std::cell::RefCell;

use super::{Cause, Completion, Device, DeviceError, Op, Outcome, PageImage, Reply, Request};

/// A [`PageImage`] behind the [`Device`] seam.
#[derive(Debug, Default)]
pub struct RamDevice {
    image: RefCell<PageImage>,
}

impl RamDevice {
    /// A device that starts with the content of `image`.
    pub fn new(image: PageImage) -> Self {
        Self {
            image: RefCell::new(image),
        }
    }

    /// The content as it stands; cheap, the pages are shared.
    pub fn snapshot(&self) -> PageImage {
        self.image.borrow().clone()
    }
}

impl Device for RamDevice {
    fn submit(&self, request: Request) -> Completion {
        Completion::ready(perform(&mut self.image.borrow_mut(), &request))
    }

    fn len(&self) -> u64 {
        self.image.borrow().len()
    }
}

fn perform(image: &mut PageImage, request: &Request) -> Outcome {
    let (offset, len_bytes) = request.op.range();
    if offset
        .checked_add(len_bytes)
        .is_none_or(|end| end > PageImage::MAX_LEN)
    {
        return Err(DeviceError::new(
            request.event,
            &request.op,
            Cause::BadRequest,
        ));
    }
    match &request.op {
        Op::Read { offset, len_bytes } => {
            return Ok(Reply::Data(image.read_vec(*offset, *len_bytes)));
        }
        Op::Write { offset, data, .. } => image.write(*offset, data),
        Op::WriteZeroes {
            offset, len_bytes, ..
        } => image.write_zeroes(*offset, *len_bytes),
        Op::Discard { offset, len_bytes } => {
            let end = (offset + len_bytes).min(image.len());
            if *offset < end {
                image.write_zeroes(*offset, end - offset);
            }
        }
        Op::Flush => {}
        Op::SetLen { len_bytes } => image.set_len(*len_bytes),
    }
    Ok(Reply::Done)
}
