//! Header extensions: typed records between the header and the backing file's name.
//!
//! Specification: "Header extensions". A record that nobody here understands is kept as it is.

use super::header::{Extension, Malformed};

/// The end of the extensions.
pub const END: u32 = 0;
/// The format of the backing file, as text.
pub const BACKING_FORMAT: u32 = 0xe279_2aca;
/// The name of the external data file, as text.
pub const DATA_FILE: u32 = 0x4441_5441;
/// Names of feature bits.
pub const FEATURE_NAMES: u32 = 0x6803_f857;
/// Where the LUKS header stands.
pub const ENCRYPTION: u32 = 0x0537_be77;
/// Where the bitmap directory stands.
pub const BITMAPS: u32 = 0x2385_2875;
/// What takes up space while the extensions move. Only this project uses it, and only between two steps
/// of one rewriting of the header; for others it is unknown and means nothing.
pub const FILLER: u32 = 0x7172_6673;

const RECORD_LEN: usize = 8;

/// The extensions between `start` and `end`, both byte offsets in the file, of which `bytes` are the
/// first.
pub(crate) fn decode(bytes: &[u8], start: usize, end: usize) -> Result<Vec<Extension>, Malformed> {
    let mut extensions = Vec::new();
    let mut at = start;
    while at + RECORD_LEN <= end {
        let record = bytes.get(at..at + RECORD_LEN).ok_or(Malformed::NeedMore)?;
        let (kind, len) = record.split_at(4);
        let kind = super::header::be_u32(kind, 0);
        let len = super::header::be_u32(len, 0);
        if kind == END {
            break;
        }
        at += RECORD_LEN;
        let len = usize::try_from(len).expect("32 bits fit a length");
        if len > end - at {
            return Err(Malformed::Extension {
                offset: at - RECORD_LEN,
                kind,
                len,
            });
        }
        let data = bytes.get(at..at + len).ok_or(Malformed::NeedMore)?;
        extensions.push(Extension {
            kind,
            data: data.to_vec(),
        });
        at += len.next_multiple_of(8);
    }
    Ok(extensions)
}

/// Appends the extensions and their end marker.
pub(crate) fn encode(extensions: &[Extension], into: &mut Vec<u8>) {
    for Extension { kind, data } in extensions {
        let len = u32::try_from(data.len()).expect("an extension fits cluster 0");
        into.extend_from_slice(&kind.to_be_bytes());
        into.extend_from_slice(&len.to_be_bytes());
        into.extend_from_slice(data);
        into.resize(into.len().next_multiple_of(8), 0);
    }
    into.extend_from_slice(&[0; RECORD_LEN]);
}
