//! Sizes on the command line, and what is said of wrong ones.

use super::getopt::Parsed;
use crate::block::{Failure, size};

/// The size that `text` means; `what` names it in messages.
pub(super) fn read(text: &str, what: &str) -> Result<u64, Failure> {
    let out_of_range = || out_of_range(what, &(0..=i64::MAX.unsigned_abs()));
    match size::parse(text) {
        Ok(bytes) if i64::try_from(bytes).is_ok() => Ok(bytes),
        Ok(_) | Err(size::BadSize::TooLarge) => Err(out_of_range()),
        Err(size::BadSize::Syntax) => match text.strip_prefix('-') {
            Some(positive) if positive.parse::<u128>().is_ok() => Err(out_of_range()),
            _ => Err(Failure(format!("Invalid {what} specified: '{text}'."))),
        },
    }
}

/// The number within `range` that `text` means: without a suffix, in decimal or after `0x`.
pub(super) fn number(
    text: &str,
    what: &str,
    range: std::ops::RangeInclusive<u64>,
) -> Result<u64, Failure> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let hexadecimal = digits.strip_prefix("0x").unwrap_or_default();
    let syntax = |_| Failure(format!("Invalid {what} specified: '{text}'."));
    let magnitude = if hexadecimal.is_empty() {
        digits.parse::<u128>().map_err(syntax)?
    } else {
        u128::from_str_radix(hexadecimal, 16).map_err(syntax)?
    };
    let in_range = u64::try_from(magnitude)
        .ok()
        .filter(|number| digits.len() == text.len() && range.contains(number));
    in_range.ok_or_else(|| out_of_range(what, &range))
}

/// The size within `range` that `text` means.
pub(super) fn read_within(
    text: &str,
    what: &str,
    range: std::ops::RangeInclusive<u64>,
) -> Result<u64, Failure> {
    let size = read(text, what).map_err(|why| {
        let too_large = why == out_of_range(what, &(0..=i64::MAX.unsigned_abs()));
        if too_large {
            out_of_range(what, &range)
        } else {
            why
        }
    })?;
    if range.contains(&size) {
        Ok(size)
    } else {
        Err(out_of_range(what, &range))
    }
}

fn out_of_range(what: &str, range: &std::ops::RangeInclusive<u64>) -> Failure {
    Failure(format!(
        "Invalid {what} specified. Must be between {} and {}.",
        range.start(),
        range.end()
    ))
}

/// The size that an option gives.
pub(super) fn option(parsed: &Parsed, long: &str, what: &str) -> Result<Option<u64>, Failure> {
    parsed.get(long).map(|text| read(text, what)).transpose()
}
