//! Key slots in drawn scenarios: secrets that come and go between the other operations on a LUKS image.
//!
//! They are drawn apart from everything else, so that a scenario without them stays what it was.

use super::super::ops::{KeySlotChange, KeySlotOperation, Operation};
use super::super::pin::Pins;
use super::super::shape::{Encrypted, TEST_SECRETS};
use crate::prng::Prng;

/// Adds operations on key slots to a scenario, or does not.
pub(super) fn add(
    prng: &Prng,
    pins: &Pins,
    encryption: Option<Encrypted>,
    operations: &mut Vec<Operation>,
) {
    let mut draw = prng.fork("key slots");
    let drawn = draw.chance(1, 2);
    if encryption != Some(Encrypted::Luks) || !pins.key_slots.unwrap_or(drawn) {
        return;
    }
    let mut active = [true, false, false, false, false, false, false, false];
    for _ in 0..draw.between(1, 5) {
        let operation = draw_one(&mut draw, &mut active);
        let place = draw.index(operations.len() + 1);
        operations.insert(place, Operation::KeySlot(operation));
    }
}

/// Whether an operation is refused depends on those before it, which are put in any order: some are.
fn draw_one(draw: &mut Prng, active: &mut [bool; 8]) -> KeySlotOperation {
    // The entry of slot 6 lies in two sectors, and that of slot 7 in the second.
    let slot = *draw.pick(&[0, 1, 2, 5, 6, 6, 6, 7, 7]);
    let holds = &mut active[usize::from(slot)];
    let change = if *holds {
        KeySlotChange::Erase
    } else {
        let secret = draw.index(TEST_SECRETS.len());
        KeySlotChange::Fill {
            secret: u8::try_from(secret).expect("there are few secrets"),
        }
    };
    *holds = !*holds;
    KeySlotOperation { slot, change }
}
