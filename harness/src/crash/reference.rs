//! The crash model taken literally, for tiny recordings: every choice of every request is tried on
//! plain bytes. It shares nothing with the code it is a reference for but the bytes of garbage.

use std::collections::BTreeSet;

use blkdebug::contract::Contract;
use blkdebug::record::{Effect, Entry, RecordedOp, Recording, SectorContent, Tick};
use engine::device::{ContentHash, PageImage};

use super::state::garbage;

/// Longer than anything that the recordings touch.
const SECTORS: usize = 16;

/// What one request leaves: for each of its sectors old, asked or garbage, and its length or not.
type Choice = (Vec<Left>, bool);

#[derive(Clone, Copy, PartialEq)]
enum Left {
    Old,
    Asked,
    Garbage,
}

#[derive(Clone, Copy, PartialEq)]
enum How {
    Durable,
    Completed,
    InFlight,
}

/// The contents that `contract` allows after a power loss at `cut`.
pub(super) fn states(
    recording: &Recording,
    cut: Tick,
    contract: Contract,
) -> BTreeSet<ContentHash> {
    let order = order(recording, cut, contract);
    let mut found = BTreeSet::new();
    let each: Vec<Vec<Choice>> = order
        .iter()
        .map(|(entry, how)| choices(entry, *how, contract))
        .collect();
    product(&each, &mut Vec::new(), &mut |chosen| {
        found.insert(content(recording, &order, chosen));
    });
    if contract == Contract::Prefix {
        for survive in 0..order.len() {
            let prefix: Vec<Choice> = order
                .iter()
                .enumerate()
                .map(|(index, (entry, how))| {
                    let left = *how == How::Durable || *how == How::Completed && index < survive;
                    uniform(entry, if left { Left::Asked } else { Left::Old }, left)
                })
                .collect();
            found.insert(content(
                recording,
                &order,
                &prefix.iter().collect::<Vec<_>>(),
            ));
        }
    }
    found
}

fn order(recording: &Recording, cut: Tick, contract: Contract) -> Vec<(&Entry, How)> {
    let changes = |entry: &&Entry| {
        entry.submitted <= cut
            && entry.effect != Effect::Dropped
            && !matches!(entry.op, RecordedOp::Flush | RecordedOp::Read { .. })
    };
    let completion = |entry: &Entry| {
        entry
            .completed
            .map(|(tick, _)| tick)
            .filter(|tick| *tick <= cut)
    };
    let mut answered: Vec<&Entry> = recording
        .entries
        .iter()
        .filter(changes)
        .filter(|entry| completion(entry).is_some())
        .collect();
    answered.sort_by_key(|entry| completion(entry));
    let covered = |entry: &Entry| {
        recording.entries.iter().any(|flush| {
            matches!(flush.op, RecordedOp::Flush)
                && completion(flush).is_some()
                && completion(entry).is_some_and(|tick| tick < flush.submitted)
        })
    };
    let fua = |entry: &Entry| matches!(entry.op, RecordedOp::Write { fua: true, .. });
    let flying = recording
        .entries
        .iter()
        .filter(changes)
        .filter(|entry| completion(entry).is_none())
        .map(|entry| (entry, How::InFlight));
    answered
        .into_iter()
        .map(|entry| {
            let durable = contract != Contract::Liar && (covered(entry) || fua(entry));
            (
                entry,
                if durable {
                    How::Durable
                } else {
                    How::Completed
                },
            )
        })
        .chain(flying)
        .collect()
}

fn uniform(entry: &Entry, left: Left, length: bool) -> Choice {
    (vec![left; entry.op.sector_count()], length)
}

fn choices(entry: &Entry, how: How, contract: Contract) -> Vec<Choice> {
    let advice = match entry.op {
        RecordedOp::Discard { .. } => true,
        RecordedOp::WriteZeroes { unmap, .. } => unmap,
        RecordedOp::Read { .. }
        | RecordedOp::Write { .. }
        | RecordedOp::Flush
        | RecordedOp::SetLen { .. } => false,
    };
    let kept = uniform(entry, Left::Asked, true);
    let lost = uniform(entry, Left::Old, false);
    let spoils = matches!(contract, Contract::EpochTornGarbage | Contract::Liar);
    let possible: &[Left] = if advice || spoils {
        &[Left::Old, Left::Asked, Left::Garbage]
    } else {
        &[Left::Old, Left::Asked]
    };
    let contents: Vec<Vec<Left>> = match (how, contract) {
        (How::Durable, _) | (How::Completed, Contract::Perfect | Contract::Prefix) => {
            return vec![kept];
        }
        (How::InFlight, Contract::Perfect | Contract::Prefix) => return vec![kept, lost],
        (_, Contract::Epoch) => possible
            .iter()
            .map(|left| vec![*left; entry.op.sector_count()])
            .collect(),
        (_, Contract::EpochTorn | Contract::EpochTornGarbage | Contract::Liar) => {
            let sectors = vec![possible.to_vec(); entry.op.sector_count()];
            let mut all = Vec::new();
            product(&sectors, &mut Vec::new(), &mut |chosen| {
                all.push(chosen.iter().map(|left| **left).collect());
            });
            all
        }
    };
    contents
        .into_iter()
        .flat_map(|content| [(content.clone(), false), (content, true)])
        .collect()
}

/// Calls `visit` with one member of each list, in every combination.
fn product<'a, T>(lists: &'a [Vec<T>], chosen: &mut Vec<&'a T>, visit: &mut dyn FnMut(&[&'a T])) {
    let Some(list) = lists.get(chosen.len()) else {
        visit(chosen);
        return;
    };
    for member in list {
        chosen.push(member);
        product(lists, chosen, visit);
        chosen.pop();
    }
}

fn content(recording: &Recording, order: &[(&Entry, How)], chosen: &[&Choice]) -> ContentHash {
    let mut bytes = recording.bases.image().read_vec(0, SECTORS * 512);
    let mut len = usize::try_from(recording.bases.image().len()).unwrap();
    for ((entry, _), (content, length)) in order.iter().zip(chosen) {
        if let RecordedOp::SetLen { len_bytes } = entry.op {
            if *length {
                len = usize::try_from(len_bytes).unwrap();
                bytes[len..].fill(0);
            }
            continue;
        }
        let first = usize::try_from(entry.op.sectors().start).unwrap();
        for (index, left) in content.iter().enumerate() {
            if let Effect::Torn(mask) = &entry.effect
                && !mask.contains(index)
            {
                continue;
            }
            let sector = first + index;
            let target = &mut bytes[sector * 512..(sector + 1) * 512];
            match (left, entry.op.content(index)) {
                (Left::Old, _) => {}
                (Left::Garbage, _) => {
                    let sector = u64::try_from(sector).unwrap();
                    target.copy_from_slice(&garbage(entry.id, sector));
                }
                (Left::Asked, SectorContent::Zero) => target.fill(0),
                (Left::Asked, SectorContent::Bytes(data, _)) => target.copy_from_slice(data),
            }
        }
        let grows = !matches!(entry.op, RecordedOp::Discard { .. });
        if *length && grows {
            len = len.max((first + content.len()) * 512);
        }
    }
    PageImage::from_bytes(&bytes[..len]).content_hash()
}
