//! Keepalives and timeouts of idle connections, for the shortest idle limit of the path.

use rsttrace_core::{
    causes::remedy::{Period, limit_above},
    fix::{Change, Fix, FixOwner, Risk},
};
use rsttrace_model::netns::{NetnsReach, Place};

use super::{
    Demand, Impossible, Item, Rule, Source, Step, Unit, application_fix,
    idle_limit::{MOST_PERIOD_S, ShortestLimit},
    seconds,
};

/// Timeouts are jiffies in an `int` and HZ is at most 1000: `INT_MAX / HZ`, seconds.
const MOST_SECONDS: u64 = 2_147_483;
/// A timer of the kernel's wheel may be late by an eighth of its time (kernel/time/timer.c), parts of a
/// hundred.
const LATE: u64 = 13;

/// Time until a dead peer is detected on an idle connection, seconds.
pub fn detection_s(time_s: u64, intvl_s: u64, probes: u64) -> u64 {
    time_s.saturating_add(intvl_s.saturating_mul(probes))
}

/// Whether a keepalive re-arms a limit in time although `lost` of its probes are lost.
pub fn fits(time_s: u64, intvl_s: u64, lost: u64, limit_s: u64) -> bool {
    let latest = time_s.saturating_add(intvl_s.saturating_mul(lost)).saturating_mul(100);
    latest.saturating_add(time_s.saturating_mul(LATE)) < limit_s.saturating_mul(100)
}

/// # Errors
/// When the quiet time is longer than any timeout of the kernel.
pub fn items(demand: &Demand) -> Result<Vec<Item>, Impossible> {
    let shortest = ShortestLimit::of(demand);
    let period = shortest.keepalive();
    let mut items = vec![keepalive_time(demand, &shortest, &period)];
    items.extend(keepalive_rest(demand, &period));
    items.push(user_timeout(&period));
    items.extend(longer_ipvs(demand, &shortest)?);
    items.extend(conntrack_behind(demand));
    Ok(items)
}

fn keepalive_time(demand: &Demand, shortest: &ShortestLimit, period: &Period) -> Item {
    let Period { time_s, intvl_s, .. } = *period;
    let mut steps = shortest.steps.clone();
    let third = format!("{} s / 3, at most {MOST_PERIOD_S} s", shortest.seconds);
    steps.push(Step::new("a third of the shortest", third, seconds(time_s)));
    let late = time_s * LATE / 100;
    steps.push(Step::new(
        "one probe lost, timer late",
        format!("{time_s} + {intvl_s} + {late} s, below {} s", shortest.seconds),
        seconds(time_s + intvl_s + late),
    ));
    let mut warnings = Vec::new();
    if let Some(quiet) = demand.quiet_s
        && quiet < shortest.seconds
    {
        warnings.push(format!(
            "the longest idle time is below the limit ({quiet} s < {} s): connections survive without \
             keepalive as long as that is true",
            shortest.seconds
        ));
    }
    let now = &demand.now;
    if !fits(now.keepalive_time_s, now.keepalive_intvl_s, 1, shortest.seconds) {
        warnings.push(format!(
            "a keepalive time of {} s is too long to refresh {} in time",
            now.keepalive_time_s, shortest.name
        ));
    }
    Item {
        key: "net.ipv4.tcp_keepalive_time",
        value: time_s,
        unit: Unit::Seconds,
        fix: Fix {
            current: Some(seconds(now.keepalive_time_s)),
            wanted: Some(seconds(time_s)),
            ..application_fix(
                "keepalive_below_limit",
                format!("send keepalives at least every {time_s} s"),
                "each probe re-arms every timer on the path; sockets without SO_KEEPALIVE send no probes, \
                 whatever the sysctls are",
                "set SO_KEEPALIVE and TCP_KEEPIDLE, or SO_KEEPALIVE and the sysctl in the application's own \
                 network namespace (securityContext.sysctls): a pod does not inherit the host's sysctls"
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
            ..application_fix(
                "keepalive_detection",
                format!("{key} = {value}"),
                "a dead peer is detected soon, and one lost probe is not fatal",
                "set TCP_KEEPINTVL and TCP_KEEPCNT, or the sysctls in the application's own network namespace"
                    .into(),
            )
        },
        steps,
        memory_bytes: None,
        sources: vec![Source::Rule(Rule::Detection), Source::File("net/ipv4/tcp_timer.c")],
        warnings: Vec::new(),
    }
    };
    let intvl_steps = vec![Step::new(
        "a tenth of the keepalive time",
        format!("{time_s} s / 10"),
        seconds(intvl_s),
    )];
    let probe_steps = vec![
        Step::new(
            "dead peer detected after",
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
        fix: application_fix(
            "user_timeout",
            format!("time out unacknowledged data after {value} ms"),
            "keepalive pauses while data is in flight, and tcp_retries2=15 then takes about 924 s",
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

/// A longer IPVS timeout, for clients that cannot be changed.
fn longer_ipvs(demand: &Demand, shortest: &ShortestLimit) -> Result<Option<Item>, Impossible> {
    let Some(quiet) = demand.quiet_s else {
        return Ok(None);
    };
    if quiet > MOST_SECONDS {
        let text = format!(
            "an idle time of {quiet} s is too long: no kernel timeout exceeds {MOST_SECONDS} s"
        );
        return Err(Impossible(text));
    }
    if !demand.ipvs || quiet < demand.now.ipvs_tcp_s {
        return Ok(None);
    }
    #[expect(clippy::cast_precision_loss, reason = "at most 31 bits")]
    let wanted = limit_above(quiet as f64).min(MOST_SECONDS);
    let (now, to_s) = (demand.now.ipvs_tcp_s, u32::try_from(wanted).unwrap_or(u32::MAX));
    let mut warnings = vec![
        "entries that are already idle keep the old timer; a reboot resets the value".to_owned(),
        format!(
            "use this only where clients cannot send keepalives: the entry of every connection that ends \
             without a FIN then stays for {wanted} s"
        ),
    ];
    if shortest.name != "IPVS tcp" {
        warnings.push(format!(
            "{} ({} s) is shorter, and this does not change it",
            shortest.name, shortest.seconds
        ));
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
            summary: format!("or raise the IPVS TCP timeout to {wanted} s"),
            reason: "an entry then outlives the longest idle time".into(),
            current: Some(seconds(now)),
            wanted: Some(seconds(wanted)),
            changes: vec![change],
        },
        steps: vec![
            Step::new("longest idle time", format!("{quiet} s × 1.15"), seconds(wanted)),
            Step::new(
                "if 1 % end without a FIN",
                format!("{}/s × {wanted} s", demand.cps.div_ceil(100)),
                format!("{lost} more entries"),
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
                "with masquerading, a flow whose conntrack entry expired may come back with another port"
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

/// Further notes about idle connections.
pub fn notes(demand: &Demand) -> Vec<String> {
    let mut notes = vec![
        "conntrack has further limits: 300 s for a connection with unacknowledged data or after \
         retransmissions (tcp_timeout_unacknowledged, _max_retrans)"
            .to_owned(),
    ];
    if demand.server_s().is_none() && demand.http_proxy_s.is_none() {
        notes.push(
            "the pool's maximum lifetime depends on the server's own limit (MySQL's wait_timeout): pass \
             --assume server=28800"
                .into(),
        );
    }
    notes
}
