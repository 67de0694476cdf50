//! The state of a virtual machine, which a snapshot may keep beside the disk.
//!
//! It is mapped like guest data, from the first L1 entry behind the disk on. Nothing lies beneath it:
//! what was never written there is zero.

use crate::error::{Error, Refused};
use crate::qcow2::image::Qcow2;
use crate::qcow2::unit::{byte_count, mem_len};
use crate::sync::Mode;

impl Qcow2 {
    /// Where VM state starts, as a guest offset.
    pub(in crate::qcow2) fn vm_state_start(&self) -> u64 {
        let entries = self.geometry.l1_entries_for(self.virtual_bytes.get());
        entries * self.geometry.l1_span_bytes()
    }

    /// Writes VM state, for the snapshot that is taken next. `offset` and the length of `data` are
    /// multiples of 512.
    pub async fn write_vm_state(&self, offset: u64, data: Vec<u8>) -> Result<(), Error> {
        self.access.must_allow_writes()?;
        self.must_hold_its_data()?;
        let (start, end) = self.vm_state_range(offset, data.len())?;
        let _all = self.claims.lock(0..u64::MAX, Mode::Exclusive).await;
        {
            let mut metadata = self.metadata.lock().await;
            metadata.must_be_sound()?;
            let entries = end.div_ceil(self.geometry.l1_span_bytes());
            if entries > byte_count(metadata.l1.len()) {
                metadata.grow_l1(entries).await?;
            }
        }
        self.write_claimed(start, data).await
    }

    /// Reads VM state: of the snapshot that was applied last, or that the image was opened at.
    pub async fn read_vm_state(&self, offset: u64, len_bytes: usize) -> Result<Vec<u8>, Error> {
        let (start, _) = self.vm_state_range(offset, len_bytes)?;
        let mut data = vec![0; len_bytes];
        let len = byte_count(len_bytes);
        let _claim = self.claim(start, len.max(1), Mode::Shared).await;
        let mapped = {
            let metadata = self.metadata.lock().await;
            byte_count(metadata.l1.len()) * self.geometry.l1_span_bytes()
        };
        let there = mem_len(mapped.saturating_sub(start).min(len));
        self.read_claimed(start, &mut data[..there]).await?;
        Ok(data)
    }

    fn vm_state_range(&self, offset: u64, len_bytes: usize) -> Result<(u64, u64), Error> {
        let len_bytes = byte_count(len_bytes);
        let start = self.vm_state_start().checked_add(offset);
        let end = start.and_then(|start| start.checked_add(len_bytes));
        if !offset.is_multiple_of(512) || !len_bytes.is_multiple_of(512) {
            return Err(Refused::Unaligned { offset, len_bytes }.into());
        }
        start.zip(end).ok_or_else(|| {
            let virtual_bytes = self.virtual_bytes.get();
            Refused::OutOfRange {
                offset,
                len_bytes,
                virtual_bytes,
            }
            .into()
        })
    }
}
