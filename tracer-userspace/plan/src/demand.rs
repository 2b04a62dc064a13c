//! The load, and the machine that has to carry it.

use rsttrace_model::{configured::KubeProxy, settings::Setting};

use super::Survey;

/// The load, the machine, and the idle limits on the path.
#[derive(Clone, Debug, PartialEq)]
pub struct Demand {
    /// Connections that stay open, at the peak.
    pub connections: u64,
    /// New TCP connections per second, besides those.
    pub cps: u64,
    /// How long one of these new TCP connections is used, milliseconds.
    pub life_ms: u64,
    /// New UDP flows per second: a DNS query is one.
    pub udp: u64,
    /// The longest idle time that a connection must survive, seconds.
    pub quiet_s: Option<u64>,
    pub ram_bytes: u64,
    pub cpus: u64,
    pub kernel: Kernel,
    /// IPVS is on the path.
    pub ipvs: bool,
    /// kube-proxy, if it runs on the machine: it owns the values that it sets.
    pub kube_proxy: Option<KubeProxy>,
    /// Other idle limits on the path.
    pub path: Vec<PathLimit>,
    /// The idle timeout of an HTTP proxy in front, on both its sides, seconds.
    pub http_proxy_s: Option<u64>,
    /// How the load was measured, and the results; `None` if it was only given by options.
    pub measured: Option<Survey>,
    /// What is configured now.
    pub now: InForce,
    /// Evaluate this `nf_conntrack_max` instead of computing one.
    pub max: Option<u64>,
}

impl Demand {
    /// The shortest idle timeout after which a server closes connections, seconds.
    pub fn server_s(&self) -> Option<u64> {
        self.path.iter().filter(|limit| limit.is_server()).map(|limit| limit.seconds).min()
    }
}

/// An idle limit that another system enforces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathLimit {
    /// `lb`, `nat`, `server`, ... Text from the command line.
    pub name: String,
    pub seconds: u64,
}

impl PathLimit {
    /// A server closes an idle connection even if keepalives are sent. Any other system drops its state
    /// without a FIN or RST unless packets pass.
    pub fn is_server(&self) -> bool {
        self.name == "server"
    }
}

/// Settings in force; the kernel's defaults where they were not read.
#[derive(Clone, Debug, PartialEq)]
pub struct InForce {
    /// `nf_conntrack_max`; `None` where it was not read.
    pub max: Option<u64>,
    pub buckets: Option<u64>,
    /// Most entries seen in one namespace; the limit applies to each namespace separately.
    pub peak: Option<u64>,
    /// Entries of all namespaces together.
    pub entries: Option<u64>,
    /// `nf_conntrack_tcp_timeout_established`, seconds.
    pub established_s: u64,
    /// `nf_conntrack_tcp_timeout_time_wait`, seconds.
    pub time_wait_s: u64,
    /// `nf_conntrack_udp_timeout`, seconds.
    pub udp_s: u64,
    /// `ipvsadm -L --timeout`, seconds.
    pub ipvs_tcp_s: u64,
    pub ipvs_udp_s: u64,
    /// TCP entries of the IPVS table, as far as the table was read.
    pub ipvs_peak: Option<u64>,
    /// Bits of the IPVS table.
    pub ipvs_bits: Option<u64>,
    pub ipvs_max: Option<u64>,
    pub keepalive_time_s: u64,
    pub keepalive_intvl_s: u64,
    pub keepalive_probes: u64,
    pub somaxconn: u64,
    /// Ports of `ip_local_port_range`.
    pub local_ports: u64,
}

/// `IP_VS_TCP_S_TIME_WAIT` (net/netfilter/ipvs/ip_vs_proto_tcp.c), seconds; not configurable.
pub const IPVS_TIME_WAIT_S: u64 = 120;

/// `TCP_TIMEWAIT_LEN` (include/net/tcp.h), seconds; not configurable.
pub const SOCKET_TIME_WAIT_S: u64 = 60;

impl Default for InForce {
    fn default() -> Self {
        let default = |key| Setting::find(key).and_then(|setting| setting.default).unwrap_or(0);
        Self {
            max: None,
            buckets: None,
            peak: None,
            entries: None,
            established_s: default("net.netfilter.nf_conntrack_tcp_timeout_established"),
            time_wait_s: default("net.netfilter.nf_conntrack_tcp_timeout_time_wait"),
            udp_s: default("net.netfilter.nf_conntrack_udp_timeout"),
            ipvs_tcp_s: default("ipvs.tcp"),
            ipvs_udp_s: default("ipvs.udp"),
            ipvs_peak: None,
            ipvs_bits: None,
            ipvs_max: None,
            keepalive_time_s: default("net.ipv4.tcp_keepalive_time"),
            keepalive_intvl_s: default("net.ipv4.tcp_keepalive_intvl"),
            keepalive_probes: default("net.ipv4.tcp_keepalive_probes"),
            somaxconn: default("net.core.somaxconn"),
            // 32768 to 60999 (net/ipv4/af_inet.c).
            local_ports: 28_232,
        }
    }
}

/// A kernel release, as far as sizes depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kernel {
    pub major: u32,
    pub minor: u32,
}

impl Kernel {
    /// Reads `6.1` of `6.1.0-32-cloud-amd64`.
    pub fn parse(release: &str) -> Option<Self> {
        let mut numbers = release.split(|c: char| !c.is_ascii_digit());
        let major = numbers.next()?.parse().ok()?;
        Some(Self { major, minor: numbers.next()?.parse().ok()? })
    }

    pub fn at_least(self, major: u32, minor: u32) -> bool {
        self >= Self { major, minor }
    }
}
