//! Runs qemu-io and this program's `io` with the same commands on equal inputs, and compares what they
//! say and leave.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

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

const BOTH: [&str; 2] = ["qemu", "ours"];

impl Pair {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["qemu", "ours", "bin"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let link = folder.path().join("bin/qemu-io");
        symlink(env!("CARGO_BIN_EXE_xtask"), link).unwrap();
        Self { folder }
    }

    /// Makes an image with qemu-img in both folders.
    pub(crate) fn create(&self, arguments: &[&str]) {
        for who in BOTH {
            let created = Command::new("qemu-img")
                .args(["create", "-q"])
                .args(arguments)
                .current_dir(self.folder.path().join(who))
                .status();
            assert!(created.unwrap().success(), "{arguments:?}");
        }
    }

    /// Writes a file into both folders.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) {
        for who in BOTH {
            fs::write(self.folder.path().join(who).join(name), bytes).unwrap();
        }
    }

    /// Runs this program alone.
    pub(crate) fn ours(&self, arguments: &[&str], input: &str) -> Ended {
        self.run(
            "ours",
            &self.folder.path().join("bin/qemu-io"),
            arguments,
            input,
        )
    }

    /// Both must say the same on the output stream, say something on the other or not, and end the
    /// same.
    pub(crate) fn same_input(&self, arguments: &[&str], input: &str) -> Ended {
        let qemu = self.run("qemu", Path::new("qemu-io"), arguments, input);
        let ours = self.ours(arguments, input);
        assert_eq!(
            (ours.code, &ours.out),
            (qemu.code, &qemu.out),
            "{arguments:?}: ours, which complains {:?}, and qemu-io's, which complains {:?}",
            ours.err,
            qemu.err
        );
        qemu
    }

    /// The same of commands.
    pub(crate) fn same(&self, options: &[&str], commands: &[&str]) -> Ended {
        let mut arguments = options.to_vec();
        for command in commands {
            arguments.extend(["-c", command]);
        }
        self.same_input(&arguments, "")
    }

    /// The same, down to every word of the error stream.
    pub(crate) fn same_words(&self, options: &[&str], commands: &[&str]) {
        let mut arguments = options.to_vec();
        for command in commands {
            arguments.extend(["-c", command]);
        }
        let qemu = self.same_input(&arguments, "");
        let ours = self.ours(&arguments, "");
        assert_eq!(ours.err, qemu.err, "{arguments:?}");
    }

    /// Both must say the same on both streams and end the same, each called once.
    pub(crate) fn same_both(&self, arguments: &[&str]) {
        let qemu = self.run("qemu", Path::new("qemu-io"), arguments, "");
        let ours = self.ours(arguments, "");
        assert_eq!(ours, qemu, "{arguments:?}");
    }

    /// A file of one of the two, `qemu` or `ours`.
    pub(crate) fn path(&self, who: &str, name: &str) -> PathBuf {
        self.folder.path().join(who).join(name)
    }

    /// What qemu-img map says of the two images, qemu-io's first, without where they have their data:
    /// a stretch of each kind, and which have a place.
    pub(crate) fn maps(&self, name: &str) -> [Vec<String>; 2] {
        BOTH.map(|who| {
            let mapped = Command::new("qemu-img")
                .args(["map", "--output=json"])
                .arg(self.path(who, name))
                .output()
                .unwrap();
            let text = String::from_utf8(mapped.stdout).unwrap();
            let lines = text
                .lines()
                .map(|line| match line.split_once("\"offset\"") {
                    Some((before, _)) => format!("{before}placed"),
                    None => line.to_owned(),
                });
            lines.collect()
        })
    }

    /// How many bytes of the two files are allocated, qemu-io's first.
    pub(crate) fn allocated_bytes(&self, name: &str) -> [u64; 2] {
        BOTH.map(|who| fs::metadata(self.path(who, name)).unwrap().blocks() * 512)
    }

    /// Both images must hold the same, and ours must be sound.
    pub(crate) fn same_image(&self, name: &str, format: &str) {
        let at = |who: &str| self.folder.path().join(who).join(name);
        let compared = Command::new("qemu-img")
            .args(["compare", "-f", format, "-F", format])
            .args([at("qemu"), at("ours")])
            .output()
            .unwrap();
        assert!(compared.status.success(), "{compared:?}");
        if format == "qcow2" {
            self.sound(name);
        }
    }

    /// Our image must be sound.
    pub(crate) fn sound(&self, name: &str) {
        let checked = Command::new("qemu-img")
            .args(["check", "-f", "qcow2"])
            .arg(self.folder.path().join("ours").join(name))
            .output()
            .unwrap();
        assert!(checked.status.success(), "{checked:?}");
    }

    fn run(&self, who: &str, program: &Path, arguments: &[&str], input: &str) -> Ended {
        let mut child = Command::new("timeout")
            .arg("60")
            .arg(program)
            .args(arguments)
            .current_dir(self.folder.path().join(who))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // A program that ends early does not read its input.
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        Ended {
            code: output.status.code(),
            out: without_figures(&String::from_utf8(output.stdout).unwrap()),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// Takes away what depends on the machine: how long it took, and how fast it was.
fn without_figures(text: &str) -> String {
    let lines = text.split_inclusive('\n').map(|line| {
        if let Some((amount, _)) = line.split_once(" ops; ") {
            return format!("{amount} ops\n");
        }
        let fields: Vec<&str> = line.split(',').collect();
        if fields.len() == 5 && fields[2].contains(':') {
            return format!("{},{}\n", fields[0], fields[1]);
        }
        line.to_owned()
    });
    lines.collect()
}
