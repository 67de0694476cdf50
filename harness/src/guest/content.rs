//! What the guest's disk holds before the workload begins.
//!
//! Content is kept as sorted extents; what they leave out is zero, and so is everything that growth
//! adds. Whole stamped ranges cost one extent, so that large disks cost nothing.

use std::ops::Range;

use crate::workload::stamp::{SectorValue, Writer};

/// The values of a guest's sectors at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content {
    extents: Vec<Extent>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Extent {
    sectors: Range<u64>,
    fill: Fill,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Fill {
    Stamps(Writer),
    /// One value for each sector of the extent.
    Values(Vec<SectorValue>),
}

impl Content {
    /// A disk of zeroes.
    pub fn zeroes() -> Self {
        Self::default()
    }

    /// Stamps `sectors` as `writer`'s, over whatever they held.
    pub fn stamp(&mut self, sectors: Range<u64>, writer: Writer) {
        if !sectors.is_empty() {
            self.put(Extent {
                sectors,
                fill: Fill::Stamps(writer),
            });
        }
    }

    /// Puts zeroes into `sectors`, over whatever they held.
    pub fn zero(&mut self, sectors: &Range<u64>) {
        let extents = std::mem::take(&mut self.extents);
        for extent in extents {
            let (before, after) = (
                extent.slice(extent.sectors.start..extent.sectors.end.min(sectors.start)),
                extent.slice(extent.sectors.start.max(sectors.end)..extent.sectors.end),
            );
            self.extents.extend(before);
            self.extents.extend(after);
        }
    }

    /// The content of a disk whose sectors are known one by one, given in ascending order. Sectors that
    /// are left out are zero.
    pub fn from_values(values: impl IntoIterator<Item = (u64, SectorValue)>) -> Self {
        let mut extents: Vec<Extent> = Vec::new();
        for (sector, value) in values {
            if value == SectorValue::Zero {
                continue;
            }
            match extents.last_mut() {
                Some(Extent {
                    sectors,
                    fill: Fill::Values(run),
                }) if sectors.end == sector => {
                    sectors.end += 1;
                    run.push(value);
                }
                last => {
                    assert!(
                        last.is_none_or(|last| last.sectors.end <= sector),
                        "values come in ascending order"
                    );
                    extents.push(Extent {
                        sectors: sector..sector + 1,
                        fill: Fill::Values(vec![value]),
                    });
                }
            }
        }
        Self { extents }
    }

    /// What `sector` holds.
    pub fn value(&self, sector: u64) -> SectorValue {
        let index = self
            .extents
            .partition_point(|extent| extent.sectors.end <= sector);
        match self.extents.get(index) {
            Some(extent) if extent.sectors.contains(&sector) => extent.value(sector),
            _ => SectorValue::Zero,
        }
    }

    /// The ranges of sectors that are not all zero, ascending.
    pub fn ranges(&self) -> impl Iterator<Item = Range<u64>> {
        self.extents.iter().map(|extent| extent.sectors.clone())
    }

    /// The first sector of `sectors` that is not zero.
    pub fn first_nonzero(&self, sectors: &Range<u64>) -> Option<u64> {
        let index = self
            .extents
            .partition_point(|extent| extent.sectors.end <= sectors.start);
        self.extents[index..]
            .iter()
            .take_while(|extent| extent.sectors.start < sectors.end)
            .map(|extent| extent.sectors.start.max(sectors.start))
            .next()
    }

    fn put(&mut self, extent: Extent) {
        self.zero(&extent.sectors);
        let index = self
            .extents
            .partition_point(|other| other.sectors.start < extent.sectors.start);
        self.extents.insert(index, extent);
    }
}

impl Extent {
    fn value(&self, sector: u64) -> SectorValue {
        match &self.fill {
            Fill::Stamps(writer) => SectorValue::Stamp {
                writer: *writer,
                sector,
            },
            Fill::Values(values) => values[self.index(sector)],
        }
    }

    /// The part of this extent that lies in `sectors`, which it contains.
    fn slice(&self, sectors: Range<u64>) -> Option<Self> {
        if sectors.is_empty() {
            return None;
        }
        let fill = match &self.fill {
            Fill::Stamps(writer) => Fill::Stamps(*writer),
            Fill::Values(values) => Fill::Values(
                values[self.index(sectors.start)..=self.index(sectors.end - 1)].to_vec(),
            ),
        };
        Some(Self { sectors, fill })
    }

    fn index(&self, sector: u64) -> usize {
        usize::try_from(sector - self.sectors.start).expect("an extent's values are in memory")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_as_a_plain_vector(
            steps in prop::collection::vec((0u64..40, 0u64..20, 0u8..3), 0..12),
        ) {
            let mut content = Content::zeroes();
            let mut model = vec![SectorValue::Zero; 60];
            for (start, len, kind) in steps {
                let writer = if kind == 1 { Writer::Image } else { Writer::Backing };
                let sectors = start..start + len;
                for sector in sectors.clone() {
                    model[usize::try_from(sector).unwrap()] = match kind {
                        0 => SectorValue::Zero,
                        _ => SectorValue::Stamp { writer, sector },
                    };
                }
                if kind == 0 {
                    content.zero(&sectors);
                } else {
                    content.stamp(sectors, writer);
                }
            }
            let known = Content::from_values((0..).zip(model.iter().copied()));
            for (sector, value) in (0..).zip(&model) {
                prop_assert_eq!(content.value(sector), *value);
                prop_assert_eq!(known.value(sector), *value);
                let rest = (sector..60).find(|s| model[usize::try_from(*s).unwrap()] != SectorValue::Zero);
                prop_assert_eq!(content.first_nonzero(&(sector..60)), rest);
                prop_assert_eq!(known.first_nonzero(&(sector..60)), rest);
            }
        }
    }
}
