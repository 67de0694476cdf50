//! A campaign of damaged images notices what it is there for.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]

use std::process::Command;

/// The exit code of a campaign of four images, and what it says.
fn campaign(plant: &str) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args([
            "malformed",
            "--images",
            "4",
            "--jobs",
            "1",
            "--plant",
            plant,
        ])
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    (output.status.code(), said)
}

#[test]
fn too_much_memory_or_time_and_every_problem_end_a_campaign_with_a_finding() {
    let (code, said) = campaign("nothing");
    assert_eq!(code, Some(0), "{said}");
    for (plant, says) in [
        ("memory", "image 1: the process ended with"),
        ("time", "image 1: took 1."),
        ("problem", "image 1: a second repair writes again"),
    ] {
        let (code, said) = campaign(plant);
        assert_eq!(code, Some(1), "{plant}: {said}");
        assert!(said.contains(says), "{plant}: {said}");
        assert!(said.contains("1 images with a problem"), "{plant}: {said}");
        assert!(said.starts_with("4 images:"), "{plant}: {said}");
    }
}
