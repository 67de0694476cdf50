//! `img bench` against qemu-img's: the same words, and the same disk afterwards.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]
#![allow(dead_code, reason = "the kit serves several tests")]

mod img_kit;

use img_kit::{Ended, Pair, Who};

/// What was said, without the time that it took.
fn untimed(mut ended: Ended) -> Ended {
    ended.out = ended
        .out
        .lines()
        .map(|line| match line.strip_prefix("Run completed in ") {
            Some(rest) => {
                let seconds = rest.strip_suffix(" seconds.").unwrap();
                let (_, fraction) = seconds.split_once('.').unwrap();
                assert_eq!(fraction.len(), 3, "{line}");
                "Run completed\n".to_owned()
            }
            None => format!("{line}\n"),
        })
        .collect();
    ended
}

#[test]
fn bench_says_and_writes_the_same() {
    if !img_kit::have_qemu() {
        return;
    }
    let pair = Pair::new();
    pair.given("qemu-img", &["create", "-q", "-f", "qcow2", "a", "8M"]);
    for (arguments, code) in [
        (&["-c", "10"][..], 0),
        (
            &["-q", "-w", "-c", "300", "-s", "4k", "-S", "36k", "-d", "3"],
            0,
        ),
        (
            &[
                "-w",
                "-c",
                "50",
                "--pattern",
                "65",
                "-o",
                "7M",
                "-S",
                "100k",
            ],
            0,
        ),
        (
            &[
                "-w",
                "-c",
                "9",
                "-s",
                "1000",
                "-o",
                "777",
                "--pattern",
                "0x42",
            ],
            0,
        ),
        (
            &[
                "-w",
                "-c",
                "40",
                "-d",
                "4",
                "--flush-interval",
                "8",
                "--pattern",
                "7",
            ],
            0,
        ),
        (
            &[
                "-w",
                "-c",
                "40",
                "-d",
                "4",
                "--flush-interval",
                "8",
                "--no-drain",
            ],
            0,
        ),
        (&["-c", "3", "-s", "1000", "-U", "-t", "none", "-n"], 0),
        (&["-f", "qcow2", "-i", "threads", "-c", "3", "-s", "8M"], 0),
        (&["-c", "1", "-s", "16M"], 1),
        (&["-c", "1", "-o", "8M"], 1),
        (&["-w", "-c", "1", "-o", "9M"], 1),
    ] {
        let (qemu, ours) = pair.both(&[&["bench"], arguments, &["a"]].concat());
        assert_eq!(untimed(ours), untimed(qemu.clone()), "{arguments:?}");
        assert_eq!(qemu.code, Some(code), "{arguments:?}");
        let other = pair.folder(Who::Qemu).join("a");
        let other = other.to_str().unwrap();
        let compare = ["compare", "-f", "qcow2", "-F", "qcow2", "a", other];
        let compared = pair.run_qemu_here(Who::Ours, &compare);
        assert_eq!(compared.code, Some(0), "{arguments:?}: {compared:?}");
        let check = pair.run_qemu_here(Who::Ours, &["check", "a"]);
        assert_eq!(check.code, Some(0), "{arguments:?}: {check:?}");
    }
}

#[test]
fn bench_refuses_what_qemu_img_refuses() {
    if !img_kit::have_qemu() {
        return;
    }
    let pair = Pair::new();
    pair.given("qemu-img", &["create", "-q", "-f", "qcow2", "a", "8M"]);
    for arguments in [
        &["a", "b"][..],
        &["missing"],
        &["-d", "0", "a"],
        &["-d", "-1", "a"],
        &["-c", "0", "a"],
        &["-c", "x", "a"],
        &["-c", "1k", "a"],
        &["-c", "4294967296", "a"],
        &["-s", "0", "a"],
        &["-s", "3G", "a"],
        &["-s", "x", "a"],
        &["-S", "3G", "a"],
        &["-o", "x", "a"],
        &["-o", "-1", "a"],
        &["-i", "bogus", "a"],
        &["-i", "native", "a"],
        &["-t", "bogus", "a"],
        &["-w", "-U", "a"],
        &["-w", "--pattern", "256", "a"],
        &["--flush-interval", "100", "a"],
        &["-w", "-d", "10", "--flush-interval", "5", "a"],
        &["-w", "--flush-interval", "x", "a"],
        &["-f", "bogus", "a"],
    ] {
        let ended = pair.same(&[&["bench"], arguments].concat());
        assert_eq!(ended.code, Some(1), "{arguments:?}");
    }
}
