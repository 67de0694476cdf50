//! Carrying a case out on both sides, and comparing what comes of it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use super::super::duel::{Arena, Outcome, Programs, Side};
use super::case::{Case, IMAGE, Kind, Opened, RULES};

/// What QEMU says of caches that it cannot write back when it closes an image.
const CACHE_WORDS: &str = "qemu-io: Failed to flush the ";
/// How a check ends that finds leaks and nothing else.
const LEAKS: Option<i32> = Some(3);
/// So long a program may take; a case takes milliseconds.
const PATIENCE: Duration = Duration::from_mins(1);

/// What the programs of a side said and left.
struct Left {
    folder: PathBuf,
    said: Vec<Output>,
}

/// Carries a case out on both sides; what is left of a disagreement is kept.
pub(super) fn carry_out(arena: &Arena, place: &str, case: &Case) -> io::Result<Outcome> {
    let folder = arena.folder().join(place);
    let sides = [Side::Theirs, Side::Ours];
    let mut left = Vec::new();
    let mut outcome = Outcome::default();
    for side in sides {
        let folder = folder.join(side.folder());
        prepare(arena, case, &folder)?;
        let said = run(arena.programs(side), case, &folder)?;
        outcome.steps += u64::try_from(case.commands.len()).unwrap_or(u64::MAX);
        left.push(Left { folder, said });
    }
    let [theirs, ours] = left.as_slice() else {
        unreachable!("there are two sides");
    };
    let mut differ = Vec::new();
    for (theirs, ours) in theirs.said.iter().zip(&ours.said) {
        compare_output(case, theirs, ours, &mut differ);
    }
    outcome.refused += u64::from(theirs.said.iter().any(|said| !said.status.success()));
    compare_images(arena, case, &theirs.folder, &ours.folder, &mut differ)?;
    outcome.disagreements = differ;
    if outcome.disagreements.is_empty() {
        fs::remove_dir_all(&folder)?;
    } else {
        fs::write(folder.join("case.conf"), &case.rules)?;
        fs::write(folder.join("case.io"), case.text())?;
        fs::write(
            folder.join("disagreements.txt"),
            outcome.disagreements.join("\n"),
        )?;
        arena.keep(&folder, place)?;
    }
    Ok(outcome)
}

/// Makes the files of a case. Both sides get the same: QEMU makes images.
fn prepare(arena: &Arena, case: &Case, folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    fs::write(folder.join(RULES), &case.rules)?;
    let content = match case.image {
        Kind::Raw | Kind::Full => content(case.bytes),
        Kind::Empty => vec![0; usize::try_from(case.bytes).unwrap_or(0)],
    };
    let img = |words: &[&str]| {
        let said = call(&arena.programs(Side::Theirs).img, words, folder)?;
        if said.status.success() {
            Ok(())
        } else {
            Err(io::Error::other(
                String::from_utf8_lossy(&said.stderr).into_owned(),
            ))
        }
    };
    match case.image {
        Kind::Raw => fs::write(folder.join(IMAGE), &content)?,
        Kind::Full => {
            fs::write(folder.join("content"), &content)?;
            img(&[
                "convert", "-q", "-f", "raw", "-O", "qcow2", "content", IMAGE,
            ])?;
        }
        Kind::Empty => {
            let size = case.bytes.to_string();
            img(&["create", "-q", "-f", "qcow2", IMAGE, &size])?;
        }
    }
    if case.has_reference {
        fs::write(folder.join("reference"), &content)?;
    }
    Ok(())
}

/// Bytes that are other in every sector, and never zero.
fn content(bytes: u64) -> Vec<u8> {
    let of = |sector: u64| u8::try_from(sector % 251 + 1).expect("at most 251");
    (0..bytes).map(|at| of(at / 512)).collect()
}

fn run(programs: &Programs, case: &Case, folder: &Path) -> io::Result<Vec<Output>> {
    let mut words: Vec<&str> = case.with.iter().map(String::as_str).collect();
    let name = match &case.opened {
        Opened::Name(name) => name,
        Opened::Options(options) => {
            words.push("--image-opts");
            options
        }
    };
    words.extend(case.commands.iter().flat_map(|command| ["-c", command]));
    words.push(name);
    let mut said = vec![call(&programs.io, &words, folder)?];
    for words in &case.img {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        said.push(call(&programs.img, &words, folder)?);
    }
    Ok(said)
}

/// Runs a program and ends it when it takes too long: a request that waits for ever is a disagreement.
fn call(program: &Path, words: &[&str], folder: &Path) -> io::Result<Output> {
    let seconds = PATIENCE.as_secs().to_string();
    Command::new("timeout")
        .args(["-k", "1", &seconds])
        .arg(program)
        .args(words)
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
}

fn compare_output(case: &Case, theirs: &Output, ours: &Output, differ: &mut Vec<String>) {
    if theirs.status.code() != ours.status.code() {
        let said = |output: &Output| {
            let text = String::from_utf8_lossy(&output.stderr);
            format!(
                "{} ({})",
                output.status,
                text.lines().next().unwrap_or_default()
            )
        };
        differ.push(format!("QEMU: {}; here: {}", said(theirs), said(ours)));
    }
    let (by_qemu, here) = (without_times(&theirs.stdout), without_times(&ours.stdout));
    let mut lines = by_qemu.lines().zip(here.lines());
    if let Some((theirs, ours)) = lines.find(|(theirs, ours)| theirs != ours) {
        differ.push(format!("QEMU says '{theirs}', here it is '{ours}'"));
    } else if by_qemu != here {
        differ.push(format!("QEMU says '{by_qemu}', here it is '{here}'"));
    }
    if case.messages {
        compare_messages(theirs, ours, differ);
    }
}

/// QEMU's own words must be how ours start, line by line.
fn compare_messages(theirs: &Output, ours: &Output, differ: &mut Vec<String>) {
    let (by_qemu, here) = [theirs, ours]
        .map(|said| String::from_utf8_lossy(&said.stderr))
        .into();
    let by_qemu: Vec<&str> = by_qemu
        .trim_end()
        .lines()
        .filter(|line| !line.starts_with(CACHE_WORDS))
        .collect();
    let mut here = here.trim_end().lines();
    for line in &by_qemu {
        match here.next() {
            Some(told) if told.starts_with(line) => {}
            told => differ.push(format!(
                "QEMU complains '{line}', here it is '{}'",
                told.unwrap_or_default()
            )),
        }
    }
    if let Some(told) = here.next() {
        differ.push(format!("only here is complained '{told}'"));
    }
}

/// What was said, without how long it took.
fn without_times(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    let kept = |line: &str| match line.find(" ops; ") {
        Some(end) => format!("{} ops\n", &line[..end]),
        None => format!("{line}\n"),
    };
    text.lines().map(kept).collect()
}

fn compare_images(
    arena: &Arena,
    case: &Case,
    theirs: &Path,
    ours: &Path,
    differ: &mut Vec<String>,
) -> io::Result<()> {
    let mut names = vec![IMAGE];
    names.extend(case.has_reference.then_some("reference"));
    for name in names {
        let is_raw = case.image == Kind::Raw || name != IMAGE;
        let [by_qemu, here] = [theirs, ours].map(|folder| disk(arena, folder, name, is_raw));
        let (by_qemu, here) = (by_qemu?, here?);
        if let Some(at) = first_difference(&by_qemu, &here) {
            differ.push(format!("{name} differs from offset {at} on"));
        }
    }
    if case.image != Kind::Raw {
        let [by_qemu, here] = [theirs, ours].map(|folder| check(arena, folder));
        let (by_qemu, here) = (by_qemu?, here?);
        let same = |code| {
            if case.leaks && code == LEAKS {
                Some(0)
            } else {
                code
            }
        };
        if same(by_qemu) != same(here) {
            differ.push(format!(
                "check ends with {by_qemu:?} by QEMU and with {here:?} here"
            ));
        }
    }
    Ok(())
}

/// What a disk holds, read by QEMU.
fn disk(arena: &Arena, folder: &Path, name: &str, is_raw: bool) -> io::Result<Vec<u8>> {
    if is_raw {
        return fs::read(folder.join(name));
    }
    let words = ["convert", "-f", "qcow2", "-O", "raw", name, "shown"];
    let said = call(&arena.programs(Side::Theirs).img, &words, folder)?;
    if said.status.success() {
        fs::read(folder.join("shown"))
    } else {
        // As told apart from every other as the disk itself.
        Ok(said.stderr)
    }
}

fn check(arena: &Arena, folder: &Path) -> io::Result<Option<i32>> {
    let words = ["check", "-q", "-f", "qcow2", IMAGE];
    let said = call(&arena.programs(Side::Theirs).img, &words, folder)?;
    Ok(said.status.code())
}

fn first_difference(one: &[u8], other: &[u8]) -> Option<usize> {
    if one == other {
        return None;
    }
    let at = one.iter().zip(other).position(|(a, b)| a != b);
    Some(at.unwrap_or(one.len().min(other.len())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_no_difference_and_all_else_is() {
        let text = b"wrote 1/1 bytes at offset 0\n1 bytes, 1 ops; 00.00 sec (1/sec)\nx\n";
        assert_eq!(
            without_times(text),
            "wrote 1/1 bytes at offset 0\n1 bytes, 1 ops\nx\n"
        );
        assert_eq!(first_difference(b"abc", b"abd"), Some(2));
        assert_eq!(first_difference(b"abc", b"ab"), Some(2));
        assert_eq!(first_difference(b"abc", b"abc"), None);
    }
}
