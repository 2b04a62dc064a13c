//! What overflows first as the load grows, and when.

use std::cmp::Reverse;

use super::{Demand, conntrack, demand::SOCKET_TIME_WAIT_S, ipvs, percent};

/// A limit that the load can exceed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    pub what: String,
    pub load: u64,
    pub capacity: u64,
    /// The unit of `load` and `capacity`.
    pub unit: &'static str,
    /// When the limit overflows: "31 s after this load begins", or at how many times this load.
    pub when: String,
    /// What users see when the limit overflows.
    pub effect: &'static str,
    /// The limit counts only under this condition, which is not known here.
    pub only_if: Option<&'static str>,
}

impl Limit {
    fn new(
        what: &str,
        (load, capacity): (u64, u64),
        unit: &'static str,
        effect: &'static str,
    ) -> Self {
        Self {
            what: what.into(),
            load,
            capacity,
            unit,
            when: grows(load, capacity),
            effect,
            only_if: None,
        }
    }

    /// The load exceeds the capacity.
    pub fn is_over(&self) -> bool {
        self.load > self.capacity
    }

    /// `42 %`
    pub fn used(&self) -> String {
        percent(self.load, self.capacity)
    }

    /// Share of the capacity, parts per million.
    fn share(&self) -> u128 {
        u128::from(self.load) * 1_000_000 / u128::from(self.capacity.max(1))
    }
}

/// At how many times this load the limit overflows.
fn grows(load: u64, capacity: u64) -> String {
    match (load, capacity) {
        (0, _) => "never".into(),
        (load, capacity) if load > capacity => "already exceeded".into(),
        (load, capacity) => {
            let tenths = u128::from(capacity) * 10 / u128::from(load);
            format!("at {}.{} times this load", tenths / 10, tenths % 10)
        }
    }
}

/// Seconds until an empty table that already holds the long-lived connections is full. `None` when it
/// never is.
pub fn full_after_s(demand: &Demand, max: u64) -> Option<u64> {
    let tcp_stays = demand.life_ms.div_ceil(1000).saturating_add(demand.now.time_wait_s);
    let flows = [(demand.cps, tcp_stays), (demand.udp, demand.now.udp_s)];
    let at = |t: u64| {
        flows.iter().fold(demand.connections, |sum, (rate, stays)| {
            sum.saturating_add(rate.saturating_mul(t.min(*stays)))
        })
    };
    // The number of entries grows piecewise linearly and stays constant after the longest stay.
    let last = flows.iter().map(|(_, stays)| *stays).max().unwrap_or(0);
    if at(last) <= max {
        return None;
    }
    let (mut low, mut high) = (0, last);
    while low < high {
        let middle = low + (high - low) / 2;
        if at(middle) > max { high = middle } else { low = middle + 1 }
    }
    Some(low)
}

/// Every limit of this load, the nearest first; those with a condition come last.
pub fn first_to_overflow(
    demand: &Demand,
    table: &conntrack::Table,
    balanced: Option<&ipvs::Table>,
) -> Vec<Limit> {
    let mut limits = vec![table_limit(demand, "conntrack table", table.peak, table.max)];
    if let Some(now) = demand.now.max.filter(|now| *now != table.max) {
        limits.push(table_limit(demand, "conntrack table at its current limit", table.peak, now));
    }
    let memory = table.peak_bytes(demand.kernel) + balanced.map_or(0, ipvs::Table::peak_bytes);
    limits.push(Limit::new(
        "memory of both tables",
        (memory >> 10, demand.ram_bytes >> 10),
        "KiB",
        "no entry can be allocated, and the whole machine runs out of memory",
    ));
    if let (Some(table), true) = (balanced, demand.kernel.at_least(7, 2)) {
        let most = demand.now.ipvs_max.unwrap_or(1 << 30);
        limits.push(Limit::new(
            "IPVS connections",
            (table.peak, most),
            "entries",
            "new connections are dropped without an answer",
        ));
    }
    if demand.cps > 0 {
        let stays_ms = demand.life_ms.saturating_add(SOCKET_TIME_WAIT_S * 1000);
        let ports = Limit::new(
            "ports of a client",
            (demand.cps.saturating_mul(stays_ms).div_ceil(1000), demand.now.local_ports),
            "ports",
            "connect() fails with EADDRNOTAVAIL",
        );
        limits.push(Limit {
            only_if: Some("one address makes all new connections to one service"),
            ..ports
        });
        let queue = Limit::new(
            "accept queue",
            (demand.cps, demand.now.somaxconn),
            "connections",
            "handshakes are dropped and retried after 1 s, 3 s, 7 s",
        );
        let ms = demand.now.somaxconn.saturating_mul(1000) / demand.cps;
        let when = format!("when the application calls no accept() for {} ms", ms);
        limits.push(Limit { when, ..queue });
    }
    limits.sort_by_key(|limit| (limit.only_if.is_some(), Reverse(limit.share())));
    limits
}

fn table_limit(demand: &Demand, what: &str, peak: u64, max: u64) -> Limit {
    let effect = "new connections are dropped (connect() times out); established ones stay";
    let mut limit = Limit::new(what, (peak, max), "entries", effect);
    if let Some(seconds) = full_after_s(demand, max) {
        limit.when = format!("{seconds} s after this load begins");
    }
    limit
}
