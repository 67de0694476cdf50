//! Encrypted images, here and in QEMU: what one writes the other reads, with the legacy method and with
//! LUKS in every cipher that both have.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]

mod kit;

use engine::error::{Error, Refused};
use engine::image::{Image, Unmap};
use engine::luks::{Algorithm, CipherSpec, Hash, Mode, NewVolume, Secret, Vector, format};
use engine::qcow2::check::{CheckOptions, Repair, check};
use engine::qcow2::create::{CreateOptions, NewEncryption, create};
use engine::qcow2::{OpenOptions, Qcow2};
use kit::{Ram, call, have, must, run, text};

const SECRET: &str = "open sesame";

fn secret() -> Secret {
    Secret::new(SECRET.into())
}

/// Bytes that are the same in every run: tests have no use for secrets.
fn source() -> impl FnMut(&mut [u8]) {
    let mut state = 1u64;
    move |into: &mut [u8]| {
        for byte in into {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            *byte = state.to_be_bytes()[0];
        }
    }
}

fn volume(cipher: CipherSpec, hash: Hash) -> NewEncryption {
    let new = NewVolume {
        cipher,
        hash,
        slot_iterations: 20,
        digest_iterations: 10,
    };
    NewEncryption::Luks(format(&new, &secret(), &mut source()).unwrap())
}

const XTS: CipherSpec = CipherSpec {
    algorithm: Algorithm::Aes(32),
    mode: Mode::Xts,
    vector: Vector::Plain64,
};

fn ciphers() -> Vec<(CipherSpec, Hash)> {
    let cbc = |algorithm, vector| CipherSpec {
        algorithm,
        mode: Mode::Cbc,
        vector,
    };
    let xts = |algorithm| CipherSpec { algorithm, ..XTS };
    vec![
        (XTS, Hash::Sha256),
        (xts(Algorithm::Aes(16)), Hash::Sha1),
        (xts(Algorithm::Aes(24)), Hash::Sha512),
        (xts(Algorithm::Serpent(32)), Hash::Sha256),
        (xts(Algorithm::Twofish(32)), Hash::Sha256),
        (
            cbc(Algorithm::Aes(32), Vector::Essiv(Hash::Sha256)),
            Hash::Sha256,
        ),
        (cbc(Algorithm::Aes(16), Vector::Plain64), Hash::Sha384),
        (cbc(Algorithm::Serpent(16), Vector::Plain), Hash::Sha224),
    ]
}

fn open(ram: &Ram, secrets: &[Secret]) -> Result<Qcow2, Error> {
    let options = OpenOptions::default();
    run(Qcow2::open_with_secrets(
        ram.port.clone(),
        None,
        &options,
        secrets,
    ))
}

fn make(cluster_bits: u32, encryption: NewEncryption) -> Ram {
    let ram = Ram::empty();
    let options = CreateOptions {
        virtual_bytes: 9 << 20,
        cluster_bits,
        encryption: Some(encryption),
        ..CreateOptions::default()
    };
    run(create(&ram.port, &options)).unwrap();
    ram
}

/// Parts of clusters, fresh and used again, zeroes, and a copy on write.
fn work(image: &Qcow2, cluster: u64, model: &mut [u8]) {
    let at = |offset: u64| usize::try_from(offset).unwrap();
    for (offset, len, fill) in [
        (512, 512, 1),
        (3 * cluster, 2 * cluster, 2),
        (4 * cluster, 512, 3),
        ((9 << 20) - 512, 512, 4),
    ] {
        run(image.write(offset, vec![fill; at(len)])).unwrap();
        model[at(offset)..at(offset + len)].fill(fill);
    }
    run(image.discard(3 * cluster, cluster)).unwrap();
    run(image.flush()).unwrap();
    run(image.write(6 * cluster, vec![5; 512])).unwrap();
    run(image.write_zeroes(4 * cluster, 512, Unmap::Keep)).unwrap();
    model[at(3 * cluster)..at(4 * cluster) + 512].fill(0);
    model[at(6 * cluster)..at(6 * cluster) + 512].fill(5);
}

/// How QEMU's programs are told an encrypted file and its secret.
fn image_options(path: &str, format: &str) -> String {
    format!("driver=qcow2,file.filename={path},encrypt.format={format},encrypt.key-secret=s")
}

fn object() -> String {
    format!("secret,id=s,data={SECRET}")
}

fn qemu_finds_clean(path: &str, method: &str) {
    let options = image_options(path, method);
    must(
        "qemu-img",
        &["check", "--object", &object(), "--image-opts", &options],
    );
}

/// Compares an encrypted image with a raw file, by QEMU.
fn qemu_reads(path: &str, method: &str, raw: &str, case: &str) {
    let options = image_options(path, method);
    let arguments = [
        "convert",
        "--object",
        &object(),
        "--image-opts",
        &options,
        "-O",
        "raw",
    ];
    let out = format!("{raw}.out");
    let said = call("qemu-img", &[&arguments[..], &[&out]].concat());
    assert!(said.status.success(), "{case}: {said:?}");
    assert!(
        std::fs::read(out).unwrap() == std::fs::read(raw).unwrap(),
        "{case}"
    );
}

#[test]
fn what_is_encrypted_here_reads_back_here_and_in_qemu() {
    let folder = tempfile::tempdir().unwrap();
    let (ours, raw) = (folder.path().join("ours"), folder.path().join("raw"));
    let mut cases = vec![("aes", NewEncryption::Aes, "legacy".to_owned())];
    for (cipher, hash) in ciphers() {
        cases.push(("luks", volume(cipher, hash), format!("{cipher:?} {hash:?}")));
    }
    for (method, encryption, case) in cases {
        for cluster_bits in [9, 12, 16] {
            let case = format!("{case} {cluster_bits}");
            let ram = make(cluster_bits, encryption.clone());
            let image = open(&ram, &[secret()]).unwrap();
            let mut model = vec![0; 9 << 20];
            work(&image, 1 << cluster_bits, &mut model);
            run(image.close()).unwrap();
            drop(image);
            let image = open(&ram, &[secret()]).unwrap();
            assert!(run(image.read(0, model.len())).unwrap() == model, "{case}");
            run(image.close()).unwrap();
            let report = run(check(&ram.port, Repair::None, &CheckOptions::default())).unwrap();
            assert!(report.findings.is_empty(), "{case}: {report:?}");
            // Nowhere do two blocks of a written sector show that they are alike.
            assert!(
                !ram.bytes().windows(32).any(|bytes| bytes == [2; 32]),
                "{case}"
            );
            if have("qemu-img") {
                ram.save(&ours);
                std::fs::write(&raw, &model).unwrap();
                qemu_finds_clean(text(&ours), method);
                qemu_reads(text(&ours), method, text(&raw), &case);
            }
        }
    }
}

#[test]
fn what_qemu_encrypted_reads_back_here_and_may_be_written_to() {
    if !have("qemu-io") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (theirs, raw) = (folder.path().join("theirs"), folder.path().join("raw"));
    let luks = |more: &str| {
        (
            "luks",
            format!("encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10{more}"),
        )
    };
    let cases = [
        ("aes", "encrypt.format=aes,encrypt.key-secret=s".to_owned()),
        luks(""),
        luks(",encrypt.cipher-alg=serpent-256,encrypt.hash-alg=sha512"),
        luks(",encrypt.cipher-alg=twofish-128"),
        luks(",encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=sha256"),
    ];
    for (method, options) in cases {
        let mut arguments = vec!["create", "-q", "-f", "qcow2", "--object"];
        let object = object();
        arguments.extend([object.as_str(), "-o", &options, text(&theirs), "9M"]);
        must("qemu-img", &arguments);
        let image_options = image_options(text(&theirs), method);
        let io = [
            "--object",
            &object,
            "--image-opts",
            "-c",
            "write -P 1 0 3k",
            "-c",
        ];
        let io = [
            &io[..],
            &[
                "write -P 2 1M 200k",
                "-c",
                "write -z 1088k 64k",
                &image_options,
            ],
        ];
        must("qemu-io", &io.concat());
        let mut model = vec![0; 9 << 20];
        model[..3072].fill(1);
        model[1 << 20..(1 << 20) + (200 << 10)].fill(2);
        model[1088 << 10..1152 << 10].fill(0);

        let ram = Ram::load(&theirs);
        let image = open(&ram, &[secret()]).unwrap();
        assert!(
            run(image.read(0, model.len())).unwrap() == model,
            "{options}"
        );
        run(image.write((1 << 20) + 512, vec![9; 1024])).unwrap();
        run(image.write(5 << 20, vec![8; 512])).unwrap();
        model[(1 << 20) + 512..(1 << 20) + 1536].fill(9);
        model[5 << 20..(5 << 20) + 512].fill(8);
        run(image.close()).unwrap();
        ram.save(&theirs);
        std::fs::write(&raw, &model).unwrap();
        qemu_finds_clean(text(&theirs), method);
        qemu_reads(text(&theirs), method, text(&raw), &options);
    }
}

#[test]
fn without_the_secret_nothing_opens_and_a_check_does_without() {
    let ram = make(16, volume(XTS, Hash::Sha256));
    assert_eq!(open(&ram, &[]).unwrap_err(), Refused::NoSecret.into());
    let wrong = Secret::new(b"open sesam".to_vec());
    assert_eq!(
        open(&ram, std::slice::from_ref(&wrong)).unwrap_err(),
        Refused::WrongSecret.into()
    );
    assert_eq!(format!("{:?}", secret()), "Secret");
    let image = open(&ram, &[wrong, secret()]).unwrap();
    assert!(!format!("{image:?}").contains("cipher"));
    let refused = run(image.write_compressed(0, vec![0; 65536])).unwrap_err();
    assert_eq!(refused, Refused::NoCompression.into());
    let report = run(check(&ram.port, Repair::All, &CheckOptions::default())).unwrap();
    assert!(report.findings.is_empty(), "{report:?}");
}

/// Counts and places that would take for ever, or lead out of the header, are refused at once.
#[test]
fn a_hostile_luks_header_is_refused() {
    let NewEncryption::Luks(good) = volume(XTS, Hash::Sha256) else {
        unreachable!()
    };
    for (at, value, problem) in [
        (0, 0u32, "version 1"),
        (8, 0x7878_7878, "not supported"),
        (72, 0x7878_7878, "not supported"),
        (108, 13, "not supported"),
        (164, 0, "iterations"),
        (164, u32::MAX, "iterations"),
        (208, 1, "neither"),
        (212, u32::MAX, "iterations"),
        (248, 0, "key material"),
        (248, u32::MAX, "key material"),
        (252, 4001, "stripes"),
    ] {
        let mut bytes = good.clone();
        bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
        let ram = make(16, NewEncryption::Luks(bytes));
        let error = open(&ram, &[secret()]).unwrap_err().to_string();
        assert!(error.contains(problem), "{at}: {error}");
    }
    let mut short = good;
    short.truncate(4096);
    let ram = make(16, NewEncryption::Luks(short));
    assert_eq!(
        open(&ram, &[secret()]).unwrap_err(),
        Refused::WrongSecret.into()
    );
}
