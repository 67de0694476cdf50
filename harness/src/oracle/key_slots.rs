//! Which secrets open a LUKS image, as an independent reader of its header finds it.
//!
//! Specification: "LUKS1 On-Disk Format Specification", "The partition header" and "Anti-forensic splitting".
//! Only volumes of runs are read, of which the cipher is known; of another one a slot is only told to be active.
//! Reading a slot takes thousands of hashes, and most crash states have the same slots: what a slot holds
//! follows from its entry and its key material, by which it is remembered.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;

use aes::Aes128;
use aes::cipher::KeyInit;
use engine::device::{PageImage, SectorHash};
use sha2::{Digest, Sha256};
use xts_mode::Xts128;
use xxhash_rust::xxh3::xxh3_64;

use crate::guest::{Held, KeySlots};
use crate::workload::shape::{TEST_KEY, TEST_SECRETS};

const SLOTS_AT: usize = 208;
const ENTRY: usize = 48;
const HEADER: usize = SLOTS_AT + 8 * ENTRY;
const ACTIVE: u32 = 0x00ac_71f3;
/// Bytes of a key of a run's volumes, and of each stripe that it is spread over.
const KEY: usize = 32;
const STRIPES: usize = 4000;
/// Volumes of runs take one; more of them are somebody else's, whose secrets are not known.
const MAX_ITERATIONS: u32 = 16;
/// So many slots are remembered.
const KEPT: usize = 4096;

/// What a slot's answer follows from: its entry, and the sectors of its key material.
type Content = ([u8; ENTRY], SectorHash);

thread_local! {
    /// What slots were found to hold: a function of nothing else.
    static KNOWN: RefCell<BTreeMap<Content, Held>> = RefCell::default();
}

/// What the slots of a LUKS header hold that stands in `area`, offset and length in bytes; nothing where
/// there is none.
pub(super) fn read(image: &PageImage, area: (u64, u64)) -> KeySlots {
    let Some(header) = header(image, area) else {
        return KeySlots::default();
    };
    let mut slots = [Held::Nothing; 8];
    for (held, entry) in slots.iter_mut().zip(entries(&header)) {
        *held = slot(image, area, &header, entry);
    }
    KeySlots {
        slots,
        header: xxh3_64(&header[..SLOTS_AT]),
    }
}

/// What decides which secret opens the image with which key, in short: the header, and the key material of its
/// active slots. `None` where the image is not encrypted with LUKS.
pub(crate) fn fingerprint(image: &PageImage, area: (u64, u64)) -> Option<u128> {
    let header = header(image, area)?;
    let mut sum = u128::from(xxh3_64(&header));
    for entry in entries(&header).filter(|entry| word(*entry, 0) == ACTIVE) {
        let material = material(area.0, entry, word(&header, 108));
        sum = sum
            .wrapping_mul(0x9E37_79B9_7F4A_7C15)
            .wrapping_add(content(image, material));
    }
    Some(sum)
}

fn header(image: &PageImage, (offset, len_bytes): (u64, u64)) -> Option<Vec<u8>> {
    let len = u64::try_from(HEADER).expect("a header is short");
    (len_bytes >= len).then(|| image.read_vec(offset, HEADER))
}

fn entries(header: &[u8]) -> impl Iterator<Item = &[u8; ENTRY]> {
    header[SLOTS_AT..].as_chunks::<ENTRY>().0.iter()
}

fn slot(image: &PageImage, area: (u64, u64), header: &[u8], entry: &[u8; ENTRY]) -> Held {
    let active = word(entry, 0) == ACTIVE;
    let unopened = if active { Held::Unknown } else { Held::Nothing };
    if !(1..=MAX_ITERATIONS).contains(&word(entry, 4)) || !is_of_a_run(header) {
        return unopened;
    }
    let sectors = material(area.0, entry, word(header, 108));
    if sectors.end * 512 > area.0 + area.1 {
        return unopened;
    }
    let key = (*entry, content(image, sectors.clone()));
    if let Some(held) = KNOWN.with_borrow(|known| known.get(&key).copied()) {
        return held;
    }
    let material = image.read_vec(sectors.start * 512, KEY * STRIPES);
    let opens = |secret: &&[u8; 16]| opened(entry, &material, *secret) == TEST_KEY;
    let held = match (0..).zip(TEST_SECRETS).find(|(_, secret)| opens(secret)) {
        Some((secret, _)) if active => Held::Secret(secret),
        Some((secret, _)) => Held::Residue(secret),
        None => unopened,
    };
    KNOWN.with_borrow_mut(|known| {
        if known.len() >= KEPT {
            known.clear();
        }
        known.insert(key, held);
    });
    held
}

/// AES-128 in XTS mode under keys and digests of SHA-256.
fn is_of_a_run(header: &[u8]) -> bool {
    let text = |from: usize, text: &[u8]| {
        header[from..].starts_with(text) && header[from + text.len()] == 0
    };
    text(8, b"aes") && text(40, b"xts-plain64") && text(72, b"sha256") && word(header, 108) == 32
}

/// The sectors of the file that hold the key material of a slot.
fn material(offset: u64, entry: &[u8; ENTRY], key_bytes: u32) -> Range<u64> {
    let stripes = u64::try_from(STRIPES).expect("a small constant");
    let start = offset / 512 + u64::from(word(entry, 40));
    start..start + (u64::from(key_bytes.min(64)) * stripes).div_ceil(512)
}

fn content(image: &PageImage, sectors: Range<u64>) -> SectorHash {
    sectors.fold(0, |sum, sector| sum.wrapping_add(image.stored_hash(sector)))
}

/// The key that a slot yields under a secret, right or not.
fn opened(entry: &[u8; ENTRY], material: &[u8], secret: &[u8]) -> [u8; KEY] {
    let mut slot_key = [0; KEY];
    pbkdf2::pbkdf2_hmac::<Sha256>(secret, &entry[8..40], word(entry, 4), &mut slot_key);
    let cipher = |key: &[u8]| Aes128::new_from_slice(key).expect("half a key is 16 bytes");
    let cipher = Xts128::new(cipher(&slot_key[..16]), cipher(&slot_key[16..]));
    let mut stripes = material.to_vec();
    for (number, sector) in (0u128..).zip(stripes.chunks_exact_mut(512)) {
        cipher.decrypt_sector(sector, number.to_le_bytes().into());
    }
    let mut key = [0; KEY];
    let (last, others) = stripes
        .as_chunks::<KEY>()
        .0
        .split_last()
        .expect("there are many stripes");
    for stripe in others {
        add(&mut key, stripe);
        // A stripe is as long as a digest, so that there is but one block, of number 0.
        key = Sha256::new()
            .chain_update([0; 4])
            .chain_update(key)
            .finalize()
            .into();
    }
    add(&mut key, last);
    key
}

fn add(sum: &mut [u8; KEY], stripe: &[u8; KEY]) {
    for (sum, byte) in sum.iter_mut().zip(stripe) {
        *sum ^= byte;
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("a word is 4 bytes"))
}
