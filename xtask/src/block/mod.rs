//! Opening images by the names and options that people give to QEMU's tools.
//!
//! A name, or a set of options, is parsed into a [`Spec`]: which file, through what, in which format.
//! Opening one gives a [`Node`]: the file behind the engine's device seam, its header, and, where it was
//! asked for, the image with everything that lies beneath it.
//!
//! What an image says about other files is not trusted. A backing file's name from an image is the name
//! of a local file and nothing else; protocols and descriptions are followed only where the caller wrote
//! them.

#![allow(
    dead_code,
    reason = "what opens images serves commands that write them as well as those that read"
)]

pub(crate) mod behind;
pub(crate) mod beneath;
pub(crate) mod cache;
pub(crate) mod claims;
pub(crate) mod device;
pub(crate) mod direct;
pub(crate) mod disk;
pub(crate) mod failure;
pub(crate) mod filters;
pub(crate) mod format;
pub(crate) mod name;
pub(crate) mod open;
pub(crate) mod options;
pub(crate) mod runtime;
pub(crate) mod secret;
pub(crate) mod size;
pub(crate) mod spec;
pub(crate) mod status;

pub(crate) use cache::CacheMode;
pub(crate) use failure::Failure;
pub(crate) use format::Format;
pub(crate) use open::{Depth, Node, Opening, Sharing, open};
pub(crate) use spec::Spec;
