//! `amend -o encrypt.*`: which secrets open an image that is encrypted with LUKS.
//!
//! What a call rules out is refused before anything is written, in qemu-img's order. A forced replacement of a
//! secret is made before the old one is broken, in a slot that is free meanwhile, so that a power loss leaves
//! the old secret or the new one; only where all slots are active the others must do.

use engine::device::Event;
use engine::error::Error;
use engine::luks::{Header, NewSlot, SLOTS, Secret, slots_opened_by};
use engine::manage::{LastSlot, Manage};
use engine::qcow2::Encryption;

use super::encryption::{iterations, random_bytes};
use crate::block::failure::engine_text;
use crate::block::open::at_once;
use crate::block::secret::Secrets;
use crate::block::{Failure, Node};

/// What a call asks for, as it was spelled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct KeySlots {
    state: Option<String>,
    slot: Option<i64>,
    new_secret: Option<String>,
    old_secret: Option<String>,
    iter_time: Option<i64>,
}

/// Whether `--force` was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Force {
    /// What may lose data is refused.
    No,
    /// It is done.
    Yes,
}

/// What is to be done to the slots.
enum Change {
    /// The key is put under a secret in this slot, which may be active.
    Fill { slot: usize, secret: Secret },
    /// These are emptied.
    Erase(Vec<usize>),
}

impl KeySlots {
    /// Takes an option in, without `encrypt.` in front of its name.
    pub(super) fn set(&mut self, name: &str, value: String) {
        match name {
            "keyslot" => self.slot = value.parse().ok(),
            "iter-time" => self.iter_time = value.parse().ok(),
            "new-secret" => self.new_secret = Some(value),
            "old-secret" => self.old_secret = Some(value),
            _ => self.state = Some(value),
        }
    }

    /// Whether anything is asked for.
    pub(super) fn is_asked_for(&self) -> bool {
        *self != Self::default()
    }

    /// Refuses an image that has no slots.
    pub(super) fn must_suit(encryption: Option<Encryption>) -> Result<(), Failure> {
        match encryption {
            None => refuse("Can't amend encryption options - encryption not present"),
            Some(Encryption::Aes) => refuse("Only LUKS encryption options can be amended"),
            Some(Encryption::Luks { .. }) => Ok(()),
        }
    }

    /// Changes the slots of an open image.
    pub(super) fn carry_out(
        &self,
        node: &Node,
        secrets: &Secrets,
        force: Force,
    ) -> Result<(), Failure> {
        let (header, area) = volume(node)?;
        match self.change(&header, &area, secrets, force)? {
            Change::Erase(slots) => {
                let last = match force {
                    Force::No => LastSlot::Keep,
                    Force::Yes => LastSlot::Destroy,
                };
                slots
                    .into_iter()
                    .try_for_each(|slot| manage(node, Manage::KeySlotErase { slot, last }))
            }
            Change::Fill { slot, secret } => self.fill(node, &header, slot, &secret),
        }
    }

    fn change(
        &self,
        header: &Header,
        area: &[u8],
        secrets: &Secrets,
        force: Force,
    ) -> Result<Change, Failure> {
        match self.state.as_deref() {
            None => refuse("Parameter 'state' is missing"),
            Some("active") => self.filling(header, secrets, force),
            Some("inactive") => self
                .erasing(header, area, secrets, force)
                .map(Change::Erase),
            Some(other) => Err(Failure(format!(
                "Parameter 'state' does not accept value '{other}'"
            ))),
        }
    }

    fn filling(&self, header: &Header, secrets: &Secrets, force: Force) -> Result<Change, Failure> {
        let Some(id) = &self.new_secret else {
            return refuse("'new-secret' is required to activate a keyslot");
        };
        if self.old_secret.is_some() {
            return refuse("'old-secret' must not be given when activating keyslots");
        }
        let free = || {
            let free = (0..SLOTS).find(|slot| !header.slots[*slot].active);
            free.ok_or_else(|| Failure::new("Can't add a keyslot - all keyslots are in use"))
        };
        let slot = self.slot()?.map_or_else(free, Ok)?;
        if header.slots[slot].active && force == Force::No {
            return Err(Failure(format!(
                "Refusing to overwrite active keyslot {slot} - please erase it first"
            )));
        }
        let secret = Secret::new(secrets.get(id)?.to_vec());
        Ok(Change::Fill { slot, secret })
    }

    fn erasing(
        &self,
        header: &Header,
        area: &[u8],
        secrets: &Secrets,
        force: Force,
    ) -> Result<Vec<usize>, Failure> {
        if self.new_secret.is_some() {
            return refuse("'new-secret' must not be given when erasing keyslots");
        }
        if self.iter_time.is_some() {
            return refuse("'iter-time' must not be given when erasing keyslots");
        }
        let opened = match &self.old_secret {
            Some(id) => {
                let secret = Secret::new(secrets.get(id)?.to_vec());
                Some(slots_opened_by(header, area, &secret))
            }
            None => None,
        };
        let active = header.slots.iter().filter(|slot| slot.active).count();
        match (self.slot()?, opened) {
            (Some(slot), opened) => {
                if opened.is_some_and(|opened| !opened.contains(&slot)) {
                    return Err(Failure(format!(
                        "Given keyslot {slot} doesn't contain the given old password for erase operation"
                    )));
                }
                if force == Force::No && !header.slots[slot].active {
                    return Err(Failure(format!(
                        "Given keyslot {slot} is already erased (inactive) "
                    )));
                }
                if force == Force::No && active == 1 {
                    return Err(Failure(format!(
                        "Attempt to erase the only active keyslot {slot} which will erase all the \
                         data in the image irreversibly - refusing operation"
                    )));
                }
                Ok(vec![slot])
            }
            (None, Some(opened)) if opened.is_empty() => {
                refuse("No keyslots match given (old) password for erase operation")
            }
            (None, Some(opened)) if force == Force::No && opened.len() == active => refuse(
                "All the active keyslots match the (old) password that was given and erasing them \
                 will erase all the data in the image irreversibly - refusing operation",
            ),
            (None, Some(opened)) => Ok(opened),
            (None, None) => refuse(
                "To erase keyslot(s), either explicit keyslot index or the password currently \
                 contained in them must be given",
            ),
        }
    }

    /// The slot that was named; the number has 32 bits.
    fn slot(&self) -> Result<Option<usize>, Failure> {
        let Some(number) = self.slot.map(|number| number & i64::from(u32::MAX)) else {
            return Ok(None);
        };
        let slot = usize::try_from(number).ok().filter(|slot| *slot < SLOTS);
        slot.map(Some).ok_or_else(|| {
            Failure(format!(
                "Invalid keyslot {number} specified, must be between 0 and {}",
                SLOTS - 1
            ))
        })
    }

    fn fill(
        &self,
        node: &Node,
        header: &Header,
        slot: usize,
        secret: &Secret,
    ) -> Result<(), Failure> {
        let count = iterations(header.hash, self.iter_time)
            .map_err(|why| Failure(format!("{}\nFailed to write to keyslot {slot}", why.0)))?;
        let fill = |slot| {
            let random = random_bytes(NewSlot::random_len(header.cipher))?;
            let new = NewSlot::new(secret.clone(), count, random);
            manage(node, Manage::KeySlotFill { slot, new })
        };
        let erase = |slot| {
            // The caller has forced it.
            let last = LastSlot::Destroy;
            manage(node, Manage::KeySlotErase { slot, last })
        };
        if !header.slots[slot].active {
            return fill(slot);
        }
        let spare = (0..SLOTS).find(|spare| !header.slots[*spare].active);
        if let Some(spare) = spare {
            fill(spare)?;
        }
        erase(slot)?;
        fill(slot)?;
        spare.map_or(Ok(()), erase)
    }
}

fn refuse<T>(text: &str) -> Result<T, Failure> {
    Err(Failure::new(text))
}

fn told(error: &Error) -> Failure {
    Failure(engine_text(error))
}

fn manage(node: &Node, operation: Manage) -> Result<(), Failure> {
    at_once(node.image().manage(operation)).map_err(|error| told(&error))
}

/// The header of the volume, and everything in front of the data.
fn volume(node: &Node) -> Result<(Header, Vec<u8>), Failure> {
    let encryption = node.header.as_ref().and_then(|header| header.encryption);
    KeySlots::must_suit(encryption)?;
    let Some(Encryption::Luks { offset, len_bytes }) = encryption else {
        unreachable!("an image without slots was refused")
    };
    let len = usize::try_from(len_bytes).expect("an encryption header fits memory");
    let area = at_once(node.file.port.at(Event::None).read(offset.0, len))
        .map_err(|error| told(&error.into()))?;
    let header = Header::decode(&area).map_err(Failure)?;
    Ok((header, area))
}
