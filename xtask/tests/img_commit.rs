//! `img commit` and `img rebase -u` against qemu-img's.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]
#![allow(dead_code, reason = "the kit serves several tests")]

mod img_kit;

use img_kit::{Pair, Who};

#[test]
fn what_is_committed_is_in_the_backing_file_and_no_longer_above() {
    if !img_kit::have_qemu() {
        return;
    }
    for (base_format, version) in [("qcow2", "1.1"), ("raw", "1.1"), ("qcow2", "0.10")] {
        for options in [&[][..], &["-d"], &["-q"]] {
            let pair = Pair::new();
            let compat = format!("compat={version}");
            pair.given(
                "qemu-img",
                &["create", "-q", "-f", base_format, "base", "2M"],
            );
            pair.given(
                "qemu-io",
                &["-f", base_format, "-c", "write -P 1 0 1M", "base"],
            );
            let over = ["-b", "base", "-F", base_format, "-o", &compat, "over", "3M"];
            pair.given(
                "qemu-img",
                &[&["create", "-q", "-f", "qcow2"], &over[..]].concat(),
            );
            for command in [
                "write -P 2 100k 70k",
                "write -z 512k 64k",
                "write -P 3 2500k 64k",
            ] {
                pair.given("qemu-io", &["-f", "qcow2", "-c", command, "over"]);
            }
            let ended = pair.same(&[&["commit"], options, &["over"]].concat());
            assert_eq!(ended.code, Some(0), "{ended:?}");
            for (name, format) in [("base", base_format), ("over", "qcow2")] {
                let qemu = pair.folder(Who::Qemu).join(name);
                let arguments = ["-f", format, "-F", format, name, qemu.to_str().unwrap()];
                let compared =
                    pair.run_qemu_here(Who::Ours, &[&["compare"], &arguments[..]].concat());
                assert_eq!(compared.code, Some(0), "{name}: {compared:?}");
                assert!(!compared.out.contains("mismatch"), "{name}: {compared:?}");
            }
            let check = pair.run_qemu_here(Who::Ours, &["check", "over"]);
            assert_eq!(check.code, Some(0), "{check:?}");
        }
    }
}

#[test]
fn what_all_images_above_a_base_hold_goes_into_it() {
    if !img_kit::have_qemu() {
        return;
    }
    for (middle, options, code) in [
        ("2M", &["-b", "low"][..], 0),
        ("2M", &["-d", "-b", "./low"], 0),
        ("2M", &["-b", "middle"], 0),
        ("2M", &["-q", "-r", "1G", "-b", "low"], 0),
        // The image between them is the shortest, and hides what the lowest has behind its end.
        ("1M", &["-b", "low"], 0),
        ("2M", &["-b", "top"], 1),
        ("2M", &["-b", "missing"], 1),
        ("2M", &["-r", "much", "-b", "low"], 1),
    ] {
        let pair = Pair::new();
        pair.given("qemu-img", &["create", "-q", "-f", "qcow2", "low", "2M"]);
        for (name, beneath, size) in [("middle", "low", middle), ("top", "middle", "3M")] {
            let over = ["-b", beneath, "-F", "qcow2", name, size];
            pair.given(
                "qemu-img",
                &[&["create", "-q", "-f", "qcow2"], &over[..]].concat(),
            );
        }
        for (name, command) in [
            ("low", "write -P 1 0 2M"),
            ("middle", "write -P 2 64k 128k"),
            ("middle", "write -z 512k 64k"),
            ("top", "write -P 3 100k 70k"),
            ("top", "write -P 4 2500k 64k"),
        ] {
            pair.given("qemu-io", &["-f", "qcow2", "-c", command, name]);
        }
        pair.given("qemu-img", &["convert", "-O", "raw", "top", "before"]);
        let ended = pair.same(&[&["commit"], options, &["top"]].concat());
        assert_eq!(ended.code, Some(code), "{options:?}: {ended:?}");
        for name in ["low", "middle", "top"] {
            pair.same_disk(name);
        }
        let before = ["compare", "-F", "raw", "top", "before"];
        let compared = pair.run_qemu_here(Who::Ours, &before);
        assert_eq!(compared.code, Some(0), "{options:?}: {compared:?}");
    }
}

#[test]
fn a_base_is_named_as_seen_from_the_image_above_it() {
    if !img_kit::have_qemu() {
        return;
    }
    for base in ["middle", "sub/middle", "sub/../sub/middle"] {
        let pair = Pair::new();
        for who in [Who::Qemu, Who::Ours] {
            std::fs::create_dir(pair.folder(who).join("sub")).unwrap();
        }
        for (name, beneath) in [
            ("low", None),
            ("middle", Some("low")),
            ("top", Some("middle")),
        ] {
            let over = beneath.map_or(vec![], |name| vec!["-b", name, "-F", "qcow2"]);
            let name = format!("sub/{name}");
            let words = ["create", "-q", "-f", "qcow2", &name, "1M"];
            pair.given("qemu-img", &[&words[..], &over].concat());
        }
        pair.same(&["commit", "-b", base, "sub/top"]);
    }
}

#[test]
fn commit_refuses_what_qemu_img_refuses() {
    if !img_kit::have_qemu() {
        return;
    }
    let pair = Pair::new();
    pair.given("qemu-img", &["create", "-q", "-f", "qcow2", "alone", "2M"]);
    for arguments in [&[][..], &["alone"], &["missing"], &["a", "b"]] {
        let ended = pair.same(&[&["commit"], arguments].concat());
        assert_eq!(ended.code, Some(1), "{arguments:?}");
    }
}

#[test]
fn an_unsafe_rebase_changes_the_name_and_nothing_else() {
    if !img_kit::have_qemu() {
        return;
    }
    let pair = Pair::new();
    pair.given("qemu-img", &["create", "-q", "-f", "qcow2", "base", "2M"]);
    let over = ["-b", "base", "-F", "qcow2", "over"];
    pair.given(
        "qemu-img",
        &[&["create", "-q", "-f", "qcow2"], &over[..]].concat(),
    );
    pair.given(
        "qemu-io",
        &["-f", "qcow2", "-c", "write -P 2 100k 70k", "over"],
    );
    for (arguments, code) in [
        (&["-u", "-b", "missing", "-F", "raw", "over"][..], 0),
        (&["-u", "-b", "base", "over"], 1),
        (&["-u", "-b", "base", "-F", "qcow2", "over"], 0),
        (&["-u", "-b", "", "over"], 0),
        (&["over"], 1),
        (&[], 1),
        (&["-u", "-b", "base", "-F", "qcow2", "missing"], 1),
    ] {
        let ended = pair.same(&[&["rebase"], arguments].concat());
        assert_eq!(ended.code, Some(code), "{arguments:?}: {ended:?}");
        let info = |who| pair.run_qemu_here(who, &["info", "over"]).out;
        let backing = |text: String| {
            text.lines()
                .filter(|line| line.contains("backing"))
                .map(ToOwned::to_owned)
                .collect::<Vec<_>>()
        };
        assert_eq!(backing(info(Who::Ours)), backing(info(Who::Qemu)));
    }
    let check = pair.run_qemu_here(Who::Ours, &["check", "over"]);
    assert_eq!(check.code, Some(0), "{check:?}");
}

#[test]
fn a_safe_rebase_keeps_the_disk() {
    if !img_kit::have_qemu() {
        return;
    }
    for options in [
        &["-b", "other", "-F", "qcow2"][..],
        &["-b", "raw", "-F", "raw"],
        &["-b", "base", "-F", "qcow2"],
        &["-b", "short", "-F", "qcow2", "-q"],
        &["-b", ""],
        &["-c", "-b", "other", "-F", "qcow2"],
        &["-c", "-b", ""],
        &[
            "-T",
            "none",
            "-t",
            "writethrough",
            "-b",
            "other",
            "-F",
            "qcow2",
        ],
        &["-b", "missing", "-F", "qcow2"],
        &["-b", "other", "-F", "bogus"],
        &["-b", "over", "-F", "qcow2"],
        &["-T", "bogus", "-b", ""],
        &["-t", "bogus", "-b", ""],
    ] {
        let pair = Pair::new();
        for (name, size, command) in [
            ("base", "4M", "write -P 1 100k 1M"),
            ("other", "4M", "write -P 2 512k 1M"),
            ("short", "1M", "write -P 1 100k 100k"),
        ] {
            pair.given("qemu-img", &["create", "-q", "-f", "qcow2", name, size]);
            pair.given("qemu-io", &["-f", "qcow2", "-c", command, name]);
        }
        pair.given("qemu-img", &["convert", "-O", "raw", "other", "raw"]);
        let over = ["-b", "base", "-F", "qcow2", "over", "5M"];
        pair.given(
            "qemu-img",
            &[&["create", "-q", "-f", "qcow2"], &over[..]].concat(),
        );
        for command in ["write -P 3 2M 70k", "write -z 256k 64k", "discard 128k 64k"] {
            pair.given("qemu-io", &["-f", "qcow2", "-c", command, "over"]);
        }
        pair.given("qemu-img", &["convert", "-O", "raw", "over", "before"]);
        let ended = pair.same(&[&["rebase"], options, &["over"]].concat());
        for who in [Who::Ours, Who::Qemu] {
            let compare = ["compare", "-F", "raw", "over", "before"];
            let compared = pair.run_qemu_here(who, &compare);
            assert_eq!(
                compared.code,
                Some(0),
                "{options:?}: {ended:?}: {compared:?}"
            );
            let check = pair.run_qemu_here(who, &["check", "over"]);
            assert_eq!(check.code, Some(0), "{options:?}: {check:?}");
        }
        let info = |who| pair.run_qemu_here(who, &["info", "over"]).out;
        let backing = |text: String| text.lines().filter(|line| line.contains("backing")).count();
        assert_eq!(
            backing(info(Who::Ours)),
            backing(info(Who::Qemu)),
            "{options:?}"
        );
    }
}
