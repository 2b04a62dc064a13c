//! `cargo xtask live`: builds rsttrace and traces this machine.

use std::{
    ffi::OsString,
    os::unix::process::CommandExt as _,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result};
use clap::Args;

use crate::build;

#[derive(Args)]
pub struct Live {
    /// Passed on to `rsttrace live`, options too
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

impl Live {
    pub fn run(&self) -> Result<ExitCode> {
        let rsttrace = build::host()?;
        // `exec` replaces this process, so rsttrace gets the terminal's signals and its exit code is ours.
        let error = Command::new(&rsttrace).arg("live").args(&self.args).exec();
        Err(error).with_context(|| format!("cannot start {}", rsttrace.display()))
    }
}
