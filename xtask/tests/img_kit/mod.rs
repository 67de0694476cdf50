//! Runs qemu-img and this program's `img` on the same inputs, and compares what they say and leave.

#![allow(
    clippy::print_stderr,
    reason = "what was not measured is told where it is seen"
)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// Whether there is something to compare with. Without it the calling test measures nothing and says so,
/// which in continuous integration is a failure.
pub(crate) fn have_qemu() -> bool {
    if Command::new("qemu-img").arg("--version").output().is_ok() {
        return true;
    }
    #[expect(clippy::disallowed_methods, reason = "a test may ask where it runs")]
    let ci = std::env::var("CI").is_ok();
    assert!(!ci, "qemu-img is missing, and CI promises to have it");
    eprintln!("NOT MEASURED: qemu-img is not installed, nothing was compared with it");
    false
}

/// What a program said and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// Two folders with the same content, one for each program.
pub(crate) struct Pair {
    folder: TempDir,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    Qemu,
    Ours,
}

impl Pair {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["qemu", "ours", "bin"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        for name in ["qemu-img", "qemu-io"] {
            let link = folder.path().join("bin").join(name);
            symlink(env!("CARGO_BIN_EXE_xtask"), link).unwrap();
        }
        Self { folder }
    }

    pub(crate) fn folder(&self, who: Who) -> PathBuf {
        self.folder.path().join(match who {
            Who::Qemu => "qemu",
            Who::Ours => "ours",
        })
    }

    /// Runs one of the programs in its folder.
    pub(crate) fn run(&self, who: Who, arguments: &[&str]) -> Ended {
        self.run_program(who, "qemu-img", arguments)
    }

    /// Runs qemu-io, or this program's `io`.
    pub(crate) fn run_io(&self, who: Who, arguments: &[&str]) -> Ended {
        self.run_program(who, "qemu-io", arguments)
    }

    fn run_program(&self, who: Who, name: &str, arguments: &[&str]) -> Ended {
        let program = match who {
            Who::Qemu => PathBuf::from(name),
            Who::Ours => self.folder.path().join("bin").join(name),
        };
        run_in(&self.folder(who), &program, arguments)
    }

    /// Runs qemu-img in the folder of either.
    pub(crate) fn run_qemu_here(&self, who: Who, arguments: &[&str]) -> Ended {
        run_in(&self.folder(who), Path::new("qemu-img"), arguments)
    }

    /// Makes something by qemu's programs, in one folder, and copies it to the other.
    pub(crate) fn given(&self, program: &str, arguments: &[&str]) {
        let ended = run_in(&self.folder(Who::Qemu), Path::new(program), arguments);
        assert_eq!(ended.code, Some(0), "{program} {arguments:?}: {ended:?}");
        self.share();
    }

    /// Writes a file into both folders.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) {
        for who in [Who::Qemu, Who::Ours] {
            fs::write(self.folder(who).join(name), bytes).unwrap();
        }
    }

    /// Copies every file of qemu's folder to ours, with its holes.
    pub(crate) fn share(&self) {
        let from = format!("{}/.", self.folder(Who::Qemu).display());
        let to = self.folder(Who::Ours);
        let copied = Command::new("cp")
            .args(["-a", "--sparse=always", &from])
            .arg(to)
            .status()
            .unwrap();
        assert!(copied.success());
    }

    /// Runs both and hands back what they said.
    pub(crate) fn both(&self, arguments: &[&str]) -> (Ended, Ended) {
        (
            self.run(Who::Qemu, arguments),
            self.run(Who::Ours, arguments),
        )
    }

    /// Both must say the same, on both streams, and end the same.
    pub(crate) fn same(&self, arguments: &[&str]) -> Ended {
        let (qemu, ours) = self.both(arguments);
        assert_eq!(ours, qemu, "{arguments:?}: ours, and qemu-img's");
        qemu
    }

    /// The same, of a command that changes nothing: both look at the very same files.
    pub(crate) fn same_view(&self, arguments: &[&str]) -> Ended {
        let folder = self.folder(Who::Qemu);
        let qemu = run_in(&folder, Path::new("qemu-img"), arguments);
        let ours = run_in(&folder, &self.folder.path().join("bin/qemu-img"), arguments);
        assert_eq!(ours, qemu, "{arguments:?}: ours, and qemu-img's");
        qemu
    }

    /// Both qcow2 images show the same disk, and ours is whole.
    pub(crate) fn same_disk(&self, name: &str) {
        let theirs = self.folder(Who::Qemu).join(name);
        let theirs = theirs.to_str().unwrap();
        let compared = self.run_qemu_here(
            Who::Ours,
            &["compare", "-f", "qcow2", "-F", "qcow2", name, theirs],
        );
        assert_eq!(compared.code, Some(0), "{name}: {compared:?}");
        let check = self.run_qemu_here(Who::Ours, &["check", name]);
        assert_eq!(check.code, Some(0), "{name}: {check:?}");
    }

    /// Both must end the same, and say the same on the first stream.
    pub(crate) fn same_but_errors(&self, arguments: &[&str]) -> Ended {
        let (qemu, ours) = self.both(arguments);
        assert_eq!(
            (ours.code, &ours.out),
            (qemu.code, &qemu.out),
            "{arguments:?}: {} against {}",
            ours.err,
            qemu.err
        );
        assert_eq!(ours.err.is_empty(), qemu.err.is_empty(), "{arguments:?}");
        qemu
    }
}

fn run_in(folder: &Path, program: &Path, arguments: &[&str]) -> Ended {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap();
    Ended {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}
