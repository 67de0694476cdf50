//! The table of what becomes of a failed request, event by event, for people.

use std::fmt::Write as _;

use blkdebug::rule::Repeat;
use engine::device::{Cause, Event};

use super::draw::CAUSES;
use super::events::{Raised, raised};
use super::matrix::{Cell, Past, Way};
use super::silent::Report;

/// The cells of one event, in the order of [`Way::all`].
#[derive(Clone, Debug)]
pub struct Row {
    /// The event.
    pub event: Event,
    /// Its cells.
    pub cells: Vec<Cell>,
}

const HEAD: &str = "\
# Errors, event by event

What becomes of an operation on behalf of which a request fails. `cargo xtask faults --table --out docs/FAULTS.md` makes
this table; nothing in it is written by hand. A cell is two drawn workloads that come to the event: its requests fail once,
or for the rest of the operation; then the operation is asked again, the image is closed and opened, and the operation
asked once more. Every run is judged as any other is, the crash states that it could have left included.

| word | what it means |
|---|---|
| told | the operation failed, and said so |
| not opened | the image could not be opened, and said so |
| again | asked again at once, the operation succeeded |
| reopened | the image refused to build on what was in doubt, and did what was asked once it had been opened again |
| refused | asked again, it was refused for what it had done the first time: a smaller disk cannot become smaller still |
| advice | the request was advice, such as a discard: nothing that was promised hangs on it |
| put off | the operation had kept its promise, and what is left to do, freeing clusters, is tried again later |
";

/// The whole document.
pub fn document(rows: &[Row], silent: &Report) -> String {
    let mut text = HEAD.to_owned();
    for (past, title) in [
        (Past::Whole, "Before a power loss"),
        (Past::PowerLoss, "After a power loss"),
    ] {
        let _ = write!(text, "\n## {title}\n\n");
        if past == Past::PowerLoss {
            text.push_str(
                "The image was left with the dirty bit set and without its refcounts: opening it repairs it, and the first \
                 requests that fail\nare those of the repair.\n\n",
            );
        }
        table(&mut text, rows, past);
    }
    totals(&mut text, rows);
    never(&mut text);
    damage(&mut text, silent);
    text
}

/// What a cause is called.
pub fn cause_name(cause: Cause) -> &'static str {
    let names = ["EIO", "ENOSPC", "EINTR"];
    let mut named = CAUSES.iter().zip(names);
    let found = named.find(|(known, _)| **known == cause);
    found.map_or("another", |(_, name)| name)
}

fn table(text: &mut String, rows: &[Row], past: Past) {
    text.push_str("| event |");
    for cause in CAUSES {
        for repeat in ["once", "for good"] {
            let _ = write!(text, " {} {repeat} |", cause_name(cause));
        }
    }
    text.push_str("\n|---|---|---|---|---|---|---|\n");
    for row in rows {
        let _ = write!(text, "| `{}` |", row.event.name());
        for (way, cell) in Way::all().into_iter().zip(&row.cells) {
            if way.past == past {
                let _ = write!(text, " {} |", cell_text(cell));
            }
        }
        text.push('\n');
    }
}

/// What a cell says.
pub fn cell_text(cell: &Cell) -> String {
    if !cell.found.is_empty() {
        let class = &cell.found[0].finding.violation.class;
        return format!("**{class}**");
    }
    let became: Vec<&str> = cell.became.iter().map(|one| one.name()).collect();
    became.join(", ")
}

fn totals(text: &mut String, rows: &[Row]) {
    let cells = || rows.iter().flat_map(|row| &row.cells);
    let runs: usize = cells().map(|cell| cell.runs).sum();
    let hits: u64 = cells().map(|cell| cell.hits).sum();
    let states: u64 = cells().map(|cell| cell.states).sum();
    let found: usize = cells().map(|cell| cell.found.len()).sum();
    let _ = write!(
        text,
        "\n{runs} runs, {hits} failed requests, {states} crash states behind them, {found} violations.\n"
    );
}

fn never(text: &mut String) {
    text.push_str("\n## Events that are not raised\n\n| event | why |\n|---|---|\n");
    for event in Event::ALL {
        if let Raised::Never(why) = raised(event) {
            let _ = writeln!(text, "| `{}` | {why} |", event.name());
        }
    }
}

fn damage(text: &mut String, silent: &Report) {
    let _ = write!(
        text,
        "\n## Damage that no error tells of\n\n\
         Of {} drawn workloads one sector of each structure was damaged. The image was then opened, read, closed, repaired, \
         read again and worked on.\nRight: all of it was read and is right. Refused: something was refused, and what was \
         read is right. Undetectable: something was\nread that is wrong, and the format has nothing to know it by: data have \
         no checksum, an older table is a table, and so is one\nof which a bit is another.\n\n\
         | structure | damage | right | refused | undetectable |\n|---|---|---|---|---|\n",
        silent.runs
    );
    for ((class, damage), standings) in &silent.standings {
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} |",
            class.name(),
            damage.name(),
            standings.right,
            standings.refused,
            standings.undetectable
        );
    }
    let _ = write!(
        text,
        "\nBeside that {} requests were dropped, torn, misdirected, repeated, or read with another bit or in part, while the \
         engine was at\nwork: it ends and does not panic. {} violations in all.\n",
        silent.live,
        silent.found.len()
    );
}

/// The events of the table: those that are raised.
pub fn events() -> impl Iterator<Item = Event> {
    let is_raised = |event: &Event| !matches!(raised(*event), Raised::Never(_));
    Event::ALL.into_iter().filter(is_raised)
}

/// How often a way fails, as messages have it.
pub fn repeat_name(repeat: Repeat) -> &'static str {
    match repeat {
        Repeat::Once => "once",
        Repeat::Always => "for good",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_that_is_kept_has_a_row_for_every_event_and_no_empty_cell() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/FAULTS.md");
        let text = std::fs::read_to_string(path).unwrap();
        assert!(text.starts_with(HEAD), "generate the table anew");
        for event in Event::ALL {
            let start = format!("| `{}` |", event.name());
            let rows: Vec<&str> = text
                .lines()
                .filter(|line| line.starts_with(&start))
                .collect();
            match raised(event) {
                Raised::Never(why) => assert_eq!(rows, [format!("{start} {why} |")]),
                Raised::WithRequest | Raised::Alone => {
                    assert_eq!(rows.len(), 2, "{event}: before and after a power loss");
                    for row in rows {
                        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
                        assert_eq!(cells.len(), 9, "{row}");
                        let filled = cells[2..8].iter().all(|cell| !cell.is_empty());
                        assert!(filled && !row.contains("**"), "{row}");
                    }
                }
            }
        }
    }
}
