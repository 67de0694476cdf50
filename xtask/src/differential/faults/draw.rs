//! Drawing cases: rules, limits and commands whose outcome is the same on every implementation.
//!
//! On a raw image that is so for any rules. On qcow2 the engines order their metadata I/O each in its own way,
//! so that there every cluster is allocated beforehand and only rules of guest data are drawn.

use std::fmt::{Display, Write};

use harness::prng::Prng;

use super::case::{Case, IMAGE, Kind, Opened, RULES};

/// Events that a raw image meets.
const RAW_EVENTS: [&str; 13] = [
    "none",
    "none",
    "read_aio",
    "write_aio",
    "pwritev",
    "pwritev_zero",
    "pwritev_done",
    "pwritev_rmw_head",
    "pwritev_rmw_tail",
    "pwritev_rmw_after_head",
    "pwritev_rmw_after_tail",
    "flush_to_os",
    "flush_to_disk",
];
/// Events of guest data in clusters that are allocated.
const DATA_EVENTS: [&str; 4] = ["read_aio", "write_aio", "write_aio", "read_aio"];
/// What requests fail with: `EINVAL` and `EOPNOTSUPP` mean something to the block layer.
const ERRNOS: [&str; 7] = ["5", "28", "5", "22", "95", "0", "0x1c"];
const RAW_BYTES: u64 = 64 << 10;
const QCOW2_BYTES: u64 = 256 << 10;

/// Whether writes read what stands at their edges. QEMU takes no notice when that read fails, and writes zeroes
/// there (docs/FINDINGS.md), so that reads must not fail then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Edges {
    None,
    Read,
}

/// Draws a case.
pub(super) fn draw(prng: &Prng) -> Case {
    let mut draw = prng.fork("case");
    if draw.chance(1, 5) {
        on_qcow2(&mut draw)
    } else {
        on_raw(&mut draw)
    }
}

fn on_raw(draw: &mut Prng) -> Case {
    let limits = limits(draw);
    let bare = draw.chance(1, 5);
    let named = draw.chance(3, 4);
    let rounds = limits.iter().any(|limit| limit.starts_with("align"));
    let probed = !bare && !named && limits.is_empty();
    let edges = if rounds || probed {
        Edges::Read
    } else {
        Edges::None
    };
    let mut case = Case::new("drawn", rules(draw, &RAW_EVENTS, RAW_BYTES, edges));
    if bare || !limits.is_empty() {
        let (driver, below) = if bare {
            ("driver=blkdebug", "")
        } else {
            ("driver=raw,file.driver=blkdebug", "file.")
        };
        let mut options = format!("{driver},{below}config={RULES},{below}image.filename={IMAGE}");
        for limit in limits {
            write!(options, ",{below}{limit}").expect("a string takes any text");
        }
        case.opened = Opened::Options(options);
    } else if named {
        case.with = vec!["-f".into(), "raw".into()];
    }
    modes(draw, &mut case);
    let unit = *draw.pick(&[1, 1, 100, 512, 512, 4096]);
    for _ in 0..draw.between(3, 12) {
        let command = command(draw, RAW_BYTES, unit);
        if rounds && command.starts_with("discard") && unit < 4096 {
            // A discard of less than the unit ends QEMU by a division by zero.
            continue;
        }
        case.commands.push(command);
    }
    case
}

fn on_qcow2(draw: &mut Prng) -> Case {
    let mut case = Case::new("drawn", rules(draw, &DATA_EVENTS, QCOW2_BYTES, Edges::None));
    case.image = Kind::Full;
    case.bytes = QCOW2_BYTES;
    case.with = vec!["-f".into(), "qcow2".into(), "-t".into(), "writeback".into()];
    for _ in 0..draw.between(3, 10) {
        let (offset, len) = range(draw, QCOW2_BYTES, 512);
        let byte = draw.between(1, 255);
        case.commands.push(if draw.chance(1, 2) {
            format!("read {offset} {len}")
        } else {
            format!("write -P {byte} {offset} {len}")
        });
    }
    case
}

fn modes(draw: &mut Prng, case: &mut Case) {
    if draw.chance(1, 2) {
        case.with.extend(["-t".into(), "writeback".into()]);
    }
    if draw.chance(1, 8) {
        case.with.extend(["-d".into(), "ignore".into()]);
    }
}

/// A range of the disk that starts and ends at multiples of `unit`.
fn range(draw: &mut Prng, bytes: u64, unit: u64) -> (u64, u64) {
    let units = bytes / unit;
    let start = draw.below(units);
    let most = (units - start).min((16384 / unit).max(2));
    (start * unit, draw.between(1, most) * unit)
}

fn command(draw: &mut Prng, bytes: u64, unit: u64) -> String {
    let (offset, len) = range(draw, bytes, unit);
    let byte = draw.between(1, 255);
    match draw.below(16) {
        0..=3 => format!("read {offset} {len}"),
        4..=6 => format!("write -P {byte} {offset} {len}"),
        7 => format!("write -f -P {byte} {offset} {len}"),
        8 => format!("write -z {offset} {len}"),
        9 => format!("write -z -u {offset} {len}"),
        10 => format!("write -z -f {offset} {len}"),
        11 => format!("discard {offset} {len}"),
        12 => format!("writev -P {byte} {offset} {len}"),
        13 => format!("alloc {offset} {len}"),
        _ => "flush".to_owned(),
    }
}

fn rules(draw: &mut Prng, events: &[&str], bytes: u64, edges: Edges) -> String {
    let mut text = String::new();
    for _ in 0..draw.between(1, 5) {
        text.push_str("[inject-error]\n");
        pair(&mut text, "event", draw.pick(events));
        let kinds = [
            "write",
            "write-zeroes",
            "discard",
            "flush",
            "block-status",
            "read",
        ];
        match edges {
            Edges::Read => pair(&mut text, "iotype", draw.pick(&kinds[..5])),
            Edges::None if draw.chance(1, 2) => pair(&mut text, "iotype", draw.pick(&kinds)),
            Edges::None => {}
        }
        if draw.chance(1, 2) {
            pair(&mut text, "errno", draw.pick(&ERRNOS));
        }
        if draw.chance(1, 4) {
            pair(&mut text, "sector", draw.below(bytes / 512));
        }
        if draw.chance(1, 4) {
            pair(&mut text, "state", draw.below(4));
        }
        if draw.chance(1, 2) {
            pair(&mut text, "once", draw.pick(&["on", "on", "off"]));
        }
        if draw.chance(1, 4) {
            pair(&mut text, "immediately", draw.pick(&["on", "off"]));
        }
    }
    for _ in 0..draw.below(4) {
        text.push_str("[set-state]\n");
        pair(&mut text, "event", draw.pick(events));
        if draw.chance(1, 2) {
            pair(&mut text, "state", draw.below(4));
        }
        pair(&mut text, "new_state", draw.below(4));
    }
    text
}

fn pair(text: &mut String, key: &str, value: impl Display) {
    writeln!(text, "{key} = \"{value}\"").expect("a string takes any text");
}

/// Limits that go together.
fn limits(draw: &mut Prng) -> Vec<String> {
    let mut limits = Vec::new();
    let align = if draw.chance(1, 2) {
        let align = 1 << draw.between(0, 12);
        limits.push(format!("align={align}"));
        align
    } else {
        1
    };
    if draw.chance(1, 3) {
        limits.push(format!(
            "max-transfer={}",
            align * draw.between(1, 20).max(100 / align)
        ));
    }
    for (best, most) in [
        ("opt-write-zero", "max-write-zero"),
        ("opt-discard", "max-discard"),
    ] {
        let mut unit = align;
        if draw.chance(1, 3) {
            unit = align * draw.between(1, 9);
            limits.push(format!("{best}={unit}"));
        }
        if draw.chance(1, 3) {
            limits.push(format!(
                "{most}={}",
                unit * draw.between(1, 9).max(200 / unit)
            ));
        }
    }
    limits
}

#[cfg(test)]
mod tests {
    use blkdebug::config::Config;

    use super::*;

    #[test]
    fn what_is_drawn_is_understood_and_drawn_again() {
        for index in 0..200 {
            let prng = Prng::from_seed(1).fork_indexed("case", index);
            let case = draw(&prng);
            Config::of_file(&case.rules).unwrap();
            assert_eq!(case, draw(&prng));
            let again = Case::parse("drawn", case.rules.clone(), &case.text()).unwrap();
            assert_eq!(case, again);
        }
    }
}
