//! What the rules find on hosts that these tests construct.

mod firewall;
mod kube_proxy;
mod user_timeout;

use rsttrace_core::{
    causes,
    testing::{address, flow},
};
use rsttrace_model::{
    configured::{Assignment, KubeProxy, Line},
    conntrack::{ConntrackEntry, ConntrackStat},
    host_state::Machine,
    ipvs::{IpvsDestination, IpvsEntry, IpvsService, IpvsTable},
    kube_proxy::{FieldValue, NANOSECONDS},
    netns::{NetnsReach, Place, TcpCounters},
    owner::Owner,
    settings::{self, Scope, Setting, Values},
    socket::{HeldSocket, Keepalive, SocketList, SocketOptions, SocketState},
    tcp_state,
};

use super::*;
use crate::{CheckFinding, Rank, findings, path};

fn values(scope: Scope) -> Values {
    let mut values = Values::default();
    for setting in settings::ALL.iter().filter(|it| it.scope == scope) {
        if let Some(default) = setting.default {
            values.insert(setting, Ok(default.to_string()));
        }
    }
    values
}

/// A namespace with every default, without services, rules or sockets.
fn netns(number: u32) -> Netns {
    let reach = match number {
        1 => NetnsReach::Initial,
        number => NetnsReach::Named(format!("/run/netns/n{number}")),
    };
    let mut values = values(Scope::Netns);
    set(&mut values, "net.netfilter.nf_conntrack_count", 10);
    Netns {
        place: Place { netns: number, reach },
        values,
        services: None,
        translates: Some(false),
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

/// A host with default settings and these namespaces.
fn host(namespaces: Vec<Netns>) -> HostState {
    let mut values = values(Scope::Machine);
    set(&mut values, "net.netfilter.nf_conntrack_max", 262_144);
    set(&mut values, "net.netfilter.nf_conntrack_buckets", 262_144);
    set(&mut values, "net.ipv4.tcp_max_orphans", 16_384);
    let machine = Machine { release: "test".into(), cpus: 4, ram_bytes: None, values };
    HostState { machine, namespaces, ..HostState::default() }
}

fn set(values: &mut Values, key: &str, value: u64) {
    values.insert(Setting::find(key).expect("listed"), Ok(value.to_string()));
}

fn service(on: &str, servers: &[(&str, u32)]) -> IpvsService {
    let on = address(on);
    let server = |(at, weight): &(&str, u32)| IpvsDestination {
        ip: address(at).ip(),
        port: address(at).port(),
        weight: *weight,
        forward: 0,
    };
    IpvsService {
        ip: on.ip(),
        port: on.port(),
        fwmark: 0,
        protocol: TCP,
        scheduler: "rr".into(),
        destinations: servers.iter().map(server).collect(),
    }
}

/// A namespace with one IPVS service and an empty connection table.
fn balancer(number: u32) -> Netns {
    Netns {
        services: Some(vec![service("10.96.0.1:3306", &[("10.0.2.2:3306", 1)])]),
        ipvs_table: Some(IpvsTable { entries: Vec::new(), truncated: false }),
        ..netns(number)
    }
}

fn entry(client: &str) -> IpvsEntry {
    IpvsEntry {
        virtual_flow: flow(client, "10.96.0.1:3306"),
        server: address("10.0.2.2:3306"),
        state: "ESTABLISHED".into(),
        left_s: 800,
    }
}

fn socket(local: &str, remote: &str, inode: u64) -> SocketState {
    SocketState {
        flow: flow(local, remote),
        state: tcp_state::ESTABLISHED,
        inode,
        uid: 0,
        timer: None,
        retransmits: 0,
        receive_queue: 0,
        send_queue: 0,
        ages: None,
        bytes_received: None,
        bytes_acked: None,
        v6_only: false,
    }
}

fn list(sockets: Vec<SocketState>) -> Option<SocketList> {
    Some(SocketList { sockets, truncated: false })
}

/// SO_KEEPALIVE with this time, or off.
fn held(time_s: Option<f64>) -> HeldSocket {
    let keepalive = Keepalive {
        enabled: time_s.is_some(),
        time_s: time_s.unwrap_or(7200.0),
        intvl_s: 75.0,
        probes: 9,
        time_is_own: false,
    };
    HeldSocket {
        owner: Owner { pid: 7, comm: "app".into(), ..Owner::default() },
        options: Some(SocketOptions { keepalive, user_timeout_ms: 0 }),
    }
}

/// A client in namespace 2 with a connection through the balancer in namespace 1.
fn pooled(keepalive_s: Option<f64>) -> HostState {
    let mut node = balancer(1);
    node.ipvs_table.as_mut().expect("a table").entries.push(entry("10.0.1.2:5000"));
    let client = Netns {
        connections: list(vec![socket("10.0.1.2:5000", "10.96.0.1:3306", 77)]),
        ..netns(2)
    };
    let mut state = host(vec![node, client]);
    state.held.insert(77, held(keepalive_s));
    state
}

fn judged(state: &HostState) -> Vec<CheckFinding> {
    findings(&RuleInput::new(state))
}

fn of_rule(state: &HostState, rule: &str) -> Vec<CheckFinding> {
    judged(state).into_iter().filter(|finding| finding.rule == rule).collect()
}

fn ranks(state: &HostState, rule: &str) -> Vec<(Rank, u32)> {
    of_rule(state, rule).iter().map(|finding| (finding.rank, finding.place.netns)).collect()
}

#[test]
fn a_host_with_default_settings_has_no_findings() {
    assert_eq!(judged(&host(vec![netns(1), netns(2)])), []);
}

#[test]
fn a_host_with_docker_has_one_warning_and_one_info_about_its_nat() {
    let state = host(vec![Netns { translates: Some(true), ..netns(1) }, netns(2)]);
    let found: Vec<_> = judged(&state).iter().map(|it| (it.rank, it.rule)).collect();
    assert_eq!(found, [(Rank::Warn, "conntrack_invalid"), (Rank::Info, "conntrack_hidden")]);
}

#[test]
fn every_predicted_cause_exists_and_is_listed_by_its_rule() {
    let mut state = pooled(None);
    state.namespaces[0].translates = Some(true);
    for finding in judged(&state) {
        let rule = ALL.iter().find(|rule| rule.id == finding.rule).expect("its rule");
        if let Some(id) = finding.cause {
            assert!(rule.causes.contains(&id), "{id} of {}", rule.id);
        }
    }
    for id in ALL.iter().flat_map(|rule| rule.causes) {
        assert!(causes::by_id(id).is_some(), "{id}");
    }
}

#[test]
fn ids_of_rules_are_unique() {
    for (at, rule) in ALL.iter().enumerate() {
        assert!(ALL[..at].iter().all(|other| other.id != rule.id), "{}", rule.id);
    }
}

#[test]
fn a_pooled_connection_without_keepalive_breaks_after_the_ipvs_timeout() {
    let found = of_rule(&pooled(None), "ipvs_idle");
    assert_eq!(found.len(), 1);
    let finding = &found[0];
    assert_eq!((finding.rank, finding.after_s), (Rank::Break, Some(900)));
    assert_eq!(finding.cause, Some("ipvs_idle_expired"));
    assert_eq!(
        finding.connections,
        ["app (pid 7) 10.0.1.2:5000 → 10.96.0.1:3306: SO_KEEPALIVE off"]
    );
    let ids: Vec<_> = finding.fixes.iter().map(|fix| fix.id).collect();
    assert_eq!(ids, ["keepalive_below_limit", "raise_ipvs_timeout", "pool_idle_below_limit"]);
}

#[test]
fn the_default_keepalive_time_is_too_late_and_the_sysctls_reach_it() {
    let found = of_rule(&pooled(Some(7200.0)), "ipvs_idle");
    assert_eq!(found[0].rank, Rank::Break);
    assert!(found[0].formula.contains("7200 × 1.125 = 8100 ≥ 900"), "{}", found[0].formula);
    let sysctls = &found[0].fixes[1];
    assert_eq!(sysctls.commands()[0], "ip netns exec n2 sysctl -w net.ipv4.tcp_keepalive_time=300");
}

#[test]
fn a_keepalive_in_time_at_either_end_keeps_a_connection() {
    assert_eq!(ranks(&pooled(Some(300.0)), "ipvs_idle"), [(Rank::Info, 1)]);
    // 800 × 1.125 is the limit itself.
    assert_eq!(ranks(&pooled(Some(800.0)), "ipvs_idle"), [(Rank::Break, 1)]);
    assert_eq!(ranks(&pooled(Some(799.0)), "ipvs_idle"), [(Rank::Info, 1)]);

    let mut state = pooled(None);
    state.namespaces.push(Netns {
        connections: list(vec![socket("10.0.2.2:3306", "10.0.1.2:5000", 78)]),
        ..netns(3)
    });
    state.held.insert(78, held(Some(300.0)));
    assert_eq!(ranks(&state, "ipvs_idle"), [(Rank::Info, 1)]);
}

#[test]
fn a_service_without_connections_is_a_break_and_a_timeout_raised_for_two_hours_is_not_a_warning() {
    let mut state = host(vec![balancer(1)]);
    assert_eq!(ranks(&state, "ipvs_idle"), [(Rank::Break, 1)]);
    // What `fix ipvs_idle_expired --idle 2h` sets.
    let raised = causes::remedy::limit_above(7200.0);
    set(&mut state.namespaces[0].values, "ipvs.tcp", raised);
    assert_eq!(ranks(&state, "ipvs_idle"), [(Rank::Info, 1)]);
    let mut pool = pooled(None);
    set(&mut pool.namespaces[0].values, "ipvs.tcp", raised);
    assert_eq!(
        ranks(&pool, "ipvs_idle"),
        [(Rank::Info, 1)],
        "it never probes, and that is reported"
    );
    state.namespaces[0].services = Some(Vec::new());
    assert_eq!(ranks(&state, "ipvs_idle"), []);
}

#[test]
fn a_socket_whose_options_cannot_be_read_is_judged_by_its_timer_and_never_by_the_sysctl() {
    let mut state = pooled(None);
    state.held.clear();
    let socket = &mut state.namespaces[1].connections.as_mut().expect("a list").sockets[0];
    let timer = |left_ms| {
        Some(rsttrace_model::socket::SocketTimer {
            kind: rsttrace_model::socket::TimerKind::Keepalive,
            left_ms,
        })
    };
    socket.timer = timer(7_000_000);
    let found = of_rule(&state, "ipvs_idle");
    assert_eq!(found[0].rank, Rank::Break);
    assert!(found[0].connections[0].ends_with("keepalive timer, 7000 s left"), "{found:?}");
    // A short time left shows nothing: packets do not re-arm the timer.
    let socket = &mut state.namespaces[1].connections.as_mut().expect("a list").sockets[0];
    socket.timer = timer(100_000);
    assert_eq!(ranks(&state, "ipvs_idle"), [(Rank::Warn, 1)]);
}

#[test]
fn all_timers_at_two_hours_are_a_lost_race() {
    let mut node = balancer(1);
    set(&mut node.values, "ipvs.tcp", 7200);
    set(&mut node.values, "net.netfilter.nf_conntrack_tcp_timeout_established", 7200);
    let found = of_rule(&host(vec![node.clone()]), "equal_timers");
    assert_eq!((found[0].rank, found[0].after_s), (Rank::Break, Some(7200)));
    assert!(found[0].reason.contains("are all 7200 s"), "{}", found[0].reason);
    set(&mut node.values, "net.ipv4.tcp_keepalive_time", 2400);
    assert_eq!(ranks(&host(vec![node]), "equal_timers"), []);
}

#[test]
fn udp_entries_of_five_minutes_leave_room_for_437_flows_a_second() {
    let mut state = host(vec![netns(1)]);
    set(&mut state.machine.values, "net.netfilter.nf_conntrack_max", 131_072);
    set(&mut state.namespaces[0].values, "net.netfilter.nf_conntrack_udp_timeout", 300);
    let found = of_rule(&state, "udp_timers");
    assert_eq!(found[0].rank, Rank::Warn);
    assert!(found[0].reason.contains("437 new flows") && found[0].reason.contains("4369"));
}

#[test]
fn a_translated_connection_breaks_when_its_timeout_is_shorter_than_its_idle_time() {
    let mut node = Netns { translates: Some(true), ..netns(1) };
    set(&mut node.values, "net.netfilter.nf_conntrack_tcp_timeout_established", 600);
    assert_eq!(ranks(&host(vec![node.clone()]), "conntrack_idle"), [(Rank::Warn, 1)]);
    node.tracked.push(ConntrackEntry {
        original: flow("10.0.1.2:5000", "10.9.9.9:80"),
        reply: flow("10.0.2.2:80", "10.0.1.2:5000"),
        state: Some(3),
        left_s: Some(500),
    });
    let client =
        Netns { connections: list(vec![socket("10.0.1.2:5000", "10.9.9.9:80", 77)]), ..netns(2) };
    let mut state = host(vec![node, client]);
    state.held.insert(77, held(None));
    let found = of_rule(&state, "conntrack_idle");
    assert_eq!((found[0].rank, found[0].after_s), (Rank::Break, Some(600)));
    state.held.insert(77, held(Some(200.0)));
    assert_eq!(ranks(&state, "conntrack_idle"), [(Rank::Warn, 1)]);
}

#[test]
fn a_full_table_breaks_now_and_a_table_without_a_limit_is_never_full() {
    let mut state = host(vec![netns(1), netns(2)]);
    let count = "net.netfilter.nf_conntrack_count";
    set(&mut state.namespaces[1].values, count, 262_100);
    let found = of_rule(&state, "conntrack_room");
    let causes: Vec<_> = found.iter().map(|it| (it.rank, it.cause, it.place.netns)).collect();
    assert_eq!(
        causes,
        [
            (Rank::Break, Some("conntrack_table_full"), 2),
            (Rank::Warn, Some("conntrack_early_drop"), 2)
        ]
    );
    // The limit is set on the host, whichever namespace fills its table.
    let commands = found[0].fixes[0].commands();
    assert_eq!(commands[0], "sysctl -w net.netfilter.nf_conntrack_max=524288");
    set(&mut state.namespaces[1].values, count, 170_000);
    assert_eq!(ranks(&state, "conntrack_room"), [(Rank::Warn, 2)]);
    set(&mut state.machine.values, "net.netfilter.nf_conntrack_max", 0);
    assert_eq!(ranks(&state, "conntrack_room"), []);
}

#[test]
fn losses_are_reported_from_their_counters() {
    let conntrack = ConntrackStat {
        drop: Some(3),
        early_drop: Some(2),
        insert_failed: Some(0),
        ..ConntrackStat::default()
    };
    let mut state = host(vec![Netns { conntrack, ..netns(1) }]);
    let found = of_rule(&state, "conntrack_losses");
    let causes: Vec<_> = found.iter().filter_map(|it| it.cause).collect();
    assert_eq!(causes, ["conntrack_table_full", "conntrack_early_drop"]);
    assert_eq!(found[0].rank, Rank::Info, "counters never go down, and there is room now");
    set(&mut state.namespaces[0].values, "net.netfilter.nf_conntrack_count", 170_000);
    assert_eq!(ranks(&state, "conntrack_losses"), [(Rank::Warn, 1); 2]);
}

#[test]
fn an_accept_queue_that_is_nearly_full_or_tiny_is_reported() {
    let listener = |waiting, limit| SocketState {
        state: tcp_state::LISTEN,
        receive_queue: waiting,
        send_queue: limit,
        ..socket("0.0.0.0:80", "0.0.0.0:0", 5)
    };
    let with = |listener| host(vec![Netns { queues: list(vec![listener]), ..netns(1) }]);
    assert_eq!(ranks(&with(listener(0, 128)), "accept_queue"), []);
    assert_eq!(ranks(&with(listener(0, 3)), "accept_queue"), [(Rank::Warn, 1)]);
    assert_eq!(ranks(&with(listener(90, 128)), "accept_queue"), [(Rank::Warn, 1)]);
    assert_eq!(ranks(&with(listener(129, 128)), "accept_queue"), [(Rank::Break, 1)]);
    let mut small = with(listener(0, 3));
    set(&mut small.namespaces[0].values, "net.core.somaxconn", 3);
    let found = of_rule(&small, "accept_queue");
    assert!(found[0].reason.contains("more than 4 connections"), "{}", found[0].reason);
}

#[test]
fn handshakes_that_were_dropped_are_a_warning_while_a_queue_is_short() {
    let queue = |limit| SocketState {
        state: tcp_state::LISTEN,
        send_queue: limit,
        ..socket("0.0.0.0:80", "0.0.0.0:0", 5)
    };
    let tcp = TcpCounters { listen_overflows: Some(4), ..TcpCounters::default() };
    let with = |limit| {
        host(vec![Netns { queues: list(vec![queue(limit)]), tcp: tcp.clone(), ..netns(1) }])
    };
    assert_eq!(ranks(&with(3), "accept_queue"), [(Rank::Warn, 1); 2]);
    assert_eq!(ranks(&with(4096), "accept_queue"), [(Rank::Info, 1)]);
}

#[test]
fn ipvs_settings_that_lose_connections_are_reported_where_there_is_a_service() {
    let mut node = balancer(1);
    for (key, value) in [
        ("net.ipv4.vs.drop_entry", 3),
        ("net.ipv4.vs.sloppy_tcp", 1),
        ("net.ipv4.vs.conn_reuse_mode", 0),
    ] {
        set(&mut node.values, key, value);
    }
    node.services = Some(vec![
        service("10.96.0.1:80", &[("10.0.2.2:80", 1), ("10.0.3.2:80", 1)]),
        service("10.96.0.2:80", &[("10.0.2.3:80", 0)]),
    ]);
    let found = judged(&host(vec![node]));
    for (rule, cause) in [
        ("ipvs_defence", "ipvs_entry_dropped"),
        ("ipvs_sloppy", "wrong_backend"),
        ("ipvs_reuse", "ipvs_server_removed"),
        ("ipvs_no_server", "no_backend"),
        ("ipvs_server_removed", "ipvs_server_removed"),
        ("ipvs_halfclose", "ipvs_halfclose_expired"),
    ] {
        let it = found.iter().find(|it| it.rule == rule).expect(rule);
        assert_eq!((it.rank, it.cause), (Rank::Warn, Some(cause)), "{rule}");
    }
}

#[test]
fn conntrack_that_expires_before_ipvs_is_reported_where_ipvs_is_tracked() {
    let mut node = balancer(1);
    set(&mut node.values, "net.netfilter.nf_conntrack_tcp_timeout_established", 900);
    assert_eq!(ranks(&host(vec![node.clone()]), "conntrack_before_ipvs"), []);
    set(&mut node.values, "net.ipv4.vs.conntrack", 1);
    let found = of_rule(&host(vec![node]), "conntrack_before_ipvs");
    assert!(found[0].formula.contains("900 < 1035"), "{}", found[0].formula);
}

#[test]
fn a_low_limit_on_orphans_is_a_finding_of_the_host() {
    let mut state = host(vec![netns(1), netns(2)]);
    set(&mut state.machine.values, "net.ipv4.tcp_max_orphans", 0);
    assert_eq!(ranks(&state, "orphans"), [(Rank::Warn, 1)]);
}

/// A file of sysctl.d.
fn line(key: &str, value: u64) -> Assignment {
    let at = Line { file: "/etc/sysctl.d/99-custom.conf".into(), number: 6 };
    Assignment { key: key.into(), value: value.to_string(), at, by_hand_only: false }
}

const ESTABLISHED: &str = "net.netfilter.nf_conntrack_tcp_timeout_established";

#[test]
fn a_file_that_kube_proxy_overwrites_is_reported_before_and_after() {
    let mut state = host(vec![netns(1)]);
    state.configured.modules.push("nf_conntrack".into());
    state.configured.sysctls.push(line(ESTABLISHED, 7200));
    set(&mut state.namespaces[0].values, ESTABLISHED, 7200);
    assert_eq!(ranks(&state, "configured"), []);
    state.configured.kube_proxy = Some(KubeProxy { pid: Some(12), ..KubeProxy::default() });
    let reason = |state: &HostState| of_rule(state, "configured")[0].reason.clone();
    assert_eq!(
        reason(&state),
        "/etc/sysctl.d/99-custom.conf:6 sets net.netfilter.nf_conntrack_tcp_timeout_established to 7200, its \
         value now, but kube-proxy (pid 12) will write 86400 at its next start"
    );
    set(&mut state.namespaces[0].values, ESTABLISHED, 86_400);
    assert!(reason(&state).contains(
        "sets net.netfilter.nf_conntrack_tcp_timeout_established to 7200, but the kernel has 86400"
    ));
    state.configured.kube_proxy = None;
    assert!(reason(&state).contains("the value was changed after boot"));
}

#[test]
fn ipvs_timeouts_that_no_file_sets_are_reset_by_a_reboot() {
    let mut state = host(vec![netns(1)]);
    set(&mut state.namespaces[0].values, "ipvs.tcp", 7200);
    let found = of_rule(&state, "configured");
    assert_eq!((found[0].rank, found[0].cause), (Rank::Warn, Some("ipvs_idle_expired")));
    assert!(
        found[0].reason.contains("while tcp_keepalive_time stays at 7200 s"),
        "{}",
        found[0].reason
    );
    let mut kept = state.clone();
    let at = Line { file: "/etc/systemd/system/ipvs.service".into(), number: 4 };
    kept.configured.ipvs_timeouts.push(at);
    assert_eq!(ranks(&kept, "configured"), []);
    let fields = [("ipvs.tcpTimeout", FieldValue::Duration(7200 * NANOSECONDS))].into();
    let mode = Some("ipvs".into());
    state.configured.kube_proxy = Some(KubeProxy { mode, fields, ..KubeProxy::default() });
    assert_eq!(ranks(&state, "configured"), [(Rank::Info, 1)], "only that the mode is deprecated");
}

#[test]
fn conntrack_settings_need_their_module_at_boot() {
    let mut state = host(vec![netns(1)]);
    state.configured.sysctls.push(line("net.netfilter.nf_conntrack_udp_timeout", 30));
    let found = of_rule(&state, "configured");
    assert!(found[0].reason.contains("nothing loads nf_conntrack"), "{}", found[0].reason);
    state.configured.modules.push("nf_conntrack".into());
    assert_eq!(ranks(&state, "configured"), []);
}

#[test]
fn configuration_files_apply_to_the_host_only() {
    let mut state = host(vec![netns(1), Netns { translates: Some(true), ..netns(2) }]);
    state.configured.sysctls.push(line("net.netfilter.nf_conntrack_tcp_be_liberal", 1));
    let found = of_rule(&state, "conntrack_invalid");
    let source = "net.netfilter.nf_conntrack_tcp_be_liberal = 0: kernel default";
    assert_eq!(found[0].source, source);
}

fn followed(state: &HostState, spec: &str, assumed: &[&str]) -> path::Path {
    let spec = spec.parse().expect("a path");
    let assumed: Vec<_> = assumed.iter().map(|it| it.parse().expect("an assumption")).collect();
    path::follow(state, &spec, &assumed).expect("both ends")
}

#[test]
fn the_shortest_limit_of_a_path_decides_and_an_assumed_one_may_be_it() {
    let state = pooled(Some(300.0));
    let shortest = |path: &path::Path| {
        let at = path.least.expect("a limit");
        (path.hops[at].what.clone(), path.verdict.as_ref().expect("a verdict").rank)
    };
    let path = followed(&state, "n2→10.96.0.1:3306", &["lb=86400"]);
    assert_eq!(shortest(&path), ("IPVS 10.96.0.1:3306 on the host".into(), Rank::Info));
    assert_eq!(path.netns, [2, 1]);
    let path = followed(&state, "n2→10.96.0.1:3306", &["lb=320"]);
    assert_eq!(shortest(&path), ("lb".into(), Rank::Break));
    let verdict = path.verdict.expect("a verdict");
    assert_eq!((verdict.cause, verdict.after_s), (Some("middlebox_idle_timeout"), Some(320)));
}

#[test]
fn a_server_that_closes_idle_connections_is_reported_when_keepalives_refresh_every_other_limit() {
    let path = followed(&pooled(Some(300.0)), "n2->10.96.0.1:3306", &["server=28800"]);
    let verdict = path.verdict.expect("a verdict");
    assert_eq!((verdict.rank, verdict.cause), (Rank::Warn, Some("idle_close_race")));
    assert!(
        verdict.reason.contains("server closes a connection after 28800 s"),
        "{}",
        verdict.reason
    );
    assert_eq!(path.least.map(|at| path.hops[at].idle_s), Some(Some(900)));
}

#[test]
fn the_finding_of_a_path_replaces_those_of_the_same_connections() {
    let state = pooled(None);
    for (assumed, after_s, raises) in [(&["lb=350"][..], 350, false), (&[], 900, true)] {
        let path = followed(&state, "n2->10.96.0.1:3306", assumed);
        let combined = path.combined_with(judged(&state));
        let of_path: Vec<_> = combined.iter().filter(|it| !it.connections.is_empty()).collect();
        let breaks: Vec<_> = of_path.iter().filter(|it| it.rank == Rank::Break).collect();
        assert_eq!(breaks.len(), 1, "{breaks:?}");
        assert_eq!(breaks[0].after_s, Some(after_s));
        let has_raise = breaks[0].fixes.iter().any(|fix| fix.id == "raise_ipvs_timeout");
        assert_eq!(has_raise, raises, "raising a limit that is not the shortest fixes nothing");
    }
}

#[test]
fn a_path_without_connections_is_not_a_break_and_an_unknown_end_is_named() {
    let state = pooled(None);
    let path = followed(&state, "pid:7→10.96.0.1", &[]);
    assert_eq!(path.verdict.expect("a verdict").rank, Rank::Break);
    let path = followed(&state, "192.0.2.7→10.96.0.1:3306", &[]);
    assert_eq!(path.verdict.expect("a verdict").rank, Rank::Warn);
    let spec = "absent→10.96.0.1:3306".parse().expect("a path");
    let error = path::follow(&state, &spec, &[]).expect_err("no such end");
    assert!(error.contains("absent"), "{error}");
}

#[test]
fn nat_that_may_not_be_on_the_path_is_listed_and_is_not_the_shortest() {
    let mut state = pooled(None);
    state.namespaces.push(Netns { translates: Some(true), ..netns(3) });
    set(&mut state.namespaces[2].values, ESTABLISHED, 60);
    let path = followed(&state, "n2→10.96.0.1:3306", &[]);
    let hop = path.hops.iter().find(|hop| hop.what.contains("n3")).expect("named");
    assert_eq!((hop.limit.as_str(), hop.idle_s), ("60 s", None));
    assert!(path.hops[path.least.expect("a limit")].what.starts_with("IPVS"));
}
