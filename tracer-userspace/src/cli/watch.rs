//! The arguments of `watch`.

use std::time::Duration;

use clap::{Args, value_parser};
use rsttrace_model::flow::Flow;
use rsttrace_watch::parse_flow;

use super::{PageArgs, parse_duration};

/// Show the timers of one connection as they count down, and which one expires first
///
/// Shows the time left of the IPVS entry and the conntrack entry, and the keepalive, retransmission or
/// window-probe timer of the sockets at the ends that are on this host, in every network namespace. Reading
/// does not refresh any timer. Conntrack is queried for this one entry. IPVS has no query for one entry, so
/// its table is read every 5 s and the time left is counted down in between. The command ends when no
/// socket and no entry of the connection is left.
///
/// On a terminal, a few lines are redrawn in place. Otherwise, each reading is printed on a new line.
#[derive(Args, Debug)]
#[command(after_long_help = NOTES)]
pub struct WatchArgs {
    /// SRC:PORT→DST:PORT (or `->`, or a space), or `pid N`; without FLOW, a list to choose from
    ///
    /// Any tuple of the connection is accepted: as the client sees it or as the server sees it, in either
    /// direction. Write IPv6 addresses in brackets.
    #[arg(value_name = "FLOW")]
    pub flow: Vec<String>,

    /// Time between two readings, at least 100ms
    #[arg(long, value_name = "TIME", value_parser = parse_interval, default_value = "1s")]
    pub interval: Duration,

    /// Stop after this many readings
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(1..), help_heading = "When to stop")]
    pub count: Option<u64>,

    /// Stop after this time: 500ms, 30s, 5m, 1h
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
          One reading, for a script.

Signals:
  SIGINT and SIGTERM stop the command, with exit code 0.

Exit status:
  0  success
  1  internal error
  2  usage error, no such connection, or several connections to choose from";

/// What to watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Flow(Flow),
    Process(u32),
    /// The user picks a connection from a list.
    Pick,
}

impl WatchArgs {
    /// Parses FLOW.
    ///
    /// # Errors
    /// What is wrong with FLOW.
    pub fn target(&self) -> Result<Target, String> {
        let words: Vec<&str> = self.flow.iter().flat_map(|word| word.split_whitespace()).collect();
        match words.as_slice() {
            [] => Ok(Target::Pick),
            ["pid", pid] => match pid.parse() {
                Ok(0) | Err(_) => {
                    Err(format!("invalid process id `{pid}` (expected a number above 0)"))
                }
                Ok(pid) => Ok(Target::Process(pid)),
            },
            words => parse_flow(&words.join(" ")).map(Target::Flow),
        }
    }
}

/// The interval between two readings. It has a minimum, because each reading takes several kernel queries.
fn parse_interval(text: &str) -> Result<Duration, String> {
    let interval = parse_duration(text)?;
    if interval < Duration::from_millis(100) {
        return Err(format!("invalid interval `{text}` (expected at least 100ms)"));
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
    fn a_connection_can_be_given_in_every_usual_notation() {
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
    fn invalid_flows_are_errors() {
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
