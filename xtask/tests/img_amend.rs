//! `img amend` against qemu-img's.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]
#![allow(dead_code, reason = "the kit serves several tests")]

mod img_kit;

use img_kit::{Pair, Who};

/// Both programs amend the same image; it then says the same of itself, shows the same disk, and is whole.
fn amended_alike(create: &[&str], steps: &[&[&str]]) {
    let pair = Pair::new();
    pair.write("base", &vec![7; 64 << 10]);
    let create_image = ["create", "-q", "-f", "qcow2"];
    pair.given("qemu-img", &[&create_image, create, &["a", "3M"]].concat());
    for command in [
        "write -P 1 100k 300k",
        "write -z 1M 256k",
        "discard 128k 64k",
    ] {
        pair.given("qemu-io", &["-f", "qcow2", "-c", command, "a"]);
    }
    for step in steps {
        let ended = pair.same(&[&["amend"], *step, &["a"]].concat());
        let said = |who| {
            let said = pair.run_qemu_here(who, &["info", "a"]).out;
            let is_of_space = |line: &&str| line.contains("disk size") || line.contains("length");
            let lines = said.lines().filter(|line| !is_of_space(line));
            lines.map(ToOwned::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(said(Who::Ours), said(Who::Qemu), "{step:?}: {ended:?}");
        pair.same_disk("a");
    }
}

#[test]
fn an_image_is_amended_to_the_same() {
    if !img_kit::have_qemu() {
        return;
    }
    let steps: [&[&str]; 13] = [
        &["-o", "compat=0.10"],
        &["-q", "-p", "-o", "compat=v3"],
        &["-o", "lazy_refcounts=on"],
        &["-o", "compat=1.1,lazy_refcounts=off"],
        &["-o", "refcount_bits=64"],
        &["-o", "lazy_refcounts=yes"],
        &["-o", "compat=0.10"],
        &["-o", "refcount_bits=1", "-o", "lazy_refcounts"],
        &["-o", "compat=v2,refcount_bits=16"],
        &["-o", "compat=v2,nolazy_refcounts"],
        &["-o", "size=5M,compat=v3,refcount_bits=8", "--force"],
        &["-o", "compat=0.10,refcount_bits=16,size=6M"],
        &["-t", "none", "-f", "qcow2", "-o", "size=6M"],
    ];
    for create in [
        &[][..],
        &["-b", "base", "-F", "raw"],
        &["-o", "cluster_size=4k"],
    ] {
        amended_alike(create, &steps);
    }
}

#[test]
fn progress_starts_at_nothing_and_ends_at_all() {
    if !img_kit::have_qemu() {
        return;
    }
    amended_alike(
        &[],
        &[&["-p", "-o", "lazy_refcounts=on"], &["-p", "-o", "size=4M"]],
    );
}

#[test]
fn amend_refuses_what_qemu_img_refuses() {
    if !img_kit::have_qemu() {
        return;
    }
    let wrong: [&[&str]; 27] = [
        &[],
        &["-o", ","],
        &["-o", "compat=foo"],
        &["-o", "refcount_bits=7"],
        &["-o", "refcount_bits=128"],
        &["-o", "refcount_bits=0"],
        &["-o", "refcount_bits=x"],
        &["-o", "refcount_bits=-1"],
        &["-o", "extent_size_hint=1M"],
        &["-o", "compat=0.10,refcount_bits=1"],
        &["-o", "cluster_size=64k"],
        &["-o", "preallocation=full"],
        &["-o", "extended_l2=on"],
        &["-o", "compression_type=zlib"],
        &["-o", "encryption=off"],
        &["-o", "encrypt.format=luks"],
        &["-o", "encrypt.keyslot=1"],
        &["-o", "nocow=on"],
        &["-o", "bogus=1"],
        &["-o", "size=1000"],
        &["-o", "size=-1"],
        &["-o", "backing_file=base"],
        &["-o", "backing_fmt=raw"],
        &["-o", "data_file=x"],
        &["-o", "data_file_raw=on"],
        &["-o", "lazy_refcounts=x"],
        &["-t", "bogus", "-o", "compat=v3"],
    ];
    amended_alike(&[], &wrong);
    amended_alike(
        &["-o", "compat=0.10"],
        &[&["-o", "lazy_refcounts=on"], &["-o", "refcount_bits=8"]],
    );
    let pair = Pair::new();
    pair.given("qemu-img", &["create", "-q", "-f", "raw", "raw", "1M"]);
    for arguments in [
        &["-o", "compat=v3"][..],
        &["-o", "compat=v3", "missing"],
        &["-f", "raw", "-o", "size=1M", "raw"],
        &["-f", "raw", "-o", "help"],
    ] {
        let ended = pair.same(&[&["amend"], arguments].concat());
        assert_eq!(ended.code, Some(1), "{arguments:?}");
    }
}
