//! Sizes on the command line, and what is said of wrong ones.

use super::getopt::Parsed;
use crate::block::{Failure, size};

/// The size that `text` means; `what` names it in messages.
pub(super) fn read(text: &str, what: &str) -> Result<u64, Failure> {
    let out_of_range = || {
        Failure(format!(
            "Invalid {what} specified. Must be between 0 and {}.",
            i64::MAX
        ))
    };
    match size::parse(text) {
        Ok(bytes) if i64::try_from(bytes).is_ok() => Ok(bytes),
        Ok(_) | Err(size::BadSize::TooLarge) => Err(out_of_range()),
        Err(size::BadSize::Syntax) => match text.strip_prefix('-') {
            Some(positive) if size::parse(positive) != Err(size::BadSize::Syntax) => {
                Err(out_of_range())
            }
            _ => Err(Failure(format!("Invalid {what} specified: '{text}'."))),
        },
    }
}

/// The size that an option gives.
pub(super) fn option(parsed: &Parsed, long: &str, what: &str) -> Result<Option<u64>, Failure> {
    parsed.get(long).map(|text| read(text, what)).transpose()
}
