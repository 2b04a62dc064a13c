//! `cargo xtask check`: formatting, lints, wording, and the rules on which crate and module may use what.

mod circles;
mod licences;
mod words;

use std::{
    fs,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result};
use clap::Args;

use crate::{
    build, cargo, cmd, repo,
    setup::{self, Toolchain},
};

/// Crates that only decide, without clock, input and output. Their `clippy.toml` forbids those of `std`;
/// crates that provide them must not be dependencies.
const PURE: [&str; 7] = ["model", "core", "schema", "check", "plan", "watch", "report"];

/// Crates that give access to the machine, which a pure crate must not depend on.
const IMPURE: [&str; 6] = ["aya", "aya-log", "libc", "rustix", "tokio", "rsttrace-host"];

/// Modules that list all modules of a kind, and are used by them.
const REGISTRIES: [&str; 1] = ["causes"];

#[derive(Args)]
pub struct Check {}

impl Check {
    /// Runs all checks before it fails, so that one run reports every problem.
    pub fn run(&self) -> Result<ExitCode> {
        let mut ok = true;
        for (name, check) in [
            ("dependencies", dependencies as fn() -> Result<()>),
            ("circles between modules of core", module_circles),
            ("words", words::check),
            ("licences and duplicates of dependencies", licences::check),
            ("spelling", spelling),
            ("formatting", formatting),
            ("lints of the host crates", host_lints),
            ("documentation", documentation),
            ("lints of the eBPF crate", ebpf_lints),
        ] {
            eprintln!("checking {name}");
            if let Err(error) = check() {
                eprintln!("{error:#}");
                ok = false;
            }
        }
        Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// `codespell` knows common misspellings; without it, nothing is checked, and that is printed.
fn spelling() -> Result<()> {
    if cmd::find("codespell").is_none() && !setup::install("codespell")? {
        eprintln!("skipped: codespell is not installed (Debian package codespell)");
        return Ok(());
    }
    let mut codespell = Command::new("codespell");
    codespell.current_dir(repo::root());
    codespell.args(["--skip", "./target,./tests/data,./Cargo.lock,./.git"]);
    // Names of variables and of the kernel that look like misspelt words.
    codespell.args(["--ignore-words-list", "aks,atleast,crate,fo,inforce,lo,ser,te"]);
    cmd::run(&mut codespell, "codespell found misspelt words")
}

/// Links in comments lead somewhere: contributors read the documentation of private items too.
fn documentation() -> Result<()> {
    let mut cargo = build::host_cargo("doc", &build::object()?);
    cargo
        .args(["--quiet", "--no-deps", "--document-private-items"])
        .env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private-intra-doc-links");
    cmd::run(&mut cargo, "the documentation has broken links")
}

fn formatting() -> Result<()> {
    let mut cargo = cargo::host();
    cargo.current_dir(repo::root()).args(["fmt", "--all", "--check"]);
    cmd::run(&mut cargo, "the code is not formatted (run `cargo fmt --all`)")
}

fn host_lints() -> Result<()> {
    let mut cargo = build::host_cargo("clippy", &build::object()?);
    cargo.args(["--quiet", "--all-targets", "--", "-D", "warnings"]);
    cmd::run(&mut cargo, "clippy reports problems")
}

/// Clippy works with one rustc only, and rustup's clippy does not find the core of Debian's rustc.
/// With Debian's toolchain, this is a build that denies warnings instead.
fn ebpf_lints() -> Result<()> {
    let toolchain = setup::toolchain()?;
    let mut cargo = toolchain.cargo_ebpf(match toolchain {
        Toolchain::Debian => "check",
        Toolchain::Nightly => "clippy",
    });
    cargo.current_dir(repo::root());
    cargo.args(["--quiet", "--locked", "--release", "--package", "tracer-ebpf"]);
    cargo.arg("--target-dir").arg(repo::target("ebpf/check"));
    cargo.env("RUSTFLAGS", "-D warnings");
    cmd::run(&mut cargo, "the eBPF crate has warnings or does not compile")
}

/// Checks the dependencies in the manifests.
fn dependencies() -> Result<()> {
    let mut complaints = Vec::new();
    let mut aya = Vec::new();
    for name in crates()? {
        let needs = normal_dependencies(&name)?;
        if PURE.contains(&name.as_str()) {
            let found = needs.iter().filter(|it| IMPURE.contains(&it.as_str()));
            complaints.extend(found.map(|it| format!("{name} must be pure, but depends on {it}")));
        }
        if needs.iter().any(|it| it == "aya") {
            aya.push(name);
        }
    }
    if aya != ["kernel"] {
        complaints.push(format!("only `kernel` may depend on aya; these do: {}", aya.join(", ")));
    }
    anyhow::ensure!(complaints.is_empty(), "{}", complaints.join("\n"));
    Ok(())
}

/// The crates inside tracer-userspace.
fn crates() -> Result<Vec<String>> {
    let folder = repo::root().join("tracer-userspace");
    let entries =
        fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.join("Cargo.toml").is_file() {
            names.extend(path.file_name().map(|name| name.to_string_lossy().into_owned()));
        }
    }
    names.sort();
    Ok(names)
}

/// The `[dependencies]` of a crate.
fn normal_dependencies(name: &str) -> Result<Vec<String>> {
    let manifest = repo::root().join("tracer-userspace").join(name).join("Cargo.toml");
    let text = fs::read_to_string(&manifest)
        .with_context(|| format!("cannot read {}", manifest.display()))?;
    Ok(section(&text, "[dependencies]"))
}

/// The keys of a section of a manifest.
fn section(manifest: &str, name: &str) -> Vec<String> {
    let lines = manifest.lines().skip_while(|line| *line != name).skip(1);
    let lines = lines.take_while(|line| !line.starts_with('['));
    let key = |line: &str| Some(line.split(['.', ' ', '=']).next()?.to_owned());
    lines.filter(|line| !line.trim().is_empty()).filter_map(key).collect()
}

fn module_circles() -> Result<()> {
    let src = repo::root().join("tracer-userspace/core/src");
    let circles = circles::find(&src, &REGISTRIES)?;
    anyhow::ensure!(
        circles.is_empty(),
        "modules of core depend on each other:\n{}",
        circles.join("\n")
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dependency_is_found_in_every_notation() {
        let manifest = "[dependencies]\naya.workspace = true\nlibc = \"0.2\"\n\n[lints]\nx = 1\n";
        assert_eq!(section(manifest, "[dependencies]"), ["aya", "libc"]);
    }
}
