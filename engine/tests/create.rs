//! New images are what qemu-img would have made.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]

mod kit;

use engine::error::{Error, Refused};
use engine::qcow2::create::{Backing, BackingFormat, CreateOptions, create};
use engine::qcow2::header::Header;
use kit::{Ram, call, create_in_qemu, have, must, run, text};

fn ours(options: &CreateOptions) -> Ram {
    let ram = Ram::empty();
    run(create(&ram.port, options)).unwrap();
    ram
}

fn decode(bytes: &[u8]) -> Header {
    Header::decode(bytes, u64::try_from(bytes.len()).unwrap()).unwrap()
}

fn refusal(options: &CreateOptions) -> String {
    let ram = Ram::from_bytes(b"precious");
    let error = run(create(&ram.port, options)).unwrap_err();
    assert!(
        matches!(error, Error::Refused(Refused::Option(_))),
        "{error:?}"
    );
    assert_eq!(ram.bytes(), b"precious", "a refusal touches nothing");
    error.to_string()
}

fn qemu_options(options: &CreateOptions) -> String {
    let backing = options
        .backing
        .as_ref()
        .map(|backing| format!(",backing_file={},backing_fmt=raw", backing.name));
    format!(
        "compat={},cluster_size={},refcount_bits={},lazy_refcounts={}{}",
        if options.version == 2 { "0.10" } else { "1.1" },
        1u64 << options.cluster_bits,
        1u32 << options.refcount_order,
        if options.lazy_refcounts { "on" } else { "off" },
        backing.unwrap_or_default(),
    )
}

/// Every cluster size with every refcount width, and with disks of different sizes.
fn shapes() -> Vec<CreateOptions> {
    let mut shapes = Vec::new();
    for cluster_bits in 9..=21 {
        for refcount_order in 0..=6 {
            shapes.push(CreateOptions {
                virtual_bytes: 1 << 20,
                cluster_bits,
                refcount_order,
                lazy_refcounts: refcount_order % 2 == 0,
                ..CreateOptions::default()
            });
        }
        for virtual_bytes in [0, 512, (1 << (2 * cluster_bits + 7)) + 512] {
            shapes.push(CreateOptions {
                virtual_bytes,
                cluster_bits,
                ..CreateOptions::default()
            });
        }
    }
    for cluster_bits in [9, 12, 16] {
        let name = "base".to_owned();
        let backing = Some(Backing {
            name,
            format: BackingFormat::Raw,
        });
        for version in [2, 3] {
            shapes.push(CreateOptions {
                virtual_bytes: 1 << 20,
                version,
                cluster_bits,
                backing: backing.clone(),
                ..CreateOptions::default()
            });
        }
    }
    shapes
}

#[test]
fn a_new_image_has_the_header_that_qemu_img_writes() {
    if !have("qemu-img") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("base"), vec![0; 1 << 20]).unwrap();
    let theirs_path = folder.path().join("theirs");
    let ours_path = folder.path().join("ours");
    for options in shapes() {
        let ours = ours(&options);
        ours.save(&ours_path);
        let size = options.virtual_bytes.to_string();
        create_in_qemu(&theirs_path, &qemu_options(&options), &size);
        let theirs = std::fs::read(&theirs_path).unwrap();
        let ours_bytes = ours.bytes();
        let (mut mine, yours) = (decode(&ours_bytes), decode(&theirs));
        // Where qemu-img grew its refcount table from one cluster on, ours is made to measure.
        if yours.reftable_clusters > 1 {
            mine.reftable_clusters = yours.reftable_clusters;
            mine.reftable_offset = yours.reftable_offset;
            mine.l1_offset = yours.l1_offset;
        } else {
            let first = usize::try_from(mine.geometry.cluster_bytes().min(4096)).unwrap();
            assert!(ours_bytes[..first] == theirs[..first], "{options:?}");
        }
        assert_eq!(mine, yours, "{options:?}");
        let check = call("qemu-img", &["check", "-f", "qcow2", text(&ours_path)]);
        assert!(check.status.success(), "{options:?}: {check:?}");
    }
}

#[test]
fn a_table_larger_than_one_block_covers_is_counted_whole() {
    if !have("qemu-img") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let options = CreateOptions {
        virtual_bytes: (4 << 20) * (64 * 512),
        cluster_bits: 9,
        refcount_order: 6,
        ..CreateOptions::default()
    };
    let image = ours(&options);
    let header = decode(&image.bytes());
    assert_eq!(header.l1_entries, 4 << 20);
    assert!(header.reftable_clusters > 1);
    image.save(&path);
    must("qemu-img", &["check", "-q", "-f", "qcow2", text(&path)]);
}

#[test]
fn an_option_out_of_range_is_named_and_nothing_is_written() {
    let good = CreateOptions {
        virtual_bytes: 1 << 20,
        ..CreateOptions::default()
    };
    let backing = |name: String| {
        Some(Backing {
            name,
            format: BackingFormat::Qcow2,
        })
    };
    let cases = [
        (
            "version 4",
            CreateOptions {
                version: 4,
                ..good.clone()
            },
        ),
        (
            "cluster bits 8",
            CreateOptions {
                cluster_bits: 8,
                ..good.clone()
            },
        ),
        (
            "cluster bits 22",
            CreateOptions {
                cluster_bits: 22,
                ..good.clone()
            },
        ),
        (
            "refcount order 7",
            CreateOptions {
                refcount_order: 7,
                ..good.clone()
            },
        ),
        (
            "version 2",
            CreateOptions {
                version: 2,
                refcount_order: 3,
                ..good.clone()
            },
        ),
        (
            "lazy",
            CreateOptions {
                version: 2,
                lazy_refcounts: true,
                ..good.clone()
            },
        ),
        (
            "multiple of 512",
            CreateOptions {
                virtual_bytes: 513,
                ..good.clone()
            },
        ),
        (
            "disk size",
            CreateOptions {
                virtual_bytes: (4 << 20) * (64 * 512) + 512,
                cluster_bits: 9,
                ..good.clone()
            },
        ),
        (
            "name of 0 bytes",
            CreateOptions {
                backing: backing(String::new()),
                ..good.clone()
            },
        ),
        (
            "1..=1023",
            CreateOptions {
                backing: backing("x".repeat(1024)),
                ..good.clone()
            },
        ),
        (
            "first cluster",
            CreateOptions {
                cluster_bits: 9,
                backing: backing("x".repeat(400)),
                ..good
            },
        ),
    ];
    for (words, options) in cases {
        let message = refusal(&options);
        assert!(message.contains(words), "{message}");
    }
}

#[test]
fn creating_over_something_longer_leaves_none_of_it() {
    let ram = Ram::from_bytes(&vec![0xa5; 1 << 20]);
    let options = CreateOptions {
        virtual_bytes: 1 << 20,
        ..CreateOptions::default()
    };
    run(create(&ram.port, &options)).unwrap();
    assert_eq!(ram.bytes(), ours(&options).bytes());
}
