//! What an image says of stretches of its disk, against what was done to them.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]

mod kit;

use engine::device::FileDevice;
use engine::device::{Device, ExtentKind, Port};
use engine::image::{Access, Image, Status, StatusKind, Unmap};
use engine::qcow2::create::{CreateOptions, create};
use engine::qcow2::{OpenOptions, Qcow2};
use engine::raw::Raw;
use kit::{Ram, run};

const CLUSTER: u64 = 512;

fn image() -> (Ram, Qcow2) {
    let ram = Ram::empty();
    let options = CreateOptions {
        virtual_bytes: 200 * CLUSTER,
        cluster_bits: 9,
        ..CreateOptions::default()
    };
    run(create(&ram.port, &options)).unwrap();
    let image = run(Qcow2::open(ram.port.clone(), None, &OpenOptions::default()));
    (ram, image.unwrap())
}

/// Every stretch of a disk, in order.
fn all(image: &dyn Image) -> Vec<Status> {
    let mut stretches = Vec::new();
    let mut at = 0;
    while at < image.virtual_bytes() {
        let status = run(image.status(at, image.virtual_bytes() - at)).unwrap();
        at += status.len_bytes;
        stretches.push(status);
    }
    assert_eq!(
        at,
        image.virtual_bytes(),
        "no stretch reaches beyond the disk"
    );
    stretches
}

#[test]
fn each_kind_is_told_and_data_stand_where_it_says() {
    let (ram, image) = image();
    run(image.write(3 * CLUSTER, vec![7; 1024])).unwrap();
    run(image.write(10 * CLUSTER, vec![6; 1024])).unwrap();
    run(image.write_zeroes(10 * CLUSTER, 1024, Unmap::Allow)).unwrap();
    run(image.write(20 * CLUSTER, vec![8; 512])).unwrap();
    run(image.write_zeroes(20 * CLUSTER, 512, Unmap::Keep)).unwrap();
    run(image.flush()).unwrap();
    let at = |cluster: u64| run(image.status(cluster * CLUSTER, 512)).unwrap();
    assert_eq!(at(0).kind, StatusKind::Unallocated);
    assert_eq!(at(3).kind, StatusKind::Data);
    assert_eq!((at(10).kind, at(10).host_offset), (StatusKind::Zero, None));
    assert_eq!(at(20).kind, StatusKind::Zero);
    assert!(at(20).host_offset.is_some(), "a cluster kept in reserve");
    let start = usize::try_from(at(3).host_offset.unwrap()).unwrap();
    assert_eq!(ram.bytes()[start..start + 1024], [7; 1024]);
    // Within a cluster, the place is that of the byte.
    let within = run(image.status(3 * CLUSTER + 100, 50)).unwrap();
    assert_eq!(
        within.host_offset.unwrap(),
        at(3).host_offset.unwrap() + 100
    );
    assert_eq!(within.len_bytes, 50);
}

#[test]
fn stretches_cover_the_disk_and_zeroes_read_as_zeroes() {
    let (_ram, image) = image();
    for cluster in (0..200).step_by(7) {
        run(image.write(cluster * CLUSTER, vec![1; 512])).unwrap();
    }
    run(image.write_zeroes(50 * CLUSTER, 40 * CLUSTER, Unmap::Allow)).unwrap();
    let mut at = 0;
    for status in all(&image) {
        let len = usize::try_from(status.len_bytes).unwrap();
        let bytes = run(image.read(at, len)).unwrap();
        match status.kind {
            StatusKind::Data | StatusKind::Compressed => {
                assert!(bytes.iter().all(|byte| *byte == 1));
            }
            StatusKind::Zero | StatusKind::Unallocated => {
                assert!(bytes.iter().all(|byte| *byte == 0));
            }
        }
        at += status.len_bytes;
    }
    assert!(run(image.status(199 * CLUSTER, 1024)).is_err());
}

#[test]
fn holes_of_a_raw_file_are_zeroes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("holes");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(1 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &vec![1; 65536], 65536).unwrap();
    let device = FileDevice::open_read_only(&path).unwrap();
    assert_eq!(device.extent(0).kind, ExtentKind::Hole);
    assert_eq!(device.extent(1 << 20).kind, ExtentKind::Hole);
    let image = Raw::open(Port::new(std::rc::Rc::new(device)), Access::ReadOnly);
    let kinds: Vec<_> = all(&image).iter().map(|s| (s.kind, s.len_bytes)).collect();
    assert_eq!(
        kinds,
        [
            (StatusKind::Zero, 65536),
            (StatusKind::Data, 65536),
            (StatusKind::Zero, (1 << 20) - 131_072),
        ]
    );
}
