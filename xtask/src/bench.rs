//! `bench`: the commands that people wait for, against QEMU's, on the same files in one run.
//!
//! Both sides take turns in drawn order, and the medians make the ratio: the machine may be shared and noisy. A
//! ratio above one says that this program is faster.
//!
//! A virtual machine gives free memory back to its host (the balloon's free page reporting, every two seconds),
//! and whoever writes a file next waits for the host to bring it: 0.8 s for 768 MiB where the write itself takes
//! 0.2 s. Turns of a fixed length can meet this always on the same side. So memory is brought in before each
//! run, and the order is drawn.

#![allow(clippy::disallowed_methods, reason = "the command line has the clock")]

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use harness::prng::Prng;

use crate::{Ending, Refusal};

/// Measure the commands that people wait for against QEMU's
#[derive(Args, Debug)]
pub(crate) struct Bench {
    /// Whom to measure against
    #[arg(long, value_enum, default_value = "qemu")]
    against: Against,
    /// How often each side does each piece of work; the median counts
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Only pieces of work whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// Where the files stand: without it, /dev/shm where there is one
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// The size of the disks that are converted
    #[arg(long, default_value_t = 1024, value_name = "MIB")]
    mebibytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Against {
    /// qemu-img of this machine
    Qemu,
}

/// A piece of work: what is prepared once, what is done before each run, and what is measured.
struct Work {
    name: &'static str,
    /// Calls of QEMU's program.
    prepare: &'static [&'static str],
    before: &'static [&'static str],
    /// Arguments for QEMU and for this program.
    measured: [&'static str; 2],
}

const WORKS: [Work; 6] = [
    Work {
        name: "check, 16 GiB in clusters of 4 KiB",
        prepare: &["create -q -f qcow2 -o cluster_size=4k,preallocation=metadata big.qcow2 16G"],
        before: &[],
        measured: ["check -q big.qcow2"; 2],
    },
    Work {
        name: "convert raw to qcow2",
        prepare: &[],
        before: &[],
        measured: ["convert -f raw -O qcow2 disk.raw out.qcow2"; 2],
    },
    Work {
        name: "convert qcow2 to raw",
        prepare: &["convert -f raw -O qcow2 disk.raw disk.qcow2"],
        before: &[],
        measured: ["convert -f qcow2 -O raw disk.qcow2 out.raw"; 2],
    },
    Work {
        name: "convert, compressed by zlib",
        prepare: &[],
        before: &[],
        measured: [
            "convert -c -m 2 -f raw -O qcow2 disk.raw out.qcow2",
            "convert -c -f raw -O qcow2 disk.raw out.qcow2",
        ],
    },
    Work {
        name: "convert, compressed by zstd",
        prepare: &[],
        before: &[],
        measured: [
            "convert -c -m 2 -f raw -O qcow2 -o compression_type=zstd disk.raw out.qcow2",
            "convert -c -f raw -O qcow2 -o compression_type=zstd disk.raw out.qcow2",
        ],
    },
    Work {
        name: "allocating writes of 4 KiB, 64 in flight",
        prepare: &[],
        before: &["create -q -f qcow2 -o lazy_refcounts=on new.qcow2 2G"],
        measured: ["bench -q -f qcow2 -w -c 65536 -d 64 -s 4096 -t writeback new.qcow2"; 2],
    },
];

impl Bench {
    pub(crate) fn run(&self) -> Result<Ending, Refusal> {
        let Against::Qemu = self.against;
        let folder = self.prepare().map_err(Refusal::new)?;
        let result = self.measure_all(&folder);
        let _ = std::fs::remove_dir_all(&folder);
        result
    }

    fn prepare(&self) -> std::io::Result<PathBuf> {
        let shared = Path::new("/dev/shm");
        let base = match &self.folder {
            Some(folder) => folder.clone(),
            None if shared.is_dir() => shared.to_owned(),
            None => std::env::temp_dir(),
        };
        let folder = base.join(format!("qrash-bench-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        symlink(std::env::current_exe()?, folder.join("qemu-img"))?;
        Ok(folder)
    }

    fn measure_all(&self, folder: &Path) -> Result<Ending, Refusal> {
        let ours = folder.join("qemu-img");
        let theirs = Path::new("qemu-img");
        let chosen = |work: &&Work| work.name.contains(&self.only);
        if WORKS
            .iter()
            .filter(chosen)
            .any(|work| work.name.contains("convert"))
        {
            write_disk(&folder.join("disk.raw"), self.mebibytes).map_err(Refusal::new)?;
        }
        println!(
            "{:<42} {:>10} {:>10} {:>8}",
            "median seconds", "qemu-img", "here", "ratio"
        );
        let mut order = Prng::from_seed(1).fork("order");
        for work in WORKS.iter().filter(chosen) {
            for call in work.prepare {
                timed(theirs, call, folder)?;
            }
            let mut times = [Vec::new(), Vec::new()];
            for _ in 0..self.runs.max(1) {
                let first = order.index(2);
                for side in [first, 1 - first] {
                    for call in work.before {
                        timed(theirs, call, folder)?;
                    }
                    self.bring_memory(folder).map_err(Refusal::new)?;
                    let program = [theirs, &ours][side];
                    times[side].push(timed(program, work.measured[side], folder)?);
                }
            }
            let [theirs, ours] = times.map(median);
            println!(
                "{:<42} {:>10.3} {:>10.3} {:>7.2}x",
                work.name,
                theirs.as_secs_f64(),
                ours.as_secs_f64(),
                theirs.as_secs_f64() / ours.as_secs_f64()
            );
        }
        Ok(Ending::Clean)
    }

    /// Leaves the machine more free memory that its host has not taken back than a run fills.
    fn bring_memory(&self, folder: &Path) -> std::io::Result<()> {
        let path = folder.join("memory");
        let mut file = File::create(&path)?;
        let block = vec![0; 1 << 20];
        for _ in 0..self.mebibytes + self.mebibytes / 4 {
            file.write_all(&block)?;
        }
        drop(file);
        std::fs::remove_file(path)
    }
}

fn timed(program: &Path, call: &str, folder: &Path) -> Result<Duration, Refusal> {
    let began = Instant::now();
    let output = Command::new(program)
        .args(call.split(' '))
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Refusal::new(format!("{}: {error}", program.display())))?;
    let took = began.elapsed();
    if output.status.success() {
        return Ok(took);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.lines().next().unwrap_or("no word").to_owned();
    Err(Refusal::new(format!(
        "`{} {call}` failed: {said}",
        program.display()
    )))
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// A disk as guests have them: a quarter zeroes, a quarter text, a quarter noise, a quarter records that are alike.
fn write_disk(path: &Path, mebibytes: u64) -> std::io::Result<()> {
    let mut draw = Prng::from_seed(1).fork("disk");
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    let words = [
        "block", "flush", "table", "the", "of", "cluster", "and", "a", "refcount", "write", "to",
        "guest", "image",
    ];
    for piece in 0..mebibytes * 16 {
        let mut bytes = Vec::with_capacity(64 << 10);
        while bytes.len() < 64 << 10 {
            match piece % 4 {
                0 => bytes.resize(64 << 10, 0),
                1 => {
                    bytes.extend_from_slice(draw.pick(&words).as_bytes());
                    bytes.push(b' ');
                }
                2 => bytes.extend_from_slice(&draw.bits().to_be_bytes()),
                _ => {
                    bytes.extend_from_slice(&piece.to_be_bytes());
                    bytes.extend_from_slice(&draw.below(1000).to_be_bytes());
                }
            }
        }
        file.write_all(&bytes[..64 << 10])?;
    }
    file.flush()
}
