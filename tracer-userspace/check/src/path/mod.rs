//! One path from end to end: every idle limit on the path, and whether its sockets send keepalives before
//! the shortest limit.

use std::net::{IpAddr, SocketAddr};

use rsttrace_core::fix::FixOwner;
use rsttrace_model::{
    flow::Flow,
    host_state::{HostState, Netns, is_initial, is_left_behind},
    ipvs::IpvsService,
    netns::{NetnsReach, Place},
};

use super::{
    connections::{End, Ends, Fate, Probing, TableConnection, has_entry, latest_probe},
    finding::{CheckFinding, Rank, counted, service_name, some_do},
    origin, remedies,
};

mod spec;

pub use spec::{Assumption, Endpoint, Spec};

/// Something on the path that limits the idle time of a connection or keeps the connection alive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    pub what: String,
    /// For the screen: "900 s", "no keepalive".
    pub limit: String,
    /// Idle limit, seconds. `None` for keepalives, and for a table that may not be on the path.
    pub idle_s: Option<u64>,
    pub owner: String,
    pub source: String,
    /// Id of the cause that an incident would report if this limit expires first.
    pub cause: Option<&'static str>,
}

impl Hop {
    /// A server closes an idle connection even if keepalives are sent.
    fn closes_despite_keepalive(&self) -> bool {
        self.cause == Some("idle_close_race")
    }
}

/// A path with its limits and its finding.
#[derive(Clone, Debug)]
pub struct Path {
    pub name: String,
    pub hops: Vec<Hop>,
    /// Index of the hop with the shortest limit.
    pub least: Option<usize>,
    pub verdict: Option<CheckFinding>,
    /// Inode numbers of the namespaces on the path.
    pub netns: Vec<u32>,
}

impl Path {
    /// The verdict of the path, followed by the findings in the namespaces on the path. A finding of the same
    /// rank about the same connections is left out unless its limit is shorter, because its keepalive times
    /// would contradict those of the verdict. If its cause is the same, its other fixes are added to the
    /// verdict.
    #[must_use]
    pub fn combined_with(&self, mut findings: Vec<CheckFinding>) -> Vec<CheckFinding> {
        findings.retain(|finding| self.netns.contains(&finding.place.netns));
        let Some(mut verdict) = self.verdict.clone() else {
            return findings;
        };
        let concerns = |finding: &CheckFinding| {
            let is_of_path = |it: &String| verdict.connections.contains(it);
            !finding.connections.is_empty()
                && finding.connections.iter().all(is_of_path)
                && finding.rank == verdict.rank
                && finding.after_s >= verdict.after_s
        };
        let (covered, mut rest): (Vec<_>, Vec<_>) = findings.into_iter().partition(concerns);
        for finding in covered.into_iter().filter(|it| it.cause == verdict.cause) {
            let has = |id: &str| verdict.fixes.iter().any(|fix| fix.id == id);
            let more: Vec<_> = finding.fixes.into_iter().filter(|fix| !has(fix.id)).collect();
            verdict.fixes.extend(more);
        }
        rest.insert(0, verdict);
        rest
    }
}

/// Follows a path through this host.
///
/// # Errors
/// When an end is not on this host; the message names that end.
pub fn follow(state: &HostState, spec: &Spec, assumed: &[Assumption]) -> Result<Path, String> {
    let ends = Ends::of(state);
    let src = netns_of(state, &spec.src);
    let to = addresses_of(state, &spec.dst)?;
    if src.is_none() && !matches!(spec.src, Endpoint::Address(_)) {
        return Err(not_on_host(&spec.src));
    }
    let leaves = |flow: Flow| {
        let from = match &spec.src {
            Endpoint::Address(address) => {
                flow.src.ip() == address.ip() && [0, flow.src.port()].contains(&address.port())
            }
            _ => true,
        };
        let arrives =
            |to: &SocketAddr| flow.dst.ip() == to.ip() && [0, flow.dst.port()].contains(&to.port());
        from && to.iter().any(arrives)
    };
    let of_pid = |end: &End<'_>| match spec.src {
        Endpoint::Pid(pid) => end.held.is_some_and(|held| held.owner.pid == pid),
        _ => true,
    };
    let clients: Vec<End<'_>> = ends
        .all()
        .filter(|end| src.is_none_or(|src| src.place == end.netns.place))
        .filter(|end| leaves(end.socket.flow) && of_pid(end))
        .collect();
    let mut hops = Vec::new();
    hops.push(sockets(&clients));
    hops.extend(src.map(|src| keepalive(state, src)));
    let mut on_path: Vec<&Netns> = src.into_iter().collect();
    for netns in &state.namespaces {
        let balanced = balanced(state, netns, &to, &clients);
        // Connections through IPVS are not tracked unless net.ipv4.vs.conntrack is 1.
        let ipvs_tracks = balanced.as_ref().is_some_and(|it| it.is_certain)
            && netns.values.is_on("net.ipv4.vs.conntrack") == Some(true);
        let tracks = netns.translates == Some(true) || ipvs_tracks;
        hops.extend(balanced.as_ref().and_then(|service| ipvs(state, netns, service)));
        if tracks {
            let has_entry =
                |end: &End<'_>| netns.tracked.iter().any(|entry| entry.original == end.socket.flow);
            let is_certain = ipvs_tracks || clients.iter().any(has_entry);
            hops.extend(conntrack(state, netns, is_certain));
        }
        let is_new = on_path.iter().all(|it| it.place != netns.place);
        if (balanced.is_some() || tracks) && is_new {
            on_path.push(netns);
        }
    }
    hops.extend(assumed.iter().map(assumption));
    let least =
        (0..hops.len()).filter(|at| hops[*at].idle_s.is_some()).min_by_key(|at| hops[*at].idle_s);
    let name = format!("{} → {}", spec.src, spec.dst);
    let judge = |hop: &Hop| verdict(state, &name, hop, &clients, src, &ends);
    // Where keepalives refresh every table entry, the server's own idle timeout still closes the
    // connection.
    let policy =
        hops.iter().filter(|hop| hop.closes_despite_keepalive()).min_by_key(|hop| hop.idle_s);
    let verdict = least.map(|at| judge(&hops[at])).map(|first| match policy {
        Some(policy) if first.rank == Rank::Info => judge(policy),
        _ => first,
    });
    let netns = on_path.iter().map(|it| it.place.netns).collect();
    Ok(Path { name, hops, least, verdict, netns })
}

fn not_on_host(end: &Endpoint) -> String {
    format!("no network namespace, process or pod `{end}` on this host")
}

/// The network namespace of an end, if it is on this host.
fn netns_of<'a>(state: &'a HostState, end: &Endpoint) -> Option<&'a Netns> {
    let by_owner = |is: &dyn Fn(&rsttrace_model::owner::Owner) -> bool| {
        let holds = |netns: &&Netns| {
            let sockets = netns.connections.iter().flat_map(|list| &list.sockets);
            sockets.filter_map(|it| state.held.get(&it.inode)).any(|held| is(&held.owner))
        };
        state.namespaces.iter().find(holds)
    };
    match end {
        Endpoint::Address(address) => {
            let has = |netns: &&Netns| {
                netns
                    .addresses
                    .as_ref()
                    .is_some_and(|all| all.iter().any(|it| it.ip == address.ip()))
            };
            // Every namespace has the loopback addresses.
            let mut having = state.namespaces.iter().filter(has);
            having.next().filter(|_| having.next().is_none())
        }
        Endpoint::Pid(pid) => by_owner(&|owner| owner.pid == *pid).or_else(|| {
            state.namespaces.iter().find(|it| it.place.reach == NetnsReach::Process(*pid))
        }),
        Endpoint::Name(name) => {
            state.namespaces.iter().find(|netns| netns.place.is_called(name)).or_else(|| {
                by_owner(&|owner| {
                    owner.pod.as_ref().is_some_and(|pod| {
                        let (of, short) = (pod.namespace.as_deref(), pod.name.as_deref());
                        short == Some(name)
                            || name.split_once('/').is_some_and(|(namespace, pod)| {
                                of == Some(namespace) && short == Some(pod)
                            })
                    })
                })
            })
        }
    }
}

/// The addresses that clients of the destination connect to.
fn addresses_of(state: &HostState, end: &Endpoint) -> Result<Vec<SocketAddr>, String> {
    if let Endpoint::Address(address) = end {
        return Ok(vec![*address]);
    }
    let netns = netns_of(state, end).ok_or_else(|| not_on_host(end))?;
    let addresses = netns.addresses.iter().flatten().map(|it| it.ip);
    Ok(addresses.filter(|ip| !ip.is_loopback()).map(|ip| SocketAddr::new(ip, 0)).collect())
}

/// The IPVS services at these addresses.
fn services<'a>(netns: &'a Netns, to: &'a [SocketAddr]) -> impl Iterator<Item = &'a IpvsService> {
    let is =
        |ip: IpAddr, port: u16| to.iter().any(|to| to.ip() == ip && [0, port].contains(&to.port()));
    netns.services.iter().flatten().filter(move |service| is(service.ip, service.port))
}

/// An IPVS service, and whether the connections of the path go through it.
struct Balanced {
    service: String,
    is_certain: bool,
}

/// The IPVS service of the path. An entry of an open connection decides, because services stay after kube-proxy
/// leaves its ipvs mode, and entries stay after their service is deleted.
fn balanced(
    state: &HostState,
    netns: &Netns,
    to: &[SocketAddr],
    clients: &[End<'_>],
) -> Option<Balanced> {
    let entry = clients.iter().find(|end| has_entry(netns, end.socket.flow));
    let service = services(netns, to).next();
    let is_left = |it: &IpvsService| is_left_behind(state, netns, it);
    let name = service.map(service_name).or_else(|| Some(entry?.socket.flow.dst.to_string()))?;
    let is_certain = entry.is_some() || service.is_some_and(|it| !is_left(it));
    Some(Balanced { service: name, is_certain })
}

fn sockets(clients: &[End<'_>]) -> Hop {
    let hop = |limit: String, source: String| Hop {
        what: "client sockets".into(),
        limit,
        idle_s: None,
        owner: FixOwner::Application.id().into(),
        source,
        cause: None,
    };
    if clients.is_empty() {
        return hop("unknown".into(), "no connection of this path is open".into());
    }
    let read = clients.iter().filter(|end| end.held.is_some_and(|held| held.options.is_some()));
    let source = format!("options of {} of {} sockets read", read.count(), clients.len());
    let off = clients.iter().filter(|end| end.probing() == Probing::Off).count();
    match (off, clients.first()) {
        (0, Some(end)) => hop(end.keepalive(), source),
        (off, _) if off == clients.len() => hop("no keepalive".into(), source),
        (off, _) => hop(format!("{off} without keepalive"), source),
    }
}

fn keepalive(state: &HostState, src: &Netns) -> Hop {
    const KEY: &str = "net.ipv4.tcp_keepalive_time";
    Hop {
        what: format!("keepalive {}", src.place.describe()),
        limit: src.values.number(KEY).map_or("unknown".into(), |time| format!("{time} s")),
        idle_s: None,
        owner: if is_initial(src) { FixOwner::Node } else { FixOwner::Pod }.id().into(),
        source: origin::of(state, src, KEY),
        cause: None,
    }
}

fn ipvs(state: &HostState, netns: &Netns, to: &Balanced) -> Option<Hop> {
    let limit = netns.values.number("ipvs.tcp")?;
    let Balanced { service, is_certain } = to;
    let condition = if *is_certain { "" } else { " (left behind; no connection has an entry)" };
    Some(Hop {
        what: format!("IPVS {service} {}{condition}", netns.place.describe()),
        limit: format!("{limit} s"),
        idle_s: is_certain.then_some(limit),
        owner: origin::owner(state, netns, "ipvs.tcp").id().into(),
        source: origin::of(state, netns, "ipvs.tcp"),
        cause: Some("ipvs_idle_expired"),
    })
}

fn conntrack(state: &HostState, netns: &Netns, is_certain: bool) -> Option<Hop> {
    const KEY: &str = "net.netfilter.nf_conntrack_tcp_timeout_established";
    let limit = netns.values.number(KEY)?;
    let condition = if is_certain { "" } else { " (if on the path)" };
    Some(Hop {
        what: format!("conntrack {}{condition}", netns.place.describe()),
        limit: format!("{limit} s"),
        // A table that may not be on the path does not count as the shortest limit.
        idle_s: is_certain.then_some(limit),
        owner: origin::owner(state, netns, KEY).id().into(),
        source: origin::of(state, netns, KEY),
        cause: Some("conntrack_idle_expired"),
    })
}

fn assumption(assumed: &Assumption) -> Hop {
    let is_server = assumed.name.contains("server");
    Hop {
        what: assumed.name.clone(),
        limit: format!("{} s", assumed.seconds),
        idle_s: Some(assumed.seconds),
        owner: if is_server { FixOwner::Application } else { FixOwner::Cloud }.id().into(),
        source: "given with --assume".into(),
        cause: Some(if is_server { "idle_close_race" } else { "middlebox_idle_timeout" }),
    }
}

fn verdict(
    state: &HostState,
    name: &str,
    least: &Hop,
    clients: &[End<'_>],
    src: Option<&Netns>,
    ends: &Ends<'_>,
) -> CheckFinding {
    let limit_s = least.idle_s.unwrap_or_default();
    let through: Vec<TableConnection<'_>> =
        clients.iter().map(|end| ends.with_server(state, *end)).collect();
    let fates: Vec<Fate> = through.iter().map(|it| it.fate(limit_s)).collect();
    let count = |fate| fates.iter().filter(|it| **it == fate).count();
    let (lost, all) = (count(Fate::Lost), clients.len());
    let first = format!("idle connections expire after {limit_s} s in {}", least.what);
    let despite_keepalive = least.closes_despite_keepalive();
    let (rank, reason) = match (lost, all) {
        (_, 0) => (
            Rank::Warn,
            format!("{name}: {first}; no connection is open whose keepalive could be checked"),
        ),
        _ if despite_keepalive => (
            Rank::Warn,
            format!(
                "{name}: {} closes a connection after {limit_s} s idle, even if keepalives are sent",
                least.what
            ),
        ),
        (0, _) if count(Fate::Unknown) > 0 => (
            Rank::Warn,
            format!(
                "{name}: {first}; the keepalive of {} is unknown",
                counted(count(Fate::Unknown), "connection")
            ),
        ),
        (0, _) => (Rank::Info, format!("{name}: keepalives are sent before the limit; {first}")),
        (lost, all) => (
            Rank::Break,
            format!(
                "{name}: {first}, and {} no keepalive before then",
                some_do(lost, all, "connection", ["sends", "send"])
            ),
        ),
    };
    let unknown = Place { netns: 0, reach: NetnsReach::Unknown };
    let place = src.map_or(&unknown, |src| &src.place);
    let cause = least.cause.unwrap_or("middlebox_idle_timeout");
    let default = 7200;
    let mut finding = CheckFinding::new("path", rank, place, reason)
        .cause(cause)
        .formula(format!(
            "keepalive_time × 1.125 < shortest limit = {limit_s} (by default {default} × 1.125 = {}); recommended: {}",
            latest_probe(default),
            limit_s / 3
        ))
        .owner(FixOwner::Application)
        .source(least.source.clone())
        .connections(
            through.iter().zip(&fates).filter(|(_, fate)| **fate == Fate::Lost).map(|(it, _)| it.describe()),
        );
    if rank > Rank::Info {
        finding = finding
            .after(limit_s)
            .fix(
                (!despite_keepalive)
                    .then(|| remedies::keepalive_below(limit_s, "every timer on the path")),
            )
            .fix(remedies::documented(cause, "pool_idle_below_limit"));
    }
    finding
}
