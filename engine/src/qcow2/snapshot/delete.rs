//! Deleting a snapshot: the table goes on without it, then its references go.

use crate::barrier::Barrier;
use crate::defect::Defect;
use crate::error::Error;
use crate::qcow2::discards::Source;
use crate::qcow2::image::Qcow2;
use crate::qcow2::metadata::Metadata;
use crate::sync::Mode;

impl Qcow2 {
    /// Deletes a snapshot.
    pub(in crate::qcow2) async fn delete_snapshot(&self, id_or_name: &str) -> Result<(), Error> {
        self.access.must_allow_writes()?;
        self.must_hold_its_data()?;
        let _all = self.claims.lock(0..u64::MAX, Mode::Exclusive).await;
        let mut metadata = self.metadata.lock().await;
        metadata.must_be_sound()?;
        metadata.delete_snapshot(id_or_name).await
    }
}

impl Metadata {
    async fn delete_snapshot(&mut self, id_or_name: &str) -> Result<(), Error> {
        let index = self.snapshots.find(id_or_name)?;
        self.catch_up().await?;
        let l1 = self.snapshot_l1(index).await?;
        let mut records = self.complete_records();
        let gone = records.remove(index);
        let tree = self.tree(gone.l1_offset, &l1).await?;
        let table = self.prepare_snapshot_table(&records).await?;
        let early = self.planted.has(Defect::SnapshotFreesEarly);
        if early {
            self.lower_tree(&tree).await?;
            self.write_refcounts().await?;
        }
        self.switch_snapshots(records, table).await?;
        if !early {
            self.lower_tree(&tree).await?;
        }
        let first = self.geometry.cluster_of(gone.l1_offset);
        let clusters = self.geometry.clusters_for(u64::from(gone.l1_entries) * 8);
        self.disown(first, clusters);
        self.free_now(Source::Snapshot, first, clusters).await?;
        // Rule 19: where one reference is left, writes in place are allowed again.
        self.write_refcounts().await?;
        self.order
            .barrier(Barrier::BeforeCopied, self.order.latest())
            .await?;
        self.renew_claims().await
    }
}
