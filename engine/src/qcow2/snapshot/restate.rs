//! A snapshot table in the place of one whose entries say too little or too much.
//!
//! In version 3 an entry says how large the disk of its snapshot is; one that leaves it out means the
//! present size, and would mean another as soon as that changes. The new table stands beside the old one,
//! which goes when the header has left it: rules 17 and 18 of [`crate::qcow2`].

use std::rc::Rc;

use super::Snapshots;
use super::table::Surplus;
use crate::barrier::Barrier;
use crate::defect::{Defect, Planted};
use crate::device::Port;
use crate::error::Error;
use crate::qcow2::header::{Header, HeaderSector};
use crate::qcow2::metadata::Metadata;
use crate::qcow2::open::{self, OpenOptions};
use crate::qcow2::order::Order;

/// Writes the snapshot table of an image anew whose refcounts are right, each entry with all that it
/// must say, and no more than it may. Before or after, and durable on return.
///
/// Where the image cannot be opened for writing nothing changes, and the error says why.
pub(in crate::qcow2) async fn rewrite_table(
    file: &Port,
    header: &Header,
    sector0: HeaderSector,
    planted: Planted,
) -> Result<(), Error> {
    let options = OpenOptions {
        planted,
        ..OpenOptions::default()
    };
    let order = Rc::new(Order::new(file.clone(), None, planted));
    order
        .barrier(Barrier::BeforeRestate, order.latest())
        .await?;
    let snapshots = Snapshots::load_with(&order, header, Surplus::Dropped).await?;
    let mut metadata = open::load(order, header, sector0, (&options, snapshots)).await?;
    metadata.restate_snapshots().await?;
    metadata.write_refcounts().await?;
    let order = Rc::clone(&metadata.order);
    order.barrier(Barrier::AfterRestate, order.latest()).await
}

impl Metadata {
    /// Moves to a snapshot table of which every entry says all that it must.
    pub(in crate::qcow2) async fn restate_snapshots(&mut self) -> Result<(), Error> {
        let mut records = self.complete_records();
        if self.planted.has(Defect::RepairDropsSnapshot) {
            records.pop();
        }
        let table = self.write_snapshot_table(&records).await?;
        if let Err(error) = self.write_refcounts().await {
            if let Some(table) = table {
                self.abandon_run(table).await;
            }
            return Err(error);
        }
        self.switch_snapshots(records, table).await
    }

    /// Before the size of the disk changes: an entry that leaves out the size of its disk means the present one.
    pub(in crate::qcow2) async fn snapshots_before_resize(&mut self) -> Result<(), Error> {
        let records = &self.snapshots.records;
        if records.iter().all(|record| record.disk_bytes().is_some()) {
            return Ok(());
        }
        self.restate_snapshots().await
    }
}
