//! Places that a disk has before the guest writes: `create`, `resize`, `convert`, `amend` and `truncate` with
//! each kind of preallocation, against qemu's programs.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]
#![allow(dead_code, reason = "the kit serves several tests")]

mod img_kit;

use std::fs;
use std::os::unix::fs::MetadataExt;

use img_kit::{Pair, Who};

const MODES: [&str; 4] = ["off", "metadata", "falloc", "full"];

/// What qemu-img says of either image, but for how long the file is, what it takes, and which of its clusters
/// are whose.
fn told(pair: &Pair, who: Who, name: &str, format: &str) -> Vec<String> {
    let looks: &[&[&str]] = match format {
        "raw" => &[&["info"], &["map", "--output=json"]],
        _ => &[
            &["info"],
            &["map", "--output=json"],
            &["check", "--output=json"],
        ],
    };
    let mut lines = Vec::new();
    for look in looks {
        let said = pair.run_qemu_here(who, &[*look, &["-f", format, name]].concat());
        assert_eq!(said.code, Some(0), "{look:?}: {said:?}");
        let left_out = [
            "disk size",
            "file length",
            "image-end-offset",
            "fragmented-clusters",
        ];
        let kept = said.out.lines();
        let kept = kept.filter(|line| !left_out.iter().any(|word| line.contains(word)));
        lines.extend(kept.map(|line| match line.split_once("\"offset\"") {
            Some((before, _)) if format != "raw" => format!("{before}placed"),
            _ => line.to_owned(),
        }));
    }
    lines
}

/// Both programs take these steps, a program and its words each, and say and leave the same after each.
fn same_steps(format: &str, steps: &[String]) {
    let pair = Pair::new();
    let source: Vec<u8> = (0..640 << 10)
        .map(|at| u8::from(at / 65536 % 3 == 1))
        .collect();
    pair.write("source", &source);
    for step in steps {
        let words: Vec<&str> = step.split_whitespace().collect();
        let [qemu, ours] = [Who::Qemu, Who::Ours].map(|who| match words[0] {
            "truncate" => pair.run_io(who, &["-f", format, "-c", step, "a"]),
            _ => pair.run(who, &words),
        });
        assert_eq!(ours, qemu, "{step}, after {steps:?}");
        let [qemu, ours] = [Who::Qemu, Who::Ours].map(|who| told(&pair, who, "a", format));
        assert_eq!(ours, qemu, "{step}, after {steps:?}");
        if format == "qcow2" {
            pair.same_disk("a");
        } else {
            let [qemu, ours] = [Who::Qemu, Who::Ours].map(|who| pair.folder(who).join("a"));
            assert_eq!(fs::read(&ours).unwrap(), fs::read(&qemu).unwrap(), "{step}");
            let blocks = |path| fs::metadata(path).unwrap().blocks();
            assert_eq!(blocks(ours), blocks(qemu), "{step}");
        }
    }
}

#[test]
fn a_raw_file_takes_its_space_as_qemu_img_has_it_take_it() {
    if !img_kit::have_qemu() {
        return;
    }
    for mode in MODES.into_iter().filter(|mode| *mode != "metadata") {
        same_steps(
            "raw",
            &[
                format!("create -f raw -o preallocation={mode} a 100k"),
                format!("resize -f raw --preallocation={mode} a 1M"),
                "resize -f raw --shrink a 512".to_owned(),
                format!("truncate -m {mode} 300k"),
                "create -q -f raw -o nocow=on a 1536".to_owned(),
                format!("resize -f raw --preallocation={mode} a 1000"),
                format!("convert -f raw -O raw -S 0 -o preallocation={mode} source a"),
            ],
        );
    }
}

#[test]
fn what_has_no_metadata_cannot_have_them_in_their_places() {
    if !img_kit::have_qemu() {
        return;
    }
    let pair = Pair::new();
    for line in [
        "create -f raw -o preallocation=metadata b 1M",
        "create -f raw -o preallocation=bogus b 1M",
        "create -f qcow2 -o preallocation=bogus b 1M",
        "create -f qcow2 -o nocow=on b 1M",
        "convert -O qcow2 -o nocow=on b c",
        "resize --preallocation=bogus b 2M",
        "resize --preallocation=full --shrink b 64k",
    ] {
        let words: Vec<&str> = line.split_whitespace().collect();
        pair.same(&words);
    }
}
