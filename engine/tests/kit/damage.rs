//! Images that qemu's programs made and a test then damages: what both programs find, and what repair makes
//! of it.

use std::path::{Path, PathBuf};

use engine::qcow2::check::{CheckOptions, CheckReport, Repair, Tally, check};
use tempfile::TempDir;

use super::{Ram, call, have, must, run, text};

/// A change of an image's bytes.
pub(crate) type Damage = fn(&mut Vec<u8>);

/// What `qemu-img check` says of an image where nothing is wrong.
pub(crate) const CLEAN: ([u64; 2], Option<i32>) = ([0, 0], Some(0));

/// A check of the engine, with its usual options.
pub(crate) fn checked(ram: &Ram, repair: Repair) -> CheckReport {
    run(check(&ram.port, repair, &CheckOptions::default())).unwrap()
}

/// A number that `qemu-img check --output=json` prints; what it leaves out is zero.
pub(crate) fn number(json: &str, key: &str) -> u64 {
    let Some((_, rest)) = json.split_once(&format!("\"{key}\": ")) else {
        return 0;
    };
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap()
}

/// What `qemu-img check` counts: corruptions and leaks, and its exit code.
pub(crate) fn counted_by_qemu(path: &Path, repair: &[&str]) -> ([u64; 2], Option<i32>) {
    let asked = ["check", "-f", "qcow2", "--output=json"];
    let output = call("qemu-img", &[&asked, repair, &[text(path)]].concat());
    let json = String::from_utf8(output.stdout).unwrap();
    let counts = ["corruptions", "leaks"].map(|key| number(&json, key));
    (counts, output.status.code())
}

/// What the disk, or a snapshot, shows by qemu-img.
pub(crate) fn shown(path: &Path, snapshot: Option<&str>) -> Vec<u8> {
    let raw = path.with_extension("raw");
    let mut arguments = vec!["convert", "-f", "qcow2", "-O", "raw"];
    if let Some(name) = snapshot {
        arguments.extend(["-l", name]);
    }
    arguments.extend([text(path), text(&raw)]);
    must("qemu-img", &arguments);
    std::fs::read(raw).unwrap()
}

/// An image without damage, in a folder of its own.
pub(crate) struct Sound {
    folder: TempDir,
    pub(crate) bytes: Vec<u8>,
    /// What its disk shows.
    pub(crate) disk: Vec<u8>,
}

impl Sound {
    /// Makes one, where qemu's programs are there to do it.
    pub(crate) fn made_by(make: fn(&Path)) -> Option<Self> {
        if !have("qemu-img") || !have("qemu-io") {
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        make(&path);
        Some(Self {
            bytes: std::fs::read(&path).unwrap(),
            disk: shown(&path, None),
            folder,
        })
    }

    /// The file that holds the image, or what became of it.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    /// Writes the image with a damage in the place of whatever was there.
    pub(crate) fn damaged(&self, what: &'static str, damage: Damage) -> Damaged<'_> {
        let mut bytes = self.bytes.clone();
        damage(&mut bytes);
        assert!(bytes != self.bytes, "{what}");
        std::fs::write(self.path(), &bytes).unwrap();
        let (counted, code) = counted_by_qemu(&self.path(), &[]);
        Damaged {
            sound: self,
            what,
            ram: Ram::from_bytes(&bytes),
            bytes,
            counted,
            code,
        }
    }

    /// The file shows the disk that the sound image shows.
    pub(crate) fn must_show_its_disk(&self, what: &str) {
        assert!(shown(&self.path(), None) == self.disk, "{what}");
    }
}

/// An image with damage, in the file and in memory.
pub(crate) struct Damaged<'a> {
    sound: &'a Sound,
    what: &'static str,
    bytes: Vec<u8>,
    pub(crate) ram: Ram,
    counted: [u64; 2],
    /// How `qemu-img check` ended.
    pub(crate) code: Option<i32>,
}

impl Damaged<'_> {
    /// What is found in it.
    pub(crate) fn found(&self) -> Tally {
        checked(&self.ram, Repair::None).found
    }

    /// What is found in it, which is what qemu-img counts.
    pub(crate) fn found_alike(&self) -> Tally {
        let found = self.found();
        assert_eq!(
            [found.corruptions, found.leaks],
            self.counted,
            "{}",
            self.what
        );
        found
    }

    /// Repairs it, after which both programs find nothing, another repair changes nothing, and the disk is
    /// what it was.
    pub(crate) fn repair_whole(&self) -> CheckReport {
        let what = self.what;
        let report = checked(&self.ram, Repair::All);
        assert!(report.is_clean(), "{what}: {report:#?}");
        let again = checked(&self.ram, Repair::None);
        assert!(again.findings.is_empty(), "{what}: {again:#?}");
        let hash = self.ram.device.snapshot().content_hash();
        checked(&self.ram, Repair::All);
        assert_eq!(self.ram.device.snapshot().content_hash(), hash, "{what}");
        self.ram.save(&self.sound.path());
        assert_eq!(counted_by_qemu(&self.sound.path(), &[]), CLEAN, "{what}");
        self.sound.must_show_its_disk(what);
        report
    }

    /// Lets qemu-img repair the file from its damaged state.
    pub(crate) fn repaired_by_qemu(&self) -> Ram {
        std::fs::write(self.sound.path(), &self.bytes).unwrap();
        counted_by_qemu(&self.sound.path(), &["-r", "all"]);
        Ram::load(&self.sound.path())
    }
}
