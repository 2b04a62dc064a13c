//! `cargo xtask demo`: a demo of rsttrace in a virtual machine, on this terminal.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Args;

use crate::{
    kernels,
    vm::{self, Lab, Options},
};

#[derive(Args)]
pub struct Demo {
    /// Kernel series to run on
    #[arg(long, value_name = "SERIES", default_value = "6.12")]
    kernel: String,

    #[command(flatten)]
    options: Options,
}

impl Demo {
    pub fn run(&self) -> Result<ExitCode> {
        let series = vm::parse_series(std::slice::from_ref(&self.kernel))?;
        let programs = vm::guest_programs()?;
        let kernels = kernels::fetch(&series)?;
        let lab = Lab::new(&self.options, &kernels, programs)?;
        let kernel = kernels.first().context("no kernel to run")?;
        let result = lab.attach(kernel, "exec rsttrace-guest demo")?;
        Ok(ExitCode::from(result.exit_code))
    }
}
