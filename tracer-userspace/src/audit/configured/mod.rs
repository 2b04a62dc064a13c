//! What the machine's files and kube-proxy say that the settings should be.

mod drop_ins;
mod kube_proxy;
mod modules;
mod sysctl_d;

use std::path::Path;

pub use kube_proxy::KubeProxy;

/// A place in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// As it is called on the machine: `/etc/sysctl.d/99-custom.conf`.
    pub file: String,
    pub number: usize,
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.file, self.number)
    }
}

/// A value that a file gives a setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// With dots.
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
    /// Where something sets the IPVS timeouts at boot: a systemd unit or keepalived.
    pub ipvs_timeouts: Vec<Line>,
    /// Files that could not be read or understood: a sentence for each.
    pub unread: Vec<String>,
}

impl Configured {
    /// The assignment that is in force after a boot.
    pub fn sysctl(&self, key: &str) -> Option<&Assignment> {
        self.sysctls.iter().rev().find(|it| it.key == key)
    }

    /// The module's option that is in force.
    pub fn option(&self, key: &str) -> Option<&Assignment> {
        self.options.iter().rev().find(|it| it.key == key)
    }

    pub fn loads(&self, module: &str) -> bool {
        self.modules.iter().any(|it| it == module)
    }
}

/// Reads the machine's files; `root` is `/` as pid 1 sees it. `release` is that of the kernel.
#[must_use]
pub fn read(root: &Path, release: &str) -> Configured {
    let mut configured = Configured::default();
    sysctl_d::read(root, &mut configured);
    modules::read(root, release, &mut configured);
    kube_proxy::read(root, &mut configured);
    configured
}
