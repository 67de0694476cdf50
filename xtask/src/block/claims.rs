//! What is claimed on the files of an image while it is open, as QEMU's programs do it.
//!
//! Metadata in a file that two programs write are soon nonsense, so that qcow2 shares its file with readers
//! only; a raw file may be written by many, unless the command depends on what it reads.

use engine::device::{Claim, ClaimError, Permission};
use engine::image::Access;

use super::{Depth, Failure, Format, Opening, Sharing};

/// Whether claims are made on a file at all (`locking`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Locking {
    /// Where the file system can lock.
    Auto,
    Off,
}

impl Locking {
    pub(crate) fn from_name(name: &str) -> Result<Self, Failure> {
        match name {
            "auto" | "on" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            other => Err(Failure(format!("invalid parameter value: {other}"))),
        }
    }
}

/// What a file is to an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The file that an image of this format stands in.
    Image(Format),
    /// The file of its guest data.
    Data,
}

const LENGTH: &[Permission] = &[Permission::Resize];
const BOTH: &[Permission] = Claim::READER.refuses;

/// What is claimed on a file that is opened.
pub(crate) fn claim(role: Role, access: Access, opening: &Opening<'_>) -> Claim {
    let uses: &[Permission] = match (access, role) {
        (Access::ReadOnly, _) if opening.depth == Depth::Header => &[],
        (Access::ReadOnly, _) => &[Permission::ConsistentRead],
        (Access::ReadWrite, Role::Image(Format::Raw)) => {
            &[Permission::ConsistentRead, Permission::Write]
        }
        (Access::ReadWrite, Role::Image(Format::Qcow2) | Role::Data) => Claim::WRITER.uses,
    };
    let refuses: &[Permission] = match (opening.sharing, role) {
        (Sharing::Unasked, _) => return Claim::NONE,
        (Sharing::Anyone, _) | (Sharing::ByFormat, Role::Image(Format::Raw)) => &[],
        (Sharing::ByFormat, Role::Data) => LENGTH,
        (Sharing::ByFormat, Role::Image(Format::Qcow2)) | (Sharing::Readers, _) => BOTH,
    };
    Claim { uses, refuses }
}

/// What is claimed on a file that a new image is put into.
pub(crate) fn creation(format: Format) -> Claim {
    match format {
        Format::Raw => Claim {
            uses: &[Permission::Write, Permission::Resize],
            refuses: LENGTH,
        },
        Format::Qcow2 => Claim::WRITER,
    }
}

/// The same claim, for changing the length besides.
pub(crate) fn with_resize(claim: Claim) -> Claim {
    Claim {
        uses: Claim::WRITER.uses,
        ..claim
    }
}

/// QEMU's words for a claim on the file `path` that was not granted.
pub(crate) fn refusal(path: &str, error: ClaimError) -> Failure {
    match error {
        ClaimError::Refused(permission) => in_use(path, &format!("\"{}\"", permission.name())),
        ClaimError::Used(permission) => in_use(path, &format!("shared \"{}\"", permission.name())),
        ClaimError::Unlockable { byte, .. } => Failure(format!("Failed to lock byte {byte}")),
    }
}

/// QEMU's words for a file that somebody uses otherwise.
pub(crate) fn in_use(path: &str, lock: &str) -> Failure {
    Failure(format!(
        "Failed to get {lock} lock\nIs another process using the image [{path}]?"
    ))
}
