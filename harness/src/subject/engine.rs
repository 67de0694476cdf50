//! The project's own engine as a subject.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::rc::Rc;

use blkdebug::disks::{Disk, Disks};
use blkdebug::record::{Clock, Recording};
use engine::device::{ContentHash, PageImage, Port, RamDevice, drive};
use engine::error::{Error, Refused};
use engine::image::{Access, Image};
use engine::luks::{Secret, VolumeKey};
use engine::qcow2::{Files, OpenOptions, Qcow2, Unlock, check};
use engine::raw::Raw;

use super::metered::Metered;
use super::{Answers, Attempt, Failure, Repair, Subject, Tally};
use crate::caught::catch;
use crate::crash::footprint::Footprint;
use crate::crash::recall::Recall;
use crate::guide::rare::Hits;
use crate::oracle::fingerprint;
use crate::oracle::structure::encryption_header;
use crate::oracle::view::Backing;
use crate::sim::stage::secrets;
use crate::workload::ops::{
    Answer, Happening, Moment, Operation, OperationId, SnapshotChange, SnapshotOperation,
};
use crate::workload::perform::perform;

/// The engine's qcow2 over a disk that answers at once.
#[derive(Clone, Debug)]
pub struct EngineSubject {
    options: OpenOptions,
    backing: Option<Backing>,
    data: Option<PageImage>,
    /// Whether the data file was read although no guest data were asked for.
    looked_at_data: Cell<bool>,
    memory: Rc<RefCell<Memory>>,
    secrets: Rc<[Secret]>,
    hits: Rc<Hits>,
}

/// What an engine with these options knows of images by now, whatever lies beside them.
#[derive(Debug, Default)]
struct Memory {
    /// The keys of LUKS volumes that secrets opened, by [`fingerprint`]: the same header with the same key
    /// material yields the same key, after thousands of hashes. Whatever differs is derived anew.
    keys: BTreeMap<u128, VolumeKey>,
    /// The images that recovery and repair leave as they are, by what they read of them.
    settled: BTreeMap<Beside, Recall<()>>,
    /// What lay below last: nobody writes to it, so that it stays open until something fails.
    below: Option<Below>,
}

/// An open chain of images, and what names its content.
struct Below {
    content: ContentHash,
    image: Rc<dyn Image>,
}

impl fmt::Debug for Below {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Below").field(&self.content).finish()
    }
}

/// What opening and repairing an image may see of other files: what the files below it hold, and how long the data file is.
type Beside = (Option<ContentHash>, Option<u64>);

/// The disks of one attempt, on one clock.
struct Devices {
    image: Rc<Metered>,
    data: Option<Rc<Metered>>,
}

impl Devices {
    /// What happened on them: as on one disk where nothing happened on the other.
    fn take_recording(&self) -> Recording {
        let mut parts = Disks::one(self.image.take_recording());
        let data = self.data.as_ref().map(|data| data.take_recording());
        if let Some(data) = data.filter(Recording::changes) {
            parts.put(Disk::Data, data);
        }
        if parts.count() == 1 {
            return parts.into_image();
        }
        Recording::join(&parts)
    }
}

/// So many keys are remembered, and images beside so many different files.
const KEPT: usize = 256;

impl EngineSubject {
    /// The engine with these options, and with this image below the one that is judged.
    pub fn new(options: OpenOptions, backing: Option<Backing>) -> Self {
        Self {
            options,
            backing,
            data: None,
            looked_at_data: Cell::new(false),
            memory: Rc::default(),
            secrets: Rc::new(secrets()),
            hits: Rc::default(),
        }
    }

    /// The same over this file and with its guest data in that one. It goes on with what it knows of images.
    #[must_use]
    pub fn beside(&self, backing: Option<Backing>, data: Option<PageImage>) -> Self {
        Self {
            backing,
            data,
            ..self.clone()
        }
    }

    fn beside_what(&self) -> Beside {
        let backing = self.backing.as_ref().map(Backing::content_hash);
        (backing, self.data.as_ref().map(PageImage::len))
    }

    /// The same, counting rare situations there.
    #[must_use]
    pub fn counting(self, hits: &Rc<Hits>) -> Self {
        let hits = Rc::clone(hits);
        Self { hits, ..self }
    }

    async fn open(&self, devices: &Devices) -> Result<Qcow2, Error> {
        let backing = match &self.backing {
            Some(backing) => Some(self.open_below(backing).await?),
            None => None,
        };
        let image = devices.image.current();
        let fingerprint = encryption_header(&image).and_then(|area| fingerprint(&image, area));
        let key = fingerprint.and_then(|print| self.memory.borrow().keys.get(&print).cloned());
        let unlock = match &key {
            Some(key) => Unlock::Key(key),
            None => Unlock::Secrets(&self.secrets),
        };
        let files = Files {
            image: devices.image.port(),
            data: devices.data.as_ref().map(Metered::port),
            backing,
        };
        let open = Box::pin(Qcow2::open_unlocked(files, &self.options, unlock)).await?;
        if let (Some(fingerprint), None, Some(key)) = (fingerprint, key, open.volume_key()) {
            let keys = &mut self.memory.borrow_mut().keys;
            if keys.len() >= KEPT {
                keys.clear();
            }
            keys.insert(fingerprint, key);
        }
        Ok(open)
    }

    async fn open_below(&self, backing: &Backing) -> Result<Rc<dyn Image>, Error> {
        let content = backing.content_hash();
        let known = |memory: &Memory| {
            let below = memory.below.as_ref().filter(|it| it.content == content)?;
            Some(Rc::clone(&below.image))
        };
        if let Some(image) = known(&self.memory.borrow()) {
            return Ok(image);
        }
        // What opening holds would be most of what every attempt moves about.
        let image = Box::pin(open_backing(backing)).await?;
        let below = Below {
            content,
            image: Rc::clone(&image),
        };
        self.memory.borrow_mut().below = Some(below);
        Ok(image)
    }

    /// Lets `work` loose on a disk with the content of `image`, beside one with the data.
    fn attempt<T, F: Future<Output = Result<T, Error>>>(
        &self,
        image: &PageImage,
        work: impl FnOnce(Rc<Devices>) -> F,
    ) -> Attempt<T> {
        let clock = Clock::default();
        let data = self.data.as_ref();
        let devices = Rc::new(Devices {
            data: data.map(|data| Metered::on(clock.clone(), data, &self.hits)),
            image: Metered::on(clock, image, &self.hits),
        });
        let outcome = catch(|| drive(work(Rc::clone(&devices))));
        let recording = devices.take_recording();
        let result = match outcome {
            Ok(Some(Ok(value))) => Ok(value),
            Ok(Some(Err(error))) => Err(failure(&error)),
            Ok(None) => Err(Failure::Hang {
                requests: u64::try_from(recording.entries.len())
                    .expect("a count of requests fits 64 bits"),
            }),
            Err(panic) => Err(Failure::Panic(panic)),
        };
        if result.is_err() {
            self.memory.borrow_mut().below = None;
        }
        Attempt {
            result,
            recording,
            image: devices.image.current(),
            data: devices.data.as_ref().map(|data| data.current()),
        }
    }
}

impl Subject for EngineSubject {
    fn recover(&self, image: &PageImage, reads: &[Range<u64>]) -> Attempt<Vec<Vec<u8>>> {
        self.attempt(image, async |devices| {
            let open = self.open(&devices).await?;
            let mut data = Vec::with_capacity(reads.len());
            for range in reads {
                let len = usize::try_from(range.end - range.start).expect("a read fits memory");
                data.push(open.read_range(range.start, len).await?);
            }
            open.close().await?;
            if reads.is_empty() && devices.data.as_ref().is_some_and(|data| data.was_read()) {
                self.looked_at_data.set(true);
            }
            Ok(data)
        })
    }

    fn read_each(&self, image: &PageImage, reads: &[Range<u64>]) -> Attempt<Answers> {
        self.attempt(image, async |devices| {
            let open = self.open(&devices).await?;
            let mut answers = Vec::with_capacity(reads.len());
            for range in reads {
                let len = usize::try_from(range.end - range.start).expect("a read fits memory");
                let read = open.read_range(range.start, len).await;
                answers.push(read.map_err(|error| failure(&error)));
            }
            drop(open.close().await);
            Ok(answers)
        })
    }

    fn check(&self, image: &PageImage, repair: Repair) -> Attempt<Tally> {
        let repair = match repair {
            Repair::None => check::Repair::None,
            Repair::Leaks => check::Repair::Leaks,
            Repair::All => check::Repair::All,
        };
        let options = check::CheckOptions {
            planted: self.options.planted,
        };
        self.attempt(image, async |devices| {
            let port = devices.image.port();
            let report = check::check(&port, repair, &options).await?;
            Ok(Tally {
                errors: report.errors_remaining(),
                leaks: report.remaining.leaks,
            })
        })
    }

    fn is_settled(&self, image: &PageImage) -> Option<Rc<Footprint>> {
        let settled = &mut self.memory.borrow_mut().settled;
        let (read, ()) = settled.get_mut(&self.beside_what())?.of(image)?;
        Some(read)
    }

    fn settle(&self, image: &PageImage, read: Footprint) {
        // It may hang on more than the image then.
        if self.looked_at_data.get() {
            return;
        }
        let settled = &mut self.memory.borrow_mut().settled;
        if settled.len() >= KEPT {
            settled.clear();
        }
        let settled = settled.entry(self.beside_what()).or_default();
        settled.learn(image, read, ());
    }

    fn serve(
        &self,
        image: &PageImage,
        operations: &[(OperationId, Operation)],
    ) -> Attempt<Vec<Happening>> {
        self.attempt(image, async |devices| {
            let mut open = self.open(&devices).await?;
            let mut history = Vec::with_capacity(operations.len());
            for (id, operation) in operations {
                let submitted = Moment(devices.image.clock().next().0);
                let answer = if *operation == Operation::Reopen {
                    open.close().await?;
                    open = self.open(&devices).await?;
                    Answer::Done
                } else {
                    match perform(&open, *id, *operation).await {
                        Ok(_) => Answer::Done,
                        Err(error) if is_full(*operation, &error) => Answer::Failed,
                        Err(error) => return Err(error),
                    }
                };
                history.push(Happening {
                    id: *id,
                    operation: *operation,
                    submitted,
                    completed: Some((Moment(devices.image.clock().next().0), answer)),
                });
            }
            open.close().await?;
            Ok(history)
        })
    }
}

/// Whether a snapshot was refused because a refcount cannot say one more: how many sharers a cluster has
/// depends on what was compressed into it.
fn is_full(operation: Operation, error: &Error) -> bool {
    let snapshots = matches!(
        operation,
        Operation::Snapshot(SnapshotOperation {
            change: SnapshotChange::Create | SnapshotChange::Apply,
            ..
        })
    );
    snapshots
        && matches!(
            error,
            Error::Refused(Refused::RefcountOverflow | Refused::NoSuchSnapshot(_))
        )
}

async fn open_backing(backing: &Backing) -> Result<Rc<dyn Image>, Error> {
    let file = Port::new(Rc::new(RamDevice::new(backing.image().clone())));
    if backing.is_raw() {
        return Ok(Rc::new(Raw::open(file, Access::ReadOnly)));
    }
    let below = match backing.below() {
        Some(below) => Some(Box::pin(open_backing(below)).await?),
        None => None,
    };
    let options = OpenOptions {
        access: Access::ReadOnly,
        ..OpenOptions::default()
    };
    Ok(Rc::new(Qcow2::open(file, below, &options).await?))
}

/// The kind by which failure classes name an error, and what it says.
fn failure(error: &Error) -> Failure {
    let kind = match error {
        Error::Device(_) => "device".into(),
        Error::BadImage(bad) => format!("bad-image in the {}", bad.structure),
        Error::Unsupported(_) => "unsupported".into(),
        Error::Refused(_) => "refused".into(),
    };
    Failure::Error {
        kind,
        message: error.to_string(),
    }
}

#[cfg(test)]
mod tests;
