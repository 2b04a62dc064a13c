//! The fields of a stream's events (schema 1.x) that a report needs. The incidents of a capture are parsed
//! from the same form, so that a capture and its stream give the same report.

use std::net::{IpAddr, SocketAddr};

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

use super::text::{Text, block};

/// Parses `@timestamp` into nanoseconds since the epoch.
fn wall<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    let text = String::deserialize(deserializer)?;
    let time: Timestamp =
        text.parse().map_err(|_| D::Error::custom("@timestamp is not a valid time"))?;
    i64::try_from(time.as_nanosecond())
        .ok()
        .filter(|ns| *ns == sane(*ns))
        .ok_or_else(|| D::Error::custom("@timestamp is out of range"))
}

/// Clamps a time to the years 1970 to 2200, so that sums and differences do not overflow.
pub fn sane(wall_ns: i64) -> i64 {
    wall_ns.clamp(0, 7_258_118_400_000_000_000)
}

/// An incident event: one broken connection.
#[derive(Clone, Debug, Deserialize)]
pub struct ParsedIncident {
    #[serde(rename = "@timestamp", deserialize_with = "wall")]
    pub wall_ns: i64,
    pub message: Text,
    pub event_id: Text,
    pub event: EventFields,
    pub source: Endpoint,
    pub destination: Endpoint,
    #[serde(default)]
    pub process: Option<Process>,
    #[serde(default)]
    pub container: Option<Container>,
    #[serde(default)]
    pub k8s: Option<K8s>,
    #[serde(default)]
    pub host: Host,
    #[serde(rename = "rsttrace")]
    pub verdict: Verdict,
}

#[derive(Clone, Debug, Deserialize)]
pub struct EventFields {
    #[serde(default)]
    pub sequence: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub struct Host {
    #[serde(default)]
    pub name: Text,
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Endpoint {
    ip: IpAddr,
    port: u16,
    #[serde(default)]
    nat: Option<Translated>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
struct Translated {
    ip: IpAddr,
    port: u16,
}

impl Endpoint {
    pub fn address(self) -> SocketAddr {
        SocketAddr::new(self.ip, self.port)
    }

    pub fn behind_nat(self) -> Option<SocketAddr> {
        self.nat.map(|nat| SocketAddr::new(nat.ip, nat.port))
    }
}

#[derive(Clone, Debug, Deserialize)]
pub struct Process {
    #[serde(default)]
    pub name: Text,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Container {
    pub id: Text,
}

#[derive(Clone, Debug, Deserialize)]
pub struct K8s {
    #[serde(default)]
    pod: Option<Named>,
    #[serde(default)]
    namespace: Option<Named>,
}

#[derive(Clone, Debug, Deserialize)]
struct Named {
    #[serde(default)]
    name: Option<Text>,
    #[serde(default)]
    uid: Option<Text>,
}

/// The process at the end of the connection that `process` does not describe.
#[derive(Clone, Debug, Deserialize)]
pub struct Peer {
    #[serde(default)]
    process: Option<Process>,
    #[serde(default)]
    container: Option<Container>,
    #[serde(default)]
    k8s: Option<K8s>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Verdict {
    pub cause: Text,
    pub family: Text,
    #[serde(default)]
    pub confidence: Option<Text>,
    #[serde(default)]
    pub follows: Option<Text>,
    #[serde(default)]
    pub netns: u32,
    #[serde(default)]
    process_of: Option<Text>,
    #[serde(default)]
    peer: Option<Peer>,
    #[serde(default)]
    pub idle_s: Option<f64>,
    #[serde(default)]
    pub keepalive: Option<Keepalive>,
    #[serde(default)]
    ipvs: Option<Ipvs>,
    #[serde(default)]
    pub conntrack: Option<Conntrack>,
    #[serde(default)]
    pub evidence: Vec<Evidence>,
    #[serde(default)]
    pub ruled_out: Vec<RuledOut>,
    #[serde(default)]
    pub fixes: Vec<ParsedFix>,
    #[serde(default)]
    pub not_fixes: Vec<NotFix>,
    #[serde(default)]
    pub blind_spots: Vec<Text>,
    #[serde(default)]
    pub prove: Option<Text>,
    #[serde(default)]
    pub lost_events: u64,
    #[serde(default)]
    pub truncated: bool,
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Keepalive {
    pub enabled: bool,
}

#[derive(Clone, Debug, Deserialize)]
struct Ipvs {
    #[serde(default)]
    state: Option<Text>,
    #[serde(default)]
    timeout_s: Option<f64>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Conntrack {
    #[serde(default)]
    limit: Option<Text>,
    #[serde(default)]
    limit_s: Option<f64>,
    #[serde(default)]
    pub count: Option<u32>,
    #[serde(default)]
    pub max: Option<u32>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Evidence {
    pub age_s: f64,
    pub summary: Text,
}

#[derive(Clone, Debug, Deserialize)]
pub struct RuledOut {
    pub cause: Text,
    pub because: Text,
}

/// A fix with its owner. The report prints its commands and never runs them.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
pub struct ParsedFix {
    pub id: Text,
    pub owner: Text,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub risk: Option<Text>,
    pub summary: Text,
    #[serde(default)]
    pub reason: Text,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<Text>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wanted: Option<Text>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub commands: Vec<Text>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub advice: Vec<Text>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persist: Option<Persist>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub verify: Vec<Text>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub undo: Vec<Text>,
}

/// A file that persists a fix across reboots.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct Persist {
    pub path: Text,
    #[serde(deserialize_with = "block")]
    pub text: Vec<Text>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize, JsonSchema)]
pub struct NotFix {
    pub what: Text,
    pub because: Text,
}

impl ParsedIncident {
    pub fn is_benign(&self) -> bool {
        self.verdict.family.as_str() == "benign"
    }

    /// The initiator's process, for display.
    pub fn client(&self) -> Option<Text> {
        match self.is_of("source") {
            true => self.owner(),
            false => self.other(),
        }
    }

    /// The responder's process, for display.
    pub fn server(&self) -> Option<Text> {
        match self.is_of("destination") {
            true => self.owner(),
            false => self.other(),
        }
    }

    fn is_of(&self, end: &str) -> bool {
        self.verdict.process_of.as_ref().is_some_and(|of| of.as_str() == end)
    }

    fn owner(&self) -> Option<Text> {
        label(self.process.as_ref(), self.k8s.as_ref(), self.container.as_ref())
    }

    fn other(&self) -> Option<Text> {
        let peer = self.verdict.peer.as_ref()?;
        label(peer.process.as_ref(), peer.k8s.as_ref(), peer.container.as_ref())
    }

    /// The time of a piece of evidence, in nanoseconds since the epoch.
    pub fn at(&self, evidence: &Evidence) -> i64 {
        #[expect(clippy::cast_possible_truncation, reason = "it saturates")]
        let age = (evidence.age_s * 1e9) as i64;
        sane(self.wall_ns.saturating_sub(age))
    }

    /// The idle limits that the connection reached: their names, and seconds.
    pub fn limits(&self) -> impl Iterator<Item = (Text, f64)> + '_ {
        let ipvs = self.verdict.ipvs.as_ref().and_then(|entry| {
            let state = entry.state.as_ref().map(|state| format!(" {state}")).unwrap_or_default();
            Some((Text::from(format!("IPVS{state}")), entry.timeout_s?))
        });
        let conntrack = self.verdict.conntrack.as_ref().and_then(|entry| {
            let name = entry.limit.as_ref().map_or("conntrack", Text::as_str);
            Some((Text::from(name.rsplit('.').next().unwrap_or(name)), entry.limit_s?))
        });
        ipvs.into_iter().chain(conntrack)
    }
}

/// "orders-api in pod shop/orders-api-7c9".
fn label(
    process: Option<&Process>,
    k8s: Option<&K8s>,
    container: Option<&Container>,
) -> Option<Text> {
    let pod = k8s.and_then(|k8s| {
        let pod = k8s.pod.as_ref()?;
        let namespace = k8s.namespace.as_ref().and_then(|it| it.name.as_ref());
        match (namespace, pod.name.as_ref(), pod.uid.as_ref()) {
            (Some(namespace), Some(name), _) => Some(format!("pod {namespace}/{name}")),
            (None, Some(name), _) => Some(format!("pod {name}")),
            (_, None, Some(uid)) => Some(format!("pod {uid}")),
            (_, None, None) => None,
        }
    });
    let container = || {
        let id: String = container?.id.as_str().chars().take(12).collect();
        Some(format!("container {id}"))
    };
    let place = pod.or_else(container);
    let name = process.map(|process| process.name.as_str()).filter(|name| !name.is_empty());
    match (name, place) {
        (Some(name), Some(place)) => Some(format!("{name} in {place}").into()),
        (Some(name), None) => Some(name.into()),
        (None, place) => place.map(Text::from),
    }
}

/// A summary event: the counts of a run so far.
#[derive(Clone, Debug, Deserialize)]
pub struct ParsedSummary {
    #[serde(rename = "@timestamp", deserialize_with = "wall")]
    pub wall_ns: i64,
    #[serde(default)]
    pub host: Host,
    pub rsttrace: SummaryFields,
}

#[derive(Clone, Debug, Deserialize)]
pub struct SummaryFields {
    pub summary: Counts,
    #[serde(default)]
    pub lost_events: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub struct Counts {
    #[serde(default)]
    pub incidents: Vec<CauseCount>,
    #[serde(default)]
    pub benign: Vec<CauseCount>,
    #[serde(default)]
    pub absorbed: u64,
    #[serde(default)]
    pub forgotten: u64,
    #[serde(default)]
    pub unreadable: u64,
}

#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub struct CauseCount {
    pub cause: Text,
    pub count: u64,
}
