//! Persistent dirty bitmaps, here and in QEMU: what one stores the other understands.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]
#![allow(
    clippy::single_range_in_vec_init,
    reason = "a list of ranges may have one"
)]

mod kit;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use engine::device::{FileDevice, PageImage, Port};
use engine::error::{Error, Refused, Unsupported};
use engine::image::{Access, Image, Unmap};
use engine::manage::{BitmapState, Manage};
use engine::qcow2::check::{CheckOptions, Repair, check};
use engine::qcow2::create::{Backing, BackingFormat, CreateOptions, create};
use engine::qcow2::header::Header;
use engine::qcow2::{OpenOptions, Qcow2, Standing};
use kit::{Ram, call, have, must, run, text};

const EXTENSION: [u8; 8] = [0x23, 0x85, 0x28, 0x75, 0, 0, 0, 24];

fn made(options: &CreateOptions) -> Ram {
    let ram = Ram::empty();
    run(create(&ram.port, options)).unwrap();
    ram
}

fn small_disk() -> CreateOptions {
    CreateOptions {
        virtual_bytes: 1 << 20,
        cluster_bits: 12,
        ..CreateOptions::default()
    }
}

fn open(port: &Port) -> Qcow2 {
    run(Qcow2::open(port.clone(), None, &OpenOptions::default())).unwrap()
}

fn open_read_only(port: &Port) -> Qcow2 {
    let options = OpenOptions {
        access: Access::ReadOnly,
        ..OpenOptions::default()
    };
    run(Qcow2::open(port.clone(), None, &options)).unwrap()
}

fn new_bitmap(name: &str, granularity_bytes: u64, state: BitmapState) -> Manage {
    Manage::BitmapCreate {
        name: name.into(),
        granularity_bytes,
        state,
    }
}

fn set_state(name: &str, state: BitmapState) -> Manage {
    Manage::BitmapSetState {
        name: name.into(),
        state,
    }
}

fn manage(image: &Qcow2, operation: Manage) {
    run(image.manage(operation)).unwrap();
}

fn write(image: &Qcow2, offset: u64, len: usize) {
    run(image.write(offset, vec![7; len])).unwrap();
}

fn close(image: &Qcow2) {
    run(image.close()).unwrap();
}

fn ranges(image: &Qcow2, name: &str) -> Vec<Range<u64>> {
    run(image.dirty_ranges(name)).unwrap()
}

fn kib(range: Range<u64>) -> Range<u64> {
    range.start << 10..range.end << 10
}

/// The image is sound: a check finds nothing, of ours and of QEMU's.
fn expect_sound(ram: &Ram) {
    let report = run(check(&ram.port, Repair::None, &CheckOptions::default())).unwrap();
    assert_eq!((report.errors_remaining(), report.remaining.leaks), (0, 0));
    if have("qemu-img") {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image.qcow2");
        ram.save(&path);
        must("qemu-img", &["check", text(&path)]);
    }
}

#[test]
fn writes_zeroes_and_discards_set_bits_and_a_clean_close_stores_them() {
    let ram = made(&small_disk());
    let image = open(&ram.port);
    manage(&image, new_bitmap("a", 4096, BitmapState::Enabled));
    manage(&image, new_bitmap("off", 512, BitmapState::Disabled));
    write(&image, 5 << 10, 512);
    run(image.write_zeroes(20 << 10, 4096, Unmap::Keep)).unwrap();
    run(image.discard(40 << 10, 8192)).unwrap();
    close(&image);
    expect_sound(&ram);
    let image = open(&ram.port);
    let dirty = [4..8, 20..24, 40..48].map(kib);
    assert_eq!(ranges(&image, "a"), dirty);
    assert_eq!(ranges(&image, "off"), []);
    let infos = run(image.bitmaps()).unwrap();
    assert_eq!(infos[0].dirty_bytes, Some(16 << 10));
    assert!(
        infos
            .iter()
            .all(|info| !info.in_use && info.standing == Standing::Clean)
    );
    assert!(infos[0].enabled && !infos[1].enabled);
}

#[test]
fn what_was_not_closed_is_inconsistent_and_can_only_be_removed() {
    let ram = made(&small_disk());
    let image = open(&ram.port);
    manage(&image, new_bitmap("a", 512, BitmapState::Enabled));
    manage(&image, new_bitmap("frozen", 512, BitmapState::Disabled));
    write(&image, 0, 512);
    run(image.flush()).unwrap();
    let crashed = Ram::from_bytes(&ram.bytes());
    let image = open(&crashed.port);
    let infos = run(image.bitmaps()).unwrap();
    assert_eq!(infos[0].standing, Standing::Inconsistent);
    assert_eq!(
        infos[1].standing,
        Standing::Clean,
        "nothing changes a disabled bitmap"
    );
    for operation in [
        set_state("a", BitmapState::Disabled),
        Manage::BitmapClear { name: "a".into() },
        Manage::BitmapMerge {
            target: "frozen".into(),
            sources: vec!["a".into()],
        },
        Manage::grow(2 << 20),
    ] {
        let refused = run(image.manage(operation));
        assert!(matches!(refused, Err(Error::Refused(Refused::Bitmap(_)))));
    }
    manage(&image, Manage::BitmapRemove { name: "a".into() });
    close(&image);
    expect_sound(&crashed);
    let image = open(&crashed.port);
    assert_eq!(run(image.bitmaps()).unwrap().len(), 1);
}

#[test]
fn operations_on_bitmaps_do_what_their_names_say() {
    let ram = made(&small_disk());
    let image = open(&ram.port);
    manage(&image, new_bitmap("a", 512, BitmapState::Enabled));
    manage(&image, new_bitmap("b", 64 << 10, BitmapState::Disabled));
    write(&image, 0, 512);
    manage(&image, set_state("a", BitmapState::Disabled));
    manage(&image, set_state("b", BitmapState::Enabled));
    write(&image, 256 << 10, 512);
    assert_eq!(ranges(&image, "a"), [0..512]);
    assert_eq!(ranges(&image, "b"), [kib(256..320)]);
    manage(
        &image,
        Manage::BitmapMerge {
            target: "b".into(),
            sources: vec!["a".into()],
        },
    );
    assert_eq!(ranges(&image, "b"), [kib(0..64), kib(256..320)]);
    manage(&image, Manage::BitmapClear { name: "b".into() });
    assert_eq!(ranges(&image, "b"), []);
    manage(&image, Manage::grow(2 << 20));
    assert_eq!(
        ranges(&image, "b"),
        [kib(1024..2048)],
        "what was added changed"
    );
    assert_eq!(ranges(&image, "a"), [0..512]);
    manage(&image, Manage::BitmapRemove { name: "a".into() });
    manage(&image, Manage::BitmapRemove { name: "b".into() });
    close(&image);
    expect_sound(&ram);
    let header = Header::decode(&ram.bytes(), 1 << 20).unwrap();
    assert_eq!(header.extension(0x2385_2875), None);
}

fn mark(name: &str, range: Range<u64>) -> Manage {
    Manage::BitmapMark {
        name: name.into(),
        ranges: vec![512..1024, range],
    }
}

#[test]
fn marked_ranges_are_in_the_file_when_that_is_answered() {
    let ram = made(&small_disk());
    let image = open(&ram.port);
    manage(&image, new_bitmap("a", 4096, BitmapState::Disabled));
    manage(&image, new_bitmap("gone", 4096, BitmapState::Enabled));
    manage(&image, mark("a", (64 << 10) - 512..(68 << 10) + 512));
    let refused = run(image.manage(mark("a", 512..(1 << 20) + 512)));
    assert!(matches!(
        refused,
        Err(Error::Refused(Refused::OutOfRange { .. }))
    ));
    write(&image, 0, 512);
    let left = Ram::from_bytes(&ram.bytes());
    close(&image);
    expect_sound(&ram);
    // What stands there when nobody closes it.
    let image = open(&left.port);
    assert_eq!(ranges(&image, "a"), [kib(0..4), kib(60..72)]);
    for name in ["gone", "none"] {
        let refused = run(image.manage(mark(name, 0..512)));
        assert!(matches!(refused, Err(Error::Refused(Refused::Bitmap(_)))));
    }
}

#[test]
fn an_extension_without_its_bit_is_dropped_with_its_clusters_leaked() {
    let ram = made(&small_disk());
    let image = open(&ram.port);
    manage(&image, new_bitmap("a", 512, BitmapState::Enabled));
    close(&image);
    let mut bytes = ram.bytes();
    bytes[88..96].fill(0);
    let ram = Ram::from_bytes(&bytes);
    let image = open(&ram.port);
    assert_eq!(run(image.bitmaps()).unwrap(), []);
    close(&image);
    let header = Header::decode(&ram.bytes(), 1 << 20).unwrap();
    assert_eq!(header.extension(0x2385_2875), None);
    let report = run(check(&ram.port, Repair::All, &CheckOptions::default())).unwrap();
    assert_eq!((report.found.corruptions, report.found.leaks), (0, 2));
    expect_sound(&ram);
}

#[test]
fn unknown_autoclear_bits_go_and_unknown_extensions_stay() {
    let ram = made(&small_disk());
    let mut bytes = ram.bytes();
    bytes[95] |= 1 << 7;
    let unknown = [0x12, 0x34, 0x56, 0x78, 0, 0, 0, 3, 1, 2, 3, 0];
    bytes[112..124].copy_from_slice(&unknown);
    let ram = Ram::from_bytes(&bytes);
    let image = open(&ram.port);
    manage(&image, new_bitmap("a", 512, BitmapState::Enabled));
    manage(&image, new_bitmap("b", 512, BitmapState::Enabled));
    write(&image, 0, 512);
    close(&image);
    let bytes = ram.bytes();
    assert_eq!(bytes[95], 1);
    // The extension of bitmaps goes before all others, so that it stands in sector 0.
    assert_eq!(bytes[112..120], EXTENSION);
    assert_eq!(bytes[144..156], unknown);
    expect_sound(&ram);
}

#[test]
fn a_backing_file_name_makes_room_for_the_extension() {
    for (name_len, cluster_bits) in [(7, 9), (350, 9), (600, 16), (380, 16), (1000, 16)] {
        let name = "x".repeat(name_len);
        let options = CreateOptions {
            cluster_bits,
            backing: Some(Backing {
                name: name.clone(),
                format: BackingFormat::Raw,
            }),
            ..small_disk()
        };
        let ram = made(&options);
        let below: Rc<dyn Image> = Rc::new(engine::raw::Raw::open(
            Ram::new(PageImage::default()).port,
            Access::ReadOnly,
        ));
        let open_over = || {
            let below = Some(Rc::clone(&below));
            run(Qcow2::open(
                ram.port.clone(),
                below,
                &OpenOptions::default(),
            ))
            .unwrap()
        };
        let image = open_over();
        let made = run(image.manage(new_bitmap("a", 4096, BitmapState::Enabled)));
        if name_len == 350 {
            assert!(matches!(made, Err(Error::Refused(Refused::Option(_)))));
        } else {
            made.unwrap();
            write(&image, 8192, 512);
        }
        close(&image);
        let header = Header::decode(&ram.bytes(), 1 << 30).unwrap();
        assert_eq!(header.backing_name.as_deref(), Some(name.as_bytes()));
        let image = open_over();
        if name_len != 350 {
            assert_eq!(ranges(&image, "a"), [8192..12288]);
        }
        let report = run(check(&ram.port, Repair::None, &CheckOptions::default())).unwrap();
        assert_eq!((report.errors_remaining(), report.remaining.leaks), (0, 0));
    }
}

#[test]
fn what_is_not_understood_is_kept_or_keeps_the_image_from_being_written() {
    let ram = made(&small_disk());
    let image = open(&ram.port);
    manage(&image, new_bitmap("known", 512, BitmapState::Disabled));
    manage(&image, new_bitmap("foreign", 512, BitmapState::Disabled));
    close(&image);
    let bytes = ram.bytes();
    let directory = bytes
        .windows(8)
        .position(|bytes| bytes == EXTENSION)
        .unwrap()
        + 24;
    let directory = u64::from_be_bytes(bytes[directory..directory + 8].try_into().unwrap());
    let second = usize::try_from(directory).unwrap() + 32;
    // Another kind of bitmap.
    let mut foreign = bytes.clone();
    foreign[second + 16] = 2;
    let ram = Ram::from_bytes(&foreign);
    let image = open(&ram.port);
    let infos = run(image.bitmaps()).unwrap();
    assert_eq!(infos[1].standing, Standing::Foreign);
    manage(&image, set_state("known", BitmapState::Enabled));
    let refused = run(image.manage(Manage::BitmapClear {
        name: "foreign".into(),
    }));
    assert!(matches!(refused, Err(Error::Refused(Refused::Bitmap(_)))));
    write(&image, 0, 512);
    close(&image);
    assert_eq!(run(open(&ram.port).bitmaps()).unwrap()[1], infos[1]);
    // The same, and it says that guest writes have to be noted in it.
    foreign[second + 15] |= 2;
    let ram = Ram::from_bytes(&foreign);
    let refused = run(Qcow2::open(ram.port.clone(), None, &OpenOptions::default()));
    let unsupported =
        Unsupported::ReadOnlyFeature("an image with an active bitmap of unknown kind");
    assert_eq!(refused.err(), Some(Error::Unsupported(unsupported)));
    assert_eq!(run(open_read_only(&ram.port).bitmaps()).unwrap().len(), 2);
}

fn file(path: &Path) -> Port {
    Port::new(Rc::new(FileDevice::open_read_write(path).unwrap()))
}

/// The dirty ranges of a bitmap as QEMU exports them.
fn exported(folder: &Path, image: &Path, name: &str) -> Vec<Range<u64>> {
    let socket: PathBuf = folder.join(format!("nbd-{name}-{}", image.metadata().unwrap().len()));
    // The server may still be there when the next program locks the file.
    let source = format!(
        "driver=qcow2,file.driver=file,file.locking=off,file.filename={}",
        text(image)
    );
    let arguments = [
        "-r",
        "--fork",
        "--image-opts",
        "-B",
        name,
        "-k",
        text(&socket),
        &source,
    ];
    must("qemu-nbd", &arguments);
    let options = format!(
        "driver=nbd,server.type=unix,server.path={},x-dirty-bitmap=qemu:dirty-bitmap:{name}",
        text(&socket)
    );
    let map = must(
        "qemu-img",
        &["map", "--output=json", "--image-opts", &options],
    );
    let entries: serde_json::Value = serde_json::from_str(&map).unwrap();
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for entry in entries.as_array().unwrap() {
        // What is dirty is told as if it held no data.
        if !entry["data"].as_bool().unwrap() {
            let start = entry["start"].as_u64().unwrap();
            let end = start + entry["length"].as_u64().unwrap();
            match ranges.last_mut() {
                Some(last) if last.end == start => last.end = end,
                Some(_) | None => ranges.push(start..end),
            }
        }
    }
    ranges
}

#[test]
fn qemu_exports_the_dirty_ranges_that_are_stored_here() {
    if !have("qemu-img") || !have("qemu-nbd") {
        return;
    }
    for (cluster_bits, granularity) in [(9, 512), (12, 4096), (16, 65536), (16, 512), (21, 512)] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image.qcow2");
        let port = Port::new(Rc::new(FileDevice::create_new(&path).unwrap()));
        let options = CreateOptions {
            virtual_bytes: 16 << 20,
            cluster_bits,
            ..CreateOptions::default()
        };
        run(create(&port, &options)).unwrap();
        let image = open(&port);
        manage(
            &image,
            new_bitmap("part", granularity, BitmapState::Enabled),
        );
        manage(&image, new_bitmap("all", granularity, BitmapState::Enabled));
        write(&image, 3 << 19, 70_144);
        write(&image, (16 << 20) - 512, 512);
        manage(&image, set_state("part", BitmapState::Disabled));
        run(image.write_zeroes(0, 16 << 20, Unmap::Allow)).unwrap();
        let expected = [ranges(&image, "part"), ranges(&image, "all")];
        assert_eq!(expected[1], [0..16 << 20]);
        close(&image);
        drop((image, port));
        must("qemu-img", &["check", text(&path)]);
        for (name, expected) in ["part", "all"].iter().zip(&expected) {
            assert_eq!(&exported(folder.path(), &path, name), expected, "{name}");
        }
        let info = must("qemu-img", &["info", "--output=json", text(&path)]);
        let info: serde_json::Value = serde_json::from_str(&info).unwrap();
        let bitmaps = &info["format-specific"]["data"]["bitmaps"];
        assert_eq!(bitmaps[0]["granularity"].as_u64(), Some(granularity));
        assert_eq!(bitmaps[0]["flags"], serde_json::json!([]));
        assert_eq!(bitmaps[1]["flags"], serde_json::json!(["auto"]));
    }
}

#[test]
fn bitmaps_of_qemu_are_read_kept_up_and_given_back() {
    if !have("qemu-img") || !have("qemu-io") || !have("qemu-nbd") {
        return;
    }
    for (cluster_size, granularity) in [("512", "512"), ("4k", "4k"), ("64k", "64k"), ("2M", "512")]
    {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image.qcow2");
        let cluster = format!("cluster_size={cluster_size}");
        must(
            "qemu-img",
            &["create", "-f", "qcow2", "-o", &cluster, text(&path), "8M"],
        );
        for name in ["a", "frozen"] {
            must(
                "qemu-img",
                &["bitmap", "--add", "-g", granularity, text(&path), name],
            );
        }
        must(
            "qemu-io",
            &["-c", "write 1M 66k", "-c", "discard 3M 64k", text(&path)],
        );
        must("qemu-img", &["bitmap", "--disable", text(&path), "frozen"]);
        must("qemu-io", &["-c", "write 5M 1k", text(&path)]);
        let before = ["a", "frozen"].map(|name| exported(folder.path(), &path, name));
        let port = file(&path);
        let image = open(&port);
        assert_eq!(ranges(&image, "a"), before[0]);
        assert_eq!(ranges(&image, "frozen"), before[1]);
        write(&image, 7 << 20, 512);
        manage(&image, new_bitmap("ours", 4096, BitmapState::Enabled));
        let merge = Manage::BitmapMerge {
            target: "ours".into(),
            sources: vec!["a".into()],
        };
        manage(&image, merge);
        let after = ["a", "frozen", "ours"].map(|name| ranges(&image, name));
        close(&image);
        drop((image, port));
        must("qemu-img", &["check", text(&path)]);
        for (name, after) in ["a", "frozen", "ours"].iter().zip(&after) {
            assert_eq!(&exported(folder.path(), &path, name), after, "{name}");
        }
        // And QEMU goes on with them.
        must("qemu-io", &["-c", "write 0 512", text(&path)]);
        must("qemu-img", &["bitmap", "--clear", text(&path), "frozen"]);
        must("qemu-img", &["bitmap", "--remove", text(&path), "a"]);
        must("qemu-img", &["resize", text(&path), "9M"]);
        must("qemu-img", &["check", text(&path)]);
        let port = file(&path);
        let image = open(&port);
        assert_eq!(ranges(&image, "frozen"), []);
        assert!(ranges(&image, "ours")[0].start == 0);
        manage(&image, Manage::grow(12 << 20));
        close(&image);
        drop((image, port));
        must("qemu-img", &["check", text(&path)]);
    }
}

#[test]
fn qemu_takes_a_crashed_bitmap_for_inconsistent_and_removes_it() {
    if !have("qemu-img") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.qcow2");
    let ram = made(&small_disk());
    let image = open(&ram.port);
    manage(&image, new_bitmap("a", 512, BitmapState::Enabled));
    write(&image, 0, 512);
    run(image.flush()).unwrap();
    ram.save(&path);
    let info = must("qemu-img", &["info", text(&path)]);
    assert!(info.contains("in-use"), "{info}");
    assert!(
        !call("qemu-img", &["bitmap", "--clear", text(&path), "a"])
            .status
            .success()
    );
    must("qemu-img", &["bitmap", "--remove", text(&path), "a"]);
    must("qemu-img", &["check", text(&path)]);
}
