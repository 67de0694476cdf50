//! Key slots: what one is to hold, and which ones a secret opens.

use std::fmt;

use zeroize::Zeroizing;

use super::cipher::CipherSpec;
use super::header::{self, Header, SALT_LEN};
use super::{MAX_ITERATIONS, SLOTS, Secret, VolumeKey, split};

/// What a slot is to keep the key under. Random bytes and the number of iterations are the caller's: nothing
/// here draws or times anything.
#[derive(Clone, PartialEq, Eq)]
pub struct NewSlot {
    secret: Secret,
    iterations: u32,
    random: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for NewSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewSlot")
            .field("iterations", &self.iterations)
            .finish_non_exhaustive()
    }
}

impl NewSlot {
    /// How many random bytes a slot takes under this cipher: its salt, then its stripes.
    pub fn random_len(cipher: CipherSpec) -> usize {
        SALT_LEN + header::stripes_len(cipher)
    }

    /// A slot that `secret` is to open, after so many iterations of the derivation. `random` has
    /// [`Self::random_len`] bytes, and has never been used before.
    pub fn new(secret: Secret, iterations: u32, random: Vec<u8>) -> Self {
        Self {
            secret,
            iterations,
            random: Zeroizing::new(random),
        }
    }
}

/// A slot as it is to be written.
pub(crate) struct Filled {
    /// The header with it.
    pub(crate) header: Header,
    /// Its key material.
    pub(crate) material: Zeroizing<Vec<u8>>,
}

/// Puts the key into a slot; the error says what of `new` is out of range.
pub(crate) fn fill(
    header: &Header,
    slot: usize,
    key: &VolumeKey,
    new: &NewSlot,
) -> Result<Filled, String> {
    if !(1..=MAX_ITERATIONS).contains(&new.iterations) {
        let count = new.iterations;
        return Err(format!(
            "{count} iterations of a key slot are not within 1..={MAX_ITERATIONS}"
        ));
    }
    let wanted = NewSlot::random_len(header.cipher);
    if new.random.len() != wanted {
        let given = new.random.len();
        return Err(format!(
            "a key slot takes {wanted} random bytes, and {given} were given"
        ));
    }
    let (salt, stripes) = new.random.split_at(SALT_LEN);
    let mut header = header.clone();
    let entry = &mut header.slots[slot];
    entry.active = true;
    entry.iterations = new.iterations;
    entry.salt.copy_from_slice(salt);
    let material = material(&header, slot, key, &new.secret, stripes)
        .ok_or_else(|| "the cipher takes no key of this length".to_owned())?;
    Ok(Filled { header, material })
}

/// A header in which a slot holds nothing, and no longer says what it held.
pub(crate) fn emptied(header: &Header, slot: usize) -> Header {
    let mut header = header.clone();
    let entry = &mut header.slots[slot];
    entry.active = false;
    entry.iterations = 0;
    entry.salt.fill(0);
    header
}

/// The key material of a slot whose salt and iterations stand in `header`.
pub(super) fn material(
    header: &Header,
    slot: usize,
    key: &VolumeKey,
    secret: &Secret,
    stripes: &[u8],
) -> Option<Zeroizing<Vec<u8>>> {
    let mut material = split::split(header.hash, &key.0, stripes);
    header.slot_cipher(slot, secret)?.encrypt(0, &mut material);
    Some(material)
}

/// The active slots that a secret opens. `area` is everything in front of the data.
pub fn slots_opened_by(header: &Header, area: &[u8], secret: &Secret) -> Vec<usize> {
    let opens = |slot: &usize| {
        header.slots[*slot].active
            && area
                .get(header.material(*slot))
                .is_some_and(|material| header.open_slot(*slot, material, secret).is_some())
    };
    (0..SLOTS).filter(opens).collect()
}
