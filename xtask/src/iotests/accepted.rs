//! The tests that may print something else here, and why. `docs/COMMANDS.md` argues the differences.

/// Why a test may differ, if it may.
pub(super) fn reason(test: &str) -> Option<&'static str> {
    ACCEPTED
        .iter()
        .find(|(_, tests)| tests.contains(&test))
        .map(|(reason, _)| *reason)
}

const ACCEPTED: [(&str, &[&str]); 10] = [
    (
        "it prints or overwrites offsets of QEMU's layout",
        &[
            "061", "112", "122", "138", "214", "250", "252", "271", "290", "292", "305",
        ],
    ),
    ("zeroes are written without zero clusters", &["154", "179"]),
    (
        "words for damaged images and for what a check finds; unknown autoclear bits of a sound image stay",
        &["036", "039", "054", "080", "137", "217", "261"],
    ),
    (
        "blkdebug: events in other places, limits of requests that are not there yet",
        &["026", "033", "066", "098", "177", "204", "268"],
    ),
    (
        "formats, protocols and layers that are not there, and names that an image may not choose",
        &[
            "020", "072", "089", "110", "133", "150", "226", "251", "270",
        ],
    ),
    (
        "the test asks first whether images of format luks can be made",
        &["178", "188", "189", "198", "263", "284", "293"],
    ),
    (
        "the length of a new file, or of its header",
        &["031", "125", "190", "243"],
    ),
    ("a warning comes at once, not at the end", &["074"]),
    ("leaks beyond the end of the file are told", &["220"]),
    ("of two extensions of one type the first counts", &["114"]),
];
