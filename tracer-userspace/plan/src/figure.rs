//! How a load was measured, the results, and what could not be measured.

use rsttrace_model::{host_state::HostState, socket::SocketAges, tcp_state};

use super::{IpvsRates, Measured, demand::InForce, seconds_of};

/// The measurement of a load.
#[derive(Clone, Debug, PartialEq)]
pub struct Survey {
    /// Between the first reading and the last, milliseconds.
    pub ms: u64,
    pub readings: usize,
    /// Namespaces whose counters were read twice.
    pub namespaces: usize,
    pub figures: Vec<Figure>,
}

/// One measured quantity.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    pub what: &'static str,
    /// `None` where it was not measured.
    pub value: Option<u64>,
    pub unit: &'static str,
    pub bound: Bound,
    /// How it was measured, or why not.
    pub how: String,
    /// The option that sets this value.
    pub option: Option<&'static str>,
}

/// How a figure relates to the true value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    Is,
    AtMost,
    AtLeast,
}

impl Bound {
    /// The words printed before the number.
    pub fn words(self) -> &'static str {
        match self {
            Self::Is => "",
            Self::AtMost => "at most ",
            Self::AtLeast => "at least ",
        }
    }
}

impl Survey {
    /// The measurement of a host whose settings are `now`.
    pub fn new(measured: &Measured, now: &InForce, state: &HostState) -> Self {
        let Measured { ms, readings, namespaces, .. } = *measured;
        let figures = vec![
            tcp(measured),
            udp(measured, now.udp_s),
            connections(measured),
            entries(measured),
            longest_idle(state),
            Figure {
                what: "life of a short connection",
                value: None,
                unit: "s",
                bound: Bound::Is,
                how: "no kernel counter shows this".into(),
                option: Some("--life"),
            },
        ];
        Self { ms, readings, namespaces, figures }
    }
}

fn tcp(measured: &Measured) -> Figure {
    let sockets = measured.tcp_sockets;
    let sockets = sockets.map(|it| format!("sockets opened and accepted {it}/s (/proc/net/snmp)"));
    let ipvs = measured.ipvs.map(|rates| match rates {
        IpvsRates::Apart { tcp, .. } => format!("IPVS scheduled {tcp}/s"),
        IpvsRates::Together(all) => format!("IPVS scheduled {all}/s, including UDP"),
    });
    let value = sockets.as_ref().or(ipvs.as_ref()).map(|_| measured.cps());
    Figure {
        what: "new TCP connections",
        value,
        unit: "/s",
        bound: Bound::Is,
        how: joined([sockets, ipvs], "connections that are only forwarded are in no other counter"),
        option: Some("--cps"),
    }
}

fn udp(measured: &Measured, udp_s: u64) -> Figure {
    let value = measured.udp(udp_s);
    let datagrams = measured.udp_datagrams;
    let datagrams =
        datagrams.map(|it| format!("sockets sent and received {it} datagrams/s (/proc/net/snmp)"));
    let window = seconds_of(measured.udp_window_ms(udp_s) / 100 * 100);
    let room = measured.tracked().filter(|_| value.is_some()).map(|entries| {
        format!("a tracked flow of the last {window} is still one of {entries} entries")
    });
    let ipvs = match measured.ipvs {
        Some(IpvsRates::Apart { udp, .. }) => Some(format!("IPVS scheduled {udp}/s")),
        _ => None,
    };
    Figure {
        what: "new UDP flows",
        value,
        unit: "/s",
        bound: Bound::AtMost,
        how: joined(
            [datagrams, room, ipvs],
            "flows that are only forwarded are in no other counter",
        ),
        option: Some("--udp"),
    }
}

fn joined<const N: usize>(parts: [Option<String>; N], end: &str) -> String {
    let parts: Vec<_> = parts.into_iter().flatten().collect();
    if parts.is_empty() {
        "no counter could be read twice".into()
    } else {
        parts.join("; ") + "; " + end
    }
}

fn connections(measured: &Measured) -> Figure {
    Figure {
        what: "connections that stay open",
        value: measured.connections,
        unit: "",
        bound: Bound::AtMost,
        how: format!(
            "established sockets (CurrEstab), the fewest of {} readings; a connection with both ends on this \
             host counts twice",
            measured.readings
        ),
        option: Some("--connections"),
    }
}

fn entries(measured: &Measured) -> Figure {
    Figure {
        what: "conntrack entries",
        value: measured.peak,
        unit: "",
        bound: Bound::AtLeast,
        how: match (measured.peak, measured.entries) {
            (Some(_), Some(all)) => format!(
                "the most in one namespace in {} readings (nf_conntrack_count); {all} in all namespaces",
                measured.readings
            ),
            _ => "nf_conntrack is not loaded, or its count cannot be read".into(),
        },
        option: None,
    }
}

/// The idle time of an open connection is not over yet, so the figure is a lower bound. Which connections
/// must survive their idle time is not known here.
fn longest_idle(state: &HostState) -> Figure {
    let sockets = state.namespaces.iter().filter_map(|netns| netns.connections.as_ref());
    let established = sockets.flat_map(|list| &list.sockets).filter(|socket| {
        socket.state == tcp_state::ESTABLISHED && !socket.flow.src.ip().is_loopback()
    });
    let quiet = |ages: SocketAges| u64::from(ages.data_sent_ms.min(ages.data_received_ms) / 1000);
    let longest = established.filter_map(|socket| socket.ages.map(quiet)).max();
    Figure {
        what: "longest idle connection",
        value: longest,
        unit: " s",
        bound: Bound::AtLeast,
        how: match longest {
            Some(_) => {
                "an established connection (not on loopback) had no data for this long; the plan does not \
                 use this value, because only you know whether that connection must survive"
                    .into()
            }
            None => "there is no established connection, or sockets cannot be listed".into(),
        },
        option: Some("--quiet"),
    }
}
