//! What a manager asks of an image: everything that is not a guest's read, write, zeroing, discard or
//! flush.
//!
//! One closed vocabulary for all formats, held as data so that traces and reports can name an operation.
//! Each is atomic: after a failure or a power loss the image is as before or as after, never between;
//! and durable once it has succeeded.

/// An operation on an image as a whole.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Manage {
    /// Changes the size of the guest's disk. What is added reads zero.
    Resize {
        /// The new size in bytes, a multiple of 512.
        virtual_bytes: u64,
    },
}
