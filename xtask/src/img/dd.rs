//! `dd`: a part of a disk, block by block, into a new image.

use engine::image::Access;
use engine::zeroes::is_zero;

use super::copy::{Blank, Fill, Packing, STEP, Salvage, Target, read};
use super::create::new_creation;
use super::getopt::{Parsed, flag, value};
use super::progress::{Progress, Shown};
use super::{Command, Stop, open_named, reading, say_error, secrets, sizes, spec_of};
use crate::block::failure::engine_text;
use crate::block::{CacheMode, Depth, Failure, Format, Opening, Sharing, Spec};

pub(super) const COMMAND: Command = Command {
    name: "dd",
    about: "Copy blocks of a disk into a new image",
    operands: "[bs=BYTES] [count=BLOCKS] [skip=BLOCKS] if=FILE of=FILE",
    options: &[
        flag(Some('h'), "help", "tell the options"),
        value(Some('f'), "format", "the format of the input"),
        flag(None, "image-opts", "the input is a set of options"),
        value(Some('O'), "output-format", "the format of the output (raw)"),
        flag(
            Some('U'),
            "force-share",
            "others may write the input meanwhile",
        ),
        value(None, "object", "a secret that options refer to"),
    ],
    run,
};

/// What the operands say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Operands {
    input: Option<String>,
    output: Option<String>,
    block_bytes: Option<u64>,
    count: Option<u64>,
    skip: Option<u64>,
}

fn read_operands(words: &[String]) -> Result<Operands, Failure> {
    let mut operands = Operands::default();
    for word in words {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        match name {
            "if" => operands.input = Some(value.to_owned()),
            "of" => operands.output = Some(value.to_owned()),
            "bs" => {
                let bytes = sizes::read(value, "bs")?;
                if !(1..=2_147_483_647).contains(&bytes) {
                    return Err(Failure::new(
                        "Invalid bs specified. Must be between 1 and 2147483647.",
                    ));
                }
                operands.block_bytes = Some(bytes);
            }
            "count" => operands.count = Some(sizes::read(value, "count")?),
            "skip" => operands.skip = Some(sizes::read(value, "skip")?),
            other => return Err(Failure(format!("unrecognized operand {other}"))),
        }
    }
    Ok(operands)
}

fn run(parsed: &Parsed) -> Result<u8, Stop> {
    let operands = read_operands(&parsed.operands)?;
    let (Some(input), Some(output)) = (&operands.input, &operands.output) else {
        return Err(Failure::new("Must specify both input and output files").into());
    };
    let format = parsed.get("output-format").unwrap_or("raw");
    let secrets = secrets(parsed)?;
    let opening = reading(parsed, &secrets, Depth::Chain);
    let source = open_named(input, &spec_of(input, parsed)?, &opening)?;
    if Format::from_name(format).is_none() {
        return Err(Failure::new("Unknown file format").into());
    }
    let block = operands.block_bytes.unwrap_or(512);
    let whole = source.virtual_bytes();
    let end = operands
        .count
        .and_then(|count| count.checked_mul(block))
        .map_or(whole, |bytes| bytes.min(whole));
    let start = operands.skip.unwrap_or(0).saturating_mul(block);
    let len_bytes = end.saturating_sub(start);
    let mut creation = new_creation(format, &[])?;
    creation.set("size", &len_bytes.to_string())?;
    let named = |why: Failure| {
        Failure(format!(
            "{output}: error while creating output image of type '{format}': {}",
            why.0
        ))
    };
    super::convert::make(&creation, output, std::slice::from_ref(&source), &secrets)
        .map_err(named)?;
    let spec = Spec::from_name(output, Some(format))
        .map_err(|why| Failure::could_not_open(output, &why))?;
    let opening = Opening {
        access: Access::ReadWrite,
        sharing: Sharing::ByFormat,
        cache: CacheMode::WriteBack,
        depth: Depth::Chain,
        secrets: &secrets,
    };
    let target = open_named(output, &spec, &opening)?;
    if start > end {
        say_error(&format!(
            "{}: {input}: cannot skip to specified offset\n",
            super::PROGRAM
        ));
    }
    let mut progress = Progress::start(Shown::No, len_bytes, 1);
    let mut copy = Target {
        image: std::rc::Rc::clone(target.image()),
        cache: CacheMode::WriteBack,
        blank: Blank::Yes,
        sparse_bytes: 512,
        fill: Fill::Data,
        packing: Packing::Plain,
        pace: None,
        salvage: Salvage::No,
        progress: &mut progress,
    };
    let mut at = 0;
    while at < len_bytes {
        let len = STEP.min(len_bytes - at);
        let data = read_anywhere(&source, start + at, len)?;
        if !is_zero(&data) {
            copy.write(at, data)?;
        }
        at += len;
    }
    copy.finish()?;
    Ok(0)
}

/// Reads a range that need not start and end at sectors, padded with zeroes to a whole sector.
fn read_anywhere(source: &crate::block::Node, start: u64, len_bytes: u64) -> Result<Vec<u8>, Stop> {
    let from = start / 512 * 512;
    let to = (start + len_bytes).next_multiple_of(512);
    let bytes = read(source, from, to - from).map_err(|error| {
        Failure(format!(
            "error while reading from input image file: {}",
            engine_text(&error)
        ))
    })?;
    let within = usize::try_from(start - from).expect("less than a sector");
    let len = usize::try_from(len_bytes).expect("a step fits memory");
    let mut data = bytes[within..within + len].to_vec();
    data.resize(len.next_multiple_of(512), 0);
    Ok(data)
}
