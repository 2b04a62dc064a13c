//! The incidents that a scenario must cause, defined before it runs.

mod judge;
mod shape;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;

use rsttrace_core::causes;

use crate::lab::Role;

pub use judge::{Facts, Verdict, belongs, judge};

pub use shape::delay;

/// The connections that a scenario breaks.
#[derive(Clone, Debug, Default)]
pub struct Expect {
    pub incidents: Vec<Incident>,
    /// Incidents are identified by their source, not by their order.
    pub in_any_order: bool,
    /// The error of the scenario's own socket must be one of these. Empty: there is no error, or the scenario checks
    /// it itself.
    pub actor_errnos: Vec<&'static str>,
}

impl Expect {
    /// Nothing breaks, so nothing may be reported.
    pub fn nothing() -> Self {
        Self::default()
    }

    pub fn one(incident: Incident) -> Self {
        Self { actor_errnos: incident.errnos.clone(), incidents: vec![incident], ..Self::default() }
    }

    /// Each of these incidents exactly once, in any order.
    pub fn in_any_order(incidents: impl IntoIterator<Item = Incident>) -> Self {
        Self { incidents: incidents.into_iter().collect(), in_any_order: true, ..Self::default() }
    }

    pub fn then(mut self, incident: Incident) -> Self {
        self.incidents.push(incident);
        self
    }

    /// Sets the errors of the scenario's sockets, where they may differ from that of the incident.
    pub fn actors_see(mut self, errnos: &[&'static str]) -> Self {
        self.actor_errnos = errnos.to_vec();
        self
    }
}

/// One expected incident. Fields that are empty or `None` are not checked.
#[derive(Clone, Debug)]
pub struct Incident {
    /// Acceptable causes, the best one first.
    pub causes: Vec<&'static str>,
    pub confidences: Vec<&'static str>,
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub nat: Option<SocketAddr>,
    /// There must be no `destination.nat`.
    pub untranslated: bool,
    pub victims: Vec<&'static str>,
    pub errnos: Vec<&'static str>,
    pub action: Option<&'static str>,
    pub origin: Option<&'static str>,
    /// `idle_s` must be what the scenario measured.
    pub idle: bool,
    pub keepalive: Option<bool>,
    pub ipvs_timeout: Option<u64>,
    pub netns: Vec<Role>,
    /// Id and owner of the first fix.
    pub first_fix: Option<(&'static str, &'static str)>,
    /// The process at one end or at both ends.
    pub owners: Vec<Owner>,
    /// A word that one line of the evidence must contain.
    pub evidence: Option<&'static str>,
    variations: Vec<Variation>,
}

/// The process at an end of a connection, as known to the scenario. The first of two is the `process`.
#[derive(Clone, Debug)]
pub struct Owner {
    /// `source` or `destination`.
    pub end: &'static str,
    /// How rsttrace must have found the process.
    pub by: &'static str,
    /// Its pod's uid, container, namespace and name.
    pub pod: Option<[&'static str; 4]>,
}

impl Owner {
    pub fn new(end: &'static str, by: &'static str) -> Self {
        Self { end, by, pod: None }
    }

    pub fn pod(self, pod: [&'static str; 4]) -> Self {
        Self { pod: Some(pod), ..self }
    }
}

/// A fact about some kernel series, and the incident to expect there.
#[derive(Clone, Debug)]
struct Variation {
    series: &'static [&'static str],
    fact: &'static str,
    incident: Box<Incident>,
}

impl Incident {
    pub fn new(cause: &'static str, source: SocketAddr, destination: SocketAddr) -> Self {
        Self {
            causes: vec![cause],
            confidences: Vec::new(),
            source,
            destination,
            nat: None,
            untranslated: false,
            victims: Vec::new(),
            errnos: Vec::new(),
            action: None,
            origin: None,
            idle: false,
            keepalive: None,
            ipvs_timeout: None,
            netns: Vec::new(),
            first_fix: None,
            owners: Vec::new(),
            evidence: None,
            variations: Vec::new(),
        }
    }

    pub fn observed(self) -> Self {
        self.confidence(&["observed"])
    }

    pub fn inferred(self) -> Self {
        self.confidence(&["inferred"])
    }

    pub fn confidence(mut self, one_of: &[&'static str]) -> Self {
        self.confidences = one_of.to_vec();
        self
    }

    pub fn or_cause(mut self, cause: &'static str) -> Self {
        self.causes.push(cause);
        self
    }

    pub fn nat(mut self, backend: SocketAddr) -> Self {
        self.nat = Some(backend);
        self
    }

    pub fn untranslated(mut self) -> Self {
        self.nat = None;
        self.untranslated = true;
        self
    }

    pub fn victim(mut self, side: &'static str, errno: &'static str) -> Self {
        self.victims = vec![side];
        self.errno(&[errno])
    }

    /// The other side's error may come soon enough to be reported in the same incident.
    pub fn or_both_victims(mut self) -> Self {
        self.victims.push("both");
        self
    }

    pub fn errno(mut self, one_of: &[&'static str]) -> Self {
        self.errnos = one_of.to_vec();
        self
    }

    pub fn action(mut self, action: &'static str) -> Self {
        self.action = Some(action);
        self
    }

    pub fn origin(mut self, origin: &'static str) -> Self {
        self.origin = Some(origin);
        self
    }

    pub fn idle(mut self) -> Self {
        self.idle = true;
        self
    }

    pub fn keepalive(mut self, enabled: bool) -> Self {
        self.keepalive = Some(enabled);
        self
    }

    pub fn ipvs_timeout(mut self, seconds: u64) -> Self {
        self.ipvs_timeout = Some(seconds);
        self
    }

    pub fn netns(mut self, one_of: &[Role]) -> Self {
        self.netns = one_of.to_vec();
        self
    }

    pub fn first_fix(mut self, id: &'static str, owner: &'static str) -> Self {
        self.first_fix = Some((id, owner));
        self
    }

    pub fn owner(mut self, owner: Owner) -> Self {
        self.owners.push(owner);
        self
    }

    pub fn evidence(mut self, word: &'static str) -> Self {
        self.evidence = Some(word);
        self
    }

    /// On these kernel series the incident differs, because of a fact about them.
    pub fn on(
        mut self,
        series: &'static [&'static str],
        fact: &'static str,
        change: impl FnOnce(Self) -> Self,
    ) -> Self {
        let incident = Box::new(change(Self { variations: Vec::new(), ..self.clone() }));
        self.variations.push(Variation { series, fact, incident });
        self
    }

    /// The incident to expect on a kernel series, and the fact that explains the difference.
    fn for_series(&self, series: &str) -> (&Self, Option<&'static str>) {
        self.variations
            .iter()
            .find(|variation| variation.series.contains(&series))
            .map_or((self, None), |variation| (&*variation.incident, Some(variation.fact)))
    }

    /// The same incident without a verdict.
    pub fn unknown(mut self) -> Self {
        self.causes = vec!["unknown"];
        self.confidences = Vec::new();
        self
    }
}

/// Every cause that the tracer knows.
pub fn causes() -> impl Iterator<Item = &'static str> {
    causes::ALL.iter().map(|cause| cause.id)
}

pub fn family_of(cause: &str) -> Option<&'static str> {
    causes::by_id(cause).map(|cause| cause.family.id())
}
