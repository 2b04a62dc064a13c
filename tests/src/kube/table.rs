//! What kube-proxy does to connections: each event with its outcome in each mode, written without knowledge of any
//! output of rsttrace.

use anyhow::Result;

use super::{
    events,
    proxy::{
        Mode::{self, Iptables, Ipvs, Nftables},
        Timeouts,
    },
    stage::{Stage, Wire},
};

pub struct Row {
    pub name: &'static str,
    /// What happens to the service.
    pub event: &'static str,
    /// With which settings kube-proxy runs.
    pub timeouts: Timeouts,
    pub expected: &'static [(Mode, Expected)],
    /// Does it; returns what each connection saw.
    pub provoke: fn(&Stage<'_>) -> Result<Vec<Wire>>,
}

impl Row {
    pub fn expected(&self, mode: Mode) -> Option<&'static Expected> {
        self.expected.iter().find_map(|(of, expected)| (*of == mode).then_some(expected))
    }
}

/// What may become of a connection. Nothing may be reported for one that lives on or ends in order.
pub struct Expected {
    pub may_live: bool,
    /// At least one connection must fail so; each that does is one incident.
    pub failure: Option<Failure>,
}

pub struct Failure {
    /// The errors that the socket may get.
    pub errnos: &'static [&'static str],
    pub cause: &'static str,
    /// A word that the incident must contain.
    pub mentions: Option<&'static str>,
}

const LIVES: Expected = Expected { may_live: true, failure: None };

const fn fails(cause: &'static str, errnos: &'static [&'static str]) -> Expected {
    Expected { may_live: false, failure: Some(Failure { errnos, cause, mentions: None }) }
}

/// Where chance decides.
const fn may_fail(cause: &'static str, errnos: &'static [&'static str]) -> Expected {
    Expected { may_live: true, failure: Some(Failure { errnos, cause, mentions: None }) }
}

/// By a rule that belongs to kube-proxy.
const REJECTED: Expected = Expected {
    may_live: false,
    failure: Some(Failure {
        errnos: &["ECONNREFUSED"],
        cause: "no_backend",
        mentions: Some("kube-proxy"),
    }),
};

const NO_ANSWER: Expected = fails("retransmission_timeout", &["ETIMEDOUT", "EHOSTUNREACH"]);

const ALL_LIVE: &[(Mode, Expected)] = &[(Ipvs, LIVES), (Nftables, LIVES), (Iptables, LIVES)];
const SERVICE_DELETED: &[(Mode, Expected)] =
    &[(Ipvs, fails("ipvs_server_removed", &["ETIMEDOUT"])), (Nftables, LIVES), (Iptables, LIVES)];
const NO_ENDPOINTS: &[(Mode, Expected)] =
    &[(Ipvs, fails("no_backend", &["ECONNREFUSED"])), (Nftables, REJECTED), (Iptables, REJECTED)];
const UNSERVED: &[(Mode, Expected)] =
    &[(Ipvs, REJECTED), (Nftables, REJECTED), (Iptables, NO_ANSWER)];
const IDLE: &[(Mode, Expected)] = &[
    (Ipvs, fails("ipvs_idle_expired", &["ECONNRESET"])),
    (Nftables, may_fail("conntrack_idle_expired", &["ECONNRESET"])),
    (Iptables, may_fail("conntrack_idle_expired", &["ECONNRESET"])),
];

/// The defaults of IPVS and of kube-proxy.
const DEFAULT: Timeouts = Timeouts { ipvs_tcp: 900, conntrack_established: 86_400 };
/// In IPVS mode conntrack does not matter.
const SHORT: Timeouts = Timeouts { ipvs_tcp: 4, conntrack_established: 4 };

const fn row(
    name: &'static str,
    event: &'static str,
    expected: &'static [(Mode, Expected)],
    provoke: fn(&Stage<'_>) -> Result<Vec<Wire>>,
) -> Row {
    Row { name, event, timeouts: DEFAULT, expected, provoke }
}

pub const ROWS: &[Row] = &[
    row("no_endpoints", "the service has no endpoints", NO_ENDPOINTS, events::no_endpoints),
    row("unserved_port", "the service does not serve the port", UNSERVED, events::unserved_port),
    row("endpoint_leaves", "an endpoint leaves the slice", ALL_LIVE, events::endpoint_leaves),
    row("readiness_flap", "an endpoint is not ready for a while", ALL_LIVE, events::readiness_flap),
    row("proxy_restarted", "kube-proxy is restarted", ALL_LIVE, events::proxy_restarted),
    row("service_deleted", "the service is deleted", SERVICE_DELETED, events::service_deleted),
    row(
        "service_deleted_connect",
        "a connect to a deleted service",
        &[(Ipvs, NO_ANSWER), (Nftables, NO_ANSWER), (Iptables, NO_ANSWER)],
        events::service_deleted_connect,
    ),
    row("pod_killed", "a pod ends with its namespace", ALL_LIVE, events::pod_killed),
    row(
        "pod_killed_write",
        "data to a pod that ended with its namespace",
        &[(Ipvs, NO_ANSWER), (Nftables, NO_ANSWER), (Iptables, NO_ANSWER)],
        events::pod_killed_write,
    ),
    row(
        "local_policy",
        "externalTrafficPolicy Local without a local endpoint",
        &[(Ipvs, NO_ANSWER), (Nftables, NO_ANSWER), (Iptables, NO_ANSWER)],
        events::local_policy,
    ),
    row(
        "invalid_segment",
        "a segment that conntrack finds INVALID",
        &[(Nftables, fails("conntrack_invalid", &["ECONNRESET"])), (Iptables, LIVES)],
        events::invalid_segment,
    ),
    row(
        "no_endpoints_node",
        "the same, from the node itself",
        NO_ENDPOINTS,
        events::no_endpoints_node,
    ),
    row(
        "unserved_port_node",
        "the same, from the node itself",
        UNSERVED,
        events::unserved_port_node,
    ),
    row(
        "service_deleted_node",
        "the same, from the node itself",
        SERVICE_DELETED,
        events::service_deleted_node,
    ),
    Row {
        timeouts: SHORT,
        ..row("idle_expired", "idle beyond the timeout", IDLE, events::idle_expired)
    },
    Row {
        timeouts: SHORT,
        ..row(
            "idle_expired_node",
            "the same, from the node itself",
            IDLE,
            events::idle_expired_node,
        )
    },
    row(
        "cleanup",
        "kube-proxy --cleanup",
        &[
            (Ipvs, fails("ipvs_entry_dropped", &["ETIMEDOUT"])),
            (Nftables, fails("nat_removed", &["ETIMEDOUT"])),
            (Iptables, LIVES),
        ],
        events::cleanup,
    ),
    row(
        "to_nftables",
        "kube-proxy's mode becomes nftables",
        &[(
            Ipvs,
            may_fail(
                "ipvs_entry_dropped",
                &["ECONNRESET", "ECONNREFUSED", "ETIMEDOUT", "EHOSTUNREACH"],
            ),
        )],
        events::to_nftables,
    ),
    row("to_iptables", "kube-proxy's mode becomes iptables", &[(Ipvs, LIVES)], events::to_iptables),
    row(
        "to_ipvs",
        "kube-proxy's mode becomes ipvs",
        &[(Nftables, LIVES), (Iptables, LIVES)],
        events::to_ipvs,
    ),
];
