//! The guest and manager of a simulated image: operations as tasks, and the history they leave.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use blkdebug::disks::Disk;
use blkdebug::record::Clock;
use engine::chain::Rebase;
use engine::error::{Error, Refused};
use engine::image::{Image, LocalFuture};

use super::chain;
use super::files::Opened;
use crate::workload::ops::{Answer, Happening, Moment, Operation, OperationId};
use crate::workload::perform::perform;

/// Opens the image under test on the simulated disks, as often as it is asked to.
pub trait Opener {
    /// Opens the image for reading and writing.
    fn open(&self) -> LocalFuture<'static, Opened>;

    /// Opens a file that the image can be put over, for reading.
    fn open_file(&self, disk: Disk) -> LocalFuture<'static, Rc<dyn Image>>;

    /// How the image is moved over a file.
    fn rebase_onto(&self, onto: Option<Disk>) -> Result<Rebase, Error>;
}

/// What the operations of a run did so far.
pub(super) struct Client {
    opener: Box<dyn Opener>,
    clock: Clock,
    image: RefCell<Option<Opened>>,
    /// Whether the last process that had the image open has left it so.
    is_left_open: Cell<bool>,
    log: RefCell<Log>,
}

/// What a client saw.
#[derive(Debug, Default)]
pub(super) struct Log {
    pub(super) history: Vec<Happening>,
    pub(super) reads: Vec<Read>,
    pub(super) failures: Vec<Failure>,
    /// Whether the first opening of the image succeeded.
    pub(super) was_opened: bool,
    /// When the image was opened.
    pub(super) openings: Vec<Opening>,
    /// The operations that opened the image behind a process that had not closed it.
    pub(super) revived: Vec<OperationId>,
}

/// The data that a read operation yielded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// Which operation.
    pub id: OperationId,
    /// The bytes.
    pub data: Vec<u8>,
}

/// An opening of the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening {
    /// Which operation opened it, or `None` for the first opening.
    pub id: Option<OperationId>,
    /// The last moment before it: when whoever had the image open before had closed it.
    pub began: Moment,
    /// Whether it succeeded.
    pub is_open: bool,
}

/// What failed, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Which operation, or `None` for the first opening.
    pub id: Option<OperationId>,
    /// What the image said.
    pub error: Error,
}

impl Client {
    pub(super) fn new(opener: Box<dyn Opener>, clock: Clock) -> Self {
        Self {
            opener,
            clock,
            image: RefCell::default(),
            is_left_open: Cell::new(false),
            log: RefCell::default(),
        }
    }

    /// Opens the image for the first time.
    pub(super) async fn start(self: Rc<Self>) {
        match self.open(None).await {
            Ok(()) => {
                self.is_left_open.set(true);
                self.log.borrow_mut().was_opened = true;
            }
            Err(error) => self.fail(None, error),
        }
    }

    /// Whether there is an open image.
    pub(super) fn is_open(&self) -> bool {
        self.image.borrow().is_some()
    }

    /// The operations that were submitted and not answered.
    pub(super) fn in_flight(&self) -> impl Iterator<Item = Operation> {
        let log = self.log.borrow();
        let open = |happening: &&Happening| happening.completed.is_none();
        let operations: Vec<_> = log
            .history
            .iter()
            .filter(open)
            .map(|it| it.operation)
            .collect();
        operations.into_iter()
    }

    /// The size of the disk at present, in bytes; 0 where no image is open.
    pub(super) fn disk_bytes(&self) -> u64 {
        let image = self.image.borrow();
        image
            .as_ref()
            .map_or(0, |image| image.image.virtual_bytes())
    }

    /// Notes the submission of the next operation; the future carries it out.
    pub(super) fn submit(
        self: Rc<Self>,
        operation: Operation,
    ) -> impl Future<Output = ()> + 'static {
        let mut log = self.log.borrow_mut();
        let index = u32::try_from(log.history.len()).expect("a workload has few operations");
        let id = OperationId(index);
        log.history.push(Happening {
            id,
            operation,
            submitted: self.now(),
            completed: None,
        });
        drop(log);
        async move {
            let outcome = self.perform(id, operation).await;
            self.finish(id, outcome);
            // What lies beneath is another file now, and has been since the answer.
            if let Operation::Chain(chained) = operation
                && chained.moves_onto().is_some()
                && let Err(error) = self.reopen(id).await
            {
                self.fail(Some(id), error);
            }
        }
    }

    /// Forgets the open image with all that it had in memory. What was not answered never will be.
    pub(super) fn die(&self) {
        drop(self.image.take());
        let now = self.now();
        for happening in &mut self.log.borrow_mut().history {
            happening.completed.get_or_insert((now, Answer::Failed));
        }
    }

    pub(super) fn take_log(&self) -> Log {
        self.log.take()
    }

    async fn perform(&self, id: OperationId, operation: Operation) -> Result<Vec<u8>, Error> {
        if operation == Operation::Reopen {
            return self.reopen(id).await.map(|()| Vec::new());
        }
        if operation == Operation::Kill {
            // Whoever carries that out has thrown the old process away.
            self.open(Some(id)).await?;
            self.revive(id);
            return Ok(Vec::new());
        }
        let opened = self.image.borrow().clone();
        let opened = opened.ok_or(Refused::Distrusted)?;
        if let Operation::Chain(operation) = operation {
            let done = chain::perform(&*self.opener, &opened, operation).await;
            return done.map(|()| Vec::new());
        }
        perform(&*opened.image, id, operation).await
    }

    /// Closes and opens; opens even where closing failed, as a new process would.
    async fn reopen(&self, id: OperationId) -> Result<(), Error> {
        let image = self.image.take();
        let closed = match &image {
            Some(image) => image.close().await,
            None => Ok(()),
        };
        if image.is_some() && closed.is_ok() {
            self.is_left_open.set(false);
        }
        drop(image);
        self.open(Some(id)).await?;
        self.revive(id);
        closed
    }

    /// Takes note that another process has the image open now, where the last one did not close it.
    fn revive(&self, id: OperationId) {
        if self.is_left_open.replace(true) {
            self.log.borrow_mut().revived.push(id);
        }
    }

    async fn open(&self, id: Option<OperationId>) -> Result<(), Error> {
        let began = Moment(self.clock.now().0);
        self.log.borrow_mut().openings.push(Opening {
            id,
            began,
            is_open: false,
        });
        let image = self.opener.open().await?;
        self.image.replace(Some(image));
        // Nobody opens it meanwhile: that waits for everything else, or kills it.
        if let Some(opening) = self.log.borrow_mut().openings.last_mut() {
            opening.is_open = true;
        }
        Ok(())
    }

    fn finish(&self, id: OperationId, outcome: Result<Vec<u8>, Error>) {
        let now = self.now();
        let answer = match outcome {
            Ok(data) => {
                self.note_read(id, data);
                Answer::Done
            }
            Err(error) => {
                self.fail(Some(id), error);
                Answer::Failed
            }
        };
        self.log.borrow_mut().history[to_usize(id.0.into())].completed = Some((now, answer));
    }

    fn note_read(&self, id: OperationId, data: Vec<u8>) {
        let mut log = self.log.borrow_mut();
        let operation = log.history[to_usize(id.0.into())].operation;
        if matches!(operation, Operation::Read { .. }) {
            log.reads.push(Read { id, data });
        }
    }

    fn fail(&self, id: Option<OperationId>, error: Error) {
        self.log.borrow_mut().failures.push(Failure { id, error });
    }

    fn now(&self) -> Moment {
        Moment(self.clock.next().0)
    }
}

fn to_usize(value: u64) -> usize {
    usize::try_from(value).expect("an operation's length fits the address space")
}
