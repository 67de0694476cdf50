//! Damage to snapshot tables and bitmaps: what `qemu-img check` counts is counted here, what it repairs is
//! repaired here, and after either both programs find nothing and show what they showed before.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]

mod kit;

use std::path::Path;

use engine::image::{Access, Image};
use engine::manage::Manage;
use engine::qcow2::check::Repair;
use engine::qcow2::{OpenOptions, Qcow2};
use kit::damage::{CLEAN, Damage, Sound, checked, counted_by_qemu, shown};
use kit::{Ram, create_in_qemu, must, run, text};

const CLUSTER: &str = "4096";

fn io(path: &Path, commands: &[&str]) {
    let mut arguments = vec!["-f", "qcow2"];
    for command in commands {
        arguments.extend(["-c", command]);
    }
    arguments.push(text(path));
    must("qemu-io", &arguments);
}

fn new_image(path: &Path) {
    let option = format!("cluster_size={CLUSTER}");
    create_in_qemu(path, &option, "4M");
}

/// Three snapshots, each of another disk.
fn with_snapshots(path: &Path) {
    new_image(path);
    for (write, snapshot) in [
        ("write -P 1 0 64k", "one"),
        ("write -P 2 16k 64k", "two"),
        ("write -P 3 32k 64k", "three"),
    ] {
        io(path, &[write]);
        must("qemu-img", &["snapshot", "-c", snapshot, text(path)]);
    }
    io(path, &["write -P 4 48k 64k"]);
}

/// Two bitmaps, each with a cluster of bits.
fn with_bitmaps(path: &Path) {
    new_image(path);
    for (name, granularity) in [("one", "512"), ("another", "4096")] {
        must(
            "qemu-img",
            &["bitmap", "--add", "-g", granularity, text(path), name],
        );
    }
    io(path, &["write -P 1 0 64k", "write -P 2 1M 3k"]);
}

fn get(bytes: &[u8], at: usize, len: usize) -> usize {
    let digits = bytes[at..at + len].iter();
    digits.fold(0, |value, byte| value << 8 | usize::from(*byte))
}

fn put(bytes: &mut [u8], at: usize, len: usize, value: u64) {
    bytes[at..at + len].copy_from_slice(&value.to_be_bytes()[8 - len..]);
}

/// Where the entries of the snapshot table stand, and how long each is.
fn snapshots(bytes: &[u8]) -> Vec<(usize, usize)> {
    let mut at = get(bytes, 64, 8);
    let entry = |at: usize| {
        let names = get(bytes, at + 12, 2) + get(bytes, at + 14, 2);
        (40 + get(bytes, at + 36, 4) + names).next_multiple_of(8)
    };
    (0..get(bytes, 60, 4))
        .map(|_| {
            let found = (at, entry(at));
            at += found.1;
            found
        })
        .collect()
}

/// Gives entries of the snapshot table other extra data.
fn say(bytes: &mut [u8], which: impl Fn(usize) -> bool, extra: impl Fn(&[u8]) -> Vec<u8>) {
    let mut table = Vec::new();
    for (index, (at, _)) in snapshots(bytes).into_iter().enumerate() {
        let mut head = bytes[at..at + 40].to_vec();
        let split = at + 40 + get(bytes, at + 36, 4);
        let end = split + get(bytes, at + 12, 2) + get(bytes, at + 14, 2);
        let mut data = bytes[at + 40..split].to_vec();
        if which(index) {
            data = extra(&data);
        }
        put(&mut head, 36, 4, u64::try_from(data.len()).unwrap());
        table.extend([head, data, bytes[split..end].to_vec()].concat());
        table.resize(table.len().next_multiple_of(8), 0);
    }
    let at = get(bytes, 64, 8);
    bytes[at..at + table.len()].copy_from_slice(&table);
}

fn second(bytes: &[u8]) -> usize {
    snapshots(bytes)[1].0
}

/// Damage that a new snapshot table undoes, with whether qemu-img counts it without being told to repair.
const ILL_SAID: [(&str, bool, Damage); 5] = [
    ("no extra data", true, |bytes| {
        say(bytes, |index| index == 1, |_| Vec::new());
    }),
    ("half of one field", true, |bytes| {
        say(bytes, |index| index == 1, |old| old[..4].to_vec());
    }),
    ("one field", true, |bytes| {
        say(bytes, |index| index == 1, |old| old[..8].to_vec());
    }),
    ("no extra data anywhere", true, |bytes| {
        say(bytes, |_| true, |_| Vec::new());
    }),
    ("too much extra data", false, |bytes| {
        say(
            bytes,
            |index| index == 1,
            |old| [old.to_vec(), vec![1; 1100]].concat(),
        );
    }),
];

#[test]
fn a_snapshot_table_that_says_too_little_or_too_much_is_written_anew() {
    let Some(sound) = Sound::made_by(with_snapshots) else {
        return;
    };
    let path = sound.path();
    let all_shown = || ["one", "two", "three"].map(|name| shown(&path, Some(name)));
    let listed = || must("qemu-img", &["snapshot", "-l", text(&path)]);
    let before = all_shown();
    for (what, counted, damage) in ILL_SAID {
        let damaged = sound.damaged(what, damage);
        let found = if counted {
            assert_eq!(damaged.code, Some(2), "{what}");
            damaged.found_alike()
        } else {
            let found = damaged.found();
            assert_eq!((found.corruptions, damaged.code), (1, Some(1)), "{what}");
            found
        };
        assert_eq!(damaged.repair_whole().fixed, found, "{what}");
        assert!(all_shown() == before, "{what}");
        // The same is left of the entry as qemu-img leaves.
        let ours = listed();
        damaged.repaired_by_qemu();
        assert_eq!(ours, listed(), "{what}");
    }
}

#[test]
fn a_snapshot_that_cannot_be_followed_is_counted_and_nothing_that_it_may_hold_is_freed() {
    let Some(sound) = Sound::made_by(with_snapshots) else {
        return;
    };
    let path = sound.path();
    let damages: [(&str, Damage); 3] = [
        ("misaligned", |bytes| {
            let at = second(bytes);
            bytes[at + 6] ^= 2;
        }),
        ("too long", |bytes| {
            let at = second(bytes);
            put(bytes, at + 8, 4, (33 << 20) / 8);
        }),
        ("beyond the end", |bytes| {
            let at = second(bytes);
            put(bytes, at, 8, 1 << 40);
        }),
    ];
    for (what, damage) in damages {
        let damaged = sound.damaged(what, damage);
        damaged.found_alike();
        assert_eq!(damaged.code, Some(2), "{what}");
        for repair in [Repair::Leaks, Repair::All] {
            let report = checked(&damaged.ram, repair);
            assert!(report.errors_remaining() > 0, "{what}");
        }
        // Where it stands right again, nothing is lost.
        let (at, _) = snapshots(&sound.bytes)[1];
        let mut bytes = damaged.ram.bytes();
        bytes[at..at + 12].copy_from_slice(&sound.bytes[at..at + 12]);
        std::fs::write(&path, &bytes).unwrap();
        sound.must_show_its_disk(what);
        if what != "beyond the end" {
            assert_eq!(counted_by_qemu(&path, &[]), CLEAN, "{what}");
        }
    }
}

#[test]
fn a_snapshot_too_few_or_too_many_is_counted_as_qemu_img_counts_it() {
    let Some(sound) = Sound::made_by(with_snapshots) else {
        return;
    };
    let damages: [(&str, Damage); 3] = [
        ("one too few", |bytes| bytes[63] -= 1),
        ("an entry of zeroes", |bytes| bytes[63] += 1),
        ("one L1 table twice", |bytes| {
            let (first, at) = (snapshots(bytes)[0].0, second(bytes));
            bytes.copy_within(first..first + 8, at);
        }),
    ];
    for (what, damage) in damages {
        let damaged = sound.damaged(what, damage);
        damaged.found_alike();
        damaged.repair_whole();
        // What qemu-img makes of it satisfies this program as well.
        let theirs = checked(&damaged.repaired_by_qemu(), Repair::None);
        assert!(theirs.findings.is_empty(), "{what}: {theirs:#?}");
    }
}

/// Where the data of the bitmaps extension stand, and the first record of the directory.
fn bitmaps(bytes: &[u8]) -> (usize, usize) {
    let mut at = get(bytes, 100, 4);
    while get(bytes, at, 4) != 0x2385_2875 {
        at += 8 + get(bytes, at + 4, 4).next_multiple_of(8);
    }
    (at + 8, get(bytes, at + 24, 8))
}

fn in_extension(bytes: &mut [u8], field: usize, len: usize, value: u64) {
    let at = bitmaps(bytes).0 + field;
    put(bytes, at, len, value);
}

fn in_record(bytes: &mut [u8], field: usize, len: usize, value: u64) {
    let at = bitmaps(bytes).1 + field;
    put(bytes, at, len, value);
}

fn in_table(bytes: &mut [u8], value: u64) {
    let at = get(bytes, bitmaps(bytes).1, 8);
    put(bytes, at, 8, value);
}

/// Directories, records and tables that qemu-img does not open at all, or counts as corrupt.
const BROKEN: [(&str, Damage); 17] = [
    ("one bitmap more", |bytes| in_extension(bytes, 0, 4, 3)),
    ("one bitmap less", |bytes| in_extension(bytes, 0, 4, 1)),
    ("no bitmap", |bytes| in_extension(bytes, 0, 4, 0)),
    ("too many bitmaps", |bytes| {
        in_extension(bytes, 0, 4, 70_000);
    }),
    ("a reserved field", |bytes| in_extension(bytes, 4, 4, 1)),
    ("a longer directory", |bytes| in_extension(bytes, 8, 8, 72)),
    ("a shorter directory", |bytes| in_extension(bytes, 8, 8, 56)),
    ("an endless directory", |bytes| {
        in_extension(bytes, 8, 8, 1 << 40);
    }),
    ("a directory within a cluster", |bytes| {
        let at = bitmaps(bytes).1;
        in_extension(bytes, 16, 8, u64::try_from(at + 8).unwrap());
    }),
    ("a directory beyond the end", |bytes| {
        in_extension(bytes, 16, 8, 1 << 40);
    }),
    ("a table within a cluster", |bytes| {
        in_record(bytes, 6, 1, 0xb2);
    }),
    ("a table beyond the end", |bytes| {
        in_record(bytes, 0, 8, 1 << 40);
    }),
    ("a table in the header", |bytes| in_record(bytes, 0, 8, 0)),
    ("a table without entries", |bytes| in_record(bytes, 8, 4, 0)),
    ("a table one entry too long", |bytes| {
        in_record(bytes, 8, 4, 2);
    }),
    ("an endless table", |bytes| {
        in_record(bytes, 8, 4, 0xffff_ffff);
    }),
    ("an entry that is not valid", |bytes| {
        in_table(bytes, 0x1_a002);
    }),
];

#[test]
fn a_broken_bitmap_is_counted_keeps_nobody_from_reading_and_is_left_alone() {
    let Some(sound) = Sound::made_by(with_bitmaps) else {
        return;
    };
    for (what, damage) in BROKEN {
        let damaged = sound.damaged(what, damage);
        let code = damaged.code;
        assert!(matches!(code, Some(1 | 2)), "{what}: {code:?}");
        let found = damaged.found();
        assert!(found.corruptions > 0, "{what}: {found:?}");
        let report = checked(&damaged.ram, Repair::All);
        assert!(report.errors_remaining() > 0, "{what}: {report:?}");
        let options = OpenOptions {
            access: Access::ReadOnly,
            ..OpenOptions::default()
        };
        let image = run(Qcow2::open(damaged.ram.port.clone(), None, &options)).unwrap();
        let read = run(image.read(0, sound.disk.len())).unwrap();
        assert!(read == sound.disk, "{what}");
    }
}

#[test]
fn bitmaps_that_share_or_lose_clusters_are_counted_and_repaired_as_by_qemu_img() {
    let Some(sound) = Sound::made_by(with_bitmaps) else {
        return;
    };
    let damages: [(&str, Damage); 3] = [
        ("one table twice", |bytes| {
            let at = bitmaps(bytes).1;
            let next = at + (24 + get(bytes, at + 18, 2)).next_multiple_of(8);
            bytes.copy_within(at..at + 8, next);
        }),
        ("bits that are clear", |bytes| in_table(bytes, 0)),
        ("bits that are set", |bytes| in_table(bytes, 1)),
    ];
    for (what, damage) in damages {
        let damaged = sound.damaged(what, damage);
        damaged.found_alike();
        damaged.repair_whole();
    }
}

/// An entry that leaves out the size of its disk means the present one; a growing disk must not take it
/// along.
#[test]
fn a_snapshot_keeps_its_size_when_the_disk_grows_though_its_entry_leaves_it_out() {
    let Some(sound) = Sound::made_by(with_snapshots) else {
        return;
    };
    let path = sound.path();
    let before = shown(&path, Some("two"));
    let mut bytes = sound.bytes.clone();
    say(&mut bytes, |_| true, |_| Vec::new());
    let ram = Ram::from_bytes(&bytes);
    let image = run(Qcow2::open(ram.port.clone(), None, &OpenOptions::default())).unwrap();
    run(image.manage(Manage::grow(8 << 20))).unwrap();
    let sizes = run(image.snapshots())
        .into_iter()
        .map(|one| one.virtual_bytes);
    assert_eq!(sizes.collect::<Vec<_>>(), [4 << 20; 3]);
    run(image.close()).unwrap();
    let report = checked(&ram, Repair::None);
    assert!(report.findings.is_empty(), "{report:#?}");
    ram.save(&path);
    assert_eq!(counted_by_qemu(&path, &[]), CLEAN);
    // qemu-img pads what a snapshot shows to the size of the disk.
    assert!(shown(&path, Some("two"))[..before.len()] == before);
}
