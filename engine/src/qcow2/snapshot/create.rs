//! Taking a snapshot: a copy of the L1 table, and one more reference to everything behind it.

use super::table::{KnownExtra, Record};
use super::tree::Tree;
use crate::barrier::Barrier;
use crate::defect::Defect;
use crate::device::Event;
use crate::error::{Error, Refused, Structure};
use crate::manage::NewSnapshot;
use crate::qcow2::bounds::MAX_SNAPSHOT_TABLE_BYTES;
use crate::qcow2::entry::Mapping;
use crate::qcow2::header::MAX_SNAPSHOTS;
use crate::qcow2::image::Qcow2;
use crate::qcow2::metadata::Metadata;
use crate::qcow2::order::Stamp;
use crate::qcow2::unit::{GuestCluster, mem_len};
use crate::sync::Mode;

/// The longest name, in bytes.
const MAX_NAME_LEN: usize = 65535;

impl Qcow2 {
    /// Takes a snapshot of the guest's disk, with the VM state that was written last.
    pub(in crate::qcow2) async fn create_snapshot(&self, new: NewSnapshot) -> Result<(), Error> {
        self.access.must_allow_writes()?;
        self.must_hold_its_data()?;
        let _all = self.claims.lock(0..u64::MAX, Mode::Exclusive).await;
        let mut metadata = self.metadata.lock().await;
        metadata.must_be_sound()?;
        let vm_state_bytes = new.vm_state_bytes;
        metadata.create_snapshot(new).await?;
        // The snapshot has it now. A power loss before this leaves a copy that shows nowhere.
        metadata.drop_vm_state(vm_state_bytes).await
    }
}

impl Metadata {
    async fn create_snapshot(&mut self, new: NewSnapshot) -> Result<(), Error> {
        if self.snapshots.records.len() >= mem_len(MAX_SNAPSHOTS.into()) {
            return Err(Refused::TableFull(Structure::SnapshotTable).into());
        }
        if new.name.len() > MAX_NAME_LEN {
            return Err(Refused::Option(format!(
                "the name of a snapshot has {} bytes, more than {MAX_NAME_LEN}",
                new.name.len()
            ))
            .into());
        }
        self.catch_up().await?;
        let tree = self.tree(self.l1_offset, &self.l1).await?;
        self.must_take_reference(&tree).await?;
        self.share_active(&tree).await?;
        let record = self.write_snapshot_l1(new).await?;
        let l1 = crate::qcow2::alloc::Run {
            first: self.geometry.cluster_of(record.l1_offset),
            count: self.geometry.clusters_for(u64::from(record.l1_entries) * 8),
            content: crate::qcow2::alloc::Content::Stale,
        };
        let mut records = self.complete_records();
        records.push(record);
        let table = match self.write_snapshot_table(&records).await {
            Ok(table) => table,
            Err(error) => {
                self.abandon_run(l1).await;
                return Err(error);
            }
        };
        if self.planted.has(Defect::SnapshotRaisesLate) {
            self.write_refcounts().await?;
            self.switch_snapshots(records, table).await?;
            return self.raise_tree(&tree).await;
        }
        let raised = self.raise_durably(&tree).await;
        if let Err(error) = raised {
            self.abandon_run(l1).await;
            if let Some(table) = table {
                self.abandon_run(table).await;
            }
            return Err(error);
        }
        let l1_offset = self.geometry.offset_of(l1.first);
        self.switch_snapshots(records, table).await?;
        self.own(l1_offset, l1.count, Structure::InactiveL1Table);
        Ok(())
    }

    /// Rule 16: COPIED goes where a second reference is to come, durably.
    async fn share_active(&mut self, tree: &Tree) -> Result<(), Error> {
        if !self.planted.has(Defect::SnapshotKeepsCopied) {
            self.clear_l1_claims().await?;
            self.clear_claims(tree).await?;
        }
        self.order
            .barrier(Barrier::BeforeRaise, self.order.latest())
            .await
    }

    /// Adds a reference to everything in a tree, and writes the counts out.
    pub(super) async fn raise_durably(&mut self, tree: &Tree) -> Result<(), Error> {
        self.raise_tree(tree).await?;
        if let Err(error) = self.write_refcounts().await {
            self.unraise_tree(tree).await;
            return Err(error);
        }
        Ok(())
    }

    async fn write_snapshot_l1(&mut self, new: NewSnapshot) -> Result<Record, Error> {
        let bytes = self.l1.iter().flat_map(|word| word.0.to_be_bytes());
        let run = self
            .write_new_clusters(Event::None, bytes.collect())
            .await?;
        let extra = KnownExtra {
            vm_state_bytes: new.vm_state_bytes,
            virtual_bytes: self.virtual_bytes,
            icount: new.icount,
        };
        Ok(Record {
            l1_offset: self.geometry.offset_of(run.first),
            l1_entries: u32::try_from(self.l1.len()).expect("an L1 table is bounded"),
            id: self.next_snapshot_id().into_bytes(),
            name: new.name.into_bytes(),
            date_seconds: new.date_seconds,
            date_nanoseconds: new.date_nanoseconds,
            vm_clock_nanoseconds: new.vm_clock_nanoseconds,
            vm_state_short: u32::try_from(new.vm_state_bytes).unwrap_or(0),
            extra: extra.encode(),
        })
    }

    /// One more than the highest number that is an id.
    fn next_snapshot_id(&self) -> String {
        let number = |record: &Record| {
            let text = std::str::from_utf8(&record.id).ok()?;
            text.parse::<u64>().ok()
        };
        let highest = self.snapshots.records.iter().filter_map(number).max();
        let mut id = highest.unwrap_or(0).wrapping_add(1);
        // Ids are any bytes in a foreign image; the number at the end of the range has no successor.
        while self
            .snapshots
            .find(&id.to_string())
            .is_ok_and(|at| self.snapshots.records[at].id == id.to_string().as_bytes())
        {
            id = id.wrapping_add(1);
        }
        id.to_string()
    }

    /// Unmaps VM state that a snapshot holds by now.
    async fn drop_vm_state(&mut self, len_bytes: u64) -> Result<(), Error> {
        let entries = self.geometry.l2_entries();
        let first = self.geometry.l1_entries_for(self.virtual_bytes) * entries;
        let end = first + self.geometry.clusters_for(len_bytes);
        let mut cluster = GuestCluster(first);
        while cluster.0 < end && mem_len(cluster.0 / entries) < self.l1.len() {
            let old = self.mappings(cluster, end - cluster.0).await?;
            if old.iter().any(|mapping| *mapping != Mapping::Unallocated) {
                let new = vec![Mapping::Unallocated; old.len()];
                self.link(cluster, &new, Stamp::default()).await?;
            }
            cluster.0 += crate::qcow2::unit::byte_count(old.len());
        }
        Ok(())
    }
}

const _: () = assert!(MAX_SNAPSHOT_TABLE_BYTES >= 40 * 65536);
