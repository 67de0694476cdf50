//! Check finds what qemu-img finds, and what repair leaves behind satisfies both.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]

mod kit;

use std::path::Path;

use engine::image::Access;
use engine::qcow2::check::{CheckReport, Repair};
use engine::qcow2::header::Header;
use engine::qcow2::{OpenOptions, Qcow2, geometry::Geometry, refblock};
use kit::damage::{checked, number, shown};
use kit::{Ram, call, create_in_qemu, have, must, run, same_in_qemu, text};

fn decode(bytes: &[u8]) -> Header {
    Header::decode(bytes, u64::try_from(bytes.len()).unwrap()).unwrap()
}

fn qemu_check(path: &Path) -> String {
    let output = call(
        "qemu-img",
        &["check", "-f", "qcow2", "--output=json", text(path)],
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Corruptions, leaks and sizes, as both programs count them.
fn assert_agrees(report: &CheckReport, path: &Path, what: &str) {
    let json = qemu_check(path);
    let theirs = [
        "corruptions",
        "leaks",
        "check-errors",
        "total-clusters",
        "allocated-clusters",
        "compressed-clusters",
        "fragmented-clusters",
        "image-end-offset",
    ]
    .map(|key| number(&json, key));
    let totals = report.totals;
    let ours = [
        report.found.corruptions,
        report.found.leaks,
        report.check_errors,
        totals.total_clusters,
        totals.allocated_clusters,
        totals.compressed_clusters,
        totals.fragmented_clusters,
        totals.image_end_offset,
    ];
    assert_eq!(ours, theirs, "{what}: {:#?}", report.findings);
}

/// An image with data, zeroes, compressed clusters, holes and, where refcounts can tell, a snapshot.
fn filled(path: &Path, cluster_bits: u32, refcount_order: u32) {
    let cluster = 1u64 << cluster_bits;
    let options = format!(
        "cluster_size={cluster},refcount_bits={}",
        1 << refcount_order
    );
    let size = (cluster * 300).to_string();
    create_in_qemu(path, &options, &size);
    let write = |commands: &[String]| {
        let mut arguments = vec!["-f", "qcow2"];
        for command in commands {
            arguments.extend(["-c", command]);
        }
        arguments.push(text(path));
        must("qemu-io", &arguments);
    };
    write(&[
        format!("write -P 1 0 {}", cluster * 3),
        format!("write -P 2 {} {cluster}", cluster * 130),
        format!("write -c -P 3 {} {cluster}", cluster * 10),
        format!("write -P 4 {} {cluster}", cluster * 20),
        format!("write -z {} {cluster}", cluster * 20),
        format!("write -z -u {} {cluster}", cluster * 22),
    ]);
    if refcount_order > 0 {
        write(&[format!("write -c -P 5 {} {}", cluster * 11, cluster)]);
        must("qemu-img", &["snapshot", "-c", "one", text(path)]);
        write(&[
            format!("write -P 6 {cluster} {cluster}"),
            format!("write -P 7 {} {cluster}", cluster * 250),
        ]);
    }
}

/// Every refcount width with small clusters; large ones add nothing but time.
fn geometries() -> Vec<(u32, u32)> {
    let small = (0..=6).flat_map(|refcount_order| [(9, refcount_order), (12, refcount_order)]);
    small.chain([(16, 4)]).collect()
}

#[test]
fn a_sound_image_is_sound_here_too_and_is_not_written() {
    if !have("qemu-img") || !have("qemu-io") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    for (cluster_bits, refcount_order) in geometries() {
        filled(&path, cluster_bits, refcount_order);
        let ram = Ram::load(&path);
        let report = checked(&ram, Repair::None);
        assert_agrees(&report, &path, &format!("{cluster_bits} {refcount_order}"));
        assert!(report.is_clean());
        let before = ram.device.snapshot().content_hash();
        for repair in [Repair::Leaks, Repair::All] {
            assert!(checked(&ram, repair).is_clean());
            assert_eq!(ram.device.snapshot().content_hash(), before);
        }
    }
}

/// Every way to be wrong that leaves the guest's mapping alone.
#[derive(Clone, Copy, Debug)]
enum Damage {
    Raise,
    Lower,
    Zero,
    AllCountsZero,
    NoBlock,
    BlockMisaligned,
    BlockReserved,
    BlockBeyondEnd,
    BlockIsTable,
    CopiedFlipped,
    L1CopiedFlipped,
    TableOverData,
}

impl Damage {
    const ALL: [Self; 12] = [
        Self::Raise,
        Self::Lower,
        Self::Zero,
        Self::AllCountsZero,
        Self::NoBlock,
        Self::BlockMisaligned,
        Self::BlockReserved,
        Self::BlockBeyondEnd,
        Self::BlockIsTable,
        Self::CopiedFlipped,
        Self::L1CopiedFlipped,
        Self::TableOverData,
    ];

    /// Whether qemu-img counts this exactly as it is counted here. Where a block cannot be used,
    /// it differs in what it takes for referenced and for counted.
    fn is_counted_alike(self) -> bool {
        !matches!(
            self,
            Self::BlockMisaligned
                | Self::BlockReserved
                | Self::BlockBeyondEnd
                | Self::BlockIsTable
                | Self::TableOverData
        )
    }

    fn inflict(self, bytes: &mut [u8]) {
        let header = decode(bytes);
        let geometry = header.geometry;
        let table = usize::try_from(header.reftable_offset.0).unwrap();
        let block = usize::try_from(word(bytes, table)).unwrap();
        let l1 = usize::try_from(header.l1_offset.0).unwrap();
        let l2 = usize::try_from(word(bytes, l1) & 0x00ff_ffff_ffff_fe00).unwrap();
        let data = word(bytes, l2) & 0x00ff_ffff_ffff_fe00;
        let cluster = usize::try_from(data >> geometry.cluster_bits()).unwrap();
        let len = geometry.cluster_len();
        let order = geometry.refcount_order();
        let file_bytes = u64::try_from(bytes.len()).unwrap();
        let mut count = |change: fn(u64, u64) -> u64| {
            let block = &mut bytes[block..block + len];
            let old = refblock::refcount(block, cluster, order);
            refblock::set_refcount(block, cluster, order, change(old, geometry.max_refcount()));
        };
        match self {
            Self::Raise => count(|old, most| (old + 1).min(most)),
            Self::Lower => count(|old, _| old - 1),
            Self::Zero => count(|_, _| 0),
            Self::AllCountsZero => bytes[block..block + len].fill(0),
            Self::NoBlock => put(bytes, table, 0),
            Self::BlockMisaligned => put(bytes, table, u64::try_from(block).unwrap() + 512),
            Self::BlockReserved => put(bytes, table, u64::try_from(block).unwrap() + 8),
            Self::BlockBeyondEnd => put(bytes, table, geometry.round_up(file_bytes) + (16 << 21)),
            Self::BlockIsTable => put(bytes, table, u64::try_from(l2).unwrap()),
            Self::CopiedFlipped => put(bytes, l2, word(bytes, l2) ^ 1 << 63),
            Self::L1CopiedFlipped => put(bytes, l1, word(bytes, l1) ^ 1 << 63),
            Self::TableOverData => put(bytes, 48, data),
        }
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn put(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
}

#[test]
fn planted_damage_is_counted_as_qemu_img_counts_it_and_repaired_whole() {
    if !have("qemu-img") || !have("qemu-io") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    for (cluster_bits, refcount_order) in geometries() {
        filled(&path, cluster_bits, refcount_order);
        let sound = std::fs::read(&path).unwrap();
        let seen = shown(&path, None);
        for damage in Damage::ALL {
            if matches!(damage, Damage::BlockMisaligned) && cluster_bits == 9 {
                continue;
            }
            let what = format!("{damage:?}, {cluster_bits} {refcount_order}");
            let mut bytes = sound.clone();
            damage.inflict(&mut bytes);
            if bytes == sound {
                continue;
            }
            std::fs::write(&path, &bytes).unwrap();
            let ram = Ram::from_bytes(&bytes);
            let report = checked(&ram, Repair::None);
            assert!(!report.is_clean(), "{what}");
            if damage.is_counted_alike() {
                assert_agrees(&report, &path, &what);
            }
            let report = checked(&ram, Repair::All);
            assert!(report.is_clean(), "{what}: {report:#?}");
            let again = checked(&ram, Repair::None);
            assert!(again.findings.is_empty(), "{what}: {again:#?}");
            let repaired = ram.device.snapshot().content_hash();
            checked(&ram, Repair::All);
            assert_eq!(ram.device.snapshot().content_hash(), repaired, "{what}");
            ram.save(&path);
            same_in_qemu(&path, &seen, &what);
        }
    }
}

#[test]
fn an_image_left_dirty_by_a_killed_writer_is_repaired_and_clean_for_qemu_img() {
    if !have("qemu-img") || !have("qemu-io") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    for (cluster_bits, refcount_order) in geometries() {
        let what = format!("{cluster_bits} {refcount_order}");
        let cluster = 1u64 << cluster_bits;
        let options = format!(
            "cluster_size={cluster},refcount_bits={},lazy_refcounts=on",
            1 << refcount_order
        );
        let size = (cluster * 300).to_string();
        create_in_qemu(&path, &options, &size);
        let killed = call(
            "qemu-io",
            &[
                "-f",
                "qcow2",
                "-c",
                &format!("write -P 9 {cluster} {}", cluster * 5),
                "-c",
                "flush",
                "-c",
                "sigraise 9",
                text(&path),
            ],
        );
        assert!(!killed.status.success(), "{what}: qemu-io was to be killed");
        let ram = Ram::load(&path);
        assert!(decode(&ram.bytes()).is_dirty(), "{what}");
        assert_agrees(&checked(&ram, Repair::None), &path, &what);
        let seen = shown(&path, None);
        assert!(checked(&ram, Repair::All).is_clean(), "{what}");
        assert!(!decode(&ram.bytes()).is_dirty(), "{what}");
        ram.save(&path);
        same_in_qemu(&path, &seen, &what);
    }
}

#[test]
fn repair_of_leaks_touches_nothing_else() {
    if !have("qemu-img") || !have("qemu-io") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    filled(&path, 12, 4);
    let mut bytes = std::fs::read(&path).unwrap();
    let block = usize::try_from(word(&bytes, 4096)).unwrap();
    let geometry = Geometry::new(12, 4).unwrap();
    let last = usize::try_from(geometry.clusters_for(u64::try_from(bytes.len()).unwrap())).unwrap();
    // One cluster leaked, one with too few references.
    refblock::set_refcount(&mut bytes[block..block + 4096], last - 1, 4, 9);
    refblock::set_refcount(&mut bytes[block..block + 4096], 0, 4, 0);
    let ram = Ram::from_bytes(&bytes);
    let report = checked(&ram, Repair::Leaks);
    assert_eq!((report.fixed.leaks, report.fixed.corruptions), (1, 0));
    let after = checked(&ram, Repair::None);
    assert_eq!((after.found.leaks, after.found.corruptions), (0, 1));
}

#[test]
fn bitmaps_are_counted_and_kept_by_repair() {
    if !have("qemu-img") || !have("qemu-io") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    filled(&path, 12, 4);
    for name in ["one", "another"] {
        must(
            "qemu-img",
            &["bitmap", "--add", "-g", "512", text(&path), name],
        );
    }
    must(
        "qemu-io",
        &["-f", "qcow2", "-c", "write 8k 64k", text(&path)],
    );
    let mut bytes = std::fs::read(&path).unwrap();
    assert!(decode(&bytes).has_bitmaps());
    let report = checked(&Ram::from_bytes(&bytes), Repair::None);
    assert_agrees(&report, &path, "bitmaps");
    assert!(report.is_clean());

    // Without the autoclear bit the extension is out of date, and its clusters are lost.
    bytes[95] &= !1;
    std::fs::write(&path, &bytes).unwrap();
    let ram = Ram::from_bytes(&bytes);
    let report = checked(&ram, Repair::None);
    assert_agrees(&report, &path, "outdated bitmaps");
    assert!(report.found.leaks > 0);
    assert!(checked(&ram, Repair::Leaks).is_clean());

    bytes[95] |= 1;
    let ram = Ram::from_bytes(&bytes);
    for repair in [Repair::Leaks, Repair::All] {
        assert!(checked(&ram, repair).is_clean());
    }
    assert!(ram.bytes() == bytes);

    // Marked dirty, with all refcounts lost: repair counts the bitmaps anew and changes nothing else.
    bytes[79] |= 1;
    let table = usize::try_from(decode(&bytes).reftable_offset.0).unwrap();
    bytes[table..table + 4096].fill(0);
    let ram = Ram::from_bytes(&bytes);
    assert!(checked(&ram, Repair::All).remaining == engine::qcow2::check::Tally::default());
    assert_eq!(bitmaps_of(&ram), bitmaps_of(&Ram::from_bytes(&bytes)));
    ram.save(&path);
    must("qemu-img", &["check", text(&path)]);
}

/// What every bitmap covers.
fn bitmaps_of(ram: &Ram) -> Vec<Vec<std::ops::Range<u64>>> {
    let options = OpenOptions {
        access: Access::ReadOnly,
        ..OpenOptions::default()
    };
    let image = run(Qcow2::open(ram.port.clone(), None, &options)).unwrap();
    let infos = run(image.bitmaps()).unwrap();
    assert_eq!(infos.len(), 2);
    infos
        .iter()
        .map(|info| run(image.dirty_ranges(&info.name)).unwrap())
        .inspect(|ranges| assert!(!ranges.is_empty()))
        .collect()
}
