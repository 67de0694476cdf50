//! A real file behaves as the device in memory does, and tells what went wrong.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]

use std::path::Path;

use engine::device::{
    Cause, Device, DeviceError, Event, FileDevice, Op, PageImage, RamDevice, Reply, Request, drive,
};
use proptest::prelude::*;

fn submit(device: &impl Device, op: Op) -> Result<Reply, DeviceError> {
    let event = Event::WriteAio;
    drive(device.submit(Request { event, op })).unwrap()
}

fn operation() -> impl Strategy<Value = Op> {
    let offset = 0u64..300_000;
    let len = 1u64..100_000;
    prop_oneof![
        (offset.clone(), 0usize..100_000)
            .prop_map(|(offset, len_bytes)| Op::Read { offset, len_bytes }),
        (
            offset.clone(),
            prop::collection::vec(any::<u8>(), 1..5000),
            any::<bool>()
        )
            .prop_map(|(offset, data, fua)| Op::Write { offset, data, fua }),
        (offset.clone(), len.clone(), any::<bool>()).prop_map(|(offset, len_bytes, unmap)| {
            Op::WriteZeroes {
                offset,
                len_bytes,
                unmap,
            }
        }),
        (offset.clone(), len.clone())
            .prop_map(|(offset, len_bytes)| Op::Discard { offset, len_bytes }),
        Just(Op::Flush),
        (0u64..400_000).prop_map(|len_bytes| Op::SetLen { len_bytes }),
    ]
}

fn behaves_as_memory(path: &Path, operations: Vec<Op>) -> Result<(), TestCaseError> {
    let _ = std::fs::remove_file(path);
    let file = FileDevice::create_new(path).unwrap();
    let ram = RamDevice::new(PageImage::default());
    for operation in operations {
        prop_assert_eq!(submit(&file, operation.clone()), submit(&ram, operation));
        prop_assert_eq!(file.len(), ram.len());
    }
    drop(file);
    let len = usize::try_from(ram.len()).unwrap();
    prop_assert!(std::fs::read(path).unwrap() == ram.snapshot().read_vec(0, len));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn a_file_behaves_as_memory(operations in prop::collection::vec(operation(), 1..20)) {
        let folder = tempfile::tempdir().unwrap();
        behaves_as_memory(&folder.path().join("file"), operations)?;
    }

    #[test]
    fn a_file_without_zero_range_behaves_as_memory(operations in prop::collection::vec(operation(), 1..20)) {
        // A memory file system punches holes and cannot zero ranges.
        if let Ok(folder) = tempfile::tempdir_in("/dev/shm") {
            behaves_as_memory(&folder.path().join("file"), operations)?;
        }
    }
}

#[test]
fn a_hole_gives_its_space_back() {
    use std::os::unix::fs::MetadataExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let device = FileDevice::create_new(&path).unwrap();
    let len_bytes = 1 << 20;
    let data = vec![7; 1 << 20];
    submit(
        &device,
        Op::Write {
            offset: 0,
            data,
            fua: true,
        },
    )
    .unwrap();
    let blocks = || std::fs::metadata(&path).unwrap().blocks();
    let full = blocks();
    submit(
        &device,
        Op::Discard {
            offset: 0,
            len_bytes,
        },
    )
    .unwrap();
    assert!(blocks() < full, "{full} blocks before, {} after", blocks());
}

#[test]
fn what_fails_says_who_asked_and_why() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    std::fs::write(&path, [1; 512]).unwrap();
    let device = FileDevice::open_read_only(&path).unwrap();
    let data = vec![2; 512];
    let error = submit(
        &device,
        Op::Write {
            offset: 0,
            data,
            fua: false,
        },
    )
    .unwrap_err();
    assert_eq!(
        (error.event, error.cause),
        (Event::WriteAio, Cause::ReadOnly)
    );
    assert_eq!(submit(&device, Op::Flush), Ok(Reply::Done));
    assert_eq!(std::fs::read(&path).unwrap(), [1; 512]);

    let device = FileDevice::open_read_write(&path).unwrap();
    let error = submit(&device, Op::SetLen { len_bytes: 1 << 62 }).unwrap_err();
    assert!(matches!(error.cause, Cause::Os(22 | 27)), "{error}");
    let error = submit(
        &device,
        Op::Discard {
            offset: u64::MAX,
            len_bytes: 2,
        },
    )
    .unwrap_err();
    assert_eq!(error.cause, Cause::BadRequest);
    assert_eq!(device.len(), 512);
}

#[test]
fn a_second_writer_is_kept_out() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let first = FileDevice::create_new(&path).unwrap();
    let error = FileDevice::open_read_write(&path).unwrap_err();
    assert!(error.to_string().contains("another program"), "{error}");
    FileDevice::open_read_only(&path).unwrap();
    drop(first);
    FileDevice::open_read_write(&path).unwrap();
}

#[test]
fn what_has_no_positions_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    assert!(FileDevice::open_read_only(folder.path()).is_err());
    assert!(FileDevice::open_read_write(Path::new("/dev/null")).is_err());
    assert!(FileDevice::open_read_only(&folder.path().join("missing")).is_err());
}
