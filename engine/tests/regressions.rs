//! What once broke in the qcow2 engine, found by reading it with bad intent. Each test tells the story
//! and holds the promise that was broken.

#![allow(
    clippy::unwrap_used,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    reason = "a test fails by panic, and its numbers are small"
)]

mod kit;

use engine::error::{BadImage, Error, Problem, Refused, Structure};
use engine::image::{Access, Image};
use engine::manage::Manage;
use engine::qcow2::check::{CheckOptions, Repair, check};
use engine::qcow2::create::{CreateOptions, create};
use engine::qcow2::header::Header;
use engine::qcow2::{OpenOptions, Qcow2};
use kit::{Ram, run};

fn made(virtual_bytes: u64, cluster_bits: u32, refcount_order: u32) -> Vec<u8> {
    let ram = Ram::empty();
    let options = CreateOptions {
        virtual_bytes,
        cluster_bits,
        refcount_order,
        ..CreateOptions::default()
    };
    run(create(&ram.port, &options)).unwrap();
    ram.bytes()
}

fn header(bytes: &[u8]) -> Header {
    Header::decode(bytes, bytes.len() as u64).unwrap()
}

fn open(ram: &Ram) -> Result<Qcow2, Error> {
    run(Qcow2::open(ram.port.clone(), None, &OpenOptions::default()))
}

/// What an outcome says that would have been written over.
fn overlapped<T>(outcome: &Result<T, Error>) -> Option<Structure> {
    match outcome {
        Err(Error::BadImage(BadImage {
            problem: Problem::Overlap { owner, .. },
            ..
        })) => Some(*owner),
        _ => None,
    }
}

/// Changes a word of the refcount table.
fn set_reftable(image: &mut [u8], index: usize, word: u64) {
    let at = header(image).reftable_offset.0 as usize + index * 8;
    image[at..at + 8].copy_from_slice(&word.to_be_bytes());
}

/// The first entry of the refcount table is empty, as damage may leave it. The new refcount block of
/// that range belongs to its first cluster, where the header stands.
#[test]
fn a_refcount_block_is_never_put_over_the_header() {
    let mut image = made(1 << 20, 9, 4);
    set_reftable(&mut image, 0, 0);
    let ram = Ram::from_bytes(&image);
    let q = open(&ram).unwrap();
    let outcome = run(q.write(0, vec![1; 512]));
    assert_eq!(overlapped(&outcome), Some(Structure::Header), "{outcome:?}");
    assert_eq!(ram.bytes()[..4], *b"QFI\xfb");
}

/// An entry of the refcount table names a cluster that something else owns, or a block that counts
/// another range already. Whoever changes a refcount there changes the other too; with a full block
/// named a million times, the search for a free cluster did not end either.
#[test]
fn an_image_whose_structures_overlap_is_not_opened_for_writing() {
    let sound = made(1 << 20, 9, 4);
    let h = header(&sound);
    let at = h.reftable_offset.0 as usize;
    let block = u64::from_be_bytes(sound[at..at + 8].try_into().unwrap());
    let victims = [
        (h.l1_offset.0, Structure::L1Table),
        (h.reftable_offset.0, Structure::RefcountTable),
        (block, Structure::RefcountBlock),
    ];
    for (offset, structure) in victims {
        let mut image = sound.clone();
        set_reftable(&mut image, 1, offset);
        let refused = open(&Ram::from_bytes(&image)).map(drop);
        assert!(
            matches!(
                refused,
                Err(Error::BadImage(BadImage {
                    problem: Problem::Overlap { owner, .. },
                    ..
                })) if owner == structure
            ),
            "{structure}: {refused:?}"
        );
    }
    open(&Ram::from_bytes(&sound)).unwrap();
}

/// A file was cut by mistake. Repair lowered the refcounts of what lay behind the end, as leaks, and the
/// next allocation gave these clusters to another guest cluster.
#[test]
fn repair_does_not_free_what_mappings_beyond_the_end_refer_to() {
    for repair in [Repair::All, Repair::Leaks] {
        let ram = Ram::empty();
        let options = CreateOptions {
            virtual_bytes: 4 << 20,
            ..CreateOptions::default()
        };
        run(create(&ram.port, &options)).unwrap();
        let image = run(Qcow2::open(ram.port.clone(), None, &OpenOptions::default())).unwrap();
        run(image.write(8 << 16, vec![1; 512])).unwrap();
        run(image.write(0, vec![1; 4 << 16])).unwrap();
        run(image.close()).unwrap();
        let mut bytes = ram.bytes();
        bytes.truncate(bytes.len() - (2 << 16));

        let ram = Ram::from_bytes(&bytes);
        run(check(&ram.port, repair, &CheckOptions::default())).unwrap();
        let image = run(Qcow2::open(ram.port.clone(), None, &OpenOptions::default())).unwrap();
        run(image.write(20 << 16, vec![0x77; 2 << 16])).unwrap();
        run(image.flush()).unwrap();
        run(image.write(2 << 16, vec![0x22; 1 << 16])).unwrap();
        let other = run(image.read(20 << 16, 512)).unwrap();
        assert_eq!(
            other, [0x77; 512],
            "{repair:?}: a write to one cluster changed another"
        );
    }
}

/// Every new refcount block takes the first cluster of its range, so no run of free clusters was ever as
/// long as a block counts, and the search went on until the refcount table was at its limit.
#[test]
fn an_l1_table_longer_than_a_refcount_block_counts_finds_a_place() {
    let ram = Ram::empty();
    let options = CreateOptions {
        virtual_bytes: 1 << 20,
        cluster_bits: 9,
        refcount_order: 6,
        ..CreateOptions::default()
    };
    run(create(&ram.port, &options)).unwrap();
    let image = run(Qcow2::open(ram.port.clone(), None, &OpenOptions::default())).unwrap();
    // A block counts 64 clusters; so does this L1 table take.
    let grown = 64 * 64 * 64 * 512;
    run(image.manage(Manage::grow(grown))).unwrap();
    run(image.write(grown - 512, vec![7; 512])).unwrap();
    run(image.close()).unwrap();
    let report = run(check(&ram.port, Repair::None, &CheckOptions::default())).unwrap();
    assert!(report.is_clean(), "{:?}", report.findings);
    assert!(ram.bytes().len() < 512 << 10, "few blocks were added");
}

/// The cluster that the end of the disk cuts holds bytes of another program behind the end: growing the
/// disk showed them.
#[test]
fn growing_does_not_show_what_stands_behind_the_old_end() {
    let ram = Ram::empty();
    let options = CreateOptions {
        virtual_bytes: 1 << 20,
        ..CreateOptions::default()
    };
    run(create(&ram.port, &options)).unwrap();
    let image = run(Qcow2::open(ram.port.clone(), None, &OpenOptions::default())).unwrap();
    run(image.write(0, vec![9; 3 << 16])).unwrap();
    run(image.close()).unwrap();
    let mut bytes = ram.bytes();
    // The size, cut to one sector by a program that freed nothing.
    bytes[24..32].copy_from_slice(&512u64.to_be_bytes());
    let ram = Ram::from_bytes(&bytes);
    let image = run(Qcow2::open(ram.port.clone(), None, &OpenOptions::default())).unwrap();
    run(image.manage(Manage::grow(3 << 16))).unwrap();
    let read = run(image.read(0, 3 << 16)).unwrap();
    assert_eq!(read[..512], [9; 512]);
    assert!(
        read[512..].iter().all(|byte| *byte == 0),
        "what is added reads zero"
    );
}

/// A disk of no bytes has an L1 table of no entries. Growing it freed the table's no clusters, of which it
/// then tried to free the first.
#[test]
fn a_disk_of_no_bytes_can_grow() {
    let ram = Ram::empty();
    let options = CreateOptions {
        virtual_bytes: 0,
        ..CreateOptions::default()
    };
    run(create(&ram.port, &options)).unwrap();
    let mut bytes = ram.bytes();
    assert_eq!(bytes[36..40], [0; 4], "entries in the L1 table");
    // As qemu-img writes it: there is no table to point to.
    bytes[40..48].copy_from_slice(&[0; 8]);
    let ram = Ram::from_bytes(&bytes);
    let image = run(Qcow2::open(ram.port.clone(), None, &OpenOptions::default())).unwrap();
    let virtual_bytes = 1 << 20;
    run(image.manage(Manage::grow(virtual_bytes))).unwrap();
    run(image.flush()).unwrap();
    run(image.write(0, vec![7; 512])).unwrap();
    run(image.close()).unwrap();
    let report = run(check(&ram.port, Repair::None, &CheckOptions::default())).unwrap();
    assert_eq!(report.errors_remaining(), 0, "{:?}", report.findings);
}

/// An entry of the refcount table names a block behind the end of the file. A rebuild placed what is new there,
/// which the old table thus had for a block until the header switched.
#[test]
fn a_rebuild_takes_no_cluster_that_the_old_table_names() {
    for misaligned in [0, 8] {
        let mut image = made(1 << 20, 9, 4);
        let named = (image.len() as u64).next_multiple_of(512);
        set_reftable(&mut image, 1, named + misaligned);
        let ram = Ram::from_bytes(&image);
        let report = run(check(&ram.port, Repair::All, &CheckOptions::default())).unwrap();
        assert!(report.is_clean(), "{report:?}");
        let bytes = ram.bytes();
        let table = header(&bytes).reftable_offset.0;
        assert!(table > named, "the table at {table:#x}");
        let block = u64::from_be_bytes(bytes[table as usize..][..8].try_into().unwrap());
        assert!(block > named, "the block at {block:#x}");
    }
}

/// An L1 entry came to name a cluster of guest data. Repair took the data for L2 entries, and set COPIED right in
/// what looked like one.
#[test]
fn repair_takes_no_data_for_an_l2_table() {
    const COPIED: u64 = 1 << 63;
    const COMPRESSED: u64 = 1 << 62;
    let put = |bytes: &mut [u8], at: u64, word: u64| {
        bytes[at as usize..][..8].copy_from_slice(&word.to_be_bytes());
    };
    let word = |bytes: &[u8], at: u64| {
        u64::from_be_bytes(bytes[at as usize..][..8].try_into().unwrap()) & !COPIED
    };
    let ram = Ram::from_bytes(&made(1 << 20, 9, 4));
    let image = open(&ram).unwrap();
    run(image.write(0, vec![1; 512])).unwrap();
    run(image.close()).unwrap();
    let l1 = header(&ram.bytes()).l1_offset.0;
    let data = word(&ram.bytes(), word(&ram.bytes(), l1));
    let looks = [
        (COPIED | data, false),
        (COPIED | COMPRESSED | data, false),
        (COMPRESSED | data, true),
        (data, true),
    ];
    for (look, is_sound) in looks {
        let mut bytes = ram.bytes();
        bytes[data as usize..][..512].fill(0);
        put(&mut bytes, data, look);
        put(&mut bytes, l1 + 8, COPIED | data);
        bytes[79] |= 1;
        let before = bytes[data as usize..][..512].to_vec();
        let damaged = Ram::from_bytes(&bytes);
        let report = run(check(&damaged.port, Repair::All, &CheckOptions::default())).unwrap();
        let after = damaged.bytes();
        assert_eq!(after[data as usize..][..512], before, "{look:#x}");
        assert_eq!(
            report.is_clean(),
            is_sound,
            "{look:#x}: {:?}",
            report.remaining
        );
        assert_eq!(after[79] & 1 == 0, is_sound, "{look:#x}: the dirty bit");
        let again = run(check(&damaged.port, Repair::All, &CheckOptions::default())).unwrap();
        assert_eq!(again.found, report.remaining, "{look:#x}");
        assert_eq!(damaged.bytes(), after, "{look:#x}: repaired again");
    }
}

/// An image of 64 KiB in clusters of 512 bytes whose first sector is written, where its L1 table stands, and where the L2
/// table of that sector.
fn with_a_sector() -> (Vec<u8>, usize, u64) {
    let ram = Ram::from_bytes(&made(64 << 10, 9, 4));
    let q = open(&ram).unwrap();
    run(q.write(0, vec![1; 512])).unwrap();
    run(q.close()).unwrap();
    let image = ram.bytes();
    let l1 = header(&image).l1_offset.0 as usize;
    let table = u64::from_be_bytes(image[l1..l1 + 8].try_into().unwrap()) & !(1 << 63);
    (image, l1, table)
}

/// The same, where the second entry of the L1 table names the table of the first, as one flipped bit can make it.
fn with_a_table_named_twice() -> Ram {
    let (mut image, l1, table) = with_a_sector();
    image[l1 + 8..l1 + 16].copy_from_slice(&table.to_be_bytes());
    Ram::from_bytes(&image)
}

fn first_sector(ram: &Ram) -> Vec<u8> {
    let options = OpenOptions {
        access: Access::ReadOnly,
        ..OpenOptions::default()
    };
    let q = run(Qcow2::open(ram.port.clone(), None, &options)).unwrap();
    run(q.read(0, 512)).unwrap()
}

/// The table is copied for the second entry, and the old one was freed: the first entry names it still, and guest data
/// went there.
#[test]
fn a_table_is_not_freed_that_another_entry_names() {
    let ram = with_a_table_named_twice();
    let q = open(&ram).unwrap();
    run(q.write(40 << 10, vec![2; 512])).unwrap();
    run(q.flush()).unwrap();
    // What the flush has made durable is freed behind it, and nobody waits for that.
    let refused = run(q.write(50 << 10, vec![3; 512]));
    assert!(matches!(
        refused,
        Err(Error::Refused(Refused::FoundCorrupt))
    ));
    assert!(header(&ram.bytes()).is_corrupt());
    assert_eq!(first_sector(&ram), [1; 512]);
}

/// The same where the second entry is cut off with the end of the disk.
#[test]
fn a_table_is_not_cut_off_that_another_entry_names() {
    let ram = with_a_table_named_twice();
    let q = open(&ram).unwrap();
    let outcome = run(q.manage(Manage::shrink(32 << 10)));
    let structure = match &outcome {
        Err(Error::BadImage(bad)) => Some(bad.structure),
        _ => None,
    };
    assert_eq!(structure, Some(Structure::RefcountBlock), "{outcome:?}");
    assert!(header(&ram.bytes()).is_corrupt());
    assert_eq!(first_sector(&ram), [1; 512]);
}

/// An entry of an L2 table names the cluster of the refcount table. With all that the image held that was freed, and the
/// file told to forget it.
#[test]
fn a_table_is_not_freed_with_what_an_emptied_image_held() {
    let (mut image, _, table) = with_a_sector();
    let reftable = header(&image).reftable_offset.0;
    let entry = reftable | 1 << 63;
    image[table as usize..][..8].copy_from_slice(&entry.to_be_bytes());
    let ram = Ram::from_bytes(&image);
    let q = open(&ram).unwrap();
    let outcome = run(q.manage(Manage::MakeEmpty));
    assert_eq!(
        overlapped(&outcome),
        Some(Structure::RefcountTable),
        "{outcome:?}"
    );
    let after = ram.bytes();
    assert!(header(&after).is_corrupt());
    let reftable = reftable as usize;
    assert_eq!(after[reftable..][..512], image[reftable..][..512]);
}
