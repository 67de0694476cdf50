//! The anti-forensic splitter: a key spread over stripes, of which no part may be missing.
//!
//! Specification: "LUKS1 On-Disk Format Specification", "Anti-forensic splitting". Each stripe but the
//! last is random; what all of them add up to, diffused after each, is taken from the key.

use zeroize::Zeroizing;

use super::hash::Hash;

/// Spreads `key` over `stripes` stripes, all but the last of which are in `random`.
pub(super) fn split(hash: Hash, key: &[u8], random: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut material = Zeroizing::new(random.to_vec());
    let sum = sum(hash, random, key.len());
    material.extend(key.iter().zip(sum.iter()).map(|(key, sum)| key ^ sum));
    material
}

/// The key that was spread over this material.
pub(super) fn merge(hash: Hash, material: &[u8], key_len: usize) -> Zeroizing<Vec<u8>> {
    let (stripes, last) = material.split_at(material.len() - key_len);
    let sum = sum(hash, stripes, key_len);
    Zeroizing::new(
        last.iter()
            .zip(sum.iter())
            .map(|(last, sum)| last ^ sum)
            .collect(),
    )
}

fn sum(hash: Hash, stripes: &[u8], len: usize) -> Zeroizing<Vec<u8>> {
    let mut sum = Zeroizing::new(vec![0; len]);
    for stripe in stripes.chunks_exact(len) {
        for (sum, byte) in sum.iter_mut().zip(stripe) {
            *sum ^= byte;
        }
        diffuse(hash, &mut sum);
    }
    sum
}

/// Replaces each block, as long as a digest, by the digest of its number and itself.
fn diffuse(hash: Hash, bytes: &mut [u8]) {
    let digest_len = hash.digest(&[]).len();
    for (number, block) in (0u32..).zip(bytes.chunks_mut(digest_len)) {
        let digest = Zeroizing::new(hash.digest(&[&number.to_be_bytes(), block]));
        let len = block.len();
        block.copy_from_slice(&digest[..len]);
    }
}
