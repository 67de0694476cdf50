//! Requests that fail: which to let fail, and what an image owes its guest all the same.
//!
//! [`events`] says which events are raised at all; [`draw`] puts faults into workloads, and behind them what must work
//! once they are gone; [`oracle`] says what is wrong with a run in which requests failed, beside what the oracles of crash
//! states say of every state that it could have left. [`matrix`] lets every event fail in every way, [`campaign`] draws many
//! workloads, and [`silent`] damages images without a word.

pub mod campaign;
pub mod draw;
pub mod events;
pub mod matrix;
pub mod oracle;
pub mod silent;
pub mod table;

#[cfg(test)]
mod tests;
