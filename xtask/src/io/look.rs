//! Commands that look at the disk as a whole, and the one that changes its size.

use engine::image::StatusKind;
use engine::preallocation::Preallocation;
use engine::raw::lengthen;

use super::command::{Command, Needs};
use super::opening::{Settings, reopened};
use super::report::bytes_text;
use super::session::{Complaint, Ending, Outcome, Session};
use super::transfer::parse;
use super::words::number;
use crate::block::Format;
use crate::block::direct::Direct;
use crate::block::disk::Disk;
use crate::block::failure::engine_text;
use crate::img::creation::no_raw_metadata;
use crate::img::info::specific_text;
use crate::img::print;
use crate::img::resize::{resize_failure, resizing};

pub(super) const MAP: Command = Command {
    name: "map",
    short: None,
    takes: (0, Some(0)),
    operands: "",
    about: "prints the allocated areas of a file",
    needs: Needs::Disk,
    options: &[],
    run: map,
};

pub(super) const ALLOC: Command = Command {
    name: "alloc",
    short: Some("a"),
    takes: (1, Some(2)),
    operands: "offset [count]",
    about: "checks if offset is allocated in the file",
    needs: Needs::Disk,
    options: &[],
    run: alloc,
};

pub(super) const LENGTH: Command = Command {
    name: "length",
    short: Some("l"),
    takes: (0, Some(0)),
    operands: "",
    about: "gets the length of the current file",
    needs: Needs::Disk,
    options: &[],
    run: length,
};

pub(super) const INFO: Command = Command {
    name: "info",
    short: Some("i"),
    takes: (0, Some(0)),
    operands: "",
    about: "prints information about the current file",
    needs: Needs::Disk,
    options: &[],
    run: info,
};

pub(super) const TRUNCATE: Command = Command {
    name: "truncate",
    short: Some("t"),
    takes: (1, Some(3)),
    operands: "[-m prealloc_mode] off",
    about: "truncates the current file at the given offset",
    needs: Needs::WritableDisk,
    options: &[(
        'm',
        "off, metadata, falloc or full: what of the new part takes its place",
    )],
    run: truncate,
};

/// Whether the image itself holds what stands at `offset`, and how far that goes.
fn held(
    session: &mut Session,
    offset: u64,
    len_bytes: u64,
    failed: impl Fn(String) -> Complaint,
) -> Result<(bool, u64), Complaint> {
    let node = session.opened().node.clone();
    let status = session.wait(async move {
        node.ask_status(offset, len_bytes)?;
        node.image().status(offset, len_bytes).await
    })?;
    match status {
        Ok(status) => {
            let held = match status.kind {
                StatusKind::Data | StatusKind::Compressed | StatusKind::Zero => true,
                StatusKind::Unallocated => false,
            };
            Ok((held, status.len_bytes))
        }
        Err(error) => Err(failed(engine_text(&error))),
    }
}

fn map(session: &mut Session, _: &[String]) -> Outcome {
    let end = session.opened().node.virtual_bytes();
    let failed = |why| Complaint::Told(format!("Failed to get allocation status: {why}"));
    let mut here = 0;
    while here < end {
        let start = here;
        let (kind, len_bytes) = held(session, here, end - here, failed)?;
        here += len_bytes;
        while here < end {
            let (next, len_bytes) = held(session, here, end - here, failed)?;
            if next != kind {
                break;
            }
            here += len_bytes;
        }
        let word = if kind {
            "    allocated"
        } else {
            "not allocated"
        };
        let len_bytes = here - start;
        print(&format!(
            "{} (0x{len_bytes:x}) bytes {word} at offset {} (0x{start:x})\n",
            bytes_text(len_bytes),
            bytes_text(start)
        ));
    }
    Ok(Ending::Done)
}

fn alloc(session: &mut Session, words: &[String]) -> Outcome {
    let start = number(&words[0]).map_err(Complaint::Said)?;
    let mut count = match words.get(1) {
        Some(text) => number(text).map_err(Complaint::Said)?,
        None => 512,
    };
    let disk = session.opened().node.virtual_bytes();
    count = count.min(disk.saturating_sub(start));
    let failed = |why| Complaint::Said(format!("is_allocated failed: {why}"));
    let (mut here, mut sum) = (start, 0);
    while here < start + count {
        let (kind, len_bytes) = held(session, here, start + count - here, failed)?;
        here += len_bytes;
        if kind {
            sum += len_bytes;
        }
    }
    print(&format!(
        "{sum}/{count} bytes allocated at offset {}\n",
        bytes_text(start)
    ));
    Ok(Ending::Done)
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "every command hands back an outcome"
)]
fn length(session: &mut Session, _: &[String]) -> Outcome {
    let bytes = session.opened().node.virtual_bytes();
    print(&format!("{}\n", bytes_text(bytes)));
    Ok(Ending::Done)
}

fn info(session: &mut Session, _: &[String]) -> Outcome {
    let node = &session.opened().node;
    let header = node.header.as_ref();
    let (cluster_bytes, vm_state) = header.map_or((0, 0), |header| {
        let geometry = header.geometry;
        let span = geometry.l1_span_bytes();
        let spans = node.virtual_bytes().div_ceil(span);
        (geometry.cluster_bytes(), spans.saturating_mul(span))
    });
    print(&format!(
        "format name: {}\ncluster size: {}\nvm state offset: {}\n{}",
        node.format.name(),
        bytes_text(cluster_bytes),
        bytes_text(vm_state),
        specific_text(node).map_err(|why| Complaint::Told(why.0))?
    ));
    Ok(Ending::Done)
}

fn truncate(session: &mut Session, words: &[String]) -> Outcome {
    let words = parse("m:", words)?;
    let mode = match words.get('m') {
        None => Preallocation::Off,
        Some(name) => Preallocation::from_name(name)
            .ok_or_else(|| Complaint::Told(format!("Invalid preallocation mode '{name}'")))?,
    };
    let [text] = words.operands.as_slice() else {
        return Err(Complaint::Usage);
    };
    let virtual_bytes = number(text).map_err(Complaint::Said)?;
    if session.opened().node.format == Format::Raw {
        return truncate_raw(session, virtual_bytes, mode);
    }
    if !virtual_bytes.is_multiple_of(512) {
        return Err(Complaint::Told(
            "The new size must be a multiple of 512".into(),
        ));
    }
    let node = &session.opened().node;
    if virtual_bytes < node.virtual_bytes() && mode != Preallocation::Off {
        return Err(Complaint::Told(
            "Preallocation can't be used for shrinking an image".into(),
        ));
    }
    let (image, resizing) = (node.image().clone(), resizing(node, virtual_bytes, mode));
    let resized = session.wait(async move { image.manage(resizing).await })?;
    resized.map_err(|error| Complaint::Told(resize_failure(&error).0))?;
    Ok(Ending::Done)
}

/// A raw disk ends where its file ends, at any byte.
fn truncate_raw(session: &mut Session, len_bytes: u64, mode: Preallocation) -> Outcome {
    session.finish()?;
    session.opened().node.claim_resize()?;
    let node = &session.opened().node;
    let direct = node.direct.as_ref().map(Direct::port);
    let port = direct.unwrap_or_else(|| node.file.port.clone());
    if mode == Preallocation::Metadata {
        return Err(Complaint::Told(no_raw_metadata().0));
    }
    if len_bytes < port.len() && mode != Preallocation::Off {
        return Err(Complaint::Told(
            "Cannot use preallocation for shrinking files".into(),
        ));
    }
    let set = session.wait(async move { lengthen(&port, len_bytes, mode).await })?;
    set.map_err(|error| Complaint::Told(engine_text(&error)))?;
    if let Some(open) = session.open.as_mut()
        && open.node.measured_again()
    {
        // Whoever stands below keeps its rules, and what is parked there.
        let Settings {
            cache, read_mode, ..
        } = open.settings;
        open.disk = Disk::new(&open.node, cache, read_mode);
        return Ok(Ending::Done);
    }
    let settings = session.opened().settings.clone();
    reopened(session, settings)
}
