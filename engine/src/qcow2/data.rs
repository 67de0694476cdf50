//! Where guest data move: every byte of the guest's that is not compressed passes here.
//!
//! Callers name both the host offset and the guest offset of a range: what a byte looks like in the
//! file may depend on either.

use super::image::Qcow2;
use super::order::Stamp;
use super::unit::{HostOffset, byte_count, mem_len};
use crate::device::Event;
use crate::error::Error;
use crate::image::Unmap;

/// A stretch of guest data: where it stands and what the guest calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) host: HostOffset,
    pub(super) guest: u64,
}

impl Place {
    /// The place `bytes` bytes further on.
    pub(super) fn plus(self, bytes: u64) -> Self {
        Self {
            host: HostOffset(self.host.0 + bytes),
            guest: self.guest + bytes,
        }
    }
}

impl Qcow2 {
    /// Reads guest data.
    pub(super) async fn read_data(
        &self,
        event: Event,
        from: Place,
        len_bytes: usize,
    ) -> Result<Vec<u8>, Error> {
        let at = self.order.data_file().at(event);
        let mut data = at.read(from.host.0, len_bytes).await?;
        if let Some(crypto) = &self.crypto {
            crypto.decrypt(from, &mut data);
        }
        Ok(data)
    }

    /// Writes guest data.
    pub(super) async fn write_data(&self, to: Place, mut data: Vec<u8>) -> Result<Stamp, Error> {
        data.truncate(mem_len(self.room_at(to, byte_count(data.len()))));
        if data.is_empty() {
            return Ok(Stamp::default());
        }
        if let Some(crypto) = &self.crypto {
            crypto.encrypt(to, &mut data);
        }
        self.order.write_data(Event::WriteAio, to.host, data).await
    }

    /// Makes guest data read as zeroes where they stand.
    pub(super) async fn zero_data(&self, at: Place, len_bytes: u64) -> Result<Stamp, Error> {
        if self.crypto.is_some() {
            // What the file has as zeroes would not read as zeroes.
            return self.write_data(at, vec![0; mem_len(len_bytes)]).await;
        }
        let len_bytes = self.room_at(at, len_bytes);
        if len_bytes == 0 {
            return Ok(Stamp::default());
        }
        self.order
            .zero_data(Event::PwritevZero, at.host, len_bytes, Unmap::Keep)
            .await
    }

    /// How much of a range may be written: an external data file does not outgrow the disk, whose last
    /// cluster it need not hold as a whole.
    fn room_at(&self, at: Place, len_bytes: u64) -> u64 {
        if self.geometry.has_external_data() {
            let end = self.virtual_bytes.get().max(self.growing_to.get());
            len_bytes.min(end.saturating_sub(at.guest))
        } else {
            len_bytes
        }
    }
}
