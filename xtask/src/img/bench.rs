//! `bench`: how long a number of equal requests takes, with so many of them in flight.

use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use engine::error::Error;
use engine::image::{Access, Image, LocalFuture};

use super::getopt::{Parsed, flag, value};
use super::{Command, Stop, misuse, open_named, print, secrets, sharing, sizes, spec_of};
use crate::block::open::at_once;
use crate::block::{CacheMode, Depth, Failure, Opening};

pub(super) const COMMAND: Command = Command {
    name: "bench",
    about: "Time reads or writes of an image",
    operands: "FILENAME",
    options: &[
        flag(Some('h'), "help", "tell the options"),
        flag(Some('q'), "quiet", "say nothing that is not an error"),
        value(Some('f'), "format", "the format of FILENAME"),
        flag(None, "image-opts", "FILENAME is a set of options"),
        value(Some('t'), "cache", "the cache mode (writeback)"),
        value(Some('c'), "count", "how many requests (75000)"),
        value(Some('d'), "depth", "how many in flight (64)"),
        value(Some('o'), "offset", "where the first starts (0)"),
        value(Some('s'), "buffer-size", "the length of a request (4k)"),
        value(
            Some('S'),
            "step-size",
            "from one start to the next; the length of a request so without a word",
        ),
        value(Some('i'), "aio", "threads, native or io_uring; no effect"),
        flag(Some('n'), "native", "the same as -i native"),
        flag(Some('w'), "write", "write, not read"),
        value(None, "pattern", "the byte that is written (0)"),
        value(None, "flush-interval", "flush after so many requests"),
        flag(None, "no-drain", "flush beside requests in flight"),
        flag(
            Some('U'),
            "force-share",
            "others may write the image meanwhile",
        ),
        value(None, "object", "a secret that options refer to"),
    ],
    run,
};

/// The most that QEMU counts.
const MAX: u64 = (1 << 31) - 1;
const SECTOR: u64 = 512;

/// What is to be timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Plan {
    kind: Kind,
    count: u64,
    depth: u64,
    offset: u64,
    len_bytes: u64,
    step_bytes: u64,
    flushes: Flushes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read,
    /// Writes of this byte.
    Write(u8),
}

/// When a flush comes between requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flushes {
    Never,
    /// After so many requests, when none is in flight.
    Drained(u64),
    /// After so many requests, beside those in flight.
    Beside(u64),
}

fn run(parsed: &Parsed) -> Result<u8, Stop> {
    let plan = Plan::read(parsed)?;
    let cache = cache_mode(parsed)?;
    let [name] = parsed.operands.as_slice() else {
        return Err(misuse("bench", "Expecting one image file name"));
    };
    let secrets = secrets(parsed)?;
    let opening = Opening {
        access: match plan.kind {
            Kind::Read => Access::ReadOnly,
            Kind::Write(_) => Access::ReadWrite,
        },
        sharing: sharing(parsed),
        cache,
        depth: Depth::Chain,
        secrets: &secrets,
    };
    let spec = spec_of(name, parsed)?;
    let refused = |why: &str| Failure::could_not_open(name, &Failure::new(why));
    if wants_native(parsed) && !matches!(parsed.get("cache"), Some("none" | "off" | "directsync")) {
        return Err(refused(
            "aio=native was specified, but it requires cache.direct=on, which was not specified.",
        )
        .into());
    }
    let node = open_named(name, &spec, &opening)?;
    print(&plan.describe());
    let through = cache == CacheMode::WriteThrough;
    let seconds = plan
        .time(node.image(), through.then_some(Through))
        .map_err(|_| Failure::new("Failed request: Input/output error"))?;
    print(&format!("Run completed in {seconds:3.3} seconds.\n"));
    at_once(node.image().close())
        .map_err(|error| Failure(crate::block::failure::engine_text(&error)))?;
    Ok(0)
}

/// That every write is flushed before it counts as done.
#[derive(Clone, Copy, Debug)]
struct Through;

fn cache_mode(parsed: &Parsed) -> Result<CacheMode, Failure> {
    match parsed.get("aio") {
        None | Some("threads" | "native" | "io_uring") => {}
        Some(other) => return Err(Failure(format!("Invalid aio option: {other}"))),
    }
    CacheMode::from_name(parsed.get("cache").unwrap_or("writeback"))
        .ok_or_else(|| Failure::new("Invalid cache mode"))
}

fn wants_native(parsed: &Parsed) -> bool {
    parsed.has("native") || parsed.get("aio") == Some("native")
}

impl Plan {
    fn read(parsed: &Parsed) -> Result<Self, Failure> {
        let number = |long: &str, what: &str, range, default| {
            let text = parsed.get(long);
            text.map_or(Ok(default), |text| sizes::number(text, what, range))
        };
        let size = |long: &str, what: &str, range, default| {
            let text = parsed.get(long);
            text.map_or(Ok(default), |text| sizes::read_within(text, what, range))
        };
        let count = number("count", "request count", 1..=MAX, 75000)?;
        let depth = number("depth", "queue depth", 1..=MAX, 64)?;
        let pattern = number("pattern", "pattern byte", 0..=255, 0)?;
        let interval = number("flush-interval", "flush interval", 0..=MAX, 0)?;
        let len_bytes = size("buffer-size", "buffer size", 1..=MAX, 4096)?;
        let step_bytes = size("step-size", "step size", 0..=MAX, 0)?;
        let kind = if parsed.has("write") {
            Kind::Write(u8::try_from(pattern).expect("the range was checked"))
        } else {
            Kind::Read
        };
        if kind == Kind::Read && interval > 0 {
            return Err(Failure::new(
                "--flush-interval is only available in write tests",
            ));
        }
        if interval > 0 && interval < depth {
            return Err(Failure::new("Flush interval can't be smaller than depth"));
        }
        Ok(Self {
            kind,
            count,
            depth,
            offset: size("offset", "offset", 0..=i64::MAX.unsigned_abs(), 0)?,
            len_bytes,
            step_bytes: if step_bytes == 0 {
                len_bytes
            } else {
                step_bytes
            },
            flushes: match (interval, parsed.has("no-drain")) {
                (0, _) => Flushes::Never,
                (_, false) => Flushes::Drained(interval),
                (_, true) => Flushes::Beside(interval),
            },
        })
    }

    fn describe(&self) -> String {
        let mut text = format!(
            "Sending {} {} requests, {} bytes each, {} in parallel (starting at offset {}, step size {})\n",
            self.count,
            match self.kind {
                Kind::Read => "read",
                Kind::Write(_) => "write",
            },
            self.len_bytes,
            self.depth,
            self.offset,
            self.step_bytes
        );
        if let Flushes::Drained(interval) | Flushes::Beside(interval) = self.flushes {
            text.push_str(&format!("Sending flush every {interval} requests\n"));
        }
        text
    }

    /// The seconds that the requests take.
    fn time(&self, image: &Rc<dyn Image>, through: Option<Through>) -> Result<f64, Error> {
        let len = usize::try_from(self.len_bytes).expect("a length is below 2 GiB");
        let data = match self.kind {
            Kind::Read => Vec::new(),
            Kind::Write(pattern) => vec![pattern; len],
        };
        let mut flight = Flight::default();
        let mut offset = self.offset;
        #[expect(
            clippy::disallowed_methods,
            reason = "time is what is asked for, and only the command line has a clock"
        )]
        let start = Instant::now();
        for sent in 0..self.count {
            match self.flushes {
                Flushes::Drained(interval) if sent > 0 && sent % interval == 0 => {
                    flight.land(0)?;
                    at_once(image.flush())?;
                }
                Flushes::Beside(interval) if sent > 0 && sent % interval == 0 => {
                    flight.launch(image.flush())?;
                }
                Flushes::Never | Flushes::Drained(_) | Flushes::Beside(_) => {}
            }
            match self.kind {
                Kind::Read => flight.launch(Box::pin(read(image, offset, self.len_bytes)))?,
                Kind::Write(_) => flight.launch(Box::pin(write(image, offset, &data, through)))?,
            }
            flight.land(self.depth - 1)?;
            offset += self.step_bytes;
            if image.virtual_bytes() > 0 {
                offset %= image.virtual_bytes();
            }
        }
        flight.land(0)?;
        Ok(start.elapsed().as_secs_f64())
    }
}

/// Requests in flight.
#[derive(Default)]
struct Flight<'a>(Vec<LocalFuture<'a, ()>>);

impl<'a> Flight<'a> {
    /// Sends a request off. It stays in flight where it has to wait.
    fn launch(&mut self, mut request: LocalFuture<'a, ()>) -> Result<(), Error> {
        match request
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
        {
            Poll::Ready(outcome) => outcome,
            Poll::Pending => {
                self.0.push(request);
                Ok(())
            }
        }
    }

    /// Goes on with what is in flight until no more than `most` are.
    ///
    /// Files answer at once, so that requests wait for nothing but each other, and a round over all of
    /// them lets one go on.
    fn land(&mut self, most: u64) -> Result<(), Error> {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        while self.0.len() > most {
            let mut index = 0;
            while index < self.0.len() {
                let request = self.0[index].as_mut();
                match request.poll(&mut Context::from_waker(Waker::noop())) {
                    Poll::Pending => index += 1,
                    Poll::Ready(outcome) => {
                        drop(self.0.remove(index));
                        outcome?;
                    }
                }
            }
        }
        Ok(())
    }
}

async fn read(image: &Rc<dyn Image>, offset: u64, len_bytes: u64) -> Result<(), Error> {
    let (start, len) = whole_sectors(offset, len_bytes);
    image.read(start, len).await.map(drop)
}

async fn write(
    image: &Rc<dyn Image>,
    offset: u64,
    data: &[u8],
    through: Option<Through>,
) -> Result<(), Error> {
    let len_bytes = u64::try_from(data.len()).expect("a length fits 64 bits");
    let (start, len) = whole_sectors(offset, len_bytes);
    if len == data.len() {
        image.write(offset, data.to_vec()).await?;
    } else {
        let mut whole = image.read(start, len).await?;
        let within = usize::try_from(offset - start).expect("an offset within a sector");
        whole[within..within + data.len()].copy_from_slice(data);
        image.write(start, whole).await?;
    }
    match through {
        Some(Through) => image.flush().await,
        None => Ok(()),
    }
}

/// The sectors that a range touches: their start and length.
fn whole_sectors(offset: u64, len_bytes: u64) -> (u64, usize) {
    let start = offset / SECTOR * SECTOR;
    let end = (offset + len_bytes).next_multiple_of(SECTOR);
    let len = usize::try_from(end - start).expect("a request fits memory");
    (start, len)
}
