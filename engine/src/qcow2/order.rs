//! The only place that issues barriers, and the account of what is durable.
//!
//! Every write of the engine goes through `Order`, which numbers the writes as they complete. A
//! flush covers the writes that had completed when it was submitted; a barrier therefore names the
//! youngest write that it needs and costs nothing where a flush has covered that already.
//!
//! An external data file is another disk with a cache of its own: a flush of one file says nothing of
//! the other. So there is an account for each, and a barrier flushes those that it needs and no other.

use std::cell::Cell;

use crate::defect::{Defect, Planted};
use crate::device::{Event, Port, Unmapped};
use crate::error::{Error, Refused};
use crate::image::Unmap;
use crate::preallocation::{Preallocation, occupy};
use crate::qcow2::unit::HostOffset;

/// A write's place in the order of completions, or that of the youngest of several writes: of those to
/// the image file, and of those to the data file. The default stands before every write, also those of
/// whoever had the files open before.
///
/// Only stamps of writes to the image file are compared: those that unlink something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp {
    image: u64,
    data: u64,
}

impl Stamp {
    /// The youngest writes of both, in each file.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self {
            image: self.image.max(other.image),
            data: self.data.max(other.data),
        }
    }
}

/// The rules of [`crate::qcow2`] that cost a barrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// Rule 1: refcounts and data before the L2 entries that rely on them.
    BeforeLink,
    /// Rule 2: an L2 table before the L1 entry that points to it.
    BeforeL1,
    /// Rule 4: a refcount block before the refcount table entry.
    BeforeHookup,
    /// Rule 5: the refcount table entry before use of what the block counts.
    AfterHookup,
    /// Rule 6: a refcount table and its blocks before the header that points to it.
    BeforeReftableSwitch,
    /// Rule 6: an L1 table before the header that points to it.
    BeforeL1Switch,
    /// Rule 7: the header before clusters are used that only the new refcount table covers.
    AfterReftableSwitch,
    /// Rule 9: L2 tables and refcounts before the dirty bit is cleared.
    BeforeClean,
    /// Rule 9: the cleared dirty bit before close returns.
    AfterClean,
    /// Rule 10: the content of a grown disk before its size.
    BeforeSize,
    /// Rule 10: the size before grow returns.
    AfterSize,
    /// Rule 30: a smaller disk's header before anything goes that lay beyond its end.
    AfterShrink,
    /// Rule 31: what names clusters behind the new end of the file no more, before it ends there.
    BeforeCut,
    /// Rule 16: cleared COPIED before a second reference is counted.
    BeforeRaise,
    /// Rule 17: counts and tables before the header that makes them a snapshot's, or the disk's.
    BeforeSnapshotSwitch,
    /// Rule 18: that header before what it unlinked goes, and before it is told.
    AfterSnapshotSwitch,
    /// Rule 19: lowered refcounts before COPIED claims them.
    BeforeCopied,
    /// Rule 11: what the guest asked to be durable.
    GuestFlush,
    /// Rule 20: the mark of an enabled bitmap before the first change.
    BeforeChange,
    /// Rule 21: stored bitmaps and their directory before the header that points to it.
    BeforeBitmapSwitch,
    /// Rule 21: the switch before an operation on bitmaps returns, and before anything old is freed.
    AfterBitmapSwitch,
    /// Rule 12: what stands in the file before anything builds on it.
    BeforeUse,
    /// Rule 13: what lies behind sector 0 before the header that refers to it.
    BeforeHeaderSwitch,
    /// Rule 13: the rewritten header before its change returns.
    AfterHeaderSwitch,
    /// Rule 14: refcounts of another width before the header that points to them.
    BeforeWidthSwitch,
    /// Rule 14: expanded zeroes before the header of a version that knows none.
    BeforeDowngrade,
    /// Rule 15: the empty L1 table before the header that points to it.
    BeforeEmptySwitch,
    /// Rule 15: the switch to the empty L1 table before what it unlinked is freed.
    AfterEmptySwitch,
    /// Rule 24: the L2 entry that shows a cluster of a raw data file before the cluster changes.
    BeforeRawData,
    /// Rule 25: key material before the slot that refers to it is active.
    BeforeKeySlot,
    /// Rule 26: the active slot before it is told.
    AfterKeySlot,
    /// Rule 27: the inactive slot before its key material is overwritten.
    BeforeKeyWipe,
    /// Rule 28: the overwritten key material before it is told.
    AfterKeyWipe,
}

impl Rule {
    /// The planted defect that leaves this barrier out, where there is one.
    fn defect(self) -> Option<Defect> {
        match self {
            Self::BeforeLink => Some(Defect::LinkBeforeData),
            Self::BeforeL1 => Some(Defect::L1BeforeL2),
            Self::BeforeHookup => Some(Defect::HookupBeforeBlock),
            Self::BeforeReftableSwitch => Some(Defect::ReftableBeforeBlocks),
            Self::BeforeL1Switch => Some(Defect::L1SwitchBeforeTable),
            Self::BeforeClean => Some(Defect::CleanTooEarly),
            Self::GuestFlush => Some(Defect::FlushSkipsDevice),
            Self::AfterHookup => Some(Defect::UseBeforeHookup),
            Self::AfterReftableSwitch => Some(Defect::UseBeforeSwitch),
            Self::BeforeSize => Some(Defect::SizeBeforeContent),
            Self::AfterSize => Some(Defect::SizeNotFlushed),
            Self::BeforeHeaderSwitch => Some(Defect::HeaderBeforeNames),
            Self::AfterHeaderSwitch => Some(Defect::HeaderNotFlushed),
            Self::BeforeWidthSwitch => Some(Defect::WidthBeforeBlocks),
            Self::BeforeDowngrade => Some(Defect::DowngradeBeforeZeroes),
            Self::BeforeEmptySwitch => Some(Defect::EmptyBeforeTable),
            Self::AfterEmptySwitch => Some(Defect::EmptyFreesEarly),
            Self::BeforeRawData => Some(Defect::RawDataBeforeLink),
            Self::AfterShrink => Some(Defect::ShrinkFreesEarly),
            Self::BeforeCut => Some(Defect::CutTooEarly),
            Self::BeforeRaise => Some(Defect::RaiseBeforeClaims),
            Self::BeforeSnapshotSwitch => Some(Defect::SnapshotSwitchEarly),
            Self::AfterSnapshotSwitch => Some(Defect::SnapshotNotFlushed),
            Self::BeforeCopied => Some(Defect::CopiedBeforeCounts),
            Self::AfterClean | Self::BeforeUse => None,
            Self::BeforeKeySlot => Some(Defect::KeySlotBeforeMaterial),
            Self::AfterKeySlot => Some(Defect::KeySlotNotFlushed),
            Self::BeforeKeyWipe => Some(Defect::KeyWipeEarly),
            Self::AfterKeyWipe => Some(Defect::KeyWipeNotFlushed),
            Self::BeforeChange => Some(Defect::BitmapMarkedLate),
            Self::BeforeBitmapSwitch => Some(Defect::BitmapSwitchBeforeContent),
            Self::AfterBitmapSwitch => Some(Defect::BitmapNotFlushed),
        }
    }
}

/// A file, and what of it is durable.
#[derive(Debug)]
struct Account {
    file: Port,
    completed: Cell<u64>,
    durable: Cell<u64>,
}

impl Account {
    /// A file of which nothing is known to be durable: whoever wrote it may have been killed before
    /// the flush. All of that counts as one write, the youngest so far.
    fn new(file: Port) -> Self {
        Self {
            file,
            completed: Cell::new(1),
            durable: Cell::new(0),
        }
    }

    /// Numbers a write that was answered. One that failed may have been carried out in part: a later flush
    /// must cover it too.
    fn count(&self) -> u64 {
        self.completed.set(self.completed.get() + 1);
        self.completed.get()
    }

    fn is_durable(&self, number: u64) -> bool {
        number <= self.durable.get()
    }
}

/// The files of an image, and what of them is durable.
#[derive(Debug)]
pub(crate) struct Order {
    image: Account,
    /// The external data file, where there is one.
    data: Option<Account>,
    planted: Planted,
    distrusted: Cell<bool>,
}

impl Order {
    /// The files of an image: its own, and the one that guest data are in, where that is another.
    pub(crate) fn new(file: Port, data: Option<Port>, planted: Planted) -> Self {
        Self {
            image: Account::new(file),
            data: data.map(Account::new),
            planted,
            distrusted: Cell::new(false),
        }
    }

    /// The image file, for what changes nothing.
    pub(crate) fn file(&self) -> &Port {
        &self.image.file
    }

    /// The file that guest data are in, for what changes nothing.
    pub(crate) fn data_file(&self) -> &Port {
        &self.data.as_ref().unwrap_or(&self.image).file
    }

    /// Writes into the image file's cache.
    pub(crate) async fn write(
        &self,
        event: Event,
        offset: HostOffset,
        data: Vec<u8>,
    ) -> Result<Stamp, Error> {
        let outcome = self.file().at(event).write(offset.0, data).await;
        let stamp = self.stamp();
        outcome?;
        Ok(stamp)
    }

    /// Writes guest data into the cache of the file that they are in.
    pub(crate) async fn write_data(
        &self,
        event: Event,
        offset: HostOffset,
        data: Vec<u8>,
    ) -> Result<Stamp, Error> {
        let outcome = self.data_file().at(event).write(offset.0, data).await;
        let stamp = self.data_stamp();
        outcome?;
        Ok(stamp)
    }

    /// Writes zeroes in the place of guest data. Where `unmap` says so their space may be given back, as
    /// far as that leaves nothing but zeroes or what was there.
    pub(crate) async fn zero_data(
        &self,
        event: Event,
        offset: HostOffset,
        len_bytes: u64,
        unmap: Unmap,
    ) -> Result<Stamp, Error> {
        let file = self.data_file();
        let unmap = unmap == Unmap::Allow && file.limits().unmapped == Unmapped::Zeroes;
        let at = file.at(event);
        let outcome = at.write_zeroes(offset.0, len_bytes, unmap).await;
        let stamp = self.data_stamp();
        outcome?;
        Ok(stamp)
    }

    /// Makes the data file no longer than this. A place that is given up with that is not owed: advice.
    pub(crate) async fn cut_data(&self, len_bytes: u64) {
        let file = self.data_file();
        if file.len() > len_bytes {
            let _ = file.at(Event::None).set_len(len_bytes).await;
            self.data_stamp();
        }
    }

    /// Makes the data file at least so long. What is added reads as zeroes.
    pub(crate) async fn lengthen_data(&self, len_bytes: u64) -> Result<Stamp, Error> {
        let file = self.data_file();
        if file.len() >= len_bytes {
            return Ok(Stamp::default());
        }
        let outcome = file.at(Event::None).set_len(len_bytes).await;
        let stamp = self.data_stamp();
        outcome?;
        Ok(stamp)
    }

    /// Gives back the space of a range of the data file that nothing durable refers to. Advice.
    pub(crate) async fn discard_data(&self, offset: HostOffset, len_bytes: u64) {
        let at = self.data_file().at(Event::ClusterFree);
        let _ = at.discard(offset.0, len_bytes).await;
        self.data_stamp();
    }

    /// Writes through: durable on return.
    pub(crate) async fn write_through(
        &self,
        event: Event,
        offset: HostOffset,
        data: Vec<u8>,
    ) -> Result<(), Error> {
        let outcome = self.file().at(event).write_fua(offset.0, data).await;
        self.stamp();
        Ok(outcome?)
    }

    /// Sets the length of the file.
    pub(crate) async fn set_len(&self, len_bytes: u64) -> Result<Stamp, Error> {
        let outcome = self.file().at(Event::None).set_len(len_bytes).await;
        let stamp = self.stamp();
        outcome?;
        Ok(stamp)
    }

    /// Takes the space of a range within the file, as `mode` does it.
    pub(crate) async fn occupy(
        &self,
        offset: HostOffset,
        len_bytes: u64,
        mode: Preallocation,
    ) -> Result<Stamp, Error> {
        let outcome = occupy(self.file(), offset.0, len_bytes, mode).await;
        let stamp = self.stamp();
        outcome?;
        Ok(stamp)
    }

    /// Gives a range's space back. Advice: a device that does not take it loses nothing.
    pub(crate) async fn discard(&self, offset: HostOffset, len_bytes: u64) {
        let at = self.file().at(Event::ClusterFree);
        let _ = at.discard(offset.0, len_bytes).await;
        self.stamp();
    }

    /// Waits until the writes up to `needs` are durable, as `rule` demands.
    pub(crate) async fn barrier(&self, rule: Rule, needs: Stamp) -> Result<(), Error> {
        if rule.defect().is_some_and(|defect| self.planted.has(defect)) {
            return Ok(());
        }
        self.must_be_trusted()?;
        if let Some(data) = &self.data
            && !self.skips_data_file(rule)
        {
            self.flush(data, needs.data).await?;
        }
        self.flush(&self.image, needs.image).await
    }

    /// Flushes a file unless its writes up to number `needs` are durable.
    async fn flush(&self, account: &Account, needs: u64) -> Result<(), Error> {
        if account.is_durable(needs) {
            return Ok(());
        }
        let covers = account.completed.get();
        if let Err(error) = account.file.at(Event::FlushToDisk).flush().await {
            // What it was to make durable may be gone, and no later flush would tell.
            self.distrust();
            return Err(error.into());
        }
        // A flush that failed meanwhile may have dropped what this one covers.
        self.must_be_trusted()?;
        account.durable.set(account.durable.get().max(covers));
        Ok(())
    }

    /// Whether a planted defect takes the data file for durable.
    fn skips_data_file(&self, rule: Rule) -> bool {
        rule == Rule::BeforeLink && self.planted.has(Defect::LinkBeforeDataFile)
            || rule == Rule::GuestFlush && self.planted.has(Defect::FlushSkipsDataFile)
    }

    /// Makes every further barrier fail: what the file relies on is no longer known.
    pub(crate) fn distrust(&self) {
        self.distrusted.set(true);
    }

    /// Refuses what would build on writes that may be gone, whether it waits for a barrier or not.
    pub(crate) fn must_be_trusted(&self) -> Result<(), Error> {
        if self.distrusted.get() {
            Err(Refused::Distrusted.into())
        } else {
            Ok(())
        }
    }

    /// Whether an earlier failure leaves in doubt what the file holds.
    pub(crate) fn is_distrusted(&self) -> bool {
        self.distrusted.get()
    }

    /// Whether the writes up to `stamp` are durable.
    pub(crate) fn is_durable(&self, stamp: Stamp) -> bool {
        let data = self.data.as_ref();
        self.image.is_durable(stamp.image) && data.is_none_or(|data| data.is_durable(stamp.data))
    }

    /// The youngest writes.
    pub(crate) fn latest(&self) -> Stamp {
        Stamp {
            image: self.image.completed.get(),
            data: self.data.as_ref().map_or(0, |data| data.completed.get()),
        }
    }

    fn stamp(&self) -> Stamp {
        Stamp {
            image: self.image.count(),
            data: 0,
        }
    }

    fn data_stamp(&self) -> Stamp {
        match &self.data {
            Some(data) => Stamp {
                image: 0,
                data: data.count(),
            },
            None => self.stamp(),
        }
    }
}
