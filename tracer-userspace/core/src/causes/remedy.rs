//! Fixes that several causes share, with values computed from what was measured.

use rsttrace_model::{
    host_state::Netns,
    netns::{NetnsReach, Place},
    settings::IpvsTimer,
    socket::{Keepalive, SocketList, SocketState, TimerKind},
    units::whole,
};

use crate::{
    causes::fix_context::FixContext,
    event::Task,
    evidence::Evidence,
    fix::{Change, Fix, FixOwner, Remedy, Risk},
    verdict::NotFix,
};

/// Keepalives sent often enough that an idle limit never runs out. This fix works wherever the limit is
/// configured.
pub const KEEPALIVE: Remedy = Remedy {
    id: "keepalive_below_limit",
    owner: FixOwner::Application,
    risk: Risk::Low,
    summary: "send keepalives at intervals of at most a third of the limit",
    reason: "each probe re-arms the timer; a third of the limit survives a lost probe and a late timer",
    how: "turn on SO_KEEPALIVE, and set TCP_KEEPIDLE, TCP_KEEPINTVL and TCP_KEEPCNT, or \
          net.ipv4.tcp_keepalive_time, _intvl and _probes in the application's network namespace",
};

/// Close pooled connections before the limit is reached.
pub const POOL: Remedy = Remedy {
    id: "pool_idle_below_limit",
    owner: FixOwner::Application,
    risk: Risk::Low,
    summary: "let the pool close connections before they reach the idle limit",
    reason: "a connection the pool has closed is never reused",
    how: "set the pool's idle timeout and maximum lifetime below the limit, or validate \
          connections on borrow",
};

/// For a peer that did not answer.
pub const RESTORE_THE_PATH: Remedy = Remedy {
    id: "restore_the_path",
    owner: FixOwner::Node,
    risk: Risk::Low,
    summary: "find out why the peer did not answer",
    reason: "no answer came, because of loss on the path, a drop without an answer, an MTU black \
             hole, or a peer that is gone",
    how: "look for drops without an answer in the time before (IPVS without a server, a full conntrack \
          table, a DROP rule), and check whether the peer was restarted, its node was lost, or a \
          route or policy changed",
};

/// For a client that closes before the answer comes.
pub const CALLER_WAITS_LONGER: Remedy = Remedy {
    id: "caller_waits_longer",
    owner: FixOwner::Application,
    risk: Risk::Low,
    summary: "let the client wait longer than the server takes to answer",
    reason: "the client had given up the connection while the server still sent data on it",
    how: "set the client's request timeout above the server's slowest answer and its keep-alive \
          timeout, or limit how long the server may take; a server must expect the error and stop \
          the work",
};

/// For the race window that no timeout removes.
pub const RETRY: Remedy = Remedy {
    id: "retry_idempotent",
    owner: FixOwner::Application,
    risk: Risk::Low,
    summary: "retry a request that failed on a closed connection, on a new connection",
    reason: "no timeout fully removes the race window of one round trip",
    how: "retry only requests that are safe to repeat, and only if no byte of an answer has arrived",
};

/// For a process that ended while its connections were in use.
pub const STOP_GRACEFULLY: Remedy = Remedy {
    id: "stop_gracefully",
    owner: FixOwner::Application,
    risk: Risk::Low,
    summary: "let the process drain its connections before it ends (accept no new ones, finish \
              open requests, then close)",
    reason: "after its end no process reads what its peers still send, and the kernel answers that \
             data with a reset",
    how: "do this in the SIGTERM handler; in Kubernetes let a preStop hook wait until no more \
          traffic arrives, and set terminationGracePeriodSeconds (systemd: TimeoutStopSec) to more \
          than the longest request takes. A signal 9 that no operator sent often comes from the \
          OOM killer (check dmesg), or from a grace period that is too short",
};

/// [`STOP_GRACEFULLY`], for this process.
pub fn stop_gracefully(task: &Task) -> Fix {
    let summary = match task.killed_by() {
        Some(signal) => {
            format!(
                "find out what sent signal {signal} to {task}, and let the process drain its \
                 connections first"
            )
        }
        None => format!("let {} drain its connections before it exits", task.comm),
    };
    Fix { summary, ..STOP_GRACEFULLY.fix() }
}

/// A longer IPVS timeout, where the clients cannot be changed.
pub const IPVS_TIMEOUT: Remedy = Remedy {
    id: "raise_ipvs_timeout",
    owner: FixOwner::Node,
    risk: Risk::Medium,
    summary: "raise the IPVS TCP timeout in the namespace that owns the table",
    reason: "for clients that cannot send keepalives; entries already idle keep the old timer, a \
             reboot resets the value, and kube-proxy needs ipvs.tcpTimeout instead",
    how: "run ipvsadm --set <tcp> 0 0 (0 keeps the other two values)",
};

/// Documented not-fixes, in the form that an incident holds.
pub fn to_not_fixes(not_fixes: &[(&str, &str)]) -> Vec<NotFix> {
    not_fixes.iter().map(|(what, because)| ((*what).into(), (*because).into())).collect()
}

/// Keepalive settings that stay below a limit.
pub struct Period {
    pub time_s: u64,
    pub intvl_s: u64,
    pub probes: u64,
}

impl Period {
    /// A third of the limit, seconds. It survives one lost probe and the timer wheel, whose timers fire up to
    /// 1/8 late and never early (kernel/time/timer.c).
    pub fn below(limit_s: f64) -> Self {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "whole seconds"
        )]
        let time_s = (limit_s / 3.0).floor().max(1.0) as u64;
        Self { time_s, intvl_s: (time_s / 10).clamp(1, 75), probes: 3 }
    }

    /// [`KEEPALIVE`] with its values, for a limit in seconds and a description of that limit.
    pub fn fix(&self, limit_s: f64, limit_is: &str, owner: FixOwner, changes: Vec<Change>) -> Fix {
        let Self { time_s, intvl_s, probes } = self;
        Fix {
            owner,
            summary: format!("send keepalives at least every {time_s} s"),
            reason: format!(
                "each probe re-arms {limit_is} ({limit_s:.0} s); a third of it survives a lost \
                 probe and a late timer"
            ),
            wanted: Some(format!("{time_s}/{intvl_s}/{probes}")),
            changes,
            ..KEEPALIVE.fix()
        }
    }

    /// What the application sets on its socket.
    pub fn socket_options(&self, place: Option<&Place>) -> Vec<Change> {
        let option = |level: &str, name: &str, value: u64| Change::SocketOption {
            code: format!("setsockopt(fd, {level}, {name}, {value})"),
            place: place.cloned(),
            shown_by: "ss -tno state established",
        };
        vec![
            option("SOL_SOCKET", "SO_KEEPALIVE", 1),
            option("IPPROTO_TCP", "TCP_KEEPIDLE", self.time_s),
            option("IPPROTO_TCP", "TCP_KEEPINTVL", self.intvl_s),
            option("IPPROTO_TCP", "TCP_KEEPCNT", self.probes),
        ]
    }
}

/// "off", or "7200/75/9".
pub fn describe(keepalive: Keepalive) -> String {
    if keepalive.enabled {
        format!("{:.0}/{:.0}/{}", keepalive.time_s, keepalive.intvl_s, keepalive.probes)
    } else {
        "off".into()
    }
}

/// [`KEEPALIVE`] with its values. Sysctls affect only sockets that have SO_KEEPALIVE on and no time of
/// their own.
pub fn keepalive_below(evidence: &Evidence<'_>, limit_s: f64, limit_is: &str) -> Fix {
    let period = Period::below(limit_s);
    let victim = evidence.victim();
    let keepalive = victim.map(|(_, _, socket)| socket.keepalive);
    let place = victim.map(|(netns, _, _)| evidence.place(netns));
    let by_sysctl = keepalive.is_some_and(|k| k.enabled && !k.time_is_own);
    let mut changes = Vec::new();
    if !by_sysctl {
        changes.extend(period.socket_options(place.as_ref()));
    }
    let sysctls_apply = keepalive.is_none_or(|keepalive| !keepalive.time_is_own);
    if let Some(place) = place.filter(|_| sysctls_apply) {
        let from = |value: Option<u32>| value.map(u64::from);
        let tcp = evidence.host(place.netns).map(|host| &host.tcp);
        let mut sysctl = |key, from, to| {
            changes.push(Change::Sysctl { place: place.clone(), key, from, to });
        };
        sysctl(
            "net.ipv4.tcp_keepalive_time",
            tcp.and_then(|t| from(t.keepalive_time_s)),
            period.time_s,
        );
        sysctl(
            "net.ipv4.tcp_keepalive_intvl",
            tcp.and_then(|t| from(t.keepalive_intvl_s)),
            period.intvl_s,
        );
        sysctl(
            "net.ipv4.tcp_keepalive_probes",
            tcp.and_then(|t| from(t.keepalive_probes)),
            period.probes,
        );
    }
    let owner = if by_sysctl { FixOwner::Pod } else { FixOwner::Application };
    Fix { current: keepalive.map(describe), ..period.fix(limit_s, limit_is, owner, changes) }
}

pub const TIME: &str = "net.ipv4.tcp_keepalive_time";
pub const INTVL: &str = "net.ipv4.tcp_keepalive_intvl";
pub const PROBES: &str = "net.ipv4.tcp_keepalive_probes";

/// The changes of the keepalive sysctls, for time, interval and probes.
pub fn keepalive_sysctls(
    context: &FixContext<'_>,
    netns: &Netns,
    (time_s, intvl_s, probes): (u64, u64, u64),
) -> Vec<Change> {
    let wanted = [(TIME, time_s), (INTVL, intvl_s), (PROBES, probes)];
    wanted.into_iter().filter_map(|(key, to)| context.sysctl(netns, key, to)).collect()
}

/// [`KEEPALIVE`] for the host's current state: the application's part, and the node's part where the
/// application's namespace is known.
pub fn keepalive_on(context: &FixContext<'_>, limit_s: Option<f64>, limit_is: &str) -> Vec<Fix> {
    let Some(limit_s) = limit_s else {
        return vec![KEEPALIVE.fix()];
    };
    let period = Period::below(limit_s);
    let wanted = (period.time_s, period.intvl_s, period.probes);
    let fix = |owner, changes| period.fix(limit_s, limit_is, owner, changes);
    let application = context.failed.application.and_then(|inum| context.view.netns(inum));
    let place = application.map(|netns| &netns.place);
    let mut fixes = vec![fix(FixOwner::Application, period.socket_options(place))];
    // The sysctls have no effect where no socket has keepalive on.
    let uses_keepalive =
        |netns: &&Netns| context.failed.keepalive.unwrap_or_else(|| has_keepalive(netns));
    if let Some(netns) = application.filter(uses_keepalive) {
        // A pod's namespace is created anew with the pod, so a value set from outside does not last.
        let owner = match netns.place.reach {
            NetnsReach::Initial | NetnsReach::Named(_) => FixOwner::Node,
            _ => FixOwner::Pod,
        };
        let sysctls = fix(owner, keepalive_sysctls(context, netns, wanted));
        let place = netns.place.describe();
        let summary = format!("{} {place}, for sockets with SO_KEEPALIVE", sysctls.summary);
        fixes.push(Fix { summary, ..sysctls });
    }
    fixes
}

fn has_keepalive(netns: &Netns) -> bool {
    let has_timer = |socket: &SocketState| {
        socket.timer.as_ref().is_some_and(|timer| timer.kind == TimerKind::Keepalive)
    };
    netns.connections.as_ref().is_some_and(|list| list.sockets.iter().any(has_timer))
}

/// A longer accept queue, where the node's setting limits it.
pub const SOMAXCONN: Remedy = Remedy {
    id: "raise_somaxconn",
    owner: FixOwner::Node,
    risk: Risk::Low,
    summary: "raise net.core.somaxconn where the sysctl, not the listener's backlog, limits the \
              accept queue",
    reason: "a queue's size is the smaller of the listen() argument and net.core.somaxconn, fixed \
             when listen() is called",
    how: "raise net.core.somaxconn in the listener's network namespace, then restart the listener",
};

/// [`SOMAXCONN`] with its values, where a listener requested at least the current value.
pub fn larger_somaxconn(context: &FixContext<'_>, netns: &Netns) -> Option<Fix> {
    /// The default since 5.4 (include/linux/socket.h).
    const ENOUGH: u64 = 4096;
    const KEY: &str = "net.core.somaxconn";
    let now = context.value(netns, KEY)?;
    // A listener's `send_queue` is its queue's limit.
    let is_bound = |list: &SocketList| {
        list.sockets.iter().any(|listener| u64::from(listener.send_queue) >= now)
    };
    if netns.queues.as_ref().is_some_and(|list| !list.truncated && !is_bound(list)) {
        return None;
    }
    let to = (now * 4).clamp(ENOUGH, 65_535);
    Some(Fix {
        summary: format!("raise net.core.somaxconn to {to} {}", netns.place.describe()),
        current: Some(now.to_string()),
        wanted: Some(to.to_string()),
        changes: vec![context.sysctl(netns, KEY, to)?],
        ..SOMAXCONN.fix()
    })
}

/// [`POOL`] with its value.
pub fn pool_below(limit_s: f64) -> Fix {
    Fix {
        summary: format!(
            "let the pool close connections idle for more than {} s",
            whole(limit_s * 0.8).max(1)
        ),
        wanted: Some(format!("{} s", whole(limit_s * 0.8).max(1))),
        ..POOL.fix()
    }
}

/// A limit above the idle time that was seen, with a margin of 15 %, seconds.
pub fn limit_above(idle_s: f64) -> u64 {
    let wanted = whole((idle_s * 1.15).ceil());
    if wanted > 60 { wanted.div_ceil(60).saturating_mul(60) } else { wanted + 1 }
}

/// The value to raise a limit to, seconds: above the idle time that it has to allow, and never below its
/// current value; above twice its current value where that idle time is unknown.
pub fn raised(now_s: f64, idle_s: Option<f64>) -> u64 {
    idle_s.map_or_else(|| limit_above(now_s * 2.0), |idle_s| limit_above(idle_s).max(whole(now_s)))
}

/// [`IPVS_TIMEOUT`] with its value.
pub fn ipvs_timeout(place: Place, now_s: f64, idle_s: Option<f64>) -> Fix {
    let to = raised(now_s, idle_s);
    let to_s = u32::try_from(to).unwrap_or(u32::MAX);
    let now = u32::try_from(whole(now_s)).ok();
    Fix {
        summary: format!("raise the IPVS TCP timeout to {to_s} s {}", place.describe()),
        current: now.map(|s| format!("{s} s")),
        wanted: Some(format!("{to_s} s")),
        changes: vec![Change::IpvsTimeout { place, timer: IpvsTimer::Tcp, from_s: now, to_s }],
        ..IPVS_TIMEOUT.fix()
    }
}

/// Wrong advice about idle limits in the article that started this project, where it applies.
pub fn article_not_fixes(evidence: &Evidence<'_>, limit_s: f64) -> Vec<NotFix> {
    let mut list = Vec::new();
    let keepalive = evidence.victim().map(|(_, _, socket)| socket.keepalive);
    if keepalive.is_some_and(|k| !k.enabled) {
        list.push((
            "net.ipv4.tcp_keepalive_* alone".into(),
            "this socket has SO_KEEPALIVE off, and the sysctls affect only sockets that have it on"
                .into(),
        ));
    }
    list.push((
        format!("net.ipv4.tcp_keepalive_time={limit_s:.0} (equal timeouts)"),
        "timers fire up to 1/8 late, so a keepalive as long as the limit comes too late".into(),
    ));
    list.push((
        "net.netfilter.nf_conntrack_max".into(),
        "a full table drops new connections; it does not reset idle ones".into(),
    ));
    list
}
