//! Images with internal snapshots move between versions 2 and 3, and no snapshot shows a difference.

#![allow(clippy::unwrap_used, reason = "tests")]

mod kit;

use std::path::Path;
use std::rc::Rc;

use engine::device::{FileDevice, Port};
use engine::error::{Error, Refused};
use engine::image::{Access, Image};
use engine::manage::{Amend, Manage, NewSnapshot};
use engine::qcow2::create::{CreateOptions, create};
use engine::qcow2::{OpenOptions, Qcow2, header};
use engine::raw::Raw;

use kit::{Ram, have, must, run, text};

fn version(version: u32) -> Manage {
    Manage::Amend(Amend {
        version: Some(version),
        ..Amend::default()
    })
}

fn open(file: &Path, backing: Option<&Path>) -> Qcow2 {
    let beneath = backing.map(|path| -> Rc<dyn Image> {
        let file = FileDevice::open_read_only(path).unwrap();
        Rc::new(Raw::open(Port::new(Rc::new(file)), Access::ReadOnly))
    });
    let file = Port::new(Rc::new(FileDevice::open_read_write(file).unwrap()));
    run(Qcow2::open(file, beneath, &OpenOptions::default())).unwrap()
}

/// What qemu-img reads of the disk and of each snapshot.
fn contents(image: &Path, folder: &Path) -> Vec<Vec<u8>> {
    let raw = folder.join("raw");
    let mut contents = Vec::new();
    for options in [&[][..], &["-l", "one"], &["-l", "two"], &["-l", "three"]] {
        let mut words = vec!["convert", "-f", "qcow2", "-O", "raw"];
        words.extend(options);
        words.extend([text(image), text(&raw)]);
        must("qemu-img", &words);
        contents.push(std::fs::read(&raw).unwrap());
    }
    contents
}

/// Zeroes in tables that the disk and snapshots share, that only snapshots share, and that one has alone.
fn worked_on(image: &Path) {
    let io = |commands: &[&str]| {
        let mut words = vec!["-f", "qcow2"];
        words.extend(commands.iter().flat_map(|command| ["-c", command]));
        words.push(text(image));
        must("qemu-io", &words);
    };
    let snapshot = |name| must("qemu-img", &["snapshot", "-c", name, text(image)]);
    io(&[
        "write -P 1 0 200k",
        "write -z 64k 64k",
        "write -z -u 1M 300k",
    ]);
    snapshot("one");
    snapshot("two");
    io(&["write -P 2 64k 8k", "write -z 0 16k", "write -P 3 2M 64k"]);
    snapshot("three");
    io(&["write -P 4 0 64k", "write -z 2M 64k"]);
}

fn versions_of_an_image(backing: Option<&str>, cluster_size: &str) {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image.qcow2");
    let beneath = backing.map(|name| folder.path().join(name));
    let options = format!("cluster_size={cluster_size}");
    let mut words = vec!["create", "-q", "-f", "qcow2", "-o", &options];
    if let Some(beneath) = &beneath {
        std::fs::write(beneath, vec![0xbb; 3 << 20]).unwrap();
        words.extend(["-b", text(beneath), "-F", "raw"]);
    }
    words.extend([text(&image), "3M"]);
    must("qemu-img", &words);
    worked_on(&image);
    let before = contents(&image, folder.path());
    for to in [2, 3, 2] {
        let open = open(&image, beneath.as_deref());
        run(open.manage(version(to))).unwrap();
        run(open.close()).unwrap();
        drop(open);
        let info = must("qemu-img", &["info", text(&image)]);
        let compat = if to == 2 {
            "compat: 0.10"
        } else {
            "compat: 1.1"
        };
        assert!(info.contains(compat), "{info}");
        must("qemu-img", &["check", text(&image)]);
        assert!(contents(&image, folder.path()) == before);
    }
    must("qemu-img", &["snapshot", "-d", "one", text(&image)]);
    must("qemu-img", &["snapshot", "-d", "two", text(&image)]);
    must("qemu-img", &["snapshot", "-a", "three", text(&image)]);
    must("qemu-img", &["check", text(&image)]);
}

#[test]
fn no_snapshot_over_a_backing_file_shows_another_version() {
    if have("qemu-img") && have("qemu-io") {
        versions_of_an_image(Some("beneath.raw"), "64k");
        versions_of_an_image(Some("beneath.raw"), "1k");
    }
}

#[test]
fn no_snapshot_over_nothing_shows_another_version() {
    if have("qemu-img") && have("qemu-io") {
        versions_of_an_image(None, "4k");
    }
}

fn snapshot(image: &Qcow2, name: &str) {
    let name = name.into();
    let new = NewSnapshot {
        name,
        ..NewSnapshot::default()
    };
    run(image.manage(Manage::SnapshotCreate(new))).unwrap();
}

fn new_image(version: u32) -> (Ram, Qcow2) {
    let ram = Ram::empty();
    let options = CreateOptions {
        virtual_bytes: 1 << 20,
        version,
        ..CreateOptions::default()
    };
    run(create(&ram.port, &options)).unwrap();
    let open = reopen(&ram);
    (ram, open)
}

fn reopen(ram: &Ram) -> Qcow2 {
    run(Qcow2::open(ram.port.clone(), None, &OpenOptions::default())).unwrap()
}

#[test]
fn a_snapshot_that_says_nothing_of_its_disk_says_it_in_version_3() {
    let (ram, image) = new_image(2);
    snapshot(&image, "short");
    run(image.close()).unwrap();
    let mut bytes = ram.bytes();
    let table = run(header::read(&ram.port)).unwrap().snapshots_offset.0;
    let table = usize::try_from(table).unwrap();
    // The same entry without its 24 bytes of extra data.
    bytes[table + 36..table + 40].fill(0);
    bytes.copy_within(table + 64..table + 70, table + 40);
    let ram = Ram::from_bytes(&bytes);
    let image = reopen(&ram);
    run(image.manage(version(3))).unwrap();
    run(image.close()).unwrap();
    let table = run(header::read(&ram.port)).unwrap().snapshots_offset.0;
    let table = usize::try_from(table).unwrap();
    let bytes = ram.bytes();
    assert_eq!(bytes[table + 36..table + 40], 24u32.to_be_bytes());
    assert_eq!(bytes[table + 48..table + 56], (1u64 << 20).to_be_bytes());
    let listed = run(reopen(&ram).snapshots());
    assert_eq!(listed[0].name, "short");
}

#[test]
fn a_snapshot_of_another_size_keeps_an_image_in_version_3() {
    let (ram, image) = new_image(3);
    snapshot(&image, "small");
    let virtual_bytes = 2 << 20;
    run(image.manage(Manage::grow(virtual_bytes))).unwrap();
    let refused = run(image.manage(version(2))).unwrap_err();
    assert!(matches!(refused, Error::Refused(Refused::Option(_))));
    run(image.close()).unwrap();
    assert_eq!(run(header::read(&ram.port)).unwrap().version, 3);
}
