//! Pools let go of connections before the path or the server does.

use rsttrace_core::{causes::remedy::Period, fix::Fix};

use super::{
    Demand, Item, Rule, Source, Step, Unit,
    idle::{Gap, application, seconds},
};

pub fn items(demand: &Demand, gap: &Gap, period: &Period) -> Vec<Item> {
    let item = |key, value: u64, summary: String, steps| Item {
        key,
        value,
        unit: Unit::Seconds,
        fix: Fix {
            wanted: Some(seconds(value)),
            ..application(
                "pool_idle_below_limit",
                summary,
                "a connection that the pool has closed is never reused; one of the three is enough",
                "in the pool: idle timeout, keepalive (ping) interval, maximum lifetime".into(),
            )
        },
        steps,
        memory_bytes: None,
        sources: vec![Source::Rule(Rule::Pools)],
        warnings: Vec::new(),
    };
    // Behind an HTTP proxy a server's limit is that of the proxy's connections, not of a pool's.
    let shortest = demand.server_s().filter(|_| demand.http_proxy_s.is_none());
    let idle_limit = shortest.map_or(gap.seconds, |server| server.min(gap.seconds));
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
    items[1].warnings.push("only if the pool really shrinks: minimum idle below its size".into());
    let lifetime = shortest.map(|server| (server, server.saturating_sub(30)));
    if let Some((server, lifetime)) = lifetime.filter(|(_, lifetime)| *lifetime > 0) {
        items.push(item(
            "pool.max_lifetime",
            lifetime,
            format!("let no pooled connection live longer than {lifetime} s"),
            vec![Step::new("server", format!("{server} s - 30 s"), seconds(lifetime))],
        ));
    }
    items
}
