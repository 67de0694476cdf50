//! Opening, reopening and closing with `io`, and its lines from a stream, against qemu-io's.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]
#![allow(dead_code, reason = "the kit serves several tests")]

mod io_kit;

use io_kit::Pair;

fn pair() -> Pair {
    let pair = Pair::new();
    pair.create(&["-f", "qcow2", "a.qcow2", "1M"]);
    pair.create(&["-f", "qcow2", "-b", "a.qcow2", "-F", "qcow2", "o.qcow2"]);
    pair
}

#[test]
fn lines_come_from_the_input_stream() {
    let pair = pair();
    for input in [
        "length\nbogus\n\n  write -q 0 1k  \nread 0 1k\nquit\nlength\n",
        "length",
        "",
        "sleep 1\nq\n",
    ] {
        pair.same_input(&["a.qcow2"], input);
    }
}

#[test]
fn wrong_calls_end_as_qemu_ios_do() {
    let pair = pair();
    for arguments in [
        &["missing.qcow2", "-c", "length"][..],
        &["-c", "length"],
        &["-c", "write"],
        &["-f", "bogus", "a.qcow2", "-c", "length"],
        &["-t", "bogus", "a.qcow2", "-c", "length"],
        &["-d", "bogus", "a.qcow2", "-c", "length"],
        &["-i", "bogus", "a.qcow2", "-c", "length"],
        &["--image-opts", "-f", "qcow2", "a.qcow2"],
        &["--object", "secret,id=a", "a.qcow2", "-c", "length"],
    ] {
        let ended = pair.same_input(arguments, "");
        assert_eq!(ended.code, Some(1), "{arguments:?}");
    }
    // The list of options is our own.
    for arguments in [&["--bogus"][..], &["-c"], &["a.qcow2", "o.qcow2"]] {
        assert_eq!(pair.ours(arguments, "").code, Some(1), "{arguments:?}");
    }
    assert_eq!(pair.ours(&["--help"], "").code, Some(0));
}

#[test]
fn a_disk_is_opened_closed_and_reopened() {
    let pair = pair();
    pair.same_words(
        &["a.qcow2"],
        &[
            "close",
            "length",
            "open a.qcow2",
            "open a.qcow2",
            "close",
            "open",
            "open missing",
            "open -x",
            "open -t bogus a.qcow2",
            "open -o driver=raw a.qcow2",
            "read -v 0 4",
            "close",
            "open -r -o driver=qcow2 a.qcow2",
            "write 0 1k",
            "reopen -w",
            "write -q -P 3 0 1k",
            "reopen -r",
            "write 0 1k",
            "read -P 3 0 1k",
            "reopen -o lazy-refcounts=on",
            "reopen -rw",
            "reopen -c bogus",
            "reopen -o bogus=1",
            "reopen -o read-only=off -w",
            "reopen -c none -o cache.direct=off",
            "reopen -o read-only=on",
            "write 0 1k",
            "reopen -o",
            "reopen foo",
        ],
    );
    pair.same_image("a.qcow2", "qcow2");
}

#[test]
fn a_temporary_disk_leaves_the_image_alone() {
    let pair = pair();
    pair.same(&["a.qcow2"], &["write -q -P 5 0 128k"]);
    pair.same(
        &["-s", "a.qcow2"],
        &[
            "write -q -P 9 1000 64k",
            "read -P 9 1000 64k",
            "read -P 5 0 1000",
            "map",
            "info",
        ],
    );
    pair.same(&["a.qcow2"], &["read -P 5 0 128k"]);
    pair.same_image("a.qcow2", "qcow2");
}

#[test]
fn copy_on_read_leaves_copies() {
    let pair = pair();
    pair.same(&["a.qcow2"], &["write -q -P 5 0 512k"]);
    pair.same(
        &["-C", "o.qcow2"],
        &["read -P 5 70000 128k", "read -P 5 500000 10", "map"],
    );
    pair.same_image("o.qcow2", "qcow2");
}

#[test]
fn signals_end_both() {
    let pair = pair();
    let ended = pair.same(
        &["a.qcow2"],
        &["write -q 0 64k", "length", "sigraise 0", "abort"],
    );
    assert_ne!(ended.code, Some(0));
    pair.same_image("a.qcow2", "qcow2");
}
