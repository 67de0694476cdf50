//! Carrying a history out on two images, each step by both sides, and comparing what comes of it.

use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use harness::prng::Prng;
use serde_json::Value;

use super::agree::differences;
use super::family::Family;
use super::history::{DATA_FILE, History, IMAGE, SECRET, Step};
use super::known::Known;
use crate::link_programs;

/// What `measure` counts in: the cluster size of a new image for which none is asked.
const NEW_CLUSTER_BYTES: u64 = 64 << 10;

/// Where histories are carried out, and the programs that do it.
#[derive(Debug)]
pub(super) struct Arena {
    folder: PathBuf,
    ours: Programs,
    theirs: Programs,
    keep: PathBuf,
    version: String,
}

/// A pair of programs.
#[derive(Clone, Debug)]
pub(super) struct Programs {
    pub(super) img: PathBuf,
    pub(super) io: PathBuf,
}

/// Who carries a step out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Ours,
    Theirs,
}

/// What came of a history.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) steps: u64,
    /// Steps that both sides refused.
    pub(super) refused: u64,
    /// The bug of QEMU's that ended the history.
    pub(super) known: Option<Known>,
    pub(super) disagreements: Vec<String>,
}

impl Side {
    /// The folder of a side that keeps to its own files.
    pub(super) fn folder(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Theirs => "theirs",
        }
    }

    fn other(self) -> Self {
        match self {
            Self::Ours => Self::Theirs,
            Self::Theirs => Self::Ours,
        }
    }
}

impl Arena {
    /// Where `control` says so QEMU stands on both sides.
    pub(super) fn new(keep: PathBuf, control: bool) -> io::Result<Self> {
        let folder =
            std::env::temp_dir().join(format!("qrash-differential-{}", std::process::id()));
        let links = folder.join("programs");
        link_programs(&links)?;
        let theirs = Programs {
            img: "qemu-img".into(),
            io: "qemu-io".into(),
        };
        let ours = if control {
            theirs.clone()
        } else {
            Programs {
                img: links.join("qemu-img"),
                io: links.join("qemu-io"),
            }
        };
        let version = Command::new(&theirs.img).arg("--version").output()?;
        let version = String::from_utf8_lossy(&version.stdout);
        let version = version.lines().next().unwrap_or("?").to_owned();
        Ok(Self {
            folder,
            ours,
            theirs,
            keep,
            version,
        })
    }

    /// Where cases and histories are carried out.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn version(&self) -> &str {
        &self.version
    }

    /// Carries a history out; `draw` decides who starts each step where. The images of a
    /// disagreement are kept.
    pub(super) fn carry_out(
        &self,
        place: &str,
        history: &History,
        draw: &mut Prng,
    ) -> io::Result<Outcome> {
        let folder = self.folder.join(place);
        let [a, b] = ["a", "b"].map(|name| folder.join(name));
        fs::create_dir_all(&a)?;
        fs::create_dir_all(&b)?;
        let mut outcome = Outcome::default();
        let mut script = Vec::new();
        // What QEMU added to each disk.
        let mut added = [const { Vec::new() }; 2];
        for step in &history.steps {
            let side = if draw.chance(1, 2) {
                Side::Ours
            } else {
                Side::Theirs
            };
            let in_a = self.step(side, step, history, &a)?;
            let in_b = self.step(side.other(), step, history, &b)?;
            script.push(format!("{side:?} in a: {step:?}"));
            outcome.steps += 1;
            let (ours, theirs, by_qemu) = match side {
                Side::Ours => (&in_a, &in_b, 1),
                Side::Theirs => (&in_b, &in_a, 0),
            };
            if in_a.status.code() != in_b.status.code() {
                outcome.known = Known::of_refusal(step, theirs, ours);
                if outcome.known.is_none() {
                    outcome.disagreements.push(format!(
                        "{step:?}: QEMU {}, here {}",
                        told(theirs),
                        told(ours)
                    ));
                }
                break;
            }
            if let Step::Grow { added: range, .. } = step {
                added[by_qemu].push(range.clone());
            }
            outcome.refused += u64::from(!in_a.status.success());
        }
        if outcome.disagreements.is_empty() && outcome.known.is_none() {
            self.compare(history, &folder, &mut outcome)?;
            if !outcome.disagreements.is_empty() {
                outcome.known = self.known_contents(&folder, &added)?;
            }
            if outcome.known.is_some() {
                outcome.disagreements.clear();
            }
        }
        if outcome.disagreements.is_empty() {
            fs::remove_dir_all(&folder)?;
        } else {
            script.extend(outcome.disagreements.iter().cloned());
            fs::write(folder.join("history.txt"), script.join("\n"))?;
            self.keep(&folder, place)?;
        }
        Ok(outcome)
    }

    /// Moves a folder to where images of disagreements are kept.
    pub(super) fn keep(&self, folder: &Path, place: &str) -> io::Result<()> {
        fs::create_dir_all(&self.keep)?;
        let kept = self.keep.join(place);
        let _ = fs::remove_dir_all(&kept);
        if fs::rename(folder, &kept).is_err() {
            copy_folder(folder, &kept)?;
            fs::remove_dir_all(folder)?;
        }
        Ok(())
    }

    fn step(
        &self,
        side: Side,
        step: &Step,
        history: &History,
        folder: &Path,
    ) -> io::Result<Output> {
        match step {
            Step::Img(words) | Step::Grow { words, .. } | Step::OursAlone(words) => {
                let side = match step {
                    Step::OursAlone(_) => Side::Ours,
                    Step::Img(_)
                    | Step::Grow { .. }
                    | Step::Io(_)
                    | Step::IoWith(..)
                    | Step::RawIo(..) => side,
                };
                let words: Vec<&str> = words
                    .iter()
                    .map(|word| if word == "''" { "" } else { word.as_str() })
                    .collect();
                call(&self.programs(side).img, &words, folder)
            }
            Step::RawIo(file, commands) => {
                let mut words = vec!["-f", "raw"];
                words.extend(commands.iter().flat_map(|command| ["-c", command]));
                words.push(file);
                call(&self.programs(side).io, &words, folder)
            }
            Step::Io(commands) => {
                let mut words = vec!["-d", "unmap"];
                let (options, name) = image_words(history, IMAGE);
                words.extend(options.iter().map(String::as_str));
                if !history.family.is_encrypted() {
                    words.extend(["-f", "qcow2"]);
                }
                words.extend(commands.iter().flat_map(|command| ["-c", command]));
                words.push(&name);
                call(&self.programs(side).io, &words, folder)
            }
            Step::IoWith(options, mode, commands) => {
                let mut name = format!("driver=qcow2,file.filename={IMAGE}");
                if !options.is_empty() {
                    name = format!("{name},{options}");
                }
                let mut words = vec!["-d", mode, "--image-opts"];
                words.extend(commands.iter().flat_map(|command| ["-c", command]));
                words.push(&name);
                call(&self.programs(side).io, &words, folder)
            }
        }
    }

    pub(super) fn programs(&self, side: Side) -> &Programs {
        match side {
            Side::Ours => &self.ours,
            Side::Theirs => &self.theirs,
        }
    }

    /// The bug of QEMU's that explains how the disks differ, if they do; `added` is what QEMU added to each.
    fn known_contents(
        &self,
        folder: &Path,
        added: &[Vec<Range<u64>>; 2],
    ) -> io::Result<Option<Known>> {
        if added.iter().all(Vec::is_empty) {
            return Ok(None);
        }
        let mut disks = Vec::new();
        for place in ["a", "b"] {
            let words = ["convert", "-f", "qcow2", "-O", "raw", IMAGE, "raw"];
            let folder = folder.join(place);
            let said = call(&self.ours.img, &words, &folder)?;
            if !said.status.success() {
                return Ok(None);
            }
            disks.push(fs::read(folder.join("raw"))?);
        }
        let [a, b] = [&disks[0], &disks[1]];
        Ok(Known::of_contents(b, a, &added[0]).or_else(|| Known::of_contents(a, b, &added[1])))
    }

    /// Compares the images with each other and what both sides say of them.
    fn compare(&self, history: &History, folder: &Path, outcome: &mut Outcome) -> io::Result<()> {
        self.compare_disks(history, folder, outcome)?;
        if history.family == Family::DataFile {
            self.compare_contents(None, folder, outcome)?;
            compare_raw_data(folder, outcome)?;
        }
        for name in &history.snapshots {
            self.compare_contents(Some(name), folder, outcome)?;
        }
        for name in ["a", "b"] {
            let folder = folder.join(name);
            for command in ["check", "info"] {
                self.describe(history, command, &folder, &Value::Null, outcome)?;
            }
            let map = self.describe(history, "map", &folder, &Value::Null, outcome)?;
            self.describe(history, "measure", &folder, &map, outcome)?;
        }
        Ok(())
    }

    /// Lets both sides compare the two disks.
    fn compare_disks(
        &self,
        history: &History,
        folder: &Path,
        outcome: &mut Outcome,
    ) -> io::Result<()> {
        for side in [Side::Ours, Side::Theirs] {
            let (mut words, mut a) = image_words(history, &format!("a/{IMAGE}"));
            let (_, mut b) = image_words(history, &format!("b/{IMAGE}"));
            if history.family == Family::DataFile {
                // The images name their data files as seen from their own folders.
                words.push("--image-opts".into());
                [a, b] = ["a", "b"].map(|place| {
                    format!(
                        "driver=qcow2,file.filename={place}/{IMAGE},data-file.filename={place}/{DATA_FILE}"
                    )
                });
            }
            words.insert(0, "compare".into());
            words.extend([a, b]);
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let said = call(&self.programs(side).img, &words, folder)?;
            if !said.status.success() {
                let line = format!("compare by {side:?}: {}", told(&said));
                outcome.disagreements.push(line);
            }
        }
        Ok(())
    }

    /// Compares the disks, or those of a snapshot, as each side reads them from the image that the other
    /// does not read.
    fn compare_contents(
        &self,
        snapshot: Option<&str>,
        folder: &Path,
        outcome: &mut Outcome,
    ) -> io::Result<()> {
        let what = snapshot.map_or_else(|| "the disk".into(), |name| format!("snapshot {name}"));
        let mut contents = Vec::new();
        for (side, place) in [(Side::Ours, "a"), (Side::Theirs, "b")] {
            let mut words = vec!["convert", "-f", "qcow2", "-O", "raw"];
            words.extend(snapshot.into_iter().flat_map(|name| ["-l", name]));
            words.extend([IMAGE, "raw"]);
            let folder = folder.join(place);
            let said = call(&self.programs(side).img, &words, &folder)?;
            if said.status.success() {
                contents.push(fs::read(folder.join("raw"))?);
            } else {
                let line = format!("convert of {what} by {side:?} {}", told(&said));
                outcome.disagreements.push(line);
            }
        }
        if contents.len() == 2 && contents[0] != contents[1] {
            outcome.disagreements.push(format!("{what} differs"));
        }
        Ok(())
    }

    /// Compares what both sides say of an image. Returns what this program says; `map` is what it said of
    /// its stretches before that, where that matters.
    fn describe(
        &self,
        history: &History,
        command: &str,
        folder: &Path,
        map: &Value,
        outcome: &mut Outcome,
    ) -> io::Result<Value> {
        let (options, name) = image_words(history, IMAGE);
        let mut words = vec![command, "--output=json"];
        if command == "measure" {
            words.extend(["-O", "qcow2"]);
        }
        words.extend(options.iter().map(String::as_str));
        if !history.family.is_encrypted() {
            words.extend(["-f", "qcow2"]);
        }
        words.push(&name);
        let [theirs, ours] =
            [&self.theirs, &self.ours].map(|programs| call(&programs.img, &words, folder));
        let (theirs, ours) = (theirs?, ours?);
        if theirs.status.code() != ours.status.code() {
            outcome.disagreements.push(format!(
                "{command}: QEMU {}, here {}",
                told(&theirs),
                told(&ours)
            ));
        }
        if command == "check" && !theirs.status.success() {
            outcome
                .disagreements
                .push(format!("check is not clean: {}", told(&theirs)));
        }
        let parse = |output: &Output| serde_json::from_slice::<Value>(&output.stdout);
        match (parse(&theirs), parse(&ours)) {
            (Ok(mut theirs), Ok(ours)) => {
                if command == "measure" {
                    count_no_holes(&mut theirs, &ours, map);
                }
                let lines = differences(command, &theirs, &ours);
                outcome.disagreements.extend(lines);
                Ok(ours)
            }
            (Err(_), Err(_)) => Ok(Value::Null),
            (Ok(_), Err(_)) | (Err(_), Ok(_)) => {
                outcome
                    .disagreements
                    .push(format!("{command}: only one side answers in JSON"));
                Ok(Value::Null)
            }
        }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Options before an image, and its name behind them.
fn image_words(history: &History, path: &str) -> (Vec<String>, String) {
    if history.family.is_encrypted() {
        let options = ["--object", SECRET, "--image-opts"].map(str::to_owned);
        let name = format!("driver=qcow2,file.filename={path},encrypt.key-secret=key");
        (options.to_vec(), name)
    } else {
        (Vec::new(), path.to_owned())
    }
}

/// Takes back what QEMU counts as data where our `map` of the disk tells holes of the file below: it looks for
/// these only in files that hold noticeably less than the image counts, and this program in all.
fn count_no_holes(theirs: &mut Value, ours: &Value, map: &Value) {
    let required = |value: &Value| value["required"].as_u64();
    let holes = map.as_array().map_or(0, |entries| hole_bytes(entries));
    if let (Some(by_qemu), Some(here)) = (required(theirs), required(ours))
        && here < by_qemu
        && by_qemu - here <= holes
    {
        theirs["required"] = ours["required"].clone();
    }
}

/// The bytes of all clusters of a new image that a hole below data reaches into.
fn hole_bytes(map: &[Value]) -> u64 {
    let holes = map
        .iter()
        .filter(|entry| entry["data"] == true && entry["zero"] == true);
    let clusters = holes.filter_map(|entry| {
        let start = entry["start"].as_u64()?;
        let end = start + entry["length"].as_u64()?;
        Some(end.div_ceil(NEW_CLUSTER_BYTES) - start / NEW_CLUSTER_BYTES)
    });
    clusters.sum::<u64>() * NEW_CLUSTER_BYTES
}

/// Looks whether raw data files by themselves hold what the disks were just read to hold.
fn compare_raw_data(folder: &Path, outcome: &mut Outcome) -> io::Result<()> {
    // The bits that other programs clear: the second says that the data file is raw.
    const AUTOCLEAR_AT: usize = 95;
    const RAW: u8 = 2;
    for place in ["a", "b"] {
        let folder = folder.join(place);
        let header = fs::read(folder.join(IMAGE))?;
        let disk = folder.join("raw");
        if header.get(AUTOCLEAR_AT).is_none_or(|bits| bits & RAW == 0) || !disk.exists() {
            continue;
        }
        let (disk, mut data) = (fs::read(disk)?, fs::read(folder.join(DATA_FILE))?);
        // QEMU makes it as long as whole clusters.
        data.resize(disk.len(), 0);
        if data != disk {
            let line = format!("the raw data file in {place} is not the disk");
            outcome.disagreements.push(line);
        }
    }
    Ok(())
}

fn call(program: &Path, words: &[&str], folder: &Path) -> io::Result<Output> {
    Command::new(program)
        .args(words)
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
}

/// How a call ended, in a few words.
fn told(output: &Output) -> String {
    let text = [&output.stderr, &output.stdout]
        .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
        .concat();
    let first = text.lines().find(|line| !line.trim().is_empty());
    match output.status.code() {
        Some(code) => format!("ends with {code} ({})", first.unwrap_or("no word")),
        None => format!("is ended by a signal ({})", first.unwrap_or("no word")),
    }
}

fn copy_folder(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
