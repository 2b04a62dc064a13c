//! Who writes the rules of a chain, by the names that well-known programs give their chains and tables.

use serde::{Deserialize, Serialize};

/// A program that writes firewall rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RuleOwner {
    KubeProxy,
    Kubelet,
    KubeRouter,
    Calico,
    Cilium,
    Flannel,
    Weave,
    /// The portmap and firewall plugins of CNI.
    CniPlugin,
    Docker,
    Podman,
    Libvirt,
    Firewalld,
    Ufw,
    Fail2ban,
}

/// Chains of kubelet (pkg/kubelet/kubelet_network_linux.go) among those that begin with `KUBE-`.
const KUBELET: [&str; 4] =
    ["KUBE-FIREWALL", "KUBE-MARK-DROP", "KUBE-KUBELET-CANARY", "KUBE-IPTABLES-HINT"];

/// Tables of nftables that belong to one program.
const TABLES: [(&str, RuleOwner); 7] = [
    ("kube-proxy", RuleOwner::KubeProxy),
    ("calico", RuleOwner::Calico),
    ("firewalld", RuleOwner::Firewalld),
    ("docker-bridges", RuleOwner::Docker),
    ("netavark", RuleOwner::Podman),
    ("libvirt_network", RuleOwner::Libvirt),
    ("f2b-table", RuleOwner::Fail2ban),
];

/// The beginning of the names of chains. A longer one comes before one that it begins with.
const PREFIXES: [(&str, RuleOwner); 17] = [
    ("KUBE-ROUTER-", RuleOwner::KubeRouter),
    ("KUBE-NWPLCY-", RuleOwner::KubeRouter),
    ("KUBE-POD-FW-", RuleOwner::KubeRouter),
    ("KUBE-", RuleOwner::KubeProxy),
    ("cali-", RuleOwner::Calico),
    ("CILIUM_", RuleOwner::Cilium),
    ("OLD_CILIUM_", RuleOwner::Cilium),
    ("FLANNEL-", RuleOwner::Flannel),
    ("WEAVE", RuleOwner::Weave),
    ("CNI-", RuleOwner::CniPlugin),
    ("DOCKER", RuleOwner::Docker),
    ("NETAVARK", RuleOwner::Podman),
    ("LIBVIRT_", RuleOwner::Libvirt),
    ("ufw-", RuleOwner::Ufw),
    ("ufw6-", RuleOwner::Ufw),
    ("f2b-", RuleOwner::Fail2ban),
    ("fail2ban-", RuleOwner::Fail2ban),
];

impl RuleOwner {
    /// The owner of a chain in a table; `None` for names that any program may use.
    pub fn of(table: &str, chain: &str) -> Option<Self> {
        if let Some((_, owner)) = TABLES.iter().find(|(name, _)| *name == table) {
            return Some(*owner);
        }
        if KUBELET.contains(&chain) {
            return Some(Self::Kubelet);
        }
        PREFIXES.iter().find(|(prefix, _)| chain.starts_with(prefix)).map(|(_, owner)| *owner)
    }

    /// For a sentence.
    pub fn name(self) -> &'static str {
        match self {
            Self::KubeProxy => "kube-proxy",
            Self::Kubelet => "kubelet",
            Self::KubeRouter => "kube-router",
            Self::Calico => "Calico",
            Self::Cilium => "Cilium",
            Self::Flannel => "flannel",
            Self::Weave => "Weave Net",
            Self::CniPlugin => "a CNI plugin",
            Self::Docker => "Docker",
            Self::Podman => "Podman",
            Self::Libvirt => "libvirt",
            Self::Firewalld => "firewalld",
            Self::Ufw => "ufw",
            Self::Fail2ban => "fail2ban",
        }
    }

    /// Whether it is a part of the cluster's network.
    pub fn is_cni(self) -> bool {
        matches!(
            self,
            Self::KubeRouter
                | Self::Calico
                | Self::Cilium
                | Self::Flannel
                | Self::Weave
                | Self::CniPlugin
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn well_known_chains_and_tables_have_an_owner_and_others_have_none() {
        for (table, chain, owner) in [
            ("filter", "KUBE-SERVICES", Some(RuleOwner::KubeProxy)),
            ("filter", "KUBE-IPVS-FILTER", Some(RuleOwner::KubeProxy)),
            ("kube-proxy", "reject-chain", Some(RuleOwner::KubeProxy)),
            ("filter", "KUBE-FIREWALL", Some(RuleOwner::Kubelet)),
            ("filter", "KUBE-NWPLCY-ABC", Some(RuleOwner::KubeRouter)),
            ("filter", "cali-FORWARD", Some(RuleOwner::Calico)),
            ("filter", "CILIUM_FORWARD", Some(RuleOwner::Cilium)),
            ("firewalld", "filter_IN_public", Some(RuleOwner::Firewalld)),
            ("filter", "ufw-user-input", Some(RuleOwner::Ufw)),
            ("filter", "DOCKER-ISOLATION-STAGE-1", Some(RuleOwner::Docker)),
            ("filter", "INPUT", None),
            ("filter", "kube", None),
            ("kube-proxy2", "reject-chain", None),
        ] {
            assert_eq!(RuleOwner::of(table, chain), owner, "{table} {chain}");
        }
    }
}
