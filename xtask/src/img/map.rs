//! `map`: which part of a disk comes from where.

use super::getopt::{Parsed, flag, value};
use super::{Command, Output, Stop, misuse, open_named, print, reading, secrets, sizes, spec_of};
use crate::block::failure::engine_text;
use crate::block::status::{Content, Reach, Stretch, status};
use crate::block::{Depth, Failure, Format, Node};

pub(super) const COMMAND: Command = Command {
    name: "map",
    about: "Tell which part of a disk stands where",
    operands: "FILENAME",
    options: &[
        flag(Some('h'), "help", "tell the options"),
        value(Some('f'), "format", "the format of FILENAME"),
        flag(None, "image-opts", "FILENAME is a set of options"),
        value(Some('s'), "start-offset", "start here"),
        value(Some('l'), "max-length", "go on for so many bytes"),
        flag(
            Some('U'),
            "force-share",
            "others may write the image meanwhile",
        ),
        value(None, "object", "a secret that options refer to"),
        value(None, "output", "human or json"),
    ],
    run,
};

/// One line of the map.
#[allow(
    clippy::struct_excessive_bools,
    reason = "these are the flags that a line shows"
)]
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    start: u64,
    len_bytes: u64,
    depth: u64,
    present: bool,
    zero: bool,
    data: bool,
    compressed: bool,
    offset: Option<u64>,
}

impl Entry {
    /// What is told where there is nothing to tell of.
    fn empty(start: u64) -> Self {
        Self {
            start,
            len_bytes: 0,
            depth: 0,
            present: false,
            zero: false,
            data: false,
            compressed: false,
            offset: None,
        }
    }

    fn new(stretch: &Stretch, format: Format) -> Self {
        let (present, zero, data) = match (stretch.content, format) {
            (Content::Data | Content::Compressed, _) => (true, false, true),
            (Content::Hole, Format::Qcow2) => (true, true, true),
            (Content::Hole, Format::Raw) | (Content::Zero, _) => (true, true, false),
            (Content::Nothing, _) => (false, true, false),
        };
        Self {
            start: stretch.start,
            len_bytes: stretch.len_bytes,
            depth: stretch.depth,
            present,
            zero,
            data,
            compressed: stretch.content == Content::Compressed,
            offset: stretch.offset,
        }
    }

    /// Whether `next` only carries on.
    fn takes(&self, next: &Self) -> bool {
        *next
            == Self {
                start: self.start + self.len_bytes,
                len_bytes: next.len_bytes,
                offset: self.offset.map(|offset| offset + self.len_bytes),
                ..self.clone()
            }
    }

    fn json(&self) -> String {
        let offset = self
            .offset
            .map_or_else(String::new, |offset| format!(", \"offset\": {offset}"));
        format!(
            "{{ \"start\": {}, \"length\": {}, \"depth\": {}, \"present\": {}, \"zero\": {}, \
             \"data\": {}, \"compressed\": {}{offset}}}",
            self.start,
            self.len_bytes,
            self.depth,
            self.present,
            self.zero,
            self.data,
            self.compressed
        )
    }
}

fn run(parsed: &Parsed) -> Result<u8, Stop> {
    let output = Output::of("map", parsed)?;
    let [name] = parsed.operands.as_slice() else {
        return Err(misuse("map", "Expecting one image file name"));
    };
    let start = sizes::option(parsed, "start-offset", "start offset")?.unwrap_or(0);
    let max = sizes::option(parsed, "max-length", "max length")?;
    let secrets = secrets(parsed)?;
    let opening = reading(parsed, &secrets, Depth::Chain);
    let node = open_named(name, &spec_of(name, parsed)?, &opening)?;
    if output == Output::Human {
        print(&format!(
            "{:<16}{:<16}{:<16}{}\n",
            "Offset", "Length", "Mapped to", "File"
        ));
    }
    let end = max.map_or(u64::MAX, |max| start.saturating_add(max));
    let end = end.min(node.virtual_bytes());
    let mut writer = Writer {
        node: &node,
        output,
        first: true,
    };
    let mut pending = Entry::empty(start);
    let mut at = start;
    while at < end {
        let stretch = status(&node, Reach::Chain, at, end - at).map_err(|error| {
            Failure(format!(
                "Could not read file metadata: {}",
                engine_text(&error)
            ))
        })?;
        at += stretch.len_bytes;
        let entry = Entry::new(&stretch, image_at(&node, stretch.depth).format);
        if pending.len_bytes > 0 && pending.takes(&entry) {
            pending.len_bytes += entry.len_bytes;
            continue;
        }
        if pending.len_bytes > 0 {
            writer.write(&pending, Last::No)?;
        }
        pending = entry;
    }
    writer.write(&pending, Last::Yes)?;
    Ok(0)
}

/// The image of the chain with so many above it.
fn image_at(node: &Node, depth: u64) -> &Node {
    let mut node = node;
    for _ in 0..depth {
        node = node.backing.as_deref().expect("a depth that was found");
    }
    node
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Last {
    Yes,
    No,
}

struct Writer<'a> {
    node: &'a Node,
    output: Output,
    first: bool,
}

impl Writer<'_> {
    fn write(&mut self, entry: &Entry, last: Last) -> Result<(), Failure> {
        match self.output {
            Output::Json => {
                let open = if self.first { "[" } else { "" };
                let close = match last {
                    Last::Yes => "]",
                    Last::No => ",",
                };
                print(&format!("{open}{}{close}\n", entry.json()));
            }
            Output::Human if entry.data && entry.offset.is_none() => {
                return Err(Failure::new(
                    "File contains external, encrypted or compressed clusters.",
                ));
            }
            Output::Human if entry.data && !entry.zero => {
                let file = &image_at(self.node, entry.depth).data_file().path;
                print(&format!(
                    "{:<16}{:<16}{:<16}{file}\n",
                    hexadecimal(entry.start),
                    hexadecimal(entry.len_bytes),
                    hexadecimal(entry.offset.unwrap_or(0)),
                ));
            }
            Output::Human => {}
        }
        self.first = false;
        Ok(())
    }
}

fn hexadecimal(number: u64) -> String {
    if number == 0 {
        "0".to_owned()
    } else {
        format!("{number:#x}")
    }
}
