//! `check`: is an image consistent, and what can be repaired.

use engine::device::{Event, Port};
use engine::image::Access;
use engine::qcow2::check::{CheckOptions, CheckReport, Finding, Kind, Repair, Tally, check};

use super::getopt::{Parsed, flag, value};
use super::json::Json;
use super::{
    Command, Output, Stop, misuse, open_named, print, say_error, secrets, sharing, spec_of,
};
use crate::block::failure::engine_text;
use crate::block::open::at_once;
use crate::block::{CacheMode, Depth, Failure, Format, Opening};

pub(super) const COMMAND: Command = Command {
    name: "check",
    about: "Check an image, and repair it where asked to",
    operands: "FILENAME",
    options: &[
        flag(Some('h'), "help", "tell the options"),
        flag(Some('q'), "quiet", "say nothing that is not an error"),
        value(Some('f'), "format", "the format of FILENAME"),
        flag(None, "image-opts", "FILENAME is a set of options"),
        value(Some('T'), "cache", "the cache mode (writeback)"),
        flag(
            Some('U'),
            "force-share",
            "others may write the image meanwhile",
        ),
        value(None, "output", "human or json"),
        value(Some('r'), "repair", "leaks or all"),
        value(None, "object", "a secret that options refer to"),
    ],
    run,
};

fn run(parsed: &Parsed) -> Result<u8, Stop> {
    let output = Output::of("check", parsed)?;
    let repair = match parsed.get("repair") {
        None => Repair::None,
        Some("leaks") => Repair::Leaks,
        Some("all") => Repair::All,
        Some(other) => {
            return Err(misuse(
                "check",
                format!("--repair (-r) expects 'leaks' or 'all' not '{other}'"),
            ));
        }
    };
    let [name] = parsed.operands.as_slice() else {
        return Err(misuse("check", "Expecting one image file name"));
    };
    let cache = CacheMode::of_source(parsed.get("cache").unwrap_or("writeback"))?;
    let spec = spec_of(name, parsed)?;
    let access = if repair == Repair::None {
        Access::ReadOnly
    } else {
        Access::ReadWrite
    };
    let secrets = secrets(parsed)?;
    let opening = Opening {
        access,
        sharing: sharing(parsed),
        cache,
        depth: Depth::HeaderAndBacking,
        secrets: &secrets,
    };
    let node = open_named(name, &spec, &opening)?;
    match node.format {
        Format::Qcow2 => {}
        Format::Raw => {
            return Err(Stop::FailedWith(
                63,
                Failure::new("This image format does not support checks"),
            ));
        }
    }
    let run = Run {
        port: &node.file.port,
        quiet: parsed.has("quiet"),
        output,
    };
    let report = run.check(repair)?;
    let report = if report.fixed == Tally::default() {
        report
    } else {
        run.tell_fixed(&report);
        let again = run.check(Repair::None)?;
        CheckReport {
            fixed: report.fixed,
            ..again
        }
    };
    match output {
        Output::Human => run.say(&human(&report)),
        Output::Json => run.say(&json(name, &report).print()),
    }
    Ok(exit_code(&report))
}

/// One call of the command.
struct Run<'a> {
    port: &'a Port,
    quiet: bool,
    output: Output,
}

impl Run<'_> {
    fn say(&self, text: &str) {
        if !self.quiet {
            print(text);
        }
    }

    fn check(&self, repair: Repair) -> Result<CheckReport, Failure> {
        let report = at_once(check(self.port, repair, &CheckOptions::default()))
            .map_err(|error| Failure(format!("Check failed: {}", engine_text(&error))))?;
        if repair != Repair::None {
            at_once(self.port.at(Event::None).flush())
                .map_err(|error| Failure(format!("Check failed: {error}")))?;
        }
        for finding in &report.findings {
            say_error(&tell(finding));
        }
        if repair != Repair::None {
            for finding in &report.findings {
                say_error(&tell_repair(finding, repair));
            }
        }
        Ok(report)
    }

    fn tell_fixed(&self, report: &CheckReport) {
        if self.output == Output::Human {
            self.say(&format!(
                "The following inconsistencies were found and repaired:\n\n    {} leaked clusters\n    \
                 {} corruptions\n\nDouble checking the fixed image now...\n",
                report.fixed.leaks, report.fixed.corruptions
            ));
        }
    }
}

fn tell(finding: &Finding) -> String {
    if let Kind::Leak { found, expected } = &finding.kind {
        counts("Leaked", finding, *found, *expected)
    } else if let Kind::TooLow { found, expected } = &finding.kind {
        counts("ERROR", finding, *found, *expected)
    } else {
        format!("ERROR {finding}\n")
    }
}

/// What is said of a repaired refcount; nothing of other findings.
fn tell_repair(finding: &Finding, repair: Repair) -> String {
    if let Kind::Leak { found, expected } = &finding.kind {
        counts("Repairing", finding, *found, *expected)
    } else if let Kind::TooLow { found, expected } = &finding.kind
        && repair == Repair::All
    {
        counts("Repairing", finding, *found, *expected)
    } else {
        String::new()
    }
}

fn counts(verb: &str, finding: &Finding, found: u64, expected: u64) -> String {
    format!(
        "{verb} cluster {} refcount={found} reference={expected}\n",
        finding.index
    )
}

fn human(report: &CheckReport) -> String {
    let mut text = String::new();
    let Tally { corruptions, leaks } = report.remaining;
    if report.is_clean() {
        text.push_str("No errors were found on the image.\n");
    }
    if corruptions > 0 {
        text.push_str(&format!(
            "\n{corruptions} errors were found on the image.\nData may be corrupted, or further \
             writes to the image may corrupt it.\n"
        ));
    }
    if leaks > 0 {
        text.push_str(&format!(
            "\n{leaks} leaked clusters were found on the image.\nThis means waste of disk space, \
             but no harm to data.\n"
        ));
    }
    if report.check_errors > 0 {
        text.push_str(&format!(
            "\n{} internal errors have occurred during the check.\n",
            report.check_errors
        ));
    }
    let totals = &report.totals;
    if totals.total_clusters > 0 && totals.allocated_clusters > 0 {
        text.push_str(&format!(
            "{}/{} = {}% allocated, {}% fragmented, {}% compressed clusters\n",
            totals.allocated_clusters,
            totals.total_clusters,
            percent(totals.allocated_clusters, totals.total_clusters),
            percent(totals.fragmented_clusters, totals.allocated_clusters),
            percent(totals.compressed_clusters, totals.allocated_clusters),
        ));
    }
    if totals.image_end_offset > 0 {
        text.push_str(&format!("Image end offset: {}\n", totals.image_end_offset));
    }
    text
}

/// A share in percent with two decimals.
fn percent(part: u64, whole: u64) -> String {
    let (part, whole) = (u128::from(part) * 10000, u128::from(whole));
    let hundredths = (part + whole / 2) / whole;
    format!("{}.{:02}", hundredths / 100, hundredths % 100)
}

/// Counts of zero are left out where qemu-img leaves them out.
fn json(name: &str, report: &CheckReport) -> Json {
    let totals = &report.totals;
    let optional = |name, count: u64| (count > 0).then_some((name, Json::Number(count)));
    let members = [
        optional("image-end-offset", totals.image_end_offset),
        optional("compressed-clusters", totals.compressed_clusters),
        optional("total-clusters", totals.total_clusters),
        optional("corruptions", report.remaining.corruptions),
        optional("corruptions-fixed", report.fixed.corruptions),
        Some(("check-errors", report.check_errors.into())),
        optional("leaks", report.remaining.leaks),
        optional("leaks-fixed", report.fixed.leaks),
        optional("allocated-clusters", totals.allocated_clusters),
        Some(("filename", name.into())),
        Some(("format", "qcow2".into())),
        optional("fragmented-clusters", totals.fragmented_clusters),
    ];
    Json::Object(members.into_iter().flatten().collect())
}

fn exit_code(report: &CheckReport) -> u8 {
    if report.check_errors > 0 {
        1
    } else if report.remaining.corruptions > 0 {
        2
    } else if report.remaining.leaks > 0 {
        3
    } else {
        0
    }
}
