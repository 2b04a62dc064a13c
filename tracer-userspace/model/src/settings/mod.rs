//! Every kernel setting that rsttrace reads for a check or changes for a fix: the allow-list.
//!
//! `check`, `fix` and `plan` know no other keys, so no content of a file or an incident can make one of them
//! change anything else. Values are kept as the kernel prints them, so that an undo writes back exactly what
//! was found.

mod table;
mod values;

pub use table::ALL;
pub use values::{Unread, Values};

/// One setting.
#[derive(Debug)]
pub struct Setting {
    /// The name of the sysctl, or `ipvs.tcp` and the like for what only `ipvsadm --set` changes.
    pub key: &'static str,
    pub stored: Stored,
    pub scope: Scope,
    pub unit: Unit,
    /// The values that every supported kernel accepts; both ends included.
    pub range: (u64, u64),
    /// The kernel's compiled-in value; `None` if it depends on memory, or if the setting is read-only.
    pub default: Option<u64>,
    /// The field of KubeProxyConfiguration whose value kube-proxy writes when it starts.
    pub kube_proxy: Option<&'static str>,
    /// Whether the kubelet lets a pod set it (`safe_sysctls.go`, or by `--allowed-unsafe-sysctls`).
    pub in_pods: InPods,
    pub writable: bool,
}

/// Where the kernel keeps the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// `/proc/sys`, at the key with its dots as slashes.
    Sysctl,
    /// The IPVS timeouts: generic netlink, `IPVS_CMD_SET_CONFIG`. No sysctl holds them.
    IpvsTimeout(IpvsTimer),
    /// `/sys/module/MODULE/parameters/NAME`.
    Parameter { module: &'static str, name: &'static str },
}

/// In the order of `ipvsadm --set`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum IpvsTimer {
    Tcp,
    TcpFin,
    Udp,
}

/// The scope of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// One for the whole machine, writable in the initial network namespace only.
    Machine,
    /// Each network namespace has its own; a new one starts with the compiled-in value.
    Netns,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Seconds,
    Count,
    /// 0 or 1.
    Switch,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InPods {
    /// `securityContext.sysctls` accepts it.
    Safe,
    /// Only with the kubelet's `--allowed-unsafe-sysctls`.
    Unsafe,
    /// A pod cannot set it.
    No,
}

impl Setting {
    /// The setting with this key.
    pub fn find(key: &str) -> Option<&'static Self> {
        ALL.iter().find(|setting| setting.key == key)
    }

    /// The setting that is this IPVS timeout.
    pub fn of_timer(timer: IpvsTimer) -> Option<&'static Self> {
        ALL.iter().find(|setting| setting.stored == Stored::IpvsTimeout(timer))
    }

    /// The path of the value, relative to `/`; `None` if only netlink can read it.
    pub fn path(&self) -> Option<String> {
        match self.stored {
            Stored::Sysctl => Some(format!("proc/sys/{}", self.key.replace('.', "/"))),
            Stored::Parameter { module, name } => {
                Some(format!("sys/module/{module}/parameters/{name}"))
            }
            Stored::IpvsTimeout(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_unique_and_plain() {
        for (at, setting) in ALL.iter().enumerate() {
            assert!(crate::escape::is_plain(setting.key), "{}", setting.key);
            assert!(ALL[..at].iter().all(|other| other.key != setting.key), "{}", setting.key);
        }
    }

    #[test]
    fn defaults_are_within_their_range() {
        for Setting { key, range, default, .. } in ALL {
            assert!(range.0 <= range.1, "{key}");
            assert!(default.is_none_or(|value| range.0 <= value && value <= range.1), "{key}");
        }
    }
}
