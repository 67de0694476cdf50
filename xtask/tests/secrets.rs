//! What opens an encrypted image stands in nothing that is printed or reported: secrets by their id alone, and
//! the keys of simulated images by their index.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use harness::workload::shape::{TEST_KEY, TEST_SECRETS};

/// The spellings in which these bytes could have got out: as they are, in hexadecimal, as a list of numbers,
/// and in base64 wherever they start in what was encoded.
fn spellings(secret: &[u8]) -> Vec<Vec<u8>> {
    let list = |format: fn(&u8) -> String, separator: &str| {
        let numbers: Vec<String> = secret.iter().map(format).collect();
        numbers.join(separator).into_bytes()
    };
    let mut all = vec![
        secret.to_vec(),
        list(|byte| format!("{byte:02x}"), ""),
        list(|byte| format!("{byte:02X}"), ""),
        list(|byte| format!("{byte:02x}"), " "),
        list(ToString::to_string, ", "),
        list(ToString::to_string, ","),
    ];
    for before in 0..3 {
        let text = STANDARD_NO_PAD.encode([&vec![0; before], secret].concat());
        // The digits at either end are made of other bits too.
        let from = (before * 8).div_ceil(6);
        let to = (before + secret.len()) * 8 / 6;
        all.push(text.as_bytes()[from..to].to_vec());
    }
    all
}

fn must_not_tell(secrets: &[&[u8]], text: &[u8], what: &str) {
    for secret in secrets {
        for spelling in spellings(secret) {
            let told = text.windows(spelling.len()).any(|part| part == spelling);
            assert!(!told, "{what} tells {}", String::from_utf8_lossy(&spelling));
        }
    }
}

/// Every file in a folder, however deep, with its bytes.
fn files_in(folder: &Path, into: &mut Vec<(String, Vec<u8>)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_in(&path, into);
        } else {
            into.push((path.display().to_string(), fs::read(&path).unwrap()));
        }
    }
}

#[test]
fn every_spelling_of_a_secret_would_be_seen() {
    let secret = TEST_SECRETS[0];
    for prefix in ["", "a", "ab", "abc"] {
        let text = STANDARD_NO_PAD.encode([prefix.as_bytes(), secret, b"behind"].concat());
        let seen = spellings(secret).iter().any(|spelling| {
            let bytes = text.as_bytes();
            bytes.windows(spelling.len()).any(|part| part == spelling)
        });
        assert!(seen, "behind {prefix:?}: {text}");
    }
    let debug = format!("{secret:?}");
    assert!(debug.contains(std::str::from_utf8(&spellings(secret)[4]).unwrap()));
}

#[test]
fn commands_do_not_say_what_a_secret_is() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["qemu-img", "qemu-io"] {
        symlink(env!("CARGO_BIN_EXE_xtask"), folder.path().join(name)).unwrap();
    }
    // The legacy method takes the passphrase itself for its key.
    let (first, second) = ("Tr0ub4dor&3-old!", "c0rrect-hrs-new!");
    let objects = [
        "--object".to_owned(),
        format!("secret,id=s,data={first}"),
        "--object".to_owned(),
        format!("secret,id=t,data={second}"),
    ];
    let call = |program: &str, words: &str, code: i32| {
        let (command, words) = match program {
            "qemu-img" => words.split_once(' ').unwrap(),
            _ => ("", words),
        };
        let output = Command::new(folder.path().join(program))
            .args((!command.is_empty()).then_some(command))
            .args(&objects)
            // A word may have a space in it, which is written as an underscore.
            .args(words.split(' ').map(|word| word.replace('_', " ")))
            .current_dir(folder.path())
            .output()
            .unwrap();
        let said = [&output.stdout[..], &output.stderr].concat();
        let text = String::from_utf8_lossy(&said);
        assert_eq!(output.status.code(), Some(code), "{words}: {text}");
        must_not_tell(&[first.as_bytes(), second.as_bytes()], &said, words);
    };
    for method in ["luks,encrypt.iter-time=1", "aes"] {
        let options = format!("encrypt.format={method},encrypt.key-secret=s");
        let image = "driver=qcow2,file.filename=a,encrypt.key-secret=s";
        let wrong = "driver=qcow2,file.filename=a,encrypt.key-secret=t";
        call("qemu-img", &format!("create -f qcow2 -o {options} a 1M"), 0);
        call(
            "qemu-io",
            &format!("--image-opts -c write_-P_7_0_64k -c read_-v_0_512 {image}"),
            0,
        );
        for look in [
            "info",
            "info --output=json",
            "check",
            "check -r all",
            "map --output=json",
        ] {
            call("qemu-img", &format!("{look} --image-opts {image}"), 0);
        }
        let convert = format!("convert -O qcow2 -o {options} --image-opts {image} b");
        call("qemu-img", &convert, 0);
        call("qemu-img", &format!("convert --image-opts {image} c"), 0);
        if method != "aes" {
            call("qemu-io", &format!("--image-opts -c quit {wrong}"), 1);
            let slot = "encrypt.state=active,encrypt.new-secret=t,encrypt.iter-time=1";
            call(
                "qemu-img",
                &format!("amend -o {slot} --image-opts {image}"),
                0,
            );
            call("qemu-io", &format!("--image-opts -c quit {wrong}"), 0);
        }
        call(
            "qemu-img",
            "info --image-opts driver=qcow2,file.filename=a,encrypt.key-secret=u",
            0,
        );
    }
    let mut files = Vec::new();
    files_in(folder.path(), &mut files);
    for (path, bytes) in files.iter().filter(|(path, _)| !path.contains("/qemu-")) {
        must_not_tell(&[first.as_bytes(), second.as_bytes()], bytes, path);
    }
}

#[test]
fn traces_and_reports_name_keys_by_their_index() {
    let folder = tempfile::tempdir().unwrap();
    let calls = [
        (
            "fuzz --seed 3 --runs 6 --jobs 1 --options encrypt=luks,key_slots=on --out luks",
            0,
        ),
        (
            "fuzz --seed 3 --runs 4 --jobs 1 --options encrypt=aes --out aes",
            0,
        ),
        (
            "canary --only key-slot-before-material --budget 120s --jobs 1 --out canary",
            0,
        ),
    ];
    let mut secrets: Vec<&[u8]> = TEST_SECRETS.iter().map(|secret| &secret[..]).collect();
    secrets.push(&TEST_KEY);
    for (line, code) in calls {
        let output = Command::new(env!("CARGO_BIN_EXE_xtask"))
            .args(line.split(' '))
            .current_dir(folder.path())
            .output()
            .unwrap();
        let said = [&output.stdout[..], &output.stderr].concat();
        let text = String::from_utf8_lossy(&said);
        assert_eq!(output.status.code(), Some(code), "{line}: {text}");
        must_not_tell(&secrets, &said, line);
    }
    let mut files = Vec::new();
    files_in(folder.path(), &mut files);
    assert!(files.len() >= 3, "two summaries and a trace: {files:?}");
    for (path, bytes) in &files {
        must_not_tell(&secrets, bytes, path);
    }
}
