//! The header of a volume. Specification: "The partition header".

use std::ops::Range;

use zeroize::Zeroizing;

use super::cipher::{CipherSpec, SectorCipher};
use super::hash::Hash;
use super::{DIGEST_LEN, MAX_ITERATIONS, NewVolume, SLOTS, STRIPES, Secret, split};

/// Bytes of the header.
pub(crate) const LEN: usize = 592;
/// [`STRIPES`] as a length.
pub(super) const STRIPES_LEN: usize = 4000;
const MAGIC: [u8; 8] = *b"LUKS\xba\xbe\x00\x01";
const ACTIVE: u32 = 0x00ac_71f3;
const INACTIVE: u32 = 0x0000_dead;
const SLOTS_AT: usize = 208;
const SLOT_LEN: usize = 48;
const SALT_LEN: usize = 32;
/// Key material starts at multiples of so many sectors, the first behind the header.
const ALIGN_SECTORS: u32 = 8;

/// A volume's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The cipher of data and key material.
    pub cipher: CipherSpec,
    /// The hash of key derivation, digest and stripes.
    pub hash: Hash,
    /// The sector in which the data start.
    pub payload_sector: u32,
    /// Iterations of the digest.
    pub digest_iterations: u32,
    /// The volume's own number, as text.
    pub uuid: String,
    /// The slots.
    pub slots: [Slot; SLOTS],
    pub(super) digest: [u8; DIGEST_LEN],
    pub(super) digest_salt: [u8; SALT_LEN],
}

/// A slot, which may keep the key under a secret.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// Whether it does.
    pub active: bool,
    /// Iterations of the derivation.
    pub iterations: u32,
    /// The sector in which its key material starts.
    pub material_sector: u32,
    pub(super) salt: [u8; SALT_LEN],
}

impl Header {
    /// A header without a key.
    pub(super) fn new(new: &NewVolume, random: &mut dyn FnMut(&mut [u8])) -> Option<Self> {
        let material = u32::try_from(new.cipher.key_len()).ok()? * STRIPES;
        if !material.is_multiple_of(512) {
            return None;
        }
        let spacing = (material / 512).next_multiple_of(ALIGN_SECTORS);
        let mut slots = [Slot::default(); SLOTS];
        let mut next = ALIGN_SECTORS;
        for slot in &mut slots {
            slot.material_sector = next;
            next += spacing;
        }
        let mut uuid = [0; 16];
        random(&mut uuid);
        let mut digest_salt = [0; SALT_LEN];
        random(&mut digest_salt);
        Some(Self {
            cipher: new.cipher,
            hash: new.hash,
            payload_sector: next,
            digest_iterations: new.digest_iterations,
            uuid: uuid_text(uuid),
            slots,
            digest: [0; DIGEST_LEN],
            digest_salt,
        })
    }

    /// The header that these bytes start with; the error says what is wrong with it.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() < LEN || bytes[..8] != MAGIC {
            return Err("it does not start with that of LUKS version 1".into());
        }
        let key_len = word(bytes, 108);
        let (name, mode, hash) = (
            text(&bytes[8..40]),
            text(&bytes[40..72]),
            text(&bytes[72..104]),
        );
        let cipher = usize::try_from(key_len)
            .ok()
            .and_then(|len| CipherSpec::from_names(&name, &mode, len))
            .ok_or_else(|| {
                format!("cipher {name}-{mode} with a key of {key_len} bytes is not supported")
            })?;
        let hash = Hash::from_name(&hash).ok_or_else(|| format!("hash {hash} is not supported"))?;
        let mut header = Self {
            cipher,
            hash,
            payload_sector: word(bytes, 104),
            digest_iterations: word(bytes, 164),
            uuid: text(&bytes[168..208]),
            slots: [Slot::default(); SLOTS],
            digest: bytes[112..132].try_into().expect("a digest is 20 bytes"),
            digest_salt: bytes[132..164].try_into().expect("a salt is 32 bytes"),
        };
        if !(1..=MAX_ITERATIONS).contains(&header.digest_iterations) {
            let count = header.digest_iterations;
            return Err(format!(
                "{count} iterations of the digest are not within 1..={MAX_ITERATIONS}"
            ));
        }
        for index in 0..SLOTS {
            header.slots[index] = header.slot(index, &bytes[SLOTS_AT + index * SLOT_LEN..])?;
        }
        Ok(header)
    }

    fn slot(&self, index: usize, bytes: &[u8]) -> Result<Slot, String> {
        let slot = Slot {
            active: match word(bytes, 0) {
                ACTIVE => true,
                INACTIVE => false,
                state => {
                    return Err(format!(
                        "slot {index} is neither active nor not: {state:#x}"
                    ));
                }
            },
            iterations: word(bytes, 4),
            salt: bytes[8..40].try_into().expect("a salt is 32 bytes"),
            material_sector: word(bytes, 40),
        };
        let stripes = word(bytes, 44);
        if stripes != STRIPES {
            return Err(format!(
                "slot {index} has {stripes} stripes instead of {STRIPES}"
            ));
        }
        if slot.active && !(1..=MAX_ITERATIONS).contains(&slot.iterations) {
            let count = slot.iterations;
            return Err(format!(
                "{count} iterations of slot {index} are not within 1..={MAX_ITERATIONS}"
            ));
        }
        let start = u64::from(slot.material_sector) * 512;
        let len = u64::try_from(self.cipher.key_len() * STRIPES_LEN).expect("a key is short");
        let fits = start
            >= LEN
                .next_multiple_of(512)
                .try_into()
                .expect("a header is short")
            && start + len <= u64::from(self.payload_sector) * 512
            && len.is_multiple_of(512);
        if slot.active && !fits {
            return Err(format!(
                "the key material of slot {index} is not between header and data"
            ));
        }
        Ok(slot)
    }

    /// The bytes of the header.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; LEN];
        let (name, mode) = self.cipher.names();
        bytes[..8].copy_from_slice(&MAGIC);
        let mut put = |at: usize, data: &[u8]| bytes[at..at + data.len()].copy_from_slice(data);
        put(8, name.as_bytes());
        put(40, mode.as_bytes());
        put(72, self.hash.name().as_bytes());
        put(104, &self.payload_sector.to_be_bytes());
        let key_len = u32::try_from(self.cipher.key_len()).expect("a key is short");
        put(108, &key_len.to_be_bytes());
        put(112, &self.digest);
        put(132, &self.digest_salt);
        put(164, &self.digest_iterations.to_be_bytes());
        put(168, self.uuid.as_bytes());
        for (index, slot) in self.slots.iter().enumerate() {
            let at = SLOTS_AT + index * SLOT_LEN;
            let state = if slot.active { ACTIVE } else { INACTIVE };
            put(at, &state.to_be_bytes());
            put(at + 4, &slot.iterations.to_be_bytes());
            put(at + 8, &slot.salt);
            put(at + 40, &slot.material_sector.to_be_bytes());
            put(at + 44, &STRIPES.to_be_bytes());
        }
        bytes
    }

    /// Where the key material of a slot stands.
    pub(super) fn material(&self, slot: usize) -> Range<usize> {
        let start = usize::try_from(u64::from(self.slots[slot].material_sector) * 512)
            .expect("a header fits memory");
        start..start + self.cipher.key_len() * STRIPES_LEN
    }

    /// The cipher of a slot's key material.
    pub(super) fn slot_cipher(&self, slot: usize, secret: &Secret) -> Option<SectorCipher> {
        let mut key = Zeroizing::new(vec![0; self.cipher.key_len()]);
        let Slot {
            iterations, salt, ..
        } = self.slots[slot];
        self.hash
            .derive(secret.bytes(), &salt, iterations, &mut key);
        SectorCipher::new(self.cipher, &key)
    }

    /// The key of the data, where this secret opens this slot.
    pub(super) fn open_slot(
        &self,
        slot: usize,
        area: &[u8],
        secret: &Secret,
    ) -> Option<Zeroizing<Vec<u8>>> {
        let mut material = Zeroizing::new(area.get(self.material(slot))?.to_vec());
        self.slot_cipher(slot, secret)?.decrypt(0, &mut material);
        let key = split::merge(self.hash, &material, self.cipher.key_len());
        let mut digest = [0; DIGEST_LEN];
        self.hash
            .derive(&key, &self.digest_salt, self.digest_iterations, &mut digest);
        (digest == self.digest).then_some(key)
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("a word is 4 bytes"))
}

/// The text up to the first zero byte, as far as it can be shown.
fn text(bytes: &[u8]) -> String {
    bytes
        .iter()
        .take_while(|byte| **byte != 0)
        .map(|byte| {
            if byte.is_ascii_graphic() {
                char::from(*byte)
            } else {
                '?'
            }
        })
        .collect()
}

/// A random number of version 4. Specification: RFC 9562.
fn uuid_text(mut bytes: [u8; 16]) -> String {
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = format!("{:032x}", u128::from_be_bytes(bytes));
    let parts = [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ];
    parts.join("-")
}
