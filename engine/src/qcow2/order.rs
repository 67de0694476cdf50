//! The only place that issues barriers, and the account of what is durable.
//!
//! Every write of the engine goes through `Order`, which numbers the writes as they complete. A
//! flush covers the writes that had completed when it was submitted; a barrier therefore names the
//! youngest write that it needs and costs nothing where a flush has covered that already.
//!
//! An external data file is another disk with a cache of its own: a flush of one file says nothing of
//! the other. So there is an account for each, and a barrier flushes those that it needs and no other.
//!
//! A file is flushed once at a time. A device, or an operating system, may drop what a flush was to make durable that fails,
//! and tells one of those who asked: a second flush under way beside it may succeed, and be told of first. Who had to wait
//! finds what it needs durable, or asks for a flush of its own, or is refused.

use std::cell::Cell;

use crate::barrier::Barrier;
use crate::defect::{Defect, Planted};
use crate::device::{Event, Port, Unmapped};
use crate::error::{Error, Refused};
use crate::image::Unmap;
use crate::preallocation::{Preallocation, occupy};
use crate::probe::Probe;
use crate::qcow2::unit::HostOffset;
use crate::sync::Mutex;

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

/// A file, and what of it is durable.
#[derive(Debug)]
struct Account {
    file: Port,
    completed: Cell<u64>,
    durable: Cell<u64>,
    /// The youngest write that failed.
    failed: Cell<u64>,
    /// Held while the file is flushed, and until it is known what came of it.
    flushing: Mutex<()>,
}

impl Account {
    /// A file of which nothing is known to be durable: whoever wrote it may have been killed before
    /// the flush. All of that counts as one write, the youngest so far.
    fn new(file: Port) -> Self {
        Self {
            file,
            completed: Cell::new(1),
            durable: Cell::new(0),
            failed: Cell::new(0),
            flushing: Mutex::new(()),
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

    /// Tells of a rare situation.
    pub(crate) fn note(&self, probe: Probe) {
        self.file().note(probe);
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
        if outcome.is_err() {
            self.image.failed.set(stamp.image);
        }
        outcome?;
        Ok(stamp)
    }

    /// The youngest write to the image file that failed: it may have been carried out, and what is read there need not be
    /// durable.
    pub(crate) fn doubtful(&self) -> Stamp {
        Stamp {
            image: self.image.failed.get(),
            data: 0,
        }
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
        if !self.planted.has(Defect::WriteErrorSwallowed) {
            outcome?;
        }
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

    /// Writes through: durable on return, as `barrier` demands.
    pub(crate) async fn write_through(
        &self,
        barrier: Barrier,
        event: Event,
        offset: HostOffset,
        data: Vec<u8>,
    ) -> Result<(), Error> {
        let at = self.file().at(event);
        let outcome = if self.planted.lacks(barrier) {
            at.write(offset.0, data).await
        } else {
            at.write_fua(offset.0, data).await
        };
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

    /// Waits until the writes up to `needs` are durable.
    pub(crate) async fn barrier(&self, barrier: Barrier, needs: Stamp) -> Result<(), Error> {
        self.must_be_trusted()?;
        if self.planted.lacks(barrier) {
            return Ok(());
        }
        if let Some(data) = &self.data
            && !self.skips_data_file(barrier)
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
        let _alone = account.flushing.lock().await;
        self.must_be_trusted()?;
        if account.is_durable(needs) {
            return Ok(());
        }
        let covers = account.completed.get();
        if let Err(error) = account.file.at(Event::FlushToDisk).flush().await {
            if self.planted.has(Defect::FailedFlushTaken) {
                account.durable.set(account.durable.get().max(covers));
                return Err(error.into());
            }
            // What it was to make durable may be gone, and no later flush would tell.
            self.distrust();
            return Err(error.into());
        }
        // What failed meanwhile may have been a flush of the other file, or a change of the header.
        self.must_be_trusted()?;
        account.durable.set(account.durable.get().max(covers));
        Ok(())
    }

    /// Whether a planted defect takes the data file for durable.
    fn skips_data_file(&self, barrier: Barrier) -> bool {
        barrier == Barrier::BeforeLink && self.planted.has(Defect::LinkBeforeDataFile)
            || barrier == Barrier::GuestFlush && self.planted.has(Defect::FlushSkipsDataFile)
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
