//! Fixes with the values of this host.

use rsttrace_core::{
    causes::{
        by_id,
        remedy::{self, Period},
    },
    fix::{Change, Fix, FixOwner},
};
use rsttrace_model::{host_state::Netns, netns::NetnsReach, settings::Setting};

/// A documented fix of a cause, without values of this host.
pub fn documented(cause: &str, id: &str) -> Option<Fix> {
    let cause = by_id(cause)?;
    cause.doc.fixes.iter().find(|remedy| remedy.id == id).map(|remedy| remedy.fix())
}

/// A change of one setting in a namespace.
pub fn set(netns: &Netns, key: &str, to: u64) -> Option<Change> {
    let key = Setting::find(key)?.key;
    let from = netns.values.number(key);
    Some(Change::Sysctl { place: netns.place.clone(), key, from, to })
}

/// A documented fix that changes one setting.
pub fn by_setting(cause: &str, id: &str, netns: &Netns, key: &str, to: u64) -> Option<Fix> {
    let change = set(netns, key, to)?;
    Some(Fix {
        summary: format!("set {key} to {to} {}", netns.place.describe()),
        current: netns.values.text(key).ok().map(Into::into),
        wanted: Some(to.to_string()),
        changes: vec![change],
        ..documented(cause, id)?
    })
}

/// Keepalive socket options with times below a limit.
pub fn keepalive_below(limit_s: u64, limit_is: &str) -> Fix {
    #[expect(clippy::cast_precision_loss, reason = "seconds")]
    let limit_s = limit_s as f64;
    let period = Period::below(limit_s);
    period.fix(limit_s, limit_is, FixOwner::Application, period.socket_options(None))
}

/// Keepalive sysctls of these namespaces, for sockets that have SO_KEEPALIVE on and no times of their own.
pub fn keepalive_sysctls(cause: &str, limit_s: u64, places: &[&Netns]) -> Option<Fix> {
    #[expect(clippy::cast_precision_loss, reason = "seconds")]
    let Period { time_s, intvl_s, probes } = Period::below(limit_s as f64);
    let keys = [
        ("net.ipv4.tcp_keepalive_time", time_s),
        ("net.ipv4.tcp_keepalive_intvl", intvl_s),
        ("net.ipv4.tcp_keepalive_probes", probes),
    ];
    let changes: Vec<_> = places
        .iter()
        .flat_map(|netns| keys.iter().filter_map(|(key, to)| set(netns, key, *to)))
        .collect();
    if changes.is_empty() {
        return None;
    }
    let all_on_host = places.iter().all(|netns| netns.place.reach == NetnsReach::Initial);
    Some(Fix {
        owner: if all_on_host { FixOwner::Node } else { FixOwner::Pod },
        summary: format!("send the first keepalive after {time_s} s {}", {
            let names: Vec<_> = places.iter().map(|netns| netns.place.describe()).collect();
            super::finding::some_of(&names)
        }),
        wanted: Some(format!("{time_s}/{intvl_s}/{probes}")),
        changes,
        ..documented(cause, "keepalive_below_limit")?
    })
}

/// A longer IPVS TCP timeout: twice the present one, and at least as long as the default keepalive needs.
pub fn ipvs_timeout(netns: &Netns, now_s: u64) -> Fix {
    #[expect(clippy::cast_precision_loss, reason = "seconds")]
    remedy::ipvs_timeout(netns.place.clone(), now_s as f64, None)
}
