//! Images whose guest data stand in an external data file: QEMU and this engine agree on them, and two
//! disks that lose power together lose nothing of what was flushed.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]

mod kit;

use std::path::{Path, PathBuf};

use engine::error::{Error, Refused};
use engine::image::{Image, StatusKind, Unmap};
use engine::manage::{
    Amend, BackingName, DataFileChange, Manage, NewSnapshot, RawPromise, Resizing,
};
use engine::preallocation::Preallocation;
use engine::qcow2::check::Repair;
use engine::qcow2::create::{
    CreateOptions, DataFileContent, NewDataFile, create, create_with_data_file,
};
use engine::qcow2::{Files, OpenOptions, Qcow2, header};

use kit::damage::checked;
use kit::{Ram, call, create_in_qemu, have, must, run, same_in_qemu, text};

const KINDS: [DataFileContent; 2] = [DataFileContent::Clusters, DataFileContent::Raw];

/// An image file and its data file, in memory.
struct Pair {
    image: Ram,
    data: Ram,
}

impl Pair {
    fn create(options: CreateOptions, content: DataFileContent) -> Self {
        Self::create_named("disk.data", options, content)
    }

    /// A pair that will be saved to that folder. Relative names start at the working directory.
    fn create_in(folder: &Path, options: CreateOptions, content: DataFileContent) -> Self {
        Self::create_named(text(&folder.join("disk.data")), options, content)
    }

    fn create_named(name: &str, options: CreateOptions, content: DataFileContent) -> Self {
        let pair = Self {
            image: Ram::empty(),
            data: Ram::empty(),
        };
        let data_file = Some(NewDataFile {
            name: name.into(),
            content,
        });
        let options = CreateOptions {
            data_file,
            ..options
        };
        run(create_with_data_file(
            &pair.image.port,
            &pair.data.port,
            &options,
        ))
        .unwrap();
        pair
    }

    fn open(&self) -> Qcow2 {
        self.try_open(&OpenOptions::default()).unwrap()
    }

    fn try_open(&self, options: &OpenOptions) -> Result<Qcow2, Error> {
        let files = Files {
            image: self.image.port.clone(),
            data: Some(self.data.port.clone()),
            backing: None,
        };
        run(Qcow2::open_files(files, options, &[]))
    }

    /// Saves both files, and hands back the path of the image.
    fn save(&self, folder: &Path) -> PathBuf {
        self.data.save(&folder.join("disk.data"));
        let image = folder.join("disk.qcow2");
        self.image.save(&image);
        image
    }

    fn load(folder: &Path) -> Self {
        Self {
            image: Ram::load(&folder.join("disk.qcow2")),
            data: Ram::load(&folder.join("disk.data")),
        }
    }
}

fn len(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap()
}

fn read_all(image: &Qcow2) -> Vec<u8> {
    run(image.read(0, len(image.virtual_bytes()))).unwrap()
}

/// Writes, zeroes and discards over the seams of clusters, on the image and on a model.
fn work(image: &Qcow2, model: &mut [u8], cluster: u64) {
    let mut write = |at: u64, bytes: u64, fill: u8| {
        run(image.write(at, vec![fill; len(bytes)])).unwrap();
        model[len(at)..len(at + bytes)].fill(fill);
    };
    write(0, 512, 1);
    write(cluster - 512, 1024, 2);
    write(3 * cluster, 4 * cluster, 3);
    write(8 * cluster + 512, 512, 4);
    let end = u64::try_from(model.len()).unwrap();
    let mut zero = |at: u64, bytes: u64, how: Option<Unmap>| {
        let done = match how {
            Some(unmap) => run(image.write_zeroes(at, bytes, unmap)),
            None => run(image.discard(at, bytes)),
        };
        done.unwrap();
        model[len(at)..len(at + bytes)].fill(0);
    };
    zero(3 * cluster, cluster, Some(Unmap::Keep));
    zero(4 * cluster, cluster, Some(Unmap::Allow));
    zero(5 * cluster, cluster, None);
    zero(6 * cluster + 512, 512, Some(Unmap::Allow));
    zero(9 * cluster, cluster, Some(Unmap::Keep));
    let mut write = |at: u64, bytes: u64, fill: u8| {
        run(image.write(at, vec![fill; len(bytes)])).unwrap();
        model[len(at)..len(at + bytes)].fill(fill);
    };
    write(5 * cluster + 512, 512, 5);
    write(9 * cluster + 512, 512, 6);
    write(end - 512, 512, 7);
}

fn shapes() -> Vec<CreateOptions> {
    let mut shapes = Vec::new();
    for (cluster_bits, extended_l2) in [(9, false), (12, false), (14, true), (16, false)] {
        for lazy_refcounts in [false, true] {
            shapes.push(CreateOptions {
                virtual_bytes: (11 << cluster_bits) + 1536,
                cluster_bits,
                extended_l2,
                lazy_refcounts,
                ..CreateOptions::default()
            });
        }
    }
    shapes
}

#[test]
fn qemu_reads_what_is_written_here_and_goes_on_with_it() {
    if !have("qemu-img") || !have("qemu-io") {
        return;
    }
    for options in shapes() {
        for content in KINDS {
            let folder = tempfile::tempdir().unwrap();
            let cluster = 1 << options.cluster_bits;
            let mut model = vec![0; len(options.virtual_bytes)];
            let pair = Pair::create_in(folder.path(), options.clone(), content);
            let image = pair.open();
            work(&image, &mut model, cluster);
            assert!(read_all(&image) == model);
            run(image.close()).unwrap();
            if content == DataFileContent::Raw {
                assert!(pair.data.bytes() == model, "{options:?}");
            }
            assert!(pair.data.port.len() <= options.virtual_bytes);
            let path = pair.save(folder.path());
            same_in_qemu(&path, &model, &format!("{options:?} {content:?}"));

            let at = 4 * cluster + 512;
            let write = format!("write -P 9 {at} 1024");
            let zero = format!("write -z {} {cluster}", 6 * cluster);
            let unmap = format!("write -z -u 0 {cluster}");
            let arguments = ["-c", &write, "-c", &zero, "-c", &unmap, text(&path)];
            must("qemu-io", &arguments);
            model[len(at)..len(at + 1024)].fill(9);
            model[len(6 * cluster)..len(7 * cluster)].fill(0);
            model[..len(cluster)].fill(0);
            let pair = Pair::load(folder.path());
            let image = pair.open();
            assert!(read_all(&image) == model, "{options:?} {content:?}");
            run(image.write(512, vec![10; 512])).unwrap();
            model[512..1024].fill(10);
            run(image.write(6 * cluster + 512, vec![11; 512])).unwrap();
            model[len(6 * cluster + 512)..len(6 * cluster + 1024)].fill(11);
            assert!(read_all(&image) == model, "{options:?} {content:?}");
            run(image.close()).unwrap();
            if content == DataFileContent::Raw {
                assert!(pair.data.bytes()[..model.len()] == model, "{options:?}");
            }
            let path = pair.save(folder.path());
            same_in_qemu(&path, &model, &format!("{options:?} {content:?}"));
        }
    }
}

#[test]
fn an_image_that_qemu_made_is_one_here() {
    if !have("qemu-img") || !have("qemu-io") {
        return;
    }
    for (raw, size) in [("off", "1M"), ("on", "1M"), ("off", "100k"), ("on", "100k")] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.qcow2");
        let data = folder.path().join("disk.data");
        let named = text(&data);
        let options = format!("data_file={named},data_file_raw={raw},cluster_size=4096");
        let arguments = [
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            &options,
            text(&path),
            size,
        ];
        must("qemu-img", &arguments);
        must("qemu-io", &["-c", "write -P 3 4k 9k", text(&path)]);
        let pair = Pair::load(folder.path());
        let header = run(header::read(&pair.image.port)).unwrap();
        assert_eq!(header.data_file_name(), Some(named.as_bytes()));
        assert_eq!(header.has_raw_data_file(), raw == "on");
        assert!(checked(&pair.image, Repair::None).is_clean());
        let image = pair.open();
        let mut model = vec![0; len(image.virtual_bytes())];
        model[4096..13 << 10].fill(3);
        assert!(read_all(&image) == model);
        work(&image, &mut model, 4096);
        run(image.close()).unwrap();
        let path = pair.save(folder.path());
        same_in_qemu(&path, &model, &format!("{size}, raw {raw}"));
    }
}

/// The header and the tables are those that qemu-img makes of the same options.
#[test]
fn a_new_image_is_laid_out_as_qemu_img_lays_it_out() {
    if !have("qemu-img") {
        return;
    }
    for content in KINDS {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.qcow2");
        let raw = if content == DataFileContent::Raw {
            "on"
        } else {
            "off"
        };
        let data = folder.path().join("disk.data");
        let options = format!("data_file={},data_file_raw={raw}", text(&data));
        create_in_qemu(&path, &options, "1M");
        let theirs = Pair::load(folder.path());
        let options = CreateOptions {
            virtual_bytes: 1 << 20,
            ..CreateOptions::default()
        };
        let ours = Pair::create_in(folder.path(), options, content);
        let [mine, their] = [&ours, &theirs].map(|pair| {
            let mut bytes = pair.image.bytes();
            bytes.resize(5 << 16, 0);
            bytes
        });
        let differs = (0..mine.len()).find(|at| mine[*at] != their[*at]);
        assert_eq!(differs, None, "{content:?}");
        assert!(ours.data.bytes() == theirs.data.bytes());
    }
}

#[test]
fn a_grown_disk_shows_zeroes_though_the_data_file_was_longer() {
    for content in KINDS {
        let options = CreateOptions {
            virtual_bytes: 5 * 4096 + 512,
            cluster_bits: 12,
            ..CreateOptions::default()
        };
        let pair = Pair::create(options, content);
        let image = pair.open();
        run(image.write(5 * 4096, vec![1; 512])).unwrap();
        assert_eq!(pair.data.port.len(), 5 * 4096 + 512);
        let more = pair.data.port.at(engine::device::Event::None);
        run(more.write(5 * 4096 + 512, vec![0xee; 20000])).unwrap();
        let virtual_bytes = 9 << 12;
        run(image.manage(Manage::grow(virtual_bytes))).unwrap();
        let mut model = vec![0; 9 << 12];
        model[5 * 4096..5 * 4096 + 512].fill(1);
        assert!(read_all(&image) == model, "{content:?}");
        run(image.write((7 << 12) + 512, vec![2; 512])).unwrap();
        model[(7 << 12) + 512..(7 << 12) + 1024].fill(2);
        assert!(read_all(&image) == model, "{content:?}");
        run(image.close()).unwrap();
        if content == DataFileContent::Raw {
            assert!(pair.data.bytes()[..model.len()] == model);
        }
        assert!(pair.data.port.len() >= 9 << 12);
        assert!(read_all(&pair.open()) == model);
    }
}

#[test]
fn what_a_data_file_cannot_have_is_refused() {
    let options = CreateOptions {
        virtual_bytes: 1 << 20,
        ..CreateOptions::default()
    };
    let pair = Pair::create(options.clone(), DataFileContent::Raw);
    let image = pair.open();
    let refused = |operation: Manage| run(image.manage(operation)).unwrap_err().to_string();
    let snapshot = Manage::SnapshotCreate(NewSnapshot::default());
    assert!(refused(snapshot).contains("no internal snapshots"));
    let version = Some(2);
    let downgrade = Manage::Amend(Amend {
        version,
        ..Amend::default()
    });
    assert!(refused(downgrade).contains("no external data files"));
    let backing = Manage::SetBacking(Some(BackingName {
        name: "below".into(),
        format: None,
    }));
    assert!(refused(backing).contains("nothing can lie beneath it"));
    assert!(refused(Manage::MakeEmpty).contains("cannot be emptied"));
    let compressed = run(image.write_compressed(0, vec![0; 65536]));
    assert_eq!(compressed.unwrap_err(), Refused::NoCompression.into());
    assert!(run(image.write_vm_state(0, vec![0; 512])).is_err());
    run(image.close()).unwrap();

    let alone = run(Qcow2::open(
        pair.image.port.clone(),
        None,
        &OpenOptions::default(),
    ));
    assert_eq!(alone.unwrap_err(), Refused::NoDataFile.into());
    let plain = Pair {
        image: Ram::empty(),
        data: Ram::empty(),
    };
    run(create(&plain.image.port, &options)).unwrap();
    let given = plain.try_open(&OpenOptions::default());
    assert!(given.unwrap_err().to_string().contains("can only be given"));
    let old = CreateOptions {
        version: 2,
        data_file: Some(NewDataFile {
            name: "disk.data".into(),
            content: DataFileContent::Clusters,
        }),
        ..options
    };
    assert!(run(create(&plain.image.port, &old)).is_err());
    let made = create_with_data_file(&plain.image.port, &plain.data.port, &old);
    assert!(run(made).unwrap_err().to_string().contains("version 2"));
}

#[test]
fn the_name_changes_and_the_raw_promise_can_be_withdrawn() {
    let options = CreateOptions {
        virtual_bytes: 1 << 20,
        ..CreateOptions::default()
    };
    let pair = Pair::create(options, DataFileContent::Raw);
    let image = pair.open();
    let name = Some("elsewhere.raw".to_owned());
    let raw = RawPromise::Keep;
    run(image.manage(Manage::SetDataFile(DataFileChange { name, raw }))).unwrap();
    let said = run(header::read(&pair.image.port)).unwrap();
    assert_eq!(said.data_file_name(), Some(&b"elsewhere.raw"[..]));
    assert!(said.has_raw_data_file());
    let change = DataFileChange {
        name: None,
        raw: RawPromise::Withdraw,
    };
    run(image.manage(Manage::SetDataFile(change))).unwrap();
    run(image.write_zeroes(0, 65536, Unmap::Allow)).unwrap();
    let status = run(image.status(0, 65536)).unwrap();
    assert_eq!(status.kind, StatusKind::Zero);
    run(image.close()).unwrap();
    let said = run(header::read(&pair.image.port)).unwrap();
    assert_eq!(said.data_file_name(), Some(&b"elsewhere.raw"[..]));
    assert!(!said.has_raw_data_file());
}

/// Puts a word into the first L2 table of an image.
fn put_entry(image: &Ram, index: u64, word: u64) {
    let header = run(header::read(&image.port)).unwrap();
    let at = image.port.at(engine::device::Event::None);
    let l1 = run(at.read(header.l1_offset.0, 8)).unwrap();
    let l2 = u64::from_be_bytes(l1.try_into().unwrap()) & 0x00ff_ffff_ffff_fe00;
    run(at.write(l2 + 8 * index, word.to_be_bytes().to_vec())).unwrap();
}

#[test]
fn check_judges_entries_as_qemu_img_does() {
    let copied = 1 << 63;
    let cases = [
        // What the entry says, the corruptions found, those left by a repair, whether it can be read.
        (copied | 0x10000, 0, 0, true),
        (0x10000, 1, 0, true),
        (0x10001, 1, 0, true),
        (1 << 62 | 0x10000, 1, 1, false),
        (copied | 0x10200, 1, 1, false),
        // QEMU's check does not look where the cluster is, and its reads fail.
        (copied | 0x30000, 1, 1, false),
    ];
    for (word, found, left, readable) in cases {
        let options = CreateOptions {
            virtual_bytes: 1 << 20,
            ..CreateOptions::default()
        };
        let folder = tempfile::tempdir().unwrap();
        let pair = Pair::create_in(folder.path(), options, DataFileContent::Clusters);
        let image = pair.open();
        run(image.write(0, vec![1; 128 << 10])).unwrap();
        run(image.close()).unwrap();
        put_entry(&pair.image, 1, word);
        let look = |repair| checked(&pair.image, repair);
        assert_eq!(look(Repair::None).found.corruptions, found, "{word:#x}");
        let read = run(pair.open().read(65536, 512));
        assert_eq!(read.is_ok(), readable, "{word:#x}");
        assert_eq!(look(Repair::All).remaining.corruptions, left, "{word:#x}");
        assert_eq!(look(Repair::None).found.corruptions, left, "{word:#x}");
        if have("qemu-img") && word != copied | 0x30000 {
            let path = pair.save(folder.path());
            let said = call("qemu-img", &["check", text(&path)]);
            assert_eq!(said.status.code(), Some(if left == 0 { 0 } else { 2 }));
        }
    }
}

/// An L1 table that claims the L2 table behind it: COPIED is always set on data in a data file, and never on
/// what has two references, so that there is no right value for a word of both. The repair said that it had
/// undone everything.
#[test]
fn a_repair_of_tables_that_overlap_does_not_claim_what_the_next_check_denies() {
    let options = CreateOptions {
        virtual_bytes: 1 << 20,
        cluster_bits: 12,
        ..CreateOptions::default()
    };
    let pair = Pair::create(options, DataFileContent::Clusters);
    let word = |at: u64| {
        let bytes = pair.image.bytes();
        u64::from_be_bytes(bytes[len(at)..len(at) + 8].try_into().unwrap())
    };
    let write = |offset| {
        let open = pair.open();
        run(open.write(offset, vec![7; 4096])).unwrap();
        run(open.close()).unwrap();
    };
    write(0);
    let l1 = word(40);
    let l2 = word(l1) & 0x00ff_ffff_ffff_fe00;
    // Its place in the data file is that of the cluster behind the L2 table in the image.
    write(l2 + 4096);
    let mut bytes = pair.image.bytes();
    bytes.resize(len(l2 + 2 * 4096), 0);
    let entries = u32::try_from((l2 + 2 * 4096 - l1) / 8).unwrap();
    bytes[36..40].copy_from_slice(&entries.to_be_bytes());
    let damaged = Ram::from_bytes(&bytes);
    let report = checked(&damaged, Repair::All);
    assert!(report.remaining.corruptions > 0, "{report:?}");
    assert_eq!(report.remaining, checked(&damaged, Repair::None).found);
}

/// The half of an entry that lies within the file was not looked at, and a repair that made the file longer
/// made it whole.
#[test]
fn an_l2_entry_that_the_file_ends_in_is_judged() {
    let options = CreateOptions {
        virtual_bytes: 1 << 20,
        cluster_bits: 14,
        extended_l2: true,
        ..CreateOptions::default()
    };
    let pair = Pair::create(options, DataFileContent::Clusters);
    let open = pair.open();
    run(open.write(0, vec![7; 4096])).unwrap();
    run(open.close()).unwrap();
    let mut bytes = pair.image.bytes();
    let word = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
    let l2 = len(word(len(word(40))) & 0x00ff_ffff_ffff_fe00);
    assert_eq!(l2 + (1 << 14), bytes.len(), "the L2 table comes last");
    bytes.truncate(l2 + 30 * 16 + 8);
    bytes[l2 + 30 * 16..].fill(0xff);
    let report = checked(&Ram::from_bytes(&bytes), Repair::None);
    assert_eq!(report.found.corruptions, 1, "{:?}", report.findings);
}

#[test]
fn an_emptied_overlay_gives_its_data_up() {
    let options = CreateOptions {
        virtual_bytes: 1 << 20,
        ..CreateOptions::default()
    };
    let pair = Pair::create(options, DataFileContent::Clusters);
    let image = pair.open();
    run(image.write(0, vec![1; 1 << 20])).unwrap();
    run(image.manage(Manage::MakeEmpty)).unwrap();
    assert!(read_all(&image) == vec![0; 1 << 20]);
    run(image.write(65536 + 512, vec![2; 512])).unwrap();
    let mut model = vec![0; 1 << 20];
    model[65536 + 512..65536 + 1024].fill(2);
    assert!(read_all(&image) == model);
    run(image.close()).unwrap();
    assert!(checked(&pair.image, Repair::None).is_clean());
}

#[test]
fn a_smaller_disk_has_a_shorter_data_file_and_preallocation_fills_it() {
    for content in KINDS {
        for mode in Preallocation::ALL {
            let options = CreateOptions {
                virtual_bytes: 1 << 20,
                cluster_bits: 12,
                preallocation: mode,
                ..CreateOptions::default()
            };
            let pair = Pair::create(options, content);
            let image = pair.open();
            assert_eq!(run(image.read(0, 1 << 20)).unwrap(), vec![0; 1 << 20]);
            run(image.write(0, vec![7; 1 << 20])).unwrap();
            let (small, large) = ((512 << 10) + 512, 2 << 20);
            run(image.manage(Manage::shrink(small))).unwrap();
            assert_eq!(pair.data.device.snapshot().len(), small);
            let resizing = Resizing::Grow(mode);
            let virtual_bytes = large;
            run(image.manage(Manage::Resize {
                virtual_bytes,
                resizing,
            }))
            .unwrap();
            let len = usize::try_from(large).unwrap();
            let mut expected = vec![7; usize::try_from(small).unwrap()];
            expected.resize(len, 0);
            assert!(run(image.read(0, len)).unwrap() == expected, "{content:?}");
            if content == DataFileContent::Raw {
                assert!(pair.data.bytes() == expected, "{mode:?}");
            }
            run(image.close()).unwrap();
            let report = checked(&pair.image, Repair::None);
            assert!(report.findings.is_empty(), "{content:?} {mode:?}");
        }
    }
}
