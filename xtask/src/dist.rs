//! `cargo xtask dist`: the static binary that is handed out, which is also what guests run.

use std::{fs, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::Args;

use crate::{build, repo};

#[derive(Args)]
pub struct Dist {}

impl Dist {
    pub fn run(&self) -> Result<ExitCode> {
        let dir = repo::target("dist");
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        for (name, built) in build::host_static(&[build::RSTTRACE])? {
            let file = dir.join(name);
            // Replaced as a whole: one that is running cannot be written to.
            let new = file.with_extension("new");
            fs::copy(&built, &new)
                .and_then(|_| fs::rename(&new, &file))
                .with_context(|| format!("cannot write {}", file.display()))?;
            println!("{}", file.display());
        }
        Ok(ExitCode::SUCCESS)
    }
}
