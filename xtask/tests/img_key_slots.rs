//! `img amend -o encrypt.*` against qemu-img's: which secrets open an image, and what is refused how.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]
#![allow(dead_code, reason = "the kit serves several tests")]

mod img_kit;

use img_kit::{Pair, Who};

const OBJECTS: [&str; 6] = [
    "--object",
    "secret,id=s,data=hunter2",
    "--object",
    "secret,id=t,data=hunter3",
    "--object",
    "secret,id=u,data=hunter4",
];

fn image(id: &str) -> String {
    format!("driver=qcow2,file.filename=a,encrypt.key-secret={id}")
}

/// Both programs amend their image, and say the same. Then the same secrets open the same slots, to both.
fn amended_alike(pair: &Pair, options: &[&str]) {
    let image = image("s");
    let words = [
        &["amend"],
        &OBJECTS[..],
        &["--image-opts"],
        options,
        &[&image],
    ];
    let ended = pair.same(&words.concat());
    let active = |who| {
        let info = pair.run_qemu_here(who, &["info", "--output=json", "a"]);
        let info: serde_json::Value = serde_json::from_str(&info.out).unwrap();
        let slots = &info["format-specific"]["data"]["encrypt"]["slots"];
        let slots = slots.as_array().unwrap().iter();
        slots
            .map(|slot| slot["active"].as_bool())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        active(Who::Ours),
        active(Who::Qemu),
        "{options:?}: {ended:?}"
    );
    for secret in ["s", "t", "u"] {
        opened_alike(pair, secret, options);
    }
}

/// What opens to whom, by both programs: QEMU reads what this program wrote.
fn opened_alike(pair: &Pair, secret: &str, after: &[&str]) {
    let image = image(secret);
    let words = [&["map"], &OBJECTS[..], &["--image-opts", &image]].concat();
    let theirs = pair.run_qemu_here(Who::Qemu, &words);
    let ours = pair.run_qemu_here(Who::Ours, &words);
    assert_eq!(ours.code, theirs.code, "{secret} after {after:?}: {ours:?}");
    let here = pair.same(&words);
    assert_eq!(here.code, theirs.code, "{secret} after {after:?}: {here:?}");
}

fn pair() -> Pair {
    let pair = Pair::new();
    let options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=1,\
                   encrypt.cipher-alg=aes-128";
    let create = ["create", "-q", "-f", "qcow2", "-o", options, "a", "64k"];
    pair.same(&[&create[..1], &OBJECTS, &create[1..]].concat());
    pair
}

#[test]
fn secrets_come_and_go() {
    if !img_kit::have_qemu() {
        return;
    }
    let pair = pair();
    for options in [
        &[
            "-o",
            "encrypt.state=active,encrypt.new-secret=t,encrypt.iter-time=1",
        ][..],
        &[
            "-o",
            "encrypt.state=active,encrypt.new-secret=u,encrypt.keyslot=6,encrypt.iter-time=1",
        ],
        &["-o", "encrypt.state=inactive,encrypt.keyslot=1"],
        &[
            "-q",
            "-p",
            "-o",
            "encrypt.state=active,encrypt.new-secret=t,encrypt.keyslot=7,encrypt.iter-time=0",
        ],
        &[
            "--force",
            "-o",
            "encrypt.state=active,encrypt.new-secret=t,encrypt.keyslot=6,encrypt.iter-time=1",
        ],
        &["-o", "encrypt.state=inactive,encrypt.old-secret=t"],
        &["--force", "-o", "encrypt.state=inactive,encrypt.keyslot=3"],
        &[
            "--force",
            "-o",
            "encrypt.state=inactive,encrypt.old-secret=s",
        ],
    ] {
        amended_alike(&pair, options);
    }
}

#[test]
fn what_is_refused_is_refused_in_the_same_words() {
    if !img_kit::have_qemu() {
        return;
    }
    let pair = pair();
    for options in [
        "encrypt.keyslot=0",
        "encrypt.new-secret=t",
        "encrypt.state=active",
        "encrypt.state=awake,encrypt.new-secret=t",
        "encrypt.state=active,encrypt.new-secret=nobody",
        "encrypt.state=active,encrypt.new-secret=t,encrypt.keyslot=0",
        "encrypt.state=active,encrypt.new-secret=t,encrypt.keyslot=8",
        "encrypt.state=active,encrypt.new-secret=t,encrypt.keyslot=-1",
        "encrypt.state=active,encrypt.new-secret=t,encrypt.iter-time=99999999999999999999",
        "encrypt.state=active,encrypt.new-secret=t,encrypt.keyslot=99999999999",
        "encrypt.state=active,encrypt.new-secret=t,encrypt.old-secret=s",
        "encrypt.state=active,encrypt.keyslot=x",
        "encrypt.state=inactive",
        "encrypt.state=inactive,encrypt.keyslot=0",
        "encrypt.state=inactive,encrypt.keyslot=4",
        "encrypt.state=inactive,encrypt.keyslot=8",
        "encrypt.state=inactive,encrypt.old-secret=s",
        "encrypt.state=inactive,encrypt.old-secret=t",
        "encrypt.state=inactive,encrypt.old-secret=nobody",
        "encrypt.state=inactive,encrypt.keyslot=0,encrypt.old-secret=t",
        "encrypt.state=inactive,encrypt.keyslot=0,encrypt.new-secret=t",
        "encrypt.state=inactive,encrypt.keyslot=0,encrypt.iter-time=1",
        "encrypt.state=inactive,encrypt.keyslot=0,compat=0.10,refcount_bits=99",
    ] {
        amended_alike(&pair, &["-o", options]);
    }
    let pair = Pair::new();
    for create in [&["-o", "encrypt.format=aes,encrypt.key-secret=s"][..], &[]] {
        pair.same(
            &[
                &["create", "-q", "-f", "qcow2"],
                &OBJECTS[..],
                create,
                &["a", "64k"],
            ]
            .concat(),
        );
        let options = image("s");
        let options = if create.is_empty() {
            "driver=qcow2,file.filename=a"
        } else {
            &options
        };
        let change = "encrypt.state=inactive,encrypt.keyslot=0";
        let words = [
            &["amend"],
            &OBJECTS[..],
            &["--image-opts", "-o", change, options],
        ];
        pair.same(&words.concat());
    }
}

#[test]
fn no_message_shows_a_secret() {
    let pair = Pair::new();
    let words = |more: &[&str]| {
        let all = [&more[..1], &OBJECTS[..], &more[1..]].concat();
        let ended = pair.run(Who::Ours, &all);
        assert!(!format!("{ended:?}").contains("hunter"), "{ended:?}");
    };
    let create = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=1";
    words(&["create", "-f", "qcow2", "-o", create, "a", "64k"]);
    let (good, bad) = (image("s"), image("t"));
    words(&["info", "--image-opts", &good]);
    words(&["check", "--image-opts", &bad]);
    for options in [
        "encrypt.state=active,encrypt.new-secret=t,encrypt.iter-time=1",
        "encrypt.state=active,encrypt.new-secret=t,encrypt.keyslot=0",
        "encrypt.state=inactive,encrypt.old-secret=u",
        "encrypt.state=inactive,encrypt.old-secret=t",
    ] {
        words(&["amend", "--image-opts", "-o", options, &good]);
    }
}
