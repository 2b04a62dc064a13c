//! The same change where Kubernetes sets the value.

use std::fmt::Write as _;

use rsttrace_model::{
    netns::Place,
    settings::{InPods, Setting},
};

use super::change::{Change, Fix};

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
