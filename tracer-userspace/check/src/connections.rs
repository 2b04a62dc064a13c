//! The connections that go through a conntrack or IPVS table, and the keepalives of their ends.

use std::collections::HashMap;

use rsttrace_model::{
    flow::Flow,
    host_state::{HostState, Netns, is_left_behind},
    ipvs::IpvsService,
    socket::{HeldSocket, SocketState, TimerKind},
    tcp_state,
};

/// Timers fire up to an eighth late and never early (kernel/time/timer.c).
const LATEST: f64 = 1.125;

/// When a socket sends keepalive probes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Probing {
    /// SO_KEEPALIVE is off.
    Off,
    Every {
        time_s: u64,
        intvl_s: u64,
        probes: u8,
    },
    /// SO_KEEPALIVE is on; the first probe is sent after at least this idle time, seconds.
    NotBefore(u64),
    /// The socket's options could not be read, and its timer does not show whether SO_KEEPALIVE is on.
    Unknown,
}

/// A socket of this machine.
#[derive(Clone, Copy, Debug)]
pub struct End<'a> {
    pub netns: &'a Netns,
    pub socket: &'a SocketState,
    pub held: Option<&'a HeldSocket>,
}

impl End<'_> {
    pub fn probing(&self) -> Probing {
        if let Some(options) = self.held.and_then(|held| held.options) {
            let keepalive = options.keepalive;
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "seconds")]
            let whole = |seconds: f64| seconds as u64;
            return match keepalive.enabled {
                false => Probing::Off,
                true => Probing::Every {
                    time_s: whole(keepalive.time_s),
                    intvl_s: whole(keepalive.intvl_s),
                    probes: keepalive.probes,
                },
            };
        }
        if self.socket.state != tcp_state::ESTABLISHED {
            return Probing::Unknown;
        }
        match self.socket.timer {
            None => Probing::Off,
            // The keepalive timer is re-armed when it fires, not by each packet: the keepalive time is
            // at least the idle time so far plus the time left.
            Some(timer) if timer.kind == TimerKind::Keepalive && self.socket.retransmits == 0 => {
                let idle_ms = self.socket.heard_ns_before().unwrap_or(0) / 1_000_000;
                Probing::NotBefore((idle_ms + u64::from(timer.left_ms)) / 1000)
            }
            Some(_) => Probing::Unknown,
        }
    }

    /// The keepalive in words.
    pub fn keepalive(&self) -> String {
        match (self.probing(), self.socket.timer) {
            (Probing::Off, _) => "SO_KEEPALIVE off".into(),
            (Probing::Every { time_s, intvl_s, probes }, _) => {
                format!("keepalive {time_s}/{intvl_s}/{probes}")
            }
            (Probing::NotBefore(_), Some(timer)) => {
                format!("keepalive timer, {} s left", timer.left_ms / 1000)
            }
            _ => "keepalive unknown".into(),
        }
    }

    fn name(&self) -> Option<String> {
        let owner = &self.held?.owner;
        let pod = owner
            .pod
            .as_ref()
            .and_then(|pod| Some(format!("{}/{} ", pod.namespace.as_ref()?, pod.name.as_ref()?)));
        Some(format!("{}{} (pid {})", pod.unwrap_or_default(), owner.comm, owner.pid))
    }
}

/// Whether a connection survives an idle limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// An end sends keepalives before the limit.
    Kept,
    /// An end sends no keepalive before the limit, and the other end is not known to send one.
    Lost,
    /// It is not known whether an end sends keepalives before the limit.
    Unknown,
}

/// A connection that goes through a table.
#[derive(Clone, Debug)]
pub struct TableConnection<'a> {
    /// Addresses as the initiator uses them.
    pub flow: Flow,
    /// Its ends on this machine.
    pub ends: Vec<End<'a>>,
}

impl TableConnection<'_> {
    pub fn fate(&self, limit_s: u64) -> Fate {
        let mut fate = Fate::Unknown;
        for end in &self.ends {
            match end.probing() {
                Probing::Every { time_s, .. } if in_time(time_s, limit_s) => return Fate::Kept,
                Probing::Every { .. } | Probing::Off => fate = Fate::Lost,
                Probing::NotBefore(least_s) if !in_time(least_s, limit_s) => fate = Fate::Lost,
                Probing::NotBefore(_) | Probing::Unknown => {}
            }
        }
        fate
    }

    /// "node (pid 4121) 10.0.0.1:4 → 10.96.0.1:80: SO_KEEPALIVE off"
    pub fn describe(&self) -> String {
        let Flow { src, dst } = self.flow;
        let Some(end) = self.ends.first() else {
            return format!("{src} → {dst}");
        };
        let name = end.name().map(|name| format!("{name} ")).unwrap_or_default();
        format!("{name}{src} → {dst}: {}", end.keepalive())
    }
}

/// Whether a probe after `time_s` is sent before a limit expires, even if its timer fires as late as it can.
#[expect(clippy::cast_precision_loss, reason = "seconds")]
pub fn in_time(time_s: u64, limit_s: u64) -> bool {
    (time_s as f64) * LATEST < limit_s as f64
}

/// Idle time, seconds, after which a socket with this keepalive time has certainly sent a probe.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "seconds"
)]
pub fn latest_probe(time_s: u64) -> u64 {
    (time_s as f64 * LATEST).ceil() as u64
}

/// Whether the IPVS table of a namespace has an entry of this connection.
pub fn has_entry(netns: &Netns, flow: Flow) -> bool {
    let entries = netns.ipvs_table.iter().flat_map(|table| &table.entries);
    entries.into_iter().any(|entry| entry.virtual_flow == flow)
}

/// All sockets of this machine, by their two addresses.
pub struct Ends<'a>(HashMap<Flow, Vec<End<'a>>>);

impl<'a> Ends<'a> {
    pub fn of(state: &'a HostState) -> Self {
        let mut ends: HashMap<Flow, Vec<End<'a>>> = HashMap::new();
        for netns in &state.namespaces {
            for socket in netns.connections.iter().flat_map(|list| &list.sockets) {
                let end = End { netns, socket, held: state.held.get(&socket.inode) };
                ends.entry(socket.flow).or_default().push(end);
            }
        }
        Self(ends)
    }

    pub fn all(&self) -> impl Iterator<Item = End<'a>> {
        let mut all: Vec<End<'a>> = self.0.values().flatten().copied().collect();
        all.sort_unstable_by_key(|end| end.socket.flow);
        all.into_iter()
    }

    /// A client's connection. The socket of its server is included if it is on this machine, reached directly
    /// or through a table of this host.
    pub fn with_server(&self, state: &HostState, client: End<'a>) -> TableConnection<'a> {
        let flow = client.socket.flow;
        let balanced = state
            .namespaces
            .iter()
            .flat_map(|netns| netns.ipvs_table.iter().flat_map(|table| &table.entries))
            .filter(|entry| entry.virtual_flow == flow)
            .map(|entry| entry.real_flow().reversed());
        let translated = state
            .namespaces
            .iter()
            .flat_map(|netns| &netns.tracked)
            .filter(|entry| entry.original == flow)
            .map(|entry| entry.reply);
        let server =
            balanced.chain(translated).chain([flow.reversed()]).find_map(|it| self.unique(it));
        TableConnection { flow, ends: [client].into_iter().chain(server).collect() }
    }

    /// The socket with these addresses, unless several namespaces have one.
    fn unique(&self, flow: Flow) -> Option<End<'a>> {
        match self.0.get(&flow)?.as_slice() {
            [end] => Some(*end),
            _ => None,
        }
    }

    /// The ESTABLISHED connections in the IPVS table of a namespace.
    pub fn balanced(&self, netns: &Netns) -> Vec<TableConnection<'a>> {
        let mut list: Vec<TableConnection<'a>> = Vec::new();
        for entry in netns.ipvs_table.iter().flat_map(|table| &table.entries) {
            if entry.state != "ESTABLISHED" {
                continue;
            }
            let flow = entry.virtual_flow;
            let at_server = entry.real_flow().reversed();
            let ends = [flow, at_server].into_iter().filter_map(|flow| self.unique(flow)).collect();
            list.push(TableConnection { flow, ends });
        }
        list
    }

    /// The ESTABLISHED connections that conntrack translates in a namespace, without those that IPVS forwards.
    pub fn translated(&self, state: &HostState, netns: &Netns) -> Vec<TableConnection<'a>> {
        const ESTABLISHED: u8 = 3;
        let services = netns.services.as_deref().unwrap_or_default();
        let balanced = |flow: Flow| {
            // Services of kube-proxy's former mode have only the connections that have an entry.
            let serves = |it: &&IpvsService| it.ip == flow.dst.ip() && it.port == flow.dst.port();
            services.iter().filter(serves).any(|it| !is_left_behind(state, netns, it))
                || has_entry(netns, flow)
        };
        let translated = netns.tracked.iter().filter(|entry| {
            entry.state == Some(ESTABLISHED)
                && entry.reply != entry.original.reversed()
                && !balanced(entry.original)
        });
        translated
            .map(|entry| {
                let flows = [entry.original, entry.reply];
                let ends = flows.into_iter().filter_map(|flow| self.unique(flow)).collect();
                TableConnection { flow: entry.original, ends }
            })
            .collect()
    }
}
