//! `compare`: do two disks have the same content?

use engine::error::Error;

use super::getopt::{Parsed, flag, value};
use super::progress::{Progress, Shown};
use super::{Command, Stop, misuse, open_named, print, secrets, sharing};
use crate::block::failure::engine_text;
use crate::block::open::at_once;
use crate::block::status::{Content, Reach, Stretch, status};
use crate::block::{CacheMode, Depth, Failure, Node, Opening, Spec};
use engine::image::Access;

pub(super) const COMMAND: Command = Command {
    name: "compare",
    about: "Compare the content of two disks",
    operands: "FILENAME1 FILENAME2",
    options: &[
        flag(Some('h'), "help", "tell the options"),
        flag(Some('q'), "quiet", "say nothing that is not an error"),
        flag(Some('p'), "progress", "show how far it is"),
        value(Some('f'), "a-format", "the format of FILENAME1"),
        value(Some('F'), "b-format", "the format of FILENAME2"),
        flag(None, "image-opts", "the file names are sets of options"),
        flag(
            Some('s'),
            "strict",
            "sizes and allocation must be equal too",
        ),
        value(Some('T'), "cache", "the cache mode (writeback)"),
        flag(
            Some('U'),
            "force-share",
            "others may write the images meanwhile",
        ),
        value(None, "object", "a secret that options refer to"),
    ],
    run,
};

const DIFFERENT: u8 = 1;
const NOT_OPENED: u8 = 2;
const NO_STATUS: u8 = 3;
const NOT_READ: u8 = 4;

/// So much is compared at a time.
const STEP: u64 = 2 << 20;
const SECTOR: usize = 512;

fn run(parsed: &Parsed) -> Result<u8, Stop> {
    let [first, second] = parsed.operands.as_slice() else {
        return Err(misuse("compare", "Expecting two image file names"));
    };
    let secrets = secrets(parsed)?;
    let not_opened = |failure| Stop::FailedWith(NOT_OPENED, failure);
    let cache = CacheMode::of_source(parsed.get("cache").unwrap_or("writeback"));
    let opening = Opening {
        access: Access::ReadOnly,
        sharing: sharing(parsed),
        cache: cache.map_err(not_opened)?,
        depth: Depth::Chain,
        secrets: &secrets,
    };
    let open = |name: &str, format: &str| {
        spec_of(name, parsed, format).and_then(|spec| open_named(name, &spec, &opening))
    };
    let first = open(first, "a-format").map_err(not_opened)?;
    let second = open(second, "b-format").map_err(not_opened)?;
    let mut comparison = Comparison {
        first: &first,
        second: &second,
        quiet: parsed.has("quiet"),
        strict: parsed.has("strict"),
        progress: Progress::start(
            Shown::when(parsed.has("progress")),
            first.virtual_bytes().max(second.virtual_bytes()),
            2,
        ),
    };
    let outcome = comparison.run();
    comparison.progress.end();
    outcome
}

fn spec_of(name: &str, parsed: &Parsed, format: &str) -> Result<Spec, Failure> {
    let spec = match (parsed.has("image-opts"), parsed.get(format)) {
        (true, Some(_)) => {
            return Err(Failure::new(
                "--image-opts and --format are mutually exclusive",
            ));
        }
        (true, None) => Spec::from_image_opts(name),
        (false, format) => Spec::from_name(name, format),
    };
    spec.map_err(|why| Failure::could_not_open(name, &why))
}

struct Comparison<'a> {
    first: &'a Node,
    second: &'a Node,
    quiet: bool,
    strict: bool,
    progress: Progress,
}

impl Comparison<'_> {
    fn say(&self, text: &str) {
        if !self.quiet {
            print(text);
        }
    }

    fn run(&mut self) -> Result<u8, Stop> {
        let (a, b) = (self.first.virtual_bytes(), self.second.virtual_bytes());
        if self.strict && a != b {
            self.say("Strict mode: Image size mismatch!\n");
            return Ok(DIFFERENT);
        }
        let both = a.min(b);
        let mut at = 0;
        while at < both {
            let one = self.status(self.first, at, both)?;
            let other = self.status(self.second, at, both)?;
            let len = one.len_bytes.min(other.len_bytes);
            if self.strict && strict_status(&one) != strict_status(&other) {
                self.say(&format!(
                    "Strict mode: Offset {at} block status mismatch!\n"
                ));
                return Ok(DIFFERENT);
            }
            let (one, other) = (one.content.reads_zero(), other.content.reads_zero());
            let len = if one && other { len } else { len.min(STEP) };
            let mismatch = match (one, other) {
                (true, true) => None,
                (false, true) => Self::first_not_zero(self.first, at, len)?,
                (true, false) => Self::first_not_zero(self.second, at, len)?,
                (false, false) => self.first_difference(at, len)?,
            };
            if let Some(offset) = mismatch {
                return Ok(self.differ_at(offset));
            }
            at += len;
            self.progress.at(at);
        }
        if a != b {
            return self.rest(both);
        }
        self.say("Images are identical.\n");
        Ok(0)
    }

    /// The part that only one of the disks has must be zero.
    fn rest(&mut self, from: u64) -> Result<u8, Stop> {
        self.say("Warning: Image size mismatch!\n");
        let longer = if self.first.virtual_bytes() > from {
            self.first
        } else {
            self.second
        };
        let end = longer.virtual_bytes();
        let mut at = from;
        while at < end {
            let stretch = self.status(longer, at, end)?;
            if stretch.content.reads_zero() {
                at += stretch.len_bytes;
            } else {
                let len = stretch.len_bytes.min(STEP);
                if let Some(offset) = Self::first_not_zero(longer, at, len)? {
                    return Ok(self.differ_at(offset));
                }
                at += len;
            }
            self.progress.at(at);
        }
        self.say("Images are identical.\n");
        Ok(0)
    }

    fn differ_at(&self, offset: u64) -> u8 {
        self.say(&format!("Content mismatch at offset {offset}!\n"));
        DIFFERENT
    }

    fn status(&self, node: &Node, at: u64, end: u64) -> Result<Stretch, Stop> {
        let mut stretch = status(node, Reach::Chain, at, end - at).map_err(|_| {
            let which = if std::ptr::eq(node, self.first) {
                self.first
            } else {
                self.second
            };
            Stop::FailedWith(
                NO_STATUS,
                Failure(format!(
                    "Sector allocation test failed for {}",
                    which.filename
                )),
            )
        })?;
        // Requests start and end at sectors.
        if !stretch.len_bytes.is_multiple_of(512) {
            stretch.len_bytes = stretch.len_bytes.next_multiple_of(512);
            stretch.content = Content::Data;
        }
        Ok(stretch)
    }

    fn first_not_zero(node: &Node, at: u64, len_bytes: u64) -> Result<Option<u64>, Stop> {
        let bytes = read(node, at, len_bytes)?;
        Ok(sector_where(at, bytes.chunks(SECTOR), |sector| {
            sector.iter().any(|byte| *byte != 0)
        }))
    }

    fn first_difference(&self, at: u64, len_bytes: u64) -> Result<Option<u64>, Stop> {
        let one = read(self.first, at, len_bytes)?;
        let other = read(self.second, at, len_bytes)?;
        if one == other {
            return Ok(None);
        }
        let pairs = one.chunks(SECTOR).zip(other.chunks(SECTOR));
        Ok(sector_where(at, pairs, |(one, other)| one != other))
    }
}

fn read(node: &Node, at: u64, len_bytes: u64) -> Result<Vec<u8>, Stop> {
    let len = usize::try_from(len_bytes).expect("a step fits memory");
    at_once(node.image().read(at, len)).map_err(|error: Error| {
        Stop::FailedWith(
            NOT_READ,
            Failure(format!(
                "Error while reading offset {at} of {}: {}",
                node.filename,
                engine_text(&error)
            )),
        )
    })
}

fn sector_where<T>(
    at: u64,
    mut sectors: impl Iterator<Item = T>,
    is_it: impl Fn(T) -> bool,
) -> Option<u64> {
    let index = sectors.position(is_it)?;
    Some(at + 512 * u64::try_from(index).expect("an index in memory fits 64 bits"))
}

/// What the images of a strict comparison must agree on: everything that is said of a stretch but where
/// its bytes stand, including whether a disk ends with it.
fn strict_status(stretch: &Stretch) -> (Content, bool, bool) {
    (stretch.content, stretch.offset.is_some(), stretch.last)
}
