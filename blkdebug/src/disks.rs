//! The disks that lose power together, and something for each of them.
//!
//! Each has a cache of its own: a flush of one says nothing about the others. A run is about the disk of
//! the image; the others hold files that the image relies on.

/// One of the disks of a run, by what stands on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Disk {
    /// The image that the run is about.
    #[default]
    Image,
    /// What the image lies over at the start.
    Backing,
    /// What that lies over.
    Base,
    /// Another file that the image can be put over.
    Other,
    /// The image's guest data, where they stand in a file of their own.
    Data,
}

impl Disk {
    /// Every disk, in order.
    pub const ALL: [Self; 5] = [
        Self::Image,
        Self::Backing,
        Self::Base,
        Self::Other,
        Self::Data,
    ];

    /// The name in messages and traces.
    pub fn name(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Backing => "backing",
            Self::Base => "base",
            Self::Other => "other",
            Self::Data => "data",
        }
    }

    /// The disk of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|disk| disk.name() == name)
    }
}

/// Something for the image's disk, and for others that there are, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disks<T> {
    image: T,
    others: Vec<(Disk, T)>,
}

impl<T> Disks<T> {
    /// Something for the image's disk alone.
    pub fn one(image: T) -> Self {
        Self {
            image,
            others: Vec::new(),
        }
    }

    /// That of the image's disk.
    pub fn image(&self) -> &T {
        &self.image
    }

    /// The same without the others.
    pub fn into_image(self) -> T {
        self.image
    }

    /// That of a disk, if there is any.
    pub fn get(&self, disk: Disk) -> Option<&T> {
        if disk == Disk::Image {
            return Some(&self.image);
        }
        let found = self.others.iter().find(|(other, _)| *other == disk);
        found.map(|(_, value)| value)
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, disk: Disk) -> Option<&mut T> {
        if disk == Disk::Image {
            return Some(&mut self.image);
        }
        let found = self.others.iter_mut().find(|(other, _)| *other == disk);
        found.map(|(_, value)| value)
    }

    /// Puts something there for a disk, in place of what was there.
    pub fn put(&mut self, disk: Disk, value: T) {
        if let Some(known) = self.get_mut(disk) {
            *known = value;
        } else {
            let index = self.others.partition_point(|(other, _)| *other < disk);
            self.others.insert(index, (disk, value));
        }
    }

    /// How many disks there are; at least one.
    pub fn count(&self) -> usize {
        1 + self.others.len()
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = (Disk, &T)> {
        let others = self.others.iter().map(|(disk, value)| (*disk, value));
        std::iter::once((Disk::Image, &self.image)).chain(others)
    }

    /// All but the image's, in order.
    pub fn others(&self) -> impl Iterator<Item = (Disk, &T)> {
        self.others.iter().map(|(disk, value)| (*disk, value))
    }

    /// Something else for each of them.
    pub fn map<U>(&self, mut make: impl FnMut(Disk, &T) -> U) -> Disks<U> {
        Disks {
            image: make(Disk::Image, &self.image),
            others: self
                .others
                .iter()
                .map(|(disk, value)| (*disk, make(*disk, value)))
                .collect(),
        }
    }
}

impl<T: Default> Default for Disks<T> {
    fn default() -> Self {
        Self::one(T::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_kept_in_order_and_found_by_name() {
        let mut disks = Disks::one(0);
        disks.put(Disk::Other, 3);
        disks.put(Disk::Backing, 1);
        disks.put(Disk::Other, 4);
        let all: Vec<(Disk, i32)> = disks.iter().map(|(disk, value)| (disk, *value)).collect();
        let expected = [(Disk::Image, 0), (Disk::Backing, 1), (Disk::Other, 4)];
        assert_eq!(all, expected);
        assert_eq!(disks.get(Disk::Base), None);
        assert_eq!(disks.map(|_, value| value + 1).get(Disk::Other), Some(&5));
        for disk in Disk::ALL {
            assert_eq!(Disk::from_name(disk.name()), Some(disk));
        }
    }
}
