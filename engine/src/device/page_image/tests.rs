use proptest::prelude::*;

use super::*;

#[test]
fn equal_content_hashes_alike_however_it_came_to_be() {
    let mut one = PageImage::default();
    one.write(5000, &[7; 9000]);
    one.write(0, &[1; 100]);
    one.write_zeroes(6000, 100);
    let other = PageImage::from_bytes(&one.read_vec(0, 14000));
    assert_eq!(one.content_hash(), other.content_hash());
    let mut longer = other.clone();
    longer.set_len(14001);
    assert_ne!(longer.content_hash(), other.content_hash());
}

#[test]
fn a_running_hash_follows_what_is_done_to_an_image() {
    let mut image = PageImage::from_bytes(&[1; 2048]);
    let mut hash = image.running_hash();
    let bytes = [9; SECTOR];
    hash.replace(image.stored_hash(2), sector_hash(2, &bytes));
    hash.replace(image.stored_hash(7), sector_hash(7, &bytes));
    hash.set_len(4096);
    image.put_sector(2, &bytes, sector_hash(2, &bytes));
    image.put_sector(7, &bytes, sector_hash(7, &bytes));
    assert_eq!(hash.finish(), image.content_hash());
    assert_eq!(image.stored_hash(100), 0);
}

#[test]
fn a_clone_does_not_see_later_writes() {
    let mut one = PageImage::from_bytes(&[1; 4096]);
    let clone = one.clone();
    one.write(0, &[2; 10]);
    assert_eq!(clone.read_vec(0, 10), [1; 10]);
    assert_eq!(one.read_vec(0, 10), [2; 10]);
}

#[derive(Clone, Debug)]
enum Step {
    Write(u64, Vec<u8>),
    /// At a sector, so many, each of one byte, and every so many of them of zeroes.
    Run(u64, usize, usize),
    Zero(u64, u64),
    SetLen(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0u64..600_000, prop::collection::vec(any::<u8>(), 1..3000))
            .prop_map(|(offset, data)| Step::Write(offset, data)),
        (0u64..1200, 0usize..80, 1usize..12)
            .prop_map(|(at, count, zero)| Step::Run(at, count, zero)),
        (0u64..600_000, 0u64..300_000).prop_map(|(offset, len)| Step::Zero(offset, len)),
        (0u64..700_000).prop_map(Step::SetLen),
    ]
}

proptest! {
    #[test]
    fn behaves_as_a_plain_vector(
        steps in prop::collection::vec(step(), 1..20),
        reads in prop::collection::vec((0usize..800_000, 0usize..300_000), 4),
        changed in 0u64..800_000,
    ) {
        let mut image = PageImage::default();
        let mut model: Vec<u8> = Vec::new();
        for step in steps {
            match step {
                Step::Write(offset, data) => {
                    image.write(offset, &data);
                    let start = usize::try_from(offset).unwrap();
                    model.resize(model.len().max(start + data.len()), 0);
                    model[start..start + data.len()].copy_from_slice(&data);
                }
                Step::Run(at, count, zero) => {
                    let byte = |sector: usize| if sector.is_multiple_of(zero) { 0 } else { 7 };
                    let data: Vec<u8> = (0..count).flat_map(|sector| [byte(sector); SECTOR]).collect();
                    let run = SectorRun::new(at, data.clone());
                    prop_assert_eq!(run.sectors(), at..at + u64::try_from(count).unwrap());
                    for (index, bytes) in data.as_chunks::<SECTOR>().0.iter().enumerate() {
                        let number = at + u64::try_from(index).unwrap();
                        prop_assert_eq!(run.at(index), (bytes, sector_hash(number, bytes)));
                    }
                    image.put_run(&run);
                    if count > 0 {
                        let start = usize::try_from(at).unwrap() * SECTOR;
                        model.resize(model.len().max(start + data.len()), 0);
                        model[start..start + data.len()].copy_from_slice(&data);
                    }
                }
                Step::Zero(offset, len) => {
                    image.write_zeroes(offset, len);
                    let start = usize::try_from(offset).unwrap();
                    let end = start + usize::try_from(len).unwrap();
                    model.resize(model.len().max(end), 0);
                    model[start..end].fill(0);
                }
                Step::SetLen(len) => {
                    image.set_len(len);
                    model.resize(usize::try_from(len).unwrap(), 0);
                }
            }
            prop_assert_eq!(image.len(), u64::try_from(model.len()).unwrap());
        }
        prop_assert!(image.read_vec(0, model.len()) == model);
        let len = model.len();
        model.resize(1_200_000, 0);
        for (start, count) in reads {
            let offset = u64::try_from(start).unwrap();
            let mut read = image.read_vec(offset, count);
            prop_assert!(read == model[start..start + count]);
            prop_assert_eq!(image.difference(offset, &read), None);
            if count > 0 {
                // Somewhere in it, now in a hole and now in what is stored.
                let at = start % count;
                read[at] ^= 1;
                prop_assert_eq!(image.difference(offset, &read), Some(at));
            }
        }
        model.truncate(len);
        prop_assert_eq!(image.content_hash(), PageImage::from_bytes(&model).content_hash());
        let mut other = image.clone();
        prop_assert!(image.is_same_within(&other, 0..5000));
        let changed = changed / 512;
        let mut bytes = *image.sector(changed).unwrap_or(&[0; SECTOR]);
        bytes[7] ^= 1;
        other.write(changed * SECTOR_BYTES, &bytes);
        for (one, two) in [(&image, &other), (&other, &image)] {
            prop_assert!(!one.is_same_within(two, 0..5000));
            prop_assert!(!one.is_same_within(two, changed..changed + 1));
            prop_assert!(one.is_same_within(two, 0..changed));
            prop_assert!(one.is_same_within(two, changed + 1..5000));
        }
        for sectors in [0..0, 3..4, 100..700, 0..4096] {
            let stored = sectors.clone().filter_map(|sector| Some((sector, image.sector(sector)?)));
            let stored: Vec<_> = stored.filter(|(_, bytes)| **bytes != [0; SECTOR]).collect();
            prop_assert!(image.stored_sectors(sectors.clone()).eq(stored));
            let each = sectors.clone().map(|sector| image.stored_hash(sector));
            prop_assert_eq!(image.hash_of(sectors), each.fold(0, SectorHash::wrapping_add));
        }
    }
}
