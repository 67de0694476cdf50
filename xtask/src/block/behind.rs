//! A file whose writes a thread of its own carries out, for those who do not ask when data are durable.
//!
//! A write is answered when it is in the queue. Requests are carried out in the order in which they came,
//! so that a read sees every write before it. The first write that fails is told by the next request that is
//! waited for, and by all that follow: a flush is always waited for, and closing an image ends with one.

use std::cell::Cell;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use engine::device::{
    Completion, Device, DeviceError, Extent, FileDevice, Op, OpKind, Outcome, Reply, Request, drive,
};

/// So many requests may wait, so that memory stays bounded.
const QUEUE: usize = 8;

/// A file with a queue before it.
#[derive(Debug)]
pub(crate) struct WriteBehind {
    /// Taken only when the file is dropped.
    queue: Option<SyncSender<Job>>,
    thread: Option<JoinHandle<()>>,
    /// The length that the file has when the queue is empty.
    len: Cell<u64>,
}

#[derive(Debug)]
enum Job {
    /// Nobody waits for this.
    Write(Request),
    Ask(Request, SyncSender<(Outcome, u64)>),
    Extent(u64, SyncSender<Extent>),
}

impl WriteBehind {
    pub(crate) fn new(file: FileDevice) -> Self {
        let len = Cell::new(file.len());
        let (queue, jobs) = sync_channel(QUEUE);
        let thread = std::thread::spawn(move || work(&file, &jobs));
        Self {
            queue: Some(queue),
            thread: Some(thread),
            len,
        }
    }

    fn send(&self, job: Job) {
        let queue = self.queue.as_ref().expect("the queue lasts with the file");
        queue.send(job).expect("the thread ends after the queue");
    }

    fn ask<T>(&self, job: impl FnOnce(SyncSender<T>) -> Job) -> T {
        let (answer, answered) = sync_channel(1);
        self.send(job(answer));
        answered.recv().expect("every question is answered")
    }
}

impl Drop for WriteBehind {
    fn drop(&mut self) {
        drop(self.queue.take());
        if let Some(thread) = self.thread.take() {
            // What failed was told, or nobody asked.
            let _ = thread.join();
        }
    }
}

/// Carries out what comes through the queue, until it ends.
fn work(file: &FileDevice, jobs: &Receiver<Job>) {
    let mut failed: Option<DeviceError> = None;
    let carry_out = |request| drive(file.submit(request)).expect("a file answers at once");
    for job in jobs {
        match job {
            Job::Write(request) if failed.is_none() => failed = carry_out(request).err(),
            Job::Write(_) => {}
            Job::Ask(request, answer) => {
                let outcome = match &failed {
                    Some(error) => Err(error.clone()),
                    // Whoever takes this file does not ask for data to be durable.
                    None if request.op.kind() == OpKind::Flush => Ok(Reply::Done),
                    None => carry_out(request),
                };
                let _ = answer.send((outcome, file.len()));
            }
            Job::Extent(offset, answer) => {
                let _ = answer.send(file.extent(offset));
            }
        }
    }
}

impl Device for WriteBehind {
    fn submit(&self, request: Request) -> Completion {
        let (offset, len_bytes) = request.op.range();
        let end = offset.checked_add(len_bytes);
        match (&request.op, end.filter(|end| i64::try_from(*end).is_ok())) {
            (Op::Write { .. } | Op::WriteZeroes { .. }, Some(end)) => {
                self.len.set(self.len.get().max(end));
                self.send(Job::Write(request));
                Completion::ready(Ok(Reply::Done))
            }
            _ => {
                let (outcome, len) = self.ask(|answer| Job::Ask(request, answer));
                self.len.set(len);
                Completion::ready(outcome)
            }
        }
    }

    fn extent(&self, offset: u64) -> Extent {
        self.ask(|answer| Job::Extent(offset, answer))
    }

    fn len(&self) -> u64 {
        self.len.get()
    }
}

#[cfg(test)]
mod tests {
    use engine::device::{Event, Port};

    use super::*;

    fn submit(device: &WriteBehind, op: Op) -> Outcome {
        let event = Event::None;
        drive(device.submit(Request { event, op })).unwrap()
    }

    fn write(offset: u64, byte: u8, len: usize) -> Op {
        Op::Write {
            offset,
            data: vec![byte; len],
            fua: false,
        }
    }

    #[test]
    fn what_was_written_is_read_and_measured_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let device = WriteBehind::new(FileDevice::create_new(&path).unwrap());
        for step in 0..100_u8 {
            submit(&device, write(u64::from(step) * 4096, step, 4096)).unwrap();
            assert_eq!(device.len(), (u64::from(step) + 1) * 4096);
        }
        let read = Op::Read {
            offset: 99 * 4096 - 1,
            len_bytes: 2,
        };
        assert_eq!(submit(&device, read), Ok(Reply::Data(vec![98, 99])));
        submit(&device, Op::SetLen { len_bytes: 5000 }).unwrap();
        assert_eq!(device.len(), 5000);
        submit(&device, Op::Flush).unwrap();
        drop(device);
        assert_eq!(std::fs::read(path).unwrap().len(), 5000);
    }

    #[test]
    fn a_write_that_failed_is_told_by_every_flush_that_follows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, [1; 512]).unwrap();
        // A file that is open for reading takes no write.
        let device = WriteBehind::new(FileDevice::open_read_only(&path).unwrap());
        submit(&device, write(0, 2, 512)).unwrap();
        for _ in 0..2 {
            assert!(submit(&device, Op::Flush).is_err());
        }
        assert!(submit(&device, write(u64::MAX, 2, 512)).is_err());
        let port = Port::new(std::rc::Rc::new(device));
        assert_eq!(port.len(), 512, "and the length is learnt again");
        assert_eq!(std::fs::read(path).unwrap(), [1; 512]);
    }
}
