//! `rsttrace watch`: which connection.

use std::time::Duration;

use clap::{Args, value_parser};
use rsttrace_model::flow::Flow;
use rsttrace_watch::parse_flow;

use super::{PageArgs, parse_duration};

/// Show the timers of one connection counting down, and what will happen first
///
/// The IPVS entry and the conntrack entry with the time they have left, the keepalive, retransmission or
/// window-probe timer of the sockets at the ends that are on this host, in every network namespace, and
/// which of them ends first. Nothing is re-armed by looking: conntrack is asked for this one entry, and the
/// IPVS table, which cannot be asked, is read every 5 s and counted down in between. It ends when nothing of
/// the connection is left.
///
/// On a terminal it redraws a few lines; otherwise it prints a line each time.
#[derive(Args, Debug)]
#[command(after_long_help = NOTES)]
pub struct WatchArgs {
    /// SRC:PORT→DST:PORT (or ->, or a space), or `pid N`; without it, a list to pick from
    ///
    /// Any tuple of the connection will do: as the client addressed it, or as the server sees it, either way
    /// round. IPv6 addresses stand in brackets.
    #[arg(value_name = "FLOW")]
    pub flow: Vec<String>,

    /// Look this often
    #[arg(long, value_name = "TIME", value_parser = parse_interval, default_value = "1s")]
    pub interval: Duration,

    /// Stop after looking so many times
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(1..), help_heading = "When to stop")]
    pub count: Option<u64>,

    /// Stop after this long: 500ms, 30s, 5m, 1h
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = "When to stop")]
    pub duration: Option<Duration>,

    #[command(flatten)]
    pub page: PageArgs,
}

const NOTES: &str = "\
Examples:
  rsttrace watch '10.244.1.17:41822->10.96.12.8:3306'
          The database connection of a pod, through a service address.
  rsttrace watch pid 4121
          The connection of a process; if it has several, a list of them.
  rsttrace watch 10.0.0.2:41822 10.0.0.3:5432 --count 1 -o json
          One look, for a script.

Signals:
  SIGINT and SIGTERM end it in good order, with exit code 0.

Exit status:
  0  fine      1  internal failure      2  usage; no such connection, or several to choose from";

/// What is to be watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Flow(Flow),
    Process(u32),
    /// Whatever the user picks.
    Pick,
}

impl WatchArgs {
    /// # Errors
    /// A sentence when the words name no connection.
    pub fn target(&self) -> Result<Target, String> {
        let words: Vec<&str> = self.flow.iter().flat_map(|word| word.split_whitespace()).collect();
        match words.as_slice() {
            [] => Ok(Target::Pick),
            ["pid", pid] => match pid.parse() {
                Ok(0) | Err(_) => Err(format!("`{pid}` is no process id")),
                Ok(pid) => Ok(Target::Process(pid)),
            },
            words => parse_flow(&words.join(" ")).map(Target::Flow),
        }
    }
}

/// Each look asks the kernel several questions.
fn parse_interval(text: &str) -> Result<Duration, String> {
    let interval = parse_duration(text)?;
    if interval < Duration::from_millis(100) {
        return Err("it looks no more often than every 100ms".into());
    }
    Ok(interval)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn target(words: &[&str]) -> Result<Target, String> {
        let cli = Cli::try_parse_from(["rsttrace", "watch"].iter().chain(words))
            .map_err(|error| error.to_string())?;
        match cli.command {
            Command::Watch(args) => args.target(),
            _ => unreachable!("the command is watch"),
        }
    }

    #[test]
    fn a_connection_is_told_in_every_usual_way() {
        let flow = parse_flow("10.0.0.1:40000 10.0.0.2:3306").map(Target::Flow);
        for words in [
            &["10.0.0.1:40000→10.0.0.2:3306"][..],
            &["10.0.0.1:40000->10.0.0.2:3306"],
            &["10.0.0.1:40000 -> 10.0.0.2:3306"],
            &["10.0.0.1:40000", "10.0.0.2:3306"],
            &["[::ffff:10.0.0.1]:40000", "10.0.0.2:3306"],
        ] {
            assert_eq!(target(words), flow, "{words:?}");
        }
        assert!(target(&["[fd00::1]:40000→[fd00::2]:3306"]).is_ok());
        assert_eq!(target(&["pid", "41"]), Ok(Target::Process(41)));
        assert_eq!(target(&["pid 41"]), Ok(Target::Process(41)));
        assert_eq!(target(&[]), Ok(Target::Pick));
    }

    #[test]
    fn what_names_no_connection_is_told() {
        for words in [
            &["10.0.0.1:40000"][..],
            &["10.0.0.1:0", "10.0.0.2:3306"],
            &["10.0.0.1", "10.0.0.2"],
            &["10.0.0.1:1", "[fd00::1]:2"],
            &["a", "b", "c"],
            &["pid", "0"],
            &["pid", "x"],
            &["--interval", "1ms"],
        ] {
            assert!(target(words).is_err(), "{words:?}");
        }
    }
}
