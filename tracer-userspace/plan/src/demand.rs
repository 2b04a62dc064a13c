//! What is asked for, and on which machine.

use rsttrace_model::{configured::KubeProxy, settings::Setting};

use super::Survey;

/// The load, the machine it comes to, and the limits on its path.
#[derive(Clone, Debug, PartialEq)]
pub struct Demand {
    /// Connections that stay open, at the peak.
    pub connections: u64,
    /// New TCP connections per second, besides those.
    pub cps: u64,
    /// How long one of these is used, milliseconds.
    pub life_ms: u64,
    /// New UDP flows per second: a DNS query is one.
    pub udp: u64,
    /// The longest silence on a connection that must survive it, seconds.
    pub quiet_s: Option<u64>,
    pub ram_bytes: u64,
    pub cpus: u64,
    pub kernel: Kernel,
    /// IPVS is on the path.
    pub ipvs: bool,
    /// kube-proxy runs there, and owns what it sets.
    pub kube_proxy: Option<KubeProxy>,
    /// Other limits on the path.
    pub path: Vec<PathLimit>,
    /// After how long an HTTP proxy in front gives up an idle connection, at either side, seconds.
    pub http_proxy_s: Option<u64>,
    /// Where the load was measured: how, and what came out.
    pub measured: Option<Survey>,
    /// What is configured now.
    pub now: InForce,
    /// Judge this `nf_conntrack_max` instead of computing one.
    pub max: Option<u64>,
}

impl Demand {
    /// The shortest limit after which a server closes openly, seconds.
    pub fn server_s(&self) -> Option<u64> {
        self.path.iter().filter(|limit| limit.is_server()).map(|limit| limit.seconds).min()
    }
}

/// A limit that somebody else enforces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathLimit {
    /// `lb`, `nat`, `server`, ... Text from the command line.
    pub name: String,
    pub seconds: u64,
}

impl PathLimit {
    /// A server closes an idle connection openly, whatever keepalives say; everybody else forgets it
    /// silently unless packets pass.
    pub fn is_server(&self) -> bool {
        self.name == "server"
    }
}

/// Settings in force; where they were not read, the kernel's own.
#[derive(Clone, Debug, PartialEq)]
pub struct InForce {
    /// `nf_conntrack_max`; `None` where it was not read.
    pub max: Option<u64>,
    pub buckets: Option<u64>,
    /// Most entries seen in one namespace; the limit holds for each by itself.
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
    /// TCP entries of the IPVS table when it was read, as far as it was.
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

/// `IP_VS_TCP_S_TIME_WAIT` (net/netfilter/ipvs/ip_vs_proto_tcp.c), seconds; nothing changes it.
pub const IPVS_TIME_WAIT_S: u64 = 120;

/// `TCP_TIMEWAIT_LEN` (include/net/tcp.h), seconds; nothing changes it.
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

/// A kernel's release, as far as sizes depend on it.
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
