//! The settings as configured by the machine's files and by kube-proxy.

use std::collections::BTreeMap;

/// A place in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The path on the machine: `/etc/sysctl.d/99-custom.conf`.
    pub file: String,
    pub number: usize,
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.file, self.number)
    }
}

/// A setting's value in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// The key, with dots.
    pub key: String,
    pub value: String,
    pub at: Line,
    /// `/etc/sysctl.conf` without a link in sysctl.d: only `sysctl --system` reads it, not the boot.
    pub by_hand_only: bool,
}

impl Assignment {
    pub fn number(&self) -> Option<u64> {
        self.value.parse().ok()
    }
}

/// Everything that configures settings.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Configured {
    /// In the order in which they are applied.
    pub sysctls: Vec<Assignment>,
    /// `options MODULE NAME=VALUE` of modprobe.d; the key is `MODULE.NAME`.
    pub options: Vec<Assignment>,
    /// Modules that are loaded at boot: modules-load.d, and those built into the kernel.
    pub modules: Vec<String>,
    pub kube_proxy: Option<KubeProxy>,
    /// Lines that set the IPVS timeouts at boot, of a systemd unit or of keepalived.
    pub ipvs_timeouts: Vec<Line>,
    /// Files that could not be read or parsed: a sentence for each.
    pub unread: Vec<String>,
}

impl Configured {
    /// The assignment that is in force after a boot.
    pub fn sysctl(&self, key: &str) -> Option<&Assignment> {
        self.sysctls.iter().rev().find(|it| it.key == key)
    }

    /// The module option that is in force.
    pub fn option(&self, key: &str) -> Option<&Assignment> {
        self.options.iter().rev().find(|it| it.key == key)
    }

    pub fn loads(&self, module: &str) -> bool {
        self.modules.iter().any(|it| it == module)
    }
}

/// What kube-proxy writes if the field is not set.
const DEFAULT_MAX_PER_CORE: u64 = 32_768;

const DEFAULT_MIN: u64 = 131_072;

const DEFAULT_ESTABLISHED_S: u64 = 86_400;

const DEFAULT_CLOSE_WAIT_S: u64 = 3600;

/// kube-proxy on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KubeProxy {
    /// `None` where only its file is there.
    pub pid: Option<u32>,
    /// Path of its configuration, on the node or in its container.
    pub file: Option<String>,
    /// `ipvs`, `iptables`, `nftables`.
    pub mode: Option<String>,
    /// The fields that are set in its configuration, as `ipvs.tcpTimeout`; times in seconds.
    pub fields: BTreeMap<&'static str, u64>,
}

impl KubeProxy {
    /// What it writes into a setting when it starts; `None` if it does not write the setting.
    pub fn writes(&self, setting: &str, cpus: u32) -> Option<u64> {
        let field = |name: &str| self.fields.get(name).copied();
        // kube-proxy does not write a value of zero.
        let or =
            |name: &str, default: u64| Some(field(name).unwrap_or(default)).filter(|it| *it != 0);
        match setting {
            "ipvs.tcp" => or("ipvs.tcpTimeout", 0),
            "ipvs.tcpfin" => or("ipvs.tcpFinTimeout", 0),
            "ipvs.udp" => or("ipvs.udpTimeout", 0),
            "net.netfilter.nf_conntrack_tcp_timeout_established" => {
                or("conntrack.tcpEstablishedTimeout", DEFAULT_ESTABLISHED_S)
            }
            "net.netfilter.nf_conntrack_tcp_timeout_close_wait" => {
                or("conntrack.tcpCloseWaitTimeout", DEFAULT_CLOSE_WAIT_S)
            }
            "net.netfilter.nf_conntrack_udp_timeout" => or("conntrack.udpTimeout", 0),
            "net.netfilter.nf_conntrack_udp_timeout_stream" => or("conntrack.udpStreamTimeout", 0),
            "net.netfilter.nf_conntrack_max" => {
                let per_core = or("conntrack.maxPerCore", DEFAULT_MAX_PER_CORE)?;
                let min = field("conntrack.min").unwrap_or(DEFAULT_MIN);
                Some(per_core.saturating_mul(cpus.into()).max(min))
            }
            _ => None,
        }
    }

    /// "kube-proxy (pid 12, /var/lib/kube-proxy/config.conf)"
    pub fn describe(&self) -> String {
        let pid = self.pid.map(|pid| format!("pid {pid}"));
        let parts: Vec<String> = pid.into_iter().chain(self.file.clone()).collect();
        match parts.is_empty() {
            true => "kube-proxy".into(),
            false => format!("kube-proxy ({})", parts.join(", ")),
        }
    }
}
