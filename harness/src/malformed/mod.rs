//! Images that somebody, or something, got at: sound ones with a few bytes of structure changed.
//!
//! An [`Atlas`] says where the fields of an image stand and what they are, [`damage`] changes some of
//! them to values that overflow, wrap, misalign, or point at what is there already, and [`examine`] puts the
//! result through everything that an engine does with an image of unknown origin. Whatever comes of it must be
//! a clear error or a right answer, soon, and without a panic.
//!
//! All choices come from a [`Draw`]: a seeded generator, or the bytes of a coverage-guided fuzzer.

mod atlas;
mod damage;
mod examine;
mod specimen;

pub use atlas::{Atlas, Field, Group};
pub use damage::{Change, Draw, FuzzBytes, damage};
pub use examine::{Problem, Report, examine};
pub use specimen::{Specimen, Specimens};
