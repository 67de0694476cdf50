//! Encrypted images: made, opened, described and converted as qemu-img does it, and readable by both.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]
#![allow(dead_code, reason = "the kit serves several tests")]

mod img_kit;

use img_kit::{Ended, Pair, Who};

const SECRET: &str = "secret,id=s,data=hunter2";
const WRONG: &str = "secret,id=s,data=hunter3";
const OPENED: &str = "driver=qcow2,file.filename=a,encrypt.key-secret=s";

/// What was said, without what is drawn or measured.
fn told(ended: Ended) -> Ended {
    let drawn = |line: &&str| {
        let drawn = ["uuid", "iters", "disk size", "actual-size", "file length"];
        !drawn.iter().any(|word| line.contains(word)) && !line.contains("virtual-size")
    };
    Ended {
        out: ended
            .out
            .lines()
            .filter(drawn)
            .collect::<Vec<_>>()
            .join("\n"),
        ..ended
    }
}

fn same_told(pair: &Pair, arguments: &[&str]) {
    let (qemu, ours) = pair.both(arguments);
    assert_eq!(told(ours), told(qemu), "{arguments:?}");
}

#[test]
fn what_one_program_encrypts_the_other_reads() {
    if !img_kit::have_qemu() {
        return;
    }
    for options in [
        "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=1",
        "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=1,compat=0.10",
        "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=1,cluster_size=4k,\
         encrypt.cipher-alg=aes-128,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,\
         encrypt.ivgen-hash-alg=sha256,encrypt.hash-alg=sha1",
        "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=1,\
         encrypt.cipher-alg=serpent-256,encrypt.hash-alg=sha512",
        "encrypt.format=aes,encrypt.key-secret=s",
        "encryption=on,encrypt.key-secret=s",
    ] {
        let pair = Pair::new();
        let plain: Vec<u8> = (0..300_000u32)
            .map(|at| (at % 251).to_le_bytes()[0])
            .collect();
        pair.write("plain", &plain);
        pair.given("truncate", &["-s", "1M", "plain"]);
        let object = ["--object", SECRET];
        let create = ["create", "-f", "qcow2", "-o", options, "a", "1M"];
        same_told(&pair, &[&create[..1], &object, &create[1..]].concat());
        same_told(&pair, &["info", "a"]);
        same_told(&pair, &["info", "--output=json", "a"]);
        same_told(
            &pair,
            &[&["info"], &object[..], &["--image-opts", OPENED]].concat(),
        );
        let fill = [
            "convert", "-f", "raw", "-O", "qcow2", "-o", options, "plain", "a",
        ];
        let ended = pair.same(&[&fill[..1], &object, &fill[1..]].concat());
        assert_eq!(ended.code, Some(0), "{options}: {ended:?}");
        for who in [Who::Ours, Who::Qemu] {
            let back = ["--image-opts", "-O", "raw", OPENED, "back"];
            let arguments = [&["convert"], &object[..], &back].concat();
            for ended in [
                pair.run_qemu_here(who, &arguments),
                pair.run(who, &arguments),
            ] {
                assert_eq!(ended.code, Some(0), "{options}: {ended:?}");
                let back = std::fs::read(pair.folder(who).join("back")).unwrap();
                assert!(
                    back.len() == 1 << 20 && back[..plain.len()] == plain[..],
                    "{options}"
                );
            }
            let check = [&["check"], &object[..], &["--image-opts", OPENED]].concat();
            let ended = pair.run_qemu_here(who, &check);
            assert_eq!(ended.code, Some(0), "{options}: {ended:?}");
        }
        // The same file goes to both: what an image made by the other says must agree too.
        pair.share();
        pair.same_view(&["info", "a"]);
        let opened = ["--image-opts", OPENED];
        pair.same(&[&["map"], &object[..], &opened].concat());
        pair.same_but_errors(&[&["check"], &object[..], &opened].concat());
    }
}

#[test]
fn an_overlay_is_made_without_the_secret_of_what_lies_beneath() {
    if !img_kit::have_qemu() {
        return;
    }
    let pair = Pair::new();
    let object = ["--object", SECRET];
    for (name, encryption) in [
        ("aes", "encrypt.format=aes,encrypt.key-secret=s"),
        (
            "luks",
            "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=1",
        ),
    ] {
        let create = ["create", "-q", "-f", "qcow2", "-o", encryption, name, "1M"];
        pair.given("qemu-img", &[&create[..1], &object, &create[1..]].concat());
        let over = format!("over-{name}");
        pair.same(&["create", "-f", "qcow2", "-b", name, "-F", "qcow2", &over]);
        let top = format!("top-{name}");
        pair.same(&["create", "-f", "qcow2", "-b", &over, "-F", "qcow2", &top]);
        pair.same_view(&["info", "--backing-chain", "--output=json", &top]);
        // What takes data takes the secret.
        pair.same(&["convert", "-O", "raw", &top, "plain"]);
    }
}

#[test]
fn an_encrypted_image_is_committed_into_an_encrypted_one() {
    if !img_kit::have_qemu() {
        return;
    }
    for beneath in [
        "backing.driver=qcow2,backing.file.filename=base,backing.encrypt.key-secret=s",
        "backing.encrypt.key-secret=s",
        "backing.driver=raw",
    ] {
        let pair = Pair::new();
        let object = ["--object", SECRET];
        let encryption = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=1";
        for (name, over) in [("base", &[][..]), ("over", &["-b", "base", "-F", "qcow2"])] {
            let create = ["create", "-q", "-f", "qcow2", "-o", encryption];
            let words = [&create[..1], &object, &create[1..], over, &[name, "1M"]].concat();
            pair.given("qemu-img", &words);
        }
        let top = format!("driver=qcow2,file.filename=over,encrypt.key-secret=s,{beneath}");
        let write = [
            "--object",
            SECRET,
            "--image-opts",
            "-c",
            "write -P 7 100k 200k",
            &top,
        ];
        pair.given("qemu-io", &write);
        let commit = ["commit", "--object", SECRET, "--image-opts", &top];
        pair.same(&commit);
        // As raw bytes, what was encrypted is overwritten.
        if beneath != "backing.driver=raw" {
            let base = "driver=qcow2,file.filename=base,encrypt.key-secret=s";
            let options = ["--object", SECRET, "--image-opts", "-O", "raw"];
            pair.same(&[&["convert"], &options[..], &[base, "plain"]].concat());
            let plain = |who| std::fs::read(pair.folder(who).join("plain")).unwrap();
            assert!(plain(Who::Ours) == plain(Who::Qemu), "{beneath}");
        }
    }
}

#[test]
fn without_the_right_secret_nothing_is_opened() {
    if !img_kit::have_qemu() {
        return;
    }
    let pair = Pair::new();
    let options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=1";
    pair.given(
        "qemu-img",
        &[
            "create", "-q", "-f", "qcow2", "--object", SECRET, "-o", options, "a", "1M",
        ],
    );
    pair.given("qemu-img", &["create", "-q", "-f", "qcow2", "p", "1M"]);
    for arguments in [
        &["check", "a"][..],
        &["map", "a"],
        &["resize", "a", "2M"],
        &["amend", "-o", "compat=v3", "a"],
        &["snapshot", "-l", "a"],
        &["compare", "a", "a"],
        &["bench", "-c", "1", "a"],
        &["convert", "-O", "raw", "a", "out"],
        &["map", "--object", WRONG, "--image-opts", OPENED],
        &["map", "--image-opts", OPENED],
        &[
            "map",
            "--object",
            SECRET,
            "--image-opts",
            "driver=qcow2,file.filename=a,encrypt.key-secret=s,encrypt.format=aes",
        ],
        &[
            "map",
            "--object",
            SECRET,
            "--image-opts",
            "driver=qcow2,file.filename=p,encrypt.key-secret=s,encrypt.format=luks",
        ],
    ] {
        let ended = pair.same(arguments);
        assert_ne!(ended.code, Some(0), "{arguments:?}");
    }
}

#[test]
fn wrong_options_of_encryption_are_refused_alike() {
    if !img_kit::have_qemu() {
        return;
    }
    let pair = Pair::new();
    pair.write("plain", &[1; 4096]);
    let object = ["--object", SECRET];
    for options in [
        "encrypt.format=luks",
        "encrypt.format=luks,encrypt.key-secret=t",
        "encrypt.format=bogus,encrypt.key-secret=s",
        "encrypt.key-secret=s",
        "encrypt.format=luks,encrypt.key-secret=s,encrypt.cipher-alg=rot13",
        "encrypt.format=luks,encrypt.key-secret=s,encrypt.cipher-mode=bogus",
        "encrypt.format=luks,encrypt.key-secret=s,encrypt.ivgen-alg=bogus",
        "encrypt.format=luks,encrypt.key-secret=s,encrypt.hash-alg=bogus",
        "encryption=on,encrypt.format=luks,encrypt.key-secret=s",
        "encryption=on",
        "encrypt.format=aes,encrypt.key-secret=s,encrypt.cipher-alg=aes-128",
        "encrypt.format=luks,encrypt.key-secret=s,encrypt.bogus=1",
        "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=99999999999999999999",
    ] {
        let create = ["-f", "qcow2", "-o", options, "a", "1M"];
        let ended = pair.same(&[&["create"], &object[..], &create].concat());
        assert_eq!(ended.code, Some(1), "{options}");
    }
    // How many iterations that would be depends on the machine.
    let without_digits = |ended: Ended| ended.err.replace(|one: char| one.is_ascii_digit(), "");
    for time in ["-1", "1000000000"] {
        let options = format!("encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time={time}");
        let create = ["-q", "-f", "qcow2", "-o", &options, "a", "1M"];
        let (qemu, ours) = pair.both(&[&["create"], &object[..], &create].concat());
        assert_eq!(
            (qemu.code, ours.code),
            (Some(1), Some(1)),
            "{time}: {ours:?}"
        );
        assert_eq!(without_digits(ours), without_digits(qemu), "{time}");
    }
    let options = "encrypt.format=luks,encrypt.key-secret=s";
    let convert = ["-c", "-O", "qcow2", "-o", options, "plain", "a"];
    pair.same(&[&["convert", "-f", "raw"], &object[..], &convert].concat());
    for options in [
        options,
        "encrypt.format=aes,encrypt.key-secret=s",
        "encrypt.format=luks",
    ] {
        let measure = ["-O", "qcow2", "--size", "1G", "-o", options];
        pair.same(&[&["measure"], &object[..], &measure].concat());
    }
}
