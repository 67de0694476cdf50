//! Going back to a snapshot: the guest's disk gets a copy of its L1 table and its size.
//!
//! The present L1 table is not overwritten: a new one is written beside it, and sector 0 switches to
//! it together with the size. So a power loss leaves the disk before or after, and at no instant does
//! an L1 table claim COPIED for a table that the snapshot has too.

use super::tree::Tree;
use crate::barrier::Barrier;
use crate::defect::Defect;
use crate::device::Event;
use crate::error::{Error, Refused, Structure};
use crate::probe::Probe;
use crate::qcow2::alloc::Run;
use crate::qcow2::discards::Source;
use crate::qcow2::entry::{L1Entry, L1Word};
use crate::qcow2::image::Qcow2;
use crate::qcow2::metadata::Metadata;
use crate::qcow2::unit::{byte_count, mem_len};
use crate::sync::Mode;

impl Qcow2 {
    /// Makes the guest's disk what it was when the snapshot was taken, its size included.
    pub(in crate::qcow2) async fn apply_snapshot(&self, id_or_name: &str) -> Result<(), Error> {
        self.access.must_allow_writes()?;
        self.must_hold_its_data()?;
        let _all = self.claims.lock(0..u64::MAX, Mode::Exclusive).await;
        let mut metadata = self.metadata.lock().await;
        metadata.must_be_sound()?;
        let outcome = metadata.apply_snapshot(id_or_name).await;
        // The switch may have come to pass even where what follows it failed.
        self.virtual_bytes.set(metadata.virtual_bytes);
        outcome
    }
}

impl Metadata {
    async fn apply_snapshot(&mut self, id_or_name: &str) -> Result<(), Error> {
        let index = self.snapshots.find(id_or_name)?;
        let virtual_bytes = self.snapshot_bytes(index)?;
        if self.version < 3 && virtual_bytes != self.virtual_bytes {
            return Err(Refused::ResizeWithSnapshots.into());
        }
        self.bitmaps_before_restore(virtual_bytes).await?;
        self.catch_up().await?;
        let mut l1 = self.snapshot_l1(index).await?;
        let entries = byte_count(l1.len()).max(self.geometry.l1_entries_for(virtual_bytes));
        l1.resize(mem_len(entries), L1Word(0));
        let new = self
            .tree(self.snapshots.records[index].l1_offset, &l1)
            .await?;
        let old = self.tree(self.l1_offset, &self.l1).await?;
        // What both trees hold keeps its count: one reference goes as the other comes.
        let (gained, lost) = (new.beyond(&old), old.beyond(&new));
        self.must_take_reference(&gained).await?;
        // An image from elsewhere may claim COPIED in a snapshot's tables, where nobody relies on it. The
        // switch makes them the disk's, and waits for all of this.
        self.clear_claims(&new).await?;
        if self.planted.has(Defect::ApplyKeepsCopied) {
            for word in l1.iter_mut().filter(|word| word.0 != 0) {
                word.0 |= 1 << 63;
            }
        }
        let bytes = l1.iter().flat_map(|word| word.0.to_be_bytes()).collect();
        let run = self
            .write_new_clusters(Event::L1GrowWriteTable, bytes)
            .await?;
        if let Err(error) = self.raise_durably(&gained).await {
            self.abandon_run(run).await;
            return Err(error);
        }
        self.switch_disk(l1, run, virtual_bytes, &lost).await
    }

    /// Rules 17 and 18: moves to another L1 table and size, and lets go of what the old one held.
    async fn switch_disk(
        &mut self,
        l1: Vec<L1Word>,
        run: Run,
        virtual_bytes: u64,
        lost: &Tree,
    ) -> Result<(), Error> {
        let offset = self.geometry.offset_of(run.first);
        let entries = byte_count(l1.len());
        let needs = self.order.latest();
        let before = Barrier::BeforeApplySwitch;
        let switched = self
            .switch(before, Event::L1GrowActivateTable, needs, |sector0| {
                sector0.set_l1(offset, entries);
                sector0.set_virtual_bytes(virtual_bytes);
            })
            .await?;
        let old_first = self.geometry.cluster_of(self.l1_offset);
        let old_clusters = self.geometry.clusters_for(byte_count(self.l1.len()) * 8);
        self.disown(old_first, old_clusters);
        self.own(offset, run.count, Structure::L1Table);
        for word in &l1 {
            if let Ok(L1Entry::Table { offset, .. }) = word.decode(self.geometry) {
                self.own(offset, 1, Structure::L2Table);
            }
        }
        self.l1 = l1;
        self.active_tables = None;
        self.l1_offset = offset;
        let resized = virtual_bytes != std::mem::replace(&mut self.virtual_bytes, virtual_bytes);
        if resized {
            self.order.note(Probe::AppliedOtherSize);
            self.resize_bitmaps(0..virtual_bytes);
        }
        self.after_snapshot_switch(switched).await?;
        self.lower_tree(lost).await?;
        self.free_now(Source::Snapshot, old_first, old_clusters)
            .await?;
        if resized {
            self.store_bitmaps().await?;
        }
        Ok(())
    }
}
