//! The settings as configured by the machine's files and by kube-proxy.

pub use super::kube_proxy::KubeProxy;

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
