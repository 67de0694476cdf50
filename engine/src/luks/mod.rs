//! LUKS version 1: a header that says how data are encrypted, and keeps the key to them in up to eight
//! slots, each under a secret of its own.
//!
//! Specification: "LUKS1 On-Disk Format Specification", version 1.2.3. Nothing here does I/O or draws a
//! random number: bytes come in and go out. Keys and secrets are wiped when they are dropped, and no
//! `Debug` shows them. Supported are AES, Serpent and Twofish in XTS and CBC; what QEMU can make besides
//! (ECB, CTR, CAST5) is refused by name.

pub(crate) mod cipher;
pub(crate) mod hash;
mod header;
pub(crate) mod slot;
mod split;

use std::fmt;

use zeroize::Zeroizing;

pub use cipher::{Algorithm, CipherSpec, Mode, Vector};
pub use hash::Hash;
pub(crate) use header::LEN as HEADER_LEN;
pub use header::{Header, Slot};
pub use slot::{NewSlot, slots_opened_by};

use cipher::SectorCipher;

/// Slots of a header.
pub const SLOTS: usize = 8;
/// Stripes that each key is spread over: the specification's number, and the only one taken.
pub const STRIPES: u32 = 4000;
/// A slot that asks for more iterations is refused: opening has to end.
pub const MAX_ITERATIONS: u32 = 1 << 25;
/// Bytes of the digest that a key is known by.
const DIGEST_LEN: usize = 20;

/// A secret that opens an encrypted image. It is wiped when it is dropped, and never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes a secret over.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Its bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// The key of a volume's data, which every active slot keeps. It is wiped when it is dropped, and never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct VolumeKey(Zeroizing<Vec<u8>>);

impl fmt::Debug for VolumeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VolumeKey")
    }
}

/// What a new volume is to be. Salts, stripes and the key itself are drawn from the caller's source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewVolume {
    /// The cipher.
    pub cipher: CipherSpec,
    /// The hash of key derivation, digest and stripes.
    pub hash: Hash,
    /// Iterations of the first slot, at least 1.
    pub slot_iterations: u32,
    /// Iterations of the digest, at least 1.
    pub digest_iterations: u32,
}

impl Default for NewVolume {
    /// What QEMU chooses, with iterations that take about a second.
    fn default() -> Self {
        Self {
            cipher: CipherSpec {
                algorithm: Algorithm::Aes(32),
                mode: Mode::Xts,
                vector: Vector::Plain64,
            },
            hash: Hash::Sha256,
            slot_iterations: 2_000_000,
            digest_iterations: 250_000,
        }
    }
}

/// Makes header and key material of a new volume that `secret` opens: everything in front of the data.
/// `None` where the iterations are out of range, or the key material is not made of whole sectors.
pub fn format(
    new: &NewVolume,
    secret: &Secret,
    random: &mut dyn FnMut(&mut [u8]),
) -> Option<Vec<u8>> {
    let range = 1..=MAX_ITERATIONS;
    if !range.contains(&new.slot_iterations) || !range.contains(&new.digest_iterations) {
        return None;
    }
    let key_len = new.cipher.key_len();
    let mut key = Zeroizing::new(vec![0; key_len]);
    random(&mut key);
    let mut header = Header::new(new, random)?;
    new.hash.derive(
        &key,
        &header.digest_salt,
        header.digest_iterations,
        &mut header.digest,
    );
    let mut stripes = Zeroizing::new(vec![0; header::stripes_len(new.cipher)]);
    random(&mut stripes);
    let slot = &mut header.slots[0];
    slot.active = true;
    slot.iterations = new.slot_iterations;
    random(&mut slot.salt);
    let material = slot::material(&header, 0, &VolumeKey(key), secret, &stripes)?;
    let mut bytes = header.encode();
    bytes.resize(
        usize::try_from(u64::from(header.payload_sector) * 512).ok()?,
        0,
    );
    let at = header.material(0);
    bytes[at].copy_from_slice(&material);
    Some(bytes)
}

/// The cipher of the data under this key; `None` where it is not the volume's.
pub(crate) fn cipher(header: &Header, key: &VolumeKey) -> Option<SectorCipher> {
    header
        .knows(key)
        .then(|| SectorCipher::new(header.cipher, &key.0))
        .flatten()
}
