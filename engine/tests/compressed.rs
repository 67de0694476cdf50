//! Compressed clusters, here and in QEMU: what one writes the other reads, over both types, all kinds
//! of cluster sizes and refcount widths.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]

mod kit;

use engine::error::{Error, Refused};
use engine::image::{Image, Unmap};
use engine::qcow2::check::{CheckOptions, Repair, check};
use engine::qcow2::compress::Compression;
use engine::qcow2::create::{CreateOptions, create};
use engine::qcow2::packed::{Packed, pack};
use engine::qcow2::{OpenOptions, Qcow2};
use kit::{Ram, have, must, run, same_in_qemu, text};

const CLUSTER_BITS: [u32; 5] = [9, 10, 12, 16, 21];

/// A disk that ends within a cluster.
fn fresh(ram: &Ram, cluster_bits: u32, refcount_order: u32, compression: Compression) -> Qcow2 {
    let options = CreateOptions {
        virtual_bytes: (20 << cluster_bits) + 512 * u64::from(cluster_bits > 9),
        cluster_bits,
        refcount_order,
        compression,
        ..CreateOptions::default()
    };
    run(create(&ram.port, &options)).unwrap();
    run(Qcow2::open(ram.port.clone(), None, &OpenOptions::default())).unwrap()
}

/// Bytes of which a varying part repeats, so that each cluster shrinks to another size; some do not.
fn content(len: usize, cluster: usize) -> Vec<u8> {
    let mut state = 7u64;
    (0..len)
        .map(|at| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let part = (at / cluster % 5) * cluster / 4;
            if at % cluster < part {
                state.to_be_bytes()[0]
            } else {
                0x33
            }
        })
        .collect()
}

/// Writes everything in a few calls, one of them of several clusters.
fn work(image: &Qcow2) -> Vec<u8> {
    let cluster = image.geometry().cluster_len();
    let len = usize::try_from(image.virtual_bytes()).unwrap();
    let mut model = content(len, cluster);
    let at = |index: usize| u64::try_from(index * cluster).unwrap();
    let slice = |from: usize, to: usize| model[from * cluster..(to * cluster).min(len)].to_vec();
    run(image.write_compressed(0, slice(0, 1))).unwrap();
    run(image.write_compressed(at(1), slice(1, 2))).unwrap();
    run(image.write_compressed(at(2), slice(2, 11))).unwrap();
    run(image.write_compressed(at(11), slice(11, 12))).unwrap();
    run(image.flush()).unwrap();
    run(image.write_compressed(at(14), slice(14, 22))).unwrap();
    // A cluster of a shared host cluster goes, one is copied on write, and its place is used again.
    run(image.discard(at(3), at(1))).unwrap();
    run(image.write(at(5), vec![9; 512])).unwrap();
    run(image.flush()).unwrap();
    run(image.write_compressed(at(13), slice(13, 14))).unwrap();
    model[3 * cluster..4 * cluster].fill(0);
    model[5 * cluster..5 * cluster + 512].fill(9);
    model[12 * cluster..13 * cluster].fill(0);
    model
}

#[test]
fn qemu_img_reads_what_is_compressed_here_and_finds_it_clean() {
    let folder = tempfile::tempdir().unwrap();
    let ours = folder.path().join("ours.qcow2");
    for compression in Compression::ALL {
        for cluster_bits in CLUSTER_BITS {
            for refcount_order in [0, 1, 4, 6] {
                let case = format!("{compression:?} {cluster_bits} {refcount_order}");
                let ram = Ram::empty();
                let image = fresh(&ram, cluster_bits, refcount_order, compression);
                let model = work(&image);
                let read = run(image.read(0, model.len())).unwrap();
                assert!(read == model, "{case}");
                run(image.close()).unwrap();
                let report = run(check(&ram.port, Repair::None, &CheckOptions::default())).unwrap();
                assert!(report.findings.is_empty(), "{case}: {report:?}");
                assert!(report.totals.compressed_clusters > 10, "{case}: {report:?}");
                if !have("qemu-img") {
                    continue;
                }
                ram.save(&ours);
                same_in_qemu(&ours, &model, &case);
            }
        }
    }
}

#[test]
fn what_qemu_img_compressed_reads_back_here_and_may_be_written_to() {
    if !have("qemu-img") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (theirs, raw) = (
        folder.path().join("theirs.qcow2"),
        folder.path().join("model.raw"),
    );
    for compression in Compression::ALL {
        for cluster_bits in CLUSTER_BITS {
            let cluster = 1usize << cluster_bits;
            let mut model = content(30 * cluster, cluster);
            model.truncate(29 * cluster + 512);
            std::fs::write(&raw, &model).unwrap();
            let name = compression.name();
            let options = format!("cluster_size={cluster},compression_type={name}");
            let mut arguments = vec!["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", &options];
            arguments.extend([text(&raw), text(&theirs)]);
            must("qemu-img", &arguments);

            let ram = Ram::load(&theirs);
            let image = run(Qcow2::open(ram.port.clone(), None, &OpenOptions::default())).unwrap();
            assert_eq!(image.compression(), compression);
            assert!(
                run(image.read(0, model.len())).unwrap() == model,
                "{options}"
            );
            let middle = 7 * cluster + cluster / 2 / 512 * 512;
            run(image.write(u64::try_from(middle).unwrap(), vec![9; 1024])).unwrap();
            model[middle..middle + 1024].fill(9);
            run(image.close()).unwrap();
            ram.save(&theirs);
            same_in_qemu(&theirs, &model, &options);
        }
    }
}

#[test]
fn several_clusters_share_a_host_cluster_and_no_sector_of_another_call() {
    let ram = Ram::empty();
    let image = fresh(&ram, 12, 4, Compression::Zlib);
    let before = ram.device.snapshot().len();
    for cluster in 0..8 {
        run(image.write_compressed(cluster << 12, vec![7; 4096])).unwrap();
    }
    run(image.write_compressed(8 << 12, vec![7; 8 * 4096])).unwrap();
    run(image.close()).unwrap();
    // A refcount block and table were there; an L2 table, one cluster for eight calls of a sector each,
    // and a second for the eight clusters of the last call.
    assert_eq!(
        ram.device.snapshot().len().next_multiple_of(4096) - before,
        3 * 4096
    );
}

#[test]
fn only_whole_vacant_clusters_are_taken() {
    let ram = Ram::empty();
    let image = fresh(&ram, 12, 4, Compression::Zstd);
    let end = image.virtual_bytes();
    run(image.write(4096, vec![1; 512])).unwrap();
    run(image.write_compressed(8192, vec![2; 4096])).unwrap();
    run(image.write_zeroes(4 << 12, 4096, Unmap::Allow)).unwrap();
    let before = run(image.read(0, 5 * 4096)).unwrap();
    for (offset, len) in [(0, 8192), (4096, 4096), (8192, 4096)] {
        let refused = run(image.write_compressed(offset, vec![3; len])).unwrap_err();
        assert!(
            matches!(refused, Error::Refused(Refused::NotVacant { .. })),
            "{refused}"
        );
    }
    for (offset, len) in [(512, 4096), (0, 512), (4 << 12, 4608)] {
        let refused = run(image.write_compressed(offset, vec![3; len])).unwrap_err();
        assert!(
            matches!(refused, Error::Refused(Refused::NotWholeClusters { .. })),
            "{refused}"
        );
    }
    assert!(run(image.read(0, 5 * 4096)).unwrap() == before);
    run(image.write_compressed(4 << 12, vec![3; 4096])).unwrap();
    run(image.write_compressed(end - 512, vec![4; 512])).unwrap();
    assert_eq!(run(image.read(end - 512, 512)).unwrap(), [4; 512]);
    assert_eq!(run(image.read(4 << 12, 512)).unwrap(), [3; 512]);
}

#[test]
fn clusters_that_were_packed_elsewhere_are_stored() {
    let ram = Ram::empty();
    let image = fresh(&ram, 16, 4, Compression::Zstd);
    let data = content(6 << 16, 1 << 16);
    let packed: Vec<Packed> = data
        .chunks(1 << 16)
        .map(|cluster| pack(image.compression(), image.geometry(), cluster))
        .collect();
    assert!(packed.iter().any(|one| matches!(one, Packed::Plain(_))));
    run(image.store(0, packed)).unwrap();
    assert!(run(image.read(0, data.len())).unwrap() == data);
    for wrong in [
        Packed::Compressed(Vec::new()),
        Packed::Compressed(vec![1; 1 << 16]),
        Packed::Plain(vec![1; 512]),
    ] {
        let refused = run(image.store(10 << 16, vec![wrong])).unwrap_err();
        assert!(
            matches!(refused, Error::Refused(Refused::NotWholeClusters { .. })),
            "{refused}"
        );
    }
}

/// A refcount of two bits counts three sharers, and then another cluster is taken.
#[test]
fn a_narrow_refcount_is_never_exceeded() {
    for refcount_order in [0, 1, 2] {
        let ram = Ram::empty();
        let image = fresh(&ram, 12, refcount_order, Compression::Zlib);
        for cluster in 0..20 {
            run(image.write_compressed(cluster << 12, vec![7; 4096])).unwrap();
        }
        run(image.close()).unwrap();
        let report = run(check(&ram.port, Repair::None, &CheckOptions::default())).unwrap();
        assert!(report.findings.is_empty(), "{report:?}");
        let most = if refcount_order == 2 {
            8
        } else {
            (1 << (1 << refcount_order)) - 1
        };
        let clusters = 20u64.div_ceil(most);
        let used = report.totals.image_end_offset >> 12;
        assert_eq!(used, 5 + clusters, "{refcount_order}: {report:?}");
    }
}
