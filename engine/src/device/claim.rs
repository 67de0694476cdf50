//! What programs tell each other about a file that they have open, in the way of QEMU's programs.
//!
//! A program says what it does with a file, and what nobody else may do meanwhile: [`Claim`]. Each of both is
//! a lock on one byte: byte 100 + N says that [`Permission`] N is used, byte 200 + N that it is refused to
//! others. All locks are shared ones, so that many programs may say the same; whoever claims something says
//! so first, and then looks whether it fits what others say. The bytes need not exist, and are not read.
//!
//! The locks belong to the open file (`F_OFD_SETLK`), not to the process: two files opened by one program
//! exclude each other too, and closing the file ends them. They are advice, which stops nobody who does not
//! ask. On a file system that has no such locks nothing is said, and nobody is heard.

use std::cell::Cell;
use std::fs::File;
use std::io;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

/// What may be done with a file, by QEMU's numbers and names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// Reading what makes sense as a whole.
    ConsistentRead,
    /// Writing.
    Write,
    /// Writing what is there already.
    WriteUnchanged,
    /// Changing the length.
    Resize,
}

impl Permission {
    /// QEMU's name, as its messages have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::ConsistentRead => "consistent read",
            Self::Write => "write",
            Self::WriteUnchanged => "write unchanged",
            Self::Resize => "resize",
        }
    }

    fn used_byte(self) -> i64 {
        100 + self.number()
    }

    fn refused_byte(self) -> i64 {
        200 + self.number()
    }

    fn number(self) -> i64 {
        match self {
            Self::ConsistentRead => 0,
            Self::Write => 1,
            Self::WriteUnchanged => 2,
            Self::Resize => 3,
        }
    }
}

/// What one who has a file open does with it, and refuses to everybody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// What is done.
    pub uses: &'static [Permission],
    /// What nobody else may do.
    pub refuses: &'static [Permission],
}

impl Claim {
    /// Nothing is said.
    pub const NONE: Self = Self {
        uses: &[],
        refuses: &[],
    };
    /// What is read does not change meanwhile.
    pub const READER: Self = Self {
        uses: &[Permission::ConsistentRead],
        refuses: &[Permission::Write, Permission::Resize],
    };
    /// One writes, and nobody else.
    pub const WRITER: Self = Self {
        uses: &[
            Permission::ConsistentRead,
            Permission::Write,
            Permission::Resize,
        ],
        refuses: &[Permission::Write, Permission::Resize],
    };

    /// The bytes that are locked.
    fn bytes(self) -> impl Iterator<Item = i64> {
        let used = self.uses.iter().map(|permission| permission.used_byte());
        let refused = self.refuses.iter();
        used.chain(refused.map(|permission| permission.refused_byte()))
    }

    fn without(self, other: Self) -> impl Iterator<Item = i64> {
        self.bytes()
            .filter(move |byte| other.bytes().all(|kept| kept != *byte))
    }
}

/// Why a claim was not granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// Somebody else refuses what was to be done.
    #[error("another program that has it open refuses others to {}", .0.name())]
    Refused(Permission),
    /// Somebody else does what was to be refused.
    #[error("another program that has it open may {}", .0.name())]
    Used(Permission),
    /// The lock could not be taken at all.
    #[error("byte {byte} cannot be locked: {errno}")]
    Unlockable {
        /// Which byte.
        byte: i64,
        /// What the operating system says.
        errno: Errno,
    },
}

/// The claims on one open file. They end with the device that they were made on, not with this.
#[derive(Debug)]
pub struct FileClaims {
    /// None where the file system knows no such locks.
    file: Option<File>,
    held: Cell<Claim>,
}

impl FileClaims {
    /// The claims on a file that nothing was claimed on yet.
    pub(super) fn on(file: &File) -> io::Result<Self> {
        let file = match conflicts(file, 0, 0) {
            Ok(_) => Some(file.try_clone()?),
            Err(_) => None,
        };
        Ok(Self {
            file,
            held: Cell::new(Claim::NONE),
        })
    }

    /// What is claimed.
    pub fn held(&self) -> Claim {
        self.held.get()
    }

    /// Puts `claim` in the place of what was claimed before. Where it is not granted, that stays.
    pub fn take(&self, claim: Claim) -> Result<(), ClaimError> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        let before = self.held.get();
        let taken = claim
            .without(before)
            .try_for_each(|byte| {
                set(file, Lock::Shared, byte)
                    .map_err(|errno| ClaimError::Unlockable { byte, errno })
            })
            .and_then(|()| must_fit(file, claim));
        let (kept, given_up) = match taken {
            Ok(()) => (claim, before),
            Err(_) => (before, claim),
        };
        for byte in given_up.without(kept) {
            // A lock that stays says too much, which harms nobody and ends with the file.
            let _ = set(file, Lock::None, byte);
        }
        self.held.set(kept);
        taken
    }
}

/// Ends all claims on a file that is about to be closed. Closing it would do so only when no other handle is
/// left, and a program that is just being started has handles to all files for a moment.
pub(super) fn release(file: &File) {
    let used = Permission::ConsistentRead.used_byte();
    let end = Permission::Resize.refused_byte() + 1;
    // Where there are no such locks there is nothing to end.
    let _ = fcntl(
        file,
        FcntlArg::F_OFD_SETLK(&range(Lock::None, used, end - used)),
    );
}

/// Compares a claim with what others say.
fn must_fit(file: &File, claim: Claim) -> Result<(), ClaimError> {
    let taken =
        |byte| conflicts(file, byte, 1).map_err(|errno| ClaimError::Unlockable { byte, errno });
    for permission in claim.uses {
        if taken(permission.refused_byte())? {
            return Err(ClaimError::Refused(*permission));
        }
    }
    for permission in claim.refuses {
        if taken(permission.used_byte())? {
            return Err(ClaimError::Used(*permission));
        }
    }
    Ok(())
}

#[derive(Clone, Copy, Debug)]
enum Lock {
    Shared,
    Exclusive,
    None,
}

fn set(file: &File, lock: Lock, byte: i64) -> nix::Result<()> {
    fcntl(file, FcntlArg::F_OFD_SETLK(&range(lock, byte, 1))).map(drop)
}

/// Whether anybody else has a lock on one of these bytes; a length of zero means all that follow.
fn conflicts(file: &File, start: i64, len_bytes: i64) -> nix::Result<bool> {
    let mut found = range(Lock::Exclusive, start, len_bytes);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut found))?;
    Ok(found.l_type != range(Lock::None, start, len_bytes).l_type)
}

fn range(lock: Lock, start: i64, len_bytes: i64) -> libc::flock {
    let kind = match lock {
        Lock::Shared => libc::F_RDLCK,
        Lock::Exclusive => libc::F_WRLCK,
        Lock::None => libc::F_UNLCK,
    };
    let small = |constant| i16::try_from(constant).expect("the interface's own constants fit it");
    libc::flock {
        l_type: small(kind),
        l_whence: small(libc::SEEK_SET),
        l_start: start,
        l_len: len_bytes,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CREATOR: Claim = Claim {
        uses: &[Permission::Write, Permission::Resize],
        refuses: &[Permission::Resize],
    };
    const ANY_READER: Claim = Claim {
        uses: &[Permission::ConsistentRead],
        refuses: &[],
    };

    /// A file opened so many times.
    fn opened(times: usize) -> Vec<FileClaims> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "").unwrap();
        let claims = |_| FileClaims::on(&File::open(&path).unwrap()).unwrap();
        (0..times).map(claims).collect()
    }

    #[test]
    fn claims_fit_or_not_whoever_comes_first() {
        use Permission::{Resize, Write};
        let used = |permission| Err(ClaimError::Used(permission));
        let refused = |permission| Err(ClaimError::Refused(permission));
        let table = [
            (Claim::READER, Claim::READER, Ok(())),
            (Claim::READER, Claim::WRITER, refused(Write)),
            (Claim::WRITER, Claim::READER, used(Write)),
            (Claim::WRITER, Claim::WRITER, refused(Write)),
            (Claim::WRITER, ANY_READER, Ok(())),
            (ANY_READER, Claim::WRITER, Ok(())),
            (CREATOR, ANY_READER, Ok(())),
            (CREATOR, CREATOR, refused(Resize)),
            (Claim::WRITER, Claim::NONE, Ok(())),
        ];
        for (first, second, granted) in table {
            let claims = opened(2);
            assert_eq!(claims[0].take(first), Ok(()));
            assert_eq!(claims[1].take(second), granted, "{first:?}, {second:?}");
        }
    }

    #[test]
    fn what_is_not_granted_leaves_what_was() {
        let claims = opened(3);
        assert_eq!(claims[0].take(Claim::READER), Ok(()));
        assert_eq!(claims[1].take(Claim::READER), Ok(()));
        assert!(claims[1].take(Claim::WRITER).is_err());
        // The first would be in the way of nobody if the second had kept part of its attempt.
        assert_eq!(claims[0].take(Claim::NONE), Ok(()));
        assert_eq!(claims[2].take(Claim::READER), Ok(()));
        assert_eq!(claims[2].take(Claim::NONE), Ok(()));
        assert_eq!(claims[1].take(Claim::WRITER), Ok(()));
        assert_eq!(claims[1].take(Claim::READER), Ok(()));
        assert_eq!(claims[2].take(Claim::READER), Ok(()));
    }

    #[test]
    fn without_locks_of_this_kind_everything_is_granted() {
        let claims = FileClaims {
            file: None,
            held: Cell::new(Claim::NONE),
        };
        assert_eq!(claims.take(Claim::WRITER), Ok(()));
    }
}
