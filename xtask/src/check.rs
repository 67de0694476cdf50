//! `check`: qemu-img's check, with its words and exit codes.

use std::path::PathBuf;
use std::rc::Rc;

use clap::{Args, ValueEnum};
use engine::device::{FileDevice, Port, drive};
use engine::error::Error;
use engine::qcow2::check::{
    CheckOptions, CheckReport, Kind, Repair, Severity, Tally, Totals, check,
};

use crate::{Ending, Refusal};

/// Check a qcow2 image, and repair it where asked to.
///
/// Exit codes are qemu-img's: 0 clean, 1 the check could not be made, 2 corruptions, 3 leaks only, 63
/// not supported for this image. A file that cannot be opened is 1 too.
#[derive(Args, Debug)]
pub(crate) struct Check {
    /// The image
    image: PathBuf,
    /// What to repair; without it nothing is written
    #[arg(long, short = 'r', value_enum, value_name = "WHAT")]
    repair: Option<What>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    Leaks,
    All,
}

impl Check {
    #[expect(
        clippy::unnecessary_wraps,
        reason = "every command hands back the same type"
    )]
    pub(crate) fn run(&self) -> Result<Ending, Refusal> {
        let device = match self.repair {
            None => FileDevice::open_read_only(&self.image),
            Some(_) => FileDevice::open_read_write(&self.image),
        };
        let port = match device {
            Ok(device) => Port::new(Rc::new(device)),
            Err(error) => return Ok(self.failed(&error.to_string())),
        };
        let repair = match self.repair {
            None => Repair::None,
            Some(What::Leaks) => Repair::Leaks,
            Some(What::All) => Repair::All,
        };
        let once = |repair| {
            drive(check(&port, repair, &CheckOptions::default()))
                .expect("a file completes every request at once")
        };
        let mut report = match once(repair) {
            Ok(report) => report,
            Err(error @ Error::Unsupported(_)) => {
                self.failed(&error.to_string());
                return Ok(Ending::Check(63));
            }
            Err(error) => return Ok(self.failed(&error.to_string())),
        };
        tell_findings(&report, repair);
        if report.fixed != Tally::default() {
            println!("The following inconsistencies were found and repaired:\n");
            println!("    {} leaked clusters", report.fixed.leaks);
            println!("    {} corruptions\n", report.fixed.corruptions);
            println!("Double checking the fixed image now...");
            report = match once(Repair::None) {
                Ok(report) => report,
                Err(error) => return Ok(self.failed(&error.to_string())),
            };
            tell_findings(&report, Repair::None);
        }
        tell_remaining(&report);
        tell_totals(&report.totals);
        Ok(Ending::Check(exit_code(&report)))
    }

    fn failed(&self, text: &str) -> Ending {
        eprintln!("qrash check: {}: {text}", self.image.display());
        Ending::Check(1)
    }
}

fn tell_findings(report: &CheckReport, repair: Repair) {
    for finding in &report.findings {
        match (&finding.kind, finding.kind.severity()) {
            (Kind::Leak { found, expected }, _) => {
                let verb = if repair == Repair::None {
                    "Leaked"
                } else {
                    "Repairing"
                };
                println!(
                    "{verb} cluster {} refcount={found} reference={expected}",
                    finding.index
                );
            }
            (Kind::TooLow { found, expected }, _) => {
                let verb = if repair == Repair::All {
                    "Repairing"
                } else {
                    "ERROR"
                };
                println!(
                    "{verb} cluster {} refcount={found} reference={expected}",
                    finding.index
                );
            }
            (_, Severity::Corruption | Severity::CheckError | Severity::Leak) => {
                println!("ERROR {finding}");
            }
        }
    }
    let told = u64::try_from(report.findings.len()).expect("findings are few");
    let all = report.found.corruptions + report.found.leaks + report.check_errors;
    if all > told {
        println!("... and {} more", all - told);
    }
}

fn tell_remaining(report: &CheckReport) {
    let Tally { corruptions, leaks } = report.remaining;
    if report.is_clean() {
        println!("No errors were found on the image.");
    }
    if corruptions > 0 {
        println!(
            "\n{corruptions} errors were found on the image.\nData may be corrupted, or further \
             writes to the image may corrupt it."
        );
    }
    if leaks > 0 {
        println!(
            "\n{leaks} leaked clusters were found on the image.\nThis means waste of disk space, but \
             no harm to data."
        );
    }
    if report.check_errors > 0 {
        println!(
            "\n{} internal errors have occurred during the check.",
            report.check_errors
        );
    }
}

fn tell_totals(totals: &Totals) {
    let Totals {
        total_clusters,
        allocated_clusters,
        ..
    } = *totals;
    if total_clusters != 0 && allocated_clusters != 0 {
        println!(
            "{allocated_clusters}/{total_clusters} = {}% allocated, {}% fragmented, {}% compressed clusters",
            percent(allocated_clusters, total_clusters),
            percent(totals.fragmented_clusters, allocated_clusters),
            percent(totals.compressed_clusters, allocated_clusters),
        );
    }
    if totals.image_end_offset > 0 {
        println!("Image end offset: {}", totals.image_end_offset);
    }
}

/// Hundredths of a percent, as text.
fn percent(part: u64, whole: u64) -> String {
    let hundredths = (u128::from(part) * 10_000 + u128::from(whole) / 2) / u128::from(whole);
    format!("{}.{:02}", hundredths / 100, hundredths % 100)
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
