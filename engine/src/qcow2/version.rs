//! From version 2 to 3 and back.
//!
//! Version 3 adds fields to the header, and entries that say "zeroes". On the way back these become data,
//! or nothing where nothing lies beneath; the guest sees no difference, so that the way may end
//! anywhere in between. The header follows last, under rules 13 and 14.

use super::create;
use super::entry::{L1Entry, Mapping};
use super::extension;
use super::feature;
use super::header::{Extension, Header, incompatible};
use super::image::Qcow2;
use super::metadata::{Metadata, Refcounting};
use super::order::Stamp;
use super::snapshot::expand::Instead;
use super::unit::{GuestCluster, byte_count, mem_len};
use crate::barrier::Barrier;
use crate::error::{Error, Refused};
use crate::probe::Probe;

/// The most zeroes that one step writes; at least a cluster.
const STEP_BYTES: u64 = 2 << 20;

impl Metadata {
    /// Makes a version 2 image one of version 3.
    pub(super) async fn upgrade(&mut self) -> Result<(), Error> {
        self.complete_snapshots().await?;
        let mut header = self.load_header().await?;
        header.version = 3;
        header.header_bytes = header_bytes(3);
        let named = header.extension(extension::FEATURE_NAMES).is_some();
        if !named && self.geometry.cluster_bytes() > 4096 {
            let (kind, data) = (extension::FEATURE_NAMES, feature::standard_table());
            header.extensions.push(Extension { kind, data });
        }
        self.rewrite_header(&header).await
    }

    /// Refuses an image whose content version 2 cannot express.
    fn may_downgrade(&self, header: &Header) -> Result<(), Error> {
        let needs =
            |what: &str| Err(Refused::Option(format!("version 2 cannot express {what}")).into());
        if self.geometry.refcount_order() != 4 {
            return needs("refcounts of other than 16 bits");
        }
        if header.incompatible & !incompatible::DIRTY != 0 {
            let table = header.extension(extension::FEATURE_NAMES).unwrap_or(&[]);
            let bits = header.incompatible & !incompatible::DIRTY;
            return needs(&feature::names_of_incompatible(bits, table));
        }
        if header.extension(extension::BITMAPS).is_some() {
            return needs("persistent bitmaps: remove them first");
        }
        match self.snapshots_beyond_version_2() {
            Some(what) => needs(what),
            None => Ok(()),
        }
    }

    /// The first run of guest clusters from `from` on that say "zeroes", within one slice.
    async fn next_zeroes(
        &mut self,
        mut from: GuestCluster,
    ) -> Result<Option<(GuestCluster, u64)>, Error> {
        let per_table = self.geometry.l2_entries();
        let zero = |mapping: &Mapping| matches!(mapping, Mapping::Zero { .. });
        while from.0 / per_table < byte_count(self.l1.len()) {
            if self.l1_entry(mem_len(from.0 / per_table))? == L1Entry::Empty {
                from = GuestCluster((from.0 / per_table + 1) * per_table);
                continue;
            }
            let mappings = self.mappings(from, per_table).await?;
            if let Some(first) = mappings.iter().position(zero) {
                let count = mappings[first..].iter().take_while(|m| zero(m)).count();
                let first = GuestCluster(from.0 + byte_count(first));
                return Ok(Some((first, byte_count(count))));
            }
            from = GuestCluster(from.0 + byte_count(mappings.len()));
        }
        Ok(None)
    }
}

impl Qcow2 {
    /// Makes a version 3 image one of version 2. The caller has claimed the whole disk.
    pub(super) async fn downgrade(&self) -> Result<(), Error> {
        let instead = {
            let mut metadata = self.metadata.lock().await;
            let header = metadata.load_header().await?;
            metadata.may_downgrade(&header)?;
            // Behind a growth that failed the file may say that the disk is larger, and what its new part shows would go.
            metadata.settle_sector0(Barrier::BeforeDowngrade).await?;
            if self.backing.is_some() || header.backing_name.is_some() {
                Instead::Data
            } else {
                // Where nothing lies beneath, what is not allocated reads zero too.
                Instead::Nothing
            }
        };
        let written_bytes = match instead {
            Instead::Data => self.virtual_bytes.get(),
            Instead::Nothing => 0,
        };
        self.expand_zeroes(written_bytes).await?;
        let mut metadata = self.metadata.lock().await;
        self.expand_snapshots(&mut metadata, instead).await?;
        metadata.settle([Barrier::BeforeDowngrade; 2]).await?;
        let mut header = metadata.load_header().await?;
        header.version = 2;
        header.header_bytes = header_bytes(2);
        header.incompatible = 0;
        header.compatible = 0;
        header.autoclear = 0;
        header
            .extensions
            .retain(|extension| extension.kind != extension::FEATURE_NAMES);
        metadata.rewrite_header(&header).await?;
        metadata.refcounting = Refcounting::Strict;
        self.version.set(2);
        Ok(())
    }

    /// Turns entries that say "zeroes" into zeroes on the disk up to `written_bytes`, and into nothing
    /// behind.
    async fn expand_zeroes(&self, written_bytes: u64) -> Result<(), Error> {
        let bits = self.geometry.cluster_bits();
        let mut from = GuestCluster(0);
        loop {
            let mut metadata = self.metadata.lock().await;
            let Some((first, count)) = metadata.next_zeroes(from).await? else {
                return Ok(());
            };
            let start = first.0 << bits;
            if start >= written_bytes {
                let nothing = vec![Mapping::Unallocated; mem_len(count)];
                metadata.link(first, &nothing, Stamp::default()).await?;
                from = GuestCluster(first.0 + count);
                continue;
            }
            drop(metadata);
            self.order.note(Probe::ZeroesExpanded);
            let most = STEP_BYTES.max(self.geometry.cluster_bytes());
            let len = (count << bits).min(most).min(written_bytes - start);
            self.write_claimed(start, vec![0; mem_len(len)]).await?;
            from = GuestCluster(first.0 + self.geometry.clusters_for(len));
        }
    }
}

fn header_bytes(version: u32) -> u64 {
    byte_count(create::header_len(version))
}
