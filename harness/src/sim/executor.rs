//! A single-threaded executor that never decides anything: its caller says which task runs.
//!
//! A task is polled only when something woke it. No task is cancelled by itself: tasks end by finishing, or all
//! at once, when the process is killed, or when the executor is dropped as the power goes out.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};

/// The number of a task, in the order of spawning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TaskId(pub usize);

/// The tasks of one simulated process.
#[derive(Default)]
pub struct Executor {
    /// Tasks that have not finished, by ascending id.
    tasks: Vec<Task>,
    spawned: usize,
}

struct Task {
    id: TaskId,
    future: Pin<Box<dyn Future<Output = ()>>>,
    signal: Arc<Signal>,
    waker: Waker,
}

/// Raised when the task may be able to go on. A waker has to be `Send`; everything here stays on one
/// thread all the same, so no ordering between threads matters.
struct Signal(AtomicBool);

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Executor {
    /// Adds a task, which is runnable at once.
    pub fn spawn(&mut self, future: impl Future<Output = ()> + 'static) -> TaskId {
        let id = TaskId(self.spawned);
        self.spawned += 1;
        let signal = Arc::new(Signal(AtomicBool::new(true)));
        self.tasks.push(Task {
            id,
            future: Box::pin(future),
            waker: Waker::from(Arc::clone(&signal)),
            signal,
        });
        id
    }

    /// The tasks that something woke, oldest first.
    pub fn runnable(&self) -> impl Iterator<Item = TaskId> {
        self.tasks
            .iter()
            .filter(|task| task.signal.0.load(Ordering::Relaxed))
            .map(|task| task.id)
    }

    /// How many tasks have not finished.
    pub fn unfinished(&self) -> usize {
        self.tasks.len()
    }

    /// Ends every task where it waits. The next to be spawned has a number of its own.
    pub fn kill(&mut self) {
        self.tasks.clear();
    }

    /// Lets a task run until it waits or finishes.
    ///
    /// # Panics
    /// Where there is no unfinished task of that number, and where the task panics.
    pub fn poll(&mut self, id: TaskId) {
        let at = self
            .tasks
            .binary_search_by_key(&id, |task| task.id)
            .expect("only unfinished tasks are polled");
        let task = &mut self.tasks[at];
        task.signal.0.store(false, Ordering::Relaxed);
        let mut context = Context::from_waker(&task.waker);
        if task.future.as_mut().poll(&mut context).is_ready() {
            self.tasks.remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use engine::device::{Completion, Reply};

    use super::*;

    #[test]
    fn a_task_that_waits_is_runnable_only_when_woken() {
        let mut executor = Executor::default();
        let (completion, completer) = Completion::pending();
        let id = executor.spawn(async move {
            completion.await.unwrap();
        });
        executor.poll(id);
        assert_eq!(executor.runnable().count(), 0);
        assert_eq!(executor.unfinished(), 1);
        completer.complete(Ok(Reply::Done));
        assert_eq!(executor.runnable().collect::<Vec<_>>(), [id]);
        executor.poll(id);
        assert_eq!(executor.unfinished(), 0);
    }

    #[test]
    fn tasks_run_in_the_order_that_the_caller_chooses() {
        let order = Rc::new(RefCell::new(Vec::new()));
        let mut executor = Executor::default();
        for number in 0..3 {
            let order = Rc::clone(&order);
            executor.spawn(async move { order.borrow_mut().push(number) });
        }
        for id in [1, 2, 0] {
            executor.poll(TaskId(id));
        }
        assert_eq!(*order.borrow(), [1, 2, 0]);
    }

    #[test]
    fn killing_ends_tasks_where_they_wait_and_new_ones_have_other_numbers() {
        let reached = Rc::new(RefCell::new(false));
        let mut executor = Executor::default();
        let (completion, completer) = Completion::pending();
        let flag = Rc::clone(&reached);
        let first = executor.spawn(async move {
            let _ = completion.await;
            *flag.borrow_mut() = true;
        });
        executor.poll(first);
        executor.kill();
        completer.complete(Ok(Reply::Done));
        assert_eq!((executor.unfinished(), *reached.borrow()), (0, false));
        assert_ne!(executor.spawn(async {}), first);
    }

    #[test]
    fn dropping_the_executor_ends_tasks_where_they_wait() {
        let reached = Rc::new(RefCell::new(false));
        let mut executor = Executor::default();
        let (completion, completer) = Completion::pending();
        let flag = Rc::clone(&reached);
        let id = executor.spawn(async move {
            let _ = completion.await;
            *flag.borrow_mut() = true;
        });
        executor.poll(id);
        drop(executor);
        completer.complete(Ok(Reply::Done));
        assert!(!*reached.borrow());
    }
}
