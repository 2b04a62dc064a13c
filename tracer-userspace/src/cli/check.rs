//! The arguments of `check`.

use std::{path::PathBuf, str::FromStr};

use clap::Args;
use rsttrace_check::{
    CheckFinding, Rank,
    path::{Assumption, Spec},
};

use super::{ColorWhen, OutputFormat, help::CHECK_NOTES};
use crate::filter::parse_cause;

/// Audit every timer and limit before a connection breaks
///
/// Reads the settings, services, sockets and counters of every network namespace and compares them: which
/// timer is shorter than the idle time of its connections, which table is nearly full, which setting will
/// be overwritten. Each finding shows its reason, the rule with the numbers filled in, the owner and the
/// source of the value, and the fixes. Nothing is changed and no eBPF is used. Without root there are fewer
/// findings, and the output lists what could not be read.
///
/// A finding is `break` (a connection will break, or there will be no room for a new one), `warn` (this
/// happens under a condition that is named) or `info`.
#[derive(Args, Debug)]
#[command(after_long_help = CHECK_NOTES)]
pub struct CheckArgs {
    /// Output format; `json` prints one line per finding (NDJSON), `wide` includes all fixes
    #[arg(short, long, value_enum, default_value = "table", help_heading = "Output")]
    pub output: OutputFormat,

    /// When to use colours; `auto` uses them on a terminal, unless NO_COLOR is set
    #[arg(long, value_enum, default_value = "auto", value_name = "WHEN", help_heading = "Output")]
    pub color: ColorWhen,

    /// Only these network namespaces: inode number, name, or path
    #[arg(long, value_name = "NETNS", value_delimiter = ',')]
    pub netns: Vec<String>,

    /// Only this path, with every idle limit on it. Each end is an address (10.0.0.1, 10.0.0.1:3306), a
    /// network namespace, a pod (NAME or NAMESPACE/NAME), or pid:N. The arrow may be written `->`
    #[arg(long, value_name = "SRC→DST", conflicts_with = "netns")]
    pub path: Option<Spec>,

    /// An idle limit on the path that this host cannot know, in seconds: lb=350, server=28800
    #[arg(long, value_name = "NAME=SECONDS", value_delimiter = ',', requires = "path")]
    pub assume: Vec<Assumption>,

    /// Check a copy of a host in this directory instead of the live host
    ///
    /// The directory holds proc/, sys/, etc/, run/ and usr/ as on the host, `ipvs-timeouts` with the output
    /// of `ipvsadm -Ln --timeout`, and `nft-ruleset` with the output of `nft -a list ruleset`. For each
    /// further network namespace, run/netns/NAME/ holds the same files.
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,

    /// Exit with code 5 if this was found: `break`, `warn` or worse, `info` or worse, or a cause
    #[arg(long, value_name = "WHAT")]
    pub fail_on: Option<FailOnFinding>,
}

/// The value of `check --fail-on`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FailOnFinding {
    /// This rank or a worse one.
    Rank(Rank),
    Cause(String),
}

impl FromStr for FailOnFinding {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match Rank::ALL.iter().find(|rank| rank.id() == text) {
            Some(rank) => Ok(Self::Rank(*rank)),
            None => parse_cause(text)
                .map(Self::Cause)
                .map_err(|error| format!("expected break, warn, info or a cause; {error}")),
        }
    }
}

impl FailOnFinding {
    pub fn matches(&self, finding: &CheckFinding) -> bool {
        match self {
            Self::Rank(rank) => finding.rank >= *rank,
            Self::Cause(id) => finding.cause == Some(id.as_str()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fail_on_takes_a_rank_or_a_cause_and_nothing_else() {
        assert_eq!("warn".parse(), Ok(FailOnFinding::Rank(Rank::Warn)));
        let cause = FailOnFinding::Cause("ipvs_idle_expired".into());
        assert_eq!("ipvs_idle_expired".parse(), Ok(cause));
        let error = "brake".parse::<FailOnFinding>().expect_err("no rank and no cause");
        assert!(error.contains("break, warn, info"), "{error}");
    }
}
