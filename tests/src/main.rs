//! `rsttrace-guest`: provokes every cause with real connections and checks what `rsttrace live` reports.

#![deny(unsafe_code)]

mod actor;
mod bench;
mod demo;
mod expect;
mod fix_e2e;
mod guest;
mod kube;
mod lab;
mod latency;
mod netns;
mod program;
mod rawtcp;
mod record;
mod run;
mod scenarios;
mod schema;
mod tools;
mod tracer;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};
use fix_e2e::{FAULT_TESTS, FaultTest, FixTest};
use scenarios::{Scenario, TracerUse};

/// Provokes every cause with real connections, in network namespaces of its own, and checks what rsttrace reports.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// The tracer under test
    #[arg(long, global = true, default_value = "rsttrace", value_name = "PROGRAM")]
    tracer: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run scenarios, fix tests and fault tests; print PLAN, one RESULT or FIX line for each, and DONE
    Run {
        /// Names, or starts of names such as `ipvs` or `fix` [default: all]
        scenarios: Vec<String>,
        /// Run the scenarios one after the other
        #[arg(long)]
        serial: bool,
        /// Run no tracer; check only that each scenario provokes its error
        #[arg(long)]
        provoke_only: bool,
        /// Print incidents, the tracer's stderr and timings also without a failure
        #[arg(short, long)]
        verbose: bool,
    },
    /// Run scenarios one by one and print what `rsttrace record` wrote: CAPTURE, name, line
    Record {
        /// Names, or starts of names [default: all but the large one]
        scenarios: Vec<String>,
    },
    /// List the scenarios, the fix tests and the fault tests
    List,
    /// Run the demo: an idle connection through IPVS breaks
    Demo,
    /// Provoke what the real kube-proxy does to connections; print ROW, name and outcome
    Kube {
        /// Rows of the table [default: all]
        rows: Vec<String>,
        /// How kube-proxy programs the node
        #[arg(long)]
        mode: kube::Mode,
        /// Print the captures of rows that passed too
        #[arg(long)]
        record: bool,
    },
    /// Measure the cost of tracing; print lines with BENCH, name and number
    Bench,
    /// The process that `process_killed` kills
    #[command(hide = true)]
    Actor,
    /// One end of a connection
    #[command(hide = true)]
    Program(program::Role),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    tools::prepare();
    let done = match cli.command {
        Command::Run { scenarios, serial, provoke_only, verbose } => match choose(&scenarios) {
            Err(word) => return unknown(&word),
            Ok(chosen) => run::run(
                &chosen,
                run::Settings { tracer: cli.tracer, serial, provoke_only, verbose },
            ),
        },
        Command::Record { scenarios } => match choose(&scenarios) {
            Err(word) => return unknown(&word),
            Ok(Chosen { scenarios: mut chosen, .. }) => {
                // A capture of hundreds of connections is too large to review.
                chosen.retain(|scenario| !scenarios.is_empty() || !scenario.is_large());
                record::record(&chosen, &cli.tracer)
            }
        },
        Command::List => {
            list();
            Ok(true)
        }
        Command::Demo => demo::demo(&cli.tracer).map(|()| true),
        Command::Kube { rows, mode, record } => kube::run(&cli.tracer, mode, &rows, record),
        Command::Bench => bench::bench(&cli.tracer).map(|()| true),
        Command::Actor => scenarios::own_socket(),
        Command::Program(role) => program::play(&role).map(|()| true),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("rsttrace-guest: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn unknown(word: &str) -> ExitCode {
    eprintln!(
        "rsttrace-guest: unknown name `{word}` (expected a name, or the start of one, from `rsttrace-guest list`)"
    );
    ExitCode::from(2)
}

/// The tests to run.
pub struct Chosen {
    scenarios: Vec<&'static Scenario>,
    fix_tests: Vec<&'static FixTest>,
    fault_tests: Vec<&'static FaultTest>,
}

/// The tests with these names, else those whose name starts so. An unknown word is the error.
fn choose(words: &[String]) -> Result<Chosen, String> {
    let mut chosen = Chosen {
        scenarios: scenarios::all(),
        fix_tests: fix_e2e::all(),
        fault_tests: FAULT_TESTS.iter().collect(),
    };
    if words.is_empty() {
        return Ok(chosen);
    }
    let names = chosen.scenarios.iter().map(|it| it.name);
    let names = names.chain(chosen.fix_tests.iter().map(|it| it.name));
    let names: Vec<_> = names.chain(chosen.fault_tests.iter().map(|it| it.name)).collect();
    let mut wanted = Vec::new();
    for word in words {
        let exact = names.iter().any(|name| name == word);
        let fits = |name: &&str| if exact { name == word } else { name.starts_with(word.as_str()) };
        let before = wanted.len();
        wanted.extend(names.iter().copied().filter(fits));
        if wanted.len() == before {
            return Err(word.clone());
        }
    }
    chosen.scenarios.retain(|scenario| wanted.contains(&scenario.name));
    chosen.fix_tests.retain(|fix_test| wanted.contains(&fix_test.name));
    chosen.fault_tests.retain(|fault_test| wanted.contains(&fault_test.name));
    Ok(chosen)
}

fn list() {
    for scenario in scenarios::all() {
        let how = match scenario.tracer {
            TracerUse::Shared => "in parallel",
            TracerUse::Own => "alone",
            TracerUse::NoKprobes => "alone, tracer without kprobes",
            TracerUse::Late => "alone, tracer started late",
        };
        println!("{:36} {how}", scenario.name);
    }
    for fix_test in fix_e2e::all() {
        let how = if fix_test.alone { "alone" } else { "in parallel" };
        println!("{:36} {how}", fix_test.name);
    }
    for fault_test in FAULT_TESTS {
        println!("{:36} alone, no tracer", fault_test.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(words: &[&str]) -> Result<Vec<&'static str>, String> {
        let words: Vec<_> = words.iter().map(|&word| word.to_owned()).collect();
        Ok(choose(&words)?.scenarios.iter().map(|scenario| scenario.name).collect())
    }

    #[test]
    fn an_exact_name_does_not_select_longer_names() {
        assert_eq!(names(&["ipvs_idle_expired"]), Ok(vec!["ipvs_idle_expired"]));
        assert!(names(&["ipvs_idle"]).is_ok_and(|names| names.len() > 3));
    }

    #[test]
    fn a_word_selects_fix_tests_as_well_as_scenarios() {
        let chosen = choose(&["fix_ipvs".to_owned()]).expect("known");
        assert!(chosen.scenarios.is_empty() && chosen.fix_tests.len() > 1);
    }

    #[test]
    fn an_unknown_word_is_returned() {
        assert_eq!(names(&["ipvs", "nonsense"]), Err("nonsense".to_owned()));
    }
}
