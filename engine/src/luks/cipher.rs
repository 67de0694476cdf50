//! Ciphers over sectors: whoever knows the key and a sector's number can read it.
//!
//! All block functions, modes and hashes are the `RustCrypto` family's. Each sector of 512 bytes is encrypted by
//! itself, under a vector that follows from its number.

use std::fmt;

use aes::{Aes128, Aes192, Aes256};
use cbc::cipher::consts::U16;
use cbc::cipher::{
    Array, BlockCipherDecrypt, BlockCipherEncrypt, BlockModeDecrypt, BlockModeEncrypt,
    BlockSizeUser, InnerIvInit, KeyInit,
};
use serpent::Serpent;
use twofish::Twofish;
use xts_mode::Xts128;
use zeroize::Zeroizing;

use super::hash::Hash;

const SECTOR: usize = 512;

/// A block function with its key size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Algorithm {
    /// AES with a key of this many bytes: 16, 24 or 32.
    Aes(usize),
    /// Serpent with a key of this many bytes: 16, 24 or 32.
    Serpent(usize),
    /// Twofish with a key of this many bytes: 16, 24 or 32.
    Twofish(usize),
}

/// How the blocks of a sector hang together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// XTS, which takes two keys.
    Xts,
    /// Cipher block chaining.
    Cbc,
}

/// How the vector follows from the number of the sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Vector {
    /// The low 32 bits of the number.
    Plain,
    /// The number.
    Plain64,
    /// The number, encrypted with AES under the hash of the key.
    Essiv(Hash),
}

/// Everything about a cipher but its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CipherSpec {
    /// The block function.
    pub algorithm: Algorithm,
    /// The mode.
    pub mode: Mode,
    /// The vectors.
    pub vector: Vector,
}

impl CipherSpec {
    /// Bytes in a key.
    pub fn key_len(self) -> usize {
        let (Algorithm::Aes(len) | Algorithm::Serpent(len) | Algorithm::Twofish(len)) =
            self.algorithm;
        match self.mode {
            Mode::Xts => 2 * len,
            Mode::Cbc => len,
        }
    }

    /// The names that a LUKS header has for it: of the block function, and of mode and vectors.
    pub fn names(self) -> (&'static str, String) {
        let name = match self.algorithm {
            Algorithm::Aes(_) => "aes",
            Algorithm::Serpent(_) => "serpent",
            Algorithm::Twofish(_) => "twofish",
        };
        let mode = match self.mode {
            Mode::Xts => "xts",
            Mode::Cbc => "cbc",
        };
        let vector = match self.vector {
            Vector::Plain => "plain".to_owned(),
            Vector::Plain64 => "plain64".to_owned(),
            Vector::Essiv(hash) => format!("essiv:{}", hash.name()),
        };
        (name, format!("{mode}-{vector}"))
    }

    /// The cipher of these names and of a key of that length, where it is known.
    pub fn from_names(name: &str, mode: &str, key_len: usize) -> Option<Self> {
        let (mode, vector) = mode.split_once('-')?;
        let mode = match mode {
            "xts" => Mode::Xts,
            "cbc" => Mode::Cbc,
            _ => return None,
        };
        let vector = match vector.split_once(':') {
            None if vector == "plain" => Vector::Plain,
            None if vector == "plain64" => Vector::Plain64,
            Some(("essiv", hash)) => Vector::Essiv(Hash::from_name(hash)?),
            Some(_) | None => return None,
        };
        let len = match mode {
            Mode::Xts => key_len / 2,
            Mode::Cbc => key_len,
        };
        let algorithm = match name {
            "aes" => Algorithm::Aes(len),
            "serpent" => Algorithm::Serpent(len),
            "twofish" => Algorithm::Twofish(len),
            _ => return None,
        };
        let spec = Self {
            algorithm,
            mode,
            vector,
        };
        (matches!(len, 16 | 24 | 32) && spec.key_len() == key_len).then_some(spec)
    }
}

/// A cipher with its key. It never shows either.
pub(crate) struct SectorCipher {
    blocks: Box<dyn Blocks>,
    vector: VectorMaker,
}

impl fmt::Debug for SectorCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SectorCipher")
    }
}

impl SectorCipher {
    /// The cipher under `key`; `None` where the key has another length or the vectors need a hash that
    /// is no key of AES.
    pub(crate) fn new(spec: CipherSpec, key: &[u8]) -> Option<Self> {
        if key.len() != spec.key_len() {
            return None;
        }
        let blocks = match spec.algorithm {
            Algorithm::Aes(16) => blocks::<Aes128>(spec.mode, key)?,
            Algorithm::Aes(24) => blocks::<Aes192>(spec.mode, key)?,
            Algorithm::Aes(_) => blocks::<Aes256>(spec.mode, key)?,
            Algorithm::Serpent(_) => blocks::<Serpent>(spec.mode, key)?,
            Algorithm::Twofish(_) => blocks::<Twofish>(spec.mode, key)?,
        };
        let vector = match spec.vector {
            Vector::Plain => VectorMaker::Plain,
            Vector::Plain64 => VectorMaker::Plain64,
            Vector::Essiv(hash) => {
                let salt = Zeroizing::new(hash.digest(&[key]));
                VectorMaker::Essiv(match salt.len() {
                    16 => Box::new(Aes128::new_from_slice(&salt).ok()?),
                    24 => Box::new(Aes192::new_from_slice(&salt).ok()?),
                    32 => Box::new(Aes256::new_from_slice(&salt).ok()?),
                    _ => return None,
                })
            }
        };
        Some(Self { blocks, vector })
    }

    /// Encrypts sectors, the first of which has this number.
    pub(crate) fn encrypt(&self, first: u64, sectors: &mut [u8]) {
        for (number, sector) in (first..).zip(sectors.chunks_exact_mut(SECTOR)) {
            self.blocks.encrypt(self.vector.of(number), sector);
        }
    }

    /// Decrypts sectors, the first of which has this number.
    pub(crate) fn decrypt(&self, first: u64, sectors: &mut [u8]) {
        for (number, sector) in (first..).zip(sectors.chunks_exact_mut(SECTOR)) {
            self.blocks.decrypt(self.vector.of(number), sector);
        }
    }
}

enum VectorMaker {
    Plain,
    Plain64,
    Essiv(Box<dyn OneBlock>),
}

impl VectorMaker {
    fn of(&self, sector: u64) -> Array<u8, U16> {
        let mut vector = [0; 16];
        vector[..8].copy_from_slice(&sector.to_le_bytes());
        match self {
            Self::Plain => vector[4..8].fill(0),
            Self::Plain64 => {}
            Self::Essiv(salted) => return salted.encrypt_one(Array(vector)),
        }
        Array(vector)
    }
}

trait OneBlock {
    fn encrypt_one(&self, block: Array<u8, U16>) -> Array<u8, U16>;
}

impl<C: BlockCipherEncrypt + BlockSizeUser<BlockSize = U16>> OneBlock for C {
    fn encrypt_one(&self, mut block: Array<u8, U16>) -> Array<u8, U16> {
        self.encrypt_block(&mut block);
        block
    }
}

trait Blocks {
    fn encrypt(&self, vector: Array<u8, U16>, sector: &mut [u8]);
    fn decrypt(&self, vector: Array<u8, U16>, sector: &mut [u8]);
}

fn blocks<C>(mode: Mode, key: &[u8]) -> Option<Box<dyn Blocks>>
where
    C: KeyInit
        + BlockCipherEncrypt
        + BlockCipherDecrypt
        + BlockSizeUser<BlockSize = U16>
        + Clone
        + 'static,
{
    Some(match mode {
        Mode::Cbc => Box::new(Chain(C::new_from_slice(key).ok()?)),
        Mode::Xts => {
            let (data, tweak) = key.split_at(key.len() / 2);
            let (data, tweak) = (
                C::new_from_slice(data).ok()?,
                C::new_from_slice(tweak).ok()?,
            );
            Box::new(Xts(Xts128::new(data, tweak)))
        }
    })
}

struct Xts<C>(Xts128<C>);

impl<C> Blocks for Xts<C>
where
    C: BlockCipherEncrypt + BlockCipherDecrypt + BlockSizeUser<BlockSize = U16>,
{
    fn encrypt(&self, vector: Array<u8, U16>, sector: &mut [u8]) {
        self.0.encrypt_sector(sector, vector);
    }

    fn decrypt(&self, vector: Array<u8, U16>, sector: &mut [u8]) {
        self.0.decrypt_sector(sector, vector);
    }
}

struct Chain<C>(C);

impl<C> Blocks for Chain<C>
where
    C: BlockCipherEncrypt + BlockCipherDecrypt + BlockSizeUser<BlockSize = U16> + Clone,
{
    fn encrypt(&self, vector: Array<u8, U16>, sector: &mut [u8]) {
        let mut chain = cbc::Encryptor::inner_iv_init(self.0.clone(), &vector);
        chain.encrypt_blocks(Array::slice_as_chunks_mut(sector).0);
    }

    fn decrypt(&self, vector: Array<u8, U16>, sector: &mut [u8]) {
        let mut chain = cbc::Decryptor::inner_iv_init(self.0.clone(), &vector);
        chain.decrypt_blocks(Array::slice_as_chunks_mut(sector).0);
    }
}
