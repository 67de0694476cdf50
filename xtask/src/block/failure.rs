//! Why something did not work, in the words of QEMU's tools.

use engine::device::{Cause, DeviceError};
use engine::error::{Error, Problem, Refused, Structure, Unsupported};

/// One message for a person, without the program's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure(pub(crate) String);

impl Failure {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// That a file could not be opened, and why.
    pub(crate) fn could_not_open(name: &str, why: &Self) -> Self {
        Self(format!("Could not open '{name}': {}", why.0))
    }
}

/// The text of an operating system's error, without the number that Rust adds.
pub(crate) fn os_text(error: &std::io::Error) -> String {
    let text = error.to_string();
    match text.rfind(" (os error ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

/// What strerror would say of a failure of the engine: requests that failed are told by their cause.
pub(crate) fn engine_text(error: &Error) -> String {
    match error {
        Error::Device(error) => device_text(error),
        Error::Unsupported(Unsupported::Version(version)) => {
            format!("Unsupported qcow2 version {version}")
        }
        Error::Unsupported(Unsupported::Features(names)) => {
            format!("Unsupported qcow2 feature(s): {names}")
        }
        Error::BadImage(bad) => match bad.problem {
            Problem::Overlap { owner, .. } => format!(
                "Marking image as corrupt: Preventing invalid write on metadata (overlaps with {}); \
                 further corruption events will be suppressed",
                region_text(owner)
            ),
            Problem::Entry(_)
            | Problem::Field(_)
            | Problem::BeyondEnd { .. }
            | Problem::Decompress
            | Problem::MarkedCorrupt
            | Problem::Unrepaired { .. } => bad.to_string(),
        },
        Error::Refused(Refused::NoCompression | Refused::NotByFormat(_)) => errno_text(error),
        other @ (Error::Unsupported(Unsupported::ReadOnlyFeature(_)) | Error::Refused(_)) => {
            other.to_string()
        }
    }
}

/// QEMU's word for metadata that a write would have destroyed.
fn region_text(owner: Structure) -> String {
    match owner {
        Structure::Header => "qcow2_header".into(),
        Structure::L1Table => "active L1 table".into(),
        Structure::L2Table => "active L2 table".into(),
        Structure::InactiveL1Table => "inactive L1 table".into(),
        Structure::InactiveL2Table => "inactive L2 table".into(),
        other @ (Structure::HeaderExtension
        | Structure::BackingName
        | Structure::RefcountTable
        | Structure::RefcountBlock
        | Structure::SnapshotTable
        | Structure::EncryptionHeader
        | Structure::BitmapDirectory
        | Structure::BitmapTable
        | Structure::Data) => other.to_string(),
    }
}

/// What strerror says of a guest's request that failed: there is one word for whatever is wrong with an
/// image, and the reason itself is for another line.
pub(crate) fn errno_text(error: &Error) -> String {
    match error {
        Error::Device(error) => device_text(error),
        Error::Unsupported(_) | Error::Refused(_) | Error::BadImage(_) => {
            os_text(&std::io::Error::from_raw_os_error(errno(error)))
        }
    }
}

/// The number of that word.
pub(crate) fn errno(error: &Error) -> i32 {
    const NOT_PERMITTED: i32 = 1;
    const NO_ENTRY: i32 = 2;
    const INPUT_OUTPUT: i32 = 5;
    const INVALID: i32 = 22;
    const TOO_BIG: i32 = 27;
    const NOT_SUPPORTED: i32 = 95;
    const NO_MEDIUM: i32 = 123;
    match error {
        Error::Device(error) => match error.cause {
            Cause::Os(errno) => errno,
            Cause::PowerOff => INPUT_OUTPUT,
            Cause::BadRequest => INVALID,
            Cause::ReadOnly => NOT_PERMITTED,
        },
        Error::Unsupported(_) => NOT_SUPPORTED,
        Error::Refused(refused) => match refused {
            Refused::OutOfRange { .. } | Refused::NotVacant { .. } | Refused::Distrusted => {
                INPUT_OUTPUT
            }
            Refused::FoundCorrupt => NO_MEDIUM,
            Refused::Unaligned { .. } | Refused::NotWholeClusters { .. } => INVALID,
            Refused::NoCompression
            | Refused::NotByFormat(_)
            | Refused::ResizeWithSnapshots
            | Refused::Bitmap(_)
            | Refused::KeySlot(_)
            | Refused::Option(_) => NOT_SUPPORTED,
            Refused::NoSuchSnapshot(_) => NO_ENTRY,
            Refused::ReadOnly | Refused::NoDataFile | Refused::NoSecret | Refused::WrongSecret => {
                NOT_PERMITTED
            }
            Refused::TableFull(_) | Refused::RefcountOverflow => TOO_BIG,
        },
        Error::BadImage(_) => INPUT_OUTPUT,
    }
}

fn device_text(error: &DeviceError) -> String {
    match error.cause {
        Cause::Os(errno) => os_text(&std::io::Error::from_raw_os_error(errno)),
        cause @ (Cause::PowerOff | Cause::BadRequest | Cause::ReadOnly) => cause.to_string(),
    }
}
