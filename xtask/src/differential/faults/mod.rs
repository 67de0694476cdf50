//! The family `blkdebug`: the same configuration and the same commands through qemu-io over QEMU's blkdebug (or
//! blkverify) and through this program's, each on a copy of the same image.
//!
//! Unlike histories, which take turns on an image, each side keeps to its own: what is compared is what the
//! commands said, how they ended, and what the image holds then. The cases are those of a folder, and drawn
//! ones besides.

mod case;
mod draw;
mod duel;

use std::path::Path;

use harness::prng::Prng;

use self::case::Case;
use super::duel::{Arena, Outcome};
use crate::Refusal;

/// The cases of a folder, in the order of their names.
pub(super) fn kept(folder: &Path) -> Result<Vec<Case>, Refusal> {
    case::load(folder).map_err(Refusal)
}

/// Draws a case.
pub(super) fn draw(prng: &Prng) -> Case {
    draw::draw(prng)
}

/// Carries a case out on both sides.
pub(super) fn carry_out(arena: &Arena, place: &str, case: &Case) -> Result<Outcome, Refusal> {
    let outcome = duel::carry_out(arena, place, case);
    outcome.map_err(|error| Refusal(format!("{}: {error}", case.name)))
}
