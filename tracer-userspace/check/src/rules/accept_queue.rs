//! Accept queues: their limits, how full they are, and how many handshakes were dropped.

use rsttrace_core::fix::{Change, Fix, FixOwner};
use rsttrace_model::{settings::Setting, socket::SocketState};

use super::{Netns, Rule, RuleInput};
use crate::{
    finding::{CheckFinding, Rank, counted, some_of},
    origin, remedies,
};

pub const RULE: Rule = Rule {
    id: "accept_queue",
    causes: &[CAUSE],
    doc: "A listener queues min(backlog, somaxconn) + 1 connections until the application accepts them; the \
          next handshake is dropped, or reset with tcp_abort_on_overflow=1 (net/ipv4/tcp_ipv4.c, \
          tcp_v4_syn_recv_sock). ListenOverflows counts them.",
    judge,
};

const CAUSE: &str = "listen_overflow";
const SOMAXCONN: &str = "net.core.somaxconn";
/// The backlog that most programs pass to `listen()`.
const USUAL_BACKLOG: u64 = 128;
/// A smaller backlog has less room than the connections that one client opens at the same time.
const TINY_BACKLOG: u32 = 5;

fn judge(input: &RuleInput<'_>) -> Vec<CheckFinding> {
    let mut findings = Vec::new();
    for netns in input.namespaces() {
        let now: Vec<_> = full(netns).into_iter().chain(small(input, netns)).collect();
        findings.extend(dropped(netns, now.is_empty()));
        findings.extend(now);
        findings.extend(aborts(input, netns));
    }
    findings
}

fn queues(netns: &Netns) -> impl Iterator<Item = &SocketState> {
    netns.queues.iter().flat_map(|list| &list.sockets)
}

fn name(listener: &SocketState) -> String {
    format!("{} ({} of {})", listener.flow.src, listener.receive_queue, listener.send_queue)
}

/// Queues that are full or nearly full now.
fn full(netns: &Netns) -> Option<CheckFinding> {
    let near = |listener: &&SocketState| {
        listener.receive_queue > 0
            && u64::from(listener.receive_queue) * 10 >= u64::from(listener.send_queue) * 7
    };
    let near: Vec<_> = queues(netns).filter(near).collect();
    if near.is_empty() {
        return None;
    }
    let over = near.iter().any(|listener| listener.receive_queue > listener.send_queue);
    let names: Vec<_> = near.iter().map(|listener| name(listener)).collect();
    let reason = format!(
        "the accept queue of {} {} is {}: {}",
        counted(names.len(), "listener"),
        netns.place.describe(),
        if over { "full, and handshakes are dropped" } else { "nearly full" },
        some_of(&names)
    );
    let finding = CheckFinding::new(
        RULE.id,
        if over { Rank::Break } else { Rank::Warn },
        &netns.place,
        reason,
    )
    .cause(CAUSE)
    .formula("waiting < 0.7 × min(backlog, somaxconn)")
    .owner(FixOwner::Application)
    .source("the listening sockets (ss -ltn)")
    .fix(larger(netns));
    Some(if over { finding.after(0) } else { finding })
}

/// Handshakes dropped so far. The counter keeps its value after the queues were made longer.
fn dropped(netns: &Netns, is_past: bool) -> Option<CheckFinding> {
    let count = netns.tcp.listen_overflows.filter(|count| *count > 0)?;
    let reason = format!(
        "{} dropped because an accept queue was full {}{}",
        match count {
            1 => "1 handshake was".into(),
            count => format!("{count} handshakes were"),
        },
        netns.place.describe(),
        if is_past { "; no queue is short or nearly full now" } else { "" }
    );
    let rank = if is_past { Rank::Info } else { Rank::Warn };
    Some(
        CheckFinding::new(RULE.id, rank, &netns.place, reason)
            .cause(CAUSE)
            .formula(format!(
                "ListenOverflows = 0; now {count}, counted since the namespace was created"
            ))
            .owner(FixOwner::Application)
            .source("/proc/net/netstat (nstat -az TcpExtListenOverflows)")
            .fix(larger(netns)),
    )
}

/// Queues that a burst of a few connections would fill.
fn small(input: &RuleInput<'_>, netns: &Netns) -> Option<CheckFinding> {
    let somaxconn = netns.number(SOMAXCONN);
    let reachable = |listener: &&SocketState| !listener.flow.src.ip().is_loopback();
    let (rank, reason, source) = if let Some(limit) =
        somaxconn.filter(|limit| *limit < USUAL_BACKLOG)
        && queues(netns).any(|listener| reachable(&listener))
    {
        let place = netns.place.describe();
        (
            Rank::Warn,
            format!(
                "no listener {place} can queue more than {} before accept() (somaxconn={limit})",
                counted(
                    usize::try_from(limit).unwrap_or(usize::MAX).saturating_add(1),
                    "connection"
                )
            ),
            origin::of(input.state, netns, SOMAXCONN),
        )
    } else {
        let tiny: Vec<_> = queues(netns)
            .filter(reachable)
            .filter(|listener| listener.send_queue < TINY_BACKLOG)
            .map(|listener| listener.flow.src.to_string())
            .collect();
        if tiny.is_empty() {
            return None;
        }
        (
            Rank::Warn,
            format!(
                "{} {} at most {TINY_BACKLOG} connections before accept(): {}",
                counted(tiny.len(), "listener"),
                format_args!(
                    "{} {}",
                    netns.place.describe(),
                    if tiny.len() == 1 { "queues" } else { "queue" }
                ),
                some_of(&tiny)
            ),
            "the backlog that the application passes to listen()".into(),
        )
    };
    Some(
        CheckFinding::new(RULE.id, rank, &netns.place, reason)
            .cause(CAUSE)
            .formula("min(backlog, somaxconn) + 1 > connections that arrive before accept()")
            .owner(FixOwner::Application)
            .source(source)
            .fix(larger(netns)),
    )
}

/// A full queue resets the connection instead of waiting for the client's retry.
fn aborts(input: &RuleInput<'_>, netns: &Netns) -> Option<CheckFinding> {
    const KEY: &str = "net.ipv4.tcp_abort_on_overflow";
    netns.values.is_on(KEY).filter(|on| *on)?;
    let reason = format!(
        "a full accept queue {} resets the connection instead of waiting for the client's retry \
         (tcp_abort_on_overflow=1)",
        netns.place.describe()
    );
    Some(
        CheckFinding::new(RULE.id, Rank::Warn, &netns.place, reason)
            .cause(CAUSE)
            .formula("tcp_abort_on_overflow = 0; now 1")
            .owner(FixOwner::Node)
            .source(origin::of(input.state, netns, KEY))
            .fix(remedies::by_setting(CAUSE, "larger_backlog", netns, KEY, 0)),
    )
}

/// The fix `larger_backlog` with the values of a namespace.
fn larger(netns: &Netns) -> Option<Fix> {
    let now = netns.number(SOMAXCONN);
    let wanted = now.unwrap_or(0).max(4096);
    let raise = now.filter(|now| *now < wanted).and_then(|from| {
        let key = Setting::find(SOMAXCONN)?.key;
        Some(Change::Sysctl { place: netns.place.clone(), key, from: Some(from), to: wanted })
    });
    let listen = Change::listen(netns.place.clone(), wanted);
    Some(Fix {
        summary: format!("listen with a backlog of {wanted} and accept faster"),
        current: now.map(|now| now.to_string()),
        wanted: Some(wanted.to_string()),
        changes: [listen].into_iter().chain(raise).collect(),
        ..remedies::documented(CAUSE, "larger_backlog")?
    })
}
