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
/// Reads the settings, services, sockets and counters of every network namespace and holds them against
/// each other: which timer is shorter than the silence of the connections that it holds, which table is
/// nearly full, which setting will be undone. Each finding has its reason, the rule with the numbers put
/// in, the owner and the source of the value, and what would fix it. Nothing is changed and no eBPF is
/// used; without root it tells less, and says what it could not read.
///
/// A finding is `break` (a connection, or room for one, that will break), `warn` (it breaks under a
/// condition that is named) or `info`.
#[derive(Args, Debug)]
#[command(after_long_help = CHECK_NOTES)]
pub struct CheckArgs {
    /// How it is printed; `json` is one line for each finding (NDJSON), `wide` has all fixes
    #[arg(short, long, value_enum, default_value = "table", help_heading = "Output")]
    pub output: OutputFormat,

    /// Use colours; `auto` uses them on a terminal unless NO_COLOR is set
    #[arg(long, value_enum, default_value = "auto", value_name = "WHEN", help_heading = "Output")]
    pub color: ColorWhen,

    /// Only these network namespaces: inode number, name, or path
    #[arg(long, value_name = "NETNS", value_delimiter = ',')]
    pub netns: Vec<String>,

    /// Only this path, with every idle limit on it: each end an address (10.0.0.1, 10.0.0.1:3306), a network
    /// namespace, a pod (NAME or NAMESPACE/NAME), or pid:N; `->` does for the arrow
    #[arg(long, value_name = "SRC→DST", conflicts_with = "netns")]
    pub path: Option<Spec>,

    /// An idle limit on the path that no table of this host holds, in seconds: lb=350, server=28800
    #[arg(long, value_name = "NAME=SECONDS", value_delimiter = ',', requires = "path")]
    pub assume: Vec<Assumption>,

    /// Judge a copy of a host in this directory instead of the live one: proc/, sys/, etc/, run/ and usr/
    /// as they are on the host; `ipvs-timeouts` as `ipvsadm -Ln --timeout` prints them and `nft-ruleset` as
    /// `nft -a list ruleset` prints it; and the same again in run/netns/NAME/ for each further network
    /// namespace
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,

    /// Exit with 5 if this was found: `break`, `warn` or worse, `info` or worse, or a cause
    #[arg(long, value_name = "WHAT")]
    pub fail_on: Option<FailOnFinding>,
}

/// What `check --fail-on` looks for.
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
                .map_err(|error| format!("it is neither break, warn nor info, and {error}")),
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
    fn a_rank_or_a_cause_can_be_waited_for_and_nothing_else() {
        assert_eq!("warn".parse(), Ok(FailOnFinding::Rank(Rank::Warn)));
        let cause = FailOnFinding::Cause("ipvs_idle_expired".into());
        assert_eq!("ipvs_idle_expired".parse(), Ok(cause));
        let error = "brake".parse::<FailOnFinding>().expect_err("no rank and no cause");
        assert!(error.contains("break, warn nor info"), "{error}");
    }
}
