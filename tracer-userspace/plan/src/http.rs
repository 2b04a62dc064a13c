//! HTTP with a proxy in front: the side that reuses a connection must close it before its peer does.

use rsttrace_core::fix::Fix;

use super::{
    Demand, Item, Rule, Source, Step, Unit, application_fix, idle_limit::ShortestLimit, seconds,
};

/// Margin between two idle timeouts, seconds. R7 asks for 10 to 15: 5 proved too short.
const MARGIN_S: u64 = 15;
const LEAST_MARGIN_S: u64 = 10;

/// The idle timeouts on both sides of the given proxy: client < proxy < server.
pub fn items(demand: &Demand) -> Vec<Item> {
    let Some(proxy) = demand.http_proxy_s else {
        return Vec::new();
    };
    vec![client(demand, proxy), server(demand, proxy)]
}

fn client(demand: &Demand, proxy: u64) -> Item {
    // A proxy with a shorter timeout leaves no room for the whole margin.
    let (value, formula) = match proxy {
        short if short <= 2 * MARGIN_S => ((short / 2).max(1), format!("{short} s / 2")),
        long => (long - MARGIN_S, format!("{long} s - {MARGIN_S} s")),
    };
    let mut warnings = Vec::new();
    let margin = proxy.saturating_sub(value);
    if margin < LEAST_MARGIN_S {
        warnings.push(format!(
            "the margin is {}, and 5 s proved too short: let the proxy keep idle connections for {} or longer",
            seconds(margin),
            seconds(2 * MARGIN_S)
        ));
    }
    let limit = ShortestLimit::of(demand);
    if proxy >= limit.seconds {
        warnings.push(format!(
            "where {} ({} s) is next to the proxy, that limit expires while the proxy still keeps the \
             connection: send keepalives at both ends, or shorten the proxy's idle timeout",
            limit.name, limit.seconds
        ));
    }
    let mut item = timeout_item(
        "http.client_idle",
        value,
        application_fix(
            "pool_idle_below_limit",
            format!("let clients close HTTP connections idle for more than {value} s"),
            "the side that reuses a connection must be the first to close it: a request that crosses the \
             other side's close is answered with a reset",
            "set the idle timeout of the client's HTTP pool (Go: Transport.IdleConnTimeout; Node: the \
             agent's timeout; Envoy: idle_timeout)"
                .into(),
        ),
        vec![
            Step::new("proxy idle timeout", "", seconds(proxy)),
            Step::new("clients close before", formula, seconds(value)),
        ],
    );
    item.warnings = warnings;
    item
}

fn server(demand: &Demand, proxy: u64) -> Item {
    let now = demand.server_s();
    let least = proxy.saturating_add(MARGIN_S);
    let value = now.unwrap_or(0).max(least);
    let mut fix = application_fix(
        "closer_keeps_longer",
        format!("let the server keep idle HTTP connections for {value} s"),
        "to the server, the proxy is the client that reuses connections; TCP keepalives re-arm neither \
         timer, and a proxy does not forward them",
        "set the server's keepAliveTimeout, and headersTimeout above it (Node, default 5 s), \
         keepalive_timeout (nginx) or Server.IdleTimeout (Go)"
            .into(),
    );
    fix.current = now.map(seconds);
    if now == Some(value) {
        fix.changes.clear();
    }
    let mut item = timeout_item(
        "http.server_keep_alive",
        value,
        fix,
        vec![
            Step::new("proxy idle timeout", "", seconds(proxy)),
            Step::new("server closes after", format!("{proxy} s + {MARGIN_S} s"), seconds(least)),
        ],
    );
    item.warnings.extend(now.and_then(|now| match now {
        short if short <= proxy => Some(format!(
            "the server closes after {short} s, but the proxy reuses connections for {proxy} s: some requests \
             meet the close (502), more often at low load"
        )),
        thin if thin - proxy < LEAST_MARGIN_S => {
            Some(format!("the margin is {} s, and 5 s proved too short", thin - proxy))
        }
        _ => None,
    }));
    item
}

fn timeout_item(key: &'static str, value: u64, fix: Fix, steps: Vec<Step>) -> Item {
    Item {
        key,
        value,
        unit: Unit::Seconds,
        fix: Fix { wanted: Some(seconds(value)), ..fix },
        steps,
        memory_bytes: None,
        sources: vec![Source::Rule(Rule::HttpTimeouts)],
        warnings: Vec::new(),
    }
}

/// A note about proxies.
pub fn notes(demand: &Demand) -> Option<String> {
    demand.http_proxy_s.is_none().then(|| {
        "the idle timeout of an HTTP proxy in front must be between the client's and the server's: pass \
         --http-proxy 60"
            .into()
    })
}
