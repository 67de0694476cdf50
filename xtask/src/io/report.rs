//! What is said of requests: how much, how fast, and the bytes themselves.

use std::fmt::Write;
use std::time::{Duration, Instant};

use crate::block::size::round_half_even;

/// How a request's end is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Telling {
    /// For people.
    Human,
    /// For machines (`-C`).
    Machine,
    /// Not at all (`-q`).
    Quiet,
}

/// Measures how long a request takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stopwatch(Instant);

impl Stopwatch {
    /// Starts now.
    #[expect(
        clippy::disallowed_methods,
        reason = "what is measured is told, and decides what is kept in memory"
    )]
    pub(super) fn start() -> Self {
        Self(Instant::now())
    }

    /// The time since the start.
    pub(super) fn elapsed(self) -> Duration {
        self.0.elapsed()
    }
}

/// A request that was carried out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Finished {
    /// What was done: wrote, read, discard.
    pub(super) verb: &'static str,
    /// Where it started.
    pub(super) offset: u64,
    /// How much was asked.
    pub(super) len_bytes: u64,
    /// How long it took.
    pub(super) elapsed: Duration,
}

const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// A number of bytes with the largest unit that leaves at least one of it.
pub(super) fn bytes_text(bytes: u64) -> String {
    let Some(power) = bytes
        .checked_ilog2()
        .map(|log| log / 10)
        .filter(|power| *power > 0)
    else {
        return format!("{bytes} bytes");
    };
    let unit = 1_u128 << (10 * power);
    let thousandths = round_half_even(u128::from(bytes) * 1000, unit);
    let name = UNITS[usize::try_from(power - 1).expect("at most six")];
    match thousandths % 1000 {
        0 => format!("{} {name}", thousandths / 1000),
        rest => format!("{}.{rest:03} {name}", thousandths / 1000),
    }
}

/// A number of bytes in a second.
fn rate_text(bytes: u64, elapsed: Duration) -> String {
    let nanoseconds = elapsed.as_nanos().max(1);
    let millionths = u128::from(bytes) * 1_000_000_000_000_000 / nanoseconds;
    let whole = millionths / 1_000_000;
    if whole < 1024 {
        return match millionths % 1_000_000 {
            0 => format!("{whole} bytes"),
            rest => format!("{whole}.{rest:06} bytes"),
        };
    }
    bytes_text(u64::try_from(whole).unwrap_or(u64::MAX))
}

/// One in a second, with so many digits behind the point.
fn per_second(count: u128, elapsed: Duration, digits: u32) -> String {
    let scale = 10_u128.pow(digits);
    let scaled = count * scale * 1_000_000_000 / elapsed.as_nanos().max(1);
    format!(
        "{}.{:0width$}",
        scaled / scale,
        scaled % scale,
        width = usize::try_from(digits).expect("few digits")
    )
}

impl Finished {
    /// The lines that tell of it.
    pub(super) fn text(&self, telling: Telling) -> String {
        let Self {
            verb,
            offset,
            len_bytes,
            elapsed,
        } = *self;
        let (seconds, hundredths) = (elapsed.as_secs(), elapsed.subsec_millis() / 10);
        let clock = format!(
            "{}:{:02}:{:02}.{hundredths:02}",
            seconds / 3600,
            seconds / 60 % 60,
            seconds % 60
        );
        match telling {
            Telling::Quiet => String::new(),
            Telling::Machine => format!(
                "{len_bytes},1,{clock},{},{}\n",
                per_second(u128::from(len_bytes), elapsed, 3),
                per_second(1, elapsed, 3)
            ),
            Telling::Human => {
                let time = if seconds < 60 {
                    format!("{seconds:02}.{hundredths:02} sec")
                } else {
                    clock
                };
                format!(
                    "{verb} {len_bytes}/{len_bytes} bytes at offset {offset}\n\
                     {}, 1 ops; {time} ({}/sec and {} ops/sec)\n",
                    bytes_text(len_bytes),
                    rate_text(len_bytes, elapsed),
                    per_second(1, elapsed, 4)
                )
            }
        }
    }
}

/// The bytes that stand at `offset`, sixteen a line.
pub(super) fn dump(offset: u64, data: &[u8]) -> String {
    let mut text = String::new();
    let mut here = offset;
    for line in data.chunks(16) {
        write!(text, "{here:08x}:  ").expect("a string takes any text");
        for byte in line {
            write!(text, "{byte:02x} ").expect("a string takes any text");
        }
        text.push(' ');
        text.extend(line.iter().map(|byte| {
            if byte.is_ascii_alphanumeric() {
                char::from(*byte)
            } else {
                '.'
            }
        }));
        text.push('\n');
        here = here.saturating_add(16);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits_behind_the_point_or_none() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (65536, "64 KiB"),
            (1536, "1.500 KiB"),
            (5000, "4.883 KiB"),
            (1088 << 10, "1.062 MiB"),
            (1_000_448, "977 KiB"),
            (2_031_616, "1.938 MiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(bytes_text(bytes), text, "{bytes}");
        }
    }

    #[test]
    fn a_request_is_told_with_its_speed() {
        let finished = Finished {
            verb: "wrote",
            offset: 512,
            len_bytes: 65536,
            elapsed: Duration::from_millis(31),
        };
        assert_eq!(
            finished.text(Telling::Human),
            "wrote 65536/65536 bytes at offset 512\n\
             64 KiB, 1 ops; 00.03 sec (2.016 MiB/sec and 32.2580 ops/sec)\n"
        );
        assert_eq!(
            finished.text(Telling::Machine),
            "65536,1,0:00:00.03,2114064.516,32.258\n"
        );
        assert_eq!(finished.text(Telling::Quiet), "");
    }

    #[test]
    fn bytes_are_shown_with_their_letters() {
        assert_eq!(
            dump(96, &[0x41, 0, 0x7a, 0x30, 0x2d]),
            "00000060:  41 00 7a 30 2d  A.z0.\n"
        );
        assert_eq!(dump(0, &[0; 33]).lines().count(), 3);
    }
}
