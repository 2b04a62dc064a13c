//! `cargo xtask build`: the eBPF object, then the programs that contain it.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result};
use clap::Args;

use crate::{cargo, cmd, repo, setup};

/// The variable by which the build script of tracer-userspace gets the path of the object.
const OBJECT_VAR: &str = "RSTTRACE_EBPF_OBJECT";
/// Static programs need an explicit target: without one, proc macros would be linked statically too.
const HOST: &str = "x86_64-unknown-linux-gnu";

/// A program of this workspace.
#[derive(Clone, Copy)]
pub struct Program {
    package: &'static str,
    name: &'static str,
}

pub const RSTTRACE: Program = Program { package: "tracer-userspace", name: "rsttrace" };
pub const GUEST: Program = Program { package: "rsttrace-tests", name: "rsttrace-guest" };

#[derive(Args)]
pub struct Build {}

impl Build {
    pub fn run(&self) -> Result<ExitCode> {
        println!("{}", host()?.display());
        Ok(ExitCode::SUCCESS)
    }
}

/// Builds the eBPF object and returns its path.
pub fn object() -> Result<PathBuf> {
    let toolchain = setup::toolchain()?;
    eprintln!("building the eBPF object");
    let target = repo::target("ebpf");
    let mut cargo = toolchain.cargo_ebpf("build");
    cargo.current_dir(repo::root());
    cargo.args(["--quiet", "--locked", "--release", "--package", "tracer-ebpf", "--bin", "tracer"]);
    cargo.arg("--target-dir").arg(&target);
    // The kernel needs BTF, which bpf-linker generates from the debug information.
    cargo.env("RUSTFLAGS", "-C debuginfo=2 -C link-arg=--btf");
    cmd::run(&mut cargo, "building the eBPF object")?;

    let built = target.join(setup::TARGET).join("release/tracer");
    let object = target.join("tracer");
    copy_if_changed(&built, &object)?;
    Ok(object)
}

/// Does not write an equal file, so that its dependents are not rebuilt.
fn copy_if_changed(from: &Path, to: &Path) -> Result<()> {
    let new = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    if fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    fs::write(to, new).with_context(|| format!("cannot write {}", to.display()))
}

/// A cargo command for the host's crates, with the path of the object set.
pub fn host_cargo(command: &str, object: &Path) -> Command {
    let mut cargo = cargo::host();
    cargo.current_dir(repo::root());
    cargo.args([command, "--locked"]).env(OBJECT_VAR, object);
    if let Some(dir) = env::var_os("CARGO_TARGET_DIR") {
        cargo.env("CARGO_TARGET_DIR", dir);
    }
    cargo
}

/// Builds `rsttrace` for this machine and returns its path.
pub fn host() -> Result<PathBuf> {
    let mut cargo = host_cargo("build", &object()?);
    eprintln!("building rsttrace");
    cargo.args(["--release", "--package", RSTTRACE.package, "--bin", RSTTRACE.name]);
    cargo.env_remove("CARGO_TARGET_DIR");
    cargo.arg("--target-dir").arg(repo::target(""));
    cmd::run(&mut cargo, "building rsttrace")?;
    Ok(repo::target("release").join(RSTTRACE.name))
}

/// Builds programs that run on any Linux of this architecture; returns their names and paths.
pub fn host_static(programs: &[Program]) -> Result<Vec<(String, PathBuf)>> {
    // A separate folder: switching between these flags and those of `cargo build` would rebuild everything.
    let target = repo::target("static");
    let object = object()?;
    let mut built = Vec::new();
    for Program { package, name } in programs {
        // One at a time: together, each would get the features that the others enable in a
        // dependency, and rsttrace would differ from the binary of `dist`.
        let mut cargo = host_cargo("build", &object);
        eprintln!("building {name}, static");
        cargo.args(["--quiet", "--release", "--package", package, "--bin", name]);
        cargo.args(["--target", HOST]).arg("--target-dir").arg(&target);
        cargo.env("RUSTFLAGS", "-C target-feature=+crt-static");
        cmd::run(&mut cargo, &format!("building {name}"))?;
        let file = target.join(HOST).join("release").join(name);
        built.push(((*name).to_owned(), file));
    }
    Ok(built)
}
