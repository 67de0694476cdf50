//! Feature bits and their names.
//!
//! An image carries a table of names, so that a program which does not know a feature can still say
//! what it is called. Specification: "Feature name table".

use super::header::{Header, autoclear, compatible, incompatible};

/// Bytes of one entry of the table: type, bit number, name padded with zeroes.
const ENTRY_LEN: usize = 48;

/// Which of the header's three fields a feature bit stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Incompatible,
    Compatible,
    Autoclear,
}

/// The features that the standard names, in the order in which QEMU lists them.
const STANDARD: [(Kind, u64, &str); 8] = [
    (Kind::Incompatible, incompatible::DIRTY, "dirty bit"),
    (Kind::Incompatible, incompatible::CORRUPT, "corrupt bit"),
    (
        Kind::Incompatible,
        incompatible::DATA_FILE,
        "external data file",
    ),
    (
        Kind::Incompatible,
        incompatible::COMPRESSION_TYPE,
        "compression type",
    ),
    (
        Kind::Incompatible,
        incompatible::EXTENDED_L2,
        "extended L2 entries",
    ),
    (
        Kind::Compatible,
        compatible::LAZY_REFCOUNTS,
        "lazy refcounts",
    ),
    (Kind::Autoclear, autoclear::BITMAPS, "bitmaps"),
    (
        Kind::Autoclear,
        autoclear::RAW_DATA_FILE,
        "raw external data",
    ),
];

impl Kind {
    fn byte(self) -> u8 {
        match self {
            Self::Incompatible => 0,
            Self::Compatible => 1,
            Self::Autoclear => 2,
        }
    }
}

/// The table that a new image carries.
pub(crate) fn standard_table() -> Vec<u8> {
    let mut table = vec![0; STANDARD.len() * ENTRY_LEN];
    for (entry, (kind, mask, name)) in table.chunks_exact_mut(ENTRY_LEN).zip(STANDARD) {
        entry[0] = kind.byte();
        entry[1] = u8::try_from(mask.trailing_zeros()).expect("a bit number is below 64");
        entry[2..2 + name.len()].copy_from_slice(name.as_bytes());
    }
    table
}

/// The names of the incompatible features in `bits`, from the image's own table where it has them,
/// else from the standard; those without a name follow as a mask.
pub(crate) fn names_of_incompatible(bits: u64, table: &[u8]) -> String {
    let mut names = Vec::new();
    let mut nameless = 0;
    for bit in (0..64u8).filter(|bit| bits >> bit & 1 != 0) {
        match name_of_incompatible(bit, table) {
            Some(name) => names.push(name),
            None => nameless |= 1u64 << bit,
        }
    }
    if nameless != 0 {
        names.push(format!("Unknown incompatible feature: {nameless:x}"));
    }
    names.join(", ")
}

fn name_of_incompatible(bit: u8, table: &[u8]) -> Option<String> {
    // The name of the last entry need not be padded.
    let mut entries = table.chunks(ENTRY_LEN).filter(|entry| entry.len() > 2);
    let from_image = entries
        .find(|entry| entry[0] == Kind::Incompatible.byte() && entry[1] == bit)
        .map(|entry| printable(&entry[2..]))
        .filter(|name| !name.is_empty());
    let from_standard = || {
        STANDARD
            .iter()
            .find(|(kind, mask, _)| *kind == Kind::Incompatible && *mask == 1 << bit)
            .map(|(_, _, name)| (*name).to_owned())
    };
    from_image.or_else(from_standard)
}

/// The text up to the first zero byte, with what could disturb a terminal replaced.
fn printable(bytes: &[u8]) -> String {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end])
        .chars()
        .map(|character| {
            if character.is_control() {
                char::REPLACEMENT_CHARACTER
            } else {
                character
            }
        })
        .collect()
}

impl Header {
    /// Whether the dirty bit is set: refcounts may be wrong.
    pub fn is_dirty(&self) -> bool {
        self.incompatible & incompatible::DIRTY != 0
    }

    /// Whether the corrupt bit is set: the image must not be written before it is repaired.
    pub fn is_corrupt(&self) -> bool {
        self.incompatible & incompatible::CORRUPT != 0
    }

    /// Whether the image asks for lazy refcounts.
    pub fn wants_lazy_refcounts(&self) -> bool {
        self.compatible & compatible::LAZY_REFCOUNTS != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_feature_is_named_by_the_image() {
        let mut table = vec![0; ENTRY_LEN];
        table[1] = 9;
        table[2..12].copy_from_slice(b"time\x1bwarp.");
        let table = [standard_table(), table].concat();
        assert_eq!(
            names_of_incompatible(1 << 9 | 1 << 4 | 1 << 60, &table),
            "extended L2 entries, time\u{fffd}warp., Unknown incompatible feature: 1000000000000000"
        );
    }

    #[test]
    fn the_last_name_of_a_table_needs_no_padding() {
        let table = [&standard_table()[..], b"\x00\x3flast"].concat();
        assert_eq!(names_of_incompatible(1 << 63, &table), "last");
        // Too short for any name.
        assert_eq!(
            names_of_incompatible(1 << 63 | 1 << 62, b"\x00\x3f"),
            "Unknown incompatible feature: c000000000000000"
        );
    }

    #[test]
    fn a_name_missing_from_the_table_comes_from_the_standard() {
        assert_eq!(
            names_of_incompatible(incompatible::DATA_FILE, &[]),
            "external data file"
        );
    }
}
