//! File names: plain ones, and those that start with a protocol.

/// What a file name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Name<'a> {
    /// A local file.
    Plain(&'a str),
    /// `json:{..}`, without the prefix.
    Json(&'a str),
    /// `blkdebug:CONFIG:FILE`, without the prefix.
    Blkdebug(&'a str),
    /// `blkverify:RAW:IMAGE`, without the prefix.
    Blkverify(&'a str),
    /// Another protocol: its name.
    Protocol(&'a str),
}

/// Protocols that QEMU knows and this program does not.
pub(crate) const KNOWN_ELSEWHERE: [&str; 17] = [
    "fat",
    "ftp",
    "ftps",
    "gluster",
    "host_cdrom",
    "host_device",
    "http",
    "https",
    "iscsi",
    "iser",
    "nbd",
    "nbd+tcp",
    "nbd+unix",
    "nfs",
    "nvme",
    "rbd",
    "ssh",
];

/// Takes a name apart. A colon before the first slash ends a protocol's name.
pub(crate) fn parse(name: &str) -> Name<'_> {
    let end = name.find([':', '/']);
    let Some((protocol, rest)) = end
        .filter(|end| name.as_bytes()[*end] == b':')
        .map(|end| (&name[..end], &name[end + 1..]))
    else {
        return Name::Plain(name);
    };
    match protocol {
        "file" => Name::Plain(rest),
        "json" => Name::Json(rest),
        "blkdebug" => Name::Blkdebug(rest),
        "blkverify" => Name::Blkverify(rest),
        other => Name::Protocol(other),
    }
}

/// Whether a name starts with a protocol.
pub(crate) fn has_protocol(name: &str) -> bool {
    parse(name) != Name::Plain(name)
}

/// A name that stands in the file `beside`, as seen from here: relative names start at its folder.
pub(crate) fn beside(beside: &str, name: &str) -> String {
    if name.starts_with('/') {
        return name.to_owned();
    }
    match beside.rfind('/') {
        Some(end) => format!("{}/{name}", &beside[..end]),
        None => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_protocol_ends_before_the_first_slash() {
        assert_eq!(parse("a.qcow2"), Name::Plain("a.qcow2"));
        assert_eq!(parse("./we:ird"), Name::Plain("./we:ird"));
        assert_eq!(parse("file:a"), Name::Plain("a"));
        assert_eq!(parse("nbd://host/x"), Name::Protocol("nbd"));
        assert_eq!(parse("blkdebug::a"), Name::Blkdebug(":a"));
        assert!(has_protocol("file:a") && !has_protocol("/a:b"));
    }

    #[test]
    fn relative_names_start_beside_the_image() {
        assert_eq!(beside("sub/o.qcow2", "../base"), "sub/../base");
        assert_eq!(beside("o.qcow2", "base"), "base");
        assert_eq!(beside("sub/o.qcow2", "/base"), "/base");
        assert_eq!(beside("/o.qcow2", "base"), "/base");
    }
}
