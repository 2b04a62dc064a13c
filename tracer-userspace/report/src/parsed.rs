//! The fields of a stream's events that a report needs, as text that is safe to print. The events are read
//! as the types that write them (`rsttrace_schema`). The incidents of a capture take the same way, so that a
//! capture and its stream give the same report.

use std::net::SocketAddr;

use jiff::Timestamp;
use rsttrace_schema::{
    fix::Fix,
    incident::{self, Container, Incident, K8s, Process},
    summary::{self, Summary},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::text::Text;

/// Parses `@timestamp` into nanoseconds since the epoch.
fn wall(timestamp: &str) -> Result<i64, &'static str> {
    let time: Timestamp = timestamp.parse().map_err(|_| "@timestamp is not a valid time")?;
    i64::try_from(time.as_nanosecond())
        .ok()
        .filter(|ns| *ns == sane(*ns))
        .ok_or("@timestamp is out of range")
}

/// Clamps a time to the years 1970 to 2200, so that sums and differences do not overflow.
pub fn sane(wall_ns: i64) -> i64 {
    wall_ns.clamp(0, 7_258_118_400_000_000_000)
}

fn texts(list: Vec<String>) -> Vec<Text> {
    list.into_iter().map(Text::from).collect()
}

/// An incident event: one broken connection.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "Incident")]
pub struct ParsedIncident {
    pub wall_ns: i64,
    pub message: Text,
    pub event_id: Text,
    pub sequence: u64,
    pub host: Text,
    pub source: SocketAddr,
    pub destination: SocketAddr,
    /// The destination behind NAT or IPVS.
    pub backend: Option<SocketAddr>,
    /// The initiator's process, for display.
    pub client: Option<Text>,
    /// The responder's process, for display.
    pub server: Option<Text>,
    pub cause: Text,
    pub family: Text,
    pub confidence: Option<Text>,
    pub follows: Option<Text>,
    pub netns: u32,
    pub idle_s: Option<f64>,
    /// Whether SO_KEEPALIVE was on, where that is known.
    pub keepalive: Option<bool>,
    /// The idle limits that the connection reached: their names, and seconds.
    pub limits: Vec<(Text, f64)>,
    /// Entries in the conntrack table, and their limit.
    pub fill: Option<(u32, u32)>,
    pub evidence: Vec<Evidence>,
    pub ruled_out: Vec<RuledOut>,
    pub fixes: Vec<ParsedFix>,
    pub not_fixes: Vec<NotFix>,
    pub blind_spots: Vec<Text>,
    pub prove: Option<Text>,
    pub lost_events: u64,
    pub truncated: bool,
}

#[derive(Clone, Debug)]
pub struct Evidence {
    /// Nanoseconds since the epoch.
    pub wall_ns: i64,
    pub summary: Text,
}

#[derive(Clone, Debug)]
pub struct RuledOut {
    pub cause: Text,
    pub because: Text,
}

/// A fix with its owner. The report prints its commands and never runs them.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ParsedFix {
    pub id: Text,
    pub owner: Text,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub risk: Option<Text>,
    pub summary: Text,
    #[serde(default)]
    pub reason: Text,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current: Option<Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wanted: Option<Text>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub commands: Vec<Text>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub advice: Vec<Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub persist: Option<Persist>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub verify: Vec<Text>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub undo: Vec<Text>,
}

/// A file that persists a fix across reboots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Persist {
    pub path: Text,
    /// The content, line by line.
    pub text: Vec<Text>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
pub struct NotFix {
    pub what: Text,
    pub because: Text,
}

impl ParsedIncident {
    pub fn is_benign(&self) -> bool {
        self.family.as_str() == "benign"
    }
}

impl TryFrom<Incident> for ParsedIncident {
    type Error = &'static str;

    fn try_from(incident: Incident) -> Result<Self, &'static str> {
        let wall_ns = wall(&incident.timestamp)?;
        let verdict = incident.rsttrace;
        let owner =
            label(incident.process.as_ref(), incident.k8s.as_ref(), incident.container.as_ref());
        let other = verdict.peer.as_ref().and_then(|peer| {
            label(Some(&peer.process), peer.k8s.as_ref(), peer.container.as_ref())
        });
        let is_of = |end: &str| verdict.process_of.as_deref() == Some(end);
        let end = |name: &str| if is_of(name) { owner.clone() } else { other.clone() };
        let (client, server) = (end("source"), end("destination"));
        let evidence = verdict.evidence.into_iter().map(|it| {
            #[expect(clippy::cast_possible_truncation, reason = "it saturates")]
            let age = (it.age_s * 1e9) as i64;
            Evidence { wall_ns: sane(wall_ns.saturating_sub(age)), summary: it.summary.into() }
        });
        let ruled_out = verdict.ruled_out.into_iter();
        let not_fixes = verdict.not_fixes.into_iter();
        Ok(Self {
            wall_ns,
            message: incident.message.into(),
            event_id: incident.event_id.into(),
            sequence: incident.event.sequence,
            host: incident.host.name.into(),
            source: incident.source.address(),
            destination: incident.destination.address(),
            backend: incident.destination.behind_nat(),
            client,
            server,
            cause: verdict.cause.into(),
            family: verdict.family.into(),
            confidence: verdict.confidence.map(Text::from),
            follows: verdict.follows.map(Text::from),
            netns: verdict.netns,
            idle_s: verdict.idle_s,
            keepalive: verdict.keepalive.map(|it| it.enabled),
            limits: limits(verdict.ipvs.as_ref(), verdict.conntrack.as_ref()),
            fill: verdict.conntrack.and_then(|table| Some((table.count?, table.max?))),
            evidence: evidence.collect(),
            ruled_out: ruled_out
                .map(|it| RuledOut { cause: it.cause.into(), because: it.because.into() })
                .collect(),
            fixes: verdict.fixes.into_iter().map(ParsedFix::from).collect(),
            not_fixes: not_fixes
                .map(|it| NotFix { what: it.what.into(), because: it.because.into() })
                .collect(),
            blind_spots: texts(verdict.blind_spots),
            prove: verdict.prove.map(Text::from),
            lost_events: verdict.lost_events,
            truncated: verdict.truncated,
        })
    }
}

impl From<Fix> for ParsedFix {
    fn from(fix: Fix) -> Self {
        Self {
            id: fix.id.into(),
            owner: fix.owner.into(),
            risk: fix.risk.map(Text::from),
            summary: fix.summary.into(),
            reason: fix.reason.into(),
            current: fix.current.map(Text::from),
            wanted: fix.wanted.map(Text::from),
            commands: texts(fix.commands),
            advice: texts(fix.advice),
            persist: fix.persist.map(|file| Persist {
                path: file.path.into(),
                text: file.text.lines().map(Text::new).collect(),
            }),
            verify: texts(fix.verify),
            undo: texts(fix.undo),
        }
    }
}

fn limits(
    ipvs: Option<&incident::Ipvs>,
    conntrack: Option<&incident::Conntrack>,
) -> Vec<(Text, f64)> {
    let ipvs = ipvs.and_then(|entry| {
        let state = entry.state.as_ref().map(|state| format!(" {state}")).unwrap_or_default();
        Some((Text::from(format!("IPVS{state}")), entry.timeout_s?.0))
    });
    let conntrack = conntrack.and_then(|entry| {
        let name = entry.limit.as_deref().unwrap_or("conntrack");
        Some((Text::from(name.rsplit('.').next().unwrap_or(name)), entry.limit_s?.0))
    });
    ipvs.into_iter().chain(conntrack).collect()
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
        let id: String = container?.id.chars().take(12).collect();
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
#[serde(try_from = "Summary")]
pub struct ParsedSummary {
    pub wall_ns: i64,
    pub host: Text,
    pub counts: Counts,
    pub lost_events: u64,
}

#[derive(Clone, Debug, Default)]
pub struct Counts {
    pub incidents: Vec<CauseCount>,
    pub benign: Vec<CauseCount>,
    pub absorbed: u64,
    pub forgotten: u64,
    pub unreadable: u64,
}

#[derive(Clone, Debug, Serialize, JsonSchema, PartialEq, Eq)]
pub struct CauseCount {
    pub cause: Text,
    pub count: u64,
}

impl TryFrom<Summary> for ParsedSummary {
    type Error = &'static str;

    fn try_from(summary: Summary) -> Result<Self, &'static str> {
        let counts = summary.rsttrace.summary;
        let per_cause = |list: Vec<summary::CauseCount>| {
            let list = list.into_iter();
            list.map(|it| CauseCount { cause: it.cause.into(), count: it.count }).collect()
        };
        Ok(Self {
            wall_ns: wall(&summary.timestamp)?,
            host: summary.host.name.into(),
            counts: Counts {
                incidents: per_cause(counts.incidents),
                benign: per_cause(counts.benign),
                absorbed: counts.absorbed,
                forgotten: counts.forgotten,
                unreadable: counts.unreadable,
            },
            lost_events: summary.rsttrace.lost_events,
        })
    }
}
