//! The header of a volume. Specification: "The partition header".

use std::ops::Range;

use zeroize::Zeroizing;

use super::cipher::{CipherSpec, SectorCipher};
use super::hash::Hash;
use super::{DIGEST_LEN, MAX_ITERATIONS, NewVolume, SLOTS, STRIPES, Secret, VolumeKey, split};

/// Bytes of the header.
pub(crate) const LEN: usize = 592;
/// [`STRIPES`] as a length.
pub(super) const STRIPES_LEN: usize = 4000;
const MAGIC: [u8; 8] = *b"LUKS\xba\xbe\x00\x01";
const ACTIVE: u32 = 0x00ac_71f3;
const INACTIVE: u32 = 0x0000_dead;
const SLOTS_AT: usize = 208;
const SLOT_LEN: usize = 48;
pub(super) const SALT_LEN: usize = 32;
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
        if slot.active && !self.fits(slot) {
            return Err(misplaced(index));
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
        for index in 0..SLOTS {
            put(Self::entry_range(index).start, &self.entry(index));
        }
        bytes
    }

    /// Where in the header a slot's entry stands.
    pub(crate) fn entry_range(slot: usize) -> Range<usize> {
        let start = SLOTS_AT + slot * SLOT_LEN;
        start..start + SLOT_LEN
    }

    /// A slot's entry.
    pub(crate) fn entry(&self, slot: usize) -> [u8; SLOT_LEN] {
        let Slot {
            active,
            iterations,
            material_sector,
            salt,
        } = self.slots[slot];
        let mut bytes = [0; SLOT_LEN];
        let state = if active { ACTIVE } else { INACTIVE };
        bytes[..4].copy_from_slice(&state.to_be_bytes());
        bytes[4..8].copy_from_slice(&iterations.to_be_bytes());
        bytes[8..40].copy_from_slice(&salt);
        bytes[40..44].copy_from_slice(&material_sector.to_be_bytes());
        bytes[44..].copy_from_slice(&STRIPES.to_be_bytes());
        bytes
    }

    /// Whether key material may be written for a slot, active or not: it lies between header and data and
    /// within `area_bytes`, and no other slot's stands there. The error says what is wrong.
    pub(crate) fn must_have_room(&self, slot: usize, area_bytes: u64) -> Result<(), String> {
        if !self.fits(self.slots[slot]) {
            return Err(misplaced(slot));
        }
        let own = self.material(slot);
        if u64::try_from(own.end).map_or(true, |end| end > area_bytes) {
            return Err(misplaced(slot));
        }
        let shared = (0..SLOTS).find(|other| {
            let range = self.material(*other);
            *other != slot && range.start < own.end && own.start < range.end
        });
        match shared {
            Some(other) => Err(format!(
                "slots {slot} and {other} have the same sectors for their key material"
            )),
            None => Ok(()),
        }
    }

    fn fits(&self, slot: Slot) -> bool {
        let start = u64::from(slot.material_sector) * 512;
        let len = u64::try_from(self.cipher.key_len() * STRIPES_LEN).expect("a key is short");
        let header = LEN.next_multiple_of(512);
        start >= header.try_into().expect("a header is short")
            && start + len <= u64::from(self.payload_sector) * 512
            && len.is_multiple_of(512)
    }

    /// Where the key material of a slot stands.
    pub(crate) fn material(&self, slot: usize) -> Range<usize> {
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

    /// The key of the data, where this secret opens this slot, of which `material` is the key material.
    pub(crate) fn open_slot(
        &self,
        slot: usize,
        material: &[u8],
        secret: &Secret,
    ) -> Option<VolumeKey> {
        let mut material = Zeroizing::new(material.to_vec());
        self.slot_cipher(slot, secret)?.decrypt(0, &mut material);
        let key = VolumeKey(split::merge(self.hash, &material, self.cipher.key_len()));
        self.knows(&key).then_some(key)
    }

    /// Whether the data are encrypted with this key.
    pub(super) fn knows(&self, key: &VolumeKey) -> bool {
        let mut digest = [0; DIGEST_LEN];
        self.hash.derive(
            &key.0,
            &self.digest_salt,
            self.digest_iterations,
            &mut digest,
        );
        digest == self.digest
    }
}

/// Bytes of the random stripes that a key is spread over.
pub(super) fn stripes_len(cipher: CipherSpec) -> usize {
    cipher.key_len() * (STRIPES_LEN - 1)
}

fn misplaced(slot: usize) -> String {
    format!("the key material of slot {slot} is not between header and data")
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
