//! The crash-consistency harness: workloads, schedules, crash states, oracles, minimiser, campaigns.

pub mod campaign;
pub mod caught;
pub mod crash;
pub mod guest;
pub mod minimise;
pub mod oracle;
pub mod prng;
pub mod report;
pub mod run;
pub mod shrink;
pub mod sim;
pub mod subject;
pub mod trace;
pub mod workload;
