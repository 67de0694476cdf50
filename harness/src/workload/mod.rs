//! What the guest and the manager do to an image before the power goes out.

pub mod generate;
pub mod given;
pub mod ops;
pub mod perform;
pub mod pin;
pub mod shape;
pub mod sized;
pub mod stamp;
