//! An incident as one JSON object: ECS names, schema 1.x.
//!
//! The only type for incidents: `-o json` writes it, `report` reads it, `rsttrace schema` describes it. A
//! reader accepts incidents of any 1.x version, also after log shippers have changed them, so fields that it
//! does not need have a default. A writer writes every field.

use std::net::{IpAddr, SocketAddr};

use rsttrace_core::incident::{self, Side};
use rsttrace_core::verdict;
use rsttrace_model::{
    errno::errno_name,
    flow::Nanos,
    ipvs::IPPROTO_TCP,
    owner::{Owner, Pod},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    envelope::{Ecs, Host},
    fix::Fix,
    json,
    text::{Seconds, measured, sentence, timestamp},
};

/// Version of this schema; a minor version only adds fields.
pub const VERSION: &str = "1.1";

/// One broken connection, or one benign reset, with its verdict.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(title = "rsttrace incident")]
pub struct Incident {
    /// When the incident opened: RFC 3339, UTC, nine digits.
    #[serde(rename = "@timestamp")]
    #[schemars(extend("format" = "date-time"))]
    pub timestamp: String,
    #[serde(default)]
    #[schemars(extend("enum" = ["info", "warn", "error", "critical"]))]
    pub level: String,
    /// One sentence: which connection, what happened, why, the first fix.
    pub message: String,
    /// A hash of boot, namespace, tuple and first kernel time: every replay of a capture gives the same id.
    pub event_id: String,
    #[serde(default)]
    pub ecs: Ecs,
    pub event: Event,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Error>,
    /// The initiator of the connection.
    pub source: Endpoint,
    /// The responder, as the initiator addressed it.
    pub destination: Endpoint,
    #[serde(default)]
    pub network: Network,
    /// The process at the end that `rsttrace.process_of` names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<Container>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub k8s: Option<K8s>,
    #[serde(default)]
    pub host: Host,
    pub rsttrace: Verdict,
}

/// ECS `event.*`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Event {
    /// The same as `event_id`.
    pub id: String,
    #[schemars(extend("const" = "event"))]
    pub kind: String,
    pub category: Vec<String>,
    #[serde(rename = "type")]
    pub kinds: Vec<String>,
    #[schemars(extend("const" = "rsttrace"))]
    pub module: String,
    #[schemars(extend("const" = "rsttrace.incident"))]
    pub dataset: String,
    /// How the connection ended.
    #[schemars(extend("enum" = ["reset", "timeout", "drop", "error"]))]
    pub action: String,
    #[schemars(extend("enum" = ["failure", "success", "unknown"]))]
    pub outcome: String,
    /// The same as `rsttrace.cause`.
    pub reason: String,
    /// The number of the incident in its run, from 1.
    pub sequence: u64,
}

/// The error that the victim's application got.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Error {
    /// Symbolic name, such as ECONNRESET.
    pub code: String,
}

/// One end of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Endpoint {
    pub ip: IpAddr,
    pub port: u16,
    /// The translated side, where NAT or IPVS changes the address or the port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nat: Option<Translated>,
}

/// An address behind NAT or IPVS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Translated {
    pub ip: IpAddr,
    pub port: u16,
}

impl Endpoint {
    fn new(address: SocketAddr, nat: Option<SocketAddr>) -> Self {
        let nat = nat.map(|nat| Translated { ip: nat.ip(), port: nat.port() });
        Self { ip: address.ip(), port: address.port(), nat }
    }

    pub fn address(self) -> SocketAddr {
        SocketAddr::new(self.ip, self.port)
    }

    /// The translated side.
    pub fn behind_nat(self) -> Option<SocketAddr> {
        self.nat.map(|nat| SocketAddr::new(nat.ip, nat.port))
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Network {
    #[schemars(extend("const" = "tcp"))]
    pub transport: String,
    #[serde(rename = "type")]
    #[schemars(extend("enum" = ["ipv4", "ipv6"]))]
    pub family: String,
    /// The flow hash that other tools use too (Community ID 1).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub community_id: Option<String>,
}

/// A process. The process chooses its name: untrusted text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Process {
    pub pid: u32,
    pub name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Container {
    /// 64 hexadecimal digits.
    pub id: String,
}

/// Names as Elastic's Kubernetes module has them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct K8s {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodNames>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Named>,
}

/// A pod; without names where the node's files have none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct PodNames {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The UUID in its control group, or 32 hexadecimal digits of a static pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Named {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// The verdict of rsttrace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Verdict {
    /// Version of this schema.
    #[serde(default)]
    #[schemars(regex(pattern = r"^1\.[0-9]+$"))]
    pub schema: String,
    /// Id of the cause; `rsttrace explain` lists them.
    pub cause: String,
    pub family: String,
    /// Absent for `unknown` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["observed", "correlated", "inferred"]))]
    pub confidence: Option<String>,
    /// `event_id` of the incident at the connection's other end, whose verdict this one repeats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub follows: Option<String>,
    /// The end that lost its connection.
    #[serde(default)]
    #[schemars(extend("enum" = ["source", "destination", "both", "unknown"]))]
    pub victim: String,
    /// The end of the connection that `process`, `container` and `k8s` describe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["source", "destination"]))]
    pub process_of: Option<String>,
    /// How that process was found: it holds the socket, connected it, closed it, or listens where the
    /// connection was accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["descriptor", "connect", "close", "listener"]))]
    pub process_by: Option<String>,
    /// The process at the other end, where that is on this host too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<Peer>,
    /// Inode number of the victim's network namespace; 0 when unknown.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub netns: u32,
    /// Community ID of the translated tuple.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub community_id_nat: Option<String>,
    #[serde(default)]
    pub rst: Rst,
    /// How long the connection had been idle, seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_s: Option<f64>,
    /// Keepalive in force for the victim's socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keepalive: Option<Keepalive>,
    /// The IPVS entry that was lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipvs: Option<Ipvs>,
    /// The conntrack entry that was lost, and its table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conntrack: Option<Conntrack>,
    /// The findings that decided the verdict come first, then the records, oldest first.
    #[serde(default)]
    pub evidence: Vec<Evidence>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ruled_out: Vec<RuledOut>,
    /// Fixes, the recommended one first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fixes: Vec<Fix>,
    /// Common attempts that do not help here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_fixes: Vec<NotFix>,
    /// What this kernel or these privileges do not show.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blind_spots: Vec<String>,
    /// The cheapest test that would confirm the verdict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prove: Option<String>,
    /// Records lost since the start of the run.
    #[serde(default)]
    pub lost_events: u64,
    /// Lists were cut to keep the line below 12 KiB.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// The process at the other end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Peer {
    #[serde(default)]
    pub process: Process,
    #[serde(default)]
    #[schemars(extend("enum" = ["descriptor", "connect", "close", "listener"]))]
    pub process_by: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<Container>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub k8s: Option<K8s>,
}

/// The reset, as recorded on this host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Rst {
    #[schemars(extend("enum" = ["received", "sent", "none"]))]
    pub direction: String,
    /// Absent where not every reset that this host sends is traced.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["local_stack", "local_socket", "netfilter", "remote", "none"]))]
    pub origin: Option<String>,
    /// The running kernel's name for the reason (`enum sk_rst_reason`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// SO_KEEPALIVE and its times.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Keepalive {
    pub enabled: bool,
    #[serde(default = "Keepalive::unknown")]
    pub time_s: Seconds,
    #[serde(default = "Keepalive::unknown")]
    pub intvl_s: Seconds,
    #[serde(default)]
    pub probes: u8,
}

impl Keepalive {
    /// The value for a reader where an event has no time.
    fn unknown() -> Seconds {
        Seconds(0.0)
    }
}

/// A lost IPVS entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Ipvs {
    /// The kernel's name, such as ESTABLISHED.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// The limit of that state, seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_s: Option<Seconds>,
}

/// A lost conntrack entry, and its table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Conntrack {
    /// The kernel's name, such as ESTABLISHED.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// The sysctl whose limit was reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_s: Option<Seconds>,
    /// Name of the process that deleted the entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deleted_by: Option<String>,
    /// Entries in the table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    /// The limit of entries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<u32>,
}

/// One piece of evidence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Evidence {
    /// Machine-readable kind, from a closed set.
    #[serde(default)]
    pub kind: String,
    /// How long before the incident it happened, seconds; below 0 when it came after.
    pub age_s: f64,
    pub summary: String,
}

/// A cause that was considered and does not fit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RuledOut {
    pub cause: String,
    pub because: String,
}

/// Something that does not help here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NotFix {
    pub what: String,
    pub because: String,
}

/// The longest line, bytes. Container runtimes cut lines at 16 KiB.
pub(crate) const MAX_LINE: usize = 12 * 1024;

/// The text that only a shortened line has.
const TRUNCATED: &str = ",\"truncated\":true";

impl Incident {
    /// One line, without the line end, shorter than 12 KiB. The least important lists are shortened first;
    /// the first fix and the first finding stay.
    pub fn line(mut self) -> String {
        let mut line = json::line(&self);
        for list in 0..5 {
            if line.len() < MAX_LINE {
                break;
            }
            // `truncated` needs room as well.
            let excess = line.len() + TRUNCATED.len() + 1 - MAX_LINE;
            let Verdict { blind_spots, ruled_out, not_fixes, evidence, fixes, .. } =
                &mut self.rsttrace;
            match list {
                0 => shorten(blind_spots, 0, excess),
                1 => shorten(ruled_out, 0, excess),
                2 => shorten(not_fixes, 0, excess),
                3 => shorten(evidence, 1, excess),
                _ => shorten(fixes, 1, excess),
            }
            self.rsttrace.truncated = true;
            line = json::line(&self);
        }
        line
    }
}

/// Drops trailing items until `excess` bytes are saved or only `keep` are left.
fn shorten<T: Serialize>(items: &mut Vec<T>, keep: usize, excess: usize) {
    let mut saved = 0;
    while saved < excess && items.len() > keep {
        // One more for the comma.
        saved += items.pop().map_or(0, |item| json::line(&item).len() + 1);
    }
}

#[expect(clippy::cast_precision_loss, reason = "seconds for display")]
pub(crate) fn age_s(opened: Nanos, ts: Nanos) -> f64 {
    measured((opened as f64 - ts as f64) / 1e9)
}

/// The flow hash that other tools use too; `None` for a mixed pair of address families.
fn community_id(source: SocketAddr, destination: SocketAddr) -> Option<String> {
    if source.is_ipv4() != destination.is_ipv4() {
        return None;
    }
    community_id::calculate_community_id(
        0,
        source.ip(),
        destination.ip(),
        Some(source.port()),
        Some(destination.port()),
        IPPROTO_TCP,
        Default::default(),
    )
    .ok()
}

fn process(owner: &Owner) -> Process {
    Process { pid: owner.pid, name: owner.comm.clone() }
}

fn container(owner: &Owner) -> Option<Container> {
    Some(Container { id: owner.container_id.clone()? })
}

fn k8s(owner: &Owner) -> Option<K8s> {
    let Pod { uid, name, namespace } = owner.pod.clone()?;
    let namespace = namespace.map(|name| Named { name: Some(name) });
    Some(K8s { pod: Some(PodNames { name, uid }), namespace })
}

impl From<&incident::Incident> for Incident {
    fn from(incident: &incident::Incident) -> Self {
        let owner = incident.owner.as_ref();
        let benign = incident.cause.family == verdict::Family::Benign;
        Self {
            timestamp: timestamp(incident.wall_ns),
            level: incident.level().into(),
            message: sentence(&incident.message()),
            event_id: incident.event_id.clone(),
            ecs: Ecs::current(),
            event: Event {
                id: incident.event_id.clone(),
                kind: "event".into(),
                category: vec!["network".into()],
                kinds: vec!["connection".into(), "end".into()],
                module: "rsttrace".into(),
                dataset: "rsttrace.incident".into(),
                action: incident.action.id().into(),
                outcome: if benign { "unknown" } else { "failure" }.into(),
                reason: incident.cause.id.into(),
                sequence: incident.sequence,
            },
            error: incident.errno.and_then(errno_name).map(|code| Error { code: code.into() }),
            source: Endpoint::new(incident.source, incident.source_nat),
            destination: Endpoint::new(incident.destination, incident.destination_nat),
            network: Network {
                transport: "tcp".into(),
                family: if incident.source.is_ipv4() { "ipv4" } else { "ipv6" }.into(),
                community_id: community_id(incident.source, incident.destination),
            },
            process: owner.map(process),
            container: owner.and_then(container),
            k8s: owner.and_then(k8s),
            host: Host { name: incident.hostname.clone() },
            rsttrace: verdict_of(incident),
        }
    }
}

fn verdict_of(incident: &incident::Incident) -> Verdict {
    let nat_source = incident.source_nat.unwrap_or(incident.source);
    let nat_destination = incident.destination_nat.unwrap_or(incident.destination);
    let behind_nat = incident.source_nat.is_some() || incident.destination_nat.is_some();
    Verdict {
        schema: VERSION.into(),
        cause: incident.cause.id.into(),
        family: incident.cause.family.id().into(),
        confidence: incident.confidence.map(|confidence| confidence.id().into()),
        follows: incident.follows.clone(),
        victim: incident.victim.id().into(),
        process_of: incident.owner_side.map(Side::id).map(Into::into),
        process_by: incident.owner.as_ref().map(|owner| owner.by.id().into()),
        peer: incident.peer.as_ref().map(|peer| Peer {
            process: process(peer),
            process_by: peer.by.id().into(),
            container: container(peer),
            k8s: k8s(peer),
        }),
        netns: incident.netns,
        community_id_nat: behind_nat.then(|| community_id(nat_source, nat_destination)).flatten(),
        rst: Rst {
            direction: incident.rst.direction.into(),
            origin: incident.rst.origin.map(Into::into),
            reason: incident.rst.reason.clone(),
        },
        idle_s: incident.idle_s.map(measured),
        keepalive: incident.keepalive.map(|keepalive| Keepalive {
            enabled: keepalive.enabled,
            time_s: Seconds(keepalive.time_s),
            intvl_s: Seconds(keepalive.intvl_s),
            probes: keepalive.probes,
        }),
        ipvs: incident.ipvs.as_ref().map(|entry| Ipvs {
            state: entry.state.map(Into::into),
            timeout_s: entry.timeout_s.map(Seconds),
        }),
        conntrack: incident.conntrack.as_ref().map(|entry| Conntrack {
            state: entry.state.map(Into::into),
            limit: entry.limit.map(Into::into),
            limit_s: entry.limit_s.map(Seconds),
            deleted_by: entry.deleted_by.clone(),
            count: entry.count,
            max: entry.max,
        }),
        evidence: incident.evidence.iter().map(|it| evidence(incident.opened, it)).collect(),
        ruled_out: incident
            .ruled_out
            .iter()
            .map(|it| RuledOut { cause: it.cause.into(), because: sentence(&it.because) })
            .collect(),
        fixes: incident.fixes.iter().map(Fix::from).collect(),
        not_fixes: incident
            .not_fixes
            .iter()
            .map(|(what, because)| NotFix { what: what.clone(), because: because.clone() })
            .collect(),
        blind_spots: incident.blind_spots.clone(),
        prove: incident.prove.as_deref().map(sentence),
        lost_events: incident.lost_events,
        truncated: false,
    }
}

fn evidence(opened: Nanos, finding: &verdict::Finding) -> Evidence {
    Evidence {
        kind: finding.kind.into(),
        age_s: age_s(opened, finding.ts),
        summary: sentence(&finding.summary),
    }
}
