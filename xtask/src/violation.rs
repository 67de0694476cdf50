//! Telling a person about a violation, and leaving them the trace.

use std::path::{Path, PathBuf};

use harness::campaign::Found;
use harness::minimise::End;
use harness::reduce::{Reduced, reduce};
use harness::trace::Trace;

use crate::Refusal;

/// So many violations of different classes are minimised; the others are counted.
const MINIMISED: usize = 4;

/// Minimises the first violation of each class, tells of it, and says where its trace is. `unit` is what is numbered where
/// it was found, and `origin` what comes before that in the trace's name.
pub(crate) fn tell_each(
    found: &[Found],
    unit: &str,
    origin: &str,
    directory: &Path,
) -> Result<Vec<PathBuf>, Refusal> {
    let mut classes: Vec<String> = Vec::new();
    let mut traces = Vec::new();
    for found in found {
        let class = found.finding.violation.class.to_string();
        if classes.contains(&class) || classes.len() == MINIMISED {
            continue;
        }
        let place = format!("{unit} {}", found.run);
        let reduced = reduce(found).map_err(|error| Refusal(format!("{place}: {error}")))?;
        let trace = save(&reduced, &class, &format!("{origin}{place}"), directory)?;
        tell(&reduced, &trace);
        classes.push(class);
        traces.push(trace);
    }
    Ok(traces)
}

/// Writes a trace into `directory`, under a name that tells what it is and where it came from.
pub(crate) fn save(
    reduced: &Reduced,
    name: &str,
    origin: &str,
    directory: &Path,
) -> Result<PathBuf, Refusal> {
    save_trace(&reduced.trace, name, origin, directory)
}

/// The same, for a trace that was not made small.
pub(crate) fn save_trace(
    trace: &Trace,
    name: &str,
    origin: &str,
    directory: &Path,
) -> Result<PathBuf, Refusal> {
    let path = directory.join(format!("{}-{}.json", plain(name), plain(origin)));
    std::fs::write(&path, trace.to_json())
        .map_err(|error| Refusal(format!("{}: {error}", path.display())))?;
    Ok(path)
}

/// Prints what was found, in the order in which a person wants to know.
pub(crate) fn tell(reduced: &Reduced, trace: &Path) {
    println!();
    println!("VIOLATION {}", reduced.class);
    for line in reduced.sentence.lines() {
        println!("  {line}");
    }
    for line in &reduced.lines {
        println!("  | {line}");
    }
    println!("  shown by: {}", reduced.shown);
    println!("  on the perfect disk: {}", reduced.control);
    println!(
        "  minimised to {} in {} attempts{}",
        size(reduced),
        reduced.attempts,
        match reduced.end {
            End::Smallest => "",
            End::Limit => "; cargo xtask minimise goes on from there",
        }
    );
    println!("  trace:  {}", trace.display());
    println!("  replay: cargo xtask replay {}", trace.display());
}

fn size(reduced: &Reduced) -> String {
    match reduced.trace.scenario.operations.len() {
        1 => "1 operation".into(),
        count => format!("{count} operations"),
    }
}

/// A text as a part of a file's name.
pub(crate) fn plain(text: &str) -> String {
    let keep = |character: char| {
        if character.is_ascii_alphanumeric() {
            character
        } else {
            '-'
        }
    };
    text.chars()
        .map(keep)
        .collect::<String>()
        .trim_matches('-')
        .to_owned()
}
