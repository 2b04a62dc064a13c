//! What kube-proxy writes, as data. Sources: kubernetes/kubernetes 1.34 to 1.37; the flags in
//! `cmd/kube-proxy/app/options.go`, the defaults in `pkg/proxy/apis/config/v1alpha1/defaults.go`.
//!
//! The version of a running kube-proxy is not known without running it, so [`Write::by_version`] says where
//! versions differ, and every text about a value says so too.

use super::Mode;

/// Entries for each CPU, and in all, if the fields are not set (`SetDefaults_KubeProxyConfiguration`).
pub(super) const DEFAULT_MAX_PER_CORE: u64 = 32_768;
pub(super) const DEFAULT_MIN: u64 = 131_072;

/// A field of KubeProxyConfiguration v1alpha1, and the flag that sets it where no `--config` is given.
#[derive(Debug)]
pub struct Field {
    pub path: &'static str,
    pub flag: &'static str,
    pub kind: FieldKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldKind {
    Count,
    Switch,
    Duration,
}

const fn count(path: &'static str, flag: &'static str) -> Field {
    Field { path, flag, kind: FieldKind::Count }
}

const fn switch(path: &'static str, flag: &'static str) -> Field {
    Field { path, flag, kind: FieldKind::Switch }
}

const fn duration(path: &'static str, flag: &'static str) -> Field {
    Field { path, flag, kind: FieldKind::Duration }
}

/// The fields that decide what kube-proxy writes into settings.
pub const FIELDS: &[Field] = &[
    duration("ipvs.tcpTimeout", "ipvs-tcp-timeout"),
    duration("ipvs.tcpFinTimeout", "ipvs-tcpfin-timeout"),
    duration("ipvs.udpTimeout", "ipvs-udp-timeout"),
    switch("ipvs.strictARP", "ipvs-strict-arp"),
    switch("iptables.localhostNodePorts", "iptables-localhost-nodeports"),
    count("conntrack.maxPerCore", "conntrack-max-per-core"),
    count("conntrack.min", "conntrack-min"),
    duration("conntrack.tcpEstablishedTimeout", "conntrack-tcp-timeout-established"),
    duration("conntrack.tcpCloseWaitTimeout", "conntrack-tcp-timeout-close-wait"),
    switch("conntrack.tcpBeLiberal", "conntrack-tcp-be-liberal"),
    duration("conntrack.udpTimeout", "conntrack-udp-timeout"),
    duration("conntrack.udpStreamTimeout", "conntrack-udp-timeout-stream"),
];

/// When and what kube-proxy writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writes {
    /// This value at each start; no field changes it.
    Always(u64),
    /// This value while the field is on; nothing while it is off.
    If { field: &'static str, by_default: bool, value: u64 },
    /// The field's whole seconds; nothing if the field is 0. A default of 0 means that only a set field
    /// writes.
    Seconds { field: &'static str, default_s: u64 },
    /// The same, written by netlink, where 0 seconds keep the kernel's value.
    IpvsSeconds { field: &'static str },
    /// The larger of `conntrack.min` and `conntrack.maxPerCore` times the CPUs; nothing if the latter is 0.
    ConntrackMax,
}

/// One setting that kube-proxy writes.
#[derive(Debug)]
pub struct Write {
    /// A key of `settings::ALL`, or another sysctl.
    pub key: &'static str,
    pub modes: &'static [Mode],
    pub writes: Writes,
    /// Where the versions of kube-proxy differ, as a clause.
    pub by_version: Option<&'static str>,
    /// The function that writes it.
    pub source: &'static str,
}

impl Write {
    /// The row of a setting.
    pub fn of(key: &str) -> Option<&'static Self> {
        WRITES.iter().find(|row| row.key == key)
    }

    /// The fields that decide about it.
    pub fn fields(&self) -> &[&'static str] {
        match &self.writes {
            Writes::Always(_) => &[],
            Writes::ConntrackMax => &["conntrack.maxPerCore", "conntrack.min"],
            Writes::If { field, .. }
            | Writes::Seconds { field, .. }
            | Writes::IpvsSeconds { field } => std::slice::from_ref(field),
        }
    }

    /// The field by which a value is set for good; `None` if no field changes it.
    pub fn field(&self) -> Option<&'static str> {
        match self.writes {
            Writes::ConntrackMax => Some("conntrack.min"),
            _ => self.fields().first().copied(),
        }
    }
}

const ALL_MODES: &[Mode] = &Mode::ALL;
const IPVS: &[Mode] = &[Mode::Ipvs];
const IPTABLES: &[Mode] = &[Mode::Iptables];

const SETUP: &str = "setupConntrack, cmd/kube-proxy/app/server_linux.go";
const IPVS_PROXIER: &str = "NewProxier, pkg/proxy/ipvs/proxier.go";
const IPTABLES_PROXIER: &str = "NewProxier, pkg/proxy/iptables/proxier.go";

const fn conntrack(key: &'static str, writes: Writes) -> Write {
    Write { key, modes: ALL_MODES, writes, by_version: None, source: SETUP }
}

const fn timeout(key: &'static str, field: &'static str, default_s: u64) -> Write {
    conntrack(key, Writes::Seconds { field, default_s })
}

const fn ipvs(key: &'static str, writes: Writes) -> Write {
    Write { key, modes: IPVS, writes, by_version: None, source: IPVS_PROXIER }
}

/// Every setting that kube-proxy writes, in any mode. `net.ipv4.vs.conn_reuse_mode` is missing because
/// kube-proxy leaves it alone on kernels from 5.9 on, and `nf_conntrack.hashsize` because it is only raised.
pub const WRITES: &[Write] = &[
    Write {
        by_version: Some("versions from 1.37 on raise it but never lower it"),
        ..conntrack("net.netfilter.nf_conntrack_max", Writes::ConntrackMax)
    },
    timeout(
        "net.netfilter.nf_conntrack_tcp_timeout_established",
        "conntrack.tcpEstablishedTimeout",
        86_400,
    ),
    timeout(
        "net.netfilter.nf_conntrack_tcp_timeout_close_wait",
        "conntrack.tcpCloseWaitTimeout",
        3600,
    ),
    timeout("net.netfilter.nf_conntrack_udp_timeout", "conntrack.udpTimeout", 0),
    timeout("net.netfilter.nf_conntrack_udp_timeout_stream", "conntrack.udpStreamTimeout", 0),
    conntrack(
        "net.netfilter.nf_conntrack_tcp_be_liberal",
        Writes::If { field: "conntrack.tcpBeLiberal", by_default: false, value: 1 },
    ),
    ipvs("ipvs.tcp", Writes::IpvsSeconds { field: "ipvs.tcpTimeout" }),
    ipvs("ipvs.tcpfin", Writes::IpvsSeconds { field: "ipvs.tcpFinTimeout" }),
    ipvs("ipvs.udp", Writes::IpvsSeconds { field: "ipvs.udpTimeout" }),
    ipvs("net.ipv4.vs.conntrack", Writes::Always(1)),
    ipvs("net.ipv4.vs.expire_nodest_conn", Writes::Always(1)),
    ipvs("net.ipv4.vs.expire_quiescent_template", Writes::Always(1)),
    ipvs("net.ipv4.ip_forward", Writes::Always(1)),
    ipvs(
        "net.ipv4.conf.all.arp_ignore",
        Writes::If { field: "ipvs.strictARP", by_default: false, value: 1 },
    ),
    ipvs(
        "net.ipv4.conf.all.arp_announce",
        Writes::If { field: "ipvs.strictARP", by_default: false, value: 2 },
    ),
    Write {
        key: "net.ipv4.conf.all.route_localnet",
        modes: IPTABLES,
        writes: Writes::If { field: "iptables.localhostNodePorts", by_default: true, value: 1 },
        by_version: None,
        source: IPTABLES_PROXIER,
    },
];
