//! The crash-consistency harness: workloads, schedules, crash states, oracles, minimiser, campaigns.

pub mod campaign;
pub mod canary;
pub mod caught;
pub mod crash;
pub mod exhaust;
pub mod fault;
pub mod guest;
pub mod guide;
pub mod logged;
pub mod malformed;
pub mod minimise;
pub mod oracle;
pub mod pace;
pub mod prng;
pub mod reduce;
pub mod report;
pub mod run;
pub mod sectors;
pub mod sim;
pub mod subject;
pub mod trace;
pub mod workload;
