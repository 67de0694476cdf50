//! Commands that move bytes and wait for it.

use std::fs;

use engine::error::Error;
use engine::image::Unmap;

use super::command::{Command, Needs};
use super::report::{Finished, Stopwatch, Telling, dump};
use super::session::{Complaint, Ending, Outcome, Session, explain};
use super::words::{MAX_REQUEST_BYTES, Words, number, pattern};
use crate::block::disk::{Durable, Fallback};
use crate::block::failure::{errno_text, os_text};
use crate::img::print;

/// What a write writes where nothing else is asked for.
pub(super) const FILLER: u8 = 0xcd;
/// What stands in a buffer that is zeroed is never looked at.
const SECTOR: u64 = 512;

const QUIET: (char, &str) = ('q', "tell nothing of the request");
const MACHINE: (char, &str) = ('C', "tell of the request in numbers between commas");
const REGISTER: (char, &str) = ('r', "accepted, and without effect");

pub(super) const READ: Command = Command {
    name: "read",
    short: Some("r"),
    takes: (2, None),
    operands: "[-abCqrv] [-P pattern [-s off] [-l len]] off len",
    about: "reads a number of bytes at a specified offset",
    needs: Needs::Disk,
    options: &[
        ('b', "from the VM state"),
        MACHINE,
        ('l', "with -P, compare so many bytes"),
        ('p', "accepted, and without effect"),
        ('P', "compare with this byte"),
        QUIET,
        REGISTER,
        ('s', "with -P, compare from here on"),
        ('v', "show the bytes"),
    ],
    run: read,
};

pub(super) const READV: Command = Command {
    name: "readv",
    short: None,
    takes: (2, None),
    operands: "[-Cqrv] [-P pattern] off len [len..]",
    about: "reads a number of bytes at a specified offset",
    needs: Needs::Disk,
    options: &[
        MACHINE,
        ('P', "compare with this byte"),
        QUIET,
        REGISTER,
        ('v', "show the bytes"),
    ],
    run: readv,
};

pub(super) const WRITE: Command = Command {
    name: "write",
    short: Some("w"),
    takes: (2, None),
    operands: "[-bcCfnqruz] [-P pattern | -s source_file] off len",
    about: "writes a number of bytes at a specified offset",
    needs: Needs::WritableDisk,
    options: &[
        ('b', "to the VM state"),
        ('c', "compressed"),
        MACHINE,
        ('f', "durable when it ends"),
        ('n', "with -z, only where no bytes need to be written"),
        ('p', "accepted, and without effect"),
        ('P', "fill with this byte, not 0xcd"),
        QUIET,
        REGISTER,
        ('s', "fill with the bytes of this file"),
        ('u', "with -z, the space may be given back"),
        ('z', "write zeroes"),
    ],
    run: write,
};

pub(super) const WRITEV: Command = Command {
    name: "writev",
    short: None,
    takes: (2, None),
    operands: "[-Cfqr] [-P pattern] off len [len..]",
    about: "writes a number of bytes at a specified offset",
    needs: Needs::WritableDisk,
    options: &[
        MACHINE,
        ('f', "durable when it ends"),
        ('P', "fill with this byte, not 0xcd"),
        QUIET,
        REGISTER,
    ],
    run: writev,
};

pub(super) const DISCARD: Command = Command {
    name: "discard",
    short: Some("d"),
    takes: (2, None),
    operands: "[-Cq] off len",
    about: "discards a number of bytes at a specified offset",
    needs: Needs::WritableDisk,
    options: &[MACHINE, QUIET],
    run: discard,
};

pub(super) const FLUSH: Command = Command {
    name: "flush",
    short: Some("f"),
    takes: (0, Some(0)),
    operands: "",
    about: "flush all in-core file state to disk",
    needs: Needs::Disk,
    options: &[],
    run: flush,
};

/// How the end of a request is to be told.
pub(super) fn telling(words: &Words) -> Telling {
    if words.has('q') {
        Telling::Quiet
    } else if words.has('C') {
        Telling::Machine
    } else {
        Telling::Human
    }
}

pub(super) fn durable(words: &Words) -> Durable {
    if words.has('f') {
        Durable::AtOnce
    } else {
        Durable::ByCacheMode
    }
}

pub(super) fn unmap(words: &Words) -> Unmap {
    if words.has('u') {
        Unmap::Allow
    } else {
        Unmap::Keep
    }
}

/// The byte of `-P`.
pub(super) fn pattern_of(words: &Words) -> Result<Option<u8>, Complaint> {
    let mut found = None;
    for (option, argument) in words.options() {
        if option == 'P' {
            found = Some(pattern(argument).map_err(Complaint::Said)?);
        }
    }
    Ok(found)
}

/// An offset and the lengths behind it, as one range.
pub(super) fn vector(operands: &[String]) -> Result<(u64, u64), Complaint> {
    let [offset, lengths @ ..] = operands else {
        return Err(Complaint::Usage);
    };
    if lengths.is_empty() {
        return Err(Complaint::Usage);
    }
    let offset = number(offset).map_err(Complaint::Said)?;
    let mut total = 0;
    for text in lengths {
        let len = number(text).map_err(Complaint::Said)?;
        if len > MAX_REQUEST_BYTES {
            return Err(Complaint::Said(format!(
                "Argument '{text}' exceeds maximum size {MAX_REQUEST_BYTES}"
            )));
        }
        total += len;
        if total > MAX_REQUEST_BYTES {
            return Err(Complaint::Said(format!(
                "The total number of bytes exceed the maximum size {MAX_REQUEST_BYTES}"
            )));
        }
    }
    Ok((offset, total))
}

pub(super) fn parse(known: &str, words: &[String]) -> Result<Words, Complaint> {
    Words::parse(known, words).map_err(Complaint::Option)
}

pub(super) fn to_usize(len: u64) -> usize {
    usize::try_from(len).expect("a request fits the memory")
}

pub(super) fn failed(name: &str, error: &Error) -> Complaint {
    explain(error);
    Complaint::Said(format!("{name} failed: {}", errno_text(error)))
}

/// A request that is waited for.
#[derive(Clone, Copy, Debug)]
struct Asked {
    /// The command's name, in complaints.
    name: &'static str,
    /// What is told of it when it has ended.
    verb: &'static str,
    offset: u64,
    len_bytes: u64,
}

impl Asked {
    /// Carries out the request, and hands back what there is to tell of it.
    fn carry_out<T: 'static>(
        self,
        session: &mut Session,
        request: impl Future<Output = Result<T, Error>> + 'static,
    ) -> Result<(T, Finished), Complaint> {
        let started = Stopwatch::start();
        let ended = session.wait(request)?;
        let elapsed = started.elapsed();
        let value = ended.map_err(|error| failed(self.name, &error))?;
        let Self {
            verb,
            offset,
            len_bytes,
            ..
        } = self;
        let finished = Finished {
            verb,
            offset,
            len_bytes,
            elapsed,
        };
        Ok((value, finished))
    }
}

/// What a read reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Disk,
    VmState,
}

/// What a read is compared with.
#[derive(Clone, Copy, Debug)]
struct Expected {
    byte: u8,
    start: u64,
    len_bytes: u64,
}

fn read(session: &mut Session, words: &[String]) -> Outcome {
    let words = parse("bCl:pP:qrs:v", words)?;
    let (mut start, mut len) = (None, None);
    for (option, argument) in words.options() {
        match option {
            'l' => len = Some(number(argument).map_err(Complaint::Said)?),
            's' => start = Some(number(argument).map_err(Complaint::Said)?),
            'P' => drop(pattern(argument).map_err(Complaint::Said)?),
            _ => {}
        }
    }
    let byte = pattern_of(&words)?;
    let [offset, count] = words.operands.as_slice() else {
        return Err(Complaint::Usage);
    };
    let offset = number(offset).map_err(Complaint::Said)?;
    let len_bytes = number(count).map_err(Complaint::Said)?;
    if len_bytes > MAX_REQUEST_BYTES {
        return Err(Complaint::Said(format!(
            "length cannot exceed {MAX_REQUEST_BYTES}, given {count}"
        )));
    }
    if byte.is_none() && (start.is_some() || len.is_some()) {
        return Err(Complaint::Usage);
    }
    let start = start.unwrap_or(0);
    let len = len.unwrap_or(len_bytes.saturating_sub(start));
    if start > len_bytes || len > len_bytes - start {
        return Err(Complaint::Said(
            "pattern verification range exceeds end of read data".into(),
        ));
    }
    let from = if words.has('b') {
        must_be_sectors(offset, len_bytes)?;
        Part::VmState
    } else {
        Part::Disk
    };
    let expected = byte.map(|byte| Expected {
        byte,
        start,
        len_bytes: len,
    });
    let asked = Asked {
        name: "read",
        verb: "read",
        offset,
        len_bytes,
    };
    read_range(session, asked, from, &words, expected)
}

fn readv(session: &mut Session, words: &[String]) -> Outcome {
    let words = parse("CP:qrv", words)?;
    let byte = pattern_of(&words)?;
    let (offset, len_bytes) = vector(&words.operands)?;
    let expected = byte.map(|byte| Expected {
        byte,
        start: 0,
        len_bytes,
    });
    let asked = Asked {
        name: "readv",
        verb: "read",
        offset,
        len_bytes,
    };
    read_range(session, asked, Part::Disk, &words, expected)
}

fn read_range(
    session: &mut Session,
    asked: Asked,
    from: Part,
    words: &Words,
    expected: Option<Expected>,
) -> Outcome {
    let disk = session.opened().disk.clone();
    let Asked { offset, .. } = asked;
    let len = to_usize(asked.len_bytes);
    let (data, finished) = asked.carry_out(session, async move {
        match from {
            Part::Disk => disk.read(offset, len).await,
            Part::VmState => disk.read_vm_state(offset, len).await,
        }
    })?;
    let mut ending = Ending::Done;
    if let Some(expected) = expected {
        let start = to_usize(expected.start);
        let part = &data[start..start + to_usize(expected.len_bytes)];
        if part.iter().any(|byte| *byte != expected.byte) {
            print(&mismatch(offset + expected.start, expected.len_bytes));
            ending = Ending::Failed;
        }
    }
    let telling = telling(words);
    if words.has('v') && telling != Telling::Quiet {
        print(&dump(offset, &data));
    }
    print(&finished.text(telling));
    Ok(ending)
}

pub(super) fn mismatch(offset: u64, len_bytes: u64) -> String {
    format!("Pattern verification failed at offset {offset}, {len_bytes} bytes\n")
}

fn must_be_sectors(offset: u64, len_bytes: u64) -> Result<(), Complaint> {
    for (name, value) in [("offset", offset), ("count", len_bytes)] {
        if !value.is_multiple_of(SECTOR) {
            return Err(Complaint::Said(format!(
                "{value} is not a sector-aligned value for '{name}'"
            )));
        }
    }
    Ok(())
}

fn write(session: &mut Session, words: &[String]) -> Outcome {
    let words = parse("bcCfnpP:qrs:uz", words)?;
    let byte = pattern_of(&words)?;
    let [offset, count] = words.operands.as_slice() else {
        return Err(Complaint::Usage);
    };
    refuse_combinations(&words)?;
    let offset = number(offset).map_err(Complaint::Said)?;
    let len_bytes = number(count).map_err(Complaint::Said)?;
    if len_bytes > MAX_REQUEST_BYTES && !words.has('n') {
        return Err(Complaint::Said(format!(
            "length cannot exceed {MAX_REQUEST_BYTES} without -n, given {count}"
        )));
    }
    if words.has('b') || words.has('c') {
        must_be_sectors(offset, len_bytes)?;
    }
    let data = match words.get('s') {
        _ if words.has('z') => Vec::new(),
        Some(path) => bytes_of_file(path, to_usize(len_bytes))?,
        None => vec![byte.unwrap_or(FILLER); to_usize(len_bytes)],
    };
    let disk = session.opened().disk.clone();
    let (durable, unmap) = (durable(&words), unmap(&words));
    let (zeroes, compressed, vm_state) = (words.has('z'), words.has('c'), words.has('b'));
    let fallback = if words.has('n') {
        Fallback::Refused
    } else {
        Fallback::Allowed
    };
    let asked = Asked {
        name: "write",
        verb: "wrote",
        offset,
        len_bytes,
    };
    let ((), finished) = asked.carry_out(session, async move {
        if vm_state {
            disk.write_vm_state(offset, data).await
        } else if zeroes {
            disk.write_zeroes(offset, len_bytes, unmap, fallback, durable)
                .await
        } else if compressed {
            disk.write_compressed(offset, data).await
        } else {
            disk.write(offset, data, durable).await
        }
    })?;
    print(&finished.text(telling(&words)));
    Ok(Ending::Done)
}

fn refuse_combinations(words: &Words) -> Result<(), Complaint> {
    let wrong = |text: &str| Err(Complaint::Said(text.to_owned()));
    if words.has('b') && words.has('z') {
        return wrong("-b and -z cannot be specified at the same time");
    }
    if words.has('f') && (words.has('b') || words.has('c')) {
        return wrong("-f and -b or -c cannot be specified at the same time");
    }
    if words.has('n') && !words.has('z') {
        return wrong("-n requires -z to be specified");
    }
    if words.has('u') && !words.has('z') {
        return wrong("-u requires -z to be specified");
    }
    if ['z', 'P', 's']
        .iter()
        .filter(|option| words.has(**option))
        .count()
        > 1
    {
        return wrong("Only one of -z, -P, and -s can be specified at the same time");
    }
    Ok(())
}

/// The bytes of a file, over and over.
fn bytes_of_file(path: &str, len: usize) -> Result<Vec<u8>, Complaint> {
    let pattern = fs::read(path).map_err(|error| {
        crate::img::say_error(&format!("{path}: {}\n", os_text(&error)));
        Complaint::Nothing
    })?;
    if pattern.is_empty() {
        crate::img::say_error(&format!("{path}: file is empty\n"));
        return Err(Complaint::Nothing);
    }
    Ok(pattern.iter().copied().cycle().take(len).collect())
}

fn writev(session: &mut Session, words: &[String]) -> Outcome {
    let words = parse("CfqrP:", words)?;
    let byte = pattern_of(&words)?.unwrap_or(FILLER);
    let (offset, len_bytes) = vector(&words.operands)?;
    let data = vec![byte; to_usize(len_bytes)];
    let durable = durable(&words);
    let disk = session.opened().disk.clone();
    let asked = Asked {
        name: "writev",
        verb: "wrote",
        offset,
        len_bytes,
    };
    let written = async move { disk.write(offset, data, durable).await };
    let ((), finished) = asked.carry_out(session, written)?;
    print(&finished.text(telling(&words)));
    Ok(Ending::Done)
}

fn discard(session: &mut Session, words: &[String]) -> Outcome {
    let words = parse("Cq", words)?;
    let [offset, count] = words.operands.as_slice() else {
        return Err(Complaint::Usage);
    };
    let offset = number(offset).map_err(Complaint::Said)?;
    let len_bytes = number(count).map_err(Complaint::Said)?;
    if len_bytes > MAX_REQUEST_BYTES {
        return Err(Complaint::Said(format!(
            "length cannot exceed {MAX_REQUEST_BYTES}, given {count}"
        )));
    }
    let opened = session.opened();
    let disk = opened.disk.clone();
    let asked = Asked {
        name: "discard",
        verb: "discard",
        offset,
        len_bytes,
    };
    let ((), finished) =
        asked.carry_out(
            session,
            async move { disk.discard(offset, len_bytes).await },
        )?;
    print(&finished.text(telling(&words)));
    Ok(Ending::Done)
}

fn flush(session: &mut Session, _: &[String]) -> Outcome {
    let disk = session.opened().disk.clone();
    match session.wait(async move { disk.flush().await })? {
        Ok(()) => Ok(Ending::Done),
        Err(error) => {
            explain(&error);
            Ok(Ending::Failed)
        }
    }
}
