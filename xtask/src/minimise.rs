//! `minimise`: a smaller trace that fails in the same way.

use std::path::PathBuf;

use clap::Args;
use harness::reduce::reduce_trace;

use crate::{Ending, Refusal, source, violation};

/// Make a failing trace smaller while it fails in the same way.
#[derive(Args, Debug)]
#[command(after_help = crate::EXIT_CODES)]
pub(crate) struct Minimise {
    /// The trace; it stays as it is
    trace: PathBuf,
    /// Where the smaller trace goes
    #[arg(long, value_name = "DIR", default_value = "reports")]
    out: PathBuf,
}

impl Minimise {
    pub(crate) fn run(&self) -> Result<Ending, Refusal> {
        let trace = source::load_trace(&self.trace)?;
        source::writable_directory(&self.out)?;
        let reduced = reduce_trace(&trace)
            .map_err(|error| Refusal(format!("{}: {error}", self.trace.display())))?;
        let path = violation::save(&reduced, &reduced.class.to_string(), "minimised", &self.out)?;
        violation::tell(&reduced, &path);
        Ok(Ending::Violation)
    }
}
