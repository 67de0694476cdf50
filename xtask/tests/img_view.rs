//! `img map`, `check`, `compare` and `measure` against qemu-img's, on images of many kinds.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]
#![allow(dead_code, reason = "the kit serves several tests")]

mod img_kit;

use img_kit::{Pair, Who};

/// A folder of images, and their names. Each was written by qemu-img and qemu-io.
#[allow(clippy::too_many_lines, reason = "a list")]
fn many_images() -> (Pair, Vec<&'static str>) {
    let pair = Pair::new();
    let create = |arguments: &[&str]| {
        pair.given("qemu-img", &[&["create", "-q"], arguments].concat());
    };
    let write = |name: &str, commands: &[&str]| {
        let format = ["-f", "qcow2"];
        let commands: Vec<&str> = commands.iter().flat_map(|text| ["-c", text]).collect();
        pair.given("qemu-io", &[&format[..], &commands, &[name]].concat());
    };
    create(&["-f", "qcow2", "empty", "1M"]);
    create(&["-f", "qcow2", "nothing", "0"]);
    create(&["-f", "qcow2", "some", "1M"]);
    write(
        "some",
        &[
            "write -P 1 64k 128k",
            "write -z 256k 64k",
            "write -P 2 512k 64k",
        ],
    );
    create(&["-f", "qcow2", "unaligned", "1000k"]);
    write("unaligned", &["write -P 1 960k 40k"]);
    create(&["-f", "qcow2", "-o", "cluster_size=512", "tiny", "300k"]);
    write(
        "tiny",
        &[
            "write -P 3 3k 5k",
            "write -P 4 100k 37k",
            "discard 4k 1k",
            "write -z 110k 3k",
        ],
    );
    create(&["-f", "qcow2", "-o", "cluster_size=2M", "huge", "64M"]);
    write("huge", &["write -P 3 2M 2M", "write -P 4 10M 4M"]);
    create(&["-f", "qcow2", "-o", "compat=0.10", "old", "1M"]);
    write("old", &["write -P 5 128k 64k", "write -z 128k 4k"]);
    create(&["-f", "qcow2", "-b", "some", "-F", "qcow2", "over", "2M"]);
    write(
        "over",
        &[
            "write -P 6 128k 64k",
            "write -P 7 1088k 64k",
            "write -z 512k 64k",
        ],
    );
    create(&["-f", "qcow2", "-b", "over", "-F", "qcow2", "top", "3M"]);
    write("top", &["discard 64k 64k", "write -P 8 2048k 64k"]);
    create(&["-f", "qcow2", "-o", "lazy_refcounts=on", "lazy", "1M"]);
    write("lazy", &["write -P 9 0 256k"]);
    create(&["-f", "qcow2", "compressed", "1M"]);
    write(
        "compressed",
        &[
            "write -P 9 -c 0 64k",
            "write -P 9 -c 128k 64k",
            "write -P 1 256k 64k",
        ],
    );
    create(&[
        "-f",
        "qcow2",
        "-o",
        "cluster_size=4k,refcount_bits=1",
        "wide",
        "40G",
    ]);
    write(
        "wide",
        &["write -P 1 0 4k", "write -P 2 20G 64k", "write -P 3 39G 4k"],
    );
    create(&[
        "-f",
        "qcow2",
        "-o",
        "preallocation=metadata",
        "prealloc",
        "1M",
    ]);
    create(&["-f", "qcow2", "snapped", "1M"]);
    write("snapped", &["write -P 1 0 128k"]);
    pair.given("qemu-img", &["snapshot", "-c", "one", "snapped"]);
    write("snapped", &["write -P 2 64k 64k"]);
    create(&["-f", "raw", "holes", "1M"]);
    pair.given(
        "qemu-io",
        &["-f", "raw", "-c", "write -P 1 64k 64k", "holes"],
    );
    create(&["-f", "qcow2", "-b", "holes", "-F", "raw", "over-raw"]);
    pair.write("short", b"hello");
    pair.write("odd", &[7; 5000]);
    pair.write("zero-length", b"");
    let names = vec![
        "empty",
        "nothing",
        "some",
        "unaligned",
        "tiny",
        "huge",
        "old",
        "over",
        "top",
        "lazy",
        "compressed",
        "wide",
        "prealloc",
        "snapped",
        "holes",
        "over-raw",
        "short",
        "odd",
        "zero-length",
    ];
    (pair, names)
}

#[test]
fn maps_are_alike() {
    if !img_kit::have_qemu() {
        return;
    }
    let (pair, names) = many_images();
    for name in names {
        pair.same_view(&["map", name]);
        pair.same_view(&["map", "--output=json", name]);
        pair.same_view(&["map", "--output=json", "-s", "100k", "-l", "200k", name]);
        pair.same_view(&["map", "--output=json", "-s", "5M", name]);
        pair.same_view(&["map", "-U", "--start-offset=64k", name]);
        pair.same_view(&["map", "--output=json", "-f", "raw", name]);
    }
    for arguments in [
        &[][..],
        &["a", "b"],
        &["missing"],
        &["-s", "foo", "some"],
        &["-l", "-1", "some"],
        &["--output", "xml", "some"],
    ] {
        pair.same_view(&[&["map"], arguments].concat());
    }
}

#[test]
fn checks_are_alike() {
    if !img_kit::have_qemu() {
        return;
    }
    let (pair, names) = many_images();
    for name in names {
        let ended = pair.same_view(&["check", name]);
        pair.same_view(&["check", "--output=json", name]);
        pair.same_view(&["check", "-q", name]);
        assert!(matches!(ended.code, Some(0 | 63)), "{name}: {ended:?}");
    }
    for arguments in [
        &[][..],
        &["a", "b"],
        &["missing"],
        &["-r", "foo", "some"],
        &["-f", "qcow2", "holes"],
        &["--output", "xml", "some"],
        &["-T", "soon", "some"],
    ] {
        pair.same_view(&[&["check"], arguments].concat());
    }
}

#[test]
fn leaks_are_told_and_repaired_alike() {
    if !img_kit::have_qemu() {
        return;
    }
    let (pair, _) = many_images();
    let mut bytes = std::fs::read(pair.folder(Who::Qemu).join("some")).unwrap();
    // The first refcount block of a new image stands in its third cluster.
    bytes.resize(10 * 65536, 0);
    for cluster in [8, 9] {
        bytes[2 * 65536 + 2 * cluster + 1] = 1;
    }
    pair.write("leaky", &bytes);
    pair.same_view(&["check", "leaky"]);
    pair.same_view(&["check", "--output=json", "leaky"]);
    let ended = pair.same(&["check", "-r", "leaks", "leaky"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    pair.same(&["check", "leaky"]);
    pair.write("leaky", &bytes);
    pair.same(&["check", "-r", "all", "--output=json", "leaky"]);
    let clean = pair.same(&["check", "leaky"]);
    assert_eq!(clean.code, Some(0));
}

#[test]
fn damage_is_found_by_both_and_repaired_by_both() {
    if !img_kit::have_qemu() {
        return;
    }
    let (pair, _) = many_images();
    let mut bytes = std::fs::read(pair.folder(Who::Qemu).join("some")).unwrap();
    bytes[2 * 65536 + 2 * 5 + 1] = 0;
    pair.write("damaged", &bytes);
    let ended = pair.same_but_errors(&["check", "damaged"]);
    assert_eq!(ended.code, Some(2));
    let (qemu, ours) = pair.both(&["check", "-r", "all", "damaged"]);
    assert_eq!((qemu.code, ours.code), (Some(0), Some(0)), "{ours:?}");
    let ended = pair.same_but_errors(&["check", "--output=json", "-q", "damaged"]);
    assert_eq!(ended.code, Some(0));
    let name = pair.folder(Who::Qemu).join("damaged");
    let same = pair.run(Who::Ours, &["compare", "damaged", name.to_str().unwrap()]);
    assert_eq!(same.code, Some(0), "{same:?}");
}

#[test]
fn comparisons_are_alike() {
    if !img_kit::have_qemu() {
        return;
    }
    let (pair, names) = many_images();
    let mut patched = std::fs::read(pair.folder(Who::Qemu).join("holes")).unwrap();
    patched[65536 + 1001] ^= 1;
    pair.write("patched", &patched);
    let mut names = names;
    names.push("patched");
    for first in &names {
        for second in &names {
            if *first == "wide" && *second == "wide" {
                continue;
            }
            pair.same_view(&["compare", first, second]);
            pair.same_view(&["compare", "-s", first, second]);
        }
    }
    for arguments in [
        &[][..],
        &["some"],
        &["some", "missing"],
        &["-q", "some", "over"],
        &["-q", "missing", "over"],
        &["-f", "bogus", "some", "over"],
        &["-F", "raw", "some", "over"],
        &["-T", "soon", "some", "over"],
        &[
            "--image-opts",
            "driver=raw,file.filename=odd",
            "driver=raw,file.filename=short",
        ],
    ] {
        pair.same_view(&[&["compare"], arguments].concat());
    }
}

#[test]
fn measures_are_alike() {
    if !img_kit::have_qemu() {
        return;
    }
    let (pair, names) = many_images();
    for name in names {
        for options in [
            &[][..],
            &["-O", "qcow2"],
            &["-O", "qcow2", "-o", "cluster_size=4k,refcount_bits=64"],
            &["-O", "qcow2", "-o", "preallocation=full"],
        ] {
            let arguments = [&["measure"], options, &[name]].concat();
            pair.same_view(&arguments);
            pair.same_view(&[&arguments[..], &["--output=json"]].concat());
        }
    }
    for arguments in [
        &[][..],
        &["--size", "1M", "some"],
        &["--size", "1M", "-f", "raw"],
        &["-O", "bogus", "--size", "1M"],
        &["-O", "qcow2", "--size", "1M", "-o", "cluster_size=3"],
        &["-O", "qcow2", "--size", "1M", "-o", "cluster_size=512"],
        &[
            "-O",
            "qcow2",
            "--size",
            "1T",
            "-o",
            "refcount_bits=64,cluster_size=4k",
        ],
        &["-O", "qcow2", "--size", "1G", "-o", "extended_l2=on"],
        &["-O", "qcow2", "--size", "1000"],
        &["-O", "qcow2", "--size", "0"],
        &["--size", "1000"],
        &["--size", "-1"],
        &["--size", "foo"],
        &["-O", "qcow2", "--size", "8E"],
        &["-O", "qcow2", "--size", "2251799813685248"],
        &["-O", "qcow2", "--size", "2251799813685760"],
        &["-O", "qcow2", "--size", "9223372036854774784"],
        &["-O", "qcow2", "--size", "1E", "-o", "cluster_size=2M"],
        &["-O", "qcow2", "--size", "1M", "-o", ","],
        &["-o", ","],
        &["-O", "qcow2", "--size", "1M", "-o", "foo=1"],
        &["-O", "qcow2", "--size", "1M", "-o", "cluster_size=x"],
        &[
            "-O",
            "qcow2",
            "--size",
            "1M",
            "-o",
            "compat=1.1",
            "-o",
            "foo=1",
        ],
        &["--size", "1M", "-o", "foo=1"],
        &["-O", "bogus", "--size", "1M", "-o", "foo=1"],
        &["-l", "snapshot.foo=bar"],
        &["-l", "snap"],
    ] {
        pair.same_view(&[&["measure"], arguments].concat());
    }
}

#[test]
fn resizing_ends_alike() {
    if !img_kit::have_qemu() {
        return;
    }
    let (pair, _) = many_images();
    for (arguments, code) in [
        (&["some", "2M"][..], 0),
        (&["some", "2M"], 0),
        (&["-q", "some", "+1000k"], 0),
        (&["some", "1M"], 1),
        (&["some", "bogus"], 1),
        (&["some"], 1),
        (&[], 1),
        (&["some", "+"], 1),
        (&["some", "0"], 1),
        (&["some", "5M", "b"], 1),
        (&["holes", "4M"], 0),
        (&["-f", "raw", "holes", "5M"], 0),
        (&["-f", "raw", "holes", "1M"], 1),
        (&["tiny", "200M"], 0),
        (&["missing", "1M"], 1),
    ] {
        let ended = pair.same(&[&["resize"], arguments].concat());
        assert_eq!(ended.code, Some(code), "{arguments:?}: {ended:?}");
    }
    for name in ["some", "holes", "tiny"] {
        let qemu = pair.folder(Who::Qemu).join(name);
        let same = pair.run(Who::Ours, &["compare", name, qemu.to_str().unwrap()]);
        assert_eq!(same.code, Some(0), "{name}: {same:?}");
    }
}
