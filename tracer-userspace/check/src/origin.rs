//! Where a value comes from, and who would have it otherwise.

use rsttrace_core::fix::FixOwner;
use rsttrace_model::{
    host_state::{Netns, View, effective, is_initial, proxy_name, writer},
    settings::{Setting, Stored},
};

/// In a sentence: the value, where it was read, who set it, who says otherwise.
pub fn of(view: &View, netns: &Netns, key: &str) -> String {
    let Some(setting) = Setting::find(key) else {
        return String::new();
    };
    let Some(now) = effective(view, netns, setting) else {
        return format!("{key}: not read");
    };
    let is_default = setting.default == Some(now);
    let mut parts = Vec::new();
    let file = view.configured.sysctl(key).filter(|_| is_initial(netns));
    let proxy = writer(view, netns, setting);
    match file {
        Some(file) if file.number() == Some(now) => parts.push(format!("{} sets it", file.at)),
        Some(file) => parts.push(format!("{} says {}, the kernel has {now}", file.at, file.value)),
        None if is_default => parts.push("the kernel's default".into()),
        None if proxy.is_some_and(|writes| writes == now) => {}
        None if setting.default.is_none() => {}
        None if is_initial(netns) => {
            parts.push("set by hand or by a program, in no file that we know".into());
        }
        None => parts.push("set in this namespace alone".into()),
    }
    if let (Some(writes), Some(name)) = (proxy, proxy_name(view)) {
        let field = setting.kube_proxy.unwrap_or_default();
        parts.push(format!("{name} writes {writes} at its start ({field})"));
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

/// Who is to be asked for another value: kube-proxy where it writes this one.
pub fn owner(view: &View, netns: &Netns, key: &str) -> FixOwner {
    let setting = Setting::find(key);
    match setting.and_then(|setting| writer(view, netns, setting)) {
        Some(_) => FixOwner::KubeProxy,
        None => FixOwner::Node,
    }
}
