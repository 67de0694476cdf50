//! Drawing histories: how an image is made, and what is done to it.

use std::ops::Range;

use harness::prng::Prng;

use super::family::Family;

/// The image's file, in the folder of its side.
pub(super) const IMAGE: &str = "image.qcow2";
/// The names of the secrets that come and go.
const MORE_SECRETS: [&str; 2] = ["two", "three"];
/// The external data file, in the same folder.
pub(super) const DATA_FILE: &str = "data.raw";
/// The secret of encrypted images. It guards nothing.
pub(super) const SECRET: &str = "secret,id=key,data=correct-horse";

/// Splits commands into sessions: a compressed write behind something else starts anew once there was one.
/// Else QEMU goes on in the host cluster of the first, which may have been freed (docs/FINDINGS.md).
fn sessions(commands: Vec<String>) -> Vec<Vec<String>> {
    let compresses = |command: &String| command.starts_with("write -q -c");
    let mut sessions: Vec<Vec<String>> = vec![Vec::new()];
    for command in commands {
        let last = sessions.last_mut().expect("there is always one");
        let continues = last.last().is_none_or(compresses) || !last.iter().any(compresses);
        if compresses(&command) && !continues {
            sessions.push(vec![command]);
        } else {
            last.push(command);
        }
    }
    sessions
}

/// Everything that is done to an image.
#[derive(Clone, Debug)]
pub(super) struct History {
    pub(super) family: Family,
    pub(super) steps: Vec<Step>,
    /// The snapshots that may be there in the end.
    pub(super) snapshots: Vec<String>,
}

/// One call of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Arguments of qemu-img.
    Img(Vec<String>),
    /// Arguments of qemu-img that make the disk larger.
    Grow {
        /// The arguments.
        words: Vec<String>,
        /// The new part.
        added: Range<u64>,
    },
    /// Arguments of qemu-img for this program alone, on both images: QEMU would count iterations for a second,
    /// whatever it is asked for.
    OursAlone(Vec<String>),
    /// Commands of qemu-io on the image.
    Io(Vec<String>),
    /// The same on an image that is opened with these options, and with this `-d`.
    IoWith(String, &'static str, Vec<String>),
    /// Commands of qemu-io on a raw file.
    RawIo(String, Vec<String>),
}

/// What is drawn about an image, and what of it changes.
struct Shape {
    family: Family,
    cluster_bytes: u64,
    virtual_bytes: u64,
    refcount_bits: u64,
    version: u32,
    snapshots: Vec<String>,
    bitmaps: Vec<String>,
    /// What opens each key slot.
    slots: [Option<&'static str>; 8],
    made: u64,
}

/// Draws a history.
pub(super) fn draw(prng: &Prng, family: Family) -> History {
    let mut draw = prng.fork("shape");
    let mut shape = Shape::draw(&mut draw, family);
    let mut steps = shape.creation(&mut draw);
    let mut draw = prng.fork("steps");
    for _ in 0..draw.between(1, 4) {
        steps.extend(shape.guest_work(&mut draw));
        if draw.chance(3, 4) {
            steps.extend(shape.management(&mut draw));
        }
    }
    steps.extend(shape.guest_work(&mut draw));
    History {
        family,
        steps,
        snapshots: shape.snapshots,
    }
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// A call that counts iterations: one in sixteen is QEMU's too, and then takes most of a history's time.
fn counted(draw: &mut Prng, text: &str) -> Step {
    if draw.chance(1, 16) {
        img(text)
    } else {
        Step::OursAlone(words(text))
    }
}

/// Options of an open image; now and then such as are refused.
fn open_options(draw: &mut Prng) -> String {
    let mut options = Vec::new();
    for key in [
        "pass-discard-request",
        "pass-discard-snapshot",
        "pass-discard-other",
        "discard-no-unref",
        "discard-no-unref",
        "lazy-refcounts",
    ] {
        if draw.chance(1, 4) {
            options.push(format!("{key}={}", draw.pick(&["on", "off"])));
        }
    }
    let values: [(&str, &[&str]); 9] = [
        ("discard", &["unmap", "unmap", "ignore"]),
        ("detect-zeroes", &["on", "on", "unmap", "unmap", "off"]),
        ("overlap-check", &["none", "constant", "cached", "all"]),
        ("overlap-check.active-l2", &["on", "off"]),
        ("cache-clean-interval", &["0", "1", "900"]),
        ("l2-cache-entry-size", &["512", "512", "4096"]),
        ("l2-cache-size", &["1k", "64k", "8M"]),
        ("refcount-cache-size", &["4k", "1M"]),
        ("cache-size", &["64k", "1M"]),
    ];
    for (key, values) in values {
        if draw.chance(1, 4) {
            options.push(format!("{key}={}", draw.pick(values)));
        }
    }
    options.join(",")
}

fn img(text: &str) -> Step {
    Step::Img(words(text))
}

impl Shape {
    fn draw(draw: &mut Prng, family: Family) -> Self {
        let cluster_bits = if family == Family::ExtendedL2 {
            *draw.pick(&[14, 15, 16])
        } else {
            *draw.pick(&[9, 9, 10, 12, 12, 14, 16])
        };
        let cluster_bytes = 1 << cluster_bits;
        let clusters = draw.between(1, (4 << 20 >> cluster_bits).min(600));
        let less = if draw.chance(1, 3) {
            draw.below(cluster_bytes / 512) * 512
        } else {
            0
        };
        let old = family == Family::V2 || family == Family::Options && draw.chance(1, 6);
        let version = if old { 2 } else { 3 };
        let refcount_bits = if old || family == Family::Amend {
            16
        } else if family == Family::Snapshots {
            1 << draw.between(3, 6)
        } else {
            1 << draw.below(7)
        };
        Self {
            family,
            cluster_bytes,
            virtual_bytes: clusters * cluster_bytes - less,
            refcount_bits,
            version,
            snapshots: Vec::new(),
            bitmaps: Vec::new(),
            slots: [Some("key"), None, None, None, None, None, None, None],
            made: 0,
        }
    }

    fn creation(&self, draw: &mut Prng) -> Vec<Step> {
        let mut steps = Vec::new();
        let mut options = vec![
            format!("cluster_size={}", self.cluster_bytes),
            format!("refcount_bits={}", self.refcount_bits),
        ];
        let mut more = String::new();
        if self.version == 2 {
            options.push("compat=0.10".into());
        }
        match self.family {
            Family::V2
            | Family::Plain
            | Family::Resize
            | Family::Amend
            | Family::Snapshots
            | Family::Options
            | Family::Blkdebug
            | Family::Bitmaps => {}
            Family::Lazy => options.push("lazy_refcounts=on".into()),
            Family::Backing | Family::Commit | Family::Rebase => {
                steps.extend(self.backing(draw, "backing"));
                more = " -b backing -F qcow2".into();
            }
            Family::Zlib => options.push("compression_type=zlib".into()),
            Family::Zstd => options.push("compression_type=zstd".into()),
            Family::Preallocation => {
                let mode = draw.pick(&["metadata", "falloc", "full"]);
                options.push(format!("preallocation={mode}"));
            }
            Family::ExtendedL2 => options.push("extended_l2=on".into()),
            Family::DataFile => {
                options.push(format!("data_file={DATA_FILE}"));
                match draw.below(4) {
                    0 | 1 => options.push("data_file_raw=on".into()),
                    2 => {
                        steps.extend(self.backing(draw, "backing"));
                        more = " -b backing -F qcow2".into();
                    }
                    _ => options.push("lazy_refcounts=on".into()),
                }
            }
            Family::Luks => {
                options
                    .push("encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=1".into());
                more = format!(" --object {SECRET}");
            }
            Family::Aes => {
                options.push("encrypt.format=aes,encrypt.key-secret=key".into());
                more = format!(" --object {SECRET}");
            }
        }
        let (options, size) = (options.join(","), self.virtual_bytes);
        let create = format!("create -q -f qcow2{more} -o {options} {IMAGE} {size}");
        steps.push(if self.family == Family::Luks {
            counted(draw, &create)
        } else {
            img(&create)
        });
        steps
    }

    /// A backing file with something in it.
    fn backing(&self, draw: &mut Prng, name: &str) -> Vec<Step> {
        let size = match draw.below(3) {
            0 => self.virtual_bytes,
            1 => self.virtual_bytes / 1024 * 512 + 512,
            _ => self.virtual_bytes + draw.between(1, 64) * 512,
        };
        let raw = format!("{name}.raw");
        let pattern = draw.between(1, 255);
        let mut steps = vec![img(&format!("create -q -f raw {raw} {size}"))];
        let filled = (size / 2).next_multiple_of(512).min(size);
        let write = format!("write -q -P {pattern} 0 {filled}");
        steps.push(Step::RawIo(raw.clone(), vec![write]));
        steps.push(img(&format!("convert -q -f raw -O qcow2 {raw} {name}")));
        steps
    }

    /// A few commands of a guest's, by one opening of the image; where clusters are compressed, by several.
    fn guest_work(&self, draw: &mut Prng) -> Vec<Step> {
        let count = draw.between(1, 8);
        let commands: Vec<String> = (0..count).map(|_| self.guest_command(draw)).collect();
        if self.family == Family::Options {
            let mode = *draw.pick(&["unmap", "unmap", "ignore", "on", "off"]);
            vec![Step::IoWith(open_options(draw), mode, commands)]
        } else if self.compresses() {
            sessions(commands).into_iter().map(Step::Io).collect()
        } else {
            vec![Step::Io(commands)]
        }
    }

    fn compresses(&self) -> bool {
        matches!(self.family, Family::Zlib | Family::Zstd)
    }

    fn guest_command(&self, draw: &mut Prng) -> String {
        let (offset, len) = self.range(draw);
        let pattern = draw.between(1, 255);
        let compresses = self.compresses();
        let blank = self.family == Family::Options && draw.chance(1, 3);
        let pattern = if blank { 0 } else { pattern };
        match draw.below(12) {
            0..4 => format!("write -q -P {pattern} {offset} {len}"),
            4 if compresses => {
                // One cluster: of several, of which one is taken, QEMU writes some, and this program none.
                let offset = offset / self.cluster_bytes * self.cluster_bytes;
                let len = self.cluster_bytes.min(self.virtual_bytes - offset);
                format!("write -q -c -P {pattern} {offset} {len}")
            }
            4 => format!("write -q -P {pattern} {offset} 512"),
            5..8 if compresses => {
                // Whole clusters: of one that is zeroed in part and reads as zeroes then, QEMU gives the place
                // up and this program keeps it; only a compressed write can tell.
                let first = offset / self.cluster_bytes * self.cluster_bytes;
                let len = len.next_multiple_of(self.cluster_bytes);
                let len = len.min(self.virtual_bytes - first);
                format!("write -q -z -u {first} {len}")
            }
            5 => format!("write -q -z {offset} {len}"),
            6 | 7 => format!("write -q -z -u {offset} {len}"),
            8 | 9 => format!("discard -q {offset} {len}"),
            10 => "flush".into(),
            _ => format!("read -q {offset} {len}"),
        }
    }

    /// A range of the guest's disk, mostly around the seams of clusters and L2 tables.
    fn range(&self, draw: &mut Prng) -> (u64, u64) {
        let cluster = self.cluster_bytes;
        let last = self.virtual_bytes - 512;
        let base = match draw.below(4) {
            0 => 0,
            1 => last / cluster * cluster,
            2 => cluster * cluster / 8,
            _ => draw.below(self.virtual_bytes.div_ceil(cluster)) * cluster,
        };
        let within = match draw.below(4) {
            0 | 1 => 0,
            2 => cluster - 512,
            _ => draw.below(cluster / 512) * 512,
        };
        let offset = (base + within).min(last);
        let len = match draw.below(6) {
            0 | 1 => 512,
            2 => cluster,
            3 => draw.between(1, 3 * cluster / 512) * 512,
            4 => draw.between(1, 8) * cluster,
            _ => 2 * cluster,
        };
        (offset, len.min(self.virtual_bytes - offset))
    }

    /// What a manager does, where the family has something for one to do.
    fn management(&mut self, draw: &mut Prng) -> Vec<Step> {
        match self.family {
            Family::V2
            | Family::Plain
            | Family::Lazy
            | Family::Backing
            | Family::Zlib
            | Family::Zstd
            | Family::ExtendedL2
            | Family::Options
            | Family::Blkdebug
            | Family::Aes => Vec::new(),
            Family::Luks => vec![self.key_slot(draw)],
            Family::DataFile => vec![self.data_file(draw)],
            Family::Resize => vec![self.resize(draw)],
            Family::Preallocation => vec![self.preallocated_growth(draw)],
            Family::Amend => vec![Self::amend(draw)],
            Family::Snapshots => vec![self.snapshot(draw)],
            Family::Bitmaps => vec![self.bitmap(draw)],
            Family::Commit => vec![img(&format!("commit -q {IMAGE}"))],
            Family::Rebase => self.rebase(draw),
        }
    }

    fn resize(&mut self, draw: &mut Prng) -> Step {
        let bytes = match draw.below(3) {
            0 => self.virtual_bytes + draw.between(1, 64) * 512,
            1 => self.virtual_bytes + draw.between(1, 16) * self.cluster_bytes,
            _ => draw.between(1, self.virtual_bytes / 512) * 512,
        };
        let old = std::mem::replace(&mut self.virtual_bytes, bytes);
        if bytes < old {
            return img(&format!("resize -q --shrink {IMAGE} {bytes}"));
        }
        Step::Grow {
            words: words(&format!("resize -q {IMAGE} {bytes}")),
            added: old..bytes,
        }
    }

    fn data_file(&mut self, draw: &mut Prng) -> Step {
        match draw.below(8) {
            0..3 => {
                self.virtual_bytes += draw.between(1, 24) * 512;
                let bytes = self.virtual_bytes;
                img(&format!("resize -q {IMAGE} {bytes}"))
            }
            3 => img(&format!("amend -q -f qcow2 -o data_file_raw=off {IMAGE}")),
            4 => img(&format!("commit -q {IMAGE}")),
            5 => img(&format!("snapshot -q -c state {IMAGE}")),
            _ => Self::amend(draw),
        }
    }

    fn preallocated_growth(&mut self, draw: &mut Prng) -> Step {
        let more = match draw.below(2) {
            0 => draw.between(1, 64) * 512,
            _ => draw.between(1, 16) * self.cluster_bytes,
        };
        let start = self.virtual_bytes;
        self.virtual_bytes += more;
        let mode = draw.pick(&["off", "metadata", "falloc", "full"]);
        let bytes = self.virtual_bytes;
        Step::Grow {
            words: words(&format!("resize -q --preallocation={mode} {IMAGE} {bytes}")),
            added: start..bytes,
        }
    }

    fn amend(draw: &mut Prng) -> Step {
        let option = match draw.below(5) {
            0 => format!("refcount_bits={}", 1 << draw.below(7)),
            1 => "lazy_refcounts=on".into(),
            2 => "lazy_refcounts=off".into(),
            3 => "compat=0.10".into(),
            _ => "compat=1.1".to_owned(),
        };
        img(&format!("amend -q -f qcow2 -o {option} {IMAGE}"))
    }

    /// A secret comes or goes; the first stays, so that both images can be compared.
    fn key_slot(&mut self, draw: &mut Prng) -> Step {
        let slot = 1 + draw.index(7);
        let secret = *draw.pick(&MORE_SECRETS);
        let alone = self.slots[1..].iter().all(Option::is_none);
        let (force, option) = match draw.below(8) {
            0 if alone => ("", "inactive,encrypt.keyslot=0".to_owned()),
            1 if alone => ("", "inactive,encrypt.old-secret=key".to_owned()),
            0 | 1 => {
                for held in &mut self.slots {
                    *held = held.filter(|held| *held != secret);
                }
                ("", format!("inactive,encrypt.old-secret={secret}"))
            }
            2 => {
                self.slots[slot] = None;
                ("", format!("inactive,encrypt.keyslot={slot}"))
            }
            kind @ (3 | 4) => {
                let force = if kind == 3 { "--force " } else { "" };
                if self.slots[slot].is_none() || kind == 3 {
                    self.slots[slot] = Some(secret);
                }
                let place = format!("encrypt.keyslot={slot},encrypt.iter-time=1");
                (force, format!("active,encrypt.new-secret={secret},{place}"))
            }
            _ => {
                if let Some(free) = self.slots.iter_mut().find(|held| held.is_none()) {
                    *free = Some(secret);
                }
                let option = format!("active,encrypt.new-secret={secret},encrypt.iter-time=1");
                ("", option)
            }
        };
        let more = MORE_SECRETS.map(|id| format!("--object secret,id={id},data={id}"));
        let amend = format!(
            "amend {force}--object {SECRET} {} --image-opts -o encrypt.state={option} \
             driver=qcow2,file.filename={IMAGE},encrypt.key-secret=key",
            more.join(" ")
        );
        if option.starts_with("active") {
            counted(draw, &amend)
        } else {
            img(&amend)
        }
    }

    fn snapshot(&mut self, draw: &mut Prng) -> Step {
        let there = !self.snapshots.is_empty();
        match draw.below(4) {
            0 if there => {
                let name = draw.pick(&self.snapshots);
                img(&format!("snapshot -q -a {name} {IMAGE}"))
            }
            1 if there => {
                let name = self.snapshots.swap_remove(draw.index(self.snapshots.len()));
                img(&format!("snapshot -q -d {name} {IMAGE}"))
            }
            _ => {
                self.made += 1;
                let name = format!("state{}", self.made);
                let step = img(&format!("snapshot -q -c {name} {IMAGE}"));
                self.snapshots.push(name);
                step
            }
        }
    }

    fn bitmap(&mut self, draw: &mut Prng) -> Step {
        let there = !self.bitmaps.is_empty();
        let name = |draw: &mut Prng, of: &[String]| draw.pick(of).clone();
        match draw.below(8) {
            0 if there => {
                let name = self.bitmaps.swap_remove(draw.index(self.bitmaps.len()));
                img(&format!("bitmap --remove {IMAGE} {name}"))
            }
            1 if there => {
                let name = name(draw, &self.bitmaps);
                img(&format!("bitmap --clear {IMAGE} {name}"))
            }
            2 if there => {
                let name = name(draw, &self.bitmaps);
                img(&format!("bitmap --disable {IMAGE} {name}"))
            }
            3 if there => {
                let name = name(draw, &self.bitmaps);
                img(&format!("bitmap --enable {IMAGE} {name}"))
            }
            4 if there => {
                let (from, to) = (name(draw, &self.bitmaps), name(draw, &self.bitmaps));
                img(&format!("bitmap --merge {from} {IMAGE} {to}"))
            }
            _ => {
                self.made += 1;
                let name = format!("bitmap{}", self.made);
                let granularity = 512 << draw.below(8);
                let step = img(&format!("bitmap --add -g {granularity} {IMAGE} {name}"));
                self.bitmaps.push(name);
                step
            }
        }
    }

    fn rebase(&mut self, draw: &mut Prng) -> Vec<Step> {
        self.made += 1;
        let name = format!("other{}", self.made);
        let mut steps = self.backing(draw, &name);
        steps.push(if draw.chance(1, 4) {
            img(&format!("rebase -q -b {} {IMAGE}", "''"))
        } else {
            img(&format!("rebase -q -b {name} -F qcow2 {IMAGE}"))
        });
        steps
    }
}
