//! `ci`: what continuous integration does, here.

use std::path::Path;
use std::process::Command;

use clap::Args;

use crate::{Ending, Refusal};

/// Run everything that a change must pass: the script `.ci/run`.
#[derive(Args, Debug)]
#[command(after_help = crate::EXIT_CODES)]
pub(crate) struct Ci {}

impl Ci {
    #[expect(clippy::unused_self, reason = "every command has the same shape")]
    pub(crate) fn run(&self) -> Result<Ending, Refusal> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let status = Command::new("bash")
            .arg(".ci/run")
            .current_dir(&root)
            .status()
            .map_err(|error| Refusal(format!("bash .ci/run: {error}")))?;
        Ok(if status.success() {
            Ending::Clean
        } else {
            Ending::Violation
        })
    }
}
