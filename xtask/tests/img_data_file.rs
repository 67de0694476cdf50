//! Images with an external data file: what `img` says and leaves of them against qemu-img.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]
#![allow(dead_code, reason = "the kit serves several tests")]

mod img_kit;

use std::fs;

use img_kit::{Pair, Who};

const PLAIN: &str = "data_file=a.data";
const RAW: &str = "data_file=r.data,data_file_raw=on";

fn create<'a>(options: &'a str, name: &'a str) -> [&'a str; 8] {
    ["create", "-q", "-f", "qcow2", "-o", options, name, "640k"]
}

/// The two kinds, made by qemu-img, with some data.
fn given() -> Pair {
    let pair = Pair::new();
    for (options, name) in [(PLAIN, "a.qcow2"), (RAW, "r.qcow2")] {
        pair.given("qemu-img", &create(options, name));
        let commands = [
            "-c",
            "write -P 7 64k 128k",
            "-c",
            "write -P 8 512k 64k",
            name,
        ];
        pair.given("qemu-io", &commands);
    }
    pair.given(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", "plain.qcow2", "640k"],
    );
    pair
}

/// Both programs' images must hold the same, by qemu-img's word.
fn must_hold_the_same(pair: &Pair, name: &str) {
    for arguments in [
        &["convert", "-f", "qcow2", "-O", "raw", name, "content"][..],
        &["check", "-q", name],
    ] {
        for who in [Who::Qemu, Who::Ours] {
            let ended = pair.run_qemu_here(who, arguments);
            assert_eq!(ended.code, Some(0), "{who:?} {arguments:?}: {ended:?}");
        }
    }
    let content = |who| fs::read(pair.folder(who).join("content")).unwrap();
    assert!(content(Who::Qemu) == content(Who::Ours), "{name}");
}

#[test]
fn images_with_data_files_are_made_as_qemu_img_makes_them() {
    if !img_kit::have_qemu() {
        return;
    }
    let pair = Pair::new();
    pair.given(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", "base.qcow2", "640k"],
    );
    for (code, options) in [
        (0, PLAIN),
        (0, RAW),
        (0, "data_file=file:named.data"),
        (0, "data_file=l.data,lazy_refcounts=on,extended_l2=on"),
        (1, "data_file_raw=on"),
        (1, "data_file=x.data,compat=0.10"),
        (1, "data_file="),
        (1, "data_file=missing/x.data"),
    ] {
        let arguments = ["create", "-f", "qcow2", "-o", options, "x.qcow2", "640k"];
        assert_eq!(pair.same(&arguments).code, Some(code), "{options}");
        if code == 0 {
            must_hold_the_same(&pair, "x.qcow2");
        }
    }
    for name in ["a.data", "r.data", "named.data"] {
        let len = |who| fs::metadata(pair.folder(who).join(name)).unwrap().len();
        assert_eq!(
            (len(Who::Ours), len(Who::Qemu)),
            (655_360, 655_360),
            "{name}"
        );
    }
    let itself = [
        "create",
        "-f",
        "qcow2",
        "-o",
        "data_file=./z.qcow2",
        "z.qcow2",
        "1M",
    ];
    for who in [Who::Qemu, Who::Ours] {
        fs::write(pair.folder(who).join("z.qcow2"), "something").unwrap();
    }
    let refused = pair.run(Who::Ours, &itself);
    assert_eq!(
        (refused.code, pair.run(Who::Qemu, &itself).code),
        (Some(1), Some(1))
    );
    assert!(
        refused
            .err
            .contains("Is another process using the image [z.qcow2]?")
    );
    let raw_over = ["-o", RAW, "-b", "base.qcow2", "-F", "qcow2", "y.qcow2"];
    let ended = pair.same(&[&["create", "-f", "qcow2"], &raw_over[..]].concat());
    assert_eq!(ended.code, Some(1));
}

#[test]
fn what_they_are_is_told_as_qemu_img_tells_it() {
    if !img_kit::have_qemu() {
        return;
    }
    let pair = given();
    let over = ["-b", "a.qcow2", "-F", "qcow2", "over.qcow2"];
    pair.given(
        "qemu-img",
        &[&["create", "-q", "-f", "qcow2"], &over[..]].concat(),
    );
    for name in ["a.qcow2", "r.qcow2", "over.qcow2"] {
        for command in [
            &["info"][..],
            &["info", "--output=json"],
            &["info", "--backing-chain"],
            &["check"],
            &["check", "--output=json"],
            &["snapshot", "-l"],
        ] {
            pair.same_view(&[command, &[name]].concat());
        }
    }
    // Of the raw one QEMU sees holes at times, and this program always.
    for arguments in [
        &["map", "a.qcow2"][..],
        &["map", "--output=json", "over.qcow2"],
    ] {
        let said = pair.same_view(arguments).out;
        assert!(said.contains("a.data") || said.contains("65536"), "{said}");
    }
    let by_options = "driver=qcow2,file.filename=a.qcow2";
    for data in [
        "data-file.filename=r.data",
        "data-file.driver=file,data-file.filename=r.data",
        "data-file.driver=raw,data-file.file.filename=r.data",
    ] {
        let opts = format!("{by_options},{data}");
        let said = pair.same_view(&["map", "--image-opts", &opts]).out;
        assert!(said.contains("r.data"), "{said}");
    }
    for size in ["-s", "-q"] {
        pair.same_view(&["compare", size, "a.qcow2", "over.qcow2"]);
    }
    for options in ["data_file=x", "data_file=x,data_file_raw=on"] {
        let arguments = ["measure", "-O", "qcow2", "-o", options, "--size", "1G"];
        pair.same_view(&arguments);
    }
}

#[test]
fn what_they_cannot_be_is_refused_as_qemu_img_refuses_it() {
    if !img_kit::have_qemu() {
        return;
    }
    let pair = given();
    for arguments in [
        &["snapshot", "-c", "state", "a.qcow2"][..],
        &["snapshot", "-a", "state", "a.qcow2"],
        &["snapshot", "-d", "state", "a.qcow2"],
        &["amend", "-o", "data_file_raw=on", "a.qcow2"],
        &["amend", "-o", "compat=0.10", "a.qcow2"],
        &["amend", "-o", "data_file=a.data", "plain.qcow2"],
        &["amend", "-o", "data_file_raw=on", "plain.qcow2"],
        &[
            "rebase",
            "-u",
            "-b",
            "plain.qcow2",
            "-F",
            "qcow2",
            "r.qcow2",
        ],
        &[
            "convert",
            "-c",
            "-O",
            "qcow2",
            "-o",
            "data_file=c.data",
            "a.qcow2",
            "c.qcow2",
        ],
        &[
            "convert",
            "-O",
            "qcow2",
            "-o",
            "data_file=a.data",
            "a.qcow2",
            "c.qcow2",
        ],
        &["convert", "-O", "raw", "a.qcow2", "a.data"],
        &[
            "resize",
            "--image-opts",
            "driver=qcow2,file.filename=a.qcow2,data-file.filename=a.qcow2",
            "1M",
        ],
        &[
            "map",
            "--image-opts",
            "driver=qcow2,file.filename=a.qcow2,data-file.filename=none",
        ],
        &[
            "map",
            "--image-opts",
            "driver=qcow2,file.filename=a.qcow2,data-file=node",
        ],
        &[
            "map",
            "--image-opts",
            "driver=qcow2,file.filename=plain.qcow2,data-file.filename=a.data",
        ],
    ] {
        let ended = pair.same(arguments);
        assert_eq!(ended.code, Some(1), "{arguments:?}");
    }
    for name in ["a.qcow2", "r.qcow2"] {
        must_hold_the_same(&pair, name);
    }
    // QEMU changes the name before it refuses the version.
    let both = ["amend", "-o", "compat=0.10,data_file=elsewhere", "a.qcow2"];
    let refused = pair.run(Who::Ours, &both);
    assert_eq!(refused.code, Some(1));
    assert!(
        refused
            .err
            .contains("Cannot downgrade an image with a data file")
    );
    let info = pair.run(Who::Ours, &["info", "a.qcow2"]).out;
    assert!(info.contains("data file: a.data"), "{info}");
    for name in ["a.data", "r.data"] {
        for who in [Who::Qemu, Who::Ours] {
            fs::remove_file(pair.folder(who).join(name)).unwrap();
        }
    }
    for command in ["map", "check", "info"] {
        pair.same_view(&[command, "a.qcow2"]);
    }
}

#[test]
fn they_change_as_by_qemu_img() {
    if !img_kit::have_qemu() {
        return;
    }
    let pair = given();
    let beneath = ["-b", "plain.qcow2", "-F", "qcow2", "top.qcow2"];
    let options = ["create", "-q", "-f", "qcow2", "-o", "data_file=top.data"];
    pair.given("qemu-img", &[&options[..], &beneath].concat());
    let write = [
        "-c",
        "write -P 3 0 128k",
        "-c",
        "write -z 256k 64k",
        "top.qcow2",
    ];
    pair.given("qemu-io", &write);
    for arguments in [
        &["resize", "a.qcow2", "1000k"][..],
        &["resize", "r.qcow2", "1000k"],
        &["commit", "top.qcow2"],
        &["rebase", "-b", "", "top.qcow2"],
        &[
            "amend",
            "-o",
            "refcount_bits=8,lazy_refcounts=on",
            "a.qcow2",
        ],
        &["amend", "-o", "data_file_raw=on", "r.qcow2"],
        &["amend", "-o", "data_file_raw=off", "plain.qcow2"],
        &[
            "convert",
            "-O",
            "qcow2",
            "-o",
            "data_file=c.data",
            "r.qcow2",
            "c.qcow2",
        ],
        &["convert", "-n", "-O", "qcow2", "a.qcow2", "c.qcow2"],
        &[
            "convert",
            "-O",
            "qcow2",
            "-o",
            "data_file=s.data,data_file_raw=on",
            "a.qcow2",
            "s.qcow2",
        ],
        &["dd", "-O", "qcow2", "if=a.qcow2", "of=d.qcow2"],
    ] {
        assert_eq!(pair.same(arguments).code, Some(0), "{arguments:?}");
    }
    for name in [
        "a.qcow2",
        "r.qcow2",
        "top.qcow2",
        "c.qcow2",
        "s.qcow2",
        "d.qcow2",
    ] {
        must_hold_the_same(&pair, name);
    }
    // A raw data file is the disk.
    for (image, data) in [("r.qcow2", "r.data"), ("s.qcow2", "s.data")] {
        let compare = ["compare", "-f", "qcow2", "-F", "raw", image, data];
        let ended = pair.run_qemu_here(Who::Ours, &compare);
        assert!(ended.out.contains("identical"), "{image}: {ended:?}");
    }
    for arguments in [
        &["amend", "-o", "data_file_raw=off", "r.qcow2"][..],
        &["amend", "-o", "data_file=elsewhere", "r.qcow2"],
    ] {
        assert_eq!(pair.same(arguments).code, Some(0), "{arguments:?}");
    }
    let said = pair.run_qemu_here(Who::Ours, &["info", "r.qcow2"]).out;
    assert!(
        said.contains("data file: elsewhere\n    data file raw: false"),
        "{said}"
    );
    assert_eq!(pair.same(&["map", "r.qcow2"]).code, Some(1));
}

/// QEMU follows whatever an image names; here only the caller names anything but a local file.
#[test]
fn a_protocol_in_an_image_is_not_followed() {
    if !img_kit::have_qemu() {
        return;
    }
    let pair = given();
    for name in [
        "nbd:localhost:10809",
        "json:{\"driver\":\"file\",\"filename\":\"a.data\"}",
    ] {
        let named = format!("data_file={}", name.replace(',', ",,"));
        let by_options = "driver=qcow2,file.filename=a.qcow2,data-file.filename=a.data";
        let arguments = ["amend", "-o", &named, "--image-opts", by_options];
        assert_eq!(pair.run(Who::Ours, &arguments).code, Some(0));
        let info = pair.run(Who::Ours, &["info", "a.qcow2"]);
        assert!(info.out.contains(name), "{info:?}");
        let refused = pair.run(Who::Ours, &["map", "a.qcow2"]);
        assert_eq!(refused.code, Some(1));
        assert!(
            refused.err.contains("only local files are opened"),
            "{refused:?}"
        );
        let given = pair.run(Who::Ours, &["map", "--image-opts", by_options]);
        assert_eq!(given.code, Some(0), "{given:?}");
    }
}
