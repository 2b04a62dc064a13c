//! Silence: keepalives, timeouts and pools that outlive the shortest idle limit of the path.

use rsttrace_core::{
    causes::remedy::{Period, limit_above},
    fix::{Change, Fix, FixOwner, Risk},
};
use rsttrace_model::netns::{NetnsReach, Place};

use super::{Demand, Impossible, Item, Rule, Source, Step, Unit, pool};

/// Timeouts are jiffies in an `int` and HZ is at most 1000: `INT_MAX / HZ`, seconds.
const MOST_SECONDS: u64 = 2_147_483;
/// However long the limits are: dead peers are to be noticed, and limits nobody knows of re-armed.
const MOST_PERIOD_S: u64 = 300;
/// A timer of the kernel's wheel may be late by an eighth of its time (kernel/time/timer.c), parts of a
/// hundred.
const LATE: u64 = 13;

/// The shortest idle limit that forgets a connection silently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    pub seconds: u64,
    pub owner: String,
    steps: Vec<Step>,
}

/// How long a dead peer stays unnoticed on an idle connection, seconds.
pub fn detection_s(time_s: u64, intvl_s: u64, probes: u64) -> u64 {
    time_s.saturating_add(intvl_s.saturating_mul(probes))
}

/// Whether a keepalive re-arms a limit in time although `lost` of its probes are.
pub fn fits(time_s: u64, intvl_s: u64, lost: u64, limit_s: u64) -> bool {
    let latest = time_s.saturating_add(intvl_s.saturating_mul(lost)).saturating_mul(100);
    latest.saturating_add(time_s.saturating_mul(LATE)) < limit_s.saturating_mul(100)
}

pub(super) fn seconds(value: u64) -> String {
    format!("{value} s")
}

/// The limits of the path, and the shortest of them.
pub fn gap(demand: &Demand) -> Gap {
    let mut limits = Vec::new();
    if demand.ipvs {
        limits.push(("IPVS tcp".to_owned(), demand.now.ipvs_tcp_s));
    }
    limits.push(("conntrack established".to_owned(), demand.now.established_s));
    let silent = demand.path.iter().filter(|limit| !limit.is_server());
    limits.extend(silent.map(|limit| (limit.name.clone(), limit.seconds)));
    let mut steps: Vec<Step> = limits
        .iter()
        .map(|(name, limit)| Step::new(name, String::new(), seconds(*limit)))
        .collect();
    // Never empty: conntrack is always there.
    let (owner, shortest) =
        limits.into_iter().min_by_key(|(_, limit)| *limit).unwrap_or((String::new(), 0));
    steps.push(Step::new("the shortest", owner.clone(), seconds(shortest)));
    Gap { seconds: shortest, owner, steps }
}

/// # Errors
/// When the quiet time is longer than any timeout of the kernel.
pub fn items(demand: &Demand) -> Result<Vec<Item>, Impossible> {
    let gap = gap(demand);
    #[expect(clippy::cast_precision_loss, reason = "at most 31 bits")]
    let period = Period::below(gap.seconds.min(3 * MOST_PERIOD_S) as f64);
    let mut items = vec![keepalive_time(demand, &gap, &period)];
    items.extend(keepalive_rest(demand, &period));
    items.push(user_timeout(&period));
    items.extend(longer_ipvs(demand, &gap)?);
    items.extend(conntrack_behind(demand));
    items.extend(pool::items(demand, &gap, &period));
    Ok(items)
}

/// Everything about a pod's or an application's keepalive is a sysctl in its own namespace, or a socket
/// option.
pub(super) fn application(id: &'static str, summary: String, reason: &str, advice: String) -> Fix {
    Fix {
        id,
        owner: FixOwner::Application,
        risk: Risk::Low,
        summary,
        reason: reason.into(),
        current: None,
        wanted: None,
        changes: vec![Change::Advice { text: advice }],
    }
}

fn keepalive_time(demand: &Demand, gap: &Gap, period: &Period) -> Item {
    let Period { time_s, intvl_s, .. } = *period;
    let mut steps = gap.steps.clone();
    let third = format!("{} s / 3, at most {MOST_PERIOD_S} s", gap.seconds);
    steps.push(Step::new("a third of it", third, seconds(time_s)));
    let late = time_s * LATE / 100;
    steps.push(Step::new(
        "one probe lost, timer late",
        format!("{time_s} + {intvl_s} + {late} s, below {} s", gap.seconds),
        seconds(time_s + intvl_s + late),
    ));
    let mut warnings = Vec::new();
    if let Some(quiet) = demand.quiet_s
        && quiet < gap.seconds
    {
        warnings.push(format!(
            "no silence is as long as the limit ({quiet} s < {} s): it holds without keepalive, as long as \
             that is so",
            gap.seconds
        ));
    }
    let now = &demand.now;
    if !fits(now.keepalive_time_s, now.keepalive_intvl_s, 1, gap.seconds) {
        warnings.push(format!(
            "with {} s, the first keepalive comes after {} has forgotten the connection",
            now.keepalive_time_s, gap.owner
        ));
    }
    Item {
        key: "net.ipv4.tcp_keepalive_time",
        value: time_s,
        unit: Unit::Seconds,
        fix: Fix {
            current: Some(seconds(now.keepalive_time_s)),
            wanted: Some(seconds(time_s)),
            ..application(
                "keepalive_below_limit",
                format!("send keepalives at least every {time_s} s"),
                "each probe re-arms every timer of the path; sockets without SO_KEEPALIVE send none, \
                 whatever the sysctls say",
                "SO_KEEPALIVE on, and TCP_KEEPIDLE, or the sysctl in the application's own network \
                 namespace (securityContext.sysctls): a pod does not inherit the host's"
                    .into(),
            )
        },
        steps,
        memory_bytes: None,
        sources: vec![
            Source::Rule(Rule::KeepalivePeriod),
            Source::File("net/ipv4/tcp_timer.c"),
            Source::File("kernel/time/timer.c"),
        ],
        warnings,
    }
}

fn keepalive_rest(demand: &Demand, period: &Period) -> [Item; 2] {
    let Period { time_s, intvl_s, probes } = *period;
    let now = &demand.now;
    let detects = |time, intvl, probes| seconds(detection_s(time, intvl, probes));
    let item = |key, value: u64, unit, current: u64, steps| {
        Item {
        key,
        value,
        unit,
        fix: Fix {
            current: Some(current.to_string()),
            wanted: Some(value.to_string()),
            ..application(
                "keepalive_detection",
                format!("{key} = {value}"),
                "a dead peer is noticed soon, and one lost probe is no death",
                "TCP_KEEPINTVL and TCP_KEEPCNT, or the sysctls in the application's own network namespace"
                    .into(),
            )
        },
        steps,
        memory_bytes: None,
        sources: vec![Source::Rule(Rule::Detection), Source::File("net/ipv4/tcp_timer.c")],
        warnings: Vec::new(),
    }
    };
    let intvl_steps =
        vec![Step::new("a tenth of the time", format!("{time_s} s / 10"), seconds(intvl_s))];
    let probe_steps = vec![
        Step::new(
            "dead peer noticed after",
            format!("{time_s} + {intvl_s} × {probes} s"),
            detects(time_s, intvl_s, probes),
        ),
        Step::new(
            "now",
            format!(
                "{} + {} × {} s",
                now.keepalive_time_s, now.keepalive_intvl_s, now.keepalive_probes
            ),
            detects(now.keepalive_time_s, now.keepalive_intvl_s, now.keepalive_probes),
        ),
    ];
    [
        item(
            "net.ipv4.tcp_keepalive_intvl",
            intvl_s,
            Unit::Seconds,
            now.keepalive_intvl_s,
            intvl_steps,
        ),
        item(
            "net.ipv4.tcp_keepalive_probes",
            probes,
            Unit::Probes,
            now.keepalive_probes,
            probe_steps,
        ),
    ]
}

fn user_timeout(period: &Period) -> Item {
    let detects = detection_s(period.time_s, period.intvl_s, period.probes);
    let value = detects.saturating_sub(1).max(1) * 1000;
    Item {
        key: "TCP_USER_TIMEOUT",
        value,
        unit: Unit::Milliseconds,
        fix: application(
            "user_timeout",
            format!("give up unacknowledged data after {value} ms"),
            "keepalive rests while data is in flight, and tcp_retries2=15 then takes some 924 s",
            format!("setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, {value})"),
        ),
        steps: vec![Step::new(
            "just below detection",
            format!("{detects} s - 1 s"),
            format!("{value} ms"),
        )],
        memory_bytes: None,
        sources: vec![Source::Rule(Rule::DataInFlight), Source::File("net/ipv4/tcp_timer.c")],
        warnings: Vec::new(),
    }
}

/// For clients that cannot be changed.
fn longer_ipvs(demand: &Demand, gap: &Gap) -> Result<Option<Item>, Impossible> {
    let Some(quiet) = demand.quiet_s else {
        return Ok(None);
    };
    if quiet > MOST_SECONDS {
        let text =
            format!("a silence of {quiet} s: no timeout of the kernel is above {MOST_SECONDS} s");
        return Err(Impossible(text));
    }
    if !demand.ipvs || quiet < demand.now.ipvs_tcp_s {
        return Ok(None);
    }
    #[expect(clippy::cast_precision_loss, reason = "at most 31 bits")]
    let wanted = limit_above(quiet as f64).min(MOST_SECONDS);
    let (now, to_s) = (demand.now.ipvs_tcp_s, u32::try_from(wanted).unwrap_or(u32::MAX));
    let mut warnings = vec![
        "entries that are idle already keep the old timer; a reboot forgets the value".to_owned(),
        format!(
            "only where clients cannot send keepalives: every connection that ends without a FIN then \
             stays {wanted} s"
        ),
    ];
    if gap.owner != "IPVS tcp" {
        warnings
            .push(format!("{} ({} s) is shorter and is not helped by it", gap.owner, gap.seconds));
    }
    let (owner, change) = if demand.kube_proxy.is_some() {
        let text = format!("in KubeProxyConfiguration: ipvs.tcpTimeout: {wanted}s");
        (FixOwner::KubeProxy, Change::Advice { text })
    } else {
        let place = Place { netns: 0, reach: NetnsReach::Initial };
        let from_s = u32::try_from(now).ok();
        (
            FixOwner::Node,
            Change::IpvsTimeout {
                place,
                timer: rsttrace_model::settings::IpvsTimer::Tcp,
                from_s,
                to_s,
            },
        )
    };
    let lost = demand.cps.div_ceil(100).saturating_mul(wanted);
    Ok(Some(Item {
        key: "ipvs.tcp",
        value: wanted,
        unit: Unit::Seconds,
        fix: Fix {
            id: "raise_ipvs_timeout",
            owner,
            risk: Risk::Medium,
            summary: format!("or else raise the IPVS TCP timeout to {wanted} s"),
            reason: "an entry then outlives the longest silence".into(),
            current: Some(seconds(now)),
            wanted: Some(seconds(wanted)),
            changes: vec![change],
        },
        steps: vec![
            Step::new("longest silence", format!("{quiet} s × 1.15"), seconds(wanted)),
            Step::new(
                "if 1 % end uncleanly",
                format!("{}/s × {wanted} s", demand.cps.div_ceil(100)),
                format!("{lost} entries more"),
            ),
        ],
        memory_bytes: Some(lost.saturating_mul(super::ipvs::ENTRY_BYTES)),
        sources: vec![
            Source::Rule(Rule::RaisedIpvsTimeout),
            Source::File("net/netfilter/ipvs/ip_vs_proto_tcp.c"),
        ],
        warnings,
    }))
}

fn conntrack_behind(demand: &Demand) -> Option<Item> {
    const KEY: &str = "net.netfilter.nf_conntrack_tcp_timeout_established";
    let (ipvs, now) = (demand.now.ipvs_tcp_s, demand.now.established_s);
    let least = ipvs.saturating_mul(115).div_ceil(100).min(MOST_SECONDS);
    if !demand.ipvs {
        return None;
    }
    let value = now.max(least);
    let change = if demand.kube_proxy.is_some() {
        Change::Advice {
            text: format!("in KubeProxyConfiguration: conntrack.tcpEstablishedTimeout: {value}s"),
        }
    } else {
        let place = Place { netns: 0, reach: NetnsReach::Initial };
        Change::Sysctl { place, key: KEY, from: Some(now), to: value }
    };
    Some(Item {
        key: KEY,
        value,
        unit: Unit::Seconds,
        fix: Fix {
            id: "conntrack_behind_ipvs",
            owner: if demand.kube_proxy.is_some() { FixOwner::KubeProxy } else { FixOwner::Node },
            risk: Risk::Low,
            summary: format!("let conntrack keep established connections for {value} s"),
            reason:
                "with masquerading, a flow that conntrack forgot may come back with another port"
                    .into(),
            current: Some(seconds(now)),
            wanted: Some(seconds(value)),
            changes: if value == now { Vec::new() } else { vec![change] },
        },
        steps: vec![Step::new("IPVS tcp", format!("{ipvs} s × 1.15"), seconds(least))],
        memory_bytes: None,
        sources: vec![
            Source::Rule(Rule::ConntrackBehindIpvs),
            Source::File("net/netfilter/nf_conntrack_proto_tcp.c"),
        ],
        warnings: Vec::new(),
    })
}

/// What else to know about silence.
pub fn notes(demand: &Demand) -> Vec<String> {
    let mut notes = vec![
        "conntrack has hidden limits: 300 s for a connection with unacknowledged data or after \
         retransmissions (tcp_timeout_unacknowledged, _max_retrans)"
            .to_owned(),
    ];
    if demand.server_s().is_none() && demand.http_proxy_s.is_none() {
        notes.push(
            "the pool's maximum lifetime follows from the server's own limit (MySQL's wait_timeout): \
             --assume server=28800"
                .into(),
        );
    }
    notes
}
