use std::io::Write as _;

use flate2::Compression;
use flate2::write::DeflateEncoder;

use super::super::structure::walk;
use super::*;
use crate::oracle::sample::{COMPRESSED, COPIED, Sample};

/// The first byte of each guest sector of the view.
fn firsts(image: &PageImage, backing: Option<&Backing>) -> Vec<Option<u8>> {
    let report = walk(image);
    let view = GuestView::new(image, &report, backing).unwrap();
    view.runs(0..view.virtual_bytes() / 512)
        .flat_map(|run| {
            let sectors = run.sectors.clone();
            sectors
                .map(|sector| match run.content(sector) {
                    Content::Zeroes => Some(0),
                    Content::Bytes(bytes) => Some(bytes[0]),
                    Content::Unreadable => None,
                })
                .collect::<Vec<_>>()
        })
        .collect()
}

/// One value a sector, eight of each.
fn clusters(values: [u8; 8]) -> Vec<Option<u8>> {
    values.iter().flat_map(|value| [Some(*value); 8]).collect()
}

#[test]
fn mapped_clusters_show_their_bytes_and_the_rest_zeroes() {
    let mut sample = Sample::new();
    sample.map(6, 6);
    let zero = sample.map(3, 9);
    sample.entry(3, sample.offset(zero) | COPIED | 1);
    sample.map(1, 1);
    assert_eq!(
        firsts(&sample.image, None),
        clusters([0, 1, 0, 0, 0, 0, 6, 0])
    );
}

#[test]
fn what_is_beyond_the_end_of_the_file_reads_zero() {
    let mut sample = Sample::new();
    let data = sample.map(0, 5);
    sample.image.set_len(sample.offset(data) + 512);
    let mut expected = clusters([0; 8]);
    expected[0] = Some(5);
    assert_eq!(firsts(&sample.image, None), expected);
}

#[test]
fn unmapped_clusters_show_the_backing_file_as_far_as_it_goes() {
    let mut sample = Sample::new();
    sample.map(1, 1);
    sample.entry(2, 1);
    let mut below = PageImage::from_bytes(&[7; 4096 * 3 + 512]);
    below.write(0, &[0; 4096]);
    let backing = Backing::raw(below);
    let mut expected = clusters([0, 1, 0, 0, 0, 0, 0, 0]);
    expected[3 * 8] = Some(7);
    assert_eq!(firsts(&sample.image, Some(&backing)), expected);
    let mut middle = Sample::new();
    middle.map(5, 5);
    let chain = Backing::qcow2(middle.image, Some(backing));
    expected[5 * 8..6 * 8].fill(Some(5));
    assert_eq!(firsts(&sample.image, Some(&chain)), expected);
}

/// Maps a compressed cluster of one byte, 100 bytes into the host cluster that is handed back.
fn compress(sample: &mut Sample, guest_cluster: u64) -> u64 {
    let host = sample.cluster();
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(&[3; 4096]).unwrap();
    let packed = encoder.finish().unwrap();
    assert!(packed.len() < 400);
    sample.image.write(sample.offset(host) + 100, &packed);
    sample.entry(guest_cluster, COMPRESSED | (sample.offset(host) + 100));
    host
}

#[test]
fn compressed_clusters_are_inflated() {
    let mut sample = Sample::new();
    let host = compress(&mut sample, 4);
    assert_eq!(
        firsts(&sample.image, None),
        clusters([0, 0, 0, 0, 3, 0, 0, 0])
    );
    sample.image.write(sample.offset(host) + 100, &[255; 20]);
    assert_eq!(firsts(&sample.image, None)[4 * 8], None);
}

#[test]
fn a_bad_entry_is_unreadable_and_not_zero() {
    let mut sample = Sample::new();
    sample.entry(0, 512);
    assert_eq!(firsts(&sample.image, None)[0], None);
}

#[test]
fn disks_are_compared_by_what_they_show() {
    let mut one = Sample::new();
    one.map(1, 4);
    one.map(2, 0);
    let mut other = Sample::new();
    let cluster = (other.cluster(), other.map(1, 4)).1;
    let differ = |other: &Sample| {
        let (a, b) = (walk(&one.image), walk(&other.image));
        let one = GuestView::new(&one.image, &a, None).unwrap();
        let two = GuestView::new(&other.image, &b, None).unwrap();
        assert_eq!(one.difference(&two, 0..64), two.difference(&one, 0..64));
        one.difference(&two, 0..64).map(|found| found.sector)
    };
    assert_eq!(differ(&other), None);
    other
        .image
        .write(other.offset(cluster) + 3 * 512 + 511, &[5]);
    assert_eq!(differ(&other), Some(8 + 3));
    other.entry(1, 0);
    assert_eq!(differ(&other), Some(8));
}

#[test]
fn one_sector_that_differs_is_found_among_shared_pages() {
    let mut one = Sample::with(3, 16, 4);
    let data = one.map(2, 4);
    for sector in 0..128 {
        let mut other = one.clone();
        other
            .image
            .write(other.offset(data) + sector * 512 + 77, &[1]);
        let (a, b) = (walk(&one.image), walk(&other.image));
        let one = GuestView::new(&one.image, &a, None).unwrap();
        let two = GuestView::new(&other.image, &b, None).unwrap();
        let found = one.difference(&two, 3..8 * 128);
        assert_eq!(found.map(|found| found.sector), Some(2 * 128 + sector));
    }
}

#[test]
fn data_that_somebody_read_are_compared_sector_by_sector() {
    let mut sample = Sample::new();
    sample.map(1, 4);
    let report = walk(&sample.image);
    let view = GuestView::new(&sample.image, &report, None).unwrap();
    let mut data = [vec![0; 1024], vec![4; 4096], vec![0; 512]].concat();
    assert_eq!(view.difference_to_data(6, &data), None);
    data[1024 + 4096] = 1;
    assert_eq!(
        view.difference_to_data(6, &data),
        Some(Difference { sector: 16 })
    );
    data[1024 + 512] = 1;
    assert_eq!(
        view.difference_to_data(6, &data),
        Some(Difference { sector: 9 })
    );
}

#[test]
fn an_image_beneath_hides_what_lies_behind_its_end() {
    let mut middle = Sample::new();
    middle.long(24, 9 * 512);
    let base = Backing::raw(PageImage::from_bytes(&vec![7; 64 * 512]));
    let backing = Backing::qcow2(middle.image, Some(base));
    let expected: Vec<Option<u8>> = (0..64)
        .map(|sector| Some(if sector < 9 { 7 } else { 0 }))
        .collect();
    assert_eq!(firsts(&Sample::new().image, Some(&backing)), expected);
}

#[test]
fn clusters_that_follow_one_another_are_one_run_and_no_others() {
    let mut sample = Sample::new();
    let first = sample.map(1, 1);
    let (second, third) = (sample.map(2, 2), sample.map(3, 3));
    assert_eq!((second, third), (first + 1, first + 2));
    sample.map(5, 5);
    let runs = |sample: &Sample| {
        let report = walk(&sample.image);
        let view = GuestView::new(&sample.image, &report, None).unwrap();
        let runs = view.runs(0..64).filter(|run| !run.is_zeroes());
        runs.map(|run| run.sectors).collect::<Vec<_>>()
    };
    assert_eq!(runs(&sample), [8..32, 40..48]);
    assert_eq!(
        firsts(&sample.image, None),
        clusters([0, 1, 2, 3, 0, 5, 0, 0])
    );
    // The second and the third in the other order.
    sample.entry(2, sample.offset(third) | COPIED);
    sample.entry(3, sample.offset(second) | COPIED);
    assert_eq!(runs(&sample), [8..16, 16..24, 24..32, 40..48]);
    assert_eq!(
        firsts(&sample.image, None),
        clusters([0, 1, 3, 2, 0, 5, 0, 0])
    );
}

/// Over data, holes within them, compressed bytes, zeroes, and what lies beneath.
#[test]
fn every_byte_that_was_read_is_compared() {
    let mut sample = Sample::new();
    sample.map(1, 1);
    let holes = sample.map(2, 2);
    sample.image.write_zeroes(sample.offset(holes) + 1024, 2048);
    let hole = sample.map(3, 3);
    sample.image.write_zeroes(sample.offset(hole), 4096);
    compress(&mut sample, 5);
    let mut below = PageImage::from_bytes(&vec![7; 4096 * 7 + 512]);
    below.write(4096 * 6, &[0; 512]);
    let backing = Backing::raw(below);
    let report = walk(&sample.image);
    let view = GuestView::new(&sample.image, &report, Some(&backing)).unwrap();
    let mut read = Vec::new();
    for run in view.runs(0..64) {
        for sector in run.sectors.clone() {
            match run.content(sector) {
                Content::Bytes(bytes) => read.extend(bytes),
                Content::Zeroes => read.extend([0; 512]),
                Content::Unreadable => unreachable!("all of it can be read"),
            }
        }
    }
    assert_eq!(view.difference_to_data(0, &read), None);
    assert_eq!(view.difference_to_data(9, &read[9 * 512..40 * 512]), None);
    for at in (0..read.len()).step_by(127) {
        read[at] ^= 1;
        let found = view.difference_to_data(0, &read).unwrap();
        assert_eq!(found.sector, u64::try_from(at / 512).unwrap());
        read[at] ^= 1;
    }
}

/// What runs share is told by the place and by what stands there; what they do not is compared.
#[test]
fn runs_with_the_same_hash_hold_the_same() {
    let mut sample = Sample::new();
    sample.map(1, 1);
    let run_of = |sample: &Sample| {
        let report = walk(&sample.image);
        let view = GuestView::new(&sample.image, &report, None).unwrap();
        let run = view.runs(8..16).next().unwrap();
        (run.sectors.clone(), run.content_hash())
    };
    let before = run_of(&sample);
    assert!(before.1.is_some());
    assert_eq!(run_of(&sample), before);
    for sector in 0..8 {
        let mut changed = Sample::new();
        let data = changed.map(1, 1);
        changed
            .image
            .write(changed.offset(data) + sector * 512 + 9, &[5]);
        assert_eq!(run_of(&changed).0, before.0);
        assert_ne!(run_of(&changed).1, before.1, "sector {sector}");
    }
}

#[test]
fn pieces_end_where_clusters_do() {
    let run = Run::new(6..21, Source::Zeroes);
    assert_eq!(run.pieces(8).collect::<Vec<_>>(), [6..8, 8..16, 16..21]);
    assert_eq!(run.pieces(64).count(), 1);
}
