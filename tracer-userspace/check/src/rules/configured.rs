//! Configured is not effective: files that lost, and values that the next boot or start undoes.

use rsttrace_core::fix::{Change, Fix, FixOwner, Risk};
use rsttrace_model::{
    configured::Assignment,
    host_state::{View, effective, proxy_name, writer},
    settings::{IpvsTimer, Setting, Stored},
};

use super::{Netns, Question, Rule};
use crate::{
    finding::{Finding, Rank, some_of},
    origin,
};

pub const RULE: Rule = Rule {
    id: "configured",
    causes: &["ipvs_idle_expired", "conntrack_idle_expired", "conntrack_table_full"],
    doc: "The value in force should be the one that the files give it after a boot (sysctl.d(5), in \
          systemd's order) and that kube-proxy writes at its start. sysctl.d cannot set what a module brings \
          that is loaded later, and no sysctl holds the IPVS timeouts.",
    judge,
};

fn judge(question: &Question<'_>) -> Vec<Finding> {
    let view = question.view;
    let Some(host) = view.initial() else {
        return Vec::new();
    };
    let mut findings = Vec::new();
    findings.extend(ipvs_timeouts(view, host));
    for setting in rsttrace_model::settings::ALL {
        if let Some(file) = view.configured.sysctl(setting.key) {
            findings.extend(overruled(view, host, setting, file));
        }
    }
    findings.extend(late_modules(view, host));
    findings.extend(hash_size(view, host));
    findings.extend(deprecated(view, host));
    findings
}

/// What breaks when the setting is not what somebody thinks.
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

/// A file says one thing; the kernel or kube-proxy another.
fn overruled(view: &View, host: &Netns, setting: &Setting, file: &Assignment) -> Option<Finding> {
    let key = setting.key;
    let (now, says) = (effective(view, host, setting)?, file.number()?);
    // It raises the size of the table and never lowers it.
    let loses = |writes: &u64| *writes > says || (*writes < says && !key.ends_with("_max"));
    let proxy = writer(view, host, setting).filter(loses);
    let who = proxy_name(view).unwrap_or_default();
    let reason = match (now == says, proxy) {
        (true, None) if !file.by_hand_only => return None,
        (true, None) => format!(
            "{} gives {key} the value {says} it has now, but the boot does not read that file: only \
             `sysctl --system` does",
            file.at
        ),
        (true, Some(writes)) => format!(
            "{} gives {key} the value {says} it has now, and {who} writes {writes} over it at its next start",
            file.at
        ),
        (false, Some(writes)) => format!(
            "{} says {key} = {says}, but the kernel has {now}: {who} writes {writes} over it at its start",
            file.at
        ),
        (false, None) => format!(
            "{} says {key} = {says}, but the kernel has {now}: somebody wrote it after the boot, or the file \
             was not applied",
            file.at
        ),
    };
    let mut finding = Finding::new(RULE.id, Rank::Warn, &host.place, reason)
        .formula(format!("configured = effective: {says}, {now}"))
        .owner(origin::owner(view, host, key))
        .source(origin::of(view, host, key));
    finding.cause = cause_of(key);
    let field = setting.kube_proxy.filter(|_| proxy.is_some());
    Some(finding.fix(field.map(|field| in_kube_proxy(field, setting, says))))
}

fn in_kube_proxy(field: &str, setting: &Setting, value: u64) -> Fix {
    let unit = if setting.unit == rsttrace_model::settings::Unit::Seconds { "s" } else { "" };
    Fix {
        id: "set_in_kube_proxy",
        owner: FixOwner::KubeProxy,
        risk: Risk::Low,
        summary: format!(
            "set {field} in KubeProxyConfiguration to {value}{unit} and restart kube-proxy"
        ),
        reason: "whoever writes last wins, and kube-proxy writes at each of its starts".into(),
        current: None,
        wanted: Some(format!("{value}{unit}")),
        changes: vec![Change::Advice {
            text: format!("KubeProxyConfiguration: {field}: {value}{unit}"),
        }],
    }
}

/// The reboot forgets them: no sysctl holds them.
fn ipvs_timeouts(view: &View, host: &Netns) -> Option<Finding> {
    if !view.configured.ipvs_timeouts.is_empty() {
        return None;
    }
    let changed: Vec<(&Setting, u64)> = rsttrace_model::settings::ALL
        .iter()
        .filter(|setting| matches!(setting.stored, Stored::IpvsTimeout(_)))
        .filter_map(|setting| {
            let now = host.values.number(setting.key)?;
            let kept = writer(view, host, setting) == Some(now);
            (!kept && setting.default != Some(now)).then_some((setting, now))
        })
        .collect();
    let (setting, now) = changed.first()?;
    let default = setting.default.unwrap_or_default();
    let names: Vec<_> = changed.iter().map(|(it, now)| format!("{} = {now}", it.key)).collect();
    let keepalive = host.values.number("net.ipv4.tcp_keepalive_time");
    let then = match keepalive.filter(|time| setting.key == "ipvs.tcp" && *time >= default) {
        Some(time) => format!(", while the keepalive stays at {time} s"),
        None => String::new(),
    };
    let reason = format!(
        "the next reboot forgets the IPVS timeouts ({}): no sysctl and no file holds them, and {} is {default} \
         s again{then}",
        some_of(&names),
        setting.key,
    );
    let mut finding = Finding::new(RULE.id, Rank::Warn, &host.place, reason)
        .formula(format!("{} after a boot: {default} s; now: {now} s", setting.key))
        .owner(match proxy_name(view) {
            Some(_) => FixOwner::KubeProxy,
            None => FixOwner::Node,
        })
        .source(origin::of(view, host, setting.key));
    finding.cause = Some("ipvs_idle_expired");
    if let (Some(field), Some(_)) = (setting.kube_proxy, proxy_name(view)) {
        finding = finding.fix([in_kube_proxy(field, setting, *now)]);
    }
    Some(finding.fix(keep_by_unit(&changed)))
}

/// A unit that sets them at boot.
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
        summary: "set the IPVS timeouts at each boot, by a systemd unit".into(),
        reason: "no sysctl holds them, so no file of sysctl.d can keep them".into(),
        current: None,
        wanted: Some(format!("{tcp} {fin} {udp}")),
        changes: vec![Change::Advice {
            text: format!(
                "a oneshot unit with ExecStart=/sbin/ipvsadm --set {tcp} {fin} {udp} (0 keeps a value)"
            ),
        }],
    })
}

/// sysctl.d sets what is not there yet.
fn late_modules(view: &View, host: &Netns) -> Vec<Finding> {
    let modules = [("nf_conntrack", "net.netfilter.nf_conntrack_"), ("ip_vs", "net.ipv4.vs.")];
    let late = modules.into_iter().filter(|(module, _)| !view.configured.loads(module));
    late.filter_map(|(module, keys)| {
        let lost: Vec<&Assignment> =
            view.configured.sysctls.iter().filter(|it| it.key.starts_with(keys)).collect();
        let first = lost.first()?;
        let mut names: Vec<String> = lost.iter().map(|it| it.key.clone()).collect();
        names.dedup();
        let reason = format!(
            "{} sets {}, but nothing loads {module} before sysctl.d is applied (no modules-load.d file \
             names it): after a boot they may have the kernel's values",
            first.at.file,
            some_of(&names)
        );
        let mut finding = Finding::new(RULE.id, Rank::Warn, &host.place, reason)
            .formula(format!("modules-load.d names {module}, or the kernel has it built in"))
            .owner(FixOwner::Node)
            .source(format!("{}; /etc/modules-load.d", first.at))
            .fix([Fix {
                id: "load_module_at_boot",
                owner: FixOwner::Node,
                risk: Risk::Low,
                summary: format!("load {module} at boot, before sysctl.d is applied"),
                reason: "systemd-sysctl runs after systemd-modules-load, once".into(),
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

/// modprobe.d says another size than the table has.
fn hash_size(view: &View, host: &Netns) -> Option<Finding> {
    let option = view.configured.option("nf_conntrack.hashsize")?;
    let says = option.number()?;
    let now = view.machine.values.number("net.netfilter.nf_conntrack_buckets")?;
    // The kernel rounds it up to whole pages of buckets.
    if now == says.div_ceil(512) * 512 || now == says {
        return None;
    }
    let reason = format!(
        "{} says hashsize={says}, but the conntrack table has {now} buckets: the module was loaded \
         differently, or somebody resized it",
        option.at
    );
    Some(
        Finding::new(RULE.id, Rank::Info, &host.place, reason)
            .formula(format!("hashsize = nf_conntrack_buckets: {says}, {now}"))
            .owner(FixOwner::Node)
            .source(option.at.to_string()),
    )
}

fn deprecated(view: &View, host: &Netns) -> Option<Finding> {
    let proxy = view.configured.kube_proxy.as_ref()?;
    (proxy.mode.as_deref() == Some("ipvs")).then(|| {
        Finding::new(
            RULE.id,
            Rank::Info,
            &host.place,
            "kube-proxy's IPVS mode is deprecated since Kubernetes 1.35 (KEP-5495); nftables mode has no \
             IPVS timers",
        )
        .formula("mode: nftables or iptables")
        .owner(FixOwner::KubeProxy)
        .source(proxy.describe())
    })
}
