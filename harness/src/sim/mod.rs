//! One simulated process: its tasks, its schedule, and the world around it.

pub mod chooser;
pub mod executor;
