//! What a run of `io` holds between commands: the open disk, and the requests that are under way.
//!
//! A request is a task on the executor that the simulations use; tasks run until nothing can go on. On
//! files everything can, except what a breakpoint suspended. The end of an asynchronous request is
//! told when the next command waits for requests, not in the middle of the command that started it.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::rc::Rc;

use engine::error::{Error, Problem};
use harness::sim::executor::{Executor, TaskId};

use super::opening::Opened;
use super::report::Stopwatch;
use crate::block::Failure;
use crate::block::failure::engine_text;
use crate::block::secret::Secrets;
use crate::img::{print, say_error};

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// As it was meant.
    Done,
    /// With something to complain about.
    Failed,
    /// The program is to end.
    Quit,
    /// It waits for what nobody can bring about any more.
    Stuck,
}

/// Why a command does not end well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Complaint {
    /// A line on the output stream.
    Said(String),
    /// A message of the program on the error stream.
    Told(String),
    /// A line on the error stream and the command's own line on the other: a wrong option.
    Option(String),
    /// The command's own line: operands that it does not take.
    Usage,
    /// Everything is said already.
    Nothing,
    /// It waits for ever.
    Stuck,
}

impl From<Failure> for Complaint {
    fn from(failure: Failure) -> Self {
        Self::Told(failure.0)
    }
}

/// What a command hands back.
pub(super) type Outcome = Result<Ending, Complaint>;

/// The state between commands.
#[derive(Default)]
pub(super) struct Session {
    pub(super) open: Option<Opened>,
    pub(super) secrets: Secrets,
    tasks: Executor,
    /// What asynchronous requests have to tell.
    ended: Rc<RefCell<VecDeque<String>>>,
}

impl Session {
    /// The open disk; the table of commands sees to it that there is one.
    pub(super) fn opened(&self) -> &Opened {
        self.open
            .as_ref()
            .expect("the command is refused without a disk")
    }

    /// Starts a request. What it hands back is told later.
    pub(super) fn start(&mut self, request: impl Future<Output = String> + 'static) {
        let ended = Rc::clone(&self.ended);
        let id = self.tasks.spawn(async move {
            let text = request.await;
            ended.borrow_mut().push_back(text);
        });
        self.tasks.poll(id);
    }

    /// Lets every request go on as far as it can.
    pub(super) fn run(&mut self) {
        loop {
            let runnable: Vec<TaskId> = self.tasks.runnable().collect();
            if runnable.is_empty() {
                break;
            }
            for id in runnable {
                self.tasks.poll(id);
            }
        }
    }

    /// Lets every request go on as far as it can, and tells what ended.
    pub(super) fn go_on(&mut self) {
        self.run();
        let ended: Vec<String> = self.ended.borrow_mut().drain(..).collect();
        print(&ended.concat());
    }

    /// Carries out something and waits for it.
    pub(super) fn wait<T: 'static>(
        &mut self,
        request: impl Future<Output = T> + 'static,
    ) -> Result<T, Complaint> {
        let slot = Rc::new(RefCell::new(None));
        let result = Rc::clone(&slot);
        let id = self.tasks.spawn(async move {
            let value = request.await;
            *result.borrow_mut() = Some(value);
        });
        self.tasks.poll(id);
        self.go_on();
        slot.take().ok_or(Complaint::Stuck)
    }

    /// Takes out of the image's caches what was idle for long, where it is time for that.
    pub(super) fn clean_caches(&mut self) {
        // What is suspended may hold what the cleaning would wait for.
        let idle = self.tasks.unfinished() == 0;
        let Some(opened) = self.open.as_mut().filter(|_| idle) else {
            return;
        };
        let due = opened.settings.spec.runtime.clean_interval();
        if due.is_none_or(|interval| opened.uncleaned.elapsed() < interval) {
            return;
        }
        opened.uncleaned = Stopwatch::start();
        let image = Rc::clone(opened.node.image());
        // Where it fails, memory is what it costs.
        let _ = self.wait(async move { image.drop_idle().await });
    }

    /// Waits for every request.
    pub(super) fn finish(&mut self) -> Result<(), Complaint> {
        self.go_on();
        if self.tasks.unfinished() == 0 {
            Ok(())
        } else {
            Err(Complaint::Stuck)
        }
    }

    /// Ends all requests and leaves the disk clean.
    pub(super) fn close(&mut self) -> Result<(), Complaint> {
        self.finish()?;
        let Some(opened) = self.open.take() else {
            return Ok(());
        };
        let closed = self.wait(async move { opened.node.image().close().await })?;
        // What was promised durable is; the rest is told and is no failure of a command.
        if let Err(error) = closed {
            explain(&error);
        }
        Ok(())
    }
}

/// Says on the error stream what went wrong in an image; one word of the system tells too little.
pub(super) fn explain(error: &Error) {
    match error {
        Error::BadImage(bad) if matches!(bad.problem, Problem::Overlap { .. }) => {
            say_error(&format!("qcow2: {}\n", engine_text(error)));
        }
        Error::BadImage(_) | Error::Unsupported(_) => {
            say_error(&format!("{}: {}\n", super::PROGRAM, engine_text(error)));
        }
        Error::Device(_) | Error::Refused(_) => {}
    }
}
