//! `cargo xtask check`: formatting, lints, and the rules on which layer may use what.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use clap::Args;

use crate::{
    build, cargo, cmd, repo,
    setup::{self, Toolchain},
};

/// What some files below tracer-userspace/src may not name.
struct Rule {
    /// Takes the path below that folder.
    applies: fn(&str) -> bool,
    forbidden: &'static [&'static str],
    because: &'static str,
}

const RULES: [Rule; 2] = [
    Rule {
        applies: |file| !["kernel/attach.rs", "kernel/live.rs"].contains(&file),
        forbidden: &["aya"],
        because: "only kernel/attach.rs and kernel/live.rs may name aya: \
                  everything else must work from a capture file, without a kernel",
    },
    Rule {
        applies: is_core,
        forbidden: &[
            "tokio",
            "std::fs",
            "std::process",
            "std::env",
            "std::thread",
            "TcpStream",
            "UdpSocket",
            "Instant",
            "SystemTime",
        ],
        because: "the core is pure (events in, incidents out), so that replaying a capture \
                  gives the same verdicts on any machine",
    },
];

/// The files that decide: no clock, no input, no output.
fn is_core(file: &str) -> bool {
    let files = [
        "case.rs",
        "decode.rs",
        "memory.rs",
        "event.rs",
        "evidence.rs",
        "correlator.rs",
        "countdown.rs",
        "incident.rs",
        "fix.rs",
    ];
    let folders = ["capacity/", "cause/", "correlator/", "decode/", "evidence/", "report/", "fix/"];
    files.contains(&file) || folders.iter().any(|folder| file.starts_with(folder))
}

#[derive(Args)]
pub struct Check {}

impl Check {
    /// Does all checks before it fails, so that one run tells everything.
    pub fn run(&self) -> Result<ExitCode> {
        let mut ok = true;
        for (name, check) in [
            ("layers", layers as fn() -> Result<()>),
            ("formatting", formatting),
            ("lints of the host crates", host_lints),
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

fn formatting() -> Result<()> {
    let mut cargo = cargo::host();
    cargo.current_dir(repo::root()).args(["fmt", "--all", "--check"]);
    cmd::run(&mut cargo, "the formatting is not rustfmt's (`cargo fmt --all` changes it)")
}

fn host_lints() -> Result<()> {
    let mut cargo = build::host_cargo("clippy", &build::object()?);
    cargo.args(["--quiet", "--all-targets", "--", "-D", "warnings"]);
    cmd::run(&mut cargo, "clippy objects")
}

/// Clippy belongs to one rustc, and rustup's would not find the core that Debian's rustc has:
/// there, a build that allows no warnings has to do.
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

/// A use of something that the layer of its file must not use.
#[derive(Debug, PartialEq, Eq)]
struct Breach {
    file: PathBuf,
    line: usize,
    word: &'static str,
    because: &'static str,
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, word, because } = self;
        write!(f, "{}:{line}: `{word}`: {because}", file.display())
    }
}

fn layers() -> Result<()> {
    let src = repo::root().join("tracer-userspace/src");
    let mut breaches = Vec::new();
    for file in rust_files(&src)? {
        let text =
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let below = file.strip_prefix(&src).unwrap_or(&file);
        let shown = Path::new("tracer-userspace/src").join(below);
        breaches.extend(breaches_in(&below.to_string_lossy(), &shown, &text));
    }
    if breaches.is_empty() {
        return Ok(());
    }
    let lines: Vec<_> = breaches.iter().map(Breach::to_string).collect();
    anyhow::bail!("{}", lines.join("\n"))
}

fn rust_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(rust_files(&path)?);
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn breaches_in(below: &str, shown: &Path, text: &str) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for rule in RULES.iter().filter(|rule| (rule.applies)(below)) {
        for (index, line) in text.lines().enumerate() {
            let code = code_of(line);
            let words = rule.forbidden.iter().copied();
            breaches.extend(words.filter(|word| names(&code, word)).map(|word| Breach {
                file: shown.to_owned(),
                line: index + 1,
                word,
                because: rule.because,
            }));
        }
    }
    breaches
}

/// The line without its comment and without the texts in it, which may name anything.
fn code_of(line: &str) -> String {
    let line = line.split("//").next().unwrap_or(line);
    line.split('"').step_by(2).collect::<Vec<_>>().join("\"\"")
}

/// Whether `code` has `word` as a name of its own, also as a part of `use std::{…}`.
fn names(code: &str, word: &str) -> bool {
    if let Some(module) = word.strip_prefix("std::")
        && code.trim_start().starts_with("use std::{")
    {
        return names(code, module);
    }
    let part = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word)
        .any(|(at, _)| !code[..at].ends_with(part) && !code[at + word.len()..].starts_with(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(below: &str, text: &str) -> Vec<&'static str> {
        let breaches = breaches_in(below, Path::new(below), text);
        breaches.into_iter().map(|b| b.word).collect()
    }

    #[test]
    fn only_the_kernel_layer_names_aya() {
        assert_eq!(words("kernel/attach.rs", "use aya::Ebpf;"), [""; 0]);
        assert_eq!(words("kernel/plan.rs", "use aya::Ebpf;"), ["aya"]);
        assert_eq!(words("main.rs", "// not aya\nlet ayah = \"aya\";"), [""; 0]);
    }

    #[test]
    fn the_core_is_pure() {
        assert_eq!(words("cause/mod.rs", "let x = std::fs::read(y);"), ["std::fs"]);
        assert_eq!(words("cause/mod.rs", "use std::{fmt, fs};"), ["std::fs"]);
        assert_eq!(words("event.rs", "let t = Instant::now();"), ["Instant"]);
        assert_eq!(words("event.rs", "use std::net::IpAddr;"), [""; 0]);
        assert_eq!(words("main.rs", "use std::{env, fs};"), [""; 0]);
    }

    #[test]
    fn tells_where_and_why() {
        let breach = &breaches_in("fix.rs", Path::new("src/fix.rs"), "\n\nuse tokio::io;")[0];
        let text = breach.to_string();
        assert!(text.starts_with("src/fix.rs:3: `tokio`: the core is pure"), "{text}");
    }
}
