//! A raw image is the device's bytes, and refuses what a disk refuses.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]

mod kit;

use engine::error::{Error, Refused};
use engine::image::{Access, Image, Unmap};
use engine::manage::Manage;
use engine::raw::Raw;
use kit::{Ram, run};

fn raw(ram: &Ram, access: Access) -> Raw {
    Raw::open(ram.port.clone(), access)
}

#[test]
fn what_the_guest_writes_stands_in_the_file() {
    let ram = Ram::from_bytes(&[1; 2048]);
    let image = raw(&ram, Access::ReadWrite);
    run(image.write(512, vec![2; 512])).unwrap();
    run(image.write_zeroes(1024, 512, Unmap::Keep)).unwrap();
    run(image.discard(1536, 512)).unwrap();
    run(image.manage(Manage::grow(3072))).unwrap();
    run(image.write(2560, vec![3; 512])).unwrap();
    run(image.close()).unwrap();
    let expected = [[1; 512], [2; 512], [0; 512], [0; 512], [0; 512], [3; 512]].concat();
    assert_eq!(ram.bytes(), expected);
    assert_eq!(run(image.read(0, 3072)).unwrap(), expected);
}

#[test]
fn a_file_that_ends_within_a_sector_is_padded() {
    let ram = Ram::from_bytes(&[7; 700]);
    let image = raw(&ram, Access::ReadOnly);
    assert_eq!(image.virtual_bytes(), 1024);
    let sector = run(image.read(512, 512)).unwrap();
    assert_eq!(sector, [vec![7; 188], vec![0; 324]].concat());
}

#[test]
fn what_a_disk_cannot_do_is_refused() {
    let ram = Ram::from_bytes(&[1; 1024]);
    let image = raw(&ram, Access::ReadWrite);
    let refused = |result: Result<(), Error>| match result {
        Err(Error::Refused(refused)) => refused,
        other => panic!("{other:?}"),
    };
    let read = |offset, len| run(image.read(offset, len)).map(drop);
    assert!(matches!(
        refused(read(512, 1024)),
        Refused::OutOfRange { .. }
    ));
    assert!(matches!(
        refused(read(!511, 512)),
        Refused::OutOfRange { .. }
    ));
    assert!(matches!(refused(read(1, 512)), Refused::Unaligned { .. }));
    assert!(matches!(
        refused(run(image.manage(Manage::grow(512)))),
        Refused::Option(_)
    ));
    let image = raw(&ram, Access::ReadOnly);
    assert_eq!(
        refused(run(image.write(0, vec![2; 512]))),
        Refused::ReadOnly
    );
    assert_eq!(refused(run(image.discard(0, 512))), Refused::ReadOnly);
    assert_eq!(ram.bytes(), [1; 1024]);
}
