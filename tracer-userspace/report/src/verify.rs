//! Queries that verify a fix: one for rsttrace, and one each for Loki and OpenSearch, which may hold the
//! events.

use super::{
    format::{is_id, span},
    model::{Idle, Limit, Query, ServiceCount},
    text::Text,
};

const MINUTE: u64 = 60;

/// How long to watch, in minutes: long enough for the cause to occur again. That is twice the longest idle
/// time or limit, or the time that five connections took to break, and at least 10 minutes.
fn minutes(idle: Option<&Idle>, limits: &[Limit], connections: u64, took_ns: i64) -> u64 {
    let limits = limits.iter().map(|limit| limit.limit_s);
    let longest = limits.chain(idle.map(|idle| idle.longest_s)).fold(0.0, f64::max);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
    let idle_s = (longest * 2.0).ceil() as u64;
    let took_s = took_ns.max(0).unsigned_abs() / 1_000_000_000;
    let five_s = took_s.saturating_mul(5) / connections.max(1);
    idle_s.max(five_s).max(10 * MINUTE).div_ceil(MINUTE)
}

fn duration(minutes: u64) -> String {
    match minutes % 60 {
        0 => format!("{}h", minutes / 60),
        _ => format!("{minutes}m"),
    }
}

/// The queries for one cause; empty when `cause` is not safe to put into a query. `first_ns` and `last_ns` are
/// the times of the first and the last broken connection.
pub fn queries(
    cause: &Text,
    services: &[ServiceCount],
    idle: Option<&Idle>,
    limits: &[Limit],
    (first_ns, last_ns): (i64, i64),
) -> Vec<Query> {
    if !is_id(cause) {
        return Vec::new();
    }
    let connections = services.iter().map(|it| it.connections).sum();
    let took_ns = last_ns.saturating_sub(first_ns);
    let minutes = minutes(idle, limits, connections, took_ns);
    let time = duration(minutes);
    // `--dst` takes an IPv4 or IPv6 address with its port.
    let to = match services {
        [only] => format!(" --dst {}", only.address),
        _ => String::new(),
    };
    let before = match connections {
        0 | 1 => "this file has 1 connection".to_owned(),
        many => format!("this file has {many} connections in {}", span(took_ns)),
    };
    // Loki and OpenSearch do not accept hours and minutes in one duration, so they get minutes.
    vec![
        Query {
            with: "rsttrace",
            query: format!("rsttrace live --cause {cause}{to} --duration {time} --fail-on {cause}"),
            expected: format!(
                "exit code 0 and no incident (5 if a connection breaks again; {before})"
            ),
        },
        Query {
            with: "Loki",
            query: format!(
                "sum(count_over_time({{job=\"rsttrace\"}} | json | \
                 event_dataset=\"rsttrace.incident\" | rsttrace_cause=\"{cause}\" | \
                 rsttrace_follows=\"\" [{minutes}m]))"
            ),
            expected: format!("no result, or 0 ({before})"),
        },
        Query {
            with: "OpenSearch",
            query: format!(
                "{{\"query\":{{\"bool\":{{\"filter\":[\
                 {{\"term\":{{\"event.dataset\":\"rsttrace.incident\"}}}},\
                 {{\"term\":{{\"rsttrace.cause\":\"{cause}\"}}}},\
                 {{\"range\":{{\"@timestamp\":{{\"gte\":\"now-{minutes}m\"}}}}}}],\
                 \"must_not\":[{{\"exists\":{{\"field\":\"rsttrace.follows\"}}}}]}}}}}}"
            ),
            expected: format!("_count is 0 ({before})"),
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(cause: &str, idle_s: f64) -> Vec<Query> {
        let idle = Idle { shortest_s: idle_s, median_s: idle_s, longest_s: idle_s, known: 1 };
        let address = std::net::SocketAddr::from(([10, 96, 0, 10], 3306));
        let service = ServiceCount { address, connections: 4 };
        queries(&cause.into(), &[service], Some(&idle), &[], (0, 60_000_000_000))
    }

    #[test]
    fn the_query_runs_long_enough_for_the_cause_to_occur_again() {
        let live = |idle_s| of("ipvs_idle_expired", idle_s)[0].query.clone();
        assert_eq!(
            live(973.0),
            "rsttrace live --cause ipvs_idle_expired --dst 10.96.0.10:3306 --duration 33m \
             --fail-on ipvs_idle_expired"
        );
        assert!(live(1.0).contains("--duration 10m "));
        assert!(live(3600.0).contains("--duration 2h "));
    }

    #[test]
    fn the_opensearch_query_is_json() {
        let query = &of("linger_zero", 1.0)[2].query;
        let value: serde_json::Value = serde_json::from_str(query).expect("JSON");
        let filters = &value["query"]["bool"]["filter"];
        assert_eq!(filters[1]["term"]["rsttrace.cause"], "linger_zero");
    }

    #[test]
    fn only_an_id_gets_into_a_query() {
        for cause in ["", "a b", "x\"} or", "x;reboot", "$(x)", "UPPER"] {
            assert_eq!(of(cause, 1.0), []);
        }
    }
}
