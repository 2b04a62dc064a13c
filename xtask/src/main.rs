//! Builds, tests and runs rsttrace: `cargo xtask --help`.
//!
//! One verb is one file. The virtual machines: `kernels` fetches a kernel (through `apt`),
//! `modules` and `initramfs` (through `cpio`) make its file system, `qemu` boots it,
//! `vm` puts these together.

mod apt;
mod bench;
mod build;
mod cargo;
mod check;
mod cmd;
mod coverage;
mod cpio;
mod demo;
mod dist;
mod healing;
mod initramfs;
mod kernels;
mod live;
mod modules;
mod qemu;
mod record;
mod repo;
mod results;
mod setup;
mod table;
mod test;
mod version;
mod vm;

use std::{fmt, process::ExitCode};

use clap::{Parser, Subcommand};

/// Builds, tests and runs rsttrace
///
/// Every verb builds and installs what it needs first. Results go to stdout, progress to stderr.
/// Exit codes: 0 fine, 1 failed, 2 usage; `vm` passes on the exit code of its command.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Find a toolchain that compiles eBPF, or install it
    ///
    /// Either Debian's own rustc with bpf-linker, or a rustup nightly with rust-src and bpf-linker.
    /// On Debian as root, what is missing is installed, and every command printed before it runs;
    /// elsewhere the commands are printed, and the exit code is 1.
    Setup(setup::Setup),

    /// Build the eBPF object (target/ebpf/tracer) and rsttrace (target/release/rsttrace)
    Build(build::Build),

    /// Build, then run `rsttrace live` on this machine
    ///
    /// Example: cargo xtask live -o json --all
    Live(live::Live),

    /// Run cargo's tests, then every scenario on every kernel in virtual machines
    ///
    /// Ends with a table of scenarios and kernels, and the line `N passed, N failed`.
    /// A guest that does not boot, or does not finish what it planned, is a failure.
    Test(test::Test),

    /// Run a command, or a shell, on Debian's kernels in virtual machines
    ///
    /// Examples:{n}
    ///   cargo xtask vm 6.12{n}
    ///   cargo xtask vm 5.10 6.1 7.2 -- 'rsttrace live -v --duration 2s'{n}
    ///   cargo xtask vm 6.1 -- 'modprobe ip_vs && ipvsadm -Ln'
    Vm(vm::Vm),

    /// Show rsttrace at work, in a virtual machine on this terminal
    Demo(demo::Demo),

    /// Record scenarios in virtual machines as the golden captures that `cargo test` replays
    ///
    /// Writes tests/data/KERNEL/SCENARIO.cap and, replayed from it, SCENARIO.ndjson. Read the
    /// difference before committing it: from then on it is what the verdict must be.
    Record(record::Record),

    /// Measure in virtual machines what tracing costs
    ///
    /// The start, the memory, and a connection over the loopback device that ends with a reset, or in
    /// order, with rsttrace and without. Guests are emulated where KVM is missing: compare such numbers
    /// with each other, not with those of another machine.
    Bench(bench::Bench),

    /// Build the static binary target/dist/rsttrace
    Dist(dist::Dist),

    /// Check formatting, lints, and which layer uses what
    Check(check::Check),
}

/// The user asked for something that cannot be: exit code 2.
#[derive(Debug)]
struct Usage(String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

fn main() -> ExitCode {
    let result = match Cli::parse().verb {
        Verb::Setup(setup) => setup.run(),
        Verb::Build(build) => build.run(),
        Verb::Live(live) => live.run(),
        Verb::Test(test) => test.run(),
        Verb::Vm(vm) => vm.run(),
        Verb::Demo(demo) => demo.run(),
        Verb::Record(record) => record.run(),
        Verb::Bench(bench) => bench.run(),
        Verb::Dist(dist) => dist.run(),
        Verb::Check(check) => check.run(),
    };
    result.unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::from(if error.is::<Usage>() { 2 } else { 1 })
    })
}
