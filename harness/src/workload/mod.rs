//! What the guest and the manager do to an image before the power goes out.

pub mod ops;
pub mod stamp;
