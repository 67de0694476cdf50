//! Guest data, here and in QEMU: what one writes the other reads, over all cluster sizes and refcount
//! widths.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]

mod kit;

use std::rc::Rc;

use engine::device::{FileDevice, Port};
use engine::image::{Image, Unmap};
use engine::manage::Manage;
use engine::qcow2::create::{CreateOptions, create};
use engine::qcow2::{LazyRefcounts, OpenOptions, Qcow2};
use kit::{Ram, call, have, must, run, same_in_qemu, text};

const CLUSTER_BITS: [u32; 5] = [9, 10, 12, 16, 21];

/// A disk and what it should hold.
struct Disk {
    image: Qcow2,
    model: Vec<u8>,
}

impl Disk {
    fn new(port: &Port, create_options: &CreateOptions, lazy: LazyRefcounts) -> Self {
        run(create(port, create_options)).unwrap();
        let options = OpenOptions {
            lazy_refcounts: Some(lazy),
            ..OpenOptions::default()
        };
        let image = run(Qcow2::open(port.clone(), None, &options)).unwrap();
        let model = vec![0; usize::try_from(create_options.virtual_bytes).unwrap()];
        Self { image, model }
    }

    /// Writes, zeroes, discards and grows, over the seams of clusters and tables.
    fn work(&mut self, cluster: u64) {
        let len = u64::try_from(self.model.len()).unwrap();
        let last = len - 512;
        for (at, sectors, fill) in [
            (0, 1, 1),
            (cluster - 512, 2, 2),
            (3 * cluster, 2 * cluster / 512, 3),
            (cluster * cluster / 8 - 512, 2, 4),
            (last, 1, 5),
            (7 * cluster, 4 * cluster / 512, 6),
        ] {
            let at = at.min(last) / 512 * 512;
            let sectors = sectors.min((len - at) / 512);
            let range = usize::try_from(at).unwrap()..usize::try_from(at + sectors * 512).unwrap();
            run(self.image.write(at, vec![fill; range.len()])).unwrap();
            self.model[range].fill(fill);
        }
        run(self.image.write_zeroes(3 * cluster, cluster, Unmap::Keep)).unwrap();
        run(self.image.write_zeroes(7 * cluster, cluster, Unmap::Allow)).unwrap();
        run(self.image.flush()).unwrap();
        run(self.image.discard(8 * cluster, cluster)).unwrap();
        run(self.image.flush()).unwrap();
        run(self.image.write(8 * cluster + 512, vec![7; 512])).unwrap();
        let at = |offset: u64| usize::try_from(offset).unwrap();
        self.model[at(3 * cluster)..at(4 * cluster)].fill(0);
        self.model[at(7 * cluster)..at(9 * cluster)].fill(0);
        self.model[at(8 * cluster) + 512..at(8 * cluster) + 1024].fill(7);
        let grown = len + 5 * cluster;
        run(self.image.manage(Manage::grow(grown))).unwrap();
        self.model.resize(at(grown), 0);
        run(self.image.write(grown - 512, vec![8; 512])).unwrap();
        self.model[at(grown - 512)..].fill(8);
    }
}

#[test]
fn qemu_img_finds_our_images_clean_and_reads_the_same() {
    if !have("qemu-img") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let ours = folder.path().join("ours.qcow2");
    for cluster_bits in CLUSTER_BITS {
        for refcount_order in 0..=6 {
            for version in [2, 3] {
                if version == 2 && refcount_order != 4 {
                    continue;
                }
                let _ = std::fs::remove_file(&ours);
                let file = Rc::new(FileDevice::create_new(&ours).unwrap());
                let port = Port::new(file);
                let cluster = 1 << cluster_bits;
                let options = CreateOptions {
                    virtual_bytes: (12 * cluster)
                        .max(cluster * cluster / 8 + cluster)
                        .min(24 << 20),
                    version,
                    cluster_bits,
                    refcount_order,
                    ..CreateOptions::default()
                };
                let lazy = if refcount_order % 2 == 0 {
                    LazyRefcounts::On
                } else {
                    LazyRefcounts::Off
                };
                let mut disk = Disk::new(&port, &options, lazy);
                disk.work(cluster);
                run(disk.image.close()).unwrap();
                drop((disk.image, port));
                let case = format!("{options:?} {lazy:?}");
                same_in_qemu(&ours, &disk.model, &case);
            }
        }
    }
}

#[test]
fn what_qemu_io_wrote_reads_back_here_and_may_be_overwritten() {
    if !have("qemu-io") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (theirs, raw) = (
        folder.path().join("theirs.qcow2"),
        folder.path().join("theirs.raw"),
    );
    for cluster_bits in CLUSTER_BITS {
        for (compat, refcount_bits) in [("0.10", 16), ("1.1", 1), ("1.1", 16), ("1.1", 64)] {
            let cluster = 1u64 << cluster_bits;
            let options =
                format!("cluster_size={cluster},compat={compat},refcount_bits={refcount_bits}");
            must(
                "qemu-img",
                &["create", "-f", "qcow2", "-o", &options, text(&theirs), "9M"],
            );
            let mut commands = vec!["-f".to_owned(), "qcow2".to_owned()];
            for command in [
                "write -P 1 0 3k".to_owned(),
                "write -P 2 1M 200k".to_owned(),
                format!("write -c -P 3 4M {cluster}"),
                format!("write -c -P 4 {} {cluster}", (4 << 20) + cluster),
                "write -z 1088k 64k".to_owned(),
                "discard 1152k 64k".to_owned(),
                "write -P 5 9436672 512".to_owned(),
            ] {
                commands.extend(["-c".to_owned(), command]);
            }
            commands.push(text(&theirs).to_owned());
            must(
                "qemu-io",
                &commands.iter().map(String::as_str).collect::<Vec<_>>(),
            );
            must(
                "qemu-img",
                &["convert", "-O", "raw", text(&theirs), text(&raw)],
            );
            let mut model = std::fs::read(&raw).unwrap();

            let ram = Ram::load(&theirs);
            let image = run(Qcow2::open(ram.port.clone(), None, &OpenOptions::default())).unwrap();
            let read = run(image.read(0, model.len())).unwrap();
            assert!(
                read == model,
                "{options}: the guest's disk reads otherwise here"
            );

            let middle = usize::try_from((4 << 20) + cluster / 2 / 512 * 512).unwrap();
            run(image.write(u64::try_from(middle).unwrap(), vec![9; 1024])).unwrap();
            model[middle..middle + 1024].fill(9);
            run(image.close()).unwrap();
            ram.save(&theirs);
            same_in_qemu(&theirs, &model, &options);
        }
    }
}

#[test]
fn qemu_img_repairs_an_image_that_we_left_dirty() {
    if !have("qemu-img") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let ours = folder.path().join("dirty.qcow2");
    for cluster_bits in CLUSTER_BITS {
        let ram = Ram::empty();
        let cluster = 1 << cluster_bits;
        let options = CreateOptions {
            virtual_bytes: (16 * cluster).max(1 << 20),
            cluster_bits,
            lazy_refcounts: true,
            ..CreateOptions::default()
        };
        let mut disk = Disk::new(&ram.port, &options, LazyRefcounts::On);
        disk.work(cluster);
        run(disk.image.flush()).unwrap();
        ram.save(&ours);
        let before = must("qemu-img", &["info", text(&ours)]);
        assert!(before.contains("cleanly shut down: no"), "{before}");
        must("qemu-img", &["check", "-r", "all", text(&ours)]);
        same_in_qemu(&ours, &disk.model, &format!("{options:?}"));
    }
}

#[test]
fn opening_repairs_an_image_that_a_killed_qemu_io_left_dirty() {
    if !have("qemu-io") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let theirs = folder.path().join("killed.qcow2");
    for cluster_bits in CLUSTER_BITS {
        let options = format!("cluster_size={},lazy_refcounts=on", 1 << cluster_bits);
        must(
            "qemu-img",
            &["create", "-f", "qcow2", "-o", &options, text(&theirs), "8M"],
        );
        let commands = [
            "write -P 1 0 100k",
            "write -P 2 5M 300k",
            "flush",
            "sigraise 9",
        ];
        let mut arguments = vec!["-t", "writeback", "-f", "qcow2"];
        for command in &commands {
            arguments.extend(["-c", command]);
        }
        arguments.push(text(&theirs));
        assert!(
            !call("qemu-io", &arguments).status.success(),
            "it was killed"
        );
        let before = must("qemu-img", &["info", text(&theirs)]);
        assert!(before.contains("cleanly shut down: no"), "{before}");

        let ram = Ram::load(&theirs);
        let image = run(Qcow2::open(ram.port.clone(), None, &OpenOptions::default())).unwrap();
        run(image.close()).unwrap();
        ram.save(&theirs);
        let mut model = vec![0; 8 << 20];
        model[..100 << 10].fill(1);
        model[5 << 20..(5 << 20) + (300 << 10)].fill(2);
        same_in_qemu(&theirs, &model, &options);
    }
}
