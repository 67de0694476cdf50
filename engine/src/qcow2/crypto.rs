//! Encryption of guest data: which key, and by which number a sector is known.
//!
//! Specification: "Data encryption" and the extension "Full disk encryption header pointer". The legacy
//! method is AES-128 in CBC mode under the secret itself, padded with zeroes to 16 bytes; its vectors
//! count the sectors of the guest's disk. LUKS counts the sectors of the file. Metadata and compressed
//! data are never encrypted, which is why nothing is compressed here.

use zeroize::Zeroizing;

use super::bounds::{Bounded, Extent};
use super::data::Place;
use super::extension;
use super::geometry::Geometry;
use super::header::Header;
use super::unit::{HostOffset, byte_count, mem_len};
use crate::device::{Event, Port};
use crate::error::{BadImage, Error, Problem, Refused, Structure};
use crate::luks::cipher::SectorCipher;
use crate::luks::{self, Algorithm, CipherSpec, Mode, Secret, Vector, VolumeKey};

/// How an image says that its guest data are encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encryption {
    /// The legacy method.
    Aes,
    /// LUKS, whose header stands here.
    Luks {
        /// Where it starts.
        offset: HostOffset,
        /// How long it is with its key material.
        len_bytes: u64,
    },
}

/// What an encrypted image is opened with.
#[derive(Clone, Copy, Debug)]
pub enum Unlock<'a> {
    /// Secrets. The first that opens a LUKS slot is used; the legacy method takes the first of all, and
    /// cannot tell a wrong one.
    Secrets(&'a [Secret]),
    /// The key of a LUKS volume that was unlocked before: the slots are not looked at.
    Key(&'a VolumeKey),
}

const LEGACY_KEY_LEN: usize = 16;

impl Encryption {
    /// The number in the header.
    pub(super) fn code(self) -> u32 {
        match self {
            Self::Aes => 1,
            Self::Luks { .. } => 2,
        }
    }

    /// What an extension says of the place of a LUKS header.
    pub(super) fn luks(extension: Option<&[u8]>, geometry: Geometry) -> Result<Self, String> {
        let Some(data) = extension.filter(|data| data.len() == 16) else {
            return Err(
                "encryption with LUKS lacks the extension that points to its header".into(),
            );
        };
        let offset = HostOffset(super::header::be_u64(data, 0));
        let len_bytes = super::header::be_u64(data, 8);
        if len_bytes == 0 {
            return Err("the encryption header of 0 bytes holds nothing".into());
        }
        Extent::new(Bounded::EncryptionHeader, (offset, len_bytes), geometry)
            .map(|Extent { offset, len_bytes }| Self::Luks { offset, len_bytes })
            .map_err(|excess| {
                format!(
                    "the encryption header of {len_bytes} bytes at {:#x} {excess}",
                    offset.0
                )
            })
    }
}

impl Header {
    /// Where the encryption header stands, where there is one.
    pub(super) fn luks_range(&self) -> Option<(HostOffset, u64)> {
        match self.encryption {
            Some(Encryption::Luks { offset, len_bytes }) => Some((offset, len_bytes)),
            Some(Encryption::Aes) | None => None,
        }
    }
}

/// The data's cipher, and how its sectors are numbered.
#[derive(Debug)]
pub(super) struct Crypto {
    cipher: SectorCipher,
    numbers: Numbers,
    key: Option<VolumeKey>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Numbers {
    Guest,
    Host,
}

impl Crypto {
    /// What an image's data are encrypted with, if they are.
    pub(super) async fn open(
        file: &Port,
        header: &Header,
        unlock: Unlock<'_>,
    ) -> Result<Option<Self>, Error> {
        match (header.encryption, unlock) {
            (None, _) => Ok(None),
            (Some(_), Unlock::Secrets([])) | (Some(Encryption::Aes), Unlock::Key(_)) => {
                Err(Refused::NoSecret.into())
            }
            (Some(Encryption::Aes), Unlock::Secrets([first, ..])) => Ok(Some(Self {
                cipher: legacy_cipher(first),
                numbers: Numbers::Guest,
                key: None,
            })),
            (Some(Encryption::Luks { offset, len_bytes }), unlock) => {
                let area = Area { offset, len_bytes };
                let (luks, _) = area.load(file).await?;
                let key = match unlock {
                    Unlock::Key(key) => key.clone(),
                    Unlock::Secrets(secrets) => area.unlock(file, &luks, secrets).await?,
                };
                let cipher = luks::cipher(&luks, &key).ok_or(Refused::WrongSecret)?;
                Ok(Some(Self {
                    cipher,
                    numbers: Numbers::Host,
                    key: Some(key),
                }))
            }
        }
    }

    /// The key of a LUKS volume.
    pub(super) fn volume_key(&self) -> Option<&VolumeKey> {
        self.key.as_ref()
    }

    /// Encrypts data that go to this place.
    pub(super) fn encrypt(&self, to: Place, data: &mut [u8]) {
        self.cipher.encrypt(self.number(to), data);
    }

    /// Decrypts data that stand at this place.
    pub(super) fn decrypt(&self, from: Place, data: &mut [u8]) {
        self.cipher.decrypt(self.number(from), data);
    }

    fn number(&self, place: Place) -> u64 {
        match self.numbers {
            Numbers::Guest => place.guest / 512,
            Numbers::Host => place.host.0 / 512,
        }
    }
}

fn legacy_cipher(secret: &Secret) -> SectorCipher {
    let mut key = Zeroizing::new(secret.bytes().to_vec());
    key.resize(LEGACY_KEY_LEN, 0);
    let spec = CipherSpec {
        algorithm: Algorithm::Aes(LEGACY_KEY_LEN),
        mode: Mode::Cbc,
        vector: Vector::Plain64,
    };
    SectorCipher::new(spec, &key).expect("the key has the length that the cipher takes")
}

/// Where a LUKS header stands with its key material.
#[derive(Clone, Copy, Debug)]
pub(super) struct Area {
    pub(super) offset: HostOffset,
    pub(super) len_bytes: u64,
}

impl Area {
    /// The sectors that the header takes.
    pub(super) const HEADER_LEN: usize = luks::HEADER_LEN.next_multiple_of(512);

    /// Reads the header, and its sectors as they are.
    pub(super) async fn load(self, file: &Port) -> Result<(luks::Header, Vec<u8>), Error> {
        let len = mem_len(self.len_bytes).min(Self::HEADER_LEN);
        let bytes = file.at(Event::None).read(self.offset.0, len).await?;
        let header = luks::Header::decode(&bytes).map_err(|text| self.bad(text))?;
        Ok((header, bytes))
    }

    /// The key of the data, where one of the secrets opens one of the slots.
    async fn unlock(
        self,
        file: &Port,
        header: &luks::Header,
        secrets: &[Secret],
    ) -> Result<VolumeKey, Error> {
        for slot in (0..luks::SLOTS).filter(|slot| header.slots[*slot].active) {
            let range = header.material(slot);
            if range.end > mem_len(self.len_bytes) {
                continue;
            }
            let at = self.offset.0 + byte_count(range.start);
            let material = file.at(Event::None).read(at, range.len()).await?;
            let mut opened = secrets
                .iter()
                .filter_map(|secret| header.open_slot(slot, &material, secret));
            if let Some(key) = opened.next() {
                return Ok(key);
            }
        }
        Err(Refused::WrongSecret.into())
    }

    /// The error of a header in which this is wrong.
    pub(super) fn bad(self, text: String) -> Error {
        Error::from(BadImage {
            structure: Structure::EncryptionHeader,
            offset: self.offset.0,
            index: None,
            problem: Problem::Field(text),
        })
    }
}

/// The extension that points to a LUKS header.
pub(super) fn pointer(offset: HostOffset, len_bytes: u64) -> super::header::Extension {
    super::header::Extension {
        kind: extension::ENCRYPTION,
        data: [offset.0.to_be_bytes(), len_bytes.to_be_bytes()].concat(),
    }
}
