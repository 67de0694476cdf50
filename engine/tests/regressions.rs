//! What once broke in the qcow2 engine, found by reading it with bad intent. Each test tells the story
//! and holds the promise that was broken.

#![allow(
    clippy::unwrap_used,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    reason = "a test fails by panic, and its numbers are small"
)]

mod kit;

use engine::error::{BadImage, Error, Problem, Structure};
use engine::image::Image;
use engine::qcow2::create::{CreateOptions, create};
use engine::qcow2::header::Header;
use engine::qcow2::{OpenOptions, Qcow2};
use kit::{Ram, run};

fn made(virtual_bytes: u64, cluster_bits: u32, refcount_order: u32) -> Vec<u8> {
    let ram = Ram::empty();
    let options = CreateOptions {
        virtual_bytes,
        cluster_bits,
        refcount_order,
        ..CreateOptions::default()
    };
    run(create(&ram.port, &options)).unwrap();
    ram.bytes()
}

fn header(bytes: &[u8]) -> Header {
    Header::decode(bytes, bytes.len() as u64).unwrap()
}

fn open(ram: &Ram) -> Result<Qcow2, Error> {
    run(Qcow2::open(ram.port.clone(), None, &OpenOptions::default()))
}

/// Changes a word of the refcount table.
fn set_reftable(image: &mut [u8], index: usize, word: u64) {
    let at = header(image).reftable_offset.0 as usize + index * 8;
    image[at..at + 8].copy_from_slice(&word.to_be_bytes());
}

/// The first entry of the refcount table is empty, as damage may leave it. The new refcount block of
/// that range belongs to its first cluster, where the header stands.
#[test]
fn a_refcount_block_is_never_put_over_the_header() {
    let mut image = made(1 << 20, 9, 4);
    set_reftable(&mut image, 0, 0);
    let ram = Ram::from_bytes(&image);
    let q = open(&ram).unwrap();
    let outcome = run(q.write(0, vec![1; 512]));
    assert!(
        matches!(
            outcome,
            Err(Error::BadImage(BadImage {
                problem: Problem::Overlap {
                    owner: Structure::Header,
                    ..
                },
                ..
            }))
        ),
        "{outcome:?}"
    );
    assert_eq!(ram.bytes()[..4], *b"QFI\xfb");
}

/// An entry of the refcount table names a cluster that something else owns, or a block that counts
/// another range already. Whoever changes a refcount there changes the other too; with a full block
/// named a million times, the search for a free cluster did not end either.
#[test]
fn an_image_whose_structures_overlap_is_not_opened_for_writing() {
    let sound = made(1 << 20, 9, 4);
    let h = header(&sound);
    let at = h.reftable_offset.0 as usize;
    let block = u64::from_be_bytes(sound[at..at + 8].try_into().unwrap());
    let victims = [
        (h.l1_offset.0, Structure::L1Table),
        (h.reftable_offset.0, Structure::RefcountTable),
        (block, Structure::RefcountBlock),
    ];
    for (offset, structure) in victims {
        let mut image = sound.clone();
        set_reftable(&mut image, 1, offset);
        let refused = open(&Ram::from_bytes(&image)).map(drop);
        assert!(
            matches!(
                refused,
                Err(Error::BadImage(BadImage {
                    problem: Problem::Overlap { owner, .. },
                    ..
                })) if owner == structure
            ),
            "{structure}: {refused:?}"
        );
    }
    open(&Ram::from_bytes(&sound)).unwrap();
}
