//! The program: parses the command line, runs the command and sets the exit code.

use std::process::ExitCode;

use clap::Parser as _;
use rsttrace::{
    cli::{Cli, Command},
    cmd,
};

fn main() -> ExitCode {
    let cli = Cli::try_parse().and_then(Cli::validate).unwrap_or_else(|error| error.exit());
    let result = match &cli.command {
        Command::Live(args) => cmd::live::run(args),
        Command::Check(args) => cmd::check::run(args),
        Command::Record(args) => cmd::record::run(args),
        Command::Replay(args) => cmd::replay::run(args),
        Command::Report(args) => cmd::report::run(args),
        Command::Doctor(args) => cmd::doctor::run(args),
        Command::Watch(args) => cmd::watch::run(args),
        Command::Plan(args) => cmd::plan::run(args),
        Command::Explain(args) => cmd::explain::run(args),
        Command::Fix(args) => cmd::fix::run(args),
        Command::Schema(args) => cmd::schema::run(args),
    };
    match result {
        Ok(exit) => ExitCode::from(exit.code()),
        Err(failure) => {
            cmd::say(&format!("rsttrace: {:#}", failure.error));
            ExitCode::from(failure.exit.code())
        }
    }
}
