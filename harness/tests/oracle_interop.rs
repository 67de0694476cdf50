//! The independent walk and reader against qemu-img: what it makes they read, what it counts they count.

#![allow(
    clippy::print_stderr,
    reason = "what was not measured is told where it is seen"
)]
#![allow(clippy::unwrap_used, reason = "all of this is a test")]

use std::path::{Path, PathBuf};
use std::process::Command;

use engine::device::PageImage;
use harness::oracle::structure::{StructureReport, walk};
use harness::oracle::view::{Backing, Content, GuestView};
use harness::prng::Prng;
use harness::sim::stage::Stage;
use harness::workload::generate::scenario;
use harness::workload::pin::Pins;
use harness::workload::shape::{Extent, ImageShape, Start};
use serde_json::Value;
use tempfile::TempDir;

/// Without the programs a test measures nothing and says so, which in continuous integration is a
/// failure.
fn have_qemu() -> bool {
    let found = ["qemu-img", "qemu-io"]
        .iter()
        .all(|program| Command::new(program).arg("--version").output().is_ok());
    #[expect(clippy::disallowed_methods, reason = "a test may ask where it runs")]
    let ci = std::env::var("CI").is_ok();
    assert!(
        found || !ci,
        "qemu-utils are missing, and CI promises to have them"
    );
    if !found {
        eprintln!("NOT MEASURED: qemu-utils are not installed, nothing was compared with them");
    }
    found
}

fn must(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {text}");
}

fn load(path: &Path) -> PageImage {
    PageImage::from_bytes(&std::fs::read(path).unwrap())
}

/// Corruptions and leaks, as qemu-img counts them.
fn qemu_check(path: &Path) -> (u64, u64) {
    let output = Command::new("qemu-img")
        .args([
            "check",
            "--output=json",
            "-f",
            "qcow2",
            path.to_str().unwrap(),
        ])
        .output()
        .unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let count = |key: &str| report.get(key).and_then(Value::as_u64).unwrap_or(0);
    assert_eq!(count("check-errors"), 0);
    (count("corruptions"), count("leaks"))
}

struct Made {
    folder: TempDir,
    image: PathBuf,
}

impl Made {
    fn new(options: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image.qcow2");
        let path = image.to_str().unwrap();
        must(
            "qemu-img",
            &["create", "-q", "-f", "qcow2", "-o", options, path, "8M"],
        );
        Self { folder, image }
    }

    fn path(&self) -> &str {
        self.image.to_str().unwrap()
    }

    fn io(&self, commands: &[&str]) {
        let mut arguments = vec!["-f", "qcow2", "-d", "unmap"];
        for command in commands {
            arguments.extend(["-c", command]);
        }
        arguments.push(self.path());
        must("qemu-io", &arguments);
    }

    fn snapshot(&self, arguments: &[&str]) {
        must(
            "qemu-img",
            &[&["snapshot", "-q"], arguments, &[self.path()]].concat(),
        );
    }

    /// Whether the reader sees the disk that qemu-img reads.
    fn must_read_alike(&self, backing: Option<&Backing>) {
        let raw = self.folder.path().join("raw");
        let arguments = ["convert", "-q", "-f", "qcow2", "-O", "raw", self.path()];
        must(
            "qemu-img",
            &[&arguments[..], &[raw.to_str().unwrap()]].concat(),
        );
        let expected = std::fs::read(raw).unwrap();
        let image = load(&self.image);
        let report = walk(&image);
        let view = GuestView::new(&image, &report, backing).unwrap();
        assert_eq!(view.difference_to_data(0, &expected), None);
        for run in view.runs(0..view.virtual_bytes() / 512) {
            let content = run.content(run.sectors.start);
            assert_ne!(content, Content::Unreadable);
        }
    }

    fn report(&self) -> StructureReport {
        let report = walk(&load(&self.image));
        assert_eq!(report.not_measured, None);
        report
    }
}

#[test]
fn what_qemu_writes_is_perfect_and_reads_alike_in_every_geometry() {
    if !have_qemu() {
        return;
    }
    for cluster_bits in [9, 10, 12, 16, 18, 21] {
        for refcount_bits in [1, 2, 4, 8, 16, 32, 64] {
            let cluster = 1u64 << cluster_bits;
            let made = Made::new(&format!(
                "cluster_size={cluster},refcount_bits={refcount_bits}"
            ));
            made.io(&[
                "write -P 1 0 512",
                "write -P 2 3000k 200k",
                "write -P 3 7M 1M",
                "discard 3100k 64k",
                "write -z 7500k 10k",
                "write -z -u 7M 256k",
            ]);
            let report = made.report();
            assert!(
                report.is_perfect(),
                "{cluster_bits} {refcount_bits} {report:?}"
            );
            made.must_read_alike(None);
        }
    }
}

#[test]
fn old_images_compressed_ones_and_chains_read_alike() {
    if !have_qemu() {
        return;
    }
    let old = Made::new("compat=0.10");
    old.io(&["write -P 9 1M 300k", "discard 1M 64k"]);
    assert!(old.report().is_perfect());
    old.must_read_alike(None);

    for compression in ["zlib", "zstd"] {
        let packed = Made::new(&format!("compression_type={compression}"));
        packed.io(&[
            "write -c -P 5 0 64k",
            "write -c -P 6 64k 64k",
            "write -P 7 1M 1M",
        ]);
        let report = walk(&load(&packed.image));
        assert!(report.is_perfect(), "{report:?}");
        assert_eq!(report.not_measured, None);
        if compression == "zlib" {
            packed.must_read_alike(None);
        }
    }

    let below = Made::new("cluster_size=4k");
    below.io(&["write -P 1 0 1M", "write -P 2 5M 1M", "write -c -P 3 6M 4k"]);
    let options = format!(
        "backing_file={},backing_fmt=qcow2,cluster_size=64k",
        below.path()
    );
    let over = Made::new(&options);
    over.io(&["write -P 4 100k 1k", "write -z 5M 128k", "discard 0 64k"]);
    assert!(over.report().is_perfect());
    over.must_read_alike(Some(&Backing::qcow2(load(&below.image), None)));
}

#[test]
fn snapshots_count_as_qemu_counts_them() {
    if !have_qemu() {
        return;
    }
    for cluster_size in ["4k", "64k"] {
        let made = Made::new(&format!("cluster_size={cluster_size}"));
        made.io(&["write -P 1 0 1M", "write -c -P 2 2M 64k"]);
        made.snapshot(&["-c", "one"]);
        assert!(made.report().is_perfect(), "{:?}", made.report());
        made.io(&[
            "write -P 3 64k 128k",
            "discard 512k 64k",
            "write -P 4 4M 64k",
        ]);
        made.snapshot(&["-c", "two"]);
        made.io(&["write -P 5 0 64k"]);
        assert!(made.report().is_perfect(), "{:?}", made.report());
        made.must_read_alike(None);
        made.snapshot(&["-a", "one"]);
        assert!(made.report().is_perfect(), "{:?}", made.report());
        made.must_read_alike(None);
        made.snapshot(&["-d", "two"]);
        assert!(made.report().is_perfect(), "{:?}", made.report());
    }
}

#[test]
fn damaged_refcounts_are_damaged_to_qemu_too() {
    if !have_qemu() {
        return;
    }
    let made = Made::new("cluster_size=512");
    made.io(&["write -P 1 0 20k", "write -c -P 2 1M 512"]);
    made.snapshot(&["-c", "one"]);
    made.io(&["write -P 3 4k 2k"]);
    let whole = load(&made.image);
    let clusters = whole.len() / 512;
    // The first refcount block: 256 counts of 16 bits.
    let mut word = [0; 8];
    let mut table = [0; 8];
    whole.read(48, &mut table);
    whole.read(u64::from_be_bytes(table), &mut word);
    let block = u64::from_be_bytes(word);
    for cluster in (0..clusters.min(256)).step_by(7) {
        for refcount in [0u16, 1, 2, 7] {
            let mut image = whole.clone();
            image.write(block + cluster * 2, &refcount.to_be_bytes());
            let report = walk(&image);
            let path = made.folder.path().join("damaged");
            std::fs::write(
                &path,
                image.read_vec(0, usize::try_from(image.len()).unwrap()),
            )
            .unwrap();
            let (corruptions, leaks) = qemu_check(&path);
            let place = format!("refcount {refcount} for cluster {cluster}: {report:?}");
            assert_eq!(report.leak_count, leaks, "{place}");
            let improper = report.finding_count + report.copied_missing;
            assert_eq!(improper > 0, corruptions > 0, "{place}");
        }
    }
}

/// The flag is accurate in the tables of the disk alone, and other programs leave it set in those of snapshots.
#[test]
fn snapshots_that_claim_copied_are_sound() {
    let pins = "size=64k,cluster_size=4k,refcount_bits=16,room=any,backing=none,encrypt=off,abandoned=off,\
                compression=off,bitmaps=off,data_file=off,chain=off,preallocation=off";
    let pins = Pins::parse(pins).unwrap();
    let mut claims = 0;
    for seed in 0..6 {
        let scenario = scenario(&Prng::from_seed(seed), &pins);
        let Start::New(mut shape) = scenario.image else {
            unreachable!("drawn scenarios start with new images");
        };
        shape.terse_snapshots = false;
        shape.unknown_autoclear = false;
        shape.snapshots = 2;
        let place = |number: u64| Extent {
            offset: number * 8192,
            len_bytes: 512,
        };
        shape.filled = (0..3).map(place).collect();
        let image = |claiming| {
            let claiming_snapshots = claiming;
            let shape = ImageShape {
                claiming_snapshots,
                ..shape.clone()
            };
            Stage::prepare(&Start::New(shape)).unwrap().image
        };
        let (plain, claiming) = (image(false), image(true));
        claims += usize::from(plain.content_hash() != claiming.content_hash());
        assert!(walk(&claiming).is_perfect());
        if have_qemu() {
            let file = tempfile::NamedTempFile::new().unwrap();
            let len = usize::try_from(claiming.len()).unwrap();
            std::fs::write(file.path(), claiming.read_vec(0, len)).unwrap();
            assert_eq!(qemu_check(file.path()), (0, 0), "seed {seed}");
        }
    }
    assert_eq!(claims, 6);
}
