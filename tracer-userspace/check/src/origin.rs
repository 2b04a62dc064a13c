//! Where a value comes from, and what would overwrite it.

use rsttrace_core::fix::FixOwner;
use rsttrace_model::{
    host_state::{HostState, Netns, effective, is_initial, proxy_name, writer},
    settings::{Setting, Stored},
};

/// The value in words: where it was read, what set it, and which file or program sets another value.
pub fn of(state: &HostState, netns: &Netns, key: &str) -> String {
    let Some(setting) = Setting::find(key) else {
        return String::new();
    };
    let Some(now) = effective(state, netns, setting) else {
        return format!("{key}: not available");
    };
    let is_default = setting.default == Some(now);
    let mut parts = Vec::new();
    let file = state.configured.sysctl(key).filter(|_| is_initial(netns));
    let proxy = writer(state, netns, setting);
    match file {
        Some(file) if file.number() == Some(now) => parts.push(format!("set in {}", file.at)),
        Some(file) => {
            parts.push(format!("{} sets {}, but the kernel has {now}", file.at, file.value))
        }
        None if is_default => parts.push("kernel default".into()),
        None if proxy.is_some_and(|writes| writes == now) => {}
        None if setting.default.is_none() => {}
        None if is_initial(netns) => {
            parts.push("set by hand or by a program, not by a known configuration file".into());
        }
        None => parts.push("set in this network namespace only".into()),
    }
    if let (Some(writes), Some(name)) = (proxy, proxy_name(state)) {
        let field = setting.kube_proxy.unwrap_or_default();
        parts.push(format!("{name} writes {writes} when it starts ({field})"));
    }
    let unit = match setting.unit {
        rsttrace_model::settings::Unit::Seconds => " s",
        _ => "",
    };
    let read = match setting.stored {
        Stored::IpvsTimeout(_) => format!("{key} (ipvsadm -Ln --timeout)"),
        Stored::Sysctl | Stored::Parameter { .. } => key.to_owned(),
    };
    match parts.is_empty() {
        true => format!("{read} = {now}{unit}"),
        false => format!("{read} = {now}{unit}: {}", parts.join("; ")),
    }
}

/// The owner of a value: kube-proxy where kube-proxy writes it, else the node.
pub fn owner(state: &HostState, netns: &Netns, key: &str) -> FixOwner {
    let setting = Setting::find(key);
    match setting.and_then(|setting| writer(state, netns, setting)) {
        Some(_) => FixOwner::KubeProxy,
        None => FixOwner::Node,
    }
}
