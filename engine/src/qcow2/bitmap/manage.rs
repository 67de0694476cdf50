//! Operations on bitmaps: each is one switch of the directory.
//!
//! Nobody else is at work on the image meanwhile, and everything that the guest wrote before is durable when
//! the switch is: what a bitmap leaves out was there when it was enabled, whatever power loss follows.

use std::ops::Range;
use std::rc::Rc;

use super::directory::{GRANULARITY_BITS, MAX_NAME, Record};
use super::store::Run;
use super::table::{self, entries_for};
use super::{Bitmap, Content, Standing};
use crate::defect::Defect;
use crate::error::{Error, Refused};
use crate::image::must_reach;
use crate::manage::BitmapState;
use crate::qcow2::bitmap::bits::Bits;
use crate::qcow2::bounds::MAX_BITMAPS;
use crate::qcow2::image::Qcow2;
use crate::qcow2::metadata::Metadata;
use crate::qcow2::unit::{HostCluster, mem_len};
use crate::sync::Mode;

/// An operation on the bitmaps of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::qcow2) enum Change {
    Create {
        name: String,
        granularity_bytes: u64,
        state: BitmapState,
    },
    Remove(String),
    SetState(String, BitmapState),
    Clear(String),
    Merge {
        target: String,
        sources: Vec<String>,
    },
    /// Ranges of the disk become dirty, in bytes.
    Mark {
        target: String,
        ranges: Vec<Range<u64>>,
    },
}

impl Qcow2 {
    /// Carries out an operation on bitmaps. Before or after, whatever fails.
    pub(in crate::qcow2) async fn change_bitmaps(&self, change: Change) -> Result<(), Error> {
        self.access.must_allow_writes()?;
        let _all = self.claims.lock(0..u64::MAX, Mode::Exclusive).await;
        let mut metadata = self.metadata.lock().await;
        metadata.must_be_sound()?;
        let (list, left) = metadata.changed(change).await?;
        metadata.write_back_all().await?;
        let stored = metadata.store(list, left).await;
        self.tracks.set(metadata.bitmaps.tracks());
        stored
    }
}

fn refuse<T>(text: String) -> Result<T, Error> {
    Err(Refused::Bitmap(text).into())
}

impl Metadata {
    /// The bitmaps as they will be, and the clusters that nothing will use then.
    async fn changed(&mut self, change: Change) -> Result<(Vec<Bitmap>, Vec<Run>), Error> {
        let list = match change {
            Change::Create {
                name,
                granularity_bytes,
                state,
            } => self.with_new(&name, granularity_bytes, state)?,
            Change::Remove(name) => {
                let index = self.bitmaps.find(&name)?;
                let mut list = self.bitmaps.list.clone();
                list.remove(index);
                return Ok((list, self.bitmap_clusters(index).await?));
            }
            Change::SetState(name, state) => {
                let index = self.bitmaps.find_clean(&name)?;
                let mut list = self.bitmaps.list.clone();
                list[index].record.set_auto(state == BitmapState::Enabled);
                list
            }
            Change::Clear(name) => {
                let index = self.bitmaps.find_clean(&name)?;
                self.load_bits(index).await?;
                let mut list = self.bitmaps.list.clone();
                list[index].changed = true;
                if let Some(bits) = list[index].bits_mut() {
                    bits.clear();
                }
                list
            }
            Change::Merge { target, sources } => self.merged(&target, &sources).await?,
            Change::Mark { target, ranges } => self.marked(&target, &ranges).await?,
        };
        Ok((list, Vec::new()))
    }

    fn with_new(
        &self,
        name: &str,
        granularity_bytes: u64,
        state: BitmapState,
    ) -> Result<Vec<Bitmap>, Error> {
        let bits = granularity_bytes.trailing_zeros();
        if !granularity_bytes.is_power_of_two() || !GRANULARITY_BITS.contains(&bits) {
            return refuse(format!(
                "granularity {granularity_bytes} is not a power of two from 512 to 2147483648"
            ));
        }
        if self.version < 3 {
            return refuse("version 2 has no bitmaps: use version 3".into());
        }
        if self.virtual_bytes == 0 {
            return refuse("a disk of no bytes has no bitmaps".into());
        }
        if name.is_empty() || name.len() > MAX_NAME {
            return refuse(format!(
                "a bitmap name of {} bytes is not within 1..={MAX_NAME}",
                name.len()
            ));
        }
        if self.bitmaps.find(name).is_ok() {
            return refuse(format!("bitmap `{name}` exists already"));
        }
        if self.bitmaps.list.len() >= mem_len(MAX_BITMAPS.into()) {
            return refuse(format!("the image has {MAX_BITMAPS} bitmaps already"));
        }
        entries_for(self.geometry, bits, self.virtual_bytes)?;
        let mut list = self.bitmaps.list.clone();
        list.push(Bitmap {
            record: Record::new(name, bits, state == BitmapState::Enabled),
            standing: Standing::Clean,
            content: Some(Rc::new(Content {
                bits: Bits::clean(bits, self.virtual_bytes),
                clusters: Vec::new(),
            })),
            changed: true,
        });
        Ok(list)
    }

    async fn merged(&mut self, target: &str, sources: &[String]) -> Result<Vec<Bitmap>, Error> {
        let target = self.bitmaps.find_clean(target)?;
        let mut indices = vec![target];
        for source in sources {
            indices.push(self.bitmaps.find_clean(source)?);
        }
        for index in &indices {
            self.load_bits(*index).await?;
        }
        let mut list = self.bitmaps.list.clone();
        for source in &indices[1..] {
            let source = self.bitmaps.list[*source].content.clone();
            if let (Some(bits), Some(source)) = (list[target].bits_mut(), source) {
                bits.merge(&source.bits);
            }
        }
        list[target].changed = true;
        Ok(list)
    }

    async fn marked(&mut self, target: &str, ranges: &[Range<u64>]) -> Result<Vec<Bitmap>, Error> {
        let len_bytes = |range: &Range<u64>| range.end.saturating_sub(range.start);
        let target = self.bitmaps.find_clean(target)?;
        for range in ranges {
            must_reach(self.virtual_bytes, range.start, len_bytes(range))?;
        }
        self.load_bits(target).await?;
        let mut list = self.bitmaps.list.clone();
        list[target].changed |= !self.planted.has(Defect::MarkedBitsUnstored);
        if let Some(bits) = list[target].bits_mut() {
            for range in ranges {
                bits.set(range.start, len_bytes(range));
            }
        }
        Ok(list)
    }

    /// Every cluster of a bitmap, so far as its table can be right.
    async fn bitmap_clusters(&self, index: usize) -> Result<Vec<Run>, Error> {
        let bitmap = &self.bitmaps.list[index];
        let record = &bitmap.record;
        let file = self.order.file();
        let data = match &bitmap.content {
            Some(content) => Some(content.clusters.clone()),
            None => table::clusters(file, self.geometry, record).await?,
        };
        let own = |cluster: &HostCluster| self.owners.contains_key(cluster);
        // What a table that cannot be right names is better leaked than freed under its owner.
        let Some(data) = data.filter(|data| !data.iter().any(own)) else {
            return Ok(Vec::new());
        };
        let first = self.geometry.cluster_of(record.table_offset);
        let clusters = self
            .geometry
            .clusters_for(u64::from(record.table_entries) * 8);
        let mut runs = vec![(first, clusters)];
        runs.extend(data.into_iter().map(|cluster| (cluster, 1)));
        Ok(runs)
    }
}
