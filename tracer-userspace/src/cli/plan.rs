//! The arguments of `plan`: the load and the machine.

use std::time::Duration;

use clap::{ArgGroup, Args, value_parser};
use rsttrace_plan::{Kernel, PathLimit};

use super::{PageArgs, parse_duration};

/// Compute conntrack, IPVS, keepalive and pool settings for a load, with the arithmetic
///
/// Computes table sizes and timeouts from connections, rates, idle times and memory. Shows each setting with
/// every line of its arithmetic, its memory cost, the rule or kernel file it is based on, and its owner.
/// Then shows which table overflows first as the load grows, and when. Nothing on the host is changed.
///
/// Give the load as options, or measure it on this host with --from-host; an option overrides the measured
/// value. The current settings are the kernel's defaults, or those of this host with --from-host. Memory,
/// processors and kernel are those of this machine, unless given as options.
#[derive(Args, Debug)]
#[command(
    after_long_help = NOTES,
    group = ArgGroup::new("load").required(true).multiple(true)
        .args(["connections", "cps", "udp", "from_host"])
)]
pub struct PlanArgs {
    /// Number of long-lived connections that are open at the same time (pools, long polls)
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(..=MOST), help_heading = "Load")]
    pub connections: Option<u64>,
    /// New TCP connections per second, in addition to the long-lived ones
    #[arg(long, value_name = "RATE", value_parser = value_parser!(u64).range(..=MOST), help_heading = "Load")]
    pub cps: Option<u64>,
    /// Lifetime of one of these new connections
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "1s", help_heading = "Load")]
    pub life: Duration,
    /// New UDP flows per second; a DNS query is one flow
    #[arg(long, alias = "dns", value_name = "RATE", value_parser = value_parser!(u64).range(..=MOST), help_heading = "Load")]
    pub udp: Option<u64>,
    /// The longest idle time that a connection must survive
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = "Load")]
    pub quiet: Option<Duration>,

    /// Measure this host
    ///
    /// Reads the current settings, the number of conntrack entries and the established sockets, and computes
    /// the rates of TCP connections and UDP flows from two readings of counters. What cannot be measured is
    /// listed, with the option that sets it. No conntrack table is dumped.
    #[arg(long, help_heading = "Measuring")]
    pub from_host: bool,
    /// Time between the two readings of the counters
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "10s", requires = "from_host", help_heading = "Measuring")]
    pub sample: Duration,

    /// Memory of the machine: 16G, 512M
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = "Machine")]
    pub ram: Option<u64>,
    /// Number of processors
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(1..=65_536), help_heading = "Machine")]
    pub cpus: Option<u64>,
    /// Kernel release, such as 6.1; entry sizes and defaults differ between releases
    #[arg(long, value_name = "RELEASE", value_parser = parse_kernel, help_heading = "Machine")]
    pub kernel: Option<Kernel>,
    /// No connection passes through IPVS
    #[arg(long, help_heading = "Machine")]
    pub no_ipvs: bool,
    /// kube-proxy runs on the machine and owns its settings; detected with --from-host
    #[arg(long, help_heading = "Machine")]
    pub kube_proxy: bool,
    /// Another idle limit on the path, in seconds: lb=350, nat=240, server=28800.
    /// A `server` closes idle connections itself; all others drop them without an answer
    #[arg(long, value_name = "NAME=SECONDS", value_parser = parse_limit, help_heading = "Machine")]
    pub assume: Vec<PathLimit>,
    /// Idle timeout of an HTTP (L7) proxy or load balancer in front, on both its sides
    ///
    /// `--assume server=SECONDS` is then the keepAliveTimeout of the HTTP server. An L4 load balancer (NLB)
    /// only forwards packets and closes no connection: use `--assume lb=350` for it.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = "Machine")]
    pub http_proxy: Option<Duration>,

    /// Evaluate this nf_conntrack_max instead of computing one
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(1..=MOST), help_heading = "What if")]
    pub max: Option<u64>,
    /// Use this nf_conntrack_udp_timeout
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = "What if")]
    pub udp_timeout: Option<Duration>,
    /// Use this nf_conntrack_tcp_timeout_time_wait
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = "What if")]
    pub time_wait: Option<Duration>,
    /// Use this IPVS TCP timeout
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = "What if")]
    pub ipvs_timeout: Option<Duration>,

    #[command(flatten)]
    pub page: PageArgs,
}

/// The largest value of the sysctls, and far above the rates of any machine.
const MOST: u64 = 2_147_483_647;

const NOTES: &str = "\
Examples:
  rsttrace plan --connections 20000 --cps 500 --udp 1000 --quiet 8h --ram 16G
          Settings for a node from its expected load.
  rsttrace plan --from-host --sample 60s
          Settings for this host from one minute of measurement.
  rsttrace plan --udp 1000 --max 131072 --udp-timeout 300
          Evaluate a recommendation: when does this table overflow?
  rsttrace plan --connections 5000 --assume lb=350 --assume server=28800 -o json
          With a load balancer and a database server on the path, for a script.
  rsttrace plan --cps 200 --http-proxy 60 --assume server=5
          Behind an HTTP proxy with an idle timeout of 60 s, for a server with one of 5 s.

Rules:
  R1  time + lost probes × intvl + 13 % < shortest idle limit; rule of thumb: a third of the limit
  R2  a dead peer is detected after time + intvl × probes
  R3  with data in flight keepalive is paused: use TCP_USER_TIMEOUT
  R4  conntrack established >= IPVS tcp × 1.15
  R5  IPVS tcp > longest idle time × 1.15, where clients cannot be changed
  R6  pools: ping <= limit / 3, or idle eviction below the limit; lifetime < server - 30 s
  R7  HTTP: client idle < proxy idle < server keepAliveTimeout, 10 to 15 s apart
  R8  entries = sum of rate × timeout + long-lived; peak < 60 % of max
  R9  change a value where its owner configures it

Exit status:
  0  success      1  internal error      2  usage error, or a load that no setting can hold";

/// Parses `16G`, `512M` or `16GiB`; a bare number is bytes.
fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim_end_matches("iB").trim_end_matches('B') {
        "" => 0,
        "K" | "k" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(format!("invalid unit `{unit}` (expected K, M, G or T)")),
    };
    /// No kernel boots with less memory.
    const LEAST: u64 = 16 << 20;
    /// No kernel maps more memory.
    const MOST: u64 = 1 << 52;
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(1 << shift))
        .filter(|bytes| (LEAST..=MOST).contains(bytes))
        .ok_or_else(|| format!("invalid memory size `{text}` (expected 16M to 4096T)"))
}

fn parse_kernel(text: &str) -> Result<Kernel, String> {
    Kernel::parse(text)
        .filter(|kernel| kernel.at_least(5, 10))
        .ok_or_else(|| format!("invalid kernel release `{text}` (expected 5.10 or later)"))
}

/// Parses `lb=350`; the number may have a unit.
fn parse_limit(text: &str) -> Result<PathLimit, String> {
    let (name, limit) =
        text.split_once('=').ok_or_else(|| format!("invalid limit `{text}` (expected lb=350)"))?;
    if name.is_empty() || !rsttrace_model::escape::is_plain(name) {
        return Err(format!("invalid name `{name}` (expected letters, digits and hyphens)"));
    }
    let seconds = parse_duration(limit)?.as_secs();
    match seconds {
        0 => Err(format!("invalid limit `{limit}` (expected at least 1 second)")),
        more if more > MOST => {
            Err(format!("invalid limit `{limit}` (expected at most {MOST} seconds)"))
        }
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
    fn impossible_values_are_usage_errors() {
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
