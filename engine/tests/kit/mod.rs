//! What the tests of this crate share: images in memory, and the programs to compare with.

#![allow(
    clippy::print_stderr,
    reason = "what was not measured is told where it is seen"
)]
#![allow(dead_code, reason = "every test file uses a part of this")]

pub(crate) mod caches;
pub(crate) mod damage;

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output};
use std::rc::Rc;

use engine::device::{PageImage, Port, RamDevice, drive};
use engine::qcow2::create::{CreateOptions, create};
use engine::qcow2::geometry::Geometry;
use engine::qcow2::header::Header;
use engine::qcow2::refblock;
use flate2::Compression;
use flate2::write::DeflateEncoder;

/// A device in memory, and the port to hand to the engine.
pub(crate) struct Ram {
    pub(crate) device: Rc<RamDevice>,
    pub(crate) port: Port,
}

impl Ram {
    pub(crate) fn new(image: PageImage) -> Self {
        let device = Rc::new(RamDevice::new(image));
        Self {
            port: Port::new(device.clone()),
            device,
        }
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        Self::new(PageImage::from_bytes(bytes))
    }

    pub(crate) fn empty() -> Self {
        Self::new(PageImage::default())
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let image = self.device.snapshot();
        image.read_vec(0, usize::try_from(image.len()).unwrap())
    }

    pub(crate) fn save(&self, path: &Path) {
        std::fs::write(path, self.bytes()).unwrap();
    }

    pub(crate) fn load(path: &Path) -> Self {
        Self::from_bytes(&std::fs::read(path).unwrap())
    }
}

/// Runs what needs no waiting, as everything on RAM and on files does.
pub(crate) fn run<T>(future: impl Future<Output = T>) -> T {
    drive(future).expect("the device completes at once")
}

/// Whether `program` can be run. Without it the calling test measures nothing and says so, which in
/// continuous integration is a failure.
pub(crate) fn have(program: &str) -> bool {
    if Command::new(program).arg("--version").output().is_ok() {
        return true;
    }
    #[expect(clippy::disallowed_methods, reason = "a test may ask where it runs")]
    let ci = std::env::var("CI").is_ok();
    assert!(!ci, "{program} is missing, and CI promises to have it");
    eprintln!("NOT MEASURED: {program} is not installed, nothing was compared with it");
    false
}

/// Runs a program and hands back whatever came of it.
pub(crate) fn call(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).output().unwrap()
}

/// Runs a program that must succeed.
pub(crate) fn must(program: &str, arguments: &[&str]) -> String {
    let output = call(program, arguments);
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Has `qemu-img` make a qcow2 image with the options that follow its `-o`.
pub(crate) fn create_in_qemu(image: &Path, options: &str, size: &str) {
    let words = ["create", "-q", "-f", "qcow2", "-o", options];
    must("qemu-img", &[&words[..], &[text(image), size]].concat());
}

/// `qemu-img` finds nothing to say against an image, and the disk that it shows is `model`.
pub(crate) fn same_in_qemu(image: &Path, model: &[u8], case: &str) {
    let said = call("qemu-img", &["check", "-f", "qcow2", text(image)]);
    assert_eq!(said.status.code(), Some(0), "{case}: {said:?}");
    shows_in_qemu(image, model, case);
}

/// The disk that an image shows in `qemu-img` is `model`, though another may hold it open.
pub(crate) fn shows_in_qemu(image: &Path, model: &[u8], case: &str) {
    let raw = image.with_extension("model");
    std::fs::write(&raw, model).unwrap();
    let formats = ["compare", "-U", "-f", "qcow2", "-F", "raw"];
    let said = call(
        "qemu-img",
        &[&formats[..], &[text(image), text(&raw)]].concat(),
    );
    assert_eq!(said.status.code(), Some(0), "{case}: {said:?}");
}

/// A path as an argument.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A small image with two L2 tables, two clusters of data, a compressed cluster, and in version 3
/// zeroes with a cluster in reserve; made by hand, so that it shares nothing with what is tested.
pub(crate) fn small(cluster_bits: u32, refcount_order: u32, version: u32) -> Vec<u8> {
    let ram = Ram::empty();
    let geometry = Geometry::new(cluster_bits, refcount_order).unwrap();
    let options = CreateOptions {
        virtual_bytes: geometry.l1_span_bytes() * 2,
        version,
        cluster_bits,
        refcount_order,
        lazy_refcounts: version == 3,
        ..CreateOptions::default()
    };
    run(create(&ram.port, &options)).unwrap();
    let mut bytes = ram.bytes();
    let header = Header::decode(&bytes, 1 << 20).unwrap();
    let len = geometry.cluster_len();
    let first = bytes.len();
    let at = |cluster: usize| u64::try_from(first + cluster * len).unwrap();
    let l1 = usize::try_from(header.l1_offset.0).unwrap();
    bytes.resize(first + 6 * len, 0xa5);
    bytes[first..first + 2 * len].fill(0);
    let compressed = first + 4 * len;
    let mut deflater = DeflateEncoder::new(&mut bytes[compressed..], Compression::fast());
    deflater.write_all(&vec![0x5a; len]).unwrap();
    deflater.finish().unwrap();
    let mut put = |offset: usize, value: u64| {
        bytes[offset..offset + 8].copy_from_slice(&value.to_be_bytes());
    };
    put(l1, at(0) | 1 << 63);
    put(l1 + 8, at(1) | 1 << 63);
    put(first, at(2) | 1 << 63);
    put(first + 8, at(3) | 1 << 63);
    let more_sectors = u64::try_from(len / 512 - 1).unwrap();
    put(
        first + 16,
        at(4) | more_sectors << (70 - cluster_bits) | 1 << 62,
    );
    put(first + len, at(5) | 1 << 63 | u64::from(version == 3));
    let block = usize::try_from(header.reftable_offset.0).unwrap() + len;
    let used = bytes.len() / len;
    for cluster in 0..used {
        refblock::set_refcount(&mut bytes[block..block + len], cluster, refcount_order, 1);
    }
    bytes
}
