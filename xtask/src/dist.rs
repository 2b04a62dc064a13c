//! `cargo xtask dist`: the static binary for distribution, which guests run too.

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
            // Replaced by rename: the kernel refuses to write to a running program.
            let new = file.with_extension("new");
            fs::copy(&built, &new)
                .and_then(|_| fs::rename(&new, &file))
                .with_context(|| format!("cannot write {}", file.display()))?;
            println!("{}", file.display());
        }
        Ok(ExitCode::SUCCESS)
    }
}
