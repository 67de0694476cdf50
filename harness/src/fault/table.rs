//! The table of what becomes of a failed request, event by event, for people.

use std::fmt::Write as _;

use blkdebug::rule::Repeat;
use engine::device::Event;

use super::draw::CAUSES;
use super::events::{Raised, raised};
use super::matrix::{Cell, Fails, Past, Way};
use super::silent::Report;
use super::silent::owner::Blind;
use crate::oracle::Readings;

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
this table, and `--check docs/FAULTS.md` compares it; nothing in it is written by hand. A cell is two drawn workloads that come
to the event; where they came to different ends, both are there, and how many workloads each stands for. Once: one request
fails; then the operation is asked again, the image is closed and opened, and the operation asked once more. For good: the
requests go on to fail, through the operation asked again, through the rest of the workload and through closing and opening
the image; then the fault is taken away, and the operation asked again, behind another opening where it must be. Every run is
judged as any other is, the crash states that it could have left included.

| word | what it means |
|---|---|
| told | the operation failed, and said so |
| not opened | the image could not be opened, and said so |
| told again | asked again while requests still failed, it failed again and said so |
| around | asked again while requests still failed, it succeeded: there was no need of one by then |
| others go on | other operations succeeded while requests still failed |
| others fail | other operations failed while requests still failed, and said so |
| again | asked again once the fault was gone, the operation succeeded |
| reopened | the image refused to build on what was in doubt, and did what was asked once it had been opened again |
| opened | the image was opened once the fault was gone |
| refused | asked again, it was refused for what it had done the first time: a smaller disk cannot become smaller still |
| advice | the request was advice, such as a discard: nothing that was promised hangs on it |
| put off | the operation had kept its promise, and what is left to do, freeing clusters, is tried again later |
| no write | what fails is a read, or a flush, and cannot have happened all the same |
| no flush | only a flush can lose what it was to make durable |
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

/// What a way to fail is called.
pub fn fails_name(fails: Fails) -> &'static str {
    match fails {
        Fails::With(cause) => {
            let names = ["EIO", "ENOSPC", "EINTR"];
            let mut named = CAUSES.iter().zip(names);
            let found = named.find(|(known, _)| **known == cause);
            found.map_or("another", |(_, name)| name)
        }
        Fails::ButHappens => "EIO, yet written,",
        Fails::AndForgets => "EIO, and forgotten,",
    }
}

fn table(text: &mut String, rows: &[Row], past: Past) {
    let mine = || Way::all().into_iter().filter(move |way| way.past == past);
    text.push_str("| event |");
    for way in mine() {
        let _ = write!(
            text,
            " {} {} |",
            fails_name(way.fails),
            repeat_name(way.repeat)
        );
    }
    let _ = writeln!(text, "\n|---|{}", "---|".repeat(mine().count()));
    for row in rows {
        let _ = write!(text, "| `{}` |", row.event.name());
        for (way, cell) in Way::all().into_iter().zip(&row.cells) {
            if way.past == past {
                let _ = write!(text, " {} |", cell_text(way, row.event, cell));
            }
        }
        text.push('\n');
    }
}

/// What a cell says.
pub fn cell_text(way: Way, event: Event, cell: &Cell) -> String {
    if !cell.found.is_empty() {
        let class = &cell.found[0].finding.violation.class;
        return format!("**{class}**");
    }
    if !way.applies_to(event) {
        let none = match way.fails {
            Fails::AndForgets => "no flush",
            Fails::With(_) | Fails::ButHappens => "no write",
        };
        return none.into();
    }
    let is_one = cell.became.len() == 1;
    let ends = cell.became.iter().map(|(became, count)| {
        let words: Vec<&str> = became.iter().map(|one| one.name()).collect();
        let words = words.join(", ");
        if is_one {
            words
        } else {
            format!("{count}: {words}")
        }
    });
    ends.collect::<Vec<_>>().join("; ")
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
         Of {} drawn workloads one sector of each structure was damaged, or the length of the file. The image was then \
         opened, read, closed,\nrepaired, read again and worked on. Images: right, where all of it was read and is right; \
         refused, where something was refused, and\nwhat was read is right; undetectable, where something was read that is \
         wrong, and the format has nothing to know it by. Beside them\nthe guest sectors that were read of these images, \
         counted in the same way, each time they were read.\n\n\
         | structure | damage | right | refused | undetectable | sectors right | refused | undetectable, by what was destroyed |\n\
         |---|---|---|---|---|---|---|---|\n",
        silent.runs
    );
    for ((class, damage), standings) in &silent.standings {
        let readings = &standings.readings;
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} | {} |",
            class.name(),
            damage.name(),
            standings.right,
            standings.refused,
            standings.undetectable,
            readings.right,
            readings.refused,
            reasons(readings),
        );
    }
    text.push_str(REASONS);
    in_use(text, silent);
}

const REASONS: &str = "
What the format has nothing to know by, where something of it was destroyed on the way to a sector:

| destroyed | why nobody can know |
|---|---|
| data | data have no checksum |
| l2 | an older entry is an entry, and so is one of which a bit is another |
| l1 | the same |
| header | an older header is a header; what of it is checked is refused |
| refcount-block, refcount-table | a count that is too low lets a cluster be given away twice; only a check finds out |
| length | what is not there reads as zeroes |
";

fn in_use(text: &mut String, silent: &Report) {
    text.push_str(
        "\nWhile an engine had the image open, requests were dropped, torn, misdirected, repeated, or read with another bit or \
         in part; then\nit was closed and opened, and all that had been written was read. It ends and does not panic, and a read \
         that is wrong hangs on what\nwent wrong before it.\n\n| what went wrong | requests |\n|---|---|\n",
    );
    for (kind, count) in &silent.live {
        let _ = writeln!(text, "| {kind} | {count} |");
    }
    let readings = &silent.readings;
    let _ = writeln!(
        text,
        "\nGuest sectors read meanwhile: {} right, {} refused, undetectable {}.",
        readings.right,
        readings.refused,
        reasons(readings)
    );
    text.push_str(
        "\nNothing was written to a cluster that was another's as far as the image told. What nobody could know:\n\n\
         | why | writes |\n|---|---|\n",
    );
    for blind in Blind::ALL {
        let count = silent.blind.get(&blind).copied().unwrap_or_default();
        let _ = writeln!(text, "| {} | {count} |", blind.name());
    }
    text.push_str(UNSEEN);
    let _ = writeln!(
        text,
        "\n{} violations in these {} workloads.",
        silent.violations(),
        silent.runs
    );
}

const UNSEEN: &str = "
What of that is not seen: a write of an L2 table into another L2 table, or of a refcount block into another, since neither says which
it is of; compressed data over others that are compressed; data over another cluster's data that bear no stamp, or are encrypted, where
it is not known for whom they were written, which is so at rest; and, while an engine has the image open, all that is written once it
was told something wrong of a table: what it knows from there on nobody else does.
";

/// How many sectors were read wrong, by what was destroyed on the way to them.
pub fn reasons(readings: &Readings) -> String {
    let each = readings.undetectable.iter();
    let each: Vec<String> = each
        .map(|(class, count)| format!("{count} {}", class.name()))
        .collect();
    if each.is_empty() {
        "0".into()
    } else {
        each.join(", ")
    }
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
                        assert_eq!(cells.len(), 13, "{row}");
                        let filled = cells[2..12].iter().all(|cell| !cell.is_empty());
                        assert!(filled && !row.contains("**"), "{row}");
                    }
                }
            }
        }
    }
}
