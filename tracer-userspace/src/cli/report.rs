//! The arguments of `report`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use rsttrace_report::When;

use crate::filter::parse_cause;

const EXAMPLES: &str = "\
Examples:
  rsttrace report storm.cap > storm.md
          Last night's capture as Markdown, for the ticket.
  rsttrace report -o html storm.cap > storm.html
          The same with charts, as one self-contained HTML file.
  rsttrace report resets.ndjson --since 03:00 --until 04:00
          One hour of the events saved by `rsttrace live -o json | tee -a resets.ndjson`.
  rsttrace report --cause ipvs_idle_expired -o json storm.cap | jq .causes
          One cause, for a script.
  kubectl logs rsttrace-7gk2p | rsttrace report -
          Events from a pipe.

Exit status:
  0  success, also when no connection broke
  1  damaged lines in the file (the report covers the others), or not a capture or event stream
  2  usage error";

/// Write a report from a recording: causes, timeline, impact, fixes and how to verify them
///
/// FILE is a capture (`rsttrace record`), which is replayed, or an event stream (`live -o json`). The report
/// ranks the causes by the number of connections they broke, each connection counted once. Benign resets are
/// only counted. For each cause, the report shows the evidence of one example, the fixes with their owners
/// and how to roll them back, what was ruled out and why, and queries that verify the fix. The report ends
/// with what could not be seen. Commands in the report are quoted from FILE: read them before you run them.
///
/// A capture also holds the kernel's counters and the fill level of the conntrack tables; an event stream
/// does not. Damaged lines are reported by line and column, on standard error and in the report.
#[derive(Args, Debug)]
#[command(after_long_help = EXAMPLES)]
pub struct ReportArgs {
    /// The capture or event stream to read; - is standard input
    pub file: PathBuf,

    /// Output format
    #[arg(short, long, value_enum, default_value = "md", help_heading = "Output")]
    pub output: ReportFormat,

    /// Only connections that broke at or after this time: RFC 3339, or HH:MM[:SS] in UTC
    ///
    /// A time of day is on the day on which the file begins. If it is more than 12 hours before the beginning
    /// of the file, it is on the next day.
    #[arg(long, value_name = "TIME", help_heading = "Filters (all must match)")]
    pub since: Option<When>,

    /// Only connections that broke before this time; a time of day is the first one after --since
    #[arg(long, value_name = "TIME", help_heading = "Filters (all must match)")]
    pub until: Option<When>,

    /// Only these causes
    #[arg(
        long,
        value_name = "CAUSE",
        value_delimiter = ',',
        value_parser = parse_cause,
        help_heading = "Filters (all must match)"
    )]
    pub cause: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ReportFormat {
    /// Markdown, for tickets and terminals
    #[value(alias = "markdown")]
    Md,
    /// One HTML file with charts, without scripts or external resources
    Html,
    /// One JSON object
    Json,
}
