//! Fixes that are computed for the state of a host, without an incident.

use rsttrace_core::{
    causes::{
        by_id,
        fix_context::{FailedConnection, FixContext},
    },
    fix::{Change, Fix, FixOwner},
    testing::address,
};
use rsttrace_model::{
    address::Address,
    conntrack::ConntrackStat,
    host_state::{HostState, Netns},
    ipvs::{IpvsDestination, IpvsService},
    netns::{NetnsReach, Place, TcpCounters},
    settings::{ALL, Scope, Setting, Values},
};

const HOST: u32 = 1;

fn values(scope: Scope) -> Values {
    let mut values = Values::default();
    for setting in ALL.iter().filter(|setting| setting.scope == scope) {
        if let Some(default) = setting.default {
            values.insert(setting, Ok(default.to_string()));
        }
    }
    values
}

fn set(values: &mut Values, key: &str, value: u64) {
    values.insert(Setting::find(key).expect("listed"), Ok(value.to_string()));
}

fn netns(number: u32) -> Netns {
    let reach = match number {
        HOST => NetnsReach::Initial,
        _ => NetnsReach::Named(format!("/run/netns/n{number}")),
    };
    Netns {
        place: Place { netns: number, reach },
        values: values(Scope::Netns),
        services: None,
        translates: None,
        firewall: None,
        legacy_tables: Vec::new(),
        listeners: None,
        queues: None,
        connections: None,
        ipvs_table: None,
        tracked: Vec::new(),
        addresses: None,
        conntrack: ConntrackStat::default(),
        tcp: TcpCounters::default(),
    }
}

fn ipvs_netns(number: u32, vip: &str) -> Netns {
    let vip = address(vip);
    let server =
        |ip: &str| IpvsDestination { ip: address(ip).ip(), port: 3306, weight: 1, forward: 0 };
    let service = IpvsService {
        ip: vip.ip(),
        port: vip.port(),
        fwmark: 0,
        protocol: 6,
        scheduler: "rr".into(),
        destinations: vec![server("10.2.0.1:3306"), server("10.2.0.2:3306")],
    };
    Netns { services: Some(vec![service]), ..netns(number) }
}

fn nat_netns(number: u32, ip: &str) -> Netns {
    let ip = address(ip).ip();
    Netns { translates: Some(true), addresses: Some(vec![Address::fixed(ip)]), ..netns(number) }
}

fn view(mut others: Vec<Netns>) -> HostState {
    others.insert(0, netns(HOST));
    let mut view = HostState { namespaces: others, ..HostState::default() };
    view.machine.values = values(Scope::Machine);
    set(&mut view.machine.values, "net.netfilter.nf_conntrack_max", 65_536);
    set(&mut view.machine.values, "net.netfilter.nf_conntrack_buckets", 16_384);
    view
}

/// The node's fixes with something to set.
fn node_fixes(cause: &str, context: &FixContext<'_>) -> Vec<Fix> {
    let fixes = by_id(cause).expect("a cause").fixes_on(context);
    let sets = |fix: &Fix| fix.changes.iter().any(|change| change.setting().is_some());
    fixes.into_iter().filter(|fix| fix.owner == FixOwner::Node && sets(fix)).collect()
}

/// Namespace, key and value.
fn changes(fix: &Fix) -> Vec<(u32, &'static str, u64)> {
    let change = |change: &Change| {
        let (setting, to) = change.setting()?;
        Some((change.place()?.netns, setting.key, to))
    };
    fix.changes.iter().filter_map(change).collect()
}

#[test]
fn the_ipvs_timeout_is_raised_where_the_service_of_the_broken_connection_is() {
    let view = view(vec![ipvs_netns(2, "10.0.0.2:80"), ipvs_netns(3, "10.0.0.3:80")]);
    let context = FixContext { idle_s: Some(3600.0), ..FixContext::of(&view) };
    assert_eq!(node_fixes("ipvs_idle_expired", &context).len(), 2, "the service is unknown");
    let failed =
        FailedConnection { service: Some(address("10.0.0.3:80")), ..FailedConnection::default() };
    let fixes = node_fixes("ipvs_idle_expired", &FixContext { failed, ..context });
    assert_eq!(fixes.iter().flat_map(changes).collect::<Vec<_>>(), [(3, "ipvs.tcp", 4140)]);
}

#[test]
fn a_timeout_that_suffices_is_not_raised_again() {
    let mut balancer = ipvs_netns(2, "10.0.0.2:80");
    set(&mut balancer.values, "ipvs.tcp", 4140);
    let view = view(vec![balancer]);
    let context = FixContext { idle_s: Some(3600.0), ..FixContext::of(&view) };
    let fixes = node_fixes("ipvs_idle_expired", &context);
    assert_eq!(changes(&fixes[0]), [(2, "ipvs.tcp", 4140)]);
}

#[test]
fn the_timeout_after_a_fin_is_raised_only_where_it_applies() {
    let view = view(vec![ipvs_netns(2, "10.0.0.2:80")]);
    let in_state = |state| {
        let failed = FailedConnection { ipvs_state: state, ..FailedConnection::default() };
        node_fixes("ipvs_halfclose_expired", &FixContext { failed, ..FixContext::of(&view) })
    };
    assert_eq!(in_state(None), []);
    assert_eq!(in_state(rsttrace_model::ipvs::state_by_name("CLOSE_WAIT")), []);
    let fixes = in_state(rsttrace_model::ipvs::state_by_name("FIN_WAIT"));
    assert_eq!(fixes.iter().flat_map(changes).collect::<Vec<_>>(), [(2, "ipvs.tcpfin", 300)]);
}

#[test]
fn nat_is_changed_in_the_namespace_on_a_link_with_the_client_or_the_server() {
    let view = view(vec![nat_netns(2, "10.11.1.1:0"), nat_netns(3, "10.12.1.1:0")]);
    let failed = FailedConnection {
        client: Some(address("10.12.1.2:0").ip()),
        ..FailedConnection::default()
    };
    let fixes = node_fixes("conntrack_invalid", &FixContext { failed, ..FixContext::of(&view) });
    let key = "net.netfilter.nf_conntrack_tcp_be_liberal";
    assert_eq!(fixes.iter().flat_map(changes).collect::<Vec<_>>(), [(3, key, 1)]);
}

#[test]
fn every_conntrack_limit_below_the_idle_time_is_raised_including_the_hidden_ones() {
    let mut nat = nat_netns(2, "10.11.1.1:0");
    set(&mut nat.values, "net.netfilter.nf_conntrack_tcp_timeout_established", 86_400);
    let view = view(vec![nat]);
    let context = FixContext { idle_s: Some(600.0), ..FixContext::of(&view) };
    let fixes = node_fixes("conntrack_idle_expired", &context);
    let wanted = [
        (2, "net.netfilter.nf_conntrack_tcp_timeout_unacknowledged", 720),
        (2, "net.netfilter.nf_conntrack_tcp_timeout_max_retrans", 720),
    ];
    assert_eq!(fixes.iter().flat_map(changes).collect::<Vec<_>>(), wanted);
}

#[test]
fn a_full_table_gets_twice_its_peak_on_the_host_whichever_namespace_filled_it() {
    let mut full = netns(2);
    set(&mut full.values, "net.netfilter.nf_conntrack_count", 65_536);
    let view = view(vec![full]);
    let fixes =
        node_fixes("conntrack_table_full", &FixContext { netns: Some(2), ..FixContext::of(&view) });
    let wanted = [
        (HOST, "net.netfilter.nf_conntrack_max", 131_072),
        (HOST, "net.netfilter.nf_conntrack_buckets", 131_072),
    ];
    assert_eq!(fixes.iter().flat_map(changes).collect::<Vec<_>>(), wanted);
}

#[test]
fn keepalive_sysctls_are_for_sockets_that_have_keepalive_on() {
    let view = view(vec![ipvs_netns(2, "10.0.0.2:80"), netns(3)]);
    let with = |keepalive| {
        let failed =
            FailedConnection { application: Some(3), keepalive, ..FailedConnection::default() };
        let fixes =
            node_fixes("ipvs_idle_expired", &FixContext { failed, ..FixContext::of(&view) });
        fixes.iter().flat_map(changes).filter(|(inum, ..)| *inum == 3).count()
    };
    assert_eq!((with(Some(true)), with(Some(false)), with(None)), (3, 0, 0));
}

#[test]
fn a_host_with_defaults_gets_the_documented_fixes_of_every_cause() {
    let view = view(Vec::new());
    for cause in rsttrace_core::causes::ALL {
        let fixes = cause.fixes_on(&FixContext::of(&view));
        for remedy in cause.doc.fixes {
            assert!(fixes.iter().any(|fix| fix.id == remedy.id), "{cause:?}: {}", remedy.id);
        }
    }
}
