//! `io` with blkdebug: breakpoints and injected errors against qemu-io's.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]
#![allow(dead_code, reason = "the kit serves several tests")]

mod io_kit;

use io_kit::Pair;

fn pair() -> Pair {
    let pair = Pair::new();
    pair.create(&["-f", "qcow2", "a.qcow2", "1M"]);
    pair.create(&["-f", "raw", "r.raw", "1M"]);
    pair
}

#[test]
fn a_breakpoint_suspends_a_request_until_it_is_resumed() {
    let pair = pair();
    pair.same_words(
        &["blkdebug::a.qcow2"],
        &[
            "break write_aio A",
            "aio_write -P 1 0 64k",
            "wait_break A",
            "write -q -P 2 64k 64k",
            "resume A",
            "aio_flush",
            "read -q -P 1 0 64k",
            "read -q -P 2 64k 64k",
        ],
    );
    pair.same_image("a.qcow2", "qcow2");
}

#[test]
fn an_overlapping_write_finds_the_place_of_the_suspended_one() {
    // Both write into one cluster that is not allocated yet: whoever comes second must not take
    // another cluster, and must not lose what the first wrote.
    let pair = pair();
    pair.same(
        &["blkdebug::a.qcow2"],
        &[
            "break write_aio A",
            "aio_write -q -P 1 0 32k",
            "wait_break A",
            "aio_write -q -P 2 32k 32k",
            "resume A",
            "aio_flush",
            "read -P 1 0 32k",
            "read -P 2 32k 32k",
        ],
    );
    pair.same_image("a.qcow2", "qcow2");
}

#[test]
fn breakpoints_are_removed_and_missed_in_qemu_ios_words() {
    let pair = pair();
    pair.same_words(
        &["blkdebug::a.qcow2"],
        &[
            "break write_aio A",
            "break write_aio B",
            "aio_write 0 64k",
            "wait_break B",
            "wait_break A",
            "resume A",
            "resume B",
            "aio_flush",
            "resume A",
            "break bogus B",
            "break write_aio",
            "remove_break Z",
            "break l2_load C",
            "remove_break C",
            "wait_break",
            "resume",
            "break write_aio A",
            "aio_write 64k 64k",
            "wait_break A",
            "remove_break A",
            "aio_flush",
        ],
    );
    pair.same_words(
        &["a.qcow2"],
        &["break write_aio A", "resume A", "remove_break A"],
    );
    pair.same_words(
        &["-f", "raw", "blkdebug::r.raw"],
        &[
            "break pwritev B",
            "aio_write 0 1k",
            "wait_break B",
            "resume B",
            "aio_flush",
            "break read_aio C",
            "aio_read 0 1k",
            "wait_break C",
            "resume C",
            "aio_flush",
        ],
    );
}

#[test]
fn what_can_never_end_is_told_instead_of_waited_for() {
    let pair = pair();
    for commands in [
        &["-c", "break write_aio A", "-c", "write 0 64k"][..],
        &["-c", "break write_aio A", "-c", "aio_write 0 64k"],
        &["-c", "wait_break A"],
    ] {
        let arguments = [&["blkdebug::a.qcow2"], commands].concat();
        let ended = pair.ours(&arguments, "");
        assert_eq!(ended.code, Some(1), "{commands:?}: {ended:?}");
        assert!(ended.err.contains("suspended"), "{commands:?}: {ended:?}");
    }
}

#[test]
fn errors_are_injected_where_qemu_injects_them() {
    let pair = pair();
    pair.write(
        "once",
        b"[inject-error]\nevent = \"write_aio\"\nerrno = \"28\"\nonce = \"on\"\n",
    );
    pair.write(
        "state",
        b"[set-state]\nevent = \"write_aio\"\nstate = \"1\"\nnew_state = \"2\"\n\n\
          [inject-error]\nevent = \"write_aio\"\nstate = \"2\"\nonce = \"on\"\n",
    );
    pair.write(
        "reads",
        b"# the first read that follows an L2 table\n[inject-error]\nevent = \"l2_load\"\n\
          iotype = \"read\"\nonce = \"on\"\n",
    );
    let writes = &["write 0 64k", "write 0 64k", "write 64k 64k", "read 0 128k"];
    pair.same_words(&["blkdebug:once:a.qcow2"], writes);
    pair.same_words(&["blkdebug:state:a.qcow2"], writes);
    pair.same_words(&["blkdebug:reads:a.qcow2"], &["read 0 64k", "read 0 64k"]);
    pair.same_words(
        &[
            "--image-opts",
            "driver=raw,file.driver=blkdebug,file.image.driver=file,file.image.filename=r.raw,\
             file.inject-error.0.event=write_aio,file.inject-error.0.errno=28,\
             file.inject-error.0.once=on,file.inject-error.1.event=read_aio,\
             file.inject-error.1.iotype=write,file.inject-error.1.sector=3",
        ],
        &[
            "write 0 64k",
            "write 0 1k",
            "read 0 1k",
            "write 0 1k",
            "write 1k 1k",
        ],
    );
    pair.same_image("a.qcow2", "qcow2");
}

#[test]
fn a_bad_configuration_is_refused_with_its_line() {
    let pair = pair();
    pair.write("bad", b"[inject-error]\nevent = \"none\"\nbogus = \"1\"\n");
    let bad = pair.same(&["blkdebug:bad:a.qcow2"], &["length"]);
    assert_eq!(bad.code, Some(1));
    let ours = pair.ours(&["blkdebug:bad:a.qcow2", "-c", "length"], "");
    assert!(
        ours.err.contains("line 3") && ours.err.contains("bogus"),
        "{ours:?}"
    );
    for name in ["blkdebug:missing:a.qcow2", "blkdebug:a.qcow2"] {
        pair.same_words(&[name], &["length"]);
    }
}
