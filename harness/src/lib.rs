//! The crash-consistency harness: workloads, schedules, crash states, oracles, minimiser, campaigns.

pub mod workload;
