//! `img bitmap`, and bitmaps in `info`, `measure` and `convert`, against qemu-img's.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]
#![allow(dead_code, reason = "the kit serves several tests")]

mod img_kit;

use std::fs;

use img_kit::{Ended, Pair, Who, have_qemu};

/// An image with two bitmaps, of which one is dirty in two places.
fn with_bitmaps() -> Pair {
    let pair = Pair::new();
    pair.given("qemu-img", &["create", "-q", "-f", "qcow2", "disk", "1M"]);
    pair.given("qemu-img", &["bitmap", "--add", "disk", "first"]);
    let second = ["--add", "-g", "512", "--disable", "disk", "second"];
    pair.given("qemu-img", &[&["bitmap"], &second[..]].concat());
    for command in ["write 0 4k", "write 300k 1k"] {
        pair.given("qemu-io", &["-f", "qcow2", "-c", command, "disk"]);
    }
    pair
}

/// Makes a bitmap inconsistent, as a program does that is killed: the flag in its entry of the directory.
fn break_bitmap(pair: &Pair, image: &str, name: &str) {
    let path = pair.folder(Who::Qemu).join(image);
    let mut bytes = fs::read(&path).unwrap();
    let flags = entry_of(&bytes, name) + 15;
    bytes[flags] |= 1;
    fs::write(path, bytes).unwrap();
    pair.share();
}

/// What qemu-img's `info` says of the bitmaps of both files.
fn same_bitmaps(pair: &Pair, image: &str) {
    let of = |who| {
        let said = pair.run_qemu_here(who, &["info", "--output=json", image]);
        assert_eq!(said.code, Some(0), "{said:?}");
        let info: serde_json::Value = serde_json::from_str(&said.out).unwrap();
        info["format-specific"]["data"]["bitmaps"].clone()
    };
    assert_eq!(of(Who::Ours), of(Who::Qemu), "{image}");
}

/// Whether a bitmap says the same in both files: what is dirty in it becomes visible when it is merged into
/// a clean one by either program, so the stored bits are compared.
fn same_bits(pair: &Pair, image: &str, name: &str) {
    let bits = |who| {
        let path = pair.folder(who).join(image);
        stored_bits(&fs::read(path).unwrap(), name)
    };
    assert_eq!(bits(Who::Ours), bits(Who::Qemu), "{image}: {name}");
}

/// The number that so many bytes are, the highest first.
fn number(image: &[u8], at: usize, len: usize) -> usize {
    image[at..at + len]
        .iter()
        .fold(0, |number, byte| number << 8 | usize::from(*byte))
}

/// Where the entry of a bitmap starts. Specification: "Header extensions", "Bitmaps extension", "Bitmap
/// directory".
fn entry_of(image: &[u8], name: &str) -> usize {
    const BITMAPS: usize = 0x2385_2875;
    let mut extension = number(image, 100, 4);
    while number(image, extension, 4) != BITMAPS {
        extension += 8 + number(image, extension + 4, 4).next_multiple_of(8);
    }
    let (mut entry, mut left) = (
        number(image, extension + 24, 8),
        number(image, extension + 8, 4),
    );
    loop {
        assert!(left > 0, "no bitmap is named {name}");
        let len = number(image, entry + 18, 2);
        let start = entry + 24 + number(image, entry + 20, 4);
        if &image[start..start + len] == name.as_bytes() {
            return entry;
        }
        entry += (start + len - entry).next_multiple_of(8);
        left -= 1;
    }
}

/// The starts of the clusters of a bitmap. Specification: "Bitmap table".
fn stored_bits(image: &[u8], name: &str) -> Vec<Vec<u8>> {
    let entry = entry_of(image, name);
    let (table, entries) = (number(image, entry, 8), number(image, entry + 8, 4));
    (0..entries)
        .map(|index| {
            let entry = number(image, table + index * 8, 8);
            match entry & !0x1ff {
                0 => vec![if entry & 1 == 1 { 0xff } else { 0 }; 512],
                offset => image[offset..offset + 512].to_vec(),
            }
        })
        .collect()
}

fn clean(pair: &Pair, image: &str) {
    for who in [Who::Qemu, Who::Ours] {
        let checked = pair.run_qemu_here(who, &["check", image]);
        assert_eq!(checked.code, Some(0), "{checked:?}");
    }
}

#[test]
fn bitmaps_are_made_changed_and_removed_in_qemu_imgs_words() {
    if !have_qemu() {
        return;
    }
    let pair = with_bitmaps();
    for (arguments, code) in [
        (&["--add", "disk", "third"][..], 0),
        (&["--add", "disk", "third"], 1),
        (&["--add", "-g", "100", "disk", "x"], 1),
        (&["--add", "-g", "256", "disk", "x"], 1),
        (&["--add", "-g", "4G", "disk", "x"], 1),
        (&["--add", "-g", "xx", "disk", "x"], 1),
        (&["--add", "-g", "0", "disk", "fourth"], 0),
        (&["--add", "-g", "2G", "disk", "fifth"], 0),
        (&["--add", "disk", ""], 1),
        (&["--clear", "disk", "missing"], 1),
        (&["--remove", "disk", "missing"], 1),
        (&["--merge", "missing", "disk", "first"], 1),
        (&["--merge", "first", "disk", "missing"], 1),
        (&["--merge", "first", "disk", "second"], 0),
        (&["--merge", "first", "disk", "first"], 0),
        (&["--disable", "--add", "disk", "late"], 1),
        (&["--add", "--disable", "disk", "sixth"], 0),
        (&["--add", "--remove", "disk", "gone"], 0),
        (&["--remove", "--remove", "disk", "sixth"], 1),
        (
            &[
                "--clear", "--enable", "--merge", "first", "--merge", "third", "disk", "fourth",
            ],
            0,
        ),
        (&["--disable", "--clear", "disk", "first"], 0),
    ] {
        let ended = pair.same(&[&["bitmap"], arguments].concat());
        assert_eq!(ended.code, Some(code), "{arguments:?}: {ended:?}");
        same_bitmaps(&pair, "disk");
    }
    for name in ["first", "second", "third", "fourth", "fifth"] {
        same_bits(&pair, "disk", name);
    }
    clean(&pair, "disk");
}

#[test]
fn wrong_calls_are_refused_in_qemu_imgs_words() {
    if !have_qemu() {
        return;
    }
    let pair = with_bitmaps();
    for arguments in [
        &[][..],
        &["disk", "first"],
        &["--add"],
        &["--add", "disk"],
        &["--add", "disk", "a", "b"],
        &["--clear", "-g", "1k"],
        &["--clear", "-F", "raw", "disk"],
        &["--clear", "-b", "other", "disk"],
        &[
            "--clear", "-b", "other", "-F", "raw", "-g", "1k", "disk", "first",
        ],
        &["--merge", "first", "-b", "missing", "nowhere", "first"],
        &["--merge", "first", "-b", "missing", "disk", "first"],
        &["--add", "-q", "disk", "x"],
        &["--add", "-U", "disk", "x"],
        &["--add", "--image-opts", "-f", "qcow2", "disk", "x"],
        &["--add", "-f", "bad", "disk", "x"],
    ] {
        let ended = pair.same(&[&["bitmap"], arguments].concat());
        assert_eq!(ended.code, Some(1), "{arguments:?}");
    }
}

#[test]
fn bits_come_from_bitmaps_of_other_images() {
    if !have_qemu() {
        return;
    }
    let pair = with_bitmaps();
    for (name, size) in [("same", "1M"), ("larger", "2M")] {
        pair.given("qemu-img", &["create", "-q", "-f", "qcow2", name, size]);
        pair.given("qemu-img", &["bitmap", "--add", "-g", "1k", name, "there"]);
        pair.given("qemu-io", &["-f", "qcow2", "-c", "write 70k 4k", name]);
    }
    for (arguments, code) in [
        (
            &["--merge", "there", "-b", "larger", "disk", "first"][..],
            1,
        ),
        (&["--merge", "missing", "-b", "same", "disk", "first"], 1),
        (
            &[
                "--merge", "there", "-b", "same", "-F", "raw", "disk", "first",
            ],
            1,
        ),
        (
            &[
                "--merge", "there", "-b", "same", "-F", "qcow2", "disk", "first",
            ],
            0,
        ),
        (&["--merge", "there", "-b", "same", "disk", "second"], 0),
    ] {
        let ended = pair.same(&[&["bitmap"], arguments].concat());
        assert_eq!(ended.code, Some(code), "{arguments:?}: {ended:?}");
    }
    same_bits(&pair, "disk", "first");
    same_bits(&pair, "disk", "second");
    clean(&pair, "disk");
}

#[test]
fn an_inconsistent_bitmap_can_only_be_removed() {
    if !have_qemu() {
        return;
    }
    let pair = with_bitmaps();
    break_bitmap(&pair, "disk", "first");
    same_bitmaps(&pair, "disk");
    for (arguments, code) in [
        (&["--clear", "disk", "first"][..], 1),
        (&["--enable", "disk", "first"], 1),
        (&["--merge", "second", "disk", "first"], 1),
        (&["--merge", "first", "disk", "second"], 1),
        (&["--add", "disk", "first"], 1),
        (&["--remove", "disk", "first"], 0),
        (&["--add", "disk", "first"], 0),
    ] {
        let ended = pair.same(&[&["bitmap"], arguments].concat());
        assert_eq!(ended.code, Some(code), "{arguments:?}: {ended:?}");
        same_bitmaps(&pair, "disk");
    }
    clean(&pair, "disk");
}

#[test]
fn bitmaps_are_told_and_measured() {
    if !have_qemu() {
        return;
    }
    let pair = with_bitmaps();
    break_bitmap(&pair, "disk", "first");
    pair.given("qemu-img", &["create", "-q", "-f", "qcow2", "large", "4G"]);
    for (granularity, name) in [("64k", "a"), ("512", "some"), ("2G", "coarse")] {
        pair.given(
            "qemu-img",
            &["bitmap", "--add", "-g", granularity, "large", name],
        );
    }
    for arguments in [
        &["info", "disk"][..],
        &["info", "--output=json", "disk"],
        &["measure", "-O", "qcow2", "disk"],
        &["measure", "-O", "qcow2", "--output=json", "large"],
        &["measure", "-O", "qcow2", "-o", "cluster_size=512", "large"],
        &["measure", "-O", "qcow2", "-o", "cluster_size=2M", "large"],
        &["measure", "-O", "qcow2", "-o", "compat=0.10", "large"],
        &["measure", "-O", "raw", "large"],
    ] {
        let Ended { code, .. } = pair.same_view(arguments);
        assert_eq!(code, Some(0), "{arguments:?}");
    }
}

#[test]
fn convert_takes_bitmaps_along() {
    if !have_qemu() {
        return;
    }
    let pair = with_bitmaps();
    pair.write("plain", &vec![7; 65536]);
    pair.given("qemu-img", &["create", "-q", "-f", "qcow2", "taken", "1M"]);
    pair.given("qemu-img", &["bitmap", "--add", "taken", "first"]);
    for (arguments, code) in [
        (&["--bitmaps", "-O", "qcow2", "disk", "copy"][..], 0),
        (&["--bitmaps", "-c", "-O", "qcow2", "disk", "small"], 0),
        (&["--bitmaps", "-O", "raw", "disk", "raw"], 1),
        (&["--bitmaps", "-f", "raw", "-O", "qcow2", "plain", "x"], 1),
        (
            &["--bitmaps", "-O", "qcow2", "-o", "compat=0.10", "disk", "x"],
            1,
        ),
        (&["--bitmaps", "-O", "qcow2", "disk", "disk", "x"], 1),
        (&["--skip-broken-bitmaps", "-O", "qcow2", "disk", "x"], 1),
        (&["--bitmaps", "-n", "-O", "qcow2", "disk", "taken"], 1),
    ] {
        let ended = pair.same(&[&["convert"], arguments].concat());
        assert_eq!(ended.code, Some(code), "{arguments:?}: {ended:?}");
    }
    for name in ["copy", "small"] {
        same_bitmaps(&pair, name);
        same_bits(&pair, name, "first");
        same_bits(&pair, name, "second");
    }
    clean(&pair, "copy");
    break_bitmap(&pair, "disk", "first");
    for (arguments, code) in [
        (&["--bitmaps", "-O", "qcow2", "disk", "left"][..], 1),
        (
            &[
                "--bitmaps",
                "--skip-broken-bitmaps",
                "-O",
                "qcow2",
                "disk",
                "left",
            ],
            0,
        ),
    ] {
        let ended = pair.same(&[&["convert"], arguments].concat());
        assert_eq!(ended.code, Some(code), "{arguments:?}: {ended:?}");
    }
    same_bitmaps(&pair, "left");
}
