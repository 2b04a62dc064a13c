//! `cargo xtask setup`: finds a toolchain that can compile eBPF, or installs it.
//!
//! There are two toolchains, and each is tested before it is used:
//!
//! * Debian's own rustc, which comes with a `core` compiled for `bpfel-unknown-none`.
//! * A rustup nightly with `rust-src`. It is only detected: this way follows aya's documentation,
//!   and we have not run it.

use std::{
    env,
    ffi::OsString,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{cargo, cmd, repo};

/// rustc, bpf-linker and LLVM must have the same major version of LLVM: change these together.
const LLVM: &str = "/usr/lib/llvm-22";
const BPF_LINKER: &str = "0.13.0";
const BPF_LINKER_FEATURES: &str = "llvm-22";
const EBPF_PACKAGES: [&str; 5] =
    ["rustc-web", "cargo-web", "rust-web-src", "libstd-rust-web-dev-bpf", "llvm-22-dev"];
/// For linking static programs for this machine.
const HOST_PACKAGES: [&str; 2] = ["gcc", "libc6-dev"];
const VM_PACKAGES: [&str; 12] = [
    "qemu-system-x86",
    "busybox-static",
    "kmod",
    "iproute2",
    "ipvsadm",
    "conntrack",
    "nftables",
    "iptables",
    "util-linux",
    "xz-utils",
    "zstd",
    "debian-archive-keyring",
];

pub const TARGET: &str = "bpfel-unknown-none";

#[derive(Args)]
pub struct Setup {
    /// Also install what the virtual machines need
    #[arg(long)]
    vm: bool,
}

impl Setup {
    pub fn run(&self) -> Result<ExitCode> {
        let toolchain = toolchain()?;
        if self.vm {
            vm_tools()?;
        }
        println!("{}", toolchain.describe());
        Ok(ExitCode::SUCCESS)
    }
}

/// A toolchain that compiles eBPF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Toolchain {
    Debian,
    Nightly,
}

impl Toolchain {
    fn describe(self) -> &'static str {
        match self {
            Self::Debian => "eBPF toolchain: Debian's rustc (precompiled core) and bpf-linker",
            Self::Nightly => "eBPF toolchain: rustup's nightly (rust-src) and bpf-linker",
        }
    }

    /// `cargo COMMAND` of this toolchain.
    pub fn cargo(self, command: &str) -> Command {
        let mut cargo = match self {
            Self::Debian => cargo::clean(Command::new("/usr/bin/cargo")),
            Self::Nightly => cargo::clean(Command::new("cargo")),
        };
        match self {
            Self::Debian => {
                cargo.env("RUSTC", "/usr/bin/rustc");
                // aya-ebpf uses unstable features, and Debian's rustc is a stable release.
                cargo.env("RUSTC_BOOTSTRAP", "1");
            }
            Self::Nightly => {
                cargo.arg("+nightly");
            }
        }
        cargo.arg(command).env("PATH", path_with_cargo_bin());
        cargo
    }

    /// `cargo COMMAND` of this toolchain for the eBPF target.
    pub fn cargo_ebpf(self, command: &str) -> Command {
        let mut cargo = self.cargo(command);
        if self == Self::Nightly {
            // Debian's rustc has a core for the target; a nightly builds it.
            cargo.arg("-Zbuild-std=core");
        }
        cargo.args(["--target", TARGET]);
        cargo
    }
}

/// The toolchain for eBPF; installs it first if it is missing, on Debian as root.
pub fn toolchain() -> Result<Toolchain> {
    packages(&HOST_PACKAGES)?;
    let Err(debian) = try_debian() else {
        return Ok(Toolchain::Debian);
    };
    let Err(nightly) = try_nightly() else {
        return Ok(Toolchain::Nightly);
    };
    eprintln!("no eBPF toolchain yet:");
    eprintln!("  Debian's packages: {debian:#}");
    eprintln!("  rustup's nightly: {nightly:#}");
    if !can_install() {
        bail!("{}", how_to_install());
    }
    packages(&EBPF_PACKAGES)?;
    if linker().is_err() {
        cmd::run_loudly(&mut install_linker(), "installing bpf-linker")?;
    }
    try_debian().context("installed Debian's eBPF toolchain, but it does not work")?;
    Ok(Toolchain::Debian)
}

/// Installs the packages that the virtual machines need, on Debian as root.
pub fn vm_tools() -> Result<()> {
    packages(&VM_PACKAGES)
}

/// Installs a package that is good to have, on Debian as root; `false` elsewhere.
pub fn install(package: &'static str) -> Result<bool> {
    if can_install() {
        packages(&[package])?;
    }
    Ok(can_install())
}

/// Compiles a minimal eBPF program: only that proves that the toolchain works.
fn try_debian() -> Result<()> {
    let rustc = Path::new("/usr/bin/rustc");
    if !rustc.exists() || !Path::new("/usr/bin/cargo").exists() {
        bail!("/usr/bin/rustc or /usr/bin/cargo is missing");
    }
    let libdir = cmd::output(
        Command::new(rustc).args(["--print", "target-libdir", "--target", TARGET]),
        "querying rustc for its libraries",
    )?;
    let core = fs::read_dir(libdir.trim()).into_iter().flatten().flatten();
    if !core.into_iter().any(|e| e.file_name().to_string_lossy().starts_with("libcore")) {
        bail!("/usr/bin/rustc has no core for {TARGET}");
    }
    linker()?;

    let dir = repo::target("setup");
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let mut child = Command::new(rustc)
        .args(["-", "--crate-type=bin", "--edition=2024", "-O", "-Clinker=bpf-linker"])
        .args(["--target", TARGET, "-o"])
        .arg(dir.join("probe"))
        .env("PATH", path_with_cargo_bin())
        .env_remove("RUSTFLAGS")
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start /usr/bin/rustc")?;
    let probe = "#![no_std]\n#![no_main]\n\
                 #[panic_handler] fn panic(_: &core::panic::PanicInfo<'_>) -> ! { loop {} }\n\
                 #[unsafe(no_mangle)] #[unsafe(link_section = \"socket\")] fn probe() -> i32 { 0 }\n";
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(probe.as_bytes()).context("cannot write to rustc")?;
    }
    let out = child.wait_with_output().context("cannot wait for rustc")?;
    if !out.status.success() {
        let stderr = String::from_utf8_lossy(&out.stderr);
        bail!("a trial program does not compile: {}", stderr.trim_end());
    }
    Ok(())
}

fn try_nightly() -> Result<()> {
    let mut rustc = cargo::clean(Command::new("rustc"));
    let sysroot = cmd::output(
        rustc.args(["+nightly", "--print", "sysroot"]),
        "looking for rustup's nightly",
    )?;
    let core = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core");
    if !core.exists() {
        bail!("the nightly has no rust-src component");
    }
    linker()
}

fn linker() -> Result<()> {
    let mut linker = Command::new("bpf-linker");
    linker.arg("--version").env("PATH", path_with_cargo_bin());
    cmd::output(&mut linker, "looking for bpf-linker")?;
    Ok(())
}

fn install_linker() -> Command {
    let mut cargo = cargo::host();
    cargo.args(["install", "--locked", "bpf-linker", "--version", BPF_LINKER]);
    cargo.args(["--no-default-features", "--features", BPF_LINKER_FEATURES]);
    let mut path = OsString::from(format!("{LLVM}/bin:"));
    path.push(env::var_os("PATH").unwrap_or_default());
    cargo.env("LLVM_PREFIX", LLVM).env("PATH", path);
    cargo
}

/// PATH with the folder in which any `cargo install` puts programs.
fn path_with_cargo_bin() -> OsString {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| env::home_dir().map(|h| h.join(".cargo")));
    let path = env::var_os("PATH").unwrap_or_default();
    let bin = home.map(|h| h.join("bin"));
    let dirs = bin.into_iter().chain(env::split_paths(&path));
    // Fails if a folder has a colon in its name, which never worked in PATH.
    env::join_paths(dirs).unwrap_or(path)
}

/// Installs the packages that are missing, or fails with the commands that install them.
fn packages(wanted: &[&str]) -> Result<()> {
    if !is_debian() {
        // Another system has other package names; a missing program is reported when it is needed.
        return Ok(());
    }
    let missing = missing(wanted)?;
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !is_root() {
        bail!(
            "packages are missing; run as root:\n  apt-get update\n  apt-get install -y --no-install-recommends {list}"
        );
    }
    cmd::run_loudly(Command::new("apt-get").arg("update"), "reading the package lists")?;
    let mut install = Command::new("apt-get");
    install.env("DEBIAN_FRONTEND", "noninteractive");
    install.args(["install", "-y", "--no-install-recommends"]).args(&missing);
    cmd::run_loudly(&mut install, "installing packages")
}

fn missing<'a>(wanted: &[&'a str]) -> Result<Vec<&'a str>> {
    let mut query = Command::new("dpkg-query");
    query.args(["-W", "-f", "${Package} ${db:Status-Status}\n"]).args(wanted);
    // dpkg-query fails if a package is unknown, but prints the status of the others.
    let out = query.output().context("cannot start dpkg-query, which lists installed packages")?;
    let text = String::from_utf8_lossy(&out.stdout);
    let installed = |name: &&&str| text.lines().any(|l| l == format!("{name} installed"));
    Ok(wanted.iter().filter(|name| !installed(name)).copied().collect())
}

fn can_install() -> bool {
    is_debian() && is_root()
}

fn is_debian() -> bool {
    // Derived distributions have this file too, but not all of the packages.
    fs::read_to_string("/etc/os-release").is_ok_and(|text| os_is_debian(&text))
}

fn os_is_debian(os_release: &str) -> bool {
    os_release.lines().any(|l| l == "ID=debian" || l == "ID=\"debian\"")
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    // The owner of our own /proc entry is the effective user.
    fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0)
}

fn how_to_install() -> String {
    format!(
        "eBPF cannot be compiled here. Either, on Debian as root:\n  \
         apt-get update\n  \
         apt-get install -y --no-install-recommends {packages}\n  \
         {linker}\n\
         or, with rustup, anywhere (LLVM of that nightly and of bpf-linker must agree):\n  \
         rustup toolchain install nightly --component rust-src\n  \
         cargo install bpf-linker",
        packages = EBPF_PACKAGES.join(" "),
        linker = cmd::show(&install_linker()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debian_is_distinguished_from_its_derivatives() {
        assert!(os_is_debian("NAME=\"Debian GNU/Linux\"\nID=debian\n"));
        assert!(!os_is_debian("ID=ubuntu\nID_LIKE=debian\n"));
    }
}
