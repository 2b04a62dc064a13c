//! The worked examples of the project's documentation, and what plans must never do.

use rsttrace_model::configured::KubeProxy;

use super::*;
use crate::{
    conntrack::{entry_bytes, flows_per_s, kernel_default, short_lived},
    idle::{detection_s, fits},
    overflow::full_after_s,
};

const GIB: u64 = 1 << 30;
const NEW: Kernel = Kernel { major: 6, minor: 1 };
const OLD: Kernel = Kernel { major: 5, minor: 10 };

fn demand() -> Demand {
    Demand {
        connections: 0,
        cps: 0,
        life_ms: 1000,
        udp: 0,
        quiet_s: None,
        ram_bytes: 16 * GIB,
        cpus: 4,
        kernel: NEW,
        ipvs: true,
        kube_proxy: None,
        path: Vec::new(),
        http_proxy_s: None,
        measured: None,
        now: InForce::default(),
        max: None,
    }
}

fn planned(demand: Demand) -> Plan {
    Plan::new(demand).expect("possible")
}

fn value(plan: &Plan, key: &str) -> u64 {
    plan.item(key).expect("the item").value
}

const MAX: &str = "net.netfilter.nf_conntrack_max";
const BUCKETS: &str = "net.netfilter.nf_conntrack_buckets";

#[test]
fn r8_131072_entries_hold_4369_udp_flows_a_second_at_30_s_and_437_at_300_s() {
    assert_eq!([30, 300].map(|stays| flows_per_s(131_072, stays)), [4369, 437]);
    let plan = planned(Demand { udp: 1, max: Some(131_072), ..demand() });
    let noted = plan.notes.iter().any(|note| note.contains("4369 UDP") && note.contains("437 UDP"));
    assert!(noted, "{:?}", plan.notes);
}

#[test]
fn r8_short_tcp_connections_cost_their_rate_times_life_and_time_wait() {
    assert_eq!(short_lived(1000, 2000, 120), 122_000);
    assert_eq!(short_lived(3, 500, 120), 362, "half an entry is one");
    let plan = planned(Demand { cps: 1000, life_ms: 2000, ..demand() });
    assert_eq!(value(&plan, MAX), 262_144, "twice 122000, in steps of 65536");
}

#[test]
fn a_table_that_udp_overfills_shows_after_how_many_seconds() {
    let article = InForce { udp_s: 300, max: Some(131_072), ..InForce::default() };
    let held = Demand { udp: 436, now: article.clone(), ..demand() };
    assert_eq!(full_after_s(&held, 131_072), None);
    let full = Demand { udp: 4369, now: article, max: Some(131_072), ..demand() };
    // 31 × 4369 is the first above 131072.
    assert_eq!(full_after_s(&full, 131_072), Some(31));
    let plan = planned(full);
    assert_eq!(plan.limits[0].what, "conntrack table");
    assert_eq!(plan.limits[0].when, "31 s after this load begins");
}

#[test]
fn section_5_a_million_entries_are_384_mb_and_the_table_8() {
    let table = |max| {
        let demand = Demand { max: Some(max), ..demand() };
        conntrack::size(&demand).expect("possible")
    };
    assert_eq!(table(1_000_000).full_bytes(NEW) / 1_000_000, 384 + 8);
    let quarter = table(262_144);
    assert_eq!(262_144 * entry_bytes(NEW) / 1_000_000, 100);
    assert_eq!(quarter.full_bytes(NEW), 262_144 * (384 + 8));
    assert_eq!(quarter.full_bytes(OLD), 262_144 * (470 + 8));
}

#[test]
fn section_5_the_kernels_default_by_memory_and_release() {
    let gib = |quarters: u64, kernel| kernel_default(quarters * GIB / 4, kernel);
    assert_eq!([gib(2, NEW), gib(2, OLD)], [(4096, 4096), (16_384, 4096)]);
    assert_eq!([gib(8, NEW), gib(8, OLD)], [(65_536, 65_536), (65_536, 16_384)]);
    assert_eq!([gib(64, NEW), gib(64, OLD)], [(262_144, 262_144), (262_144, 65_536)]);
    assert_eq!(kernel_default(1 << 20, NEW), (1024, 1024));
}

#[test]
fn buckets_are_as_many_as_entries_and_a_quarter_means_chains_of_8() {
    let plan = planned(Demand { connections: 100_000, ..demand() });
    let item = plan.item(BUCKETS).expect("the item");
    assert_eq!((item.value, value(&plan, MAX)), (262_144, 262_144));
    let results: Vec<_> = item.steps.iter().map(|step| step.result.as_str()).collect();
    assert_eq!(results[1..3], ["2.0", "8.0"]);
}

#[test]
fn max_is_never_below_what_is_set_now() {
    let now = InForce { max: Some(500_000), ..InForce::default() };
    let plan = planned(Demand { connections: 10, now, ..demand() });
    assert_eq!(value(&plan, MAX), 500_000);
    assert!(plan.item(MAX).expect("the item").fix.changes.is_empty(), "nothing to change");
}

#[test]
fn where_memory_is_short_the_table_is_smaller_but_the_peak_never_above_60_percent() {
    // 5 % of 2 GiB hold 273913 entries; twice the peak would be 327680.
    let plan = planned(Demand { connections: 155_000, ram_bytes: 2 * GIB, ..demand() });
    assert_eq!(value(&plan, MAX), 262_144);
    // Here 60 % do not fit either.
    let plan = planned(Demand { connections: 400_000, ram_bytes: 2 * GIB, ..demand() });
    let item = plan.item(MAX).expect("the item");
    assert!(400_000 * 10 <= item.value * 6, "{}", item.value);
    assert!(item.warnings.iter().any(|text| text.contains("% of the memory")), "{item:?}");
}

#[test]
fn what_no_kernel_or_memory_can_hold_is_refused() {
    let much = Plan::new(Demand { connections: 2_000_000_000, ram_bytes: 1 << 50, ..demand() });
    assert!(much.is_err_and(|why| why.0.contains("2147483647")));
    let large = Plan::new(Demand { connections: 50_000_000, ..demand() });
    assert!(large.is_err_and(|why| why.0.contains("16 GiB") || why.0.contains("16384 MiB")));
    let quiet = Plan::new(Demand { connections: 1, quiet_s: Some(1 << 40), ..demand() });
    assert!(quiet.is_err_and(|why| why.0.contains("2147483")));
    let udp = Plan::new(Demand { udp: u64::MAX, cps: u64::MAX, life_ms: u64::MAX, ..demand() });
    assert!(udp.is_err(), "no overflow");
}

#[test]
fn r1_900_s_of_ipvs_need_300_30_3_which_detects_a_dead_peer_after_390_s() {
    let plan = planned(Demand { connections: 1, ..demand() });
    let keys = ["time", "intvl", "probes"].map(|it| format!("net.ipv4.tcp_keepalive_{it}"));
    assert_eq!(keys.map(|key| value(&plan, &key)), [300, 30, 3]);
    assert_eq!(detection_s(300, 30, 3), 390);
    assert!(fits(300, 30, 3, 900));
    assert!(!fits(7200, 75, 1, 900) && !fits(900, 75, 0, 900), "equal timers lose the race");
}

#[test]
fn r1_a_limit_of_a_day_needs_300_s_as_well() {
    let now = InForce { established_s: 86_400, ..InForce::default() };
    let plan = planned(Demand { connections: 1, ipvs: false, now, ..demand() });
    assert_eq!(value(&plan, "net.ipv4.tcp_keepalive_time"), 300);
    assert_eq!(value(&plan, "pool.idle_eviction"), 69_120);
}

#[test]
fn a_given_max_is_not_recommended() {
    let plan = planned(Demand { udp: 9000, max: Some(131_072), ..demand() });
    let fix = &plan.item(MAX).expect("the item").fix;
    assert!(fix.changes.is_empty() && fix.wanted.is_none());
    assert!(plan.limits[0].is_over());
}

#[test]
fn r2_the_defaults_detect_a_dead_peer_after_7875_s_and_the_article_after_7575() {
    assert_eq!([detection_s(7200, 75, 9), detection_s(7200, 75, 5)], [7875, 7575]);
}

#[test]
fn a_load_balancer_of_350_s_is_the_shortest_limit_and_ipvs_need_not_be_raised_for_it() {
    let lb = PathLimit { name: "lb".into(), seconds: 350 };
    let plan = planned(Demand { connections: 1, quiet_s: Some(600), path: vec![lb], ..demand() });
    assert_eq!(value(&plan, "net.ipv4.tcp_keepalive_time"), 116);
    assert_eq!(value(&plan, "pool.idle_eviction"), 280);
    assert!(plan.item("ipvs.tcp").is_none());
}

#[test]
fn r5_an_idle_time_of_8_h_needs_33120_s_where_clients_cannot_send_keepalives() {
    let plan = planned(Demand { connections: 1, quiet_s: Some(28_800), ..demand() });
    assert_eq!(value(&plan, "ipvs.tcp"), 33_120);
}

#[test]
fn r6_a_server_limit_bounds_lifetime_and_idle_eviction_but_no_keepalive() {
    let server = PathLimit { name: "server".into(), seconds: 300 };
    let plan = planned(Demand { connections: 1, path: vec![server], ..demand() });
    assert_eq!(value(&plan, "pool.max_lifetime"), 270);
    assert_eq!(value(&plan, "pool.idle_eviction"), 240);
    assert_eq!(value(&plan, "net.ipv4.tcp_keepalive_time"), 300);
}

#[test]
fn kube_proxy_owns_what_it_writes_and_its_defaults_are_computed() {
    let with = |cpus| {
        let kube_proxy = Some(KubeProxy::default());
        planned(Demand { connections: 200_000, cpus, kube_proxy, ..demand() })
    };
    let enough = with(16).item(MAX).expect("the item").fix.advice();
    assert!(enough[0].starts_with("nothing to do: kube-proxy writes 524288"), "{enough:?}");
    let plan = with(4);
    let fix = &plan.item(MAX).expect("the item").fix;
    assert_eq!(fix.owner, FixOwner::KubeProxy);
    assert!(fix.commands().is_empty());
    assert!(fix.advice()[0].contains("conntrack.min: 458752"), "{:?}", fix.advice());
}

#[test]
fn ipvs_bits_hold_the_peak_within_what_the_kernel_takes() {
    let bits = |connections, kernel| {
        let demand = Demand { connections, kernel, ram_bytes: 64 * GIB, ..demand() };
        value(&planned(demand), "ip_vs.conn_tab_bits")
    };
    assert_eq!(bits(10, NEW), 12, "the default is not lowered");
    assert_eq!(bits(100_000, NEW), 17);
    assert_eq!(bits(3_000_000, NEW), 20, "the maximum of 6.1");
    assert_eq!(bits(3_000_000, Kernel { major: 6, minor: 12 }), 22);
}

#[test]
fn only_7_2_has_a_limit_of_ipvs_connections() {
    let has = |kernel| {
        let plan = planned(Demand { connections: 10, kernel, ..demand() });
        plan.item("net.ipv4.vs.conn_max").is_some()
    };
    assert!(!has(Kernel { major: 6, minor: 18 }) && has(Kernel { major: 7, minor: 2 }));
}

#[test]
fn the_nearest_limit_comes_first() {
    let plan = planned(Demand { cps: 800, ..demand() });
    let (hard, last) = plan.limits.split_at(plan.limits.len() - 1);
    // 800 × 61 s of sockets in 28232 ports, if one client makes them all.
    assert!(last[0].only_if.is_some() && last[0].is_over());
    assert_eq!(hard[0].what, "conntrack table");
    assert!(hard.windows(2).all(|two| {
        u128::from(two[0].load) * u128::from(two[1].capacity)
            >= u128::from(two[1].load) * u128::from(two[0].capacity)
    }));
}

#[test]
fn a_release_is_its_first_two_numbers() {
    assert_eq!(Kernel::parse("6.1.0-32-cloud-amd64"), Some(NEW));
    assert_eq!(Kernel::parse("7.2+deb14"), Some(Kernel { major: 7, minor: 2 }));
    assert_eq!(["", "6", "x.y"].map(Kernel::parse), [None; 3]);
    assert!(Kernel { major: 6, minor: 18 }.at_least(6, 2) && !OLD.at_least(6, 1));
}

/// `http.client_idle`, `http.server_keep_alive`
fn proxied(proxy: u64, server: Option<u64>) -> [Item; 2] {
    let path = server.map(|seconds| PathLimit { name: "server".into(), seconds });
    let demand = Demand {
        connections: 1,
        path: path.into_iter().collect(),
        http_proxy_s: Some(proxy),
        ..demand()
    };
    let plan = planned(demand);
    ["http.client_idle", "http.server_keep_alive"].map(|key| plan.item(key).expect(key).clone())
}

#[test]
fn r7_with_a_proxy_of_60_s_clients_must_close_before_and_the_server_after_the_proxy() {
    let [client, server] = proxied(60, None);
    assert_eq!((client.value, server.value), (45, 75));
    assert!(client.warnings.is_empty() && server.warnings.is_empty());
}

#[test]
fn r7_a_server_that_closes_first_is_reported_and_one_that_waits_long_enough_is_kept() {
    let warns = |server, text: &str| {
        let [_, item] = proxied(60, Some(server));
        let warned = item.warnings.iter().any(|it| it.contains(text));
        assert!(warned && item.value == 75, "{server}: {item:?}");
    };
    warns(5, "closes after 5 s, but the proxy reuses connections for 60 s");
    warns(60, "closes after 60 s");
    warns(65, "the margin is 5 s");
    let [_, enough] = proxied(60, Some(70));
    assert!(enough.warnings.is_empty(), "R7 asks for 10 s: {enough:?}");
    let [_, more] = proxied(60, Some(120));
    assert_eq!((more.value, more.fix.changes.len()), (120, 0), "it is not lowered");
}

#[test]
fn r7_a_proxy_that_leaves_no_room_or_outlives_the_path_is_reported() {
    let [client, _] = proxied(10, None);
    assert_eq!(client.value, 5);
    assert!(client.warnings[0].contains("30 s or longer"), "{client:?}");
    let [client, _] = proxied(900, None);
    assert!(client.warnings[0].contains("IPVS tcp (900 s)"), "{client:?}");
    for short in [1, 2, 20, 30, 31, 899] {
        let [client, server] = proxied(short, None);
        assert!(client.value <= short && short < server.value, "{short}");
    }
}

#[test]
fn r7_a_server_behind_a_proxy_does_not_limit_pools() {
    let server = PathLimit { name: "server".into(), seconds: 75 };
    let with = |http_proxy_s| {
        planned(Demand { connections: 1, path: vec![server.clone()], http_proxy_s, ..demand() })
    };
    assert!(with(Some(60)).item("pool.max_lifetime").is_none());
    assert_eq!(value(&with(Some(60)), "pool.idle_eviction"), 720);
    assert_eq!(value(&with(None), "pool.idle_eviction"), 60);
    assert!(with(None).item("http.client_idle").is_none());
}
