//! Builds, tests and runs rsttrace: `cargo xtask --help`.
//!
//! Each verb is one file. For the virtual machines, `kernels` fetches a kernel (through `apt`),
//! `modules` and `initramfs` (through `cpio`) make its file system, `qemu` boots it, and `vm`
//! combines them.

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
mod fix_tests;
mod initramfs;
mod kernels;
mod kube;
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
/// Every verb first builds and installs what it needs. Results go to stdout, progress to stderr.
/// Exit codes: 0 success, 1 failure, 2 usage error; `vm` exits with the exit code of its command.
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
    /// On Debian as root, missing packages are installed, and every command is printed before it runs.
    /// On any other system, and without root, the commands are only printed, and the exit code is 1.
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
    /// A guest that does not boot, or does not finish its plan, counts as a failure.
    Test(test::Test),

    /// Run a command, or a shell, on Debian's kernels in virtual machines
    ///
    /// Examples:{n}
    ///   cargo xtask vm 6.12{n}
    ///   cargo xtask vm 5.10 6.1 7.2 -- 'rsttrace live -v --duration 2s'{n}
    ///   cargo xtask vm 6.1 -- 'modprobe ip_vs && ipvsadm -Ln'
    Vm(vm::Vm),

    /// Run the demo of rsttrace in a virtual machine, on this terminal
    Demo(demo::Demo),

    /// Record scenarios in virtual machines as the golden captures that `cargo test` replays
    ///
    /// Writes tests/data/KERNEL/SCENARIO.cap and its replay, SCENARIO.ndjson. Review the diff before
    /// you commit it: from then on, `cargo test` expects exactly these verdicts.
    Record(record::Record),

    /// Provoke in virtual machines what the real kube-proxy does to connections, and judge what rsttrace reports
    ///
    /// Builds kube-proxy once, which needs Go. Prints one line for each row of the table in
    /// tests/src/kube/table.rs, and the line `N passed, N failed`. What a failed row printed, and its
    /// capture, go to target/kube.
    Kube(kube::Kube),

    /// Measure the cost of tracing in virtual machines
    ///
    /// Measures start-up, memory, and a connection over the loopback device that ends with a RST or with
    /// a FIN, with and without rsttrace. Without KVM, guests are emulated: compare such numbers with each
    /// other, not with those of another machine.
    Bench(bench::Bench),

    /// Build the static binary target/dist/rsttrace
    Dist(dist::Dist),

    /// Check formatting, lints, wording, and which layer uses what
    Check(check::Check),
}

/// Invalid arguments: exit code 2.
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
        Verb::Kube(kube) => kube.run(),
        Verb::Bench(bench) => bench.run(),
        Verb::Dist(dist) => dist.run(),
        Verb::Check(check) => check.run(),
    };
    result.unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::from(if error.is::<Usage>() { 2 } else { 1 })
    })
}
