//! Extended L2 entries, here and in QEMU: what one writes the other reads, subcluster by subcluster, and
//! both find the same wrong with a bitmap that contradicts itself.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]

mod kit;

use std::path::Path;
use std::rc::Rc;

use engine::device::{Event, FileDevice, Port};
use engine::image::{Access, Image, Unmap};
use engine::qcow2::check::{CheckOptions, Repair, check};
use engine::qcow2::create::{Backing, BackingFormat, CreateOptions, create};
use engine::qcow2::{LazyRefcounts, OpenOptions, Qcow2};
use engine::raw::Raw;
use kit::{call, create_in_qemu, have, must, run, same_in_qemu, shows_in_qemu, text};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

const DISK_BYTES: u64 = 1 << 20;

/// Changes the two words of an L2 entry.
type Change = fn(u64, u64) -> (u64, u64);

/// What a guest does.
#[derive(Clone, Debug)]
enum Step {
    Write(u64, u64, u8),
    Zero(u64, u64, Unmap),
    Discard(u64, u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let at = 0u64..DISK_BYTES / 512 - 80;
    let len = prop_oneof![1u64..8, 1u64..80];
    let step = prop_oneof![
        4 => (at.clone(), len.clone(), 1u8..255).prop_map(|(at, len, fill)| Step::Write(at, len, fill)),
        3 => (at.clone(), len.clone(), any::<bool>()).prop_map(|(at, len, unmap)| {
            Step::Zero(at, len, if unmap { Unmap::Allow } else { Unmap::Keep })
        }),
        1 => (at, len).prop_map(|(at, len)| Step::Discard(at / 64 * 64, len.next_multiple_of(64))),
    ];
    prop::collection::vec(step, 1..24)
}

fn backing_bytes() -> Vec<u8> {
    let mut bytes = vec![0xb5; usize::try_from(DISK_BYTES).unwrap()];
    bytes.truncate(usize::try_from(DISK_BYTES * 3 / 4).unwrap());
    bytes
}

fn port(path: &Path, access: Access) -> Port {
    let file = match access {
        Access::ReadOnly => FileDevice::open_read_only(path),
        Access::ReadWrite => FileDevice::open_read_write(path),
    };
    Port::new(Rc::new(file.unwrap()))
}

fn raw(path: &Path) -> Rc<dyn Image> {
    Rc::new(Raw::open(port(path, Access::ReadOnly), Access::ReadOnly))
}

fn open(path: &Path, backing: Option<&Path>, access: Access) -> Qcow2 {
    let backing = backing.map(raw);
    let options = OpenOptions {
        access,
        ..OpenOptions::default()
    };
    let port = port(path, access);
    run(Qcow2::open(port, backing, &options)).unwrap()
}

/// Does the steps on the image and on a model of its disk.
fn work(image: &Qcow2, steps: &[Step], model: &mut [u8]) {
    let span = |at: u64, len: u64| {
        usize::try_from(at * 512).unwrap()..usize::try_from((at + len) * 512).unwrap()
    };
    for step in steps {
        match *step {
            Step::Write(at, len, fill) => {
                let range = span(at, len);
                run(image.write(at * 512, vec![fill; range.len()])).unwrap();
                model[range].fill(fill);
            }
            Step::Zero(at, len, unmap) => {
                run(image.write_zeroes(at * 512, len * 512, unmap)).unwrap();
                model[span(at, len)].fill(0);
            }
            Step::Discard(at, len) => {
                // What is left of it is the image's choice: it is read back.
                run(image.discard(at * 512, len * 512)).unwrap();
                let range = span(at, len);
                let shown = run(image.read(at * 512, range.len())).unwrap();
                for (shown, model) in shown.iter().zip(&mut model[range]) {
                    assert!(
                        *shown == 0 || shown == model,
                        "a discard shows old bytes or zeroes"
                    );
                    *model = *shown;
                }
            }
        }
    }
}

#[test]
fn qemu_reads_what_we_wrote_and_finds_it_clean() {
    if !have("qemu-img") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (ours, below) = (path("ours.qcow2"), path("below.raw"));
    std::fs::write(&below, backing_bytes()).unwrap();
    let strategy = (14u32..=17, any::<bool>(), any::<bool>(), steps());
    let mut runner = TestRunner::new(Config::with_cases(40));
    runner
        .run(&strategy, |(cluster_bits, over, lazy, steps)| {
            let _ = std::fs::remove_file(&ours);
            let port = Port::new(Rc::new(FileDevice::create_new(&ours).unwrap()));
            let options = CreateOptions {
                virtual_bytes: DISK_BYTES,
                cluster_bits,
                extended_l2: true,
                backing: over.then(|| Backing {
                    name: text(&below).into(),
                    format: BackingFormat::Raw,
                }),
                ..CreateOptions::default()
            };
            run(create(&port, &options)).unwrap();
            let beneath: Option<Rc<dyn Image>> = over.then(|| raw(&below));
            let open_options = OpenOptions {
                lazy_refcounts: Some(if lazy {
                    LazyRefcounts::On
                } else {
                    LazyRefcounts::Off
                }),
                ..OpenOptions::default()
            };
            let image = run(Qcow2::open(port, beneath, &open_options)).unwrap();
            let mut model = if over { backing_bytes() } else { Vec::new() };
            model.resize(usize::try_from(DISK_BYTES).unwrap(), 0);
            work(&image, &steps, &mut model);
            run(image.close()).unwrap();
            drop(image);
            same_in_qemu(&ours, &model, &format!("{steps:?}"));
            Ok(())
        })
        .unwrap();
}

#[test]
fn we_read_and_write_on_what_qemu_wrote() {
    if !have("qemu-img") || !have("qemu-io") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (theirs, below) = (path("theirs.qcow2"), path("below.raw"));
    std::fs::write(&below, backing_bytes()).unwrap();
    let strategy = (14u32..=17, any::<bool>(), steps(), steps());
    let mut runner = TestRunner::new(Config::with_cases(30));
    runner
        .run(&strategy, |(cluster_bits, over, before, after)| {
            let _ = std::fs::remove_file(&theirs);
            let size = format!("extended_l2=on,cluster_size={}", 1 << cluster_bits);
            let disk = DISK_BYTES.to_string();
            let mut arguments = vec!["create", "-q", "-f", "qcow2", "-o", &size];
            if over {
                arguments.extend(["-b", text(&below), "-F", "raw"]);
            }
            arguments.extend([text(&theirs), &disk]);
            must("qemu-img", &arguments);
            must("qemu-io", &commands(&theirs, &before));
            let image = open(&theirs, over.then_some(&*below), Access::ReadWrite);
            let len = usize::try_from(DISK_BYTES).unwrap();
            let mut model = run(image.read(0, len)).unwrap();
            shows_in_qemu(&theirs, &model, &format!("{before:?}"));
            work(&image, &after, &mut model);
            run(image.close()).unwrap();
            drop(image);
            same_in_qemu(&theirs, &model, &format!("{before:?} {after:?}"));
            Ok(())
        })
        .unwrap();
}

fn commands(image: &Path, steps: &[Step]) -> Vec<&'static str> {
    let mut arguments = Vec::new();
    for step in steps {
        let command = match *step {
            Step::Write(at, len, fill) => format!("write -P {fill} {} {}", at * 512, len * 512),
            Step::Zero(at, len, Unmap::Keep) => format!("write -z {} {}", at * 512, len * 512),
            Step::Zero(at, len, Unmap::Allow) => format!("write -zu {} {}", at * 512, len * 512),
            Step::Discard(at, len) => format!("discard {} {}", at * 512, len * 512),
        };
        arguments.extend(["-c", &*command.leak()]);
    }
    arguments.push(text(image).to_owned().leak());
    arguments
}

/// An image of QEMU's with one subcluster written in guest cluster 0 and zeroes in cluster 2, whose L2
/// entry `index` is changed.
fn poked(path: &Path, index: u64, change: Change) -> Port {
    let _ = std::fs::remove_file(path);
    let options = "extended_l2=on,cluster_size=16k";
    create_in_qemu(path, options, "1M");
    must(
        "qemu-io",
        &[
            "-c",
            "write -P 5 0 512",
            "-c",
            "write -z 32k 16k",
            text(path),
        ],
    );
    let port = port(path, Access::ReadWrite);
    let at = port.at(Event::None);
    let word = |bytes: &[u8]| u64::from_be_bytes(bytes[..8].try_into().unwrap());
    let l1 = word(&run(at.read(40, 512)).unwrap());
    let l2 = word(&run(at.read(l1, 512)).unwrap()) & 0x00ff_ffff_ffff_fe00;
    let mut table = run(at.read(l2, 512)).unwrap();
    let here = usize::try_from(index * 16).unwrap();
    let (entry, bitmap) = change(word(&table[here..]), word(&table[here + 8..]));
    table[here..here + 8].copy_from_slice(&entry.to_be_bytes());
    table[here + 8..here + 16].copy_from_slice(&bitmap.to_be_bytes());
    run(at.write(l2, table)).unwrap();
    // Two whole clusters from the first data cluster on, so that nothing lies behind the end.
    run(at.set_len(l2 + 3 * 16384)).unwrap();
    port
}

#[test]
fn check_counts_what_qemu_counts_in_wrong_bitmaps() {
    if !have("qemu-img") || !have("qemu-io") {
        return;
    }
    let cases: [(u64, Change, u64); 8] = [
        (0, |word, bitmap| (word, bitmap | 1 << 32), 1),
        (1, |_, _| (0, 1), 1),
        (0, |word, bitmap| (word | 1, bitmap), 0),
        (0, |word, bitmap| (word | 512, bitmap), 2),
        (0, |word, _| (word | 512, 2 << 32), 2),
        (0, |word, _| (word | 512, 0), 2),
        (2, |word, bitmap| (word, bitmap | 1), 1),
        (1, |_, _| (0, 7 << 32), 0),
    ];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("poked.qcow2");
    for (number, (index, change, corruptions)) in cases.into_iter().enumerate() {
        let port = poked(&path, index, change);
        let report = run(check(&port, Repair::None, &CheckOptions::default())).unwrap();
        assert_eq!(report.found.corruptions, corruptions, "case {number}");
        drop(port);
        let said = call("qemu-img", &["check", "--output=json", text(&path)]);
        let said = String::from_utf8(said.stdout).unwrap();
        let theirs = format!("\"corruptions\": {corruptions},");
        assert!(
            said.contains(&theirs) || (corruptions == 0 && !said.contains("\"corruptions\"")),
            "case {number}: {said}"
        );
        let image = open(&path, None, Access::ReadOnly);
        let read = run(image.read(index * 16384, 16384));
        let legible = corruptions == 0;
        assert_eq!(read.is_ok(), legible, "case {number}: {read:?}");
        if let Err(error) = read {
            let text = error.to_string();
            assert!(text.contains("L2 table at offset"), "{text}");
        }
    }
}

#[test]
fn repair_drops_an_unaligned_cluster_that_shows_nothing() {
    if !have("qemu-img") || !have("qemu-io") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("poked.qcow2");
    let changes: [Change; 2] = [|word, _| (word | 512, 2 << 32), |word, _| (word | 512, 0)];
    for change in changes {
        let port = poked(&path, 0, change);
        let report = run(check(&port, Repair::All, &CheckOptions::default())).unwrap();
        assert!(report.is_clean(), "{report:?}");
        drop(port);
        let said = must("qemu-img", &["check", text(&path)]);
        assert!(said.contains("No errors"), "{said}");
    }
}
