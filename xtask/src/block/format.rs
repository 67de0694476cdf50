//! The formats that can be opened: their names, and how they are recognised.

use engine::qcow2;

use super::Failure;

/// A format of images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Format {
    /// The bytes of the file are those of the disk.
    Raw,
    /// qcow2, versions 2 and 3.
    Qcow2,
}

impl Format {
    /// Every format, the surest to be recognised first; raw, which is anything at all, last.
    pub(crate) const ALL: [Self; 2] = [Self::Qcow2, Self::Raw];

    /// The name in options and output.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }

    /// The format of that name.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name)
    }

    /// The format of that name, for opening.
    pub(crate) fn to_open(name: &str) -> Result<Self, Failure> {
        Self::from_name(name).ok_or_else(|| {
            Failure(if KNOWN_ELSEWHERE.contains(&name) {
                format!("The '{name}' format is not supported yet")
            } else {
                format!("Unknown driver '{name}'")
            })
        })
    }

    /// Whether these first bytes of a file are those of an image of this format.
    pub(crate) fn recognises(self, bytes: &[u8]) -> bool {
        match self {
            Self::Raw => true,
            Self::Qcow2 => qcow2::probe(bytes),
        }
    }

    /// The format that the first bytes of a file tell.
    pub(crate) fn probe(bytes: &[u8]) -> Self {
        Self::ALL
            .into_iter()
            .find(|format| format.recognises(bytes))
            .unwrap_or(Self::Raw)
    }
}

/// Formats that QEMU opens and this program does not.
const KNOWN_ELSEWHERE: [&str; 11] = [
    "bochs",
    "cloop",
    "dmg",
    "luks",
    "parallels",
    "qcow",
    "qed",
    "vdi",
    "vhdx",
    "vmdk",
    "vpc",
];
