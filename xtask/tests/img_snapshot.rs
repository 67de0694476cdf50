//! `img snapshot`, and snapshots in `info`, `convert` and `measure`, against qemu-img's.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]
#![allow(dead_code, reason = "the kit serves several tests")]

mod img_kit;

use img_kit::{Pair, Who};

/// An image with three snapshots, two of them of the same name, one named like another's id.
fn with_snapshots(compat: &str) -> Pair {
    let pair = Pair::new();
    let compat = format!("compat={compat}");
    pair.given(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", "-o", &compat, "a", "2M"],
    );
    for (pattern, name) in [("1", "same"), ("2", "1"), ("3", "same")] {
        let command = format!("write -P {pattern} {pattern}00k 200k");
        pair.given("qemu-io", &["-f", "qcow2", "-c", &command, "a"]);
        pair.given("qemu-img", &["snapshot", "-c", name, "a"]);
    }
    pair.given("qemu-io", &["-f", "qcow2", "-c", "write -P 9 0 1M", "a"]);
    pair
}

/// The list without what the clock says.
fn undated(list: &str) -> Vec<String> {
    list.lines()
        .map(|line| {
            let fields = line.split_whitespace();
            let is_clock = |field: &&str| field.contains("-2") || field.starts_with("20");
            fields
                .filter(|field| !is_clock(field) && field.matches(':').count() != 2)
                .collect::<Vec<_>>()
                .join(" ")
        })
        .collect()
}

#[test]
fn snapshots_are_listed_in_the_same_words() {
    if !img_kit::have_qemu() {
        return;
    }
    for compat in ["1.1", "0.10"] {
        let pair = with_snapshots(compat);
        for arguments in [
            &["snapshot", "a"][..],
            &["snapshot", "-l", "a"],
            &["snapshot", "-lU", "-f", "qcow2", "a"],
            &["snapshot", "-q", "--list", "a"],
            &["snapshot", "-l", "-f", "raw", "a"],
            &[
                "snapshot",
                "--image-opts",
                "-l",
                "driver=qcow2,file.filename=a",
            ],
            &["info", "a"],
            &["info", "--output=json", "a"],
            &["info", "--output=json", "--backing-chain", "a"],
        ] {
            let ended = pair.same_view(arguments);
            assert_eq!(ended.code, Some(0), "{arguments:?}: {ended:?}");
        }
    }
}

#[test]
fn snapshots_are_taken_applied_and_deleted_alike() {
    if !img_kit::have_qemu() {
        return;
    }
    for compat in ["1.1", "0.10"] {
        let pair = with_snapshots(compat);
        for arguments in [
            &["-c", "new"][..],
            &["-c", ""],
            &["-a", "1"],
            &["-d", "1"],
            &["-d", "same"],
            &["-a", "3"],
            &["-q", "-c", "after"],
            &["-d", "same"],
            &["-d", "same"],
            &["-a", "none"],
            &["-U", "-c", "refused"],
            &["-c", "x", "-d", "x"],
            &["-c"],
        ] {
            pair.same(&[&["snapshot"], arguments, &["a"]].concat());
            let (qemu, ours) = pair.both(&["snapshot", "a"]);
            assert_eq!(undated(&ours.out), undated(&qemu.out), "{arguments:?}");
            pair.same_disk("a");
        }
    }
}

#[test]
fn a_snapshot_is_converted_and_measured_in_the_place_of_the_disk() {
    if !img_kit::have_qemu() {
        return;
    }
    let pair = with_snapshots("1.1");
    for wanted in [
        "same",
        "1",
        "2",
        "snapshot.id=3",
        "snapshot.name=same",
        "snapshot.id=3,snapshot.name=same",
        "snapshot.id=1,snapshot.name=1",
        "snapshot.bogus=1",
        "none",
    ] {
        let ended = pair.same(&["convert", "-l", wanted, "-O", "raw", "a", "out"]);
        pair.same(&["measure", "-O", "qcow2", "-l", wanted, "a"]);
        if ended.code == Some(0) {
            let read = |who| std::fs::read(pair.folder(who).join("out")).unwrap();
            assert!(read(Who::Ours) == read(Who::Qemu), "{wanted}");
        }
    }
    for arguments in [
        &["convert", "-l", "same", "-O", "raw", "a", "a", "out"][..],
        &[
            "convert", "-f", "raw", "-l", "same", "-O", "raw", "a", "out",
        ],
    ] {
        assert_eq!(pair.same(arguments).code, Some(1));
    }
}

#[test]
fn snapshot_refuses_what_qemu_img_refuses() {
    if !img_kit::have_qemu() {
        return;
    }
    let pair = with_snapshots("1.1");
    for arguments in [
        &[][..],
        &["a", "b"],
        &["missing"],
        &["-f", "raw", "-c", "x", "a"],
        &["-f", "raw", "-a", "x", "a"],
        &["-f", "raw", "-d", "x", "a"],
        &["--image-opts", "-f", "qcow2", "a"],
    ] {
        let ended = pair.same(&[&["snapshot"], arguments].concat());
        assert_eq!(ended.code, Some(1), "{arguments:?}");
    }
}
