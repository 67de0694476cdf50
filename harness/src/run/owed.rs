//! What is owed to whoever manages an image, and no power loss tells.
//!
//! A disk that became smaller gives its space back by the time that this is answered. And a snapshot is refused
//! for want of room in the refcounts only where there is none: references that are yet to go do not count.

use blkdebug::record::Tick;

use super::live::Life;
use super::process;
use crate::guest::name_of;
use crate::oracle::structure::{Gain, StructureReport, has_room, walk};
use crate::oracle::{Oracle, Violation};
use crate::workload::ops::{Answer, Happening, Operation, SnapshotChange, SnapshotOperation};

impl Life {
    /// A disk that became smaller, and whose file did not.
    pub(super) fn kept_space(&self) -> Option<Violation> {
        let shrunk = self.lived.history.iter().filter_map(|it| {
            let Operation::Shrink { virtual_bytes } = it.operation else {
                return None;
            };
            match it.completed {
                Some((at, Answer::Done)) => Some((virtual_bytes, at)),
                Some(_) | None => None,
            }
        });
        let mut shrunk = shrunk.filter(|(_, at)| self.is_exact_at(*at));
        shrunk.find_map(|(virtual_bytes, at)| {
            let image = process::everything(self.recording(), at).disks.into_image();
            let referred = walk(&image).referred;
            let end = referred.last().map_or(0, |last| last.end) * 512;
            (image.len() > end).then(|| {
                let line = format!(
                    "the disk was made smaller, to {virtual_bytes} bytes, and its file has {} bytes of which only the \
                     first {end} are in use",
                    image.len()
                );
                Violation::new(Oracle::Service, "space-kept", "shrink", vec![line])
            })
        })
    }

    /// Whether a snapshot was refused for want of room in the refcounts although there was some. It is not known where
    /// other operations were in flight: they may have changed what is referred to since.
    pub(super) fn had_room(&self, refused: &Happening) -> bool {
        let Some((answered, _)) = refused.completed else {
            return false;
        };
        let beside = |other: &Happening| {
            let after = other
                .completed
                .is_some_and(|(at, _)| at < refused.submitted);
            other.id != refused.id && other.submitted < answered && !after
        };
        let alone = !self.lived.history.iter().any(beside);
        let Operation::Snapshot(SnapshotOperation { snapshot, change }) = refused.operation else {
            return false;
        };
        let name = name_of(snapshot);
        // A deletion takes no references, and is never refused for want of room.
        let gain = if change == SnapshotChange::Create {
            Gain::Disk
        } else {
            Gain::Snapshot(&name)
        };
        let image = process::everything(self.recording(), answered).disks;
        alone && self.is_exact_at(answered) && has_room(image.image(), gain)
    }

    /// Whether the process that had the image open at a moment found each refcount right, or made it so.
    fn is_exact_at(&self, moment: Tick) -> bool {
        let is_exact = |found: &StructureReport| {
            found.dirty() || found.leak_count == 0 && found.low_count == 0
        };
        match self.process_at(moment) {
            Some(process) => is_exact(&process.found.report),
            None => is_exact(&walk(&self.stage.image)),
        }
    }
}
