//! `img info` and `img create` against qemu-img's.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]
#![allow(dead_code, reason = "the kit serves several tests")]

mod img_kit;

use img_kit::{Pair, Who};

#[test]
fn info_says_what_qemu_img_says() {
    if !img_kit::have_qemu() {
        return;
    }
    let pair = Pair::new();
    let create = |arguments: &[&str]| {
        pair.given("qemu-img", &[&["create", "-q"], arguments].concat());
    };
    create(&["-f", "qcow2", "plain", "1M"]);
    create(&[
        "-f",
        "qcow2",
        "-o",
        "compat=0.10,cluster_size=4k",
        "old",
        "3M",
    ]);
    create(&[
        "-f",
        "qcow2",
        "-o",
        "lazy_refcounts=on,refcount_bits=1",
        "lazy",
        "5G",
    ]);
    create(&["-f", "qcow2", "-b", "plain", "-F", "qcow2", "over", "2M"]);
    create(&["-f", "raw", "bytes", "1234567"]);
    create(&["-f", "qcow2", "-b", "bytes", "-F", "raw", "over-raw"]);
    create(&[
        "-u", "-f", "qcow2", "-b", "missing", "-F", "raw", "orphan", "1M",
    ]);
    pair.write("short", b"hi");
    pair.write("empty", b"");
    std::fs::create_dir(pair.folder(Who::Qemu).join("sub")).unwrap();
    create(&["-f", "qcow2", "-b", "../plain", "-F", "qcow2", "sub/over"]);
    pair.write("dirty", &{
        let mut bytes = std::fs::read(pair.folder(Who::Qemu).join("lazy")).unwrap();
        bytes[79] |= 1;
        bytes
    });
    pair.write("corrupt", &{
        let mut bytes = std::fs::read(pair.folder(Who::Qemu).join("plain")).unwrap();
        bytes[79] |= 2;
        bytes
    });
    for name in [
        "plain",
        "old",
        "lazy",
        "over",
        "bytes",
        "over-raw",
        "orphan",
        "short",
        "empty",
        "sub/over",
        "dirty",
        "corrupt",
        "file:plain",
        "./plain",
        "blkdebug::plain",
        "blkdebug::bytes",
        "json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":\"plain\"}}",
    ] {
        assert_eq!(pair.same_view(&["info", name]).code, Some(0), "{name}");
        pair.same_view(&["info", "--output=json", name]);
        pair.same_view(&["info", "--backing-chain", name]);
        pair.same_view(&["info", "--backing-chain", "--output", "json", name]);
        pair.same_view(&["info", "-U", name]);
    }
    pair.same_view(&["info", "-f", "raw", "plain"]);
    pair.same_view(&["info", "--image-opts", "driver=qcow2,file.filename=plain"]);
    pair.same_view(&[
        "info",
        "--image-opts",
        "driver=raw,file.driver=file,file.filename=plain",
    ]);
}

#[test]
fn info_refuses_what_qemu_img_refuses_in_its_words() {
    if !img_kit::have_qemu() {
        return;
    }
    let pair = Pair::new();
    pair.given("qemu-img", &["create", "-q", "-f", "qcow2", "plain", "1M"]);
    pair.write("bytes", &[7; 5000]);
    let plain = std::fs::read(pair.folder(Who::Qemu).join("plain")).unwrap();
    pair.write("version4", &{
        let mut bytes = plain.clone();
        bytes[7] = 4;
        bytes
    });
    for arguments in [
        &[][..],
        &["missing"],
        &["a", "b"],
        &["--output=xml", "plain"],
        &["-f", "qcow2", "bytes"],
        &["-f", "bogus", "bytes"],
        &["."],
        &["--image-opts", "-f", "raw", "plain"],
        &["--image-opts", "plain"],
        &["json:{\"driver\":\"bogus\"}"],
        &["foo:bar"],
        &["--bogus", "plain"],
        &["--image-opts", "driver=qcow2,file.filename=plain,bogus=1"],
        &["--image-opts", "driver=qcow2"],
        &["-T", "x", "plain"],
        &["-f"],
        &["version4"],
    ] {
        let ended = pair.same(&[&["info"], arguments].concat());
        assert_eq!(ended.code, Some(1), "{arguments:?}");
    }
    for arguments in [&[][..], &["bogus"]] {
        pair.same(arguments);
    }
}

#[test]
#[allow(clippy::too_many_lines, reason = "a list")]
fn create_says_what_qemu_img_says_and_the_images_are_alike() {
    if !img_kit::have_qemu() {
        return;
    }
    let pair = Pair::new();
    pair.given("qemu-img", &["create", "-q", "-f", "qcow2", "base", "1M"]);
    for (index, arguments) in [
        &["-f", "qcow2", "NEW", "1M"][..],
        &["NEW", "3M"],
        &["-f", "raw", "NEW", "1025"],
        &["-f", "raw", "-o", "size=4M", "NEW"],
        &["-f", "qcow2", "-b", "base", "-F", "qcow2", "NEW"],
        &["-f", "qcow2", "-b", "base", "-F", "qcow2", "NEW", "2M"],
        &[
            "-f",
            "qcow2",
            "-o",
            "backing_file=base,backing_fmt=raw",
            "NEW",
        ],
        &[
            "-u", "-f", "qcow2", "-b", "missing", "-F", "raw", "NEW", "1M",
        ],
        &["-q", "-f", "qcow2", "NEW", "1M"],
        &["-f", "qcow2", "NEW", "0"],
        &["-f", "qcow2", "NEW", "513"],
        &["-f", "qcow2", "NEW", "1.5k"],
        &[
            "-f",
            "qcow2",
            "-o",
            "compat=1.1",
            "-o",
            "cluster_size=4k",
            "NEW",
            "1M",
        ],
        &[
            "-f",
            "qcow2",
            "-o",
            "compat=0.10,cluster_size=2M",
            "NEW",
            "1T",
        ],
        &[
            "-f",
            "qcow2",
            "-o",
            "lazy_refcounts=on,refcount_bits=1",
            "NEW",
            "1M",
        ],
        &["-f", "qcow2", "-o", "lazy_refcounts", "NEW", "1M"],
        &["-f", "qcow2", "-o", "nolazy_refcounts", "NEW", "1M"],
        &[
            "-f",
            "qcow2",
            "-o",
            "cluster_size=512,refcount_bits=64",
            "NEW",
            "128M",
        ],
        &["NEW,with comma", "1M"],
        &["-f", "qcow2", "NEW", " 1M"],
        &["-f", "raw", "NEW", "+1M"],
        &[
            "-f",
            "qcow2",
            "-o",
            "extended_l2=true,lazy_refcounts=yes",
            "NEW",
            "1M",
        ],
        &[
            "-f",
            "qcow2",
            "-o",
            "extended_l2=n,lazy_refcounts=y",
            "NEW",
            "1M",
        ],
        &[
            "-f",
            "qcow2",
            "-o",
            "nocow=yes,extent_size_hint=64k",
            "NEW",
            "1M",
        ],
        &[
            "-f",
            "raw",
            "-o",
            "extent_size_hint=1M,preallocation=off",
            "NEW",
            "1M",
        ],
        &["-f", "qcow2", "file:NEW", "1M"],
        &["-f", "qcow2", "file:NEW:colon", "1M"],
    ]
    .iter()
    .enumerate()
    {
        let name = format!("new{index}");
        let arguments: Vec<String> = arguments
            .iter()
            .map(|argument| argument.replace("NEW", &name))
            .collect();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let ended = pair.same(&[&["create"], arguments.as_slice()].concat());
        assert_eq!(ended.code, Some(0), "{arguments:?}: {ended:?}");
        let file = arguments
            .iter()
            .find(|argument| argument.trim_start_matches("file:").starts_with("new"));
        let (qemu, ours) = pair.both(&["info", "--output=json", file.unwrap()]);
        assert_eq!(without_file_sizes(&ours.out), without_file_sizes(&qemu.out));
        let orphan = arguments.contains(&"missing");
        let check = run_qemu(&pair, &["check", file.unwrap()]);
        assert!(orphan || matches!(check, Some(0 | 63)), "{arguments:?}");
    }
}

fn run_qemu(pair: &Pair, arguments: &[&str]) -> Option<i32> {
    std::process::Command::new("qemu-img")
        .args(arguments)
        .current_dir(pair.folder(Who::Ours))
        .output()
        .unwrap()
        .status
        .code()
}

fn without_file_sizes(json: &str) -> Vec<&str> {
    // A new image of ours ends at a cluster; qemu-img's ends where its L1 table does.
    let mut depth = 0;
    json.lines()
        .filter(|line| {
            depth += usize::from(line.contains("\"children\""));
            let of_file = depth > 0 && line.contains("                \"virtual-size");
            !of_file && !line.contains("actual-size")
        })
        .collect()
}

#[test]
fn create_refuses_what_qemu_img_refuses_in_its_words() {
    if !img_kit::have_qemu() {
        return;
    }
    let pair = Pair::new();
    pair.given("qemu-img", &["create", "-q", "-f", "qcow2", "base", "1M"]);
    std::fs::create_dir(pair.folder(Who::Qemu).join("folder")).unwrap();
    pair.share();
    for arguments in [
        &[][..],
        &["-f", "qcow2", "-b", "base", "x"],
        &["-u", "-f", "qcow2", "-b", "base", "x", "1M"],
        &["-f", "qcow2", "x"],
        &["-f", "foo", "x", "1M"],
        &["-f", "qcow2", "x", "1Q"],
        &["-f", "qcow2", "x", "--", "-1"],
        &["-f", "qcow2", "x", "1M", "extra"],
        &["-f", "qcow2", "-o", "foo=bar", "x", "1M"],
        &["-f", "qcow2", "-o", "cluster_size=3", "x", "1M"],
        &["-f", "qcow2", "-o", "cluster_size=abc", "x", "1M"],
        &["-f", "qcow2", "-o", "cluster_size=-1", "x", "1M"],
        &["-f", "qcow2", "-b", "nonex", "-F", "raw", "x"],
        &["-f", "qcow2", "-b", "nonex", "-F", "raw", "x", "1M"],
        &["-f", "qcow2", "-b", "nonex", "-F", "raw", "-u", "x"],
        &["-f", "qcow2", "-F", "raw", "x", "1M"],
        &["-f", "qcow2", "/nonexist/y", "1M"],
        &["-f", "raw", "-o", "size=4M", "z", "1M"],
        &["-f", "raw", "-b", "base", "z", "1M"],
        &["-f", "qcow2", "-b", "base", "-F", "qcow2", "base"],
        &["-f", "qcow2", "-o", "lazy_refcounts=maybe", "x", "1M"],
        &["-f", "qcow2", "-o", "compat=2", "x", "1M"],
        &["-f", "qcow2", "-o", "refcount_bits=3", "x", "1M"],
        &["-f", "qcow2", "-o", "refcount_bits=128", "x", "1M"],
        &["-f", "qcow2", "-o", "refcount_bits=abc", "x", "1M"],
        &["-f", "qcow2", "-o", "cluster_size=512", "x", "1P"],
        &[
            "-f",
            "qcow2",
            "-o",
            "compat=v2,lazy_refcounts=on",
            "x",
            "1M",
        ],
        &["-f", "qcow2", "-o", "compat=v2,refcount_bits=8", "x", "1M"],
        &["-f", "raw", "x", "8E"],
        &["-f", "raw", "x", "9000000000000000000000"],
        &["--bogus", "x", "1M"],
        &["-f"],
        &["-f", "qcow2", "-b", "base", "-F", "bogus", "x", "1M"],
        &["-u", "-f", "qcow2", "-b", "base", "-F", "bogus", "x", "1M"],
        &["-f", "qcow2", "-b", "", "-F", "raw", "x", "1M"],
        &["-f", "qcow2", "folder", "1M"],
        &["-f", "qcow2", "foo:b", "1M"],
        &["-f", "qcow2", "json:{}", "1M"],
        &["-f", "qcow2", "x", "16E"],
        &["-o", "size=-1", "x"],
        &["-f", "qcow2", "-o", "size=-1k", "x"],
        &["-f", "qcow2", "--", "x", "-1k"],
        &["-f", "qcow2", "--", "x", "-1024"],
        &["-f", "qcow2", "x", "1M "],
        &["-f", "qcow2", "-o", "refcount_bits=-1", "x", "1M"],
        &[
            "-f",
            "qcow2",
            "-o",
            "refcount_bits=99999999999999999999",
            "x",
            "1M",
        ],
        &["-f", "qcow2", "-o", "cluster_size=-1", "x", "1M"],
        &["-f", "qcow2", "-o", "extended_l2=ON", "x", "1M"],
        &["-f", "qcow2", "-o", "extent_size_hint=-1", "x", "1M"],
        &["-f", "bogus", "-o", "help"],
        &["-f", "qcow2", "-o", "", "x", "1M"],
        &["-f", "qcow2", "-o", ",", "x", "1M"],
    ] {
        let ended = pair.same(&[&["create"], arguments].concat());
        assert_eq!(ended.code, Some(1), "{arguments:?}");
    }
}
