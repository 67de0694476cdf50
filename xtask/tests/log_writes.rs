//! Logs of writes as people handle them: logs that QEMU's blklogwrites recorded are told of, put on a disk, explored, and
//! written again byte by byte.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]
#![allow(
    clippy::print_stderr,
    reason = "what was not measured is told where it is seen"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use blkdebug::log_writes::{Logged, SectorSize, SuperBlock, write_entry, write_super};

fn xtask(folder: &Path, arguments: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_xtask");
    Command::new(program)
        .arg("log")
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Ends with this code; what was printed.
fn ends(folder: &Path, arguments: &[&str], code: i32) -> String {
    let output = xtask(folder, arguments);
    let (out, errors) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(
        output.status.code(),
        Some(code),
        "{arguments:?}: {out}{errors}"
    );
    if code == 2 { errors } else { out }
}

fn corpus(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../corpus")
        .join(name)
}

/// A folder with a log of the corpus and the disk before it.
fn folder(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for kind in ["log", "base"] {
        fs::copy(
            corpus(&format!("logs/{name}.{kind}")),
            folder.path().join(kind),
        )
        .unwrap();
    }
    folder
}

/// Without QEMU the calling test measures nothing and says so, which in continuous integration is a failure.
fn have_qemu() -> bool {
    if Command::new("qemu-io").arg("--version").output().is_ok() {
        return true;
    }
    #[expect(clippy::disallowed_methods, reason = "a test may ask where it runs")]
    let ci = std::env::var("CI").is_ok();
    assert!(!ci, "qemu-io is missing, and CI promises to have it");
    eprintln!("NOT MEASURED: qemu-io is not installed, no log was recorded");
    false
}

#[test]
fn a_log_is_told_of() {
    let folder = folder("qemu-discard");
    let told = ends(folder.path(), &["info", "log", "--list"], 0);
    for line in [
        "sector            512 bytes",
        "entries           21",
        "flushes           9",
        "discards          2",
    ] {
        assert!(told.contains(line), "{line}: {told}");
    }
    assert!(told.contains("behind the end    0 bytes"), "{told}");
}

#[test]
fn a_reader_who_has_heard_enough_is_no_error() {
    let folder = folder("qemu-discard");
    let program = env!("CARGO_BIN_EXE_xtask");
    for arguments in [
        &["info", "log", "--list"][..],
        &["import", "log", "disk", "--base", "base"],
        &["export", "log", "copy"],
    ] {
        // Nobody reads from the first line on.
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut child = Command::new(program)
            .arg("log")
            .args(arguments)
            .current_dir(folder.path())
            .stdout(writer)
            .spawn()
            .unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0), "{arguments:?}");
    }
}

#[test]
fn a_damaged_log_is_refused_with_the_place_and_a_way_out() {
    let folder = folder("qemu-plain");
    let log = fs::read(folder.path().join("log")).unwrap();
    fs::write(folder.path().join("short"), &log[..5000]).unwrap();
    for arguments in [
        vec!["info", "short"],
        vec!["import", "short", "out"],
        vec!["export", "short", "out"],
        vec!["explore", "short"],
    ] {
        let says = ends(folder.path(), &arguments, 2);
        assert!(
            says.contains("short: at byte 4608 of the log") || says.contains("short: at byte 3584"),
            "{says}"
        );
        assert!(says.contains("--entries"), "{says}");
    }
    let says = ends(folder.path(), &["info", "base"], 2);
    assert!(says.contains("this is no log of writes"), "{says}");
    let says = ends(folder.path(), &["export", "log", "log"], 2);
    assert!(says.contains("write to another file"), "{says}");
    assert!(
        fs::read(folder.path().join("log")).unwrap() == log,
        "the log is as it was"
    );
}

/// By no name that it has, and not for a log that cannot be copied whole.
#[test]
fn what_is_read_is_not_written_to() {
    let folder = folder("qemu-plain");
    let path = |name: &str| folder.path().join(name);
    let (log, base) = (
        fs::read(path("log")).unwrap(),
        fs::read(path("base")).unwrap(),
    );
    fs::hard_link(path("log"), path("same")).unwrap();
    for arguments in [
        vec!["import", "log", "log", "--base", "base"],
        vec!["import", "log", "same", "--base", "base"],
        vec!["import", "log", "base", "--base", "base"],
        vec!["export", "log", "same"],
    ] {
        let says = ends(folder.path(), &arguments, 2);
        assert!(says.contains("write to another file"), "{says}");
    }
    assert!(fs::read(path("log")).unwrap() == log && fs::read(path("base")).unwrap() == base);
    fs::write(path("short"), &log[..5000]).unwrap();
    fs::write(path("out"), "kept").unwrap();
    ends(folder.path(), &["export", "short", "out"], 2);
    assert_eq!(fs::read(path("out")).unwrap(), b"kept");
}

#[test]
fn a_log_is_written_again_with_what_lies_behind_its_end() {
    let folder = folder("qemu-lazy");
    let mut log = fs::read(folder.path().join("log")).unwrap();
    // As after a kill: more entries than are counted, and the last one torn.
    log[16] = 9;
    log.truncate(log.len() - 100);
    fs::write(folder.path().join("log"), &log).unwrap();
    ends(folder.path(), &["export", "log", "copy"], 0);
    assert!(fs::read(folder.path().join("copy")).unwrap() == log);
    let told = ends(
        folder.path(),
        &["explore", "log", "--base", "base", "--beyond"],
        0,
    );
    let counted = ends(folder.path(), &["explore", "log", "--base", "base"], 0);
    assert!(
        told.contains("entries           31") || told.contains("entries           30"),
        "{told}"
    );
    assert!(counted.contains("entries           9 "), "{counted}");
}

#[test]
fn exploring_tells_of_violations_and_leaves_what_was_left() {
    let folder = folder("qemu-lazy-snapshot");
    let told = ends(folder.path(), &["explore", "log", "--base", "base"], 1);
    for line in [
        "VIOLATION guest/zeros/",
        "the log's write #12",
        "power lost while entry 12 was under way",
    ] {
        assert!(told.contains(line), "{line}: {told}");
    }
    assert!(
        folder.path().join("reports/guest-zeros-log.img").exists(),
        "{told}"
    );
    ends(
        folder.path(),
        &["explore", "log", "--base", "base", "--accept", "zeros"],
        0,
    );
    ends(
        folder.path(),
        &["explore", "log", "--base", "base", "--contract", "perfect"],
        0,
    );
    let says = ends(
        folder.path(),
        &["explore", "log", "--base", "base", "--contract", "liar"],
        2,
    );
    assert!(says.contains("cannot be told from a log"), "{says}");
    let says = ends(folder.path(), &["explore", "log"], 2);
    assert!(
        says.contains("never comes to a sound qcow2 image"),
        "{says}"
    );
}

/// As `dmsetup message` sets one.
#[test]
fn a_log_is_put_on_a_disk_up_to_a_mark() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = Vec::new();
    write_super(&mut log, &SuperBlock::new(3, SectorSize::SMALL)).unwrap();
    for (entry, data) in [
        (Logged::write(0, 1), vec![1; 512]),
        (Logged::mark("here"), Vec::new()),
        (Logged::write(0, 2), vec![2; 1024]),
    ] {
        write_entry(&mut log, SectorSize::SMALL, &entry, &data).unwrap();
    }
    fs::write(folder.path().join("log"), &log).unwrap();
    let told = ends(folder.path(), &["info", "log"], 0);
    assert!(told.contains("1 \"here\""), "{told}");
    ends(
        folder.path(),
        &["import", "log", "disk", "--mark", "here"],
        0,
    );
    assert_eq!(fs::read(folder.path().join("disk")).unwrap(), [1; 512]);
    ends(folder.path(), &["import", "log", "disk"], 0);
    assert_eq!(fs::read(folder.path().join("disk")).unwrap(), [2; 1024]);
    let says = ends(
        folder.path(),
        &["import", "log", "disk", "--mark", "there"],
        2,
    );
    assert!(says.contains("there is no mark `there`"), "{says}");
}

/// A recording of this project's own, with a defect planted: whoever reads its log alone finds it too.
#[test]
fn a_trace_becomes_a_log_that_shows_the_same_defect() {
    let folder = tempfile::tempdir().unwrap();
    for (trace, class) in [
        ("hookup-before-block", "structure/"),
        ("link-before-refcounts", "structure/"),
    ] {
        let trace = corpus(&format!("{trace}.json"));
        let trace = trace.to_str().unwrap();
        ends(folder.path(), &["export", trace, "log", "--start"], 0);
        ends(folder.path(), &["export", "log", "again"], 0);
        let read = |name: &str| fs::read(folder.path().join(name)).unwrap();
        assert!(read("log") == read("again"));
        let told = ends(folder.path(), &["explore", "log", "--base", "log.start"], 1);
        assert!(told.contains(&format!("VIOLATION {class}")), "{told}");
    }
    let trace = corpus("link-before-data-file.json");
    ends(
        folder.path(),
        &["export", trace.to_str().unwrap(), "two"],
        0,
    );
    assert!(folder.path().join("two.data").exists());
    let says = ends(
        folder.path(),
        &["export", trace.to_str().unwrap(), "none", "--disk", "base"],
        2,
    );
    assert!(
        says.contains("nothing is written to the disk `base`"),
        "{says}"
    );
}

/// What is recorded with QEMU's programs.
struct Workload {
    create: &'static str,
    open: &'static str,
    log: &'static str,
    commands: &'static [&'static str],
    /// What `explore` lets pass, and how it ends.
    explore: &'static [&'static str],
    code: i32,
}

const PLAIN: &[&str] = &[
    "write -P 1 0 32k",
    "flush",
    "write -P 2 8k 8k",
    "aio_write -P 3 64k 4k",
    "aio_write -P 4 72k 1k",
    "aio_flush",
    "flush",
    "write -z 8k 8k",
    "write -P 6 1k 1k",
    "write -P 7 200k 300",
];

const PACKED: &[&str] = &[
    "write -P 1 0 8k",
    "flush",
    "write -c -P 2 32k 4k",
    "write -c -P 3 36k 4k",
    "write -P 4 36k 1k",
    "flush",
];

const WORKLOADS: &[Workload] = &[
    Workload {
        create: "cluster_size=4k",
        open: "cache.direct=off",
        log: "",
        commands: PACKED,
        explore: &[],
        code: 0,
    },
    Workload {
        create: "cluster_size=4k",
        open: "cache.direct=off",
        log: "",
        commands: PLAIN,
        explore: &[],
        code: 0,
    },
    Workload {
        create: "cluster_size=4k,lazy_refcounts=on",
        open: "cache.direct=off",
        log: "",
        commands: PLAIN,
        explore: &[],
        code: 0,
    },
    Workload {
        create: "cluster_size=64k,lazy_refcounts=on",
        open: "cache.direct=on",
        log: ",file.log-sector-size=4096",
        commands: PLAIN,
        explore: &[],
        code: 0,
    },
    Workload {
        create: "cluster_size=512",
        open: "cache.direct=off",
        log: ",file.log-sector-size=32",
        commands: PLAIN,
        explore: &[],
        code: 0,
    },
    Workload {
        create: "cluster_size=4k",
        open: "discard=unmap",
        log: "",
        commands: &[
            "write -P 1 0 32k",
            "flush",
            "write -z -u 8k 8k",
            "discard 0 4k",
            "flush",
            "write -P 9 0 4k",
            "flush",
        ],
        explore: &["--discarded", "zeroes"],
        code: 0,
    },
    Workload {
        create: "cluster_size=4k",
        open: "discard=unmap",
        log: "",
        commands: &["write -P 1 0 32k", "flush", "write -z -u 8k 8k", "flush"],
        explore: &[],
        code: 1,
    },
];

fn qemu(folder: &Path, program: &str, arguments: &[&str]) {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        text(&output.stderr)
    );
}

/// The log explored, put on the disk from before, and written again.
fn holds(folder: &Path, explore: &[&str], code: i32) {
    let arguments = [
        &["explore", "log", "--base", "base", "--time", "60s"],
        explore,
    ]
    .concat();
    ends(folder, &arguments, code);
    ends(folder, &["import", "log", "again", "--base", "base"], 0);
    ends(folder, &["export", "log", "copy"], 0);
    let read = |name: &str| fs::read(folder.join(name)).unwrap();
    assert!(
        read("again") == read("disk"),
        "the log leads to what QEMU left"
    );
    assert!(read("copy") == read("log"));
}

#[test]
fn what_qemu_io_records_is_explored_and_comes_back() {
    if !have_qemu() {
        return;
    }
    for workload in WORKLOADS {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        qemu(
            path,
            "qemu-img",
            &[
                "create",
                "-q",
                "-f",
                "qcow2",
                "-o",
                workload.create,
                "base",
                "256k",
            ],
        );
        fs::copy(path.join("base"), path.join("disk")).unwrap();
        fs::write(path.join("log"), b"").unwrap();
        let options = format!(
            "driver=qcow2,{},file.driver=blklogwrites,file.file.driver=file,file.file.filename=disk,file.log.driver=file,\
             file.log.filename=log{}",
            workload.open, workload.log
        );
        let mut arguments = vec!["--image-opts", &options];
        arguments.extend(workload.commands.iter().flat_map(|command| ["-c", command]));
        qemu(path, "qemu-io", &arguments);
        holds(path, workload.explore, workload.code);
    }
}

#[test]
fn snapshots_that_qemu_img_takes_are_explored() {
    if !have_qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    qemu(
        path,
        "qemu-img",
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            "cluster_size=4k",
            "base",
            "256k",
        ],
    );
    qemu(
        path,
        "qemu-io",
        &["-f", "qcow2", "-c", "write -P 1 0 32k", "base"],
    );
    fs::copy(path.join("base"), path.join("disk")).unwrap();
    fs::write(path.join("log"), b"").unwrap();
    let options = "driver=qcow2,file.driver=blklogwrites,file.file.driver=file,file.file.filename=disk,file.log.driver=file,\
                   file.log.filename=log";
    let more = format!("{options},file.log-append=on");
    qemu(
        path,
        "qemu-img",
        &["snapshot", "--image-opts", "-c", "one", options],
    );
    qemu(
        path,
        "qemu-io",
        &[
            "--image-opts",
            &more,
            "-c",
            "write -P 2 4k 8k",
            "-c",
            "flush",
            "-c",
            "write -P 3 0 1k",
        ],
    );
    qemu(
        path,
        "qemu-img",
        &["snapshot", "--image-opts", "-a", "one", &more],
    );
    qemu(
        path,
        "qemu-img",
        &["snapshot", "--image-opts", "-d", "one", &more],
    );
    // QEMU raises the refcounts before it takes back what the tables claim, and calls that an error itself.
    holds(path, &[], 1);
    let left = fs::read_dir(path.join("reports"))
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let left: Vec<PathBuf> = left
        .filter(|path| path.to_str().unwrap().contains("false-copied"))
        .collect();
    assert!(!left.is_empty());
    for image in left {
        let check = Command::new("qemu-img")
            .args(["check", "-f", "qcow2"])
            .arg(image)
            .output()
            .unwrap();
        assert_eq!(check.status.code(), Some(2), "{}", text(&check.stdout));
    }
}
