//! Who has an image open is seen by who wants it next, whichever of the programs either of them is.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]
#![allow(dead_code, reason = "the kit serves several tests")]

mod img_kit;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};

use tempfile::TempDir;

/// QEMU's programs and ours, under the names of QEMU's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    Qemu,
    Ours,
}

const BOTH: [Whose; 2] = [Whose::Qemu, Whose::Ours];

/// A folder with images: `h.qcow2` and `h.raw`, over both an overlay, and `d.qcow2` with a data file.
struct Images {
    folder: TempDir,
}

impl Images {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["qemu-img", "qemu-io"] {
            symlink(env!("CARGO_BIN_EXE_xtask"), folder.path().join(name)).unwrap();
        }
        let images = Self { folder };
        for line in [
            "create -q -f qcow2 h.qcow2 1M",
            "create -q -f raw h.raw 1M",
            "create -q -f qcow2 -b h.qcow2 -F qcow2 over.qcow2",
            "create -q -f qcow2 -b h.raw -F raw over-raw.qcow2",
            "create -q -f qcow2 -o data_file=d.data d.qcow2 1M",
        ] {
            let (code, text) = images.run(Whose::Qemu, &format!("qemu-img {line}"));
            assert_eq!(code, Some(0), "{line}: {text}");
        }
        images
    }

    fn command(&self, whose: Whose, line: &str) -> Command {
        let mut words = line.split_whitespace();
        let name = words.next().unwrap();
        let program = match whose {
            Whose::Qemu => PathBuf::from(name),
            Whose::Ours => self.folder.path().join(name),
        };
        let mut command = Command::new(program);
        // A pair of quotes stands for an empty word.
        command.args(words.map(|word| if word == "''" { "" } else { word }));
        command.current_dir(self.folder.path());
        command
    }

    /// How a call ends, and what it says on both streams.
    fn run(&self, whose: Whose, line: &str) -> (Option<i32>, String) {
        let output = self.command(whose, line).stdin(Stdio::null()).output();
        let output = output.unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(text).unwrap())
    }

    /// Keeps an image open by qemu-io with these options.
    fn hold(&self, whose: Whose, options: &str) -> Holder {
        let mut child = self
            .command(whose, &format!("qemu-io {options}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // An answer to a command comes when the image is open.
        writeln!(child.stdin.as_mut().unwrap(), "length").unwrap();
        let mut answers = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        answers.read_line(&mut line).unwrap();
        assert!(line.contains("1 MiB"), "{whose:?} {options}: {line}");
        Holder { child, answers }
    }
}

/// A program that has an image open until this is dropped.
struct Holder {
    child: Child,
    answers: BufReader<ChildStdout>,
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.answers.read_line(&mut String::new());
        let ended = self.child.wait();
        assert!(std::thread::panicking() || ended.unwrap().success());
    }
}

/// Calls that change nothing that the next could see, whether they are refused or not.
const CALLS: [&str; 40] = [
    "qemu-img info h.qcow2",
    "qemu-img info -U h.qcow2",
    "qemu-img info over.qcow2",
    "qemu-img info --backing-chain over.qcow2",
    "qemu-img check h.qcow2",
    "qemu-img check -U h.qcow2",
    "qemu-img check -r all h.qcow2",
    "qemu-img check -r all -U h.qcow2",
    "qemu-img check over-raw.qcow2",
    "qemu-img map h.qcow2",
    "qemu-img map -f raw h.raw",
    "qemu-img compare h.qcow2 over.qcow2",
    "qemu-img measure -O raw h.qcow2",
    "qemu-img snapshot -l h.qcow2",
    "qemu-img snapshot -c new h.qcow2",
    "qemu-img resize h.qcow2 1M",
    "qemu-img resize -f raw h.raw 1M",
    "qemu-img amend -o lazy_refcounts=off h.qcow2",
    "qemu-img rebase -u -b '' h.qcow2",
    "qemu-img bitmap --remove h.qcow2 none",
    "qemu-img bitmap --merge none -b h.qcow2 -F qcow2 d.qcow2 none",
    "qemu-img commit over.qcow2",
    "qemu-img commit over-raw.qcow2",
    "qemu-img convert -n -O qcow2 -f raw h.raw h.qcow2",
    "qemu-img convert -O qcow2 -f raw h.raw h.qcow2",
    "qemu-img convert -f raw h.raw new.raw",
    "qemu-img convert -U -f raw h.raw new.raw",
    "qemu-img convert -O qcow2 over.qcow2 new.qcow2",
    "qemu-img create -f qcow2 h.qcow2 1M",
    "qemu-img create -f raw h.raw 1M",
    "qemu-img create -f raw h.qcow2 1M",
    "qemu-img create -f qcow2 h.qcow2 1M",
    "qemu-img create -f qcow2 -b h.qcow2 -F qcow2 new.qcow2",
    "qemu-io -c quit h.qcow2",
    "qemu-io -r -c quit over.qcow2",
    "qemu-io -U -c quit h.qcow2",
    "qemu-io -U -r -c quit h.qcow2",
    "qemu-io -f raw -c quit h.raw",
    "qemu-io -c quit d.qcow2",
    "qemu-io -f raw -c quit d.data",
];

#[test]
fn an_open_image_is_refused_and_granted_as_by_qemu() {
    if !img_kit::have_qemu() {
        return;
    }
    let mut refused = 0;
    for options in [
        "h.qcow2",
        "-r h.qcow2",
        "-r -U h.qcow2",
        "-f raw h.raw",
        "-r -f raw h.raw",
        "over.qcow2",
        "over-raw.qcow2",
        "d.qcow2",
        "--image-opts driver=qcow2,file.filename=h.qcow2,file.locking=off",
        "--image-opts -r driver=qcow2,file.filename=h.qcow2,force-share=on",
    ] {
        for holding in BOTH {
            let images = Images::new();
            let _holder = images.hold(holding, options);
            for line in CALLS {
                let [theirs, ours] = BOTH.map(|whose| images.run(whose, line));
                assert_eq!(ours, theirs, "{line}, while {holding:?} holds {options}");
                refused += usize::from(theirs.1.contains("Is another process using"));
            }
        }
    }
    assert!(refused > 100, "{refused} calls were refused");
}
