//! The command line, as a man page would tell it.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum, value_parser};
use help::live_notes;
use rsttrace_core::verdict::Family;
use terminal::columns;

use crate::filter::{
    Container, Expression, FailOn, Filter, PodName, Side, parse_cause, parse_comm, parse_family,
    parse_netns,
};

mod audit;
mod check;
mod fix;
mod help;
mod plan;
mod report;
mod terminal;
mod watch;

pub use audit::{CheckArgs, FailOnFinding};
pub use fix::FixArgs;
pub use plan::PlanArgs;
pub use report::{ReportArgs, ReportFormat};
pub use terminal::{ColorWhen, page_columns, page_width};
pub use watch::{Target, WatchArgs};

/// Why was this connection reset, and what do I change so it stops?
#[derive(Debug, Parser)]
#[command(name = "rsttrace", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

// The help of a command is that of its arguments: a comment on a variant would replace it.
#[derive(Debug, Subcommand)]
pub enum Command {
    Live(LiveArgs),
    Check(CheckArgs),
    Record(RecordArgs),
    Replay(ReplayArgs),
    Report(ReportArgs),
    Watch(WatchArgs),
    Plan(Box<PlanArgs>),
    Explain(ExplainArgs),
    Fix(FixArgs),
    Doctor(DoctorArgs),
}

/// Trace: print one incident per broken connection, as it happens
///
/// Attaches to the reset, conntrack and IPVS paths of the running kernel, remembers what died, and
/// when a connection breaks names the root cause with its evidence and the fix with its owner.
/// A verdict is `observed` (the cause itself was seen), `correlated` (joined by tuple and time),
/// `inferred` (arithmetic only) or `unknown`; it is never a guess. Nothing on the host is changed.
///
/// Incidents go to standard output; the `rsttrace: ready` line, what this kernel cannot show and the
/// closing summary go to standard error. With `-o json` a summary event also comes every 60 s and last.
#[derive(Args, Debug)]
#[command(after_long_help = live_notes())]
pub struct LiveArgs {
    #[command(flatten)]
    pub show: ShowArgs,
    #[command(flatten)]
    pub trace: TraceArgs,
}

/// Record the stream of events to a capture file, for `replay`
///
/// A capture holds what verdicts are made from: kernel records, the state of namespaces, socket
/// owners, and what this kernel could not show. It is text, one event a line, and holds addresses and
/// process names but no payload; it is created with mode 0600 and never overwrites a file.
#[derive(Args, Debug)]
pub struct RecordArgs {
    /// The file to create
    pub file: PathBuf,
    #[command(flatten)]
    pub trace: TraceArgs,
}

/// Print the incidents of a capture: the same verdicts on any machine, without root
///
/// Damaged lines are named by line and column and the others are replayed; the exit code is then 1.
/// A last line that is cut off is what a killed recorder leaves: it is named, and no failure.
#[derive(Args, Debug)]
pub struct ReplayArgs {
    /// The capture to read
    pub file: PathBuf,
    #[command(flatten)]
    pub show: ShowArgs,
}

/// Tell all about a cause: how it is recognised, what fixes it, what does not and why
///
/// Without CAUSE, every cause in a line, by family. Needs neither root nor the kernel.
#[derive(Args, Debug)]
pub struct ExplainArgs {
    /// The cause's id, as verdicts and the list name it
    #[arg(value_parser = parse_cause)]
    pub cause: Option<String>,
    #[command(flatten)]
    pub page: PageArgs,
}

/// Tell what this kernel lets us see: each signal, and which causes cannot be told
///
/// Attaches everything as `live` does, and detaches at once. Says for each signal how it is seen, why not
/// in a better way, what stays invisible and what it costs; for each cause how surely it can be told here;
/// and what to install or enable. Without the right to attach it tells what would probably be seen, and
/// ends with the exit code with which `live` would: 3 not permitted, 4 this kernel cannot.
#[derive(Args, Debug)]
pub struct DoctorArgs {
    #[command(flatten)]
    pub page: PageArgs,
    /// Attach to tracepoints only, as on a kernel without kprobes
    #[arg(long, help_heading = "Kernel")]
    pub no_kprobes: bool,
}

/// What is printed, and how.
#[derive(Args, Debug)]
pub struct ShowArgs {
    /// How incidents are printed; `json` is one line each (NDJSON)
    #[arg(short, long, value_enum, default_value = "table", help_heading = "Output")]
    pub output: OutputFormat,

    /// Also print benign resets: refused connects, scans, health checks
    #[arg(long, help_heading = "Output")]
    pub all: bool,

    /// Use colours; `auto` uses them on a terminal unless NO_COLOR is set
    #[arg(long, value_enum, default_value = "auto", value_name = "WHEN", help_heading = "Output")]
    pub color: ColorWhen,

    #[command(flatten)]
    filters: FilterArgs,

    /// Stop after this many incidents
    #[arg(
        long,
        value_name = "N",
        value_parser = value_parser!(u64).range(1..),
        help_heading = "When to stop"
    )]
    pub count: Option<u64>,

    /// Exit with 5 if this was seen: a cause, a family, or `any`
    #[arg(long, value_name = "WHAT", help_heading = "When to stop")]
    pub fail_on: Option<FailOn>,
}

/// How the kernel is traced.
#[derive(Args, Debug)]
pub struct TraceArgs {
    /// Stop after this long: 500ms, 30s, 5m, 1h
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = "When to stop")]
    pub duration: Option<Duration>,

    /// Attach to tracepoints only, as on a kernel without kprobes
    #[arg(long, help_heading = "Kernel")]
    pub no_kprobes: bool,

    /// How the process behind a socket is found
    #[arg(
        long,
        value_enum,
        default_value = "connect",
        value_name = "HOW",
        help_heading = "Kernel"
    )]
    pub owners: Owners,

    /// Also say why a better hook could not be attached, and what goes wrong inside the programs
    #[arg(short, long, help_heading = "Kernel")]
    pub verbose: bool,
}

impl TraceArgs {
    /// Columns for standard error. A log keeps each notice on one line.
    pub fn notice_width(&self) -> usize {
        columns(std::io::stderr()).map_or(usize::MAX, |columns| columns.max(60))
    }
}

/// Criteria on what is shown and counted; every one given must hold.
#[derive(Args, Debug)]
#[command(next_help_heading = "Filters (all given ones must hold)")]
struct FilterArgs {
    /// Only connections of this process, at either end
    #[arg(long, value_name = "PID", value_delimiter = ',', value_parser = value_parser!(u32).range(1..))]
    pid: Vec<u32>,
    /// Only connections of processes with this name, at either end
    #[arg(long, value_name = "NAME", value_parser = parse_comm)]
    comm: Vec<String>,
    /// Only this port, on either side, before or behind NAT
    #[arg(long, value_name = "PORT", value_delimiter = ',', value_parser = value_parser!(u16).range(1..))]
    port: Vec<u16>,
    /// Only this initiator: an address, a network, or address:port
    #[arg(long, value_name = "ADDR")]
    src: Vec<Side>,
    /// Only this responder: an address, a network, or address:port; before or behind NAT
    #[arg(long, value_name = "ADDR")]
    dst: Vec<Side>,
    /// Only this network (10.0.0.0/8) or address, at either end
    #[arg(long, value_name = "CIDR")]
    cidr: Vec<Side>,
    /// Only this network namespace: inode number, name, or path
    #[arg(long, value_name = "NETNS", value_parser = parse_netns)]
    netns: Vec<u32>,
    /// Only this container, at either end: its id, or the beginning of it
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    container: Vec<Container>,
    /// Only this Kubernetes pod, at either end: NAME, NAMESPACE/NAME, or its uid
    #[arg(long, value_name = "POD", value_delimiter = ',')]
    pod: Vec<PodName>,
    /// Only these causes
    #[arg(long, value_name = "CAUSE", value_delimiter = ',', value_parser = parse_cause)]
    cause: Vec<String>,
    /// Only these families of causes
    #[arg(long, value_name = "FAMILY", value_delimiter = ',', value_parser = parse_family)]
    family: Vec<Family>,
    /// As tcpdump has it: `host 10.0.0.1 and port 3306`; host, net, port and portrange, each after src
    /// or dst if you like, and, or, not, parentheses
    #[arg(value_name = "EXPRESSION")]
    expression: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// A story for people
    Table,
    /// The same, and how to keep and undo each fix, what was ruled out, what cannot be seen
    Wide,
    /// One JSON event a line
    Json,
    /// JSON for reading
    #[value(name = "jsonpretty")]
    JsonPretty,
}

/// How a page about something is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PageFormat {
    /// For people
    #[value(alias = "table")]
    Text,
    /// One JSON object a line
    Json,
    /// JSON for reading
    #[value(name = "jsonpretty")]
    JsonPretty,
}

/// How a page is printed.
#[derive(Args, Debug)]
pub struct PageArgs {
    /// How it is printed
    #[arg(short, long, value_enum, default_value = "text", help_heading = "Output")]
    pub output: PageFormat,

    /// Use colours; `auto` uses them on a terminal unless NO_COLOR is set
    #[arg(long, value_enum, default_value = "auto", value_name = "WHEN", help_heading = "Output")]
    pub color: ColorWhen,
}

/// How the process behind a socket is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Owners {
    /// Remember the process of each new connect(), which is named even if it closes its socket at once.
    /// Measured: 0.5 to 1 µs for each connection, where connect and close over loopback take 50 µs or
    /// more; and 4 MiB of memory
    Connect,
    /// Only look up who holds the socket when it breaks, which costs nothing before
    Lookup,
}

impl ShowArgs {
    /// The words after the options.
    ///
    /// # Errors
    /// A sentence when they are no expression.
    fn expression(&self) -> Result<Option<Expression>, String> {
        let words = self.filters.expression.join(" ");
        (!words.is_empty()).then(|| Expression::parse(&words)).transpose()
    }

    pub fn filter(&self) -> Filter {
        let args = &self.filters;
        Filter {
            pid: args.pid.clone(),
            comm: args.comm.clone(),
            port: args.port.clone(),
            src: args.src.clone(),
            dst: args.dst.clone(),
            cidr: args.cidr.clone(),
            // It was checked when the command line was.
            expression: self.expression().ok().flatten(),
            netns: args.netns.clone(),
            container: args.container.clone(),
            pod: args.pod.clone(),
            cause: args.cause.clone(),
            family: args.family.clone(),
        }
    }

    /// Columns for standard output.
    pub fn width(&self) -> usize {
        page_columns()
    }
}

/// `500ms`, `30s`, `5m`, `1h`; a bare number is seconds.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let millis = match unit {
        "ms" => 1,
        "s" | "" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(format!("`{unit}` is no unit; use ms, s, m or h")),
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(millis))
        .filter(|millis| *millis > 0)
        .map(Duration::from_millis)
        .ok_or_else(|| format!("`{text}` is no duration such as 30s or 5m"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_have_units_and_anything_else_is_named() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(parse_duration("7"), Ok(Duration::from_secs(7)));
        assert!(parse_duration("5d").is_err_and(|error| error.contains("`d`")));
        assert!(parse_duration("99999999999999999999h").is_err());
    }

    #[test]
    fn the_long_help_explains_verdicts_examples_and_exit_codes() {
        let mut cli = Cli::command();
        let live = cli.find_subcommand_mut("live").expect("the command");
        let help = live.render_long_help().to_string();
        for part in ["`correlated`", "Examples:", "Signals:", "Exit status:"] {
            assert!(help.contains(part), "{part} is missing in:\n{help}");
        }
    }

    #[test]
    fn words_that_ask_for_nothing_are_usage_errors() {
        for args in [
            ["--count", "0"],
            ["--netns", "no-such"],
            ["--port", "65536"],
            ["--port", "0"],
            ["--pid", "0"],
            ["--duration", "0s"],
            ["--comm", "kube-controller-manager"],
        ] {
            let error = Cli::try_parse_from(["rsttrace", "live"].iter().chain(&args))
                .expect_err("a usage error");
            assert_eq!(error.exit_code(), 2, "{args:?}");
            assert!(error.to_string().contains(args[1]), "{error}");
        }
    }

    #[test]
    fn an_unknown_cause_is_a_usage_error_that_names_it() {
        let error = Cli::try_parse_from(["rsttrace", "live", "--cause", "gremlins"])
            .expect_err("no such cause");
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("gremlins"));
    }
}
