//! `cargo xtask test`: cargo's tests, then every scenario on every kernel.

use std::{
    io::{BufRead as _, BufReader},
    process::{ExitCode, Stdio},
};

use anyhow::{Context as _, Result};
use clap::Args;

use crate::{
    build, cmd,
    coverage::coverage,
    fix_tests,
    kernels::{self, Kernel},
    results::{Results, Tally, Verdict, matrix},
    vm::{self, Lab, Options},
};

/// The oldest supported kernel, those of Debian's stable releases, and the newest.
const KERNELS: [&str; 5] = ["5.10", "6.1", "6.12", "6.18", "7.2"];

#[derive(Args)]
pub struct Test {
    /// Only these scenarios and fix tests, by name or by the start of the name [default: all]
    #[arg(value_name = "SCENARIO")]
    scenarios: Vec<String>,

    /// Kernel series to test on; may be given more than once [default: 5.10 6.1 6.12 6.18 7.2]
    #[arg(long = "kernel", value_name = "SERIES")]
    kernels: Vec<String>,

    /// Only cargo's tests, no virtual machines
    #[arg(long)]
    no_vm: bool,

    /// Only the virtual machines, not cargo's tests
    #[arg(long, conflicts_with = "no_vm")]
    only_vm: bool,

    /// Guests that run in parallel (scenarios mostly wait)
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..))]
    jobs: u8,

    /// Seed for the random order of steps in scenarios; a scenario prints the seed that it uses
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    #[command(flatten)]
    options: Options,
}

/// The outcome on one kernel: its results, and any failure that belongs to no single scenario.
struct Outcome {
    results: Results,
    complaint: Option<String>,
    ran: String,
}

impl Test {
    pub fn run(&self) -> Result<ExitCode> {
        // An invalid series is reported before half an hour of work, not after.
        let series = if self.kernels.is_empty() {
            vm::parse_series(&KERNELS.map(str::to_owned))?
        } else {
            vm::parse_series(&self.kernels)?
        };
        let mut tally = Tally::default();
        if !self.only_vm {
            cargo_test(&mut tally)?;
        }
        if !self.no_vm {
            let programs = vm::guest_programs()?;
            let kernels = kernels::fetch(&series)?;
            let lab = Lab::new(&self.options, &kernels, programs)?;
            let outcomes =
                vm::each(&kernels, self.jobs.into(), |kernel| Ok(self.run_on(&lab, kernel)));
            let outcomes: Vec<_> = outcomes.into_iter().collect::<Result<_>>()?;
            report(&kernels, &outcomes, self.scenarios.is_empty(), &mut tally);
        }
        println!("{tally}");
        Ok(ExitCode::from(u8::from(tally.failed > 0)))
    }

    /// Never returns an error: a guest that failed is a result like any other.
    fn run_on(&self, lab: &Lab, kernel: &Kernel) -> Outcome {
        let words = ["rsttrace-guest", "run"].into_iter();
        let words = words.chain(self.scenarios.iter().map(String::as_str));
        let mut command = words.map(cmd::quote).collect::<Vec<_>>().join(" ");
        if let Some(seed) = self.seed {
            command = format!("RSTTRACE_SEED={seed} {command}");
        }
        let mut results = Results::default();
        let guest = lab.run(kernel, &command, &mut |line| {
            results.line(line);
            if !Results::is_bookkeeping(line) {
                vm::print_line(&format!("[{}] {line}", kernel.wanted));
            }
        });
        let failures = results.all_verdicts().any(|it| matches!(it, Verdict::Fail(_)));
        let (complaint, ran) = match guest {
            Err(error) => (Some(format!("{error:#}")), "did not finish".to_owned()),
            Ok(guest) => {
                let ran = format!("ran {} in {:.0} s", guest.kernel_release, guest.seconds);
                let complaint = match results.incomplete() {
                    // Failed scenarios make the guest exit with an error, and are counted already.
                    None if guest.exit_code != 0 && !failures => {
                        Some(format!("rsttrace-guest ended with exit code {}", guest.exit_code))
                    }
                    incomplete => incomplete,
                };
                let warned = guest.kernel_warnings.first();
                let warned = warned.map(|w| format!("the kernel warned: {w}"));
                (complaint.or(warned), ran)
            }
        };
        Outcome { results, complaint, ran }
    }
}

/// Prints cargo's output and counts its results.
fn cargo_test(tally: &mut Tally) -> Result<()> {
    let mut cargo = build::host_cargo("test", &build::object()?);
    eprintln!("running cargo test");
    cargo.arg("--no-fail-fast").stdout(Stdio::piped());
    let mut child =
        cargo.spawn().with_context(|| format!("cannot start `{}`", cmd::show(&cargo)))?;
    let stdout = child.stdout.take().context("cargo test has no stdout")?;
    for line in BufReader::new(stdout).lines() {
        let line = line.context("cannot read what cargo test prints")?;
        tally.cargo_line(&line);
        vm::print_line(&line);
    }
    let status = child.wait().context("cannot wait for cargo test")?;
    if !status.success() && tally.failed == 0 {
        // It did not compile, or a test aborted the whole run.
        eprintln!("cargo test ended with {status}");
        tally.failed += 1;
    }
    Ok(())
}

fn report(kernels: &[Kernel], outcomes: &[Outcome], all_scenarios: bool, tally: &mut Tally) {
    println!();
    for (kernel, outcome) in kernels.iter().zip(outcomes) {
        println!("{:5} {}: {}", kernel.wanted, kernel.package, outcome.ran);
    }
    println!();
    let columns: Vec<_> = kernels
        .iter()
        .zip(outcomes)
        .map(|(kernel, outcome)| (kernel.wanted.to_string(), &outcome.results))
        .collect();
    println!("{}", matrix(&columns));
    if let Some(table) = fix_tests::table(&columns) {
        println!("\n{table}");
    }
    for (kernel, outcome) in kernels.iter().zip(outcomes) {
        outcome.results.all_verdicts().for_each(|verdict| tally.count(verdict));
        if let Some(complaint) = &outcome.complaint {
            tally.failed += 1;
            println!("  {}: FAIL: {complaint}", kernel.wanted);
        }
    }
    println!();
    if all_scenarios {
        let coverage = coverage(&columns);
        println!("{}", coverage.table);
        for cause in &coverage.missing {
            tally.failed += 1;
            println!("  {cause}: FAIL: no scenario on some kernel, and no fact explains why");
        }
        println!();
    }
}
