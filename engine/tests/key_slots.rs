//! Key slots: a secret opens the image or does not, here and in QEMU, and no power loss leaves anything else.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]

mod kit;

use engine::error::{Error, KeySlotProblem, Refused};
use engine::image::{Access, Image};
use engine::luks::{
    Algorithm, CipherSpec, Hash, Header, Mode, NewSlot, NewVolume, SLOTS, Secret, Vector, format,
    slots_opened_by,
};
use engine::manage::{LastSlot, Manage};
use engine::qcow2::create::{CreateOptions, NewEncryption, create};
use engine::qcow2::{Encryption, Files, OpenOptions, Qcow2, Unlock, header};
use kit::{Ram, call, have, must, run, text};

const CIPHER: CipherSpec = CipherSpec {
    algorithm: Algorithm::Aes(32),
    mode: Mode::Xts,
    vector: Vector::Plain64,
};
/// A secret that nothing else in a message is spelled like.
const FIRST: &str = "xyzzy-plugh";

fn secret(text: &str) -> Secret {
    Secret::new(text.into())
}

/// Bytes that are the same in every run: tests have no use for secrets.
fn bytes(seed: u64, into: &mut [u8]) {
    let mut state = seed;
    for byte in into {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        *byte = state.to_be_bytes()[0];
    }
}

fn new_slot(text: &str, seed: u64) -> NewSlot {
    let mut random = vec![0; NewSlot::random_len(CIPHER)];
    bytes(seed, &mut random);
    NewSlot::new(secret(text), 20, random)
}

fn make() -> Ram {
    let ram = Ram::empty();
    let new = NewVolume {
        cipher: CIPHER,
        hash: Hash::Sha256,
        slot_iterations: 20,
        digest_iterations: 10,
    };
    let mut seed = 0;
    let mut source = |into: &mut [u8]| {
        seed += 1;
        bytes(seed, into);
    };
    let volume = format(&new, &secret(FIRST), &mut source).unwrap();
    let options = CreateOptions {
        virtual_bytes: 1 << 20,
        encryption: Some(NewEncryption::Luks(volume)),
        ..CreateOptions::default()
    };
    run(create(&ram.port, &options)).unwrap();
    ram
}

fn open(ram: &Ram, text: &str) -> Result<Qcow2, Error> {
    let secrets = [secret(text)];
    let options = OpenOptions::default();
    run(Qcow2::open_with_secrets(
        ram.port.clone(),
        None,
        &options,
        &secrets,
    ))
}

fn files(ram: &Ram) -> Files {
    Files {
        image: ram.port.clone(),
        data: None,
        backing: None,
    }
}

fn fill(image: &Qcow2, slot: usize, text: &str) -> Result<(), Error> {
    let new = new_slot(text, u64::try_from(slot).unwrap() + 100);
    run(image.manage(Manage::KeySlotFill { slot, new }))
}

fn erase(image: &Qcow2, slot: usize) -> Result<(), Error> {
    let last = LastSlot::Keep;
    run(image.manage(Manage::KeySlotErase { slot, last }))
}

/// Everything in front of the data, and its header.
fn area(ram: &Ram) -> (Vec<u8>, Header) {
    let bytes = ram.bytes();
    let len = u64::try_from(bytes.len()).unwrap();
    let header = header::Header::decode(&bytes[..65536], len).unwrap();
    let Some(Encryption::Luks { offset, len_bytes }) = header.encryption else {
        unreachable!("the image is encrypted")
    };
    let start = usize::try_from(offset.0).unwrap();
    let area = bytes[start..start + usize::try_from(len_bytes).unwrap()].to_vec();
    let header = Header::decode(&area).unwrap();
    (area, header)
}

fn refused<T: std::fmt::Debug>(problem: KeySlotProblem, result: Result<T, Error>) {
    assert_eq!(result.unwrap_err(), Refused::KeySlot(problem).into());
}

#[test]
fn every_slot_takes_a_secret_and_gives_it_up() {
    let ram = make();
    let image = open(&ram, FIRST).unwrap();
    run(image.write(0, vec![7; 65536])).unwrap();
    for slot in 1..SLOTS {
        fill(&image, slot, &format!("secret of {slot}")).unwrap();
    }
    run(image.close()).unwrap();
    for slot in 1..SLOTS {
        let name = format!("secret of {slot}");
        let image = open(&ram, &name).unwrap();
        assert_eq!(run(image.read(512, 512)).unwrap(), vec![7; 512]);
        let (bytes, header) = area(&ram);
        assert_eq!(slots_opened_by(&header, &bytes, &secret(&name)), [slot]);
    }
    let (full, _) = area(&ram);
    for slot in 0..SLOTS - 1 {
        erase(&open(&ram, "secret of 7").unwrap(), slot).unwrap();
        let (bytes, header) = area(&ram);
        let gone = header.slots[slot];
        assert!(!gone.active);
        let start = usize::try_from(gone.material_sector).unwrap() * 512;
        let range = start..start + CIPHER.key_len() * 4000;
        assert_ne!(bytes[range.clone()], full[range.clone()]);
        assert!(bytes[range].iter().all(|byte| *byte == 0));
    }
    assert_eq!(open(&ram, FIRST).unwrap_err(), Refused::WrongSecret.into());
    let image = open(&ram, "secret of 7").unwrap();
    refused(KeySlotProblem::Last(7), erase(&image, 7));
    fill(&image, 0, FIRST).unwrap();
    erase(&image, 7).unwrap();
    assert_eq!(
        run(open(&ram, FIRST).unwrap().read(0, 512)).unwrap(),
        vec![7; 512]
    );
}

#[test]
fn what_makes_no_sense_is_refused_and_changes_nothing() {
    let ram = make();
    let image = open(&ram, FIRST).unwrap();
    let before = ram.bytes();
    refused(KeySlotProblem::Occupied(0), fill(&image, 0, "other"));
    refused(KeySlotProblem::OutOfRange(8), fill(&image, 8, "other"));
    refused(KeySlotProblem::OutOfRange(8), erase(&image, 8));
    refused(KeySlotProblem::Last(0), erase(&image, 0));
    for new in [
        NewSlot::new(secret("other"), 0, vec![0; NewSlot::random_len(CIPHER)]),
        NewSlot::new(secret("other"), 1, vec![0; 32]),
    ] {
        let refused = run(image.manage(Manage::KeySlotFill { slot: 1, new }));
        assert!(matches!(refused, Err(Error::Refused(Refused::Option(_)))));
    }
    let read_only = OpenOptions {
        access: Access::ReadOnly,
        ..OpenOptions::default()
    };
    let key = image.volume_key().unwrap();
    let by_key = Qcow2::open_unlocked(files(&ram), &read_only, Unlock::Key(&key));
    let reader = run(by_key).unwrap();
    assert_eq!(fill(&reader, 1, "x").unwrap_err(), Refused::ReadOnly.into());
    assert_eq!(ram.bytes(), before);
    let plain = Ram::empty();
    run(create(&plain.port, &CreateOptions::default())).unwrap();
    let options = OpenOptions::default();
    let plain = run(Qcow2::open(plain.port.clone(), None, &options)).unwrap();
    refused(KeySlotProblem::NoSlots, fill(&plain, 1, "other"));
}

/// A slot whose sectors are another's too, or lie elsewhere, must not cost that one its key.
#[test]
fn key_material_that_overlaps_is_never_written() {
    for (slot, sector) in [(1, 8u32), (1, 0), (1, u32::MAX)] {
        let ram = make();
        let mut bytes = ram.bytes();
        let at = bytes
            .windows(6)
            .position(|six| six == b"LUKS\xba\xbe")
            .unwrap();
        let field = at + 208 + 48 * slot + 40;
        bytes[field..field + 4].copy_from_slice(&sector.to_be_bytes());
        run(ram.port.at(engine::device::Event::None).write(0, bytes)).unwrap();
        let image = open(&ram, FIRST).unwrap();
        let before = ram.bytes();
        for result in [fill(&image, slot, "other"), erase(&image, slot)] {
            assert!(matches!(result, Err(Error::BadImage(_))), "{result:?}");
        }
        assert_eq!(ram.bytes(), before);
    }
}

#[test]
fn a_key_opens_only_the_volume_that_it_is_of() {
    let ram = make();
    let image = open(&ram, FIRST).unwrap();
    let key = image.volume_key().unwrap();
    let mut bytes = ram.bytes();
    let at = bytes
        .windows(6)
        .position(|six| six == b"LUKS\xba\xbe")
        .unwrap();
    bytes[at + 112] ^= 1;
    run(ram.port.at(engine::device::Event::None).write(0, bytes)).unwrap();
    let options = OpenOptions::default();
    let opened = Qcow2::open_unlocked(files(&ram), &options, Unlock::Key(&key));
    assert_eq!(run(opened).unwrap_err(), Refused::WrongSecret.into());
}

#[test]
fn no_message_shows_a_secret_or_a_key() {
    let ram = make();
    let image = open(&ram, FIRST).unwrap();
    let new = new_slot("frotz-nitfol", 9);
    let operation = Manage::KeySlotFill { slot: 1, new };
    let key = image.volume_key().unwrap();
    let mut said = vec![
        format!("{operation:?}"),
        format!("{key:?} {image:?} {:?}", secret(FIRST)),
    ];
    run(image.manage(operation)).unwrap();
    for error in [
        fill(&image, 1, "frotz-nitfol").unwrap_err(),
        erase(&image, 9).unwrap_err(),
        open(&ram, "frotz").unwrap_err(),
    ] {
        said.push(format!("{error} {error:?}"));
    }
    let (bytes, _) = area(&ram);
    let mut key = vec![0; CIPHER.key_len()];
    self::bytes(1, &mut key);
    for line in said {
        let clear = ["xyzzy", "frotz", "nitfol", "plugh"];
        assert!(clear.iter().all(|word| !line.contains(word)), "{line}");
        assert!(
            !line.contains(&format!("{}, {}, {}", key[0], key[1], key[2])),
            "{line}"
        );
    }
    assert!(!bytes.windows(8).any(|eight| eight == &key[..8]));
}

fn image_options(path: &str) -> String {
    format!("driver=qcow2,file.filename={path},encrypt.format=luks,encrypt.key-secret=s")
}

#[test]
fn slots_that_are_filled_here_open_in_qemu_and_the_other_way_round() {
    if !have("qemu-img") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("disk");
    let opens = |text_of: &str| {
        let object = format!("secret,id=s,data={text_of}");
        let options = image_options(text(&file));
        let said = call(
            "qemu-img",
            &["check", "--object", &object, "--image-opts", &options],
        );
        said.status.success()
    };
    let ram = make();
    let image = open(&ram, FIRST).unwrap();
    fill(&image, 6, "six").unwrap();
    fill(&image, 7, "seven").unwrap();
    erase(&image, 0).unwrap();
    run(image.close()).unwrap();
    ram.save(&file);
    assert!(opens("six") && opens("seven") && !opens(FIRST));

    let amend = "encrypt.state=active,encrypt.new-secret=n,encrypt.keyslot=3,encrypt.iter-time=10";
    let options = image_options(text(&file));
    let objects = ["secret,id=s,data=six", "secret,id=n,data=three"];
    let [object, new] = objects;
    let call = ["amend", "--object", object, "--object", new, "--image-opts"];
    must("qemu-img", &[&call[..], &["-o", amend, &options]].concat());
    let gone = "encrypt.state=inactive,encrypt.keyslot=6";
    must("qemu-img", &[&call[..], &["-o", gone, &options]].concat());
    let ram = Ram::load(&file);
    assert!(open(&ram, "three").is_ok() && open(&ram, "seven").is_ok());
    assert_eq!(open(&ram, "six").unwrap_err(), Refused::WrongSecret.into());
}
