//! When bitmaps reach the file: taken into use before the first change, stored anew at a clean close and
//! by every operation on them.

use std::ops::Range;
use std::rc::Rc;

use super::directory::{self, Pointer};
use super::table::{Plan, entries_for};
use super::{Bitmap, Content, Standing, Taken};
use crate::barrier::Barrier;
use crate::defect::Defect;
use crate::device::{Event, SECTOR_BYTES};
use crate::error::{Error, Refused};
use crate::qcow2::discards::Source;
use crate::qcow2::free::Unlink;
use crate::qcow2::header::{Header, autoclear};
use crate::qcow2::metadata::Metadata;
use crate::qcow2::order::Stamp;
use crate::qcow2::unit::{HostCluster, HostOffset, byte_count, mem_len};

/// Clusters that stand together.
pub(super) type Run = (HostCluster, u64);

/// What storing takes and what it leaves behind.
struct Turnover {
    taken: Vec<Run>,
    left: Vec<Run>,
}

impl Metadata {
    /// Clears the autoclear bits of what is not kept up here, and the extension of bitmaps that are out
    /// of date. The rest of the header stays as it is.
    pub(in crate::qcow2) async fn settle_autoclear(
        &mut self,
        header: &Header,
    ) -> Result<(), Error> {
        let keep = if header.has_bitmaps() {
            autoclear::BITMAPS
        } else {
            0
        };
        let raw = if header.has_raw_data_file() {
            autoclear::RAW_DATA_FILE
        } else {
            0
        };
        if header.autoclear & !(keep | raw) != 0 {
            self.set_autoclear(Barrier::ClearedAutoclear, header.autoclear & (keep | raw))
                .await?;
        }
        let stale = keep == 0 && header.extension(super::extension::BITMAPS).is_some();
        if stale {
            self.point_to(None, Stamp::default()).await?;
        }
        Ok(())
    }

    /// Rule 20: sets the bits of a range that is about to change.
    pub(in crate::qcow2) async fn record_change(
        &mut self,
        offset: u64,
        len_bytes: u64,
    ) -> Result<(), Error> {
        if !self.bitmaps.tracks() {
            return Ok(());
        }
        if self.bitmaps.list_in_doubt {
            // The file may call a bitmap clean that is not so here, or not known at all.
            self.order.must_be_trusted()?;
        }
        self.take_into_use(Taken::Enabled).await?;
        for bitmap in &mut self.bitmaps.list {
            if bitmap.is_tracked()
                && let Some(bits) = bitmap.bits_mut()
            {
                bits.set(offset, len_bytes);
                bitmap.changed = true;
            }
        }
        Ok(())
    }

    /// Makes the file say durably that clean bitmaps are about to be out of date.
    pub(super) async fn take_into_use(&mut self, which: Taken) -> Result<(), Error> {
        if self.bitmaps.taken >= which {
            return Ok(());
        }
        for index in 0..self.bitmaps.list.len() {
            let bitmap = &self.bitmaps.list[index];
            if which == Taken::All || bitmap.is_tracked() {
                match self.load_bits(index).await {
                    Ok(()) => {}
                    // Nothing can be added to what cannot be read.
                    Err(Error::BadImage(_)) => {
                        self.bitmaps.list[index].standing = Standing::Inconsistent;
                    }
                    Err(error) => return Err(error),
                }
                let bitmap = &mut self.bitmaps.list[index];
                if bitmap.standing != Standing::Foreign {
                    bitmap.record.set_in_use(true);
                }
            }
        }
        self.bitmaps.flags_in_doubt = true;
        let written = self.rewrite_directory().await?;
        self.order.barrier(Barrier::BeforeChange, written).await?;
        self.bitmaps.flags_in_doubt = false;
        self.bitmaps.taken = which;
        Ok(())
    }

    /// Writes the flags in place: each stands within one sector, and says of a bitmap less than before.
    async fn rewrite_directory(&self) -> Result<Stamp, Error> {
        let Some(pointer) = self.bitmaps.pointer else {
            return Ok(Stamp::default());
        };
        let mut bytes = directory::encode(&self.records());
        bytes.resize(bytes.len().next_multiple_of(mem_len(SECTOR_BYTES)), 0);
        self.order.write(Event::None, pointer.offset, bytes).await
    }

    fn records(&self) -> Vec<directory::Record> {
        let list = self.bitmaps.list.iter();
        list.map(|bitmap| bitmap.record.clone()).collect()
    }

    /// Stores the bitmaps that were taken into use; they are clean again.
    pub(in crate::qcow2) async fn store_bitmaps(&mut self) -> Result<(), Error> {
        if self.bitmaps.taken == Taken::None && !self.bitmaps.flags_in_doubt {
            return Ok(());
        }
        let list = self.bitmaps.list.clone();
        self.store(list, Vec::new()).await
    }

    /// Rule 21: replaces the stored bitmaps by `list`, and frees what was `left` by it. Every bitmap of
    /// good standing is clean afterwards. Durable on return; before or after, whatever fails.
    pub(super) async fn store(
        &mut self,
        mut list: Vec<Bitmap>,
        left: Vec<Run>,
    ) -> Result<(), Error> {
        let mut turnover = Turnover {
            taken: Vec::new(),
            left,
        };
        let stored = match self.write_list(&mut list, &mut turnover).await {
            Ok((pointer, content)) => self
                .point_to(pointer, content)
                .await
                .map(|written| (pointer, written)),
            Err(error) => Err(error),
        };
        let (pointer, written) = match stored {
            Ok(stored) => stored,
            Err(error) => {
                if self.order.is_distrusted() {
                    self.bitmaps.list_in_doubt = true;
                    return Err(error);
                }
                for (first, count) in turnover.taken {
                    // Nothing points there; if even this fails, a leak is all that remains.
                    let _ = self.free_now(Source::Other, first, count).await;
                }
                return Err(error);
            }
        };
        for (first, count) in turnover.left {
            self.free_after(Unlink::Written(written), Source::Other, first, count);
        }
        self.bitmaps.pointer = pointer;
        self.bitmaps.list = list;
        self.bitmaps.taken = Taken::None;
        self.bitmaps.flags_in_doubt = false;
        let metadata: Vec<_> = self.bitmaps.metadata().collect();
        for (structure, offset, len_bytes) in metadata {
            self.own(offset, self.geometry.clusters_for(len_bytes), structure);
        }
        Ok(())
    }

    async fn write_list(
        &mut self,
        list: &mut [Bitmap],
        turnover: &mut Turnover,
    ) -> Result<(Option<Pointer>, Stamp), Error> {
        for bitmap in list.iter_mut() {
            if bitmap.standing == Standing::Clean {
                bitmap.record.set_in_use(false);
                if bitmap.changed {
                    self.write_bitmap(bitmap, turnover).await?;
                }
            }
        }
        let old = self.bitmaps.pointer;
        if let Some(old) = old {
            let first = self.geometry.cluster_of(old.offset);
            turnover
                .left
                .push((first, self.geometry.clusters_for(old.len_bytes)));
        }
        if list.is_empty() {
            return Ok((None, self.order.latest()));
        }
        let records: Vec<_> = list.iter().map(|bitmap| bitmap.record.clone()).collect();
        let bytes = directory::encode(&records);
        let pointer = Pointer {
            count: u32::try_from(list.len()).expect("the count of bitmaps is bounded"),
            len_bytes: byte_count(bytes.len()),
            offset: self.write_anew(bytes, turnover).await?,
        };
        self.write_refcounts().await?;
        Ok((Some(pointer), self.order.latest()))
    }

    /// Writes a bitmap's data and its table to clusters of their own.
    async fn write_bitmap(
        &mut self,
        bitmap: &mut Bitmap,
        turnover: &mut Turnover,
    ) -> Result<(), Error> {
        let Some(content) = bitmap.content.clone() else {
            return Ok(());
        };
        let record = &mut bitmap.record;
        if record.table_offset != HostOffset(0) {
            let first = self.geometry.cluster_of(record.table_offset);
            let clusters = self
                .geometry
                .clusters_for(u64::from(record.table_entries) * 8);
            turnover.left.push((first, clusters));
        }
        turnover
            .left
            .extend(content.clusters.iter().map(|cluster| (*cluster, 1)));
        let entries = entries_for(self.geometry, record.granularity_bits(), self.virtual_bytes)?;
        let cluster_bytes = self.geometry.cluster_bytes();
        let mut plan = Plan::of(&content.bits, entries, cluster_bytes);
        let mut clusters = Vec::with_capacity(plan.mixed.len());
        for index in std::mem::take(&mut plan.mixed) {
            let bytes = content.bits.bytes(index * cluster_bytes, cluster_bytes);
            let offset = self.write_anew(bytes, turnover).await?;
            plan.words[mem_len(index)] = offset.0;
            clusters.push(self.geometry.cluster_of(offset));
        }
        record.table_offset = self.write_anew(plan.bytes(), turnover).await?;
        record.table_entries = entries;
        let bits = content.bits.clone();
        bitmap.content = Some(Rc::new(Content { bits, clusters }));
        bitmap.changed = false;
        Ok(())
    }

    /// Writes bytes to new clusters, the rest of which is zero.
    async fn write_anew(
        &mut self,
        mut bytes: Vec<u8>,
        turnover: &mut Turnover,
    ) -> Result<HostOffset, Error> {
        let clusters = self.geometry.clusters_for(byte_count(bytes.len()));
        let run = self.allocate_exactly(clusters).await?;
        turnover.taken.push((run.first, run.count));
        let offset = self.geometry.offset_of(run.first);
        bytes.resize(mem_len(clusters * self.geometry.cluster_bytes()), 0);
        self.order.write(Event::None, offset, bytes).await?;
        Ok(offset)
    }

    /// Before the size of the disk changes: no bitmap may claim to be clean with the old one.
    pub(in crate::qcow2) async fn bitmaps_before_resize(&mut self) -> Result<(), Error> {
        let stuck = |bitmap: &Bitmap| bitmap.standing != Standing::Clean;
        if let Some(bitmap) = self.bitmaps.list.iter().find(|bitmap| stuck(bitmap)) {
            let name = String::from_utf8_lossy(&bitmap.record.name).into_owned();
            return Err(Refused::Bitmap(format!(
                "bitmap `{name}` is inconsistent or unknown: remove it before the disk is resized"
            ))
            .into());
        }
        if self.bitmaps.list.is_empty() {
            return Ok(());
        }
        self.take_into_use(Taken::All).await
    }

    /// Together with the size of the disk: enabled bitmaps call a range of it dirty.
    pub(in crate::qcow2) fn resize_bitmaps(&mut self, dirty: Range<u64>) {
        let disk_bytes = self.virtual_bytes;
        for bitmap in &mut self.bitmaps.list {
            bitmap.changed = true;
            let enabled = bitmap.record.is_auto();
            if let Some(bits) = bitmap.bits_mut() {
                bits.resize(disk_bytes);
                if enabled && dirty.start < dirty.end {
                    bits.set(dirty.start, dirty.end - dirty.start);
                }
            }
        }
    }

    /// Before the disk becomes another one of `virtual_bytes`: rule 20 for all of it.
    pub(in crate::qcow2) async fn bitmaps_before_restore(
        &mut self,
        virtual_bytes: u64,
    ) -> Result<(), Error> {
        if virtual_bytes != self.virtual_bytes {
            return self.bitmaps_before_resize().await;
        }
        if self.planted.has(Defect::BitmapForgetsSnapshot) {
            return Ok(());
        }
        self.record_change(0, virtual_bytes).await
    }
}
