//! The command line: arguments and the text of `--help`.
#![allow(
    rustdoc::broken_intra_doc_links,
    rustdoc::bare_urls,
    reason = "the comments on arguments are help texts, which show brackets and URLs as they are"
)]

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum, value_parser};
use help::live_notes;
use rsttrace_core::verdict::Family;
use terminal::columns;

use crate::filter::{
    Container, Expression, FailOn, Filter, ParseError, PodName, Side, parse_cause, parse_comm,
    parse_family, parse_netns,
};

mod check;
mod fix;
mod help;
mod plan;
mod report;
mod schema;
mod terminal;
mod validate;
mod watch;

pub use check::{CheckArgs, FailOnFinding};
pub use fix::FixArgs;
pub use plan::PlanArgs;
pub use report::{ReportArgs, ReportFormat};
pub use schema::{Document, SchemaArgs};
pub use terminal::{ColorWhen, page_columns, page_width};
pub use watch::{Target, WatchArgs};

/// Explain why a TCP connection was reset, and what to change so that it stops
#[derive(Debug, Parser)]
#[command(name = "rsttrace", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

// The help of a command comes from its arguments: a doc comment on a variant would replace it.
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
    Schema(SchemaArgs),
}

/// Trace the kernel and print one incident per broken connection, as it happens
///
/// Attaches to the reset, conntrack and IPVS code paths of the running kernel, and keeps a history of the
/// entries and sockets that ended. When a connection breaks, prints the root cause with its evidence, and
/// the fixes with their owners. A verdict is `observed` (the cause itself was seen), `correlated` (joined
/// by tuple and time), `inferred` (arithmetic only) or `unknown`; a verdict is never a guess. Nothing on
/// the host is changed.
///
/// Incidents go to standard output. The `rsttrace: ready` line, the list of what this kernel cannot show,
/// and the closing summary go to standard error. With `-o json`, a summary event is also printed every
/// 60 s and at the end.
#[derive(Args, Debug)]
#[command(after_long_help = live_notes())]
pub struct LiveArgs {
    #[command(flatten)]
    pub show: ShowArgs,
    #[command(flatten)]
    pub trace: TraceArgs,
}

/// Record the event stream to a capture file, for `replay` and `report`
///
/// A capture holds everything that verdicts are made from: kernel records, the state of network
/// namespaces, socket owners, and what this kernel could not show. The file is text with one event per
/// line. It contains addresses and process names, but no payload. It is created with mode 0600; an
/// existing file is never overwritten.
#[derive(Args, Debug)]
pub struct RecordArgs {
    /// The file to create
    pub file: PathBuf,
    #[command(flatten)]
    pub trace: TraceArgs,
}

/// Print the incidents of a capture: the same verdicts on any machine, without root
///
/// Damaged lines are reported by line and column, and the other lines are replayed; the exit code is then
/// 1. A truncated last line, as a killed recorder leaves it, is reported and is not an error.
#[derive(Args, Debug)]
pub struct ReplayArgs {
    /// The capture to read
    pub file: PathBuf,
    #[command(flatten)]
    pub show: ShowArgs,
}

/// Explain a cause: how it is recognised, what fixes it, what does not fix it, and why
///
/// Without CAUSE, lists all causes by family, one per line. Needs neither root nor access to the kernel.
#[derive(Args, Debug)]
pub struct ExplainArgs {
    /// The id of the cause, as verdicts and the list show it
    #[arg(value_parser = parse_cause)]
    pub cause: Option<String>,
    #[command(flatten)]
    pub page: PageArgs,
}

/// Show what this kernel can trace: each signal, and which causes can be identified
///
/// Attaches everything as `live` does, and detaches at once. For each signal, shows the hook in use, why
/// no better hook is used, what stays invisible, and the cost. For each cause, shows the best confidence on
/// this kernel. Then lists what to install or enable. Without permission to attach, shows what would
/// probably be traced. The exit code is the one that `live` would end with: 3 not permitted, 4 kernel not
/// supported.
#[derive(Args, Debug)]
pub struct DoctorArgs {
    #[command(flatten)]
    pub page: PageArgs,
    /// Attach to tracepoints only, as on a kernel without kprobes
    #[arg(long, help_heading = "Kernel")]
    pub no_kprobes: bool,
}

/// What is printed and how.
#[derive(Args, Debug)]
pub struct ShowArgs {
    /// Output format for incidents; `json` prints one line per incident (NDJSON)
    #[arg(short, long, value_enum, default_value = "table", help_heading = "Output")]
    pub output: OutputFormat,

    /// Also print benign resets: refused connects, scans, health checks
    #[arg(long, help_heading = "Output")]
    pub all: bool,

    /// When to use colours; `auto` uses them on a terminal, unless NO_COLOR is set
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

    /// Exit with code 5 if this was seen: a cause, a family, or `any` (everything but benign resets)
    #[arg(long, value_name = "WHAT", help_heading = "When to stop")]
    pub fail_on: Option<FailOn>,
}

/// How the kernel is traced.
#[derive(Args, Debug)]
pub struct TraceArgs {
    /// Stop after this time: 500ms, 30s, 5m, 1h
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = "When to stop")]
    pub duration: Option<Duration>,

    /// Attach to tracepoints only, as on a kernel without kprobes
    #[arg(long, help_heading = "Kernel")]
    pub no_kprobes: bool,

    /// How to find the process that owns a socket
    #[arg(
        long,
        value_enum,
        default_value = "connect",
        value_name = "HOW",
        help_heading = "Kernel"
    )]
    pub owners: Owners,

    /// Also print which hooks are attached, why better hooks could not be attached, and errors inside the
    /// BPF programs
    #[arg(short, long, help_heading = "Kernel")]
    pub verbose: bool,
}

impl TraceArgs {
    /// Columns for standard error. Where it is not a terminal, each notice stays on one line.
    pub fn notice_width(&self) -> usize {
        columns(std::io::stderr()).map_or(usize::MAX, |columns| columns.max(60))
    }
}

/// Filters on what is shown and counted; all given filters must match.
#[derive(Args, Debug)]
#[command(next_help_heading = "Filters (all must match)")]
struct FilterArgs {
    /// Only connections of this process, at either end
    #[arg(long, value_name = "PID", value_delimiter = ',', value_parser = value_parser!(u32).range(1..))]
    pid: Vec<u32>,
    /// Only connections of processes with this name, at either end
    #[arg(long, value_name = "NAME", value_parser = parse_comm)]
    comm: Vec<String>,
    /// Only this port, at either end, before or after NAT
    #[arg(long, value_name = "PORT", value_delimiter = ',', value_parser = value_parser!(u16).range(1..))]
    port: Vec<u16>,
    /// Only this initiator: an address, a CIDR, or address:port
    #[arg(long, value_name = "ADDR")]
    src: Vec<Side>,
    /// Only this responder, before or after NAT: an address, a CIDR, or address:port
    #[arg(long, value_name = "ADDR")]
    dst: Vec<Side>,
    /// Only this CIDR (10.0.0.0/8) or address, at either end
    #[arg(long, value_name = "CIDR")]
    cidr: Vec<Side>,
    /// Only this network namespace: inode number, name, or path
    #[arg(long, value_name = "NETNS", value_parser = parse_netns)]
    netns: Vec<u32>,
    /// Only this container, at either end: its id, or a prefix of its id
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    container: Vec<Container>,
    /// Only this Kubernetes pod, at either end: NAME, NAMESPACE/NAME, or UID
    #[arg(long, value_name = "POD", value_delimiter = ',')]
    pod: Vec<PodName>,
    /// Only these causes
    #[arg(long, value_name = "CAUSE", value_delimiter = ',', value_parser = parse_cause)]
    cause: Vec<String>,
    /// Only these families of causes
    #[arg(long, value_name = "FAMILY", value_delimiter = ',', value_parser = parse_family)]
    family: Vec<Family>,
    /// A filter in the syntax of tcpdump, such as `host 10.0.0.1 and port 3306`
    ///
    /// Keywords: host, net, port and portrange, each with an optional src or dst before it; tcp, ip and ip6;
    /// and, or, not and parentheses. An address without a keyword is a host.
    #[arg(value_name = "EXPRESSION")]
    expression: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// Human-readable
    Table,
    /// Like table, and how to persist, check and undo each fix, what was ruled out, what cannot be seen
    Wide,
    /// One JSON object per line (NDJSON)
    Json,
    /// Indented JSON
    #[value(name = "jsonpretty")]
    JsonPretty,
}

/// Output format of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PageFormat {
    /// Human-readable
    #[value(alias = "table")]
    Text,
    /// One JSON object per line (NDJSON)
    Json,
    /// Indented JSON
    #[value(name = "jsonpretty")]
    JsonPretty,
}

/// How a page is printed.
#[derive(Args, Debug)]
pub struct PageArgs {
    /// Output format
    #[arg(short, long, value_enum, default_value = "text", help_heading = "Output")]
    pub output: PageFormat,

    /// When to use colours; `auto` uses them on a terminal, unless NO_COLOR is set
    #[arg(long, value_enum, default_value = "auto", value_name = "WHEN", help_heading = "Output")]
    pub color: ColorWhen,
}

/// How the process that owns a socket is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Owners {
    /// Record the process at each connect(), so that it is known even if it closes its socket at once.
    /// Measured cost: 0.5 to 1 µs per connection (connect and close over loopback take 50 µs or more), and
    /// 4 MiB of memory
    Connect,
    /// Look up the owner of the socket only when the connection breaks; costs nothing before that
    Lookup,
}

impl ShowArgs {
    /// The filter expression: the words after the options.
    ///
    /// # Errors
    /// What is wrong with the expression, and where.
    fn expression(&self) -> Result<Option<Expression>, ParseError> {
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
            // `Cli::validate` has refused an expression that cannot be parsed.
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

/// Parses `500ms`, `30s`, `5m` or `1h`; a bare number is seconds.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let millis = match unit {
        "ms" => 1,
        "s" | "" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(format!("invalid unit `{unit}` (expected ms, s, m or h)")),
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(millis))
        .filter(|millis| *millis > 0)
        .map(Duration::from_millis)
        .ok_or_else(|| format!("invalid duration `{text}` (expected a time such as 30s or 5m)"))
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
    fn durations_have_units_and_errors_name_the_invalid_part() {
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
    fn values_that_cannot_match_anything_are_usage_errors() {
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
