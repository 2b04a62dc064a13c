//! Where a value comes from, and what would overwrite it.

use rsttrace_core::fix::FixOwner;
use rsttrace_model::{
    firewall::{RuleOwner, RulePlace},
    host_state::{HostState, Netns, effective, is_initial, may_be_written},
    kube_proxy::{Mode, Write, Written},
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
    let may_be_written = may_be_written(state, netns, setting);
    match file {
        Some(file) if file.number() == Some(now) => parts.push(format!("set in {}", file.at)),
        Some(file) => {
            parts.push(format!("{} sets {}, but the kernel has {now}", file.at, file.value))
        }
        None if is_default => parts.push("kernel default".into()),
        // kube-proxy may have written it, now or under another configuration.
        None if may_be_written => {}
        None if setting.default.is_none() => {}
        None if is_initial(netns) => {
            parts.push("set by hand or by a program, not by a known configuration file".into());
        }
        None => parts.push("set in this network namespace only".into()),
    }
    parts.extend(by_kube_proxy(state, netns, setting, now));
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

/// What kube-proxy does with the setting when it starts.
fn by_kube_proxy(state: &HostState, netns: &Netns, setting: &Setting, now: u64) -> Option<String> {
    let proxy = state.configured.kube_proxy.as_ref().filter(|_| is_initial(netns))?;
    let row = Write::of(setting.key)?;
    match proxy.written(setting.key, state.machine.cpus) {
        Written::Value(writes) if writes == now => {
            let by = proxy.by(row);
            Some(format!("{} writes {writes} when it starts ({by})", proxy.describe()))
        }
        Written::Nothing => {
            let is_in_mode = proxy.runs_as().is_some_and(|mode| row.modes.contains(&mode));
            let field = row.field().filter(|_| is_in_mode)?;
            Some(format!("{} leaves it alone ({field} does not set it)", proxy.describe()))
        }
        _ => proxy.at_next_start(setting.key, now, state.machine.cpus),
    }
}

/// The owner of a namespace's IPVS services: kube-proxy in ipvs mode, else the node.
pub fn balancer(state: &HostState, netns: &Netns) -> FixOwner {
    let proxy = state.configured.kube_proxy.as_ref().filter(|_| is_initial(netns));
    match proxy.is_some_and(|it| it.runs_as().is_none_or(|mode| mode == Mode::Ipvs)) {
        true => FixOwner::KubeProxy,
        false => FixOwner::Node,
    }
}

/// The owner of a value: kube-proxy where kube-proxy writes it, or may write it, else the node.
pub fn owner(state: &HostState, netns: &Netns, key: &str) -> FixOwner {
    match Setting::find(key).is_some_and(|setting| may_be_written(state, netns, setting)) {
        true => FixOwner::KubeProxy,
        false => FixOwner::Node,
    }
}

/// The owner of a rule, by the names of its table and chain.
pub fn rule_owner(at: &RulePlace) -> FixOwner {
    match at.chain.owner() {
        Some(RuleOwner::KubeProxy) => FixOwner::KubeProxy,
        Some(owner) if owner.is_cni() => FixOwner::Cni,
        Some(_) | None => FixOwner::Firewall,
    }
}
