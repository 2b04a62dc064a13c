//! Configured values that are not in force, and values that the next boot or start of kube-proxy undoes.

use rsttrace_core::fix::{Change, Fix, FixOwner, Risk, in_kube_proxy, set_in_kube_proxy};
use rsttrace_model::{
    configured::Assignment,
    host_state::{HostState, effective, is_left_behind, proxy_name, writer},
    kube_proxy::{KubeProxy, Mode, Write, Written},
    settings::{IpvsTimer, Setting, Stored},
};

use super::{Netns, Rule, RuleInput};
use crate::{
    finding::{CheckFinding, Rank, counted, some_of},
    origin, remedies,
};

pub const RULE: Rule = Rule {
    id: "configured",
    causes: &["ipvs_idle_expired", "conntrack_idle_expired", "conntrack_table_full"],
    doc: "The value in force should be the one that the configuration files set at boot (sysctl.d(5), in \
          systemd's order) and that kube-proxy writes when it starts. sysctl.d cannot set the sysctls of a \
          module that is loaded later, and there is no sysctl for the IPVS timeouts.",
    judge,
};

fn judge(input: &RuleInput<'_>) -> Vec<CheckFinding> {
    let state = input.state;
    let Some(host) = state.initial() else {
        return Vec::new();
    };
    let mut findings = Vec::new();
    findings.extend(ipvs_timeouts(state, host));
    for setting in rsttrace_model::settings::ALL {
        if let Some(file) = state.configured.sysctl(setting.key) {
            findings.extend(overwritten(state, host, setting, file));
        }
    }
    findings.extend(late_modules(state, host));
    findings.extend(hash_size(state, host));
    findings.extend(deprecated(state, host));
    findings.extend(left_behind(state, host));
    findings
}

/// IPVS services of kube-proxy's former mode.
fn left_behind(state: &HostState, host: &Netns) -> Option<CheckFinding> {
    let proxy = state.configured.kube_proxy.as_ref()?;
    let services = host.services.iter().flatten();
    let count = services.filter(|it| is_left_behind(state, host, it)).count();
    if count == 0 {
        return None;
    }
    let mode = proxy.runs_as().map_or("another", Mode::id);
    let reason = format!(
        "{} and the addresses of kube-ipvs0 are left behind by kube-proxy's former ipvs mode (it runs in {mode} \
         mode now): connections that have an IPVS entry still end by IPVS's timers, new ones are translated by \
         kube-proxy's rules",
        counted(count, "IPVS service")
    );
    Some(
        CheckFinding::new(RULE.id, Rank::Info, &host.place, reason)
            .formula(format!("mode: ipvs, or no IPVS service at an address of kube-ipvs0: {count}"))
            .owner(FixOwner::KubeProxy)
            .source(proxy.describe()),
    )
}

/// The cause of an incident when a setting does not have the configured value.
fn cause_of(key: &str) -> Option<&'static str> {
    let is = |part: &str| key.contains(part);
    if is("keepalive") || key == "ipvs.tcp" {
        Some("ipvs_idle_expired")
    } else if is("tcp_timeout") {
        Some("conntrack_idle_expired")
    } else if is("nf_conntrack_max") || is("buckets") || is("udp_timeout") {
        Some("conntrack_table_full")
    } else {
        None
    }
}

/// A file sets one value; the kernel has, or kube-proxy writes, another one.
fn overwritten(
    state: &HostState,
    host: &Netns,
    setting: &Setting,
    file: &Assignment,
) -> Option<CheckFinding> {
    let key = setting.key;
    let (now, configured) = (effective(state, host, setting)?, file.number()?);
    // Where its configuration could not be read, there is nothing to compare.
    let proxy = writer(state, host, setting).filter(|writes| *writes != configured);
    let who = proxy_name(state).unwrap_or_default();
    let lowers = proxy.is_some_and(|writes| writes < configured);
    let by_version = Write::of(key).and_then(|row| row.by_version).filter(|_| lowers);
    let by_version = by_version.map_or(String::new(), |it| format!(" ({it})"));
    let reason = match (now == configured, proxy) {
        (true, None) if !file.by_hand_only => return None,
        (true, None) => format!(
            "{} sets {key} to {configured}, its value now, but that file is not read at boot: only \
             `sysctl --system` reads it",
            file.at
        ),
        (true, Some(writes)) => format!(
            "{} sets {key} to {configured}, its value now, but {who} will write {writes} at its next start{by_version}",
            file.at
        ),
        (false, Some(writes)) => format!(
            "{} sets {key} to {configured}, but the kernel has {now}: {who} writes {writes} when it starts{by_version}",
            file.at
        ),
        (false, None) => format!(
            "{} sets {key} to {configured}, but the kernel has {now}: the value was changed after boot, or \
             the file was not applied",
            file.at
        ),
    };
    let mut finding = CheckFinding::new(RULE.id, Rank::Warn, &host.place, reason)
        .formula(format!("configured value = value in force: {configured}, {now}"))
        .owner(origin::owner(state, host, key))
        .source(origin::of(state, host, key));
    finding.cause = cause_of(key);
    let change = remedies::set(host, key, configured).filter(|_| proxy.is_some());
    Some(finding.fix(change.and_then(|change| in_kube_proxy(state, &[change]))))
}

/// A reboot resets the IPVS timeouts: there is no sysctl for them.
fn ipvs_timeouts(state: &HostState, host: &Netns) -> Option<CheckFinding> {
    if !state.configured.ipvs_timeouts.is_empty() {
        return None;
    }
    let cpus = state.machine.cpus;
    let changed: Vec<(&Setting, u64)> = rsttrace_model::settings::ALL
        .iter()
        .filter(|setting| matches!(setting.stored, Stored::IpvsTimeout(_)))
        .filter_map(|setting| {
            let now = host.values.number(setting.key)?;
            let written =
                state.configured.kube_proxy.as_ref().map(|it| it.written(setting.key, cpus));
            let kept =
                matches!(written, Some(Written::Unknown)) || written == Some(Written::Value(now));
            (!kept && setting.default != Some(now)).then_some((setting, now))
        })
        .collect();
    let (setting, now) = changed.first()?;
    let default = setting.default.unwrap_or_default();
    let names: Vec<_> = changed.iter().map(|(it, now)| format!("{} = {now}", it.key)).collect();
    let keepalive = host.values.number("net.ipv4.tcp_keepalive_time");
    let then = match keepalive.filter(|time| setting.key == "ipvs.tcp" && *time >= default) {
        Some(time) => format!(", while tcp_keepalive_time stays at {time} s"),
        None => String::new(),
    };
    let reason = format!(
        "the next reboot resets the IPVS timeouts ({}): no sysctl and no configuration file sets them, and {} \
         is {default} s again{then}",
        some_of(&names),
        setting.key,
    );
    let proxy = state.configured.kube_proxy.as_ref().filter(|it| it.runs_as() == Some(Mode::Ipvs));
    let mut finding = CheckFinding::new(RULE.id, Rank::Warn, &host.place, reason)
        .formula(format!("{} after a boot = {default} s; now {now} s", setting.key))
        .owner(if proxy.is_some() { FixOwner::KubeProxy } else { FixOwner::Node })
        .source(origin::of(state, host, setting.key));
    finding.cause = Some("ipvs_idle_expired");
    Some(finding.fix(proxy.map(|it| kept_by(it, &changed, cpus))).fix(keep_by_unit(&changed)))
}

/// kube-proxy's fields for these timeouts.
fn kept_by(proxy: &KubeProxy, changed: &[(&Setting, u64)], cpus: u32) -> Fix {
    let fields = changed.iter().flat_map(|(it, now)| proxy.fields_for(it.key, *now, cpus));
    set_in_kube_proxy(proxy, &fields.collect::<Vec<_>>())
}

/// A systemd unit that sets the IPVS timeouts at boot.
fn keep_by_unit(changed: &[(&Setting, u64)]) -> Option<Fix> {
    let value = |timer| {
        let is = |(setting, _): &&(&Setting, u64)| setting.stored == Stored::IpvsTimeout(timer);
        changed.iter().find(is).map_or(0, |(_, now)| *now)
    };
    let [tcp, fin, udp] = [IpvsTimer::Tcp, IpvsTimer::TcpFin, IpvsTimer::Udp].map(value);
    Some(Fix {
        id: "keep_ipvs_timeouts",
        owner: FixOwner::Node,
        risk: Risk::Low,
        summary: "set the IPVS timeouts at each boot with a systemd unit".into(),
        reason: "there is no sysctl for the IPVS timeouts, so sysctl.d cannot set them".into(),
        current: None,
        wanted: Some(format!("{tcp} {fin} {udp}")),
        changes: vec![Change::Advice {
            text: format!(
                "a oneshot unit with ExecStart=/sbin/ipvsadm --set {tcp} {fin} {udp} (0 keeps a value)"
            ),
        }],
    })
}

/// sysctl.d sets sysctls of a module that is not loaded yet.
fn late_modules(state: &HostState, host: &Netns) -> Vec<CheckFinding> {
    let modules = [("nf_conntrack", "net.netfilter.nf_conntrack_"), ("ip_vs", "net.ipv4.vs.")];
    let late = modules.into_iter().filter(|(module, _)| !state.configured.loads(module));
    late.filter_map(|(module, keys)| {
        let lost: Vec<&Assignment> =
            state.configured.sysctls.iter().filter(|it| it.key.starts_with(keys)).collect();
        let first = lost.first()?;
        let mut names: Vec<String> = lost.iter().map(|it| it.key.clone()).collect();
        names.dedup();
        let reason = format!(
            "{} sets {}, but nothing loads {module} before sysctl.d is applied (no modules-load.d file \
             lists it): after a boot these settings may have the kernel's values",
            first.at.file,
            some_of(&names)
        );
        let mut finding = CheckFinding::new(RULE.id, Rank::Warn, &host.place, reason)
            .formula(format!("modules-load.d lists {module}, or it is built into the kernel"))
            .owner(FixOwner::Node)
            .source(format!("{}; /etc/modules-load.d", first.at))
            .fix([Fix {
                id: "load_module_at_boot",
                owner: FixOwner::Node,
                risk: Risk::Low,
                summary: format!("load {module} at boot, before sysctl.d is applied"),
                reason: "systemd-sysctl runs once, after systemd-modules-load".into(),
                current: None,
                wanted: Some(module.into()),
                changes: vec![Change::Advice {
                    text: format!("echo {module} > /etc/modules-load.d/{module}.conf"),
                }],
            }]);
        finding.cause = cause_of(&first.key);
        Some(finding)
    })
    .collect()
}

/// modprobe.d sets another size than the table has.
fn hash_size(state: &HostState, host: &Netns) -> Option<CheckFinding> {
    let option = state.configured.option("nf_conntrack.hashsize")?;
    let configured = option.number()?;
    let now = state.machine.values.number("net.netfilter.nf_conntrack_buckets")?;
    // The kernel rounds the size up to whole pages of buckets.
    if now == configured.div_ceil(512) * 512 || now == configured {
        return None;
    }
    let reason = format!(
        "{} sets hashsize={configured}, but the conntrack table has {now} buckets: the module was loaded \
         with another value, or the table was resized",
        option.at
    );
    Some(
        CheckFinding::new(RULE.id, Rank::Info, &host.place, reason)
            .formula(format!("hashsize = nf_conntrack_buckets: {configured}, {now}"))
            .owner(FixOwner::Node)
            .source(option.at.to_string()),
    )
}

fn deprecated(state: &HostState, host: &Netns) -> Option<CheckFinding> {
    let proxy = state.configured.kube_proxy.as_ref()?;
    (proxy.runs_as() == Some(Mode::Ipvs)).then(|| {
        CheckFinding::new(
            RULE.id,
            Rank::Info,
            &host.place,
            "kube-proxy's IPVS mode is deprecated since Kubernetes 1.35 (KEP-5495), off by default in 1.40 and \
             removed in 1.43; iptables and nftables modes have no IPVS timers",
        )
        .formula("mode: nftables or iptables")
        .owner(FixOwner::KubeProxy)
        .source(proxy.describe())
    })
}
