//! The short texts that a trace is made of: operations, request names, sectors, cuts.

use std::fmt;

use blkdebug::disks::Disk;
use engine::chain::Overlay;
use engine::device::{Event, OpKind};
use engine::image::Unmap;
use engine::manage::{Amend, BitmapState, RawPromise};
use engine::preallocation::Preallocation;

use super::{Cut, Edge, Left, LengthLeft, RequestRef, Survivor};
use crate::workload::ops::{
    BitmapChange, BitmapOperation, ChainOperation, DataFileOperation, KeySlotChange,
    KeySlotOperation, Operation, SnapshotChange, SnapshotOperation,
};
use crate::workload::shape::{BitmapShape, BitmapStanding, Extent};

/// A text that does not say what it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadText(String);

impl fmt::Display for BadText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

type Parsed<T> = Result<T, BadText>;

/// A request has no more sectors than this.
const MAX_SECTORS: usize = 1 << 22;

/// An operation as traces and step lists spell it.
pub fn operation_text(operation: Operation) -> String {
    match operation {
        Operation::Read { offset, len_bytes } => format!("read {offset} {len_bytes}"),
        Operation::Write { offset, len_bytes } => format!("write {offset} {len_bytes}"),
        Operation::WriteCompressed { offset, len_bytes } => {
            format!("write-compressed {offset} {len_bytes}")
        }
        Operation::WriteBlank { offset, len_bytes } => format!("write-blank {offset} {len_bytes}"),
        Operation::WriteZeroes {
            offset,
            len_bytes,
            unmap,
        } => {
            let suffix = match unmap {
                Unmap::Keep => "",
                Unmap::Allow => " unmap",
            };
            format!("write-zeroes {offset} {len_bytes}{suffix}")
        }
        Operation::Discard { offset, len_bytes } => format!("discard {offset} {len_bytes}"),
        Operation::Flush => "flush".into(),
        Operation::DropIdle => "drop-idle".into(),
        Operation::Grow {
            virtual_bytes,
            preallocation,
        } => {
            let suffix = match preallocation {
                Preallocation::Off => String::new(),
                Preallocation::Metadata | Preallocation::Falloc | Preallocation::Full => {
                    format!(" {}", preallocation.name())
                }
            };
            format!("grow {virtual_bytes}{suffix}")
        }
        Operation::Shrink { virtual_bytes } => format!("shrink {virtual_bytes}"),
        Operation::Amend(amend) => amend_text(amend),
        Operation::Rename { name_bytes } => format!("rename {name_bytes}"),
        Operation::DataFile(operation) => data_file_text(operation),
        Operation::Empty => "empty".into(),
        Operation::Snapshot(SnapshotOperation { snapshot, change }) => match change {
            SnapshotChange::Create => format!("snapshot-create {snapshot}"),
            SnapshotChange::Apply => format!("snapshot-apply {snapshot}"),
            SnapshotChange::Delete => format!("snapshot-delete {snapshot}"),
        },
        Operation::Bitmap(operation) => bitmap_text(operation),
        Operation::KeySlot(KeySlotOperation { slot, change }) => match change {
            KeySlotChange::Fill { secret } => format!("key-slot-fill {slot} {secret}"),
            KeySlotChange::Erase => format!("key-slot-erase {slot}"),
        },
        Operation::Chain(operation) => match operation {
            ChainOperation::Commit {
                overlay: Overlay::Empty,
            } => "commit".into(),
            ChainOperation::Commit {
                overlay: Overlay::Keep,
            } => "commit keep".into(),
            ChainOperation::Rebase { onto } => format!("rebase {}", file_text(onto)),
            ChainOperation::Stream { base } => format!("stream {}", file_text(base)),
            ChainOperation::Repoint { onto } => format!("repoint {}", file_text(onto)),
        },
        Operation::Reopen => "reopen".into(),
        Operation::Kill => "kill".into(),
    }
}

pub(super) fn operation(text: &str) -> Parsed<Operation> {
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    Ok(match words[..] {
        ["read", offset, len] => Operation::Read {
            offset: number(offset)?,
            len_bytes: number(len)?,
        },
        ["write", offset, len] => Operation::Write {
            offset: number(offset)?,
            len_bytes: number(len)?,
        },
        ["write-compressed", offset, len] => Operation::WriteCompressed {
            offset: number(offset)?,
            len_bytes: number(len)?,
        },
        ["write-blank", offset, len] => Operation::WriteBlank {
            offset: number(offset)?,
            len_bytes: number(len)?,
        },
        ["write-zeroes", offset, len] => Operation::WriteZeroes {
            offset: number(offset)?,
            len_bytes: number(len)?,
            unmap: Unmap::Keep,
        },
        ["write-zeroes", offset, len, "unmap"] => Operation::WriteZeroes {
            offset: number(offset)?,
            len_bytes: number(len)?,
            unmap: Unmap::Allow,
        },
        ["discard", offset, len] => Operation::Discard {
            offset: number(offset)?,
            len_bytes: number(len)?,
        },
        ["flush"] => Operation::Flush,
        ["drop-idle"] => Operation::DropIdle,
        ["grow", bytes] => Operation::Grow {
            virtual_bytes: number(bytes)?,
            preallocation: Preallocation::Off,
        },
        ["grow", bytes, mode] => Operation::Grow {
            virtual_bytes: number(bytes)?,
            preallocation: Preallocation::from_name(mode).ok_or_else(|| {
                BadText(format!(
                    "`{mode}` is no preallocation: expected metadata, falloc or full"
                ))
            })?,
        },
        ["shrink", bytes] => Operation::Shrink {
            virtual_bytes: number(bytes)?,
        },
        ["amend", ref changes @ ..] => Operation::Amend(amend(changes)?),
        ["rename", bytes] => Operation::Rename {
            name_bytes: number(bytes)?,
        },
        ["data-file", ref changes @ ..] => Operation::DataFile(data_file(changes)?),
        ["empty"] => Operation::Empty,
        ["snapshot-create", number] => snapshot(number, SnapshotChange::Create)?,
        ["snapshot-apply", number] => snapshot(number, SnapshotChange::Apply)?,
        ["snapshot-delete", number] => snapshot(number, SnapshotChange::Delete)?,
        ["bitmap", ref words @ ..] => {
            let known = bitmap(words)?;
            Operation::Bitmap(known.ok_or_else(|| BadText(format!("`{text}`: {BITMAP_HELP}")))?)
        }
        ["key-slot-fill", slot, secret] => Operation::KeySlot(KeySlotOperation {
            slot: number(slot)?,
            change: KeySlotChange::Fill {
                secret: number(secret)?,
            },
        }),
        ["key-slot-erase", slot] => Operation::KeySlot(KeySlotOperation {
            slot: number(slot)?,
            change: KeySlotChange::Erase,
        }),
        ["commit"] => Operation::Chain(ChainOperation::Commit {
            overlay: Overlay::Empty,
        }),
        ["commit", "keep"] => Operation::Chain(ChainOperation::Commit {
            overlay: Overlay::Keep,
        }),
        ["rebase", onto] => Operation::Chain(ChainOperation::Rebase { onto: file(onto)? }),
        ["stream", base] => Operation::Chain(ChainOperation::Stream { base: file(base)? }),
        ["repoint", onto] => Operation::Chain(ChainOperation::Repoint { onto: file(onto)? }),
        ["reopen"] => Operation::Reopen,
        ["kill"] => Operation::Kill,
        _ => {
            return Err(BadText(format!(
                "`{text}` is no operation: expected read, write, write-compressed, write-blank, \
                 write-zeroes or discard with offset and length, grow or shrink with a size, amend or data-file with changes, rename \
                 with a length, empty, snapshot-create, snapshot-apply or snapshot-delete with a number, \
                 bitmap, key-slot-fill with a slot and a secret, key-slot-erase with a slot, commit, \
                 rebase, stream or repoint with a file, flush, drop-idle, reopen or kill"
            )));
        }
    })
}

fn snapshot(text: &str, change: SnapshotChange) -> Parsed<Operation> {
    let snapshot = number(text)?;
    Ok(Operation::Snapshot(SnapshotOperation { snapshot, change }))
}

fn file_text(disk: Option<Disk>) -> &'static str {
    disk.map_or("none", Disk::name)
}

fn file(text: &str) -> Parsed<Option<Disk>> {
    match (text, Disk::from_name(text)) {
        ("none", _) => Ok(None),
        (_, Some(disk)) if !matches!(disk, Disk::Image | Disk::Data) => Ok(Some(disk)),
        _ => Err(BadText(format!(
            "`{text}` is no file: expected none, backing, base or other"
        ))),
    }
}

fn amend_text(amend: Amend) -> String {
    let Amend {
        version,
        lazy_refcounts,
        refcount_order,
    } = amend;
    let lazy = lazy_refcounts.map(|lazy| if lazy { "on" } else { "off" });
    let changes = [
        version.map(|version| format!(" version={version}")),
        refcount_order.map(|order| format!(" refcount_bits={}", 1u64 << order)),
        lazy.map(|lazy| format!(" lazy_refcounts={lazy}")),
    ];
    let changes: String = changes.into_iter().flatten().collect();
    format!("amend{changes}")
}

fn amend(changes: &[&str]) -> Parsed<Amend> {
    let mut amend = Amend::default();
    for change in changes {
        match change.split_once('=') {
            Some(("version", value)) => amend.version = Some(number(value)?),
            Some(("lazy_refcounts", "on")) => amend.lazy_refcounts = Some(true),
            Some(("lazy_refcounts", "off")) => amend.lazy_refcounts = Some(false),
            Some(("refcount_bits", value)) => {
                let bits: u64 = number(value)?;
                if !bits.is_power_of_two() || bits > 64 {
                    let text = format!("`{change}`: a power of two up to 64");
                    return Err(BadText(text));
                }
                amend.refcount_order = Some(bits.trailing_zeros());
            }
            _ => {
                return Err(BadText(format!(
                    "`{change}` is no change: expected version=2|3, refcount_bits=1..64 or \
                     lazy_refcounts=on|off"
                )));
            }
        }
    }
    Ok(amend)
}

fn data_file_text(operation: DataFileOperation) -> String {
    let DataFileOperation { name_bytes, raw } = operation;
    let name = name_bytes.map(|bytes| format!(" name={bytes}"));
    let raw = match raw {
        RawPromise::Keep => "",
        RawPromise::Withdraw => " raw=off",
    };
    format!("data-file{}{raw}", name.unwrap_or_default())
}

fn data_file(changes: &[&str]) -> Parsed<DataFileOperation> {
    let mut operation = DataFileOperation {
        name_bytes: None,
        raw: RawPromise::Keep,
    };
    for change in changes {
        match change.split_once('=') {
            Some(("name", bytes)) => operation.name_bytes = Some(number(bytes)?),
            Some(("raw", "off")) => operation.raw = RawPromise::Withdraw,
            _ => {
                let text = format!("`{change}` is no change: expected name=LENGTH or raw=off");
                return Err(BadText(text));
            }
        }
    }
    Ok(operation)
}

const BITMAP_HELP: &str = "expected bitmap create NUMBER GRANULARITY enabled|disabled, bitmap \
     remove|enable|disable|clear NUMBER, bitmap merge NUMBER SOURCE, or bitmap mark NUMBER OFFSET LENGTH";

fn bitmap_text(operation: BitmapOperation) -> String {
    let BitmapOperation { number, change } = operation;
    match change {
        BitmapChange::Create {
            granularity_bits,
            state,
        } => {
            let granularity = 1u64 << granularity_bits;
            format!("bitmap create {number} {granularity} {}", state_text(state))
        }
        BitmapChange::Remove => format!("bitmap remove {number}"),
        BitmapChange::SetState(BitmapState::Enabled) => format!("bitmap enable {number}"),
        BitmapChange::SetState(BitmapState::Disabled) => format!("bitmap disable {number}"),
        BitmapChange::Clear => format!("bitmap clear {number}"),
        BitmapChange::Merge { source } => format!("bitmap merge {number} {source}"),
        BitmapChange::Mark {
            range: Extent { offset, len_bytes },
        } => format!("bitmap mark {number} {offset} {len_bytes}"),
    }
}

fn state_text(state: BitmapState) -> &'static str {
    match state {
        BitmapState::Enabled => "enabled",
        BitmapState::Disabled => "disabled",
    }
}

fn bitmap(words: &[&str]) -> Parsed<Option<BitmapOperation>> {
    let (number, change) = match *words {
        ["create", number, granularity, state] => {
            let Some(granularity_bits) = granularity_bits(self::number(granularity)?) else {
                return Ok(None);
            };
            let state = match state {
                "enabled" => BitmapState::Enabled,
                "disabled" => BitmapState::Disabled,
                _ => return Ok(None),
            };
            let change = BitmapChange::Create {
                granularity_bits,
                state,
            };
            (number, change)
        }
        ["remove", number] => (number, BitmapChange::Remove),
        ["enable", number] => (number, BitmapChange::SetState(BitmapState::Enabled)),
        ["disable", number] => (number, BitmapChange::SetState(BitmapState::Disabled)),
        ["clear", number] => (number, BitmapChange::Clear),
        ["merge", target, source] => {
            let source = number(source)?;
            (target, BitmapChange::Merge { source })
        }
        ["mark", target, offset, len] => {
            let range = Extent {
                offset: number(offset)?,
                len_bytes: number(len)?,
            };
            (target, BitmapChange::Mark { range })
        }
        _ => return Ok(None),
    };
    let number = self::number(number)?;
    Ok(Some(BitmapOperation { number, change }))
}

/// The binary logarithm of a granularity that a bitmap can have.
fn granularity_bits(bytes: u64) -> Option<u8> {
    let bits = bytes.is_power_of_two().then(|| bytes.trailing_zeros())?;
    u8::try_from(bits)
        .ok()
        .filter(|bits| (9..=31).contains(bits))
}

pub(super) fn bitmap_shape_text(shape: BitmapShape) -> String {
    let granularity = 1u64 << shape.granularity_bits;
    let standing = match shape.standing {
        BitmapStanding::Enabled => "enabled",
        BitmapStanding::Disabled => "disabled",
        BitmapStanding::Inconsistent => "inconsistent",
    };
    format!("{} {granularity} {standing}", shape.number)
}

pub(super) fn bitmap_shape(text: &str) -> Parsed<BitmapShape> {
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let bad = || {
        BadText(format!(
            "`{text}` is no bitmap: expected NUMBER GRANULARITY enabled|disabled|inconsistent"
        ))
    };
    let [shape, granularity, standing] = words[..] else {
        return Err(bad());
    };
    Ok(BitmapShape {
        number: number(shape)?,
        granularity_bits: granularity_bits(number(granularity)?).ok_or_else(bad)?,
        standing: match standing {
            "enabled" => BitmapStanding::Enabled,
            "disabled" => BitmapStanding::Disabled,
            "inconsistent" => BitmapStanding::Inconsistent,
            _ => return Err(bad()),
        },
    })
}

pub(super) fn extent_text(extent: Extent) -> String {
    format!("{} {}", extent.offset, extent.len_bytes)
}

pub(super) fn extent(text: &str) -> Parsed<Extent> {
    match text.split_ascii_whitespace().collect::<Vec<_>>()[..] {
        [offset, len] => Ok(Extent {
            offset: number(offset)?,
            len_bytes: number(len)?,
        }),
        _ => Err(BadText(format!(
            "`{text}` is no range: expected offset and length"
        ))),
    }
}

pub(super) fn choices_text(choices: &[u32]) -> String {
    // Where a list ends, replay goes on with 0.
    let end = choices
        .iter()
        .rposition(|&choice| choice != 0)
        .map_or(0, |last| last + 1);
    let words: Vec<String> = choices[..end].iter().map(u32::to_string).collect();
    words.join(" ")
}

pub(super) fn choices(text: &str) -> Parsed<Vec<u32>> {
    text.split_ascii_whitespace().map(number).collect()
}

impl fmt::Display for RequestRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} #{}", self.event, self.kind.name(), self.ordinal)?;
        match self.disk {
            Disk::Image => Ok(()),
            Disk::Backing | Disk::Base | Disk::Other | Disk::Data => {
                write!(f, " on {}", self.disk.name())
            }
        }
    }
}

/// The request of that name.
pub(super) fn request_named(name: &str) -> Option<RequestRef> {
    request(&name.split_ascii_whitespace().collect::<Vec<_>>())
}

fn request(words: &[&str]) -> Option<RequestRef> {
    let (disk, [event, kind, ordinal]) = (match words {
        [name @ .., "on", disk] => (Disk::from_name(disk)?, name),
        name => (Disk::Image, name),
    }) else {
        return None;
    };
    Some(RequestRef {
        disk,
        event: Event::from_name(event)?,
        kind: OpKind::from_name(kind)?,
        ordinal: ordinal.strip_prefix('#')?.parse().ok()?,
    })
}

pub(super) fn cut_text(cut: &Cut) -> String {
    match cut.before {
        None => "at the end".into(),
        Some((Edge::Submission, request)) => format!("before submission of {request}"),
        Some((Edge::Completion, request)) => format!("before completion of {request}"),
    }
}

pub(super) fn cut(text: &str) -> Parsed<Option<(Edge, RequestRef)>> {
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let before = match words[..] {
        ["at", "the", "end"] => return Ok(None),
        ["before", "submission", "of", ..] => request(&words[3..]).map(|r| (Edge::Submission, r)),
        ["before", "completion", "of", ..] => request(&words[3..]).map(|r| (Edge::Completion, r)),
        _ => None,
    };
    before.map(Some).ok_or_else(|| {
        BadText(format!(
            "`{text}` is no cut: expected for example `before completion of l2_update write #3`, or \
             `at the end`"
        ))
    })
}

pub(super) fn survivor_text(survivor: &Survivor) -> String {
    let mut text = survivor.request.to_string();
    match &survivor.content {
        Left::Whole => {}
        Left::Sectors(sectors) => {
            text.push_str(" sectors ");
            text.push_str(&sectors_text(sectors));
        }
        Left::Scattered { asked, garbage } => {
            let is_write = survivor.request.kind == OpKind::Write;
            text.push_str(if is_write { " sectors " } else { " zero " });
            text.push_str(&sectors_text(asked));
            text.push_str(" garbage ");
            text.push_str(&sectors_text(garbage));
        }
    }
    if survivor.length == LengthLeft::Lost {
        text.push_str(" length lost");
    }
    text
}

pub(super) fn survivor(text: &str) -> Parsed<Survivor> {
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let (words, length) = match words[..] {
        [ref rest @ .., "length", "lost"] => (rest, LengthLeft::Lost),
        ref rest => (rest, LengthLeft::Kept),
    };
    let name_words = if words.get(3) == Some(&"on") { 5 } else { 3 };
    let (name, rest) = words.split_at_checked(name_words).unwrap_or((&[], &[]));
    let content = match rest {
        [] => Some(Left::Whole),
        ["sectors", list] => Some(Left::Sectors(sectors(list)?)),
        ["zero" | "sectors", asked, "garbage", garbage] => Some(Left::Scattered {
            asked: sectors(asked)?,
            garbage: sectors(garbage)?,
        }),
        _ => None,
    };
    let (request, content) = request(name).zip(content).ok_or_else(|| {
        BadText(format!(
            "`{text}` is no survivor: expected for example `write_aio write #0` or `write_aio write #0 \
             sectors 0-3,7`"
        ))
    })?;
    Ok(Survivor {
        request,
        content,
        length,
    })
}

/// Ascending sector numbers as ranges: `0-3,7`; nothing is `none`.
pub(super) fn sectors_text(sectors: &[usize]) -> String {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for &sector in sectors {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == sector => *last = sector,
            _ => ranges.push((sector, sector)),
        }
    }
    if ranges.is_empty() {
        return "none".into();
    }
    let texts: Vec<String> = ranges
        .into_iter()
        .map(|(first, last)| {
            if first == last {
                first.to_string()
            } else {
                format!("{first}-{last}")
            }
        })
        .collect();
    texts.join(",")
}

pub(super) fn sectors(text: &str) -> Parsed<Vec<usize>> {
    let mut sectors = Vec::new();
    if text == "none" {
        return Ok(sectors);
    }
    for range in text.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (number(first)?, number(last)?);
        let ascends = first <= last && sectors.last().is_none_or(|&before| before < first);
        if !ascends || last >= MAX_SECTORS {
            return Err(BadText(format!(
                "`{text}` is no list of sectors: expected ascending ranges below {MAX_SECTORS}"
            )));
        }
        sectors.extend(first..=last);
    }
    Ok(sectors)
}

fn number<T: std::str::FromStr>(text: &str) -> Parsed<T> {
    text.parse()
        .map_err(|_| BadText(format!("`{text}` is no number, or too large a one")))
}
