//! The same change where Kubernetes sets the value.

use std::fmt::Write as _;

use rsttrace_model::{
    escape::is_plain,
    host_state::{HostState, at_next_start},
    kube_proxy::{Field, KubeProxy, Packaging},
    netns::Place,
    settings::{InPods, Setting},
};

use super::change::{Change, Fix, FixOwner, Risk};

impl Change {
    /// The namespace in which it is made.
    pub fn place(&self) -> Option<&Place> {
        match self {
            Self::Sysctl { place, .. } | Self::IpvsTimeout { place, .. } => Some(place),
            Self::SocketOption { .. } | Self::Advice { .. } => None,
        }
    }

    /// Its key in the allow-list, and the value.
    pub fn setting(&self) -> Option<(&'static Setting, u64)> {
        match self {
            Self::Sysctl { key, to, .. } => Some((Setting::find(key)?, *to)),
            Self::IpvsTimeout { timer, to_s, .. } => {
                Some((Setting::of_timer(*timer)?, u64::from(*to_s)))
            }
            Self::SocketOption { .. } | Self::Advice { .. } => None,
        }
    }
}

/// The change of kube-proxy's configuration without which its next start undoes these changes. `None` if it undoes
/// none of them, or if no field changes what it writes.
pub fn in_kube_proxy(state: &HostState, changes: &[Change]) -> Option<Fix> {
    let proxy = state.configured.kube_proxy.as_ref()?;
    let mut fields = Vec::new();
    for change in changes {
        let (Some((setting, to)), Some(place)) = (change.setting(), change.place()) else {
            continue;
        };
        let undone = state.netns(place.netns).and_then(|it| at_next_start(state, it, setting, to));
        if undone.is_some() {
            fields.extend(proxy.fields_for(setting.key, to, state.machine.cpus));
        }
    }
    (!fields.is_empty()).then(|| set_in_kube_proxy(proxy, &fields))
}

/// A change of these fields of kube-proxy's configuration.
pub fn set_in_kube_proxy(proxy: &KubeProxy, fields: &[(&Field, String)]) -> Fix {
    let named: Vec<_> = fields.iter().map(|(it, to)| format!("{} to {to}", it.path)).collect();
    let wanted: Vec<_> = fields.iter().map(|(it, to)| format!("{}: {to}", it.path)).collect();
    Fix {
        id: "set_in_kube_proxy",
        owner: FixOwner::KubeProxy,
        risk: Risk::Low,
        summary: format!("set {} in kube-proxy's configuration and restart it", named.join(", ")),
        reason: "the last write wins, and kube-proxy writes the value each time it starts".into(),
        current: None,
        wanted: Some(wanted.join(", ")),
        changes: steps(proxy, fields).map(|text| Change::Advice { text }).into(),
    }
}

/// Where the fields are set, and how the new values come into force.
fn steps(proxy: &KubeProxy, fields: &[(&Field, String)]) -> [String; 2] {
    let flags = || {
        let flags = fields.iter().map(|(it, to)| format!("{}={to}", it.flag));
        flags.collect::<Vec<_>>()
    };
    let yaml = || {
        let fields: Vec<_> = fields.iter().map(|(it, to)| format!("{}: {to}", it.path)).collect();
        fields.join(", ")
    };
    let restart = "restart kube-proxy: it writes the values when it starts".to_owned();
    match (proxy.packaging, proxy.file.as_deref()) {
        (Packaging::K3s, _) => [
            format!("/etc/rancher/k3s/config.yaml: add to kube-proxy-arg: {}", flags().join(", ")),
            "systemctl restart k3s, or k3s-agent".into(),
        ],
        (Packaging::Rke2, None) => [
            format!("/etc/rancher/rke2/config.yaml: add to kube-proxy-arg: {}", flags().join(", ")),
            "systemctl restart rke2-server, or rke2-agent".into(),
        ],
        (Packaging::Microk8s, _) => [
            format!(
                "/var/snap/microk8s/current/args/kube-proxy: add {}",
                flags().iter().map(|flag| format!("--{flag}")).collect::<Vec<_>>().join(" ")
            ),
            "snap restart microk8s.daemon-kubelite".into(),
        ],
        // The path of kubeadm's DaemonSet, whose ConfigMap is for all nodes.
        (_, Some("/var/lib/kube-proxy/config.conf")) => [
            format!(
                "kubectl -n kube-system edit configmap kube-proxy: in config.conf, set {}",
                yaml()
            ),
            "kubectl -n kube-system rollout restart daemonset kube-proxy: every node of the cluster gets the              values"
                .into(),
        ],
        (_, Some(file)) => {
            let file = if is_plain(file) { file } else { "its configuration file" };
            [format!("{file}, or the ConfigMap that it comes from: set {}", yaml()), restart]
        }
        (_, None) => [
            format!(
                "the command line of kube-proxy: add {}",
                flags().iter().map(|flag| format!("--{flag}")).collect::<Vec<_>>().join(" ")
            ),
            restart,
        ],
    }
}

impl Fix {
    /// The fields of KubeProxyConfiguration for values that kube-proxy would overwrite at its next start
    /// (`pkg/proxy/apis/config/types.go`).
    pub fn kube_proxy(&self) -> Option<String> {
        let mut sections: Vec<(&str, Vec<String>)> = Vec::new();
        for (setting, to) in self.changes.iter().filter_map(Change::setting) {
            let Some((section, field)) = setting.kube_proxy.and_then(|path| path.split_once('.'))
            else {
                continue;
            };
            let lines = match setting.key {
                // kube-proxy uses the larger of `min` and `maxPerCore` times the number of CPUs.
                "net.netfilter.nf_conntrack_max" => vec![format!("min: {to}")],
                "net.netfilter.nf_conntrack_tcp_be_liberal" => vec![format!("{field}: true")],
                _ => vec![format!("{field}: {to}s")],
            };
            match sections.iter_mut().find(|(name, _)| *name == section) {
                Some((_, of_section)) => of_section.extend(lines),
                None => sections.push((section, lines)),
            }
        }
        if sections.is_empty() {
            return None;
        }
        let mut text = String::from(
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n",
        );
        for (section, lines) in sections {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{section}:");
            for line in lines {
                let _ = writeln!(text, "  {line}");
            }
        }
        Some(text)
    }

    /// `securityContext.sysctls` of the pod that has the namespace. `None` unless a pod may set them
    /// all (`pkg/kubelet/sysctl/safe_sysctls.go`).
    pub fn pod(&self) -> Option<String> {
        let settings: Vec<_> = self.changes.iter().filter_map(Change::setting).collect();
        if settings.is_empty() || settings.iter().any(|(setting, _)| setting.in_pods == InPods::No)
        {
            return None;
        }
        let mut text = String::from("spec:\n  securityContext:\n    sysctls:\n");
        for (setting, to) in settings {
            let _ = writeln!(text, "    - name: {}\n      value: \"{to}\"", setting.key);
            if setting.in_pods == InPods::Unsafe {
                let _ = writeln!(
                    text,
                    "      # needs the kubelet's --allowed-unsafe-sysctls={}",
                    setting.key
                );
            }
        }
        Some(text)
    }
}
