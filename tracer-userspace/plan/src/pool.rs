//! Connection pools close connections before the path or the server does.

use rsttrace_core::fix::Fix;

use super::{
    Demand, Item, Rule, Source, Step, Unit, application_fix, idle_limit::ShortestLimit, seconds,
};

pub fn items(demand: &Demand) -> Vec<Item> {
    let path = ShortestLimit::of(demand);
    let period = path.keepalive();
    let item = |key, value: u64, summary: String, steps| Item {
        key,
        value,
        unit: Unit::Seconds,
        fix: Fix {
            wanted: Some(seconds(value)),
            ..application_fix(
                "pool_idle_below_limit",
                summary,
                "a connection that the pool has closed is never reused; one of the three settings is enough",
                "set the pool's idle timeout, keepalive (ping) interval or maximum lifetime".into(),
            )
        },
        steps,
        memory_bytes: None,
        sources: vec![Source::Rule(Rule::Pools)],
        warnings: Vec::new(),
    };
    // Behind an HTTP proxy, the server's limit applies to the proxy's connections, not to the pool's.
    let server = demand.server_s().filter(|_| demand.http_proxy_s.is_none());
    let idle_limit = server.map_or(path.seconds, |server| server.min(path.seconds));
    let idle = (idle_limit * 4 / 5).max(1);
    let mut items = vec![
        item(
            "pool.ping",
            period.time_s,
            format!("ping pooled connections every {} s", period.time_s),
            vec![Step::new("as often as keepalives", "", seconds(period.time_s))],
        ),
        item(
            "pool.idle_eviction",
            idle,
            format!("let the pool close connections idle for more than {idle} s"),
            vec![Step::new(
                "four fifths of the limit",
                format!("{idle_limit} s × 0.8"),
                seconds(idle),
            )],
        ),
    ];
    items[1].warnings.push(
        "this works only if the pool shrinks: set its minimum idle count below its size".into(),
    );
    let lifetime = server.map(|server| (server, server.saturating_sub(30)));
    if let Some((server, lifetime)) = lifetime.filter(|(_, lifetime)| *lifetime > 0) {
        items.push(item(
            "pool.max_lifetime",
            lifetime,
            format!("close pooled connections after a lifetime of {lifetime} s"),
            vec![Step::new("server", format!("{server} s - 30 s"), seconds(lifetime))],
        ));
    }
    items
}
