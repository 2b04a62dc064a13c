//! HTTP with a proxy in front: whoever reuses a connection gives it up before its peer closes it.

use rsttrace_core::fix::Fix;

use super::{
    Demand, Item, Rule, Source, Step, Unit,
    idle::{application, gap, seconds},
};

/// Between a rung of the ladder and the next, seconds. 10 to 15 are asked for: 5 proved thin.
const MARGIN_S: u64 = 15;
const LEAST_MARGIN_S: u64 = 10;

/// The ladder of the proxy that was named: client < proxy < server.
pub fn items(demand: &Demand) -> Vec<Item> {
    let Some(proxy) = demand.http_proxy_s else {
        return Vec::new();
    };
    vec![client(demand, proxy), server(demand, proxy)]
}

fn client(demand: &Demand, proxy: u64) -> Item {
    // A proxy that gives up sooner than this leaves no room for the whole margin.
    let (value, formula) = match proxy {
        short if short <= 2 * MARGIN_S => ((short / 2).max(1), format!("{short} s / 2")),
        long => (long - MARGIN_S, format!("{long} s - {MARGIN_S} s")),
    };
    let mut warnings = Vec::new();
    let margin = proxy.saturating_sub(value);
    if margin < LEAST_MARGIN_S {
        warnings.push(format!(
            "{} of margin, and 5 s proved thin: let the proxy keep idle connections for {} or longer",
            seconds(margin),
            seconds(2 * MARGIN_S)
        ));
    }
    let gap = gap(demand);
    if proxy >= gap.seconds {
        warnings.push(format!(
            "where {} ({} s) lies beside the proxy, it forgets a connection that the proxy still holds: \
             keepalives of both its ends, or a proxy that gives up sooner",
            gap.owner, gap.seconds
        ));
    }
    let mut item = rung(
        "http.client_idle",
        value,
        application(
            "pool_idle_below_limit",
            format!("let clients give up HTTP connections idle for more than {value} s"),
            "who reuses a connection must be the first to give it up: a request that meets the other \
             end's close is answered with a reset",
            "in the client's HTTP pool: its idle timeout (Go: Transport.IdleConnTimeout; Node: the agent's \
             timeout; Envoy: idle_timeout)"
                .into(),
        ),
        vec![
            Step::new("the proxy gives up", "", seconds(proxy)),
            Step::new("clients before it", formula, seconds(value)),
        ],
    );
    item.warnings = warnings;
    item
}

fn server(demand: &Demand, proxy: u64) -> Item {
    let now = demand.server_s();
    let least = proxy.saturating_add(MARGIN_S);
    let value = now.unwrap_or(0).max(least);
    let mut fix = application(
        "closer_keeps_longer",
        format!("let the server keep idle HTTP connections for {value} s"),
        "to the server the proxy is the client that reuses; TCP keepalives re-arm neither \
         timer, and a proxy passes none on",
        "in the server: keepAliveTimeout, and headersTimeout above it (Node, 5 s unless it is set), \
         keepalive_timeout (nginx), Server.IdleTimeout (Go)"
            .into(),
    );
    fix.current = now.map(seconds);
    if now == Some(value) {
        fix.changes.clear();
    }
    let mut item = rung(
        "http.server_keep_alive",
        value,
        fix,
        vec![
            Step::new("the proxy gives up", "", seconds(proxy)),
            Step::new("the server after it", format!("{proxy} s + {MARGIN_S} s"), seconds(least)),
        ],
    );
    item.warnings.extend(now.and_then(|now| match now {
        short if short <= proxy => Some(format!(
            "the server closes after {short} s what the proxy reuses for {proxy} s: now and then a request \
             meets the close (502), the oftener the less there is to do"
        )),
        thin if thin - proxy < LEAST_MARGIN_S => {
            Some(format!("{} s of margin, and 5 s proved thin", thin - proxy))
        }
        _ => None,
    }));
    item
}

fn rung(key: &'static str, value: u64, fix: Fix, steps: Vec<Step>) -> Item {
    Item {
        key,
        value,
        unit: Unit::Seconds,
        fix: Fix { wanted: Some(seconds(value)), ..fix },
        steps,
        memory_bytes: None,
        sources: vec![Source::Rule(Rule::HttpLadder)],
        warnings: Vec::new(),
    }
}

/// What else to know about proxies.
pub fn notes(demand: &Demand) -> Option<String> {
    demand.http_proxy_s.is_none().then(|| {
        "with an HTTP proxy in front, its idle timeout stands between the client's and the server's: \
         --http-proxy 60"
            .into()
    })
}
