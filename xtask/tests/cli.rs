//! The commands as people call them: what they print, how they end, what they leave alone.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::rc::Rc;

use engine::device::{Port, RamDevice, drive};
use engine::qcow2::create::{CreateOptions, create};

fn xtask(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Refused with exit code 2 and words that say all of this: one line, and behind a wrong call the way to
/// the right one.
fn refused(folder: &Path, arguments: &[&str], says: &[&str]) {
    let output = xtask(folder, arguments);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {errors}");
    let is_usage = errors.contains("For more information, try '--help'.");
    assert!(
        is_usage || errors.lines().count() == 1,
        "{arguments:?}: {errors}"
    );
    for text in says {
        assert!(
            errors.contains(text),
            "{arguments:?} should name {text}: {errors}"
        );
    }
}

/// An image of which only the header is left.
fn cut_image() -> Vec<u8> {
    let ram = Rc::new(RamDevice::default());
    let port = Port::new(Rc::<RamDevice>::clone(&ram));
    let options = CreateOptions {
        virtual_bytes: 1 << 20,
        ..CreateOptions::default()
    };
    drive(create(&port, &options)).unwrap().unwrap();
    ram.snapshot().read_vec(0, 1024)
}

fn summary(folder: &Path) -> serde_json::Value {
    serde_json::from_str(&fs::read_to_string(folder.join("summary.json")).unwrap()).unwrap()
}

#[test]
fn the_same_seed_comes_to_the_same_digest_with_any_number_of_jobs() {
    let folder = tempfile::tempdir().unwrap();
    let mut digests = Vec::new();
    for (seed, jobs) in [("7", "1"), ("7", "2"), ("7", "5"), ("8", "2")] {
        let name = format!("out-{seed}-{jobs}");
        let arguments = [
            "fuzz", "--seed", seed, "--runs", "6", "--jobs", jobs, "--out", &name,
        ];
        let output = xtask(folder.path(), &arguments);
        assert_eq!(output.status.code(), Some(0), "{}", out(&output));
        assert!(
            out(&output).starts_with(&format!("seed {seed}\n")),
            "the seed comes first"
        );
        let summary = summary(&folder.path().join(name));
        for key in [
            "states_generated",
            "states_distinct",
            "states_judged",
            "repairs",
            "seconds",
            "violations",
        ] {
            assert!(
                summary[key].is_number(),
                "{key} is a documented number: {summary}"
            );
        }
        assert!(summary["states_judged"].as_u64().unwrap() > 0, "{summary}");
        digests.push(summary["digest"].as_str().unwrap().to_owned());
    }
    assert!(
        digests[0] == digests[1] && digests[1] == digests[2],
        "{digests:?}"
    );
    assert_ne!(digests[2], digests[3], "another seed is another campaign");
}

#[test]
fn what_cannot_be_used_is_refused_in_one_line_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).unwrap();
    at("text", b"no image");
    at(
        "header",
        &[b"QFI\xfb\0\0\0\x03".as_slice(), &[0; 200]].concat(),
    );
    at("broken.json", b"{\"format\": ");
    at("other.json", b"{\"something\": \"else\"}");
    at("file", b"");
    let here = folder.path();
    refused(here, &["fuzz"], &["--seed"]);
    refused(here, &["fuzz", "--seed", "x"], &["x"]);
    refused(
        here,
        &["fuzz", "--seed", "1", "--options", "colour=red"],
        &["colour"],
    );
    refused(
        here,
        &["fuzz", "--seed", "1", "--contract", "kind"],
        &["kind", "epoch-torn"],
    );
    refused(here, &["fuzz", "--seed", "1", "--time", "soon"], &["soon"]);
    refused(
        here,
        &["fuzz", "--seed", "1", "--image", "missing"],
        &["missing"],
    );
    refused(
        here,
        &["fuzz", "--seed", "1", "--image", "text"],
        &["text", "not a qcow2 image"],
    );
    refused(
        here,
        &["fuzz", "--seed", "1", "--image", "header"],
        &["header", "offset"],
    );
    at("cut", &cut_image());
    refused(
        here,
        &["fuzz", "--seed", "1", "--image", "cut"],
        &["cut", "damaged", "end of the file"],
    );
    assert_eq!(fs::read(here.join("cut")).unwrap(), cut_image());
    refused(
        here,
        &["fuzz", "--seed", "1", "--out", "file/below"],
        &["file/below"],
    );
    refused(here, &["replay", "missing.json"], &["missing.json"]);
    refused(here, &["replay", "broken.json"], &["broken.json", "line 1"]);
    refused(here, &["replay", "other.json"], &["other.json"]);
    refused(
        here,
        &["minimise", "broken.json"],
        &["broken.json", "line 1"],
    );
    refused(here, &["canary", "--only", "sparrow"], &["sparrow"]);
    refused(here, &["bogus"], &["bogus"]);
    assert_eq!(fs::read(here.join("text")).unwrap(), b"no image");
    assert_eq!(
        fs::read(here.join("broken.json")).unwrap(),
        b"{\"format\": "
    );
}

#[test]
fn check_ends_as_qemu_img_does() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("text"), b"no image").unwrap();
    for (name, code) in [("text", 63), ("missing", 1), (".", 1)] {
        let output = xtask(folder.path(), &["img", "check", name]);
        let errors = String::from_utf8(output.stderr.clone()).unwrap();
        assert_eq!(output.status.code(), Some(code), "{name}: {errors}");
        assert_eq!(errors.lines().count(), 1, "{name}: one line, not {errors}");
    }
}

/// What nothing is made of is not taken without a word.
#[test]
fn damage_without_a_word_takes_no_option_that_it_does_not_keep() {
    let folder = tempfile::tempdir().unwrap();
    for option in ["chain=on", "kill=on", "faults=on"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
        command.args(["faults", "--silent", "1", "--options", option]);
        let output = command.current_dir(folder.path()).output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{option}: {errors}");
        assert!(errors.contains(option), "{option}: {errors}");
    }
}

/// `cargo xtask fuzz | head` panicked on the closed pipe, and ended with 101.
#[test]
fn nobody_need_read_on() {
    let folder = tempfile::tempdir().unwrap();
    let commands: [&[&str]; 4] = [
        &["fuzz", "--seed", "1", "--runs", "2"],
        &["faults", "--seed", "1", "--count", "5"],
        &["faults", "--silent", "1"],
        &["malformed", "--images", "3"],
    ];
    for arguments in commands {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
        let mut child = command
            .args(arguments)
            .current_dir(folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {errors}");
    }
}

#[test]
fn certificates_of_shards_are_put_together_to_that_of_the_whole() {
    let folder = tempfile::tempdir().unwrap();
    let exhaust = ["exhaust", "--length", "1", "--geometry", "one", "--out"];
    let of = |out: &'static str, more: &[&'static str]| [&exhaust[..], &[out], more].concat();
    let digest = |output: &Output| {
        let text = out(output);
        assert_eq!(output.status.code(), Some(0), "{text}");
        let line = text.lines().find(|line| line.starts_with("digest "));
        line.unwrap().to_owned()
    };
    let merge = of("parts", &["--merge", "2"]);
    let first = xtask(folder.path(), &of("parts", &["--shard", "1/2"]));
    refused(folder.path(), &merge, &["2-of-2.json", "--shard 2/2"]);
    let second = xtask(folder.path(), &of("parts", &["--shard", "2/2"]));
    let merged = digest(&xtask(folder.path(), &merge));
    let whole = digest(&xtask(folder.path(), &of("whole", &[])));
    assert_eq!(merged, whole);
    assert_ne!(digest(&first), digest(&second));
    let name = "qcow2-one-1-epoch.json";
    let read = |out: &str| {
        let text = fs::read_to_string(folder.path().join(out).join(name)).unwrap();
        let certificate: serde_json::Value = serde_json::from_str(&text).unwrap();
        certificate["counts"].clone()
    };
    assert_eq!(read("parts"), read("whole"));

    // A shard that was stopped, or is of another engine, certifies nothing.
    let part = folder.path().join("parts/qcow2-one-1-epoch-1-of-2.json");
    let text = fs::read_to_string(&part).unwrap();
    let mut other: serde_json::Value = serde_json::from_str(&text).unwrap();
    other["blocks"] = 0.into();
    fs::write(&part, other.to_string()).unwrap();
    refused(folder.path(), &merge, &["1-of-2.json", "not done"]);
    other["engine"] = "0".into();
    fs::write(&part, other.to_string()).unwrap();
    refused(folder.path(), &merge, &["1-of-2.json", "engine"]);
}
