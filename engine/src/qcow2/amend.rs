//! Changing what an image says of itself: lazy refcounts, refcount width, version, backing file.
//!
//! Several changes in one call are made one after the other, each of them before or after: first the
//! higher version, which others may need, last the lower one, which others may forbid. What the
//! request itself rules out is refused before the first. Size, data file and key slots
//! are changed elsewhere.

use super::extension;
use super::geometry::Geometry;
use super::header::{Extension, HeaderSector, compatible};
use super::image::Qcow2;
use super::metadata::{Metadata, Refcounting};
use crate::barrier::Barrier;
use crate::device::Event;
use crate::error::{Error, Refused};
use crate::manage::{Amend, BackingName};
use crate::sync::Mode;

impl Qcow2 {
    /// Makes the changes that `amend` asks for.
    pub(super) async fn amend(&self, amend: Amend) -> Result<(), Error> {
        self.access.must_allow_writes()?;
        let _all = self.claims.lock(0..u64::MAX, Mode::Exclusive).await;
        {
            let mut metadata = self.metadata.lock().await;
            metadata.must_be_sound()?;
            metadata.may_amend(amend)?;
            if amend.version == Some(3) && metadata.version < 3 {
                metadata.upgrade().await?;
                self.version.set(3);
            }
            if let Some(refcount_order) = amend.refcount_order {
                metadata.change_width(refcount_order).await?;
            }
            if let Some(lazy) = amend.lazy_refcounts {
                metadata.change_lazy_refcounts(lazy).await?;
            }
        }
        if amend.version == Some(2) && self.version.get() > 2 {
            self.downgrade().await?;
        }
        Ok(())
    }

    /// Changes the name and format of the backing file. The image goes on reading what it was opened
    /// over: where the new backing file shows something else, it must be reopened. What makes the new name
    /// right, as copies from the old backing file, is for the caller to flush first.
    pub(super) async fn set_backing(&self, backing: Option<BackingName>) -> Result<(), Error> {
        self.access.must_allow_writes()?;
        let _all = self.claims.lock(0..u64::MAX, Mode::Exclusive).await;
        let mut metadata = self.metadata.lock().await;
        metadata.must_be_sound()?;
        let mut header = metadata.load_header().await?;
        let format = |extension: &Extension| extension.kind == extension::BACKING_FORMAT;
        let at = header.extensions.iter().position(format).unwrap_or(0);
        header.extensions.retain(|extension| !format(extension));
        header.backing_name = None;
        if let Some(BackingName { name, format }) = backing {
            if name.is_empty() {
                return Err(Refused::Option("a backing file name is not empty".into()).into());
            }
            if header.has_raw_data_file() {
                let text =
                    "a raw external data file shows all of the disk: nothing can lie beneath it";
                return Err(Refused::Option(text.into()).into());
            }
            header.backing_name = Some(name.into_bytes());
            if let Some(format) = format {
                let kind = extension::BACKING_FORMAT;
                let data = format.into_bytes();
                header.extensions.insert(at, Extension { kind, data });
            }
        }
        // The other file may show something else anywhere.
        metadata.record_change(0, self.virtual_bytes.get()).await?;
        metadata.rewrite_header(&header).await
    }
}

/// What an image waits for before its dirty bit goes: rule 9.
pub(super) const CLEAN: [Barrier; 2] = [Barrier::BeforeReap, Barrier::BeforeClean];

impl Metadata {
    /// Refuses changes that this image cannot have, all together.
    fn may_amend(&self, amend: Amend) -> Result<(), Error> {
        let Amend {
            version,
            lazy_refcounts,
            refcount_order,
        } = amend;
        let refuse = |text: String| Err(Refused::Option(text).into());
        let version = version.unwrap_or(self.version);
        if !(2..=3).contains(&version) {
            return refuse(format!("version {version} is not 2 or 3"));
        }
        let refcount_order = refcount_order.unwrap_or(self.geometry.refcount_order());
        if Geometry::new(self.geometry.cluster_bits(), refcount_order).is_none() {
            return refuse(format!(
                "refcount order {refcount_order} is not within 0..=6: the refcount width is a power of two up to 64 bits"
            ));
        }
        if version == 2 && refcount_order != 4 {
            return refuse(
                "version 2 has refcounts of 16 bits: change the refcount width to 16 bits too"
                    .into(),
            );
        }
        if version == 2 && self.geometry.has_subclusters() {
            return refuse("version 2 has no extended L2 entries: keep version 3".into());
        }
        if version == 2 && self.geometry.has_external_data() {
            return refuse("version 2 has no external data files: keep version 3".into());
        }
        if version == 2 && self.bitmaps.any() {
            return refuse("version 2 has no bitmaps: remove them before".into());
        }
        if version == 2 && lazy_refcounts == Some(true) {
            return refuse("version 2 has no lazy refcounts: use version 3".into());
        }
        Ok(())
    }

    /// Sets or clears the compatible bit, and postpones refcounts from now on or no longer.
    async fn change_lazy_refcounts(&mut self, lazy: bool) -> Result<(), Error> {
        if self.version < 3 {
            // Only "off" gets here, and off they are.
            return Ok(());
        }
        let present = self.load_header().await?.compatible;
        let (refcounting, bits) = if lazy {
            (Refcounting::Lazy, present | compatible::LAZY_REFCOUNTS)
        } else {
            self.settle(CLEAN).await?;
            (Refcounting::Strict, present & !compatible::LAZY_REFCOUNTS)
        };
        self.refcounting = refcounting;
        if bits == present {
            return Ok(());
        }
        let change = |sector0: &mut HeaderSector| sector0.set_compatible(bits);
        let switched = self.change_sector0(Event::None, change).await?;
        self.order.barrier(Barrier::AfterCompatible, switched).await
    }

    /// Writes back everything, frees what was waiting to be freed, and clears the dirty bit: rule 9, or
    /// what is at least as strict, and then by other barriers.
    ///
    /// Every step may fail and be tried again; the dirty bit stays until all have succeeded.
    pub(super) async fn settle(&mut self, [reap, clean]: [Barrier; 2]) -> Result<(), Error> {
        self.write_back_all().await?;
        self.order.barrier(reap, self.order.latest()).await?;
        self.store_bitmaps().await?;
        self.reap().await?;
        self.write_refcounts().await?;
        self.order.barrier(clean, self.order.latest()).await?;
        self.clear_dirty().await
    }
}
