//! `rsttrace report`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use rsttrace_report::When;

use crate::filter::parse_cause;

const EXAMPLES: &str = "\
Examples:
  rsttrace report storm.cap > storm.md
          The night's capture as Markdown, for the ticket.
  rsttrace report -o html storm.cap > storm.html
          The same with charts, as one file that needs no network.
  rsttrace report resets.ndjson --since 03:00 --until 04:00
          One hour of what `rsttrace live -o json | tee -a resets.ndjson` kept.
  rsttrace report --cause ipvs_idle_expired -o json storm.cap | jq .causes
          One cause, for a script.
  kubectl logs rsttrace-7gk2p | rsttrace report -
          Events from a pipe.

Exit status:
  0  fine; nothing broken is fine too
  1  lines of the file are damaged (the others are in the report), or it is no such file
  2  usage";

/// Report on what was recorded: causes, timeline, impact, fixes and how to see that they work
///
/// FILE is a capture (`rsttrace record`), which is replayed, or a stream of events (`live -o json`). The
/// report ranks the causes by the connections they broke, each counted once; benign resets are only
/// counted. For each cause it has the evidence of one example, the fixes with their owner and how to roll
/// them back, what was ruled out and why, and queries that show that it is over. It ends with what could
/// not be seen. Commands in it are quoted from FILE: read them before you run them.
///
/// A capture also holds the kernel's counters and the fill of the conntrack tables, which a stream does
/// not. Damaged lines are named by line and column, on standard error and in the report.
#[derive(Args, Debug)]
#[command(after_long_help = EXAMPLES)]
pub struct ReportArgs {
    /// The capture or the stream of events to read; - for standard input
    pub file: PathBuf,

    /// How the report is written
    #[arg(short, long, value_enum, default_value = "md", help_heading = "Output")]
    pub output: ReportFormat,

    /// Only what broke from this time on: RFC 3339, or HH:MM[:SS] in UTC on the day the file begins
    ///
    /// A time of day that had passed by more than 12 hours when the file begins is the next day's.
    #[arg(long, value_name = "TIME", help_heading = "Filters (all given ones must hold)")]
    pub since: Option<When>,

    /// Only what broke before this time; a time of day is the first one after --since
    #[arg(long, value_name = "TIME", help_heading = "Filters (all given ones must hold)")]
    pub until: Option<When>,

    /// Only these causes
    #[arg(
        long,
        value_name = "CAUSE",
        value_delimiter = ',',
        value_parser = parse_cause,
        help_heading = "Filters (all given ones must hold)"
    )]
    pub cause: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ReportFormat {
    /// Markdown, for tickets and terminals
    #[value(alias = "markdown")]
    Md,
    /// One HTML file with charts, without scripts or anything to load
    Html,
    /// One JSON object
    Json,
}
