//! Commands that start a request and do not wait for it.
//!
//! Once it is started, the command has succeeded, whatever becomes of the request.

use engine::error::Error;

use super::command::{Command, Needs};
use super::report::{Finished, Stopwatch, Telling, dump};
use super::session::{Complaint, Ending, Outcome, Session, explain};
use super::transfer::{
    FILLER, durable, mismatch, parse, pattern_of, telling, to_usize, unmap, vector,
};
use crate::block::disk::Fallback;
use crate::block::failure::errno_text;
use crate::img::print;

pub(super) const READ: Command = Command {
    name: "aio_read",
    short: None,
    takes: (2, None),
    operands: "[-Ciqrv] [-P pattern] off len [len..]",
    about: "asynchronously reads a number of bytes",
    needs: Needs::Disk,
    options: &[
        ('C', "tell of the request in numbers between commas"),
        ('i', "count an invalid request, and make none"),
        ('P', "compare with this byte"),
        ('q', "tell nothing of the request"),
        ('r', "accepted, and without effect"),
        ('v', "show the bytes"),
    ],
    run: read,
};

pub(super) const WRITE: Command = Command {
    name: "aio_write",
    short: None,
    takes: (2, None),
    operands: "[-Cfiqruz] [-P pattern] off len [len..]",
    about: "asynchronously writes a number of bytes",
    needs: Needs::WritableDisk,
    options: &[
        ('C', "tell of the request in numbers between commas"),
        ('f', "durable when it ends"),
        ('i', "count an invalid request, and make none"),
        ('P', "fill with this byte, not 0xcd"),
        ('q', "tell nothing of the request"),
        ('r', "accepted, and without effect"),
        ('u', "with -z, the space may be given back"),
        ('z', "write zeroes"),
    ],
    run: write,
};

pub(super) const FLUSH: Command = Command {
    name: "aio_flush",
    short: None,
    takes: (0, Some(0)),
    operands: "",
    about: "completes all outstanding aio requests",
    needs: Needs::Disk,
    options: &[],
    run: flush,
};

fn read(session: &mut Session, words: &[String]) -> Outcome {
    let words = parse("CP:iqrv", words)?;
    let byte = pattern_of(&words)?;
    if words.has('i') {
        print("injecting invalid read request\n");
        return Ok(Ending::Done);
    }
    let (offset, len_bytes) = vector(&words.operands)?;
    let (telling, shown) = (telling(&words), words.has('v'));
    let disk = session.opened().disk.clone();
    let started = Stopwatch::start();
    session.start(async move {
        let data = match disk.read(offset, to_usize(len_bytes)).await {
            Ok(data) => data,
            Err(error) => return failure("readv", &error),
        };
        let mut text = String::new();
        if byte.is_some_and(|byte| data.iter().any(|found| *found != byte)) {
            text.push_str(&mismatch(offset, len_bytes));
        }
        if shown && telling != Telling::Quiet {
            text.push_str(&dump(offset, &data));
        }
        let finished = Finished {
            verb: "read",
            offset,
            len_bytes,
            elapsed: started.elapsed(),
        };
        text + &finished.text(telling)
    });
    Ok(Ending::Done)
}

fn write(session: &mut Session, words: &[String]) -> Outcome {
    let words = parse("CfiP:qruz", words)?;
    let byte = pattern_of(&words)?.unwrap_or(FILLER);
    if words.operands.len() < 2 {
        return Err(Complaint::Usage);
    }
    let zeroes = words.has('z');
    if zeroes && words.operands.len() != 2 {
        return Err(Complaint::Said(
            "-z supports only a single length parameter".into(),
        ));
    }
    if words.has('u') && !zeroes {
        return Err(Complaint::Said("-u requires -z to be specified".into()));
    }
    if words.has('i') {
        print("injecting invalid write request\n");
        return Ok(Ending::Done);
    }
    let (offset, len_bytes) = vector(&words.operands)?;
    let (telling, durable, unmap) = (telling(&words), durable(&words), unmap(&words));
    let disk = session.opened().disk.clone();
    let started = Stopwatch::start();
    session.start(async move {
        let written = if zeroes {
            let fallback = Fallback::Allowed;
            disk.write_zeroes(offset, len_bytes, unmap, fallback, durable)
                .await
        } else {
            let data = vec![byte; to_usize(len_bytes)];
            disk.write(offset, data, durable).await
        };
        if let Err(error) = written {
            return failure("aio_write", &error);
        }
        let finished = Finished {
            verb: "wrote",
            offset,
            len_bytes,
            elapsed: started.elapsed(),
        };
        finished.text(telling)
    });
    Ok(Ending::Done)
}

fn failure(name: &str, error: &Error) -> String {
    explain(error);
    format!("{name} failed: {}\n", errno_text(error))
}

fn flush(session: &mut Session, _: &[String]) -> Outcome {
    session.finish()?;
    Ok(Ending::Done)
}
