//! Key slots of an image that is encrypted with LUKS: one more secret, or one less. Rules 25 to 28.
//!
//! The header takes 592 bytes, so two sectors, and only one sector changes as one. The word that says whether
//! a slot is active stands in sector 0 for the slots 0 to 6, and in sector 1 for slot 7; of slot 6 the end of
//! the salt is in sector 1. So one sector switches a slot, and whatever else belongs to the slot is
//! written while it is inactive. A sector is rewritten with the bytes that the other slots have there, so
//! that none of them is ever without its own, whichever version survives.
//!
//! An operation is about one slot. Whoever replaces a secret adds the new one first, and takes the old one away
//! when that is durable: then there is no moment at which neither opens the image.

use super::crypto::Area;
use super::image::Qcow2;
use super::metadata::Metadata;
use super::order::Stamp;
use super::unit::{HostOffset, byte_count};
use crate::barrier::Barrier;
use crate::device::Event;
use crate::error::{Error, KeySlotProblem, Refused};
use crate::luks::slot::{Filled, emptied, fill};
use crate::luks::{self, NewSlot, SLOTS, VolumeKey};
use crate::manage::LastSlot;

const SECTOR: usize = 512;

impl Qcow2 {
    /// Puts the key into an inactive slot.
    pub(super) async fn fill_key_slot(&self, slot: usize, new: &NewSlot) -> Result<(), Error> {
        let (area, key) = self.volume(slot)?;
        let metadata = self.metadata.lock().await;
        metadata.must_be_sound()?;
        let (header, present) = area.load(self.order.file()).await?;
        if header.slots[slot].active {
            return Err(Refused::KeySlot(KeySlotProblem::Occupied(slot)).into());
        }
        header
            .must_have_room(slot, area.len_bytes)
            .map_err(|text| area.bad(text))?;
        let Filled { header, material } = fill(&header, slot, key, new).map_err(Refused::Option)?;
        let place = header.material(slot);
        let sectors = Sectors::with_entry(&present, &header, slot);
        // That it says inactive may be what an earlier attempt wrote that failed.
        self.order
            .barrier(Barrier::BeforeKeyWipe, self.order.doubtful())
            .await?;
        let written = metadata.put(area, place.start, material.to_vec()).await?;
        let written = written.max(metadata.put_sectors(area, &sectors.others).await?);
        self.order.barrier(Barrier::BeforeKeySlot, written).await?;
        let switched = metadata.put_sectors(area, &[sectors.state]).await?;
        self.order.barrier(Barrier::AfterKeySlot, switched).await
    }

    /// Makes a slot inactive and wipes its key material, or what is left of it in an inactive slot.
    pub(super) async fn erase_key_slot(&self, slot: usize, last: LastSlot) -> Result<(), Error> {
        let (area, _) = self.volume(slot)?;
        let metadata = self.metadata.lock().await;
        metadata.must_be_sound()?;
        let (mut header, present) = area.load(self.order.file()).await?;
        let active = header.slots[slot].active;
        let alone = (0..SLOTS).all(|other| other == slot || !header.slots[other].active);
        if active && alone && last == LastSlot::Keep {
            return Err(Refused::KeySlot(KeySlotProblem::Last(slot)).into());
        }
        header
            .must_have_room(slot, area.len_bytes)
            .map_err(|text| area.bad(text))?;
        // That it says inactive may be what an earlier attempt wrote that failed.
        let mut switched = self.order.doubtful();
        if active {
            header.slots[slot].active = false;
            let Sectors { state, .. } = Sectors::with_entry(&present, &header, slot);
            switched = switched.max(metadata.put_sectors(area, &[state]).await?);
        }
        self.order.barrier(Barrier::BeforeKeyWipe, switched).await?;
        let place = header.material(slot);
        let Sectors { state, mut others } =
            Sectors::with_entry(&present, &emptied(&header, slot), slot);
        others.push(state);
        let wiped = metadata
            .put(area, place.start, vec![0; place.len()])
            .await?;
        let wiped = wiped.max(metadata.put_sectors(area, &others).await?);
        self.order.barrier(Barrier::AfterKeyWipe, wiped).await
    }

    /// The key of a LUKS volume that was unlocked, for whoever opens it again: see
    /// [`super::Unlock::Key`].
    pub fn volume_key(&self) -> Option<VolumeKey> {
        self.crypto.as_ref()?.volume_key().cloned()
    }

    /// Where the header stands, and the key.
    fn volume(&self, slot: usize) -> Result<(Area, &VolumeKey), Error> {
        self.access.must_allow_writes()?;
        if slot >= SLOTS {
            return Err(Refused::KeySlot(KeySlotProblem::OutOfRange(slot)).into());
        }
        let key = self.crypto.as_ref().and_then(|crypto| crypto.volume_key());
        match (self.key_area, key) {
            (Some(area), Some(key)) => Ok((area, key)),
            (Some(_) | None, _) => Err(Refused::KeySlot(KeySlotProblem::NoSlots).into()),
        }
    }
}

/// A sector of the header.
struct Sector {
    at: usize,
    bytes: Vec<u8>,
}

/// The sectors of the header that a slot's entry touches.
struct Sectors {
    /// The one with the slot's state.
    state: Sector,
    /// The others that change.
    others: Vec<Sector>,
}

impl Sectors {
    /// The header's sectors, `present` as they are, with a slot's entry as `header` has it.
    fn with_entry(present: &[u8], header: &luks::Header, slot: usize) -> Self {
        let entry = luks::Header::entry_range(slot);
        let mut bytes = present.to_vec();
        bytes[entry.clone()].copy_from_slice(&header.entry(slot));
        let sector = |at: usize| Sector {
            at,
            bytes: bytes[at..at + SECTOR].to_vec(),
        };
        let state_at = entry.start / SECTOR * SECTOR;
        let others = (0..bytes.len())
            .step_by(SECTOR)
            .filter(|at| *at != state_at && bytes[*at..*at + SECTOR] != present[*at..*at + SECTOR]);
        Self {
            others: others.map(sector).collect(),
            state: sector(state_at),
        }
    }
}

impl Metadata {
    async fn put(&self, area: Area, at: usize, bytes: Vec<u8>) -> Result<Stamp, Error> {
        let offset = HostOffset(area.offset.0 + byte_count(at));
        self.order.write(Event::None, offset, bytes).await
    }

    async fn put_sectors(&self, area: Area, sectors: &[Sector]) -> Result<Stamp, Error> {
        let mut written = Stamp::default();
        for Sector { at, bytes } in sectors {
            written = self.put(area, *at, bytes.clone()).await?;
        }
        Ok(written)
    }
}
