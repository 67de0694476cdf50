//! Options of the open image against qemu-io's: what each says, and what each leaves in the file.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]
#![allow(dead_code, reason = "the kit serves several tests")]

mod io_kit;

use std::fs;

use io_kit::Pair;

const QCOW2: &[&str] = &["-f", "qcow2", "a.qcow2", "1M"];

fn opened(options: &str) -> String {
    format!("driver=qcow2,file.filename=a.qcow2,{options}")
}

/// Both carry the commands out on a new image, say the same, and leave the same mapping and as much of
/// the file allocated.
fn alike(creation: &[&str], mode: &str, options: &str, commands: &[&str]) {
    let pair = Pair::new();
    pair.create(creation);
    let name = opened(options);
    pair.same(&["-d", mode, "--image-opts", &name], commands);
    pair.same_image("a.qcow2", "qcow2");
    let [theirs, ours] = pair.maps("a.qcow2");
    assert_eq!(ours, theirs, "{mode} {options}");
    let [theirs, ours] = pair.allocated_bytes("a.qcow2");
    // What is no guest data differs by where tables stand: by less than a cluster.
    assert!(
        ours.abs_diff(theirs) < 1 << 16,
        "{mode} {options}: {ours} bytes of the file, by qemu-io {theirs}"
    );
}

#[test]
fn a_disk_is_described_in_all_of_qemus_ways() {
    let pair = Pair::new();
    pair.create(QCOW2);
    let commands = ["write -P 5 4k 4k", "read -P 5 4k 4k", "read -P 0 0 4k"];
    for name in [
        "json:{'driver': 'qcow2', 'file': {'driver': 'file', 'filename': 'a.qcow2'}}",
        "json:{'driver': \"qcow2\", \"file.filename\": 'a.qcow2', 'backing': null}",
        r"json:{'driver': 'qcow2', 'file': {'driver': 'file', 'filename': 'a\'b'}}",
        "json:{'driver': 'qcow2', 'file': {'driver': 'raw', 'file': {'driver': 'file', 'filename': 'a.qcow2'}}}",
        "json:{'driver': 'qcow2', 'file.filename': 'a.qcow2}",
        "file:a.qcow2",
    ] {
        pair.same(&[name], &commands);
    }
    for options in [
        "driver=qcow2,file.driver=raw,file.file.filename=a.qcow2",
        "driver=qcow2,file.driver=raw",
        "driver=qcow2,file.driver=nonsense,file.filename=a.qcow2",
    ] {
        pair.same(&["--image-opts", options], &commands);
    }
    for command in [
        "open -o driver=qcow2 a.qcow2",
        "open -o driver=qcow2 json:{\"file.filename\":\"a.qcow2\"}",
        "open -o driver=qcow2 json:{\"driver\":\"raw\",\"file.filename\":\"a.qcow2\"}",
        "open -o driver=qcow2,file.driver=file a.qcow2",
        "open -o driver=qcow2 blkdebug::a.qcow2",
    ] {
        pair.same(&[], &[command, "read -P 5 4k 4k"]);
    }
}

#[test]
fn what_lies_beneath_is_opened_as_the_caller_says() {
    let pair = Pair::new();
    pair.create(QCOW2);
    pair.create(&[
        "-f",
        "qcow2",
        "-b",
        "a.qcow2",
        "-F",
        "qcow2",
        "over.qcow2",
        "2M",
    ]);
    for options in [
        "backing.driver=raw",
        "backing.driver=qcow2",
        "backing.lazy-refcounts=on",
        "backing.driver=bogus",
        "backing.bogus=1",
        "backing=",
        "backing.file.filename=a.qcow2,backing.driver=raw",
    ] {
        let name = format!("driver=qcow2,file.filename=over.qcow2,{options}");
        pair.same(
            &["--image-opts", &name],
            &["read -P 0 0 512", "read -v 0 8"],
        );
    }
}

#[test]
fn a_reopening_changes_what_it_says_and_what_means_the_same() {
    let pair = Pair::new();
    pair.create(QCOW2);
    let commands = [
        "reopen -o overlap-check=constant",
        "reopen -o overlap-check.template=all",
        "reopen -o overlap-check.main-header=off",
        "reopen -o overlap-check=none",
        "reopen -o overlap-check=none,overlap-check.template=all",
        "reopen -o cache-size=1M",
        "reopen -o l2-cache-size=512k",
        "reopen -o refcount-cache-size=256k",
        "reopen -o l2-cache-size=2M",
        "reopen -o cache-size=1M",
        "reopen -o l2-cache-size=2M",
        "reopen -o cache-size=1M,l2-cache-size=512k,refcount-cache-size=512k",
        "write -q 0 64k",
    ];
    let name = opened("cache-size=2M,overlap-check=constant");
    pair.same_words(&["--image-opts", &name], &commands);
    pair.create(&["-f", "qcow2", "-o", "cluster_size=256k", "b.qcow2", "32P"]);
    let huge = ["reopen -o l2-cache-entry-size=512,l2-cache-size=1T"];
    pair.same_words(&["b.qcow2"], &huge);
}

#[test]
fn numbers_are_read_as_in_c() {
    let pair = Pair::new();
    pair.create(QCOW2);
    for command in [
        "write -P \t7 \t4k \t+4k",
        "read -P +7 +4k 4k",
        "read -P 7 4k  4k\t",
        "read \t-1 4k",
        "length \t",
    ] {
        pair.same(&["-f", "qcow2", "a.qcow2"], &[command]);
    }
}

#[test]
fn copy_on_read_is_refused_where_nothing_can_be_written() {
    let pair = Pair::new();
    pair.create(QCOW2);
    let name = "driver=qcow2,file.filename=a.qcow2,read-only=on";
    pair.same_words(&["-r", "-C", "-f", "qcow2", "a.qcow2"], &["read 0 512"]);
    pair.same_words(&["-C", "--image-opts", name], &["read 0 512"]);
}

const DISCARDING: &[&str] = &[
    "write -q -P 7 0 512k",
    "discard -q 0 128k",
    "write -q -z -u 128k 128k",
    "write -q -z 256k 64k",
    "flush",
];

#[test]
fn discards_leave_what_qemu_io_leaves() {
    for mode in ["unmap", "ignore"] {
        for options in [
            "discard-no-unref=off",
            "discard=unmap",
            "discard=ignore",
            "pass-discard-request=on",
            "pass-discard-request=off",
            "pass-discard-other=on,pass-discard-snapshot=off",
            "discard-no-unref=on",
            "discard-no-unref=on,pass-discard-request=off",
            "discard-no-unref=on,discard=ignore",
        ] {
            alike(QCOW2, mode, options, DISCARDING);
        }
    }
    let old = &["-f", "qcow2", "-o", "compat=0.10", "a.qcow2", "1M"];
    alike(old, "unmap", "pass-discard-request=on", DISCARDING);
    let extended = &["-f", "qcow2", "-o", "extended_l2=on", "a.qcow2", "1M"];
    for options in ["discard-no-unref=on", "discard-no-unref=off"] {
        alike(extended, "unmap", options, DISCARDING);
    }
}

#[test]
fn kept_clusters_are_written_again_where_they_stand() {
    let commands = &[
        "write -q -P 7 0 256k",
        "discard -q 0 128k",
        "write -q -P 9 64k 64k",
        "write -q -P 9 4k 4k",
        "discard -q 128k 64k",
        "write -q -c -P 5 512k 64k",
        "discard -q 512k 64k",
        "read -P 0 0 4k",
        "read -P 9 4k 4k",
        "read -P 0 8k 56k",
        "read -P 9 64k 64k",
        "read -P 0 128k 64k",
        "read -P 7 192k 64k",
        "read -P 0 512k 64k",
    ];
    alike(QCOW2, "unmap", "discard-no-unref=on", commands);
}

#[test]
fn writes_of_zeroes_are_detected_alike() {
    let commands = &[
        "write -q -P 7 0 512k",
        "write -q -P 0 0 64k",
        "write -q -P 0 64k 4k",
        "write -q -P 0 68k 100",
        "write -q -P 0 129000 130000",
        "write -q -c -P 0 320k 64k",
        "read -P 0 0 69732",
        "read -P 7 69732 59268",
        "read -P 0 129000 130000",
        "read -P 7 259000 68680",
        "read -P 0 320k 64k",
    ];
    for detect in ["off", "on", "unmap"] {
        let detect = format!("detect-zeroes={detect}");
        // Compressed data go to what is vacant; only zeroes go anywhere.
        let commands = if detect.ends_with("off") {
            &commands[..5]
        } else {
            &commands[..]
        };
        alike(QCOW2, "unmap", &detect, commands);
        let backed = Pair::new();
        backed.create(&["-f", "qcow2", "b.qcow2", "1M"]);
        backed.same(&["b.qcow2"], &["write -q -P 3 0 1M"]);
        backed.create(&["-f", "qcow2", "-b", "b.qcow2", "-F", "qcow2", "a.qcow2"]);
        let name = opened(&detect);
        let words = ["--image-opts", name.as_str()];
        backed.same(&words, &["write -P 0 0 128k", "write -P 0 200k 4k", "map"]);
        backed.same_image("a.qcow2", "qcow2");
        let raw = Pair::new();
        raw.create(&["-f", "raw", "a.raw", "1M"]);
        let name = format!("driver=raw,file.filename=a.raw,{detect}");
        let words = ["--image-opts", name.as_str()];
        raw.same(&words, &["write -P 7 0 512k", "write -P 0 100 100k", "map"]);
        raw.same_image("a.raw", "raw");
        let [theirs, ours] = raw.allocated_bytes("a.raw");
        assert!(
            ours.abs_diff(theirs) <= 8192,
            "{detect}: {ours} and {theirs}"
        );
    }
}

#[test]
fn what_does_not_fit_is_refused_in_qemu_ios_words() {
    let pair = Pair::new();
    pair.create(QCOW2);
    let old = &["-f", "qcow2", "-o", "compat=0.10", "v2.qcow2", "1M"];
    pair.create(old);
    for options in [
        "cache-size=1M,l2-cache-size=1M,refcount-cache-size=1M",
        "cache-size=1M,l2-cache-size=2M",
        "cache-size=1M,refcount-cache-size=2M",
        "l2-cache-entry-size=3000",
        "l2-cache-entry-size=256",
        "l2-cache-entry-size=128k",
        "l2-cache-entry-size=0",
        "l2-cache-size=-5",
        "l2-cache-size=x",
        "refcount-cache-size=8000000T",
        "cache-clean-interval=4294967296",
        "cache-clean-interval=-1",
        "cache-clean-interval=x",
        "overlap-check=some",
        "overlap-check.template=foo",
        "overlap-check=all,overlap-check.template=none",
        "overlap-check.inactive-l1=maybe",
        "overlap-check.foo=on",
        "discard=foo",
        "detect-zeroes=foo",
        "detect-zeroes=unmap,discard=ignore",
        "pass-discard-request=maybe",
        "discard-no-unref=perhaps",
        // And what does.
        "cache-size=0",
        "l2-cache-size=0",
        "l2-cache-size=10E",
        "l2-cache-size=1.5M,l2-cache-entry-size=512",
        "cache-clean-interval=0",
        "overlap-check.template=all,overlap-check.active-l2=off",
        "overlap-check=all,overlap-check.template=all",
    ] {
        let name = opened(options);
        pair.same_words(&["--image-opts", &name], &["length"]);
    }
    for options in ["discard-no-unref=on", "lazy-refcounts=on"] {
        let name = format!("driver=qcow2,file.filename=v2.qcow2,{options}");
        pair.same_words(&["--image-opts", &name], &["length"]);
    }
}

#[test]
fn options_are_changed_by_reopening() {
    let commands = &[
        "write -q -P 7 0 512k",
        "reopen -o discard=ignore",
        "discard -q 0 64k",
        "reopen -o discard=unmap,discard-no-unref=on",
        "discard -q 64k 64k",
        "reopen -o discard-no-unref=off,detect-zeroes=unmap",
        "discard -q 128k 64k",
        "write -q -P 0 192k 64k",
        "reopen -o overlap-check=none,l2-cache-size=64k,cache-clean-interval=1",
        "reopen -o detect-zeroes=off",
        "write -q -P 0 256k 64k",
        "read -P 7 0 64k",
        "read -P 0 64k 256k",
    ];
    alike(QCOW2, "unmap", "overlap-check=all", commands);
    let pair = Pair::new();
    pair.create(QCOW2);
    let wrong = ["reopen -o overlap-check=some", "length"];
    let ended = pair.ours(&["-c", wrong[0], "-c", wrong[1], "a.qcow2"], "");
    assert_eq!((ended.code, ended.out.as_str()), (Some(1), "1 MiB\n"));
}

#[test]
fn a_write_over_metadata_is_told_in_qemu_ios_words() {
    let made = Pair::new();
    made.create(QCOW2);
    made.same(&["a.qcow2"], &["write -q -P 7 0 64k"]);
    let mut bytes = fs::read(made.path("qemu", "a.qcow2")).unwrap();
    let word = |bytes: &[u8], at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
    let at = |offset: u64| usize::try_from(offset & 0x00ff_ffff_ffff_fe00).unwrap();
    let l1 = word(&bytes, 40);
    let reftable = word(&bytes, 48);
    let l2 = word(&bytes, at(l1)) & 0x00ff_ffff_ffff_fe00;
    let block = word(&bytes, at(reftable));
    for target in [l1, l2, reftable, block] {
        bytes[at(l2)..at(l2) + 8].copy_from_slice(&(target | 1 << 63).to_be_bytes());
        for checks in ["none", "constant", "cached", "all"] {
            let pair = Pair::new();
            pair.write("a.qcow2", &bytes);
            let name = opened(&format!("overlap-check={checks}"));
            let mut words = vec!["--image-opts", name.as_str()];
            for command in ["write 0 512", "read 0 512", "write 64k 512"] {
                words.extend(["-c", command]);
            }
            pair.same_both(&words);
        }
    }
}
