//! Sockets that give up after a time of their own.

use rsttrace_core::fix::{Change, Fix, FixOwner};
use rsttrace_model::{socket::SocketOptions, tcp_state};

use super::{Netns, Question, Rule};
use crate::{
    connections::End,
    finding::{Finding, Rank, counted},
    remedies,
};

pub const RULE: Rule = Rule {
    id: "user_timeout",
    causes: &[CAUSE],
    doc: "TCP_USER_TIMEOUT takes the place of tcp_retries2, and of the count of keepalive probes: from the \
          first probe without an answer on, the silence is held against it alone \
          (net/ipv4/tcp_timer.c, tcp_keepalive_timer). At or below time + intvl a single lost probe ends the \
          connection; below seven times the retransmission interval, 0.2 s at least, the loss of three \
          segments in a row does.",
    judge,
};

const CAUSE: &str = "user_timeout";
const FIX: &str = "user_timeout_in_step";

/// `TCP_RTO_MIN` (include/net/tcp.h), milliseconds.
const SMALLEST_INTERVAL_MS: u64 = 200;
/// Retransmissions after 1, 3 and 7 intervals.
const THREE_RETRANSMISSIONS_MS: u64 = 7 * SMALLEST_INTERVAL_MS;

/// A socket that has the option set.
struct Limited<'a> {
    end: End<'a>,
    limit_ms: u64,
    keepalive: Option<Keepalive>,
}

/// Whole milliseconds.
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

    /// Silence after which all have been sent and the last has had no answer.
    fn all_ms(self) -> u64 {
        self.time_ms + self.intvl_ms * self.probes
    }
}

impl Limited<'_> {
    /// One lost probe is one too many, where the count would allow more.
    fn hangs_on_one_probe(&self) -> Option<Keepalive> {
        self.keepalive.filter(|it| it.probes > 1 && it.probes_within(self.limit_ms) == 1)
    }

    fn is_hasty(&self) -> bool {
        self.limit_ms < THREE_RETRANSMISSIONS_MS
    }

    fn describe(&self) -> String {
        let Self { end, limit_ms, .. } = self;
        let flow = end.socket.flow;
        let keepalive = end.keepalive();
        format!("{} → {}: TCP_USER_TIMEOUT {limit_ms} ms, {keepalive}", flow.src, flow.dst)
    }
}

fn judge(question: &Question<'_>) -> Vec<Finding> {
    let limited: Vec<Limited<'_>> = question.ends.all().filter_map(limited).collect();
    let mut findings = Vec::new();
    for netns in question.namespaces() {
        let of_netns = || limited.iter().filter(|it| std::ptr::eq(it.end.netns, netns));
        let hasty = of_netns().filter(|it| it.is_hasty()).collect();
        let one_probe =
            of_netns().filter(|it| !it.is_hasty() && it.hangs_on_one_probe().is_some()).collect();
        let chosen =
            of_netns().filter(|it| !it.is_hasty() && it.hangs_on_one_probe().is_none()).collect();
        findings.extend(too_hasty(netns, hasty));
        findings.extend(one_probe_too_few(netns, one_probe));
        findings.extend(by_choice(netns, chosen));
    }
    findings
}

fn limited(end: End<'_>) -> Option<Limited<'_>> {
    let options = end.held?.options?;
    let elsewhere = !end.socket.flow.dst.ip().is_loopback();
    let concerned = elsewhere && end.socket.state == tcp_state::ESTABLISHED;
    (concerned && options.user_timeout_ms > 0).then(|| Limited {
        end,
        limit_ms: options.user_timeout_ms.into(),
        keepalive: Keepalive::of(options),
    })
}

/// So little that losses in a row, and no outage, are enough.
fn too_hasty(netns: &Netns, mut them: Vec<&Limited<'_>>) -> Option<Finding> {
    them.sort_by_key(|it| it.limit_ms);
    let least = them.first()?;
    let reason = format!(
        "{} {} may be given up before data was sent again three times: TCP_USER_TIMEOUT is {} ms",
        counted(them.len(), "connection"),
        netns.place.describe(),
        least.limit_ms,
    );
    let formula = format!(
        "TCP_USER_TIMEOUT ≥ {SMALLEST_INTERVAL_MS} ms × (1 + 2 + 4) = {THREE_RETRANSMISSIONS_MS} ms; it is {} ms",
        least.limit_ms
    );
    let fix = remedies::documented(CAUSE, FIX);
    Some(found(netns, Rank::Warn, reason, &them).formula(formula).fix(fix))
}

fn one_probe_too_few(netns: &Netns, mut them: Vec<&Limited<'_>>) -> Option<Finding> {
    them.sort_by_key(|it| it.limit_ms);
    let least = them.first()?;
    let keepalive = least.hangs_on_one_probe()?;
    let Keepalive { time_ms, intvl_ms, probes } = keepalive;
    let reason = format!(
        "a single lost keepalive probe ends {} {}: TCP_USER_TIMEOUT is over before the second of {probes} is \
         sent",
        counted(them.len(), "connection"),
        netns.place.describe(),
    );
    let formula = format!(
        "TCP_USER_TIMEOUT > time + intvl = {time_ms} + {intvl_ms} = {} ms; it is {} ms",
        time_ms + intvl_ms,
        least.limit_ms
    );
    let fix = in_step(least, keepalive);
    Some(found(netns, Rank::Warn, reason, &them).formula(formula).fix(fix))
}

fn by_choice(netns: &Netns, mut them: Vec<&Limited<'_>>) -> Option<Finding> {
    them.sort_by_key(|it| it.limit_ms);
    let least = them.first()?;
    let reason = format!(
        "{} {} {} up when nothing was acknowledged for {} ms or longer, whatever tcp_retries2 and the number of \
         keepalive probes are: TCP_USER_TIMEOUT is set",
        counted(them.len(), "connection"),
        netns.place.describe(),
        if them.len() == 1 { "gives" } else { "give" },
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
        None => format!("data is given up after {} ms in place of tcp_retries2", least.limit_ms),
    };
    Some(found(netns, Rank::Info, reason, &them).formula(formula))
}

fn found(netns: &Netns, rank: Rank, reason: String, them: &[&Limited<'_>]) -> Finding {
    Finding::new(RULE.id, rank, &netns.place, reason)
        .cause(CAUSE)
        .owner(FixOwner::Application)
        .source("the sockets' own options")
        .connections(them.iter().map(|it| it.describe()))
}

/// A longer timeout, or where that would be longer than anybody waits, sooner probes.
fn in_step(least: &Limited<'_>, keepalive: Keepalive) -> Option<Fix> {
    const LONGEST_MS: u64 = 600_000;
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
