//! Commit, rebase and stream over open chains: the guest sees no difference, at any moment.

#![allow(clippy::unwrap_used, reason = "tests")]

mod kit;

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use engine::chain::{Commit, Overlay, Rebase, Store, commit, rebase, stream};
use engine::defect::Planted;
use engine::device::{
    Cause, Completion, Device, DeviceError, Op, PageImage, Port, RamDevice, Request,
};
use engine::image::{Access, Image, Unmap};
use engine::manage::BackingName;
use engine::qcow2::create::{Backing, BackingFormat, CreateOptions, create};
use engine::qcow2::{OpenOptions, Qcow2, header};

use kit::{Ram, have, must, run, text};

const SIZE: u64 = 1 << 20;

fn open(port: &Port, beneath: Option<&Rc<Qcow2>>, access: Access) -> Rc<Qcow2> {
    let options = OpenOptions {
        access,
        ..OpenOptions::default()
    };
    let beneath = beneath.map(|image| -> Rc<dyn Image> { Rc::<Qcow2>::clone(image) });
    Rc::new(run(Qcow2::open(port.clone(), beneath, &options)).unwrap())
}

fn read_all(image: &Qcow2) -> Vec<u8> {
    let len = usize::try_from(image.virtual_bytes()).unwrap();
    run(image.read(0, len)).unwrap()
}

fn named(path: &Path) -> BackingName {
    BackingName {
        name: text(path).into(),
        format: Some("qcow2".into()),
    }
}

const WHOLE: Commit = Commit {
    overlay: Overlay::Empty,
    planted: Planted::NONE,
};

/// Three images that qemu-img made, one over the other, of different sizes and cluster sizes.
struct Files {
    base: PathBuf,
    middle: PathBuf,
    top: PathBuf,
    /// What the top shows.
    shown: PathBuf,
}

impl Files {
    fn make(dir: &Path, clusters: [&str; 3], sizes: [&str; 3]) -> Self {
        let path = |name: &str| dir.join(name);
        let files = Self {
            base: path("base.qcow2"),
            middle: path("middle.qcow2"),
            top: path("top.qcow2"),
            shown: path("shown.raw"),
        };
        let mut below: Option<&Path> = None;
        for (index, file) in [&files.base, &files.middle, &files.top]
            .into_iter()
            .enumerate()
        {
            let cluster = format!("cluster_size={}", clusters[index]);
            let mut arguments = vec!["create", "-q", "-f", "qcow2", "-o", &cluster];
            if let Some(below) = below {
                arguments.extend(["-b", text(below), "-F", "qcow2"]);
            }
            arguments.extend([text(file), sizes[index]]);
            must("qemu-img", &arguments);
            below = Some(file);
        }
        let write = |file: &Path, commands: &[&str]| {
            let mut arguments = Vec::new();
            for command in commands {
                arguments.extend(["-c", command]);
            }
            arguments.push(text(file));
            must("qemu-io", &arguments);
        };
        write(&files.base, &["write -P 1 0 600k"]);
        write(
            &files.middle,
            &[
                "write -P 2 100k 50k",
                "write -z 200k 70k",
                "write -P 3 513 3k",
            ],
        );
        write(
            &files.top,
            &[
                "write -P 4 120k 3k",
                "write -z 300k 65k",
                "discard 400k 64k",
            ],
        );
        must(
            "qemu-img",
            &["convert", "-O", "raw", text(&files.top), text(&files.shown)],
        );
        files
    }
}

const SHAPES: [([&str; 3], [&str; 3]); 4] = [
    (["65536", "65536", "65536"], ["1M", "1M", "1M"]),
    (["512", "4096", "65536"], ["1M", "1M", "1M"]),
    (["65536", "4096", "1024"], ["700k", "1M", "1M"]),
    (["4096", "512", "4096"], ["1M", "650k", "900k"]),
];

fn must_show(file: &Path, shown: &Path) {
    must("qemu-img", &["check", "-q", text(file)]);
    must("qemu-img", &["compare", "-q", text(file), text(shown)]);
}

#[test]
fn a_committed_chain_shows_the_same_to_qemu() {
    if !have("qemu-img") {
        return;
    }
    for (clusters, sizes) in SHAPES {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::make(dir.path(), clusters, sizes);
        let rams = [&files.base, &files.middle, &files.top].map(|file| Ram::load(file));
        let base = open(&rams[0].port, None, Access::ReadOnly);
        let middle = open(&rams[1].port, Some(&base), Access::ReadWrite);
        let top = open(&rams[2].port, Some(&middle), Access::ReadWrite);
        let before = read_all(&top);
        let mut told = 0;
        run(commit(&*top, &*middle, WHOLE, &mut |progress| {
            told = progress.done_bytes;
        }))
        .unwrap();
        assert_eq!(told, top.virtual_bytes());
        assert_eq!(read_all(&top), before);
        assert_eq!(read_all(&middle)[..before.len()], before);
        run(top.close()).unwrap();
        run(middle.close()).unwrap();
        rams[1].save(&files.middle);
        rams[2].save(&files.top);
        must_show(&files.top, &files.shown);
        must_show(&files.middle, &files.shown);
    }
}

#[test]
fn a_streamed_or_rebased_image_shows_the_same_to_qemu() {
    if !have("qemu-img") {
        return;
    }
    for (clusters, sizes) in SHAPES {
        let compressed = Store::Compressed {
            cluster_bytes: clusters[2].parse().unwrap(),
        };
        for (store, onto_base, streamed) in [
            (Store::Plain, true, true),
            (Store::Plain, false, true),
            (compressed, true, true),
            (compressed, false, false),
            (Store::Plain, true, false),
            (Store::Plain, false, false),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let files = Files::make(dir.path(), clusters, sizes);
            let rams = [&files.base, &files.middle, &files.top].map(|file| Ram::load(file));
            let base = open(&rams[0].port, None, Access::ReadOnly);
            let middle = open(&rams[1].port, Some(&base), Access::ReadOnly);
            let top = open(&rams[2].port, Some(&middle), Access::ReadWrite);
            let before = read_all(&top);
            let how = Rebase {
                name: onto_base.then(|| named(&files.base)),
                store,
                planted: Planted::NONE,
            };
            let onto: Option<&dyn Image> = onto_base.then_some(&*base);
            let watch = &mut |_| {};
            if streamed {
                let mut between: Vec<&dyn Image> = vec![&*middle];
                let lowest: &dyn Image = &*base;
                between.extend((!onto_base).then_some(lowest));
                run(stream(&*top, &between, onto, &how, watch)).unwrap();
            } else {
                run(rebase(&*top, Some(&*middle), onto, &how, watch)).unwrap();
            }
            assert_eq!(read_all(&top), before);
            run(top.close()).unwrap();
            let again = open(&rams[2].port, onto_base.then_some(&base), Access::ReadOnly);
            assert_eq!(read_all(&again), before);
            rams[2].save(&files.top);
            std::fs::remove_file(&files.middle).unwrap();
            must_show(&files.top, &files.shown);
        }
    }
}

/// A disk that is one of several that lose power together, after a number of requests. It keeps what
/// it was told, and beside that what was durable at its last flush.
struct Failing {
    disk: RamDevice,
    durable: RefCell<PageImage>,
    left: Rc<Cell<u64>>,
}

impl Failing {
    fn new(image: PageImage, left: &Rc<Cell<u64>>) -> Rc<Self> {
        Rc::new(Self {
            disk: RamDevice::new(image.clone()),
            durable: RefCell::new(image),
            left: Rc::clone(left),
        })
    }
}

impl Device for Failing {
    fn submit(&self, request: Request) -> Completion {
        let reads = matches!(request.op, Op::Read { .. });
        if self.left.get() == 0 {
            let error = DeviceError::new(request.event, &request.op, Cause::PowerOff);
            return Completion::ready(Err(error));
        }
        if !reads {
            self.left.set(self.left.get() - 1);
        }
        if request.op == Op::Flush {
            self.durable.replace(self.disk.snapshot());
        }
        self.disk.submit(request)
    }

    fn len(&self) -> u64 {
        self.disk.len()
    }
}

/// A backing image with data, and an overlay with data, zeroes and holes over it.
fn chain() -> [PageImage; 2] {
    let options = CreateOptions {
        virtual_bytes: SIZE,
        cluster_bits: 12,
        ..CreateOptions::default()
    };
    let below = Ram::empty();
    run(create(&below.port, &options)).unwrap();
    let image = open(&below.port, None, Access::ReadWrite);
    run(image.write(0, vec![0x11; 96 << 10])).unwrap();
    run(image.close()).unwrap();
    let above = Ram::empty();
    let options = CreateOptions {
        virtual_bytes: SIZE + (64 << 10),
        backing: Some(Backing {
            name: "below".into(),
            format: BackingFormat::Qcow2,
        }),
        ..options
    };
    run(create(&above.port, &options)).unwrap();
    let image = open(&below.port, None, Access::ReadOnly);
    let image = open(&above.port, Some(&image), Access::ReadWrite);
    run(image.write(4096, vec![0x22; 20 << 10])).unwrap();
    run(image.write(SIZE - 4096, vec![0x33; 12 << 10])).unwrap();
    run(image.write_zeroes(64 << 10, 16 << 10, Unmap::Allow)).unwrap();
    run(image.close()).unwrap();
    [below, above].map(|ram| ram.device.snapshot())
}

fn shown(below: &PageImage, above: &PageImage) -> Vec<u8> {
    let [below, above] = [below, above].map(|image| Ram::new(image.clone()));
    let below = open(&below.port, None, Access::ReadOnly);
    read_all(&open(&above.port, Some(&below), Access::ReadOnly))
}

/// Commits with power for `requests` requests, and hands back both disks and whether that was enough.
fn interrupted(requests: u64, planted: Planted) -> ([Rc<Failing>; 2], bool) {
    let left = Rc::new(Cell::new(u64::MAX));
    let disks = chain().map(|image| Failing::new(image, &left));
    let ports = disks.clone().map(|disk| Port::new(disk));
    let below = open(&ports[0], None, Access::ReadWrite);
    let above = open(&ports[1], Some(&below), Access::ReadWrite);
    left.set(requests);
    let how = Commit { planted, ..WHOLE };
    let done = run(commit(&*above, &*below, how, &mut |_| {})).is_ok();
    (disks, done)
}

/// At every request: each disk as it stands, or as it was at its last flush, in every combination.
fn first_loss(planted: Planted) -> Option<u64> {
    let [below, above] = chain();
    let expected = shown(&below, &above);
    for requests in 0.. {
        let (disks, done) = interrupted(requests, planted);
        let states = disks.map(|disk| [disk.disk.snapshot(), disk.durable.borrow().clone()]);
        for below in &states[0] {
            for above in &states[1] {
                if shown(below, above) != expected {
                    return Some(requests);
                }
            }
        }
        if done {
            break;
        }
    }
    None
}

#[test]
fn a_commit_that_loses_power_anywhere_changes_nothing_that_the_guest_sees() {
    assert_eq!(first_loss(Planted::NONE), None);
}

/// At every request of a rebase to nothing: the overlay shows the same over the backing file that it names.
fn first_loss_in_rebase(planted: Planted) -> Option<u64> {
    let [below, above] = chain();
    let expected = shown(&below, &above);
    for requests in 0.. {
        let left = Rc::new(Cell::new(u64::MAX));
        let disk = Failing::new(above.clone(), &left);
        let below = open(&Ram::new(below.clone()).port, None, Access::ReadOnly);
        let overlay = open(&Port::new(disk.clone()), Some(&below), Access::ReadWrite);
        left.set(requests);
        let how = Rebase {
            name: None,
            store: Store::Plain,
            planted,
        };
        let done = run(rebase(&*overlay, Some(&*below), None, &how, &mut |_| {})).is_ok();
        for state in [disk.disk.snapshot(), disk.durable.borrow().clone()] {
            let ram = Ram::new(state);
            let named = run(header::read(&ram.port)).unwrap().backing_name.is_some();
            let image = open(&ram.port, named.then_some(&below), Access::ReadOnly);
            if read_all(&image) != expected {
                return Some(requests);
            }
        }
        if done {
            break;
        }
    }
    None
}

#[test]
fn a_rebase_that_loses_power_anywhere_changes_nothing_that_the_guest_sees() {
    assert_eq!(first_loss_in_rebase(Planted::NONE), None);
}

#[cfg(feature = "defects")]
#[test]
fn a_rebase_that_names_the_new_backing_file_too_early_is_noticed() {
    let planted = Planted::one(engine::defect::Defect::RebaseBeforeFlush);
    assert!(first_loss_in_rebase(planted).is_some());
}

#[cfg(feature = "defects")]
#[test]
fn a_commit_that_empties_the_overlay_too_early_is_noticed() {
    let planted = Planted::one(engine::defect::Defect::CommitBeforeFlush);
    assert!(first_loss(planted).is_some());
}
