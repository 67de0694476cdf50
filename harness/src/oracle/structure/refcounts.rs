//! Compares the refcounts with the references.

use super::references::{Claim, Reference};
use super::{Finding, Miscount, Scan};

/// Settles every cluster that is referred to or counted. `references` ascend by cluster.
pub(super) fn compare(scan: &mut Scan<'_>, references: &[Reference]) {
    let mut rest = references;
    let per_block = scan.layout.counts_per_block();
    let order = scan.layout.refcount_order;
    let block_sectors = scan.layout.cluster_sectors();
    for (index, offset) in std::mem::take(&mut scan.blocks) {
        let start = offset / 512;
        let sectors = start..start + scan.spend(block_sectors);
        for (sector, bytes) in scan.image.stored_sectors(sectors) {
            let first = index * per_block + (((sector - start) * 4096) >> order);
            for (word, position) in bytes.as_chunks::<8>().0.iter().zip(0u64..) {
                if *word == [0; 8] {
                    continue;
                }
                let first = first + ((position * 64) >> order);
                for (refcount, cluster) in counts(word, order).zip(first..) {
                    if refcount > 0 {
                        rest = settle_below(scan, rest, cluster);
                        let (here, beyond) = split_at_cluster(rest, cluster);
                        rest = beyond;
                        settle(scan, cluster, here, refcount);
                    }
                }
            }
        }
    }
    settle_below(scan, rest, u64::MAX);
}

/// Settles the clusters below `limit`, all of which have a refcount of zero.
fn settle_below<'a>(scan: &mut Scan<'_>, mut rest: &'a [Reference], limit: u64) -> &'a [Reference] {
    while let Some(first) = rest.first()
        && first.cluster < limit
    {
        let (here, beyond) = split_at_cluster(rest, first.cluster);
        settle(scan, first.cluster, here, 0);
        rest = beyond;
    }
    rest
}

/// The references to `cluster`, which stand first if there are any, and the others.
fn split_at_cluster(references: &[Reference], cluster: u64) -> (&[Reference], &[Reference]) {
    let count = references
        .iter()
        .take_while(|reference| reference.cluster == cluster)
        .count();
    references.split_at(count)
}

/// Judges one cluster: all references to it, and its refcount.
fn settle(scan: &mut Scan<'_>, cluster: u64, here: &[Reference], refcount: u64) {
    let references = here
        .iter()
        .fold(0u64, |sum, reference| sum.saturating_add(reference.count));
    if let Some(first) = here.first()
        && let Some(second) = here.iter().find(|other| other.owner != first.owner)
    {
        scan.report.find(Finding::TwoOwners {
            cluster,
            one: first.owner.min(second.owner),
            other: first.owner.max(second.owner),
        });
    }
    if refcount != references {
        scan.report.miscount(Miscount {
            cluster,
            owner: here.first().map(|reference| reference.owner),
            references,
            refcount,
        });
    }
    if refcount > references {
        scan.report.leak_count += 1;
    }
    if refcount < references {
        scan.report.low_count += 1;
        if !scan.layout.dirty {
            scan.report.find(Finding::TooLow {
                cluster,
                owner: here[0].owner,
                references,
                refcount,
            });
        }
    }
    let sole = references == 1;
    for reference in here {
        let counted = scan.layout.dirty || refcount == 1;
        match reference.claim {
            Claim::Sole if !(sole && counted) => scan.report.find(Finding::FalseCopied {
                cluster,
                owner: reference.owner,
                references,
                refcount,
            }),
            Claim::Shared if sole && refcount == 1 => scan.report.copied_missing += 1,
            Claim::Mute | Claim::Shared | Claim::Sole => {}
        }
    }
}

/// The refcounts in eight bytes of a block, of width 1 << `order` bits. Narrower than a byte, they
/// stand lowest bit first; wider, they are big endian.
fn counts(word: &[u8; 8], order: u32) -> impl Iterator<Item = u64> {
    let word = *word;
    let width = 1u32 << order;
    let mask = u64::MAX >> (64 - width);
    let (value, from_low) = if order < 3 {
        (u64::from_le_bytes(word), true)
    } else {
        (u64::from_be_bytes(word), false)
    };
    (0..64 / width).map(move |index| {
        let shift = if from_low {
            index * width
        } else {
            64 - (index + 1) * width
        };
        value >> shift & mask
    })
}
