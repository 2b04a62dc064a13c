//! `cargo xtask kube`: the real kube-proxy, and what rsttrace says of what it does to connections.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use serde_json::Value;

use crate::{
    build, cmd,
    kernels::{self, Kernel},
    record, repo, setup,
    vm::{self, Lab, Options},
};

/// The version whose behaviour the rows describe.
const VERSION: &str = "1.34.4";

#[derive(Args)]
pub struct Kube {
    /// Rows of the table in tests/src/kube/table.rs [default: all]
    rows: Vec<String>,

    /// Kernel series to run on; may be repeated
    #[arg(long = "kernel", value_name = "SERIES", default_values = ["6.1"])]
    kernels: Vec<String>,

    /// How kube-proxy programs the node; may be repeated [default: all three]
    #[arg(long = "mode", value_name = "MODE")]
    modes: Vec<Mode>,

    /// Write the captures of rows that pass to tests/data, as `cargo xtask record` does
    #[arg(long)]
    record: bool,

    #[command(flatten)]
    options: Options,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    Ipvs,
    Nftables,
    Iptables,
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Self::Ipvs => "ipvs",
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
        }
    }
}

impl Kube {
    pub fn run(&self) -> Result<ExitCode> {
        let series = vm::parse_series(&self.kernels)?;
        let mut programs = vec![("kube-proxy".to_owned(), kube_proxy()?), ipset()?];
        programs.extend(vm::guest_programs()?);
        let kernels = kernels::fetch(&series)?;
        let lab = Lab::new(&self.options, &kernels, programs)?;
        let modes = if self.modes.is_empty() { Mode::value_variants() } else { &self.modes };
        let (mut passed, mut failed, mut unseen) = (0, 0, 0);
        for kernel in &kernels {
            for &mode in modes {
                let (rows, complaint) = self.run_in(&lab, kernel, mode)?;
                for row in rows.values() {
                    match row.outcome.split_once(' ').map_or("", |(word, _)| word) {
                        "pass" => passed += 1,
                        "unseen" => unseen += 1,
                        _ => failed += 1,
                    }
                }
                if let Some(complaint) = complaint {
                    failed += 1;
                    println!("{} {} FAIL: {complaint}", kernel.wanted, mode.name());
                }
            }
        }
        if unseen > 0 {
            println!("{unseen} unseen: by chance, no connection failed");
        }
        println!("{passed} passed, {failed} failed");
        Ok(ExitCode::from(u8::from(failed > 0)))
    }

    /// The rows of one guest, and any failure that belongs to none of them.
    fn run_in(&self, lab: &Lab, kernel: &Kernel, mode: Mode) -> Result<(Rows, Option<String>)> {
        let mut command = format!("exec rsttrace-guest kube --mode {}", mode.name());
        if self.record {
            command += " --record";
        }
        for row in &self.rows {
            command = format!("{command} {}", cmd::quote(row));
        }
        let mut rows = Rows::new();
        // At once, so that a guest that is stopped has left what it printed.
        let mut kept = Ok(());
        let guest = lab.run(kernel, &command, &mut |line| {
            if !take(&mut rows, line) {
                eprintln!("{line}");
            } else if let Some(row) = line.strip_prefix("ROW ") {
                vm::print_line(&format!("{} {:9} {row}", kernel.wanted, mode.name()));
                let name = row.split(' ').next().unwrap_or_default();
                if let (Ok(()), Some(row)) = (&kept, rows.get(name)) {
                    kept = self.keep(kernel, mode, name, row);
                }
            }
        });
        kept?;
        let complaint = match guest {
            Err(error) => Some(format!("{error:#}")),
            Ok(guest) if guest.exit_code != 0 && !rows.values().any(Row::failed) => {
                Some(format!("rsttrace-guest ended with exit code {}", guest.exit_code))
            }
            Ok(guest) => guest.kernel_warnings.first().map(|it| format!("the kernel warned: {it}")),
        };
        Ok((rows, complaint))
    }

    /// What a failed row printed goes to target/kube, and a passed row's capture to tests/data if that is wanted.
    fn keep(&self, kernel: &Kernel, mode: Mode, name: &str, row: &Row) -> Result<()> {
        if row.failed() {
            let folder = repo::target("kube");
            fs::create_dir_all(&folder)
                .with_context(|| format!("cannot make {}", folder.display()))?;
            let stem = folder.join(format!("{}-{}-{name}", kernel.wanted, mode.name()));
            for (extension, text) in [("ndjson", &row.events), ("cap", &row.capture)] {
                let file = PathBuf::from(format!("{}.{extension}", stem.display()));
                fs::write(&file, text)
                    .with_context(|| format!("cannot write {}", file.display()))?;
            }
            eprintln!("{}.ndjson and .cap", stem.display());
        } else if self.record && !row.capture.is_empty() {
            let folder = repo::root().join("tests/data").join(kernel.wanted.to_string());
            let name = format!("kube_{}_{name}", mode.name());
            record::write(&folder, &name, &row.capture, &build::host()?)?;
        }
        Ok(())
    }
}

type Rows = BTreeMap<String, Row>;

#[derive(Debug, Default, PartialEq, Eq)]
struct Row {
    /// `pass|fail|unseen` and a text.
    outcome: String,
    events: String,
    capture: String,
}

impl Row {
    fn failed(&self) -> bool {
        !self.outcome.starts_with("pass ") && !self.outcome.starts_with("unseen ")
    }
}

/// Takes `ROW`, `EVENT` and `CAPTURE` lines; `false` for any other line.
fn take(rows: &mut Rows, line: &str) -> bool {
    let mut words = line.splitn(3, ' ');
    let (Some(word), Some(row), Some(text)) = (words.next(), words.next(), words.next()) else {
        return false;
    };
    if !["ROW", "EVENT", "CAPTURE"].contains(&word) {
        return false;
    }
    let row = rows.entry(row.to_owned()).or_default();
    let to = match word {
        "ROW" => {
            row.outcome = text.to_owned();
            return true;
        }
        "EVENT" => &mut row.events,
        _ => &mut row.capture,
    };
    to.push_str(text);
    to.push('\n');
    true
}

/// kube-proxy's IPVS mode runs it.
fn ipset() -> Result<(String, PathBuf)> {
    if cmd::find("ipset").is_none() {
        setup::install("ipset")?;
    }
    let file = cmd::find("ipset").context("`ipset` is missing (kube-proxy needs it)")?;
    Ok(("ipset".to_owned(), file))
}

/// The real kube-proxy, built once from its published modules: some ten minutes and 4 GB of Go's caches.
fn kube_proxy() -> Result<PathBuf> {
    let _lock = repo::lock("kube-proxy")?;
    let folder = repo::target("kube-proxy").join(VERSION);
    let file = folder.join("kube-proxy");
    if file.exists() {
        return Ok(file);
    }
    let go = find_go()?;
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let module = format!("k8s.io/kubernetes@v{VERSION}");
    write(
        &folder.join("go.mod"),
        &format!("module rsttrace/kube\n\ngo 1.24\n\nrequire k8s.io/kubernetes v{VERSION}\n"),
    )?;
    eprintln!("building kube-proxy {VERSION} (once)");
    let mut download = go_command(&go, &folder);
    download.args(["mod", "download", "-json", &module]);
    let downloaded = cmd::output(&mut download, "downloading Kubernetes")?;
    let downloaded: Value =
        serde_json::from_str(&downloaded).context("`go mod download -json` printed no JSON")?;
    let go_mod = downloaded["GoMod"].as_str().context("`go mod download` names no GoMod")?;
    let go_mod = fs::read_to_string(go_mod).with_context(|| format!("cannot read {go_mod}"))?;
    let mut edit = go_command(&go, &folder);
    edit.args(["mod", "edit"]);
    edit.args(replacements(&go_mod, VERSION).iter().map(|it| format!("-replace={it}")));
    cmd::run(&mut edit, "naming Kubernetes' own modules")?;
    let flags = ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"]
        .map(|package| format!("-X {package}.gitVersion=v{VERSION}"))
        .join(" ");
    let partial = folder.join("partial");
    let mut build = go_command(&go, &folder);
    build.args(["build", "-trimpath", "-ldflags", &format!("-s -w {flags}"), "-o"]);
    build.arg(&partial).arg("k8s.io/kubernetes/cmd/kube-proxy");
    cmd::run(&mut build, "building kube-proxy")?;
    fs::rename(&partial, &file).with_context(|| format!("cannot make {}", file.display()))?;
    Ok(file)
}

fn find_go() -> Result<PathBuf> {
    let installed = Path::new("/usr/local/go/bin/go");
    if let Some(go) = cmd::find("go").or_else(|| installed.exists().then(|| installed.to_owned())) {
        return Ok(go);
    }
    bail!(
        "there is no `go`, which builds kube-proxy: install Go 1.24 or later, by Debian's package golang-go of that \
         version, or as https://go.dev/doc/install describes"
    )
}

fn go_command(go: &Path, folder: &Path) -> Command {
    let mut command = Command::new(go);
    command.current_dir(folder);
    command.envs([("GOFLAGS", "-mod=mod"), ("CGO_ENABLED", "0"), ("GOTOOLCHAIN", "local")]);
    command
}

/// Kubernetes replaces its own modules by folders of its repository; they are also published, as v0.x.
fn replacements(go_mod: &str, version: &str) -> Vec<String> {
    let minor = version.strip_prefix("1.").unwrap_or(version);
    let own = go_mod.lines().filter_map(|line| {
        let (module, to) = line.trim().split_once(" => ")?;
        to.starts_with("./staging").then_some(module)
    });
    own.map(|module| format!("{module}={module}@v0.{minor}")).collect()
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_modules_in_the_repository_are_replaced_by_published_ones() {
        let go_mod = "require (\n\tk8s.io/api v0.0.0\n)\nreplace (\n\tk8s.io/api => ./staging/src/k8s.io/api\n\
                      \tgithub.com/a/b => github.com/c/d v1.0.0\n)\n";
        assert_eq!(replacements(go_mod, "1.34.4"), ["k8s.io/api=k8s.io/api@v0.34.4"]);
    }

    #[test]
    fn a_row_that_neither_passed_nor_was_unseen_has_failed() {
        let mut rows = Rows::new();
        for line in ["EVENT a {\"x\": 1}", "ROW a fail wrong", "ROW b pass lives: nothing"] {
            assert!(take(&mut rows, line), "{line}");
        }
        assert!(!take(&mut rows, "rsttrace: ready with signals"));
        assert!(rows["a"].failed() && !rows["b"].failed());
        assert_eq!(rows["a"].events, "{\"x\": 1}\n");
        assert!(Row::default().failed());
    }
}
