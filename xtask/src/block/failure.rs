//! Why something did not work, in the words of QEMU's tools.

use engine::device::{Cause, DeviceError};
use engine::error::{Error, Unsupported};

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
        Error::BadImage(bad) => bad.to_string(),
        other @ (Error::Unsupported(Unsupported::ReadOnlyFeature(_)) | Error::Refused(_)) => {
            other.to_string()
        }
    }
}

fn device_text(error: &DeviceError) -> String {
    match error.cause {
        Cause::Os(errno) => os_text(&std::io::Error::from_raw_os_error(errno)),
        cause @ (Cause::PowerOff | Cause::BadRequest | Cause::ReadOnly) => cause.to_string(),
    }
}
