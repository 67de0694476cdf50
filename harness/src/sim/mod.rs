//! One simulated process: its tasks, its schedule, and the world around it.

mod chain;
pub mod chooser;
mod client;
pub mod executor;
pub mod files;
pub mod stage;
pub mod world;

pub use client::{Failure, Opener, Opening, Read};
