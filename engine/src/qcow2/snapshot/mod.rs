//! Internal snapshots: what an image keeps of its disk's past.
//!
//! Specification: "Snapshots". A snapshot is an L1 table of its own; L2 tables and data are shared
//! with the guest's disk and with other snapshots until one of them changes.
//!
//! Every change of the list of snapshots, and every move of the guest's disk to a snapshot, is one
//! write of sector 0 (rules 16 to 19 of [`crate::qcow2`]). Their counts are always written out: the
//! dirty bit excuses nothing here, and need not be set.

mod apply;
mod create;
mod delete;
pub(in crate::qcow2) mod expand;
mod restate;
pub(in crate::qcow2) mod table;
mod tree;
mod vm_state;

pub(super) use self::restate::rewrite_table;

use self::table::{Record, Surplus};
use super::bounds::{Bounded, Extent, MAX_L1_BYTES, MAX_SNAPSHOT_TABLE_BYTES};
use super::entry::L1Word;
use super::header::Header;
use super::image::Qcow2;
use super::metadata::Metadata;
use super::order::{Order, Stamp};
use super::unit::{HostCluster, HostOffset, byte_count, mem_len};
use crate::barrier::Barrier;
use crate::defect::Planted;
use crate::device::{Event, Port};
use crate::error::{BadImage, Error, Problem, Refused, Structure};
use crate::qcow2::alloc::{Content, Run};
use crate::qcow2::discards::Source;
use crate::qcow2::header::be_u64;

/// An internal snapshot, as an image lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The id: a decimal number in every image that QEMU or this engine made.
    pub id: String,
    /// The name; several snapshots may have the same.
    pub name: String,
    /// The size of the virtual machine's state, in bytes; 0 for a snapshot of the disk alone.
    pub vm_state_bytes: u64,
    /// When it was taken, in seconds of the Unix epoch.
    pub date_seconds: u32,
    /// The nanoseconds of that.
    pub date_nanoseconds: u32,
    /// How long the virtual machine had run, in nanoseconds.
    pub vm_clock_nanoseconds: u64,
    /// The instruction count of record and replay, where there is one.
    pub icount: Option<u64>,
    /// The size of the disk, in bytes.
    pub virtual_bytes: u64,
}

/// What an open image knows of its snapshots.
#[derive(Debug)]
pub(super) struct Snapshots {
    pub(super) records: Vec<Record>,
    /// Where the table stands, and how many bytes it takes.
    table: (HostOffset, u64),
}

impl Snapshots {
    /// The snapshot table of an image.
    pub(super) async fn load(order: &Order, header: &Header) -> Result<Self, Error> {
        Self::load_with(order, header, Surplus::Refused).await
    }

    /// The same, with a choice of what becomes of extra data that are too long.
    async fn load_with(order: &Order, header: &Header, surplus: Surplus) -> Result<Self, Error> {
        let (records, len_bytes) = table::read(order, header, surplus).await?;
        Ok(Self {
            records,
            table: (header.snapshots_offset, len_bytes),
        })
    }

    /// Where the table stands, and how many bytes it takes.
    pub(super) fn table(&self) -> (HostOffset, u64) {
        self.table
    }

    /// The snapshot of that id, or else the first of that name, as QEMU resolves it.
    fn find(&self, id_or_name: &str) -> Result<usize, Error> {
        let wanted = id_or_name.as_bytes();
        let by_id = self.records.iter().position(|one| one.id == wanted);
        by_id
            .or_else(|| self.records.iter().position(|one| one.name == wanted))
            .ok_or_else(|| Refused::NoSuchSnapshot(id_or_name.into()).into())
    }
}

/// The internal snapshots of the image with this header, in the order of the table. The image need not be
/// open, nor decrypted.
pub async fn list(file: Port, header: &Header) -> Result<Vec<Snapshot>, Error> {
    let order = Order::new(file, None, Planted::NONE);
    let (records, _) = table::read(&order, header, Surplus::Refused).await?;
    let records = records.iter();
    Ok(records
        .map(|one| shown(one, header.virtual_bytes))
        .collect())
}

impl Qcow2 {
    /// The internal snapshots, in the order of the table.
    pub async fn snapshots(&self) -> Vec<Snapshot> {
        let metadata = self.metadata.lock().await;
        let virtual_bytes = self.virtual_bytes.get();
        let records = metadata.snapshots.records.iter();
        records.map(|one| shown(one, virtual_bytes)).collect()
    }
}

fn shown(record: &Record, virtual_bytes: u64) -> Snapshot {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Snapshot {
        id: text(&record.id),
        name: text(&record.name),
        vm_state_bytes: record.vm_state_bytes(),
        date_seconds: record.date_seconds,
        date_nanoseconds: record.date_nanoseconds,
        vm_clock_nanoseconds: record.vm_clock_nanoseconds,
        icount: record.icount(),
        virtual_bytes: record.disk_bytes().unwrap_or(virtual_bytes),
    }
}

impl Metadata {
    /// Shows a snapshot in the place of the guest's disk, to be read.
    pub(super) async fn show_snapshot(&mut self, id_or_name: &str) -> Result<(), Error> {
        let index = self.snapshots.find(id_or_name)?;
        self.virtual_bytes = self.snapshot_bytes(index)?;
        self.l1 = self.snapshot_l1(index).await?;
        self.l1_offset = self.snapshots.records[index].l1_offset;
        Ok(())
    }

    /// The L1 table of a snapshot, without COPIED: in a snapshot that says nothing.
    pub(in crate::qcow2) async fn snapshot_l1(&self, index: usize) -> Result<Vec<L1Word>, Error> {
        let record = &self.snapshots.records[index];
        let place = (record.l1_offset, u64::from(record.l1_entries) * 8);
        if place.1 == 0 {
            return Ok(Vec::new());
        }
        let file_bytes = self.order.file().len();
        let extent = match Extent::new(Bounded::L1Table, place, self.geometry) {
            Ok(extent) if extent.within(file_bytes) => Ok(extent),
            Ok(_) => Err(Problem::BeyondEnd { file_bytes }),
            Err(excess) => {
                let text = format!("the L1 table of the snapshot {excess}");
                Err(Problem::Field(text))
            }
        };
        let extent = extent.map_err(|problem| BadImage {
            structure: Structure::SnapshotTable,
            offset: self.snapshots.table.0.0,
            index: Some(byte_count(index)),
            problem,
        })?;
        let at = self.order.file().at(Event::None);
        let bytes = at.read(extent.offset.0, mem_len(extent.len_bytes)).await?;
        let words = bytes
            .chunks_exact(8)
            .map(|word| be_u64(word, 0) & !(1 << 63));
        Ok(words.map(L1Word).collect())
    }

    /// The size of the disk that a snapshot shows, which its L1 table must reach.
    fn snapshot_bytes(&self, index: usize) -> Result<u64, Error> {
        let record = &self.snapshots.records[index];
        let virtual_bytes = record.disk_bytes().unwrap_or(self.virtual_bytes);
        let needed = self.geometry.l1_entries_for(virtual_bytes);
        if !virtual_bytes.is_multiple_of(512) || needed * 8 > MAX_L1_BYTES {
            return Err(BadImage {
                structure: Structure::SnapshotTable,
                offset: self.snapshots.table.0.0,
                index: Some(byte_count(index)),
                problem: Problem::Field("the size of its disk is out of range".into()),
            }
            .into());
        }
        Ok(virtual_bytes)
    }

    /// Writes `bytes` to new clusters, padded with zeroes.
    async fn write_new_clusters(&mut self, event: Event, mut bytes: Vec<u8>) -> Result<Run, Error> {
        let clusters = self.geometry.clusters_for(byte_count(bytes.len()));
        if clusters == 0 {
            // The tables of a disk of no bytes: they stand nowhere.
            return Ok(Run {
                first: HostCluster(0),
                count: 0,
                content: Content::Stale,
            });
        }
        let run = self.allocate_exactly(clusters).await?;
        bytes.resize(mem_len(clusters * self.geometry.cluster_bytes()), 0);
        let offset = self.geometry.offset_of(run.first);
        if let Err(error) = self.order.write(event, offset, bytes).await {
            self.abandon_run(run).await;
            return Err(error);
        }
        Ok(run)
    }

    /// Gives clusters back that nothing links. If even this fails, a leak is all that remains.
    async fn abandon_run(&mut self, run: Run) {
        let _ = self.free_now(Source::Snapshot, run.first, run.count).await;
    }

    /// Rule 17: moves to a new snapshot table, all of which is durable once `self` has flushed.
    /// Frees the old one under rule 3.
    async fn switch_snapshots(
        &mut self,
        records: Vec<Record>,
        run: Option<Run>,
    ) -> Result<(), Error> {
        let len_bytes = byte_count(table::encode(&records).len());
        let offset = run.map_or(HostOffset(0), |run| self.geometry.offset_of(run.first));
        let count = u32::try_from(records.len()).expect("the number of snapshots is bounded");
        let needs = self.order.latest();
        let switched = self
            .switch(
                Barrier::BeforeSnapshotSwitch,
                Event::None,
                needs,
                |sector0| {
                    sector0.set_snapshots(offset, count);
                },
            )
            .await?;
        let (old, old_bytes) = self.snapshots.table;
        let old_clusters = self.geometry.clusters_for(old_bytes);
        let first = self.geometry.cluster_of(old);
        if old_clusters > 0 {
            self.disown(first, old_clusters);
            let unlink = super::free::Unlink::Written(switched);
            self.free_after(unlink, Source::Snapshot, first, old_clusters);
        }
        if let Some(run) = run {
            self.own(offset, run.count, Structure::SnapshotTable);
        }
        self.inactive_tables = None;
        self.snapshots = Snapshots {
            records,
            table: (offset, len_bytes),
        };
        self.after_snapshot_switch(switched).await
    }

    /// Rule 18: a switch is durable before anything that it unlinked goes, and before it is told.
    async fn after_snapshot_switch(&mut self, switched: Stamp) -> Result<(), Error> {
        self.order
            .barrier(Barrier::AfterSnapshotSwitch, switched)
            .await?;
        self.reap().await
    }

    /// Writes the table of these snapshots to new clusters; none where there are no snapshots.
    async fn write_snapshot_table(&mut self, records: &[Record]) -> Result<Option<Run>, Error> {
        let bytes = table::encode(records);
        if bytes.is_empty() {
            return Ok(None);
        }
        if byte_count(bytes.len()) > MAX_SNAPSHOT_TABLE_BYTES {
            return Err(Refused::TableFull(Structure::SnapshotTable).into());
        }
        self.write_new_clusters(Event::None, bytes).await.map(Some)
    }

    /// The same, with the counts of its clusters written out too.
    async fn prepare_snapshot_table(&mut self, records: &[Record]) -> Result<Option<Run>, Error> {
        let table = self.write_snapshot_table(records).await?;
        if let Err(error) = self.write_refcounts().await {
            if let Some(table) = table {
                self.abandon_run(table).await;
            }
            return Err(error);
        }
        Ok(table)
    }

    /// The entries of the table, each with everything said that this engine knows to say.
    fn complete_records(&self) -> Vec<Record> {
        let mut records = self.snapshots.records.clone();
        for record in &mut records {
            record.complete(self.virtual_bytes);
        }
        records
    }

    fn disown(&mut self, first: HostCluster, clusters: u64) {
        self.owners
            .retain(|cluster, _| !(first.0..first.0 + clusters).contains(&cluster.0));
    }
}
