//! `img convert` and `img dd` against qemu-img's: what they say, and what the new images hold.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]
#![allow(dead_code, reason = "the kit serves several tests")]

mod img_kit;

use std::os::unix::fs::MetadataExt;

use img_kit::{Pair, Who};

fn sources() -> Pair {
    let pair = Pair::new();
    let create = |arguments: &[&str]| {
        pair.given("qemu-img", &[&["create", "-q"], arguments].concat());
    };
    create(&["-f", "qcow2", "base", "3M"]);
    pair.given(
        "qemu-io",
        &[
            "-f",
            "qcow2",
            "-c",
            "write -P 1 0 1M",
            "-c",
            "write -P 2 2M 100k",
            "base",
        ],
    );
    create(&["-f", "qcow2", "-b", "base", "-F", "qcow2", "over", "5000k"]);
    let commands = [
        "-c",
        "write -P 3 64k 70k",
        "-c",
        "write -z 512k 128k",
        "-c",
        "write -P 4 4M 64k",
    ];
    pair.given(
        "qemu-io",
        &[&["-f", "qcow2"], &commands[..], &["over"]].concat(),
    );
    create(&["-f", "qcow2", "packed", "1M"]);
    pair.given(
        "qemu-io",
        &["-f", "qcow2", "-c", "write -c -P 5 0 64k", "packed"],
    );
    create(&["-f", "raw", "disk", "10M"]);
    pair.given(
        "qemu-io",
        &[
            "-f",
            "raw",
            "-c",
            "write -P 6 5M 3k",
            "-c",
            "write -z 5M 512",
            "disk",
        ],
    );
    pair.write("odd", &vec![9; 70_001]);
    pair
}

/// Whether the image that ours made holds what qemu-img's does, by the judgement of qemu-img.
fn must_agree(pair: &Pair, name: &str, format: &str) {
    let qemu = pair.folder(Who::Qemu).join(name);
    let ours = pair.folder(Who::Ours).join(name);
    let (qemu, ours) = (qemu.to_str().unwrap(), ours.to_str().unwrap());
    let arguments = ["compare", "-s", "-f", format, "-F", format, qemu, ours];
    let strict = pair.run(Who::Qemu, &arguments);
    let plain = pair.run(
        Who::Qemu,
        &["compare", "-f", format, "-F", format, qemu, ours],
    );
    assert_eq!(plain.code, Some(0), "{name}: {plain:?}");
    assert!(!strict.out.contains("size mismatch"), "{name}: {strict:?}");
    if format == "qcow2" {
        let check = pair.run(Who::Qemu, &["check", ours]);
        assert_eq!(check.code, Some(0), "{name}: {check:?}");
    }
}

#[test]
fn converted_images_hold_the_same() {
    if !img_kit::have_qemu() {
        return;
    }
    let pair = sources();
    for (index, (options, source, format)) in [
        (&["-O", "qcow2"][..], "base", "qcow2"),
        (&["-O", "qcow2"], "over", "qcow2"),
        (&["-O", "raw"], "over", "raw"),
        (&[], "packed", "raw"),
        (
            &["-O", "qcow2", "-o", "cluster_size=4k,compat=0.10"],
            "disk",
            "qcow2",
        ),
        (&["-O", "qcow2", "-S", "0"], "disk", "qcow2"),
        (&["-O", "qcow2", "-S", "64k"], "disk", "qcow2"),
        (&["-f", "raw", "-O", "qcow2"], "odd", "qcow2"),
        (&["-O", "qcow2", "-c"], "over", "qcow2"),
        (
            &["-O", "qcow2", "-c", "-o", "cluster_size=2M"],
            "disk",
            "qcow2",
        ),
        (
            &["-O", "qcow2", "-c", "-o", "compression_type=zstd"],
            "base",
            "qcow2",
        ),
        (&["-O", "qcow2", "-m", "16", "-W", "-q"], "base", "qcow2"),
        (&["-O", "qcow2", "-c", "-m", "1"], "over", "qcow2"),
        (&["-O", "qcow2", "-C", "-r", "1G", "-U"], "over", "qcow2"),
        (&["-O", "qcow2", "-o", "size=512k"], "base", "qcow2"),
        (&["-O", "raw", "-o", "size=20M"], "base", "raw"),
        (
            &["-O", "qcow2", "-B", "base", "-F", "qcow2"],
            "over",
            "qcow2",
        ),
        (
            &["-O", "qcow2", "-o", "backing_file=base,backing_fmt=qcow2"],
            "over",
            "qcow2",
        ),
        (
            &["-O", "qcow2", "-t", "writethrough", "-T", "none"],
            "base",
            "qcow2",
        ),
        (&["-O", "raw", "--salvage", "-U"], "disk", "raw"),
        (&["-O", "qcow2", "base"], "disk", "qcow2"),
    ]
    .into_iter()
    .enumerate()
    {
        let target = format!("target{index}");
        let ended = pair.same(&[&["convert"], options, &[source, &target]].concat());
        assert_eq!(ended.code, Some(0), "{options:?} {source}: {ended:?}");
        must_agree(&pair, &target, format);
    }
}

/// What `map` says of an image of ours and of one of qemu-img's, but for where things stand.
fn same_map(pair: &Pair, name: &str) {
    let [theirs, ours] = [Who::Qemu, Who::Ours].map(|who| {
        let map = pair.run_qemu_here(who, &["map", "--output=json", name]);
        let map: serde_json::Value = serde_json::from_str(&map.out).unwrap();
        let mut runs: Vec<(String, u64)> = Vec::new();
        for run in map.as_array().unwrap() {
            // Data may stand over a hole of one file and not of the other.
            let kind = format!(
                "depth {} data {} compressed {}",
                run["depth"], run["data"], run["compressed"]
            );
            let len = run["length"].as_u64().unwrap();
            match runs.last_mut() {
                Some((last, sum)) if *last == kind => *sum += len,
                Some(_) | None => runs.push((kind, len)),
            }
        }
        runs
    });
    assert_eq!(ours, theirs, "{name}");
}

#[test]
fn without_a_sparse_size_all_of_the_target_is_allocated() {
    if !img_kit::have_qemu() {
        return;
    }
    let pair = sources();
    for options in [
        &["-O", "qcow2"][..],
        &["-O", "qcow2", "-c", "-m", "2"],
        &["-O", "qcow2", "-B", "base", "-F", "qcow2"],
        &["-O", "qcow2", "-B", "base", "-F", "qcow2", "-c"],
        &["-O", "raw"],
    ] {
        pair.same(&[&["convert", "-S", "0"], options, &["over", "new"]].concat());
        // The last cluster is not whole, and qemu-img compresses it whatever it holds.
        if !options.ends_with(&["-c"]) {
            same_map(&pair, "new");
        }
        must_agree(&pair, "new", options[1]);
    }
}

#[test]
fn behind_a_shorter_backing_file_nothing_is_written() {
    if !img_kit::have_qemu() {
        return;
    }
    let pair = sources();
    for (options, size) in [
        ("compat=0.10", "768M"),
        ("compat=1.1", "768M"),
        ("compat=0.10", "3100k"),
    ] {
        let create = [
            "create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "long", size,
        ];
        pair.given("qemu-img", &create);
        pair.given("qemu-io", &["-c", "write -z 2M 600k", "long"]);
        let target = [
            "-O", "qcow2", "-o", options, "-B", "base", "-F", "qcow2", "long", "new",
        ];
        pair.same(&[&["convert"], &target[..]].concat());
        pair.same_disk("new");
        let lens = [Who::Qemu, Who::Ours].map(|who| {
            let file = std::fs::metadata(pair.folder(who).join("new")).unwrap();
            file.blocks() * 512
        });
        assert!(
            lens[1] <= lens[0] + (64 << 10),
            "{options} {size}: {lens:?}"
        );
    }
}

#[test]
fn clusters_are_compressed_across_the_ends_of_sources() {
    if !img_kit::have_qemu() {
        return;
    }
    let pair = Pair::new();
    for (name, size, writes) in [
        (
            "a",
            "1023k",
            &[
                "write -P 1 16k 16k",
                "write -P 2 130k 130k",
                "write -P 3 1022k 1k",
            ][..],
        ),
        ("b", "1023k", &["write -P 4 0 1k"]),
        ("c", "3k", &["write -P 5 1k 1k"]),
        ("d", "200k", &["write -P 6 100k 100k"]),
    ] {
        let create = [
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            "cluster_size=1k",
            name,
            size,
        ];
        pair.given("qemu-img", &create);
        let commands: Vec<&str> = writes.iter().flat_map(|text| ["-c", text]).collect();
        pair.given("qemu-io", &[&commands[..], &[name]].concat());
    }
    for sources in [
        &["a", "b"][..],
        &["a", "b", "c", "d"],
        &["c", "c", "c"],
        &["d", "c", "a"],
    ] {
        for options in [
            &["-c", "-O", "qcow2"][..],
            &["-O", "raw"],
            &["-c", "-S", "0", "-O", "qcow2"],
        ] {
            pair.same(&[&["convert"], options, sources, &["new"]].concat());
            must_agree(&pair, "new", options[options.len() - 1]);
        }
    }
}

#[test]
fn holes_stay_holes() {
    if !img_kit::have_qemu() {
        return;
    }
    let pair = sources();
    pair.same(&["convert", "-O", "raw", "disk", "copy"]);
    let blocks = |who| {
        let file = std::fs::metadata(pair.folder(who).join("copy")).unwrap();
        (file.len(), file.blocks())
    };
    let (ours, qemu) = (blocks(Who::Ours), blocks(Who::Qemu));
    assert_eq!(ours.0, qemu.0);
    assert!(
        ours.1 <= qemu.1,
        "{} blocks, {} with qemu-img",
        ours.1,
        qemu.1
    );
}

#[test]
fn a_target_that_exists_is_overwritten_in_full() {
    if !img_kit::have_qemu() {
        return;
    }
    let pair = sources();
    for target in ["old", "old-raw"] {
        pair.write(target, &vec![0xaa; 6 << 20]);
    }
    pair.given("qemu-img", &["create", "-q", "-f", "qcow2", "full", "6M"]);
    pair.given("qemu-io", &["-f", "qcow2", "-c", "write -P 7 0 6M", "full"]);
    pair.same(&["convert", "-O", "qcow2", "over", "old"]);
    must_agree(&pair, "old", "qcow2");
    pair.same(&["convert", "-n", "-O", "raw", "over", "old-raw"]);
    must_agree(&pair, "old-raw", "raw");
    pair.same(&["convert", "-n", "-O", "qcow2", "over", "full"]);
    must_agree(&pair, "full", "qcow2");
}

#[test]
fn convert_refuses_what_qemu_img_refuses_in_its_words() {
    if !img_kit::have_qemu() {
        return;
    }
    let pair = sources();
    pair.given("qemu-img", &["create", "-q", "small", "1k"]);
    for arguments in [
        &[][..],
        &["base"],
        &["-O", "bogus", "base", "o"],
        &["-n", "base", "missing"],
        &["missing", "o"],
        &["-f", "qcow2", "-O", "raw", "base", "/nonexist/o"],
        &["-B", "base", "-O", "qcow2", "over", "o"],
        &["-B", "base", "-O", "qcow2", "over", "over", "o"],
        &[
            "-c", "-B", "base", "-F", "qcow2", "-O", "qcow2", "over", "over", "o",
        ],
        &["-B", "base", "-O", "raw", "over", "over", "o"],
        &["-B", "base", "-O", "bogus", "over", "over", "o"],
        &[
            "-B", "base", "-O", "qcow2", "-o", "foo=1", "over", "over", "o",
        ],
        &["-n", "-B", "base", "-O", "raw", "over", "over", "small"],
        &[
            "--bitmaps",
            "-B",
            "base",
            "-O",
            "qcow2",
            "over",
            "over",
            "o",
        ],
        &["--bitmaps", "-O", "qcow2", "over", "over", "o"],
        &["--bitmaps", "-O", "bogus", "over", "over", "o"],
        &["-c", "-O", "raw", "base", "o"],
        &["-n", "-o", "compat=1.1", "-O", "qcow2", "base", "over"],
        &["-S", "foo", "base", "o"],
        &["-m", "0", "base", "o"],
        &["-m", "x", "base", "o"],
        &["-m", "-1", "base", "o"],
        &["-m", "17", "base", "o"],
        &["-r", "x", "base", "o"],
        &["-S", "100", "base", "o"],
        &["-S", "17M", "base", "o"],
        &["-C", "-c", "-O", "qcow2", "base", "o"],
        &["--target-image-opts", "base", "driver=raw,file.filename=o"],
        &[
            "-n",
            "--target-image-opts",
            "-O",
            "raw",
            "base",
            "driver=raw,file.filename=small",
        ],
        &["--target-is-zero", "base", "o"],
        &["-C", "-S", "0", "base", "o"],
        &["-O", "qcow2", "-o", "foo=1", "base", "o"],
        &["base", "base"],
        &["-n", "-O", "raw", "base", "small"],
        &["-f", "bogus", "base", "o"],
        &["-t", "bogus", "base", "o"],
        &["-T", "bogus", "base", "o"],
    ] {
        let ended = pair.same(&[&["convert"], arguments].concat());
        assert_eq!(ended.code, Some(1), "{arguments:?}");
    }
    let (qemu, ours) = (Who::Qemu, Who::Ours);
    let read = |who| std::fs::read(pair.folder(who).join("base")).unwrap();
    assert_eq!(read(qemu), read(ours), "a source is never harmed");
}

/// The names and kinds of options in a list; what they are for is told in our own words.
fn listed(text: &str) -> Vec<&str> {
    let left = |line: &'_ str| line.find(" - ").unwrap_or(line.len());
    text.lines()
        .map(|line| line[..left(line)].trim_end())
        .collect()
}

#[test]
fn asked_for_help_the_options_of_the_target_are_listed() {
    if !img_kit::have_qemu() {
        return;
    }
    let pair = sources();
    for arguments in [
        &["create", "-f", "qcow2", "-o", "help"][..],
        &["create", "-f", "qcow2", "-o", "help", "new"],
        &["create", "-o", "help,,"],
        &["create", "-o", "x,,?", "new"],
        &["convert", "-O", "qcow2", "-o", "help"],
        &["convert", "-O", "qcow2", "-o", "help", "disk"],
        &["convert", "-O", "qcow2", "-o", "x=1,help", "none", "new"],
        &["convert", "-o", "help", "-B", "none", "disk", "new"],
        &["convert", "-o", "size=1", "-o", "?", "-t", "x", "none", "y"],
    ] {
        let (theirs, ours) = pair.both(arguments);
        assert_eq!(listed(&ours.out), listed(&theirs.out), "{arguments:?}");
        assert_eq!(
            (ours.err, ours.code),
            (theirs.err, Some(0)),
            "{arguments:?}"
        );
        assert!(!pair.folder(Who::Ours).join("new").exists());
    }
    for refused in [
        &["-n", "-O", "qcow2", "-o", "help", "disk", "new"][..],
        &["-O", "bogus", "-o", "help"],
        &["-S", "5", "-o", "help", "disk", "new"],
        &["-m", "99", "-C", "-c", "-o", "help", "disk", "new"],
        &["-C", "-c", "-n", "-o", "help", "disk", "new"],
        &["-o", ",help", "disk", "new"],
        &["-o", "a,,", "disk", "new"],
        &[
            "-O",
            "qcow2",
            "-o",
            "lazy_refcounts,,size=1M",
            "disk",
            "new",
        ],
    ] {
        let ended = pair.same(&[&["convert"], refused].concat());
        assert_eq!(ended.code, Some(1), "{refused:?}");
    }
}

#[test]
fn an_exactly_named_snapshot_is_one_of_the_first_source() {
    if !img_kit::have_qemu() {
        return;
    }
    let pair = sources();
    pair.given("qemu-img", &["snapshot", "-c", "one", "base"]);
    pair.given("qemu-io", &["-f", "qcow2", "-c", "write -P 9 0 3M", "base"]);
    for (wanted, code) in [
        ("snapshot.name=one", 0),
        ("snapshot.id=1", 0),
        ("snapshot.id=2", 1),
        ("one", 1),
    ] {
        let ended = pair.same(&["convert", "-l", wanted, "base", "disk", "new"]);
        assert_eq!(ended.code, Some(code), "{wanted}");
        if code == 0 {
            let read = |who| std::fs::read(pair.folder(who).join("new")).unwrap();
            let (theirs, ours) = (read(Who::Qemu), read(Who::Ours));
            assert!(ours == theirs && ours[0] == 1, "{wanted}");
        }
    }
}

#[test]
fn dd_copies_the_same_blocks() {
    if !img_kit::have_qemu() {
        return;
    }
    let pair = sources();
    for (index, (arguments, format)) in [
        (&["if=over", "bs=1M"][..], "raw"),
        (&["if=over", "-O", "qcow2", "bs=64k", "count=3"], "qcow2"),
        (&["if=over", "bs=64k", "skip=1", "count=2"], "raw"),
        (&["if=over", "bs=64k", "skip=1", "count=40"], "raw"),
        (&["if=disk", "bs=1000", "skip=5243", "count=7"], "raw"),
        (&["if=odd", "-f", "raw"], "raw"),
        (&["if=base", "count=0"], "raw"),
        (&["if=disk", "skip=9999", "bs=1M"], "raw"),
    ]
    .into_iter()
    .enumerate()
    {
        let target = format!("target{index}");
        let output = format!("of={target}");
        let ended = pair.same(&[&["dd"], arguments, &[&output]].concat());
        assert_eq!(ended.code, Some(0), "{arguments:?}: {ended:?}");
        must_agree(&pair, &target, format);
    }
    for arguments in [
        &[][..],
        &["if=base"],
        &["if=base", "of=o", "foo=1"],
        &["if=base", "of=o", "bs=0"],
        &["if=base", "of=o", "bs=x"],
        &["if=base", "of=o", "count=x"],
        &["if=missing", "of=o"],
        &["-O", "bogus", "if=base", "of=o"],
        &["-f", "bogus", "if=base", "of=o"],
    ] {
        let ended = pair.same(&[&["dd"], arguments].concat());
        assert_eq!(ended.code, Some(1), "{arguments:?}");
    }
}
