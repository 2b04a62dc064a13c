//! Compares what the connections of a row saw, and what was reported of them, with the table.

use std::{collections::BTreeMap, fmt};

use serde_json::Value;

use super::{cluster::Service, stage::Wire, table::Expected};
use crate::tracer::Record;

pub enum Outcome {
    /// With the verdicts.
    Pass(String),
    /// The connections lived on, which is allowed, but so the verdict has not been seen.
    Unseen(String),
    Fail {
        reason: String,
        /// What was printed, benign resets included.
        events: Vec<String>,
    },
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pass(text) => write!(f, "pass {text}"),
            Self::Unseen(text) => write!(f, "unseen {text}"),
            Self::Fail { reason, .. } => write!(f, "fail {reason}"),
        }
    }
}

pub fn is_failure(saw: &Wire) -> bool {
    matches!(saw, Wire::Fails(_))
}

/// The reported incidents of the row's service: neither benign ones nor repetitions at another end.
pub fn incidents(records: &[Record], service: Service) -> Vec<&Record> {
    let of_row = of_service(records, service).into_iter();
    of_row
        .filter(|it| {
            it.value["rsttrace"]["family"] != "benign"
                && it.value.pointer("/rsttrace/follows").is_none()
        })
        .collect()
}

/// Each row has ports of its own.
fn of_service(records: &[Record], service: Service) -> Vec<&Record> {
    let ports = [service.port(), service.other_port(), service.node_port()];
    let has_port = |value: &Value| {
        ["/source/port", "/destination/port", "/destination/nat/port"].iter().any(|path| {
            let port = value.pointer(path).and_then(Value::as_u64);
            ports.iter().any(|it| Some(u64::from(*it)) == port)
        })
    };
    let records = records.iter().filter(|it| it.is("rsttrace.incident"));
    records.filter(|it| has_port(&it.value)).collect()
}

/// Everything that was printed of the row's service.
pub fn lines(records: &[Record], service: Service) -> Vec<String> {
    of_service(records, service).iter().map(|it| it.line.clone()).collect()
}

pub fn judge(expected: &Expected, saw: &[Wire], records: &[Record], service: Service) -> Outcome {
    let reported = incidents(records, service);
    let cause = |it: &Record| it.value["rsttrace"]["cause"].as_str().unwrap_or("?").to_owned();
    let confidence =
        |it: &Record| it.value["rsttrace"]["confidence"].as_str().unwrap_or("none").to_owned();
    let wire = count(saw.iter().map(|it| it.name()));
    let verdicts = count(reported.iter().map(|it| format!("{}/{}", cause(it), confidence(it))));
    let both = format!("{wire}: {}", if verdicts.is_empty() { "nothing" } else { &verdicts });
    let fail = |why: String| Outcome::Fail {
        reason: format!("{why} ({both})"),
        events: lines(records, service),
    };

    if let Some(wrong) = saw.iter().find(|it| !allows(expected, **it)) {
        return fail(format!("on the wire: {} is not in the table", wrong.name()));
    }
    let failures = saw.iter().filter(|it| is_failure(it)).count();
    if reported.len() != failures {
        return fail(format!("{} incidents, not {failures}", reported.len()));
    }
    let Some(failure) = &expected.failure else { return Outcome::Pass(both) };
    if let Some(other) = reported.iter().find(|it| cause(it) != failure.cause) {
        return fail(format!("{}, not {}", cause(other), failure.cause));
    }
    if let Some(word) = failure.mentions
        && let Some(without) = reported.iter().find(|it| !it.line.contains(word))
    {
        return fail(format!("{} does not mention {word}", cause(without)));
    }
    if failures == 0 { Outcome::Unseen(both) } else { Outcome::Pass(both) }
}

fn allows(expected: &Expected, saw: Wire) -> bool {
    match saw {
        Wire::Lives => expected.may_live,
        Wire::Fails(_) => {
            let name = saw.name();
            expected.failure.as_ref().is_some_and(|it| it.errnos.contains(&name.as_str()))
        }
    }
}

/// `3 ECONNRESET, 5 lives`; a single one without its number.
fn count(names: impl Iterator<Item = String>) -> String {
    let mut counts = BTreeMap::<String, usize>::new();
    names.for_each(|name| *counts.entry(name).or_default() += 1);
    let text = |(name, count): (String, usize)| match count {
        1 => name,
        _ => format!("{count} {name}"),
    };
    counts.into_iter().map(text).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use rustix::io::Errno;
    use serde_json::json;

    use super::*;
    use crate::kube::table::Failure;

    const SERVICE: Service = Service { name: "db", number: 10 };
    const MAY_FAIL: Expected = Expected {
        may_live: true,
        failure: Some(Failure {
            errnos: &["ECONNRESET"],
            cause: "conntrack_idle_expired",
            mentions: None,
        }),
    };

    fn incident(cause: &str, family: &str, port: u16) -> Record {
        let value = json!({
            "event": {"dataset": "rsttrace.incident"}, "destination": {"port": port},
            "rsttrace": {"cause": cause, "family": family, "confidence": "observed"},
        });
        Record { arrived: SystemTime::now(), line: value.to_string(), value }
    }

    fn outcome(expected: &Expected, saw: &[Wire], records: &[Record]) -> String {
        judge(expected, saw, records, SERVICE).to_string()
    }

    #[test]
    fn each_failure_is_one_incident_of_the_right_cause() {
        let reset = Wire::Fails(Errno::CONNRESET);
        let right = incident("conntrack_idle_expired", "timeout_mismatch", 3_010);
        let passed = outcome(&MAY_FAIL, &[reset, Wire::Lives], std::slice::from_ref(&right));
        assert_eq!(passed, "pass ECONNRESET, lives: conntrack_idle_expired/observed");
        assert!(outcome(&MAY_FAIL, &[reset], &[]).starts_with("fail 0 incidents, not 1"));
        let twice = outcome(&MAY_FAIL, &[reset], &[right.clone(), right]);
        assert!(twice.starts_with("fail 2 incidents, not 1"), "{twice}");
        let other = incident("wrong_backend", "state_lost", 3_010);
        assert!(outcome(&MAY_FAIL, &[reset], &[other]).starts_with("fail wrong_backend, not"));
    }

    #[test]
    fn an_outcome_of_chance_that_did_not_come_is_unseen_and_another_error_fails() {
        assert_eq!(outcome(&MAY_FAIL, &[Wire::Lives], &[]), "unseen lives: nothing");
        let refused = outcome(&MAY_FAIL, &[Wire::Fails(Errno::CONNREFUSED)], &[]);
        assert!(refused.starts_with("fail on the wire: ECONNREFUSED"), "{refused}");
    }

    #[test]
    fn benign_resets_and_those_of_other_rows_do_not_count() {
        let lives = Expected { may_live: true, failure: None };
        let benign = incident("connection_refused", "benign", 3_010);
        let other = incident("wrong_backend", "state_lost", 3_011);
        assert_eq!(outcome(&lives, &[Wire::Lives], &[benign, other]), "pass lives: nothing");
    }
}
