//! The list. Sources: `net/ipv4/sysctl_net_ipv4.c` and `tcp_ipv4.c` (`tcp_sk_init`),
//! `net/netfilter/nf_conntrack_standalone.c` and `nf_conntrack_proto_tcp.c`,
//! `net/netfilter/ipvs/ip_vs_ctl.c` and `ip_vs_proto_*.c`, of 5.10 to 7.2; kube-proxy's fields from
//! `pkg/proxy/apis/config/types.go`, what pods may set from `pkg/kubelet/sysctl/safe_sysctls.go`.

use super::{InPods, IpvsTimer, Scope, Setting, Stored, Unit};

/// Timeouts are kept in jiffies in an `int` and `HZ` is at most 1000: `INT_MAX / HZ`, seconds.
const MOST_SECONDS: u64 = 2_147_483;
const INT_MAX: u64 = 2_147_483_647;

const fn seconds(key: &'static str, default: u64) -> Setting {
    Setting {
        key,
        stored: Stored::Sysctl,
        scope: Scope::Netns,
        unit: Unit::Seconds,
        range: (1, MOST_SECONDS),
        default: Some(default),
        kube_proxy: None,
        in_pods: InPods::Unsafe,
        writable: true,
    }
}

const fn count(key: &'static str, range: (u64, u64), default: u64) -> Setting {
    Setting { unit: Unit::Count, range, ..seconds(key, default) }
}

const fn switch(key: &'static str, default: u64) -> Setting {
    Setting { unit: Unit::Switch, range: (0, 1), ..seconds(key, default) }
}

const fn ipvs(key: &'static str, timer: IpvsTimer, default: u64, field: &'static str) -> Setting {
    Setting {
        stored: Stored::IpvsTimeout(timer),
        in_pods: InPods::No,
        kube_proxy: Some(field),
        ..seconds(key, default)
    }
}

impl Setting {
    const fn kube_proxy(self, field: &'static str) -> Self {
        Self { kube_proxy: Some(field), ..self }
    }

    const fn safe_in_pods(self) -> Self {
        Self { in_pods: InPods::Safe, ..self }
    }

    /// One value for the machine; the default depends on the memory.
    const fn of_machine(self) -> Self {
        Self { scope: Scope::Machine, default: None, in_pods: InPods::No, ..self }
    }

    const fn read_only(self) -> Self {
        Self { writable: false, default: None, ..self }
    }
}

/// Every setting, grouped by subsystem.
pub const ALL: &[Setting] = &[
    // Sockets.
    seconds("net.ipv4.tcp_keepalive_time", 7200).safe_in_pods(),
    seconds("net.ipv4.tcp_keepalive_intvl", 75).safe_in_pods(),
    count("net.ipv4.tcp_keepalive_probes", (1, 127), 9).safe_in_pods(),
    count("net.ipv4.tcp_retries2", (0, 255), 15),
    count("net.ipv4.tcp_syn_retries", (1, 127), 6),
    count("net.ipv4.tcp_synack_retries", (0, 255), 5),
    count("net.ipv4.tcp_orphan_retries", (0, 255), 0),
    seconds("net.ipv4.tcp_fin_timeout", 60).safe_in_pods(),
    switch("net.ipv4.tcp_abort_on_overflow", 0),
    count("net.ipv4.tcp_syncookies", (0, 2), 1).safe_in_pods(),
    count("net.ipv4.tcp_max_syn_backlog", (1, INT_MAX), 128),
    count("net.core.somaxconn", (1, INT_MAX), 4096),
    count("net.ipv4.tcp_max_orphans", (1, INT_MAX), 0).of_machine(),
    // Connection tracking. 7.2 rejects nf_conntrack_max = 0, which meant "no limit" before.
    count("net.netfilter.nf_conntrack_max", (1, INT_MAX), 1)
        .of_machine()
        .kube_proxy("conntrack.maxPerCore, conntrack.min"),
    count("net.netfilter.nf_conntrack_buckets", (1024, INT_MAX), 1024).of_machine(),
    Setting {
        stored: Stored::Parameter { module: "nf_conntrack", name: "hashsize" },
        ..count("nf_conntrack.hashsize", (1024, INT_MAX), 1024).of_machine()
    },
    count("net.netfilter.nf_conntrack_count", (0, INT_MAX), 0).read_only(),
    seconds("net.netfilter.nf_conntrack_tcp_timeout_syn_sent", 120),
    seconds("net.netfilter.nf_conntrack_tcp_timeout_syn_recv", 60),
    seconds("net.netfilter.nf_conntrack_tcp_timeout_established", 432_000)
        .kube_proxy("conntrack.tcpEstablishedTimeout"),
    seconds("net.netfilter.nf_conntrack_tcp_timeout_fin_wait", 120),
    seconds("net.netfilter.nf_conntrack_tcp_timeout_close_wait", 60)
        .kube_proxy("conntrack.tcpCloseWaitTimeout"),
    seconds("net.netfilter.nf_conntrack_tcp_timeout_last_ack", 30),
    seconds("net.netfilter.nf_conntrack_tcp_timeout_time_wait", 120),
    seconds("net.netfilter.nf_conntrack_tcp_timeout_close", 10),
    seconds("net.netfilter.nf_conntrack_tcp_timeout_max_retrans", 300),
    seconds("net.netfilter.nf_conntrack_tcp_timeout_unacknowledged", 300),
    seconds("net.netfilter.nf_conntrack_udp_timeout", 30).kube_proxy("conntrack.udpTimeout"),
    seconds("net.netfilter.nf_conntrack_udp_timeout_stream", 120)
        .kube_proxy("conntrack.udpStreamTimeout"),
    switch("net.netfilter.nf_conntrack_tcp_be_liberal", 0).kube_proxy("conntrack.tcpBeLiberal"),
    switch("net.netfilter.nf_conntrack_tcp_loose", 1),
    switch("net.netfilter.nf_conntrack_tcp_ignore_invalid_rst", 0),
    count("net.netfilter.nf_conntrack_tcp_max_retrans", (0, 255), 3),
    // IPVS.
    ipvs("ipvs.tcp", IpvsTimer::Tcp, 900, "ipvs.tcpTimeout"),
    ipvs("ipvs.tcpfin", IpvsTimer::TcpFin, 120, "ipvs.tcpFinTimeout"),
    ipvs("ipvs.udp", IpvsTimer::Udp, 300, "ipvs.udpTimeout"),
    Setting {
        stored: Stored::Parameter { module: "ip_vs", name: "conn_tab_bits" },
        ..count("ip_vs.conn_tab_bits", (8, 27), 12).of_machine()
    }
    .read_only(),
    switch("net.ipv4.vs.conntrack", 0),
    switch("net.ipv4.vs.expire_nodest_conn", 0),
    switch("net.ipv4.vs.expire_quiescent_template", 0),
    count("net.ipv4.vs.conn_reuse_mode", (0, 3), 1),
    switch("net.ipv4.vs.sloppy_tcp", 0),
    count("net.ipv4.vs.drop_entry", (0, 3), 0),
    count("net.ipv4.vs.drop_packet", (0, 3), 0),
    count("net.ipv4.vs.secure_tcp", (0, 3), 0),
    // From 7.2 on.
    count("net.ipv4.vs.conn_max", (1, INT_MAX), 1).read_only(),
];
