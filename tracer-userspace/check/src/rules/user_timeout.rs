//! Sockets that have TCP_USER_TIMEOUT set.

use rsttrace_core::fix::{Change, Fix, FixOwner};
use rsttrace_model::{socket::SocketOptions, tcp_state};

use super::{Netns, Rule, RuleInput};
use crate::{
    connections::End,
    finding::{CheckFinding, Rank, counted},
    remedies,
};

pub const RULE: Rule = Rule {
    id: "user_timeout",
    causes: &[CAUSE],
    doc: "TCP_USER_TIMEOUT takes the place of tcp_retries2 and of the number of keepalive probes: from the \
          first unanswered probe on, only TCP_USER_TIMEOUT limits the idle time \
          (net/ipv4/tcp_timer.c, tcp_keepalive_timer). At or below time + intvl, a single lost probe ends the \
          connection. Below seven times the retransmission interval (at least 0.2 s), the loss of three \
          segments in a row ends the connection.",
    judge,
};

const CAUSE: &str = "user_timeout";
const FIX: &str = "user_timeout_in_step";

/// `TCP_RTO_MIN` (include/net/tcp.h), milliseconds.
const SMALLEST_INTERVAL_MS: u64 = 200;
/// The longest TCP_USER_TIMEOUT that the fix sets, milliseconds.
const LONGEST_MS: u64 = 600_000;
/// Retransmissions after 1, 3 and 7 intervals, milliseconds.
const THREE_RETRANSMISSIONS_MS: u64 = 7 * SMALLEST_INTERVAL_MS;

/// A socket that has TCP_USER_TIMEOUT set.
struct Limited<'a> {
    end: End<'a>,
    limit_ms: u64,
    keepalive: Option<Keepalive>,
}

/// The keepalive times of a socket, whole milliseconds.
#[derive(Clone, Copy)]
struct Keepalive {
    time_ms: u64,
    intvl_ms: u64,
    probes: u64,
}

impl Keepalive {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "milliseconds")]
    fn of(options: SocketOptions) -> Option<Self> {
        let it = options.keepalive;
        let ms = |seconds: f64| (seconds * 1000.0) as u64;
        let intvl_ms = ms(it.intvl_s).max(1);
        let probes = u64::from(it.probes);
        it.enabled.then(|| Self { time_ms: ms(it.time_s), intvl_ms, probes })
    }

    /// Probes that are sent before a limit ends the connection.
    fn probes_within(self, limit_ms: u64) -> u64 {
        limit_ms.saturating_sub(self.time_ms).div_ceil(self.intvl_ms).max(1)
    }

    /// Idle time after which all probes were sent and the last one was not answered, milliseconds.
    fn all_ms(self) -> u64 {
        self.time_ms + self.intvl_ms * self.probes
    }
}

impl Limited<'_> {
    /// The limit expires after one lost probe, although the number of probes allows more.
    fn allows_one_probe(&self) -> Option<Keepalive> {
        self.keepalive.filter(|it| it.probes > 1 && it.probes_within(self.limit_ms) == 1)
    }

    fn is_too_short(&self) -> bool {
        self.limit_ms < THREE_RETRANSMISSIONS_MS
    }

    fn describe(&self) -> String {
        let Self { end, limit_ms, .. } = self;
        let flow = end.socket.flow;
        let keepalive = end.keepalive();
        format!("{} → {}: TCP_USER_TIMEOUT {limit_ms} ms, {keepalive}", flow.src, flow.dst)
    }
}

fn judge(input: &RuleInput<'_>) -> Vec<CheckFinding> {
    let limited: Vec<Limited<'_>> = input.ends.all().filter_map(limited).collect();
    let mut findings = Vec::new();
    for netns in input.namespaces() {
        let of_netns = || limited.iter().filter(|it| std::ptr::eq(it.end.netns, netns));
        let short = of_netns().filter(|it| it.is_too_short()).collect();
        let one_probe =
            of_netns().filter(|it| !it.is_too_short() && it.allows_one_probe().is_some()).collect();
        let others =
            of_netns().filter(|it| !it.is_too_short() && it.allows_one_probe().is_none()).collect();
        findings.extend(too_short(netns, short));
        findings.extend(ends_after_one_probe(netns, one_probe));
        findings.extend(replaces_sysctls(netns, others));
    }
    findings
}

fn limited(end: End<'_>) -> Option<Limited<'_>> {
    let options = end.held?.options?;
    let is_remote = !end.socket.flow.dst.ip().is_loopback();
    let is_relevant = is_remote && end.socket.state == tcp_state::ESTABLISHED;
    (is_relevant && options.user_timeout_ms > 0).then(|| Limited {
        end,
        limit_ms: options.user_timeout_ms.into(),
        keepalive: Keepalive::of(options),
    })
}

/// So short that a few lost segments in a row end the connection, without an outage.
fn too_short(netns: &Netns, mut them: Vec<&Limited<'_>>) -> Option<CheckFinding> {
    them.sort_by_key(|it| it.limit_ms);
    let least = them.first()?;
    let reason = format!(
        "{} {} may time out before data was retransmitted three times: TCP_USER_TIMEOUT is {} ms",
        counted(them.len(), "connection"),
        netns.place.describe(),
        least.limit_ms,
    );
    let formula = format!(
        "TCP_USER_TIMEOUT ≥ {SMALLEST_INTERVAL_MS} ms × (1 + 2 + 4) = {THREE_RETRANSMISSIONS_MS} ms; now {} ms",
        least.limit_ms
    );
    let fix = remedies::documented(CAUSE, FIX);
    Some(found(netns, Rank::Warn, reason, &them).formula(formula).fix(fix))
}

fn ends_after_one_probe(netns: &Netns, mut them: Vec<&Limited<'_>>) -> Option<CheckFinding> {
    them.sort_by_key(|it| it.limit_ms);
    let least = them.first()?;
    let keepalive = least.allows_one_probe()?;
    let Keepalive { time_ms, intvl_ms, probes } = keepalive;
    let reason = format!(
        "a single lost keepalive probe ends {} {}: TCP_USER_TIMEOUT expires before the second of {probes} \
         probes is sent",
        counted(them.len(), "connection"),
        netns.place.describe(),
    );
    let formula = format!(
        "TCP_USER_TIMEOUT > time + intvl = {time_ms} + {intvl_ms} = {} ms; now {} ms",
        time_ms + intvl_ms,
        least.limit_ms
    );
    let fix = in_step(least, keepalive);
    Some(found(netns, Rank::Warn, reason, &them).formula(formula).fix(fix))
}

fn replaces_sysctls(netns: &Netns, mut them: Vec<&Limited<'_>>) -> Option<CheckFinding> {
    them.sort_by_key(|it| it.limit_ms);
    let least = them.first()?;
    let reason = format!(
        "{} {} {} out when nothing was acknowledged for {} ms or longer, whatever tcp_retries2 and the \
         number of keepalive probes are: TCP_USER_TIMEOUT is set",
        counted(them.len(), "connection"),
        netns.place.describe(),
        if them.len() == 1 { "times" } else { "time" },
        least.limit_ms,
    );
    let formula = match least.keepalive {
        Some(it) => format!(
            "probes = ⌈(TCP_USER_TIMEOUT − time) / intvl⌉ = ⌈({} − {}) / {}⌉ = {}, not {}",
            least.limit_ms,
            it.time_ms,
            it.intvl_ms,
            it.probes_within(least.limit_ms),
            it.probes
        ),
        None => format!(
            "unacknowledged data times out after {} ms instead of tcp_retries2",
            least.limit_ms
        ),
    };
    Some(found(netns, Rank::Info, reason, &them).formula(formula))
}

fn found(netns: &Netns, rank: Rank, reason: String, them: &[&Limited<'_>]) -> CheckFinding {
    CheckFinding::new(RULE.id, rank, &netns.place, reason)
        .cause(CAUSE)
        .owner(FixOwner::Application)
        .source("the options of the sockets")
        .connections(them.iter().map(|it| it.describe()))
}

/// A longer timeout, or earlier probes if that timeout would be longer than [`LONGEST_MS`].
fn in_step(least: &Limited<'_>, keepalive: Keepalive) -> Option<Fix> {
    let option = |name: &str, value: u64| Change::SocketOption {
        code: format!("setsockopt(fd, IPPROTO_TCP, {name}, {value})"),
        place: None,
        shown_by: "ss -tno state established",
    };
    let all_ms = keepalive.all_ms();
    let limit_s = least.limit_ms / 1000;
    let (summary, changes) = if all_ms <= LONGEST_MS {
        let summary = format!("set TCP_USER_TIMEOUT to {all_ms} ms: time + intvl × probes");
        (summary, vec![option("TCP_USER_TIMEOUT", all_ms)])
    } else if limit_s >= 6 {
        // Three probes in the second half.
        let (time_s, intvl_s) = (limit_s.div_ceil(2), (limit_s / 6).max(1));
        let summary = format!(
            "probe after {time_s} s, every {intvl_s} s, three times, within the {limit_s} s"
        );
        let times = [("TCP_KEEPIDLE", time_s), ("TCP_KEEPINTVL", intvl_s), ("TCP_KEEPCNT", 3)];
        (summary, times.map(|(name, value)| option(name, value)).into())
    } else {
        return remedies::documented(CAUSE, FIX);
    };
    let current = Some(format!("{} ms, {}", least.limit_ms, least.end.keepalive()));
    Some(Fix { summary, current, changes, ..remedies::documented(CAUSE, FIX)? })
}
