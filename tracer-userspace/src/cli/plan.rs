//! `rsttrace plan`: the load and the machine.

use std::time::Duration;

use clap::{ArgGroup, Args, value_parser};
use rsttrace_plan::{Kernel, PathLimit};

use super::{PageArgs, parse_duration};

/// Compute conntrack, IPVS, keepalive and pool settings for a load, with the arithmetic
///
/// From connections, rates, quiet times and memory to sizes and timeouts: each setting with every line of
/// its arithmetic, what it costs in memory, the rule or kernel file it rests on, and its owner; then what
/// overflows first as the load grows, and when. Nothing on the host is changed.
///
/// The load is told, or measured here with --from-host; a value that is told overrules the measured one.
/// Settings in force are the kernel's defaults, or this host's with --from-host. Memory, processors and
/// kernel are this machine's unless told.
#[derive(Args, Debug)]
#[command(
    after_long_help = NOTES,
    group = ArgGroup::new("load").required(true).multiple(true)
        .args(["connections", "cps", "udp", "from_host"])
)]
pub struct PlanArgs {
    /// Connections that stay open (pools, long polls), all at once
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(..=MOST), help_heading = "Load")]
    pub connections: Option<u64>,
    /// New TCP connections per second, besides those
    #[arg(long, value_name = "RATE", value_parser = value_parser!(u64).range(..=MOST), help_heading = "Load")]
    pub cps: Option<u64>,
    /// How long one of these is used
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "1s", help_heading = "Load")]
    pub life: Duration,
    /// New UDP flows per second; a DNS query is one
    #[arg(long, alias = "dns", value_name = "RATE", value_parser = value_parser!(u64).range(..=MOST), help_heading = "Load")]
    pub udp: Option<u64>,
    /// The longest silence on a connection that must survive it
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = "Load")]
    pub quiet: Option<Duration>,

    /// Measure this host: settings in force, conntrack entries, established sockets, and from two readings of
    /// counters the rates of TCP connections and UDP flows; what it cannot know it says, with the option
    /// that tells it. No table of connection tracking is dumped
    #[arg(long, help_heading = "Measuring")]
    pub from_host: bool,
    /// Time between the two readings
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "10s", requires = "from_host", help_heading = "Measuring")]
    pub sample: Duration,

    /// Memory: 16G, 512M
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = "Machine")]
    pub ram: Option<u64>,
    /// Processors
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(1..=65_536), help_heading = "Machine")]
    pub cpus: Option<u64>,
    /// Kernel release, such as 6.1: entries and defaults differ
    #[arg(long, value_name = "RELEASE", value_parser = parse_kernel, help_heading = "Machine")]
    pub kernel: Option<Kernel>,
    /// No connection passes IPVS
    #[arg(long, help_heading = "Machine")]
    pub no_ipvs: bool,
    /// kube-proxy runs there and owns its values; with --from-host it is looked for
    #[arg(long, help_heading = "Machine")]
    pub kube_proxy: bool,
    /// Another idle limit on the path, in seconds: lb=350, nat=240, server=28800 (which closes openly)
    #[arg(long, value_name = "NAME=SECONDS", value_parser = parse_limit, help_heading = "Machine")]
    pub assume: Vec<PathLimit>,
    /// An HTTP (L7) proxy or load balancer in front gives up idle connections after this time, at both its
    /// sides; server= above is then the HTTP server's keepAliveTimeout. A load balancer that only passes
    /// packets on (L4, NLB) closes nothing: --assume lb=350
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = "Machine")]
    pub http_proxy: Option<Duration>,

    /// Judge this nf_conntrack_max instead of computing one
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(1..=MOST), help_heading = "What if")]
    pub max: Option<u64>,
    /// With this nf_conntrack_udp_timeout
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = "What if")]
    pub udp_timeout: Option<Duration>,
    /// With this nf_conntrack_tcp_timeout_time_wait
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = "What if")]
    pub time_wait: Option<Duration>,
    /// With this IPVS TCP timeout
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = "What if")]
    pub ipvs_timeout: Option<Duration>,

    #[command(flatten)]
    pub page: PageArgs,
}

/// The range of the sysctls that hold them, and far beyond any machine's rates.
const MOST: u64 = 2_147_483_647;

const NOTES: &str = "\
Examples:
  rsttrace plan --connections 20000 --cps 500 --udp 1000 --quiet 8h --ram 16G
          Settings for a node, from its expected load.
  rsttrace plan --from-host --sample 60s
          From what this host does in a minute.
  rsttrace plan --udp 1000 --max 131072 --udp-timeout 300
          What becomes of a recommendation: when does this table overflow?
  rsttrace plan --connections 5000 --assume lb=350 --assume server=28800 -o json
          With a load balancer and a database server on the path, for a script.
  rsttrace plan --cps 200 --http-proxy 60 --assume server=5
          Behind an HTTP proxy that gives up after 60 s, with a server that does after 5 s.

Rules:
  R1  time + lost probes × intvl + 13 % < shortest idle limit; simply: a third of it
  R2  a dead peer is noticed after time + intvl × probes
  R3  with data in flight keepalive rests: TCP_USER_TIMEOUT
  R4  conntrack established >= IPVS tcp × 1.15
  R5  IPVS tcp > longest silence × 1.15, where clients cannot be changed
  R6  pools: ping <= limit / 3, or eviction below it; lifetime < server - 30 s
  R7  HTTP: client idle < proxy idle < server keepAliveTimeout, 10 to 15 s between
  R8  entries = sum of rate × timeout + long-lived; peak < 60 % of max
  R9  a value is changed where its owner keeps it

Exit status:
  0  fine      1  internal failure      2  usage, or a load that nothing can hold";

/// `16G`, `512M`, `16GiB`; a bare number is bytes.
fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim_end_matches("iB").trim_end_matches('B') {
        "" => 0,
        "K" | "k" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(format!("`{unit}` is no unit; use K, M, G or T")),
    };
    /// Less than any kernel boots with.
    const LEAST: u64 = 16 << 20;
    /// More than any kernel maps.
    const MOST: u64 = 1 << 52;
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(1 << shift))
        .filter(|bytes| (LEAST..=MOST).contains(bytes))
        .ok_or_else(|| format!("`{text}` is no memory such as 16G, between 16M and 4096T"))
}

fn parse_kernel(text: &str) -> Result<Kernel, String> {
    Kernel::parse(text)
        .filter(|kernel| kernel.at_least(5, 10))
        .ok_or_else(|| format!("`{text}` is no kernel release from 5.10 on"))
}

/// `lb=350`; units may follow.
fn parse_limit(text: &str) -> Result<PathLimit, String> {
    let (name, limit) =
        text.split_once('=').ok_or_else(|| format!("`{text}` is not of the form lb=350"))?;
    if name.is_empty() || !rsttrace_model::escape::is_plain(name) {
        return Err(format!("`{name}` is no name of letters, digits and hyphens"));
    }
    let seconds = parse_duration(limit)?.as_secs();
    match seconds {
        0 => Err("a limit below a second breaks every connection".into()),
        more if more > MOST => Err(format!("`{limit}` is longer than any timer")),
        _ => Ok(PathLimit { name: name.to_owned(), seconds }),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn parse(words: &[&str]) -> Result<PlanArgs, clap::Error> {
        let cli = Cli::try_parse_from(["rsttrace", "plan"].iter().chain(words))?;
        match cli.command {
            Command::Plan(args) => Ok(*args),
            _ => unreachable!("the command is plan"),
        }
    }

    #[test]
    fn what_cannot_be_is_a_usage_error() {
        for words in [
            &[][..],
            &["--ram", "16G"],
            &["--connections", "-1"],
            &["--connections", "2147483648"],
            &["--cps", "1", "--ram", "1M"],
            &["--cps", "1", "--ram", "16X"],
            &["--cps", "1", "--cpus", "0"],
            &["--cps", "1", "--kernel", "4.19"],
            &["--cps", "1", "--max", "0"],
            &["--cps", "1", "--life", "0s"],
            &["--cps", "1", "--assume", "lb"],
            &["--cps", "1", "--assume", "lb=0"],
            &["--cps", "1", "--assume", "\u{1b}=1"],
            &["--cps", "1", "--sample", "5s"],
        ] {
            let error = parse(words).expect_err("a usage error");
            assert_eq!(error.exit_code(), 2, "{words:?}");
        }
    }

    #[test]
    fn sizes_and_limits_have_units() {
        let args =
            parse(&["--udp", "1", "--ram", "16GiB", "--assume", "lb=350", "--assume", "nat=4m"])
                .expect("valid");
        assert_eq!(args.ram, Some(16 << 30));
        let seconds: Vec<_> = args.assume.iter().map(|limit| limit.seconds).collect();
        assert_eq!(seconds, [350, 240]);
    }
}
