//! `rsttrace-guest`: provokes every cause for real and checks what `rsttrace live` says about it.

#![deny(unsafe_code)]

mod actor;
mod bench;
mod demo;
mod expect;
mod guest;
mod heal;
mod lab;
mod netns;
mod program;
mod punctual;
mod rawtcp;
mod record;
mod run;
mod scenarios;
mod tools;
mod tracer;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};
use heal::{Healing, ORDEALS, Ordeal};
use scenarios::{Scenario, TracerUse};

/// Provokes every cause for real, in namespaces of its own, and checks what rsttrace says about it.
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
    /// Plays scenarios, healings and ordeals of `fix`, and prints PLAN, one RESULT or HEAL line each, and DONE
    Run {
        /// Names, or beginnings of names such as `ipvs` or `heal`; all if none is given
        scenarios: Vec<String>,
        /// One scenario after the other
        #[arg(long)]
        serial: bool,
        /// No tracer: checks only that each scenario provokes what it says
        #[arg(long)]
        provoke_only: bool,
        /// Incidents, the tracer's stderr and timings of everything, not only of failures
        #[arg(short, long)]
        verbose: bool,
    },
    /// Plays scenarios one by one and prints what `rsttrace record` wrote: CAPTURE, name, line
    Record {
        /// Names, or beginnings of names; all but the large one if none is given
        scenarios: Vec<String>,
    },
    /// Names the scenarios, the healings and the ordeals
    List,
    /// The idle connection through IPVS, at a pace that a person can follow
    Demo,
    /// What tracing costs: BENCH, name and number, a line each
    Bench,
    /// What `process_killed` kills
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
                // Hundreds of connections are no regression test that anybody reads.
                chosen.retain(|scenario| !scenarios.is_empty() || !scenario.is_large());
                record::record(&chosen, &cli.tracer)
            }
        },
        Command::List => {
            list();
            Ok(true)
        }
        Command::Demo => demo::demo(&cli.tracer).map(|()| true),
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
        "rsttrace-guest: no scenario, healing or ordeal begins with {word:?}; see `rsttrace-guest list`"
    );
    ExitCode::from(2)
}

/// What is to be played.
pub struct Chosen {
    scenarios: Vec<&'static Scenario>,
    healings: Vec<&'static Healing>,
    ordeals: Vec<&'static Ordeal>,
}

/// Those that are called so, else those that begin so. An unknown word comes back.
fn choose(words: &[String]) -> Result<Chosen, String> {
    let mut chosen = Chosen {
        scenarios: scenarios::all(),
        healings: heal::all(),
        ordeals: ORDEALS.iter().collect(),
    };
    if words.is_empty() {
        return Ok(chosen);
    }
    let names = chosen.scenarios.iter().map(|it| it.name);
    let names = names.chain(chosen.healings.iter().map(|it| it.name));
    let names: Vec<_> = names.chain(chosen.ordeals.iter().map(|it| it.name)).collect();
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
    chosen.healings.retain(|healing| wanted.contains(&healing.name));
    chosen.ordeals.retain(|ordeal| wanted.contains(&ordeal.name));
    Ok(chosen)
}

fn list() {
    for scenario in scenarios::all() {
        let how = match scenario.tracer {
            TracerUse::Shared => "beside the others",
            TracerUse::Own => "alone",
            TracerUse::NoKprobes => "alone, the tracer without kprobes",
            TracerUse::Late => "alone, starts the tracer late",
        };
        println!("{:36} {how}", scenario.name);
    }
    for healing in heal::all() {
        let how = if healing.alone { "alone" } else { "beside the others" };
        println!("{:36} {how}", healing.name);
    }
    for ordeal in ORDEALS {
        println!("{:36} alone, no tracer", ordeal.name);
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
    fn an_exact_name_is_not_the_beginning_of_others() {
        assert_eq!(names(&["ipvs_idle_expired"]), Ok(vec!["ipvs_idle_expired"]));
        assert!(names(&["ipvs_idle"]).is_ok_and(|names| names.len() > 3));
    }

    #[test]
    fn a_word_chooses_among_healings_as_among_scenarios() {
        let chosen = choose(&["heal_ipvs".to_owned()]).expect("known");
        assert!(chosen.scenarios.is_empty() && chosen.healings.len() > 1);
    }

    #[test]
    fn an_unknown_word_is_named() {
        assert_eq!(names(&["ipvs", "nonsense"]), Err("nonsense".to_owned()));
    }
}
