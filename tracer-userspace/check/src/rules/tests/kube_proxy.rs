//! What is said of values that kube-proxy writes, and of what its former mode left behind.

use rsttrace_core::fix::FixOwner;
use rsttrace_model::address::Address;

use super::*;

const MAX: &str = "net.netfilter.nf_conntrack_max";

fn runs(state: &mut HostState, mode: &str) {
    let mode = Some(mode.into());
    state.configured.kube_proxy = Some(KubeProxy { pid: Some(12), mode, ..KubeProxy::default() });
}

/// The settings of IPVS mode on a host with one service and a client.
fn in_ipvs_mode() -> HostState {
    let mut state = pooled(None);
    runs(&mut state, "ipvs");
    for key in ["conntrack", "expire_nodest_conn", "expire_quiescent_template"] {
        set(&mut state.namespaces[0].values, &format!("net.ipv4.vs.{key}"), 1);
    }
    state
}

#[test]
fn what_kube_proxy_writes_is_not_said_to_be_set_by_hand() {
    let source = |state: &HostState| of_rule(state, "ipvs_server_removed")[0].source.clone();
    let mut state = in_ipvs_mode();
    assert_eq!(
        source(&state),
        "net.ipv4.vs.expire_nodest_conn = 1: kube-proxy (pid 12) writes 1 when it starts (always in ipvs mode)"
    );
    state.configured.kube_proxy = None;
    assert!(source(&state).contains("set by hand or by a program"));
    runs(&mut state, "iptables");
    assert!(source(&state).contains("set by hand or by a program"), "not in this mode");
    let mut proxy = KubeProxy { pid: Some(12), ..KubeProxy::default() };
    proxy.forget_all();
    state.configured.kube_proxy = Some(proxy);
    let unknown = source(&state);
    assert!(unknown.contains("may write it when it starts"), "{unknown}");
    assert!(unknown.contains("configuration could not be read"), "{unknown}");
}

#[test]
fn a_timeout_that_kube_proxy_would_write_but_does_not_is_said_with_its_field() {
    let source = &of_rule(&in_ipvs_mode(), "ipvs_idle")[0].source;
    let expected =
        "kernel default; kube-proxy (pid 12) leaves it alone (ipvs.tcpTimeout does not set it)";
    assert!(source.ends_with(expected), "{source}");
}

#[test]
fn the_first_fix_of_a_value_that_kube_proxy_writes_is_its_field() {
    let mut state = host(vec![netns(1)]);
    runs(&mut state, "iptables");
    set(&mut state.machine.values, MAX, 131_072);
    set(&mut state.namespaces[0].values, "net.netfilter.nf_conntrack_count", 120_000);
    let found = of_rule(&state, "conntrack_room");
    assert_eq!(found[0].owner, FixOwner::KubeProxy);
    let ids: Vec<_> = found[0].fixes.iter().map(|fix| (fix.id, fix.owner)).collect();
    assert_eq!(ids[0], ("set_in_kube_proxy", FixOwner::KubeProxy));
    assert_eq!(ids[1].0, "raise_conntrack_max");
    assert_eq!(found[0].fixes[0].wanted.as_deref(), Some("conntrack.min: 262144"));
    state.configured.kube_proxy = None;
    let found = of_rule(&state, "conntrack_room");
    assert_eq!((found[0].owner, found[0].fixes[0].id), (FixOwner::Node, "raise_conntrack_max"));
}

#[test]
fn a_larger_table_is_kept_by_versions_that_never_lower_it_and_this_is_said() {
    let mut state = host(vec![netns(1)]);
    state.configured.modules.push("nf_conntrack".into());
    state.configured.sysctls.push(line(MAX, 262_144));
    runs(&mut state, "nftables");
    let found = of_rule(&state, "configured");
    assert!(
        found[0].reason.ends_with(
            "kube-proxy (pid 12) will write 131072 at its next start (versions from 1.37 on raise it but never \
             lower it)"
        ),
        "{}",
        found[0].reason
    );
    assert_eq!(found[0].fixes[0].id, "set_in_kube_proxy");
}

#[test]
fn a_server_that_kube_proxy_removes_is_drained_and_no_fix_says_drain_it() {
    let found = of_rule(&in_ipvs_mode(), "ipvs_server_removed");
    assert_eq!((found[0].rank, found[0].owner), (Rank::Info, FixOwner::KubeProxy));
    assert!(found[0].reason.contains("the connections of a Service that is deleted"));
    assert_eq!(found[0].fixes, []);
}

#[test]
fn the_reuse_mode_is_not_kube_proxys() {
    let mut state = in_ipvs_mode();
    set(&mut state.namespaces[0].values, "net.ipv4.vs.conn_reuse_mode", 0);
    assert_eq!(of_rule(&state, "ipvs_reuse")[0].owner, FixOwner::Node);
}

/// kube-proxy went from ipvs to iptables mode: the service and its address stay.
fn left_behind() -> HostState {
    let mut state = in_ipvs_mode();
    runs(&mut state, "iptables");
    let vip = Address {
        interface: Some("kube-ipvs0".into()),
        ..Address::fixed(address("10.96.0.1:0").ip())
    };
    state.namespaces[0].addresses = Some(vec![vip]);
    state.namespaces[0].translates = Some(true);
    state
}

#[test]
fn a_path_through_services_that_were_left_behind_depends_on_the_entry_of_the_connection() {
    let ipvs = |state: &HostState| {
        let path = followed(state, "n2→10.96.0.1:3306", &[]);
        let hop = path.hops.iter().find(|hop| hop.what.starts_with("IPVS")).cloned();
        hop.map(|hop| (hop.idle_s, hop.what))
    };
    let mut state = left_behind();
    assert_eq!(ipvs(&state), Some((Some(900), "IPVS 10.96.0.1:3306 on the host".into())));
    state.namespaces[0].ipvs_table.as_mut().expect("a table").entries.clear();
    let (limit, what) = ipvs(&state).expect("the service is listed");
    assert_eq!(limit, None);
    assert!(what.ends_with("(left behind; no connection has an entry)"), "{what}");
    runs(&mut state, "ipvs");
    assert_eq!(ipvs(&state).expect("its service").0, Some(900));
}

#[test]
fn an_entry_whose_service_was_deleted_is_still_on_the_path() {
    let mut state = in_ipvs_mode();
    state.namespaces[0].services = Some(Vec::new());
    let path = followed(&state, "n2→10.96.0.1:3306", &[]);
    assert!(path.hops.iter().any(|hop| hop.what == "IPVS 10.96.0.1:3306 on the host"));
}

#[test]
fn services_that_were_left_behind_are_reported_once_and_break_nothing_new() {
    let mut state = left_behind();
    let reason = &of_rule(&state, "configured")[0].reason;
    assert!(
        reason.starts_with("1 IPVS service and the addresses of kube-ipvs0 are left"),
        "{reason}"
    );
    state.namespaces[0].ipvs_table.as_mut().expect("a table").entries.clear();
    assert_eq!(ranks(&state, "ipvs_idle"), []);
    runs(&mut state, "ipvs");
    assert_eq!(ranks(&state, "ipvs_idle"), [(Rank::Break, 1)]);
}

#[test]
fn connections_that_were_translated_after_a_change_of_the_mode_are_no_longer_taken_for_ipvs() {
    let mut state = left_behind();
    let client = flow("10.0.1.2:5000", "10.96.0.1:3306");
    let reply = flow("10.0.2.2:3306", "10.0.1.2:5000");
    state.namespaces[0].tracked =
        vec![ConntrackEntry { original: client, reply, state: Some(3), left_s: None }];
    set(&mut state.namespaces[0].values, ESTABLISHED, 600);
    let lost = |state: &HostState| of_rule(state, "conntrack_idle")[0].connections.len();
    assert_eq!(lost(&state), 0, "IPVS has its entry");
    state.namespaces[0].ipvs_table.as_mut().expect("a table").entries.clear();
    assert_eq!(lost(&state), 1);
}
