//! The header extension that points to the bitmap directory, and how it changes.
//!
//! Where the extension stands within one sector, the directory changes by one write of that sector: it comes
//! first where it is written here, and so stands in sector 0. Otherwise, and where the extension comes or goes,
//! the header is rewritten as [`crate::qcow2::rewrite`] does it: before or after, too.

use super::directory::{EXTENSION_LEN, Pointer};
use crate::barrier::Barrier;
use crate::device::{Event, SECTOR_BYTES};
use crate::error::{Error, Refused};
use crate::qcow2::extension::BITMAPS;
use crate::qcow2::header::{Extension, Header, HeaderSector, autoclear};
use crate::qcow2::metadata::Metadata;
use crate::qcow2::order::Stamp;
use crate::qcow2::unit::{HostOffset, byte_count, mem_len};

const RECORD_BYTES: u64 = 8;

/// Where the data of the extension stand, if they count and lie within one sector.
fn place(header: &Header) -> Option<u64> {
    let mut at = header.header_bytes;
    for Extension { kind, data } in &header.extensions {
        at += RECORD_BYTES;
        if *kind == BITMAPS {
            let sole = at / SECTOR_BYTES == (at + byte_count(EXTENSION_LEN) - 1) / SECTOR_BYTES;
            let usable = header.has_bitmaps() && data.len() == EXTENSION_LEN;
            return (sole && usable).then_some(at);
        }
        at += byte_count(data.len()).next_multiple_of(8);
    }
    None
}

impl Metadata {
    /// Makes the header point to a directory that `content` made complete, or to none. Durable on
    /// return; in memory nothing changes unless it succeeded.
    pub(super) async fn point_to(
        &mut self,
        pointer: Option<Pointer>,
        content: Stamp,
    ) -> Result<Stamp, Error> {
        self.order
            .barrier(Barrier::BeforeBitmapSwitch, content)
            .await?;
        let mut header = self.load_header().await?;
        if let (Some(at), Some(pointer)) = (place(&header), pointer) {
            return self.point_in_place(at, pointer).await;
        }
        header.extensions.retain(|one| one.kind != BITMAPS);
        let before = header.autoclear;
        match pointer {
            Some(pointer) => {
                let data = pointer.encode();
                let kind = BITMAPS;
                // First, it stands in sector 0, and no later change of it needs room.
                header.extensions.insert(0, Extension { kind, data });
                header.autoclear |= autoclear::BITMAPS;
            }
            None => header.autoclear &= !autoclear::BITMAPS,
        }
        match self.rewrite_header(&header).await {
            // Without its bit an extension says of itself that it is out of date.
            Err(Error::Refused(Refused::Option(_))) if pointer.is_none() => {
                if header.autoclear != before {
                    self.set_autoclear(Barrier::AfterBitmapSwitch, header.autoclear)
                        .await?;
                }
            }
            result => result?,
        }
        Ok(self.order.latest())
    }

    async fn point_in_place(&mut self, at: u64, pointer: Pointer) -> Result<Stamp, Error> {
        let start = at / SECTOR_BYTES * SECTOR_BYTES;
        let len = mem_len(SECTOR_BYTES);
        let mut bytes = if start == 0 {
            self.sector0.bytes()
        } else {
            let at = self.order.file().at(Event::None);
            at.read(start, len).await?
        };
        let within = mem_len(at - start);
        bytes[within..within + EXTENSION_LEN].copy_from_slice(&pointer.encode());
        let sector = bytes.clone();
        let written = match self
            .order
            .write(Event::None, HostOffset(start), bytes)
            .await
        {
            Ok(written) => written,
            Err(error) => {
                // The file may name either directory.
                self.order.distrust();
                return Err(error);
            }
        };
        if start == 0 {
            self.sector0 = HeaderSector::new(&sector);
        }
        self.order
            .barrier(Barrier::AfterBitmapSwitch, written)
            .await?;
        Ok(written)
    }
}
