//! `snapshot`: the past states of a disk that an image keeps; how they are listed, and how one is named.

use std::time::{SystemTime, UNIX_EPOCH};

use engine::error::Error;
use engine::image::Access;
use engine::manage::{Manage, NewSnapshot};
use engine::qcow2::header::Header;
use engine::qcow2::snapshot::Snapshot;

use super::getopt::{Parsed, flag, value};
use super::json::Json;
use super::{Command, Stop, misuse, open_named, print, secrets, sharing, spec_of};
use crate::block::failure::engine_text;
use crate::block::open::at_once;
use crate::block::options::Options;
use crate::block::{CacheMode, Depth, Failure, Format, Node, Opening, Spec, size};

pub(super) const COMMAND: Command = Command {
    name: "snapshot",
    about: "List, take, apply or delete internal snapshots",
    operands: "FILENAME",
    options: &[
        flag(Some('h'), "help", "tell the options"),
        flag(Some('q'), "quiet", "say nothing that is not an error"),
        value(Some('f'), "format", "the format of FILENAME"),
        flag(None, "image-opts", "FILENAME is a set of options"),
        flag(
            Some('U'),
            "force-share",
            "others may write the image meanwhile",
        ),
        flag(Some('l'), "list", "list the snapshots; so without a word"),
        value(Some('c'), "create", "take a snapshot of that name"),
        value(Some('a'), "apply", "make the disk what it was then"),
        value(Some('d'), "delete", "delete the snapshot of that name"),
        value(None, "object", "a secret that options refer to"),
    ],
    run,
};

fn run(parsed: &Parsed) -> Result<u8, Stop> {
    let actions = ["list", "create", "apply", "delete"];
    let mut asked = parsed
        .options
        .iter()
        .filter(|(name, _)| actions.contains(name));
    let (action, wanted) = asked
        .next()
        .map_or(("list", ""), |(name, wanted)| (*name, wanted));
    if asked.next().is_some() {
        return Err(misuse("snapshot", "Cannot mix '-l', '-a', '-c', '-d'"));
    }
    let [name] = parsed.operands.as_slice() else {
        return Err(misuse("snapshot", "Expecting one image file name"));
    };
    let secrets = secrets(parsed)?;
    let opening = Opening {
        access: match action {
            "list" => Access::ReadOnly,
            _ => Access::ReadWrite,
        },
        sharing: sharing(parsed),
        cache: CacheMode::WriteBack,
        depth: Depth::Chain,
        secrets: &secrets,
    };
    let spec = spec_of(name, parsed)?;
    let node = open_named(name, &spec, &opening)?;
    match action {
        "create" => create(&node, wanted)?,
        "apply" => apply(&node, wanted)?,
        "delete" => delete(&node, wanted)?,
        _ => print(&list(&node.snapshots()?)),
    }
    Ok(0)
}

fn create(node: &Node, wanted: &str) -> Result<(), Failure> {
    let failed = |why: &str| Failure(format!("Could not create snapshot '{wanted}': {why}"));
    if node.format == Format::Raw {
        return Err(failed("Operation not supported"));
    }
    #[expect(
        clippy::disallowed_methods,
        reason = "a snapshot tells when it was taken, and only the command line has a clock"
    )]
    let now = SystemTime::now();
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let new = NewSnapshot {
        name: wanted.to_owned(),
        // The field has 32 bits: after 2106 it starts anew.
        date_seconds: u32::try_from(now.as_secs() & u64::from(u32::MAX)).unwrap_or_default(),
        date_nanoseconds: now.subsec_micros() * 1000,
        icount: Some(0),
        ..NewSnapshot::default()
    };
    manage(node, Manage::SnapshotCreate(new)).map_err(|error| failed(&engine_text(&error)))
}

fn apply(node: &Node, wanted: &str) -> Result<(), Failure> {
    let failed = |why: &str| Failure(format!("Could not apply snapshot '{wanted}': {why}"));
    if node.format == Format::Raw {
        return Err(failed("Block driver does not support snapshots"));
    }
    let external = |header: &Header| header.geometry.has_external_data();
    if node.header.as_ref().is_some_and(external) {
        return Err(failed("Failed to load snapshot: Operation not supported"));
    }
    let known = node.snapshots()?;
    if !known
        .iter()
        .any(|one| one.id == wanted || one.name == wanted)
    {
        return Err(failed("Failed to load snapshot: No such file or directory"));
    }
    let snapshot = wanted.to_owned();
    manage(node, Manage::SnapshotApply { snapshot }).map_err(|error| failed(&engine_text(&error)))
}

/// What is deleted is named by its name alone.
fn delete(node: &Node, wanted: &str) -> Result<(), Failure> {
    let failed = |why: &str| Failure(format!("Could not delete snapshot '{wanted}': {why}"));
    let known = node.snapshots()?;
    let Some(found) = known.iter().find(|one| one.name == wanted) else {
        return Err(failed("snapshot not found"));
    };
    let snapshot = found.id.clone();
    manage(node, Manage::SnapshotDelete { snapshot }).map_err(|error| failed(&engine_text(&error)))
}

fn manage(node: &Node, operation: Manage) -> Result<(), Error> {
    at_once(async {
        node.image().manage(operation).await?;
        node.image().close().await
    })
}

/// The list for a person; nothing where there are none.
pub(super) fn list(snapshots: &[Snapshot]) -> String {
    if snapshots.is_empty() {
        return String::new();
    }
    let line = |[id, tag, vm_size, date, vm_clock, icount]: [&str; 6]| {
        format!("{id:7} {tag:16} {vm_size:>8} {date:>19} {vm_clock:>15} {icount:>10}\n")
    };
    let heading = ["ID", "TAG", "VM_SIZE", "DATE", "VM_CLOCK", "ICOUNT"];
    let mut text = format!("Snapshot list:\n{}", line(heading));
    for one in snapshots {
        let milliseconds = one.vm_clock_nanoseconds / 1_000_000;
        let seconds = milliseconds / 1000;
        let vm_clock = format!(
            "{:04}:{:02}:{:02}.{:03}",
            seconds / 3600,
            seconds / 60 % 60,
            seconds % 60,
            milliseconds % 1000
        );
        text.push_str(&line([
            &one.id,
            &one.name,
            &size::human(one.vm_state_bytes),
            &date_and_time(one.date_seconds),
            &vm_clock,
            &one.icount
                .map_or_else(String::new, |icount| icount.to_string()),
        ]));
    }
    text
}

/// One snapshot as JSON.
pub(super) fn json(snapshot: &Snapshot) -> Json {
    let mut members = Vec::new();
    if let Some(icount) = snapshot.icount {
        members.push(("icount", icount.into()));
    }
    let vm_clock = snapshot.vm_clock_nanoseconds;
    members.extend([
        ("vm-clock-nsec", (vm_clock % 1_000_000_000).into()),
        ("name", snapshot.name.as_str().into()),
        ("date-sec", u64::from(snapshot.date_seconds).into()),
        ("date-nsec", u64::from(snapshot.date_nanoseconds).into()),
        ("vm-clock-sec", (vm_clock / 1_000_000_000).into()),
        ("id", snapshot.id.as_str().into()),
        ("vm-state-size", snapshot.vm_state_bytes.into()),
    ]);
    Json::Object(members)
}

/// A moment in UTC, by the Gregorian calendar, whose years are counted here from March so that the day
/// that comes and goes is the last.
fn date_and_time(seconds: u32) -> String {
    let (days, time) = (seconds / 86400, seconds % 86400);
    // 1 March of the year 0 was 719,468 days before 1 January 1970; 400 years have 146,097 days.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day_of_month = day - (153 * month + 2) / 5 + 1;
    let (year, month) = (400 * era + year, month + 3);
    let (year, month) = if month > 12 {
        (year + 1, month - 12)
    } else {
        (year, month)
    };
    format!(
        "{year:04}-{month:02}-{day_of_month:02} {:02}:{:02}:{:02}",
        time / 3600,
        time / 60 % 60,
        time % 60
    )
}

/// The snapshot that a command is to read in the place of the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// By id, or else by name.
    Either(String),
    /// By `snapshot.id=`, `snapshot.name=`, or both.
    Exactly {
        id: Option<String>,
        name: Option<String>,
    },
}

impl Wanted {
    /// What the argument of `-l` means.
    pub(super) fn read(text: &str) -> Result<Self, Failure> {
        if !text.starts_with("snapshot.") {
            return Ok(Self::Either(text.to_owned()));
        }
        let mut options = Options::from_list(text);
        let (id, name) = (options.take("snapshot.id"), options.take("snapshot.name"));
        match options.first_key() {
            None => Ok(Self::Exactly { id, name }),
            Some(key) => Err(Failure(format!(
                "Invalid parameter '{key}'\nqemu-img: Failed in parsing snapshot param '{text}'"
            ))),
        }
    }

    fn is(&self, one: &Snapshot) -> bool {
        match self {
            Self::Either(_) => false,
            Self::Exactly { id, name } => {
                id.as_ref().is_none_or(|id| *id == one.id)
                    && name.as_ref().is_none_or(|name| *name == one.name)
            }
        }
    }

    /// Opens an image with this snapshot in the place of its disk.
    pub(super) fn open(
        &self,
        name: &str,
        mut spec: Spec,
        opening: &Opening<'_>,
    ) -> Result<Node, Failure> {
        let node = open_named(name, &spec, opening)?;
        let failed = |why: &str| Failure(format!("Failed to load snapshot: {why}"));
        if node.format == Format::Raw {
            return Err(failed(
                "Block format 'raw' used by device '' does not support temporarily loading internal \
                 snapshots",
            ));
        }
        let known = node.snapshots()?;
        let found = match self {
            Self::Either(wanted) => known
                .iter()
                .find(|one| one.id == *wanted)
                .or_else(|| known.iter().find(|one| one.name == *wanted)),
            Self::Exactly { .. } => known.iter().find(|one| self.is(one)),
        };
        let found = found.ok_or_else(|| failed("Can't find snapshot"))?;
        spec.snapshot = Some(found.id.clone());
        open_named(name, &spec, opening)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_follow_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00"),
            (951_782_399, "2000-02-28 23:59:59"),
            (951_782_400, "2000-02-29 00:00:00"),
            (951_868_800, "2000-03-01 00:00:00"),
            (1_735_689_599, "2024-12-31 23:59:59"),
            (u32::MAX, "2106-02-07 06:28:15"),
        ] {
            assert_eq!(date_and_time(seconds), text);
        }
    }
}
