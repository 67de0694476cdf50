//! Tables whose place and length stand in an entry of another table: each is walked once.
//!
//! Nothing keeps the entries of a damaged image from naming one table a thousand times, or a thousand
//! tables that overlap. The first are walked once, with their multiplicity; the second are walked until
//! they are twice as long as the file, together.

use super::report::Kind;
use super::survey::{Place, Survey};
use crate::qcow2::bounds::{Bounded, Extent};
use crate::qcow2::unit::HostOffset;

/// A table that an entry names.
#[derive(Clone, Copy, Debug)]
pub(super) struct Claim {
    pub(super) offset: HostOffset,
    pub(super) len_bytes: u64,
    /// The entry.
    pub(super) place: Place,
}

/// A table to walk, and how many entries name it; the place is that of the first.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table {
    pub(super) extent: Extent,
    pub(super) place: Place,
    pub(super) times: u32,
}

impl Survey<'_> {
    /// The tables that can be walked, each once. What cannot be is noted, once for each entry.
    pub(super) fn settle_claims(&mut self, what: Bounded, mut claims: Vec<Claim>) -> Vec<Table> {
        claims.sort_by_key(|claim| (claim.offset, claim.len_bytes, claim.place.index));
        let geometry = self.header.geometry;
        let mut left = self.file_bytes.saturating_mul(2);
        let mut tables = Vec::new();
        for group in claims
            .chunk_by(|one, other| (one.offset, one.len_bytes) == (other.offset, other.len_bytes))
        {
            let Claim {
                offset,
                len_bytes,
                place,
            } = group[0];
            if len_bytes == 0 && geometry.is_aligned(offset) {
                continue;
            }
            match Extent::new(what, (offset, len_bytes), geometry) {
                Ok(extent) if len_bytes <= left => {
                    left -= len_bytes;
                    let times = u32::try_from(group.len()).expect("entries are bounded");
                    tables.push(Table {
                        extent,
                        place,
                        times,
                    });
                }
                Ok(_) => self.give_up_each(group, &Kind::Field("its table overlaps others")),
                Err(excess) => self.give_up_each(group, &Kind::Place(excess)),
            }
        }
        tables
    }

    fn give_up_each(&mut self, group: &[Claim], kind: &Kind) {
        self.complete = false;
        for claim in group {
            self.note_stuck(kind.clone(), claim.place);
        }
    }
}
