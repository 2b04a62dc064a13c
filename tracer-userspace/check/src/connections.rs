//! The connections that go through a table, and what their ends do about silence.

use std::collections::HashMap;

use rsttrace_model::{
    flow::Flow,
    host_state::{Netns, View},
    socket::{HeldSocket, SocketState, TimerKind},
    tcp_state,
};

/// Timers fire up to an eighth late and never early (kernel/time/timer.c).
const LATEST: f64 = 1.125;

/// What a socket does about silence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Probing {
    /// SO_KEEPALIVE is off.
    Off,
    Every {
        time_s: u64,
        intvl_s: u64,
        probes: u8,
    },
    /// SO_KEEPALIVE is on, and the first probe does not come before this much silence.
    NotBefore(u64),
    /// Another timer hides it, or nobody may ask.
    Unseen,
}

/// A socket.
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
            return Probing::Unseen;
        }
        match self.socket.timer {
            None => Probing::Off,
            // The timer is armed anew when it fires, not by each packet: what is left of it and the
            // silence so far are the least that the time can be.
            Some(timer) if timer.kind == TimerKind::Keepalive && self.socket.retransmits == 0 => {
                let silent_ms = self.socket.heard_ns_before().unwrap_or(0) / 1_000_000;
                Probing::NotBefore((silent_ms + u64::from(timer.left_ms)) / 1000)
            }
            Some(_) => Probing::Unseen,
        }
    }

    /// How it was told, for a person.
    pub fn keepalive(&self) -> String {
        match (self.probing(), self.socket.timer) {
            (Probing::Off, _) => "SO_KEEPALIVE off".into(),
            (Probing::Every { time_s, intvl_s, probes }, _) => {
                format!("keepalive {time_s}/{intvl_s}/{probes}")
            }
            (Probing::NotBefore(_), Some(timer)) => {
                format!("keepalive timer, {} s left", timer.left_ms / 1000)
            }
            _ => "keepalive not seen".into(),
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

/// Whether a connection outlives this much silence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// An end sends keepalives in time.
    Kept,
    /// Those that we see do not.
    Lost,
    /// Neither end tells.
    Unknown,
}

/// A connection through a table.
#[derive(Clone, Debug)]
pub struct Through<'a> {
    /// As its initiator addressed it.
    pub flow: Flow,
    /// Of this machine.
    pub ends: Vec<End<'a>>,
}

impl Through<'_> {
    pub fn fate(&self, limit_s: u64) -> Fate {
        let mut fate = Fate::Unknown;
        for end in &self.ends {
            match end.probing() {
                Probing::Every { time_s, .. } if in_time(time_s, limit_s) => return Fate::Kept,
                Probing::Every { .. } | Probing::Off => fate = Fate::Lost,
                Probing::NotBefore(least_s) if !in_time(least_s, limit_s) => fate = Fate::Lost,
                Probing::NotBefore(_) | Probing::Unseen => {}
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

/// Whether a probe after `time_s` leaves before a limit runs out, however late the timer is.
#[expect(clippy::cast_precision_loss, reason = "seconds")]
pub fn in_time(time_s: u64, limit_s: u64) -> bool {
    (time_s as f64) * LATEST < limit_s as f64
}

/// Silence after which a socket with this keepalive time has certainly sent a probe.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "seconds"
)]
pub fn latest_probe(time_s: u64) -> u64 {
    (time_s as f64 * LATEST).ceil() as u64
}

/// All connections of this machine's sockets, by their two addresses.
pub struct Ends<'a>(HashMap<Flow, Vec<End<'a>>>);

impl<'a> Ends<'a> {
    pub fn of(view: &'a View) -> Self {
        let mut ends: HashMap<Flow, Vec<End<'a>>> = HashMap::new();
        for netns in &view.namespaces {
            for socket in netns.connections.iter().flat_map(|list| &list.sockets) {
                let end = End { netns, socket, held: view.held.get(&socket.inode) };
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

    /// A client's connection, and its server's socket where a table of this host, or nothing, is between
    /// them.
    pub fn with_server(&self, view: &View, client: End<'a>) -> Through<'a> {
        let flow = client.socket.flow;
        let balanced = view
            .namespaces
            .iter()
            .flat_map(|netns| netns.ipvs_table.iter().flat_map(|table| &table.entries))
            .filter(|entry| entry.virtual_flow == flow)
            .map(|entry| entry.real_flow().reversed());
        let translated = view
            .namespaces
            .iter()
            .flat_map(|netns| &netns.tracked)
            .filter(|entry| entry.original == flow)
            .map(|entry| entry.reply);
        let server =
            balanced.chain(translated).chain([flow.reversed()]).find_map(|it| self.one(it));
        Through { flow, ends: [client].into_iter().chain(server).collect() }
    }

    /// The socket with these addresses, unless several namespaces have one.
    fn one(&self, flow: Flow) -> Option<End<'a>> {
        match self.0.get(&flow)?.as_slice() {
            [end] => Some(*end),
            _ => None,
        }
    }

    /// Connections through the IPVS services of a namespace: those in its table, and those of this
    /// machine to a service's address.
    pub fn balanced(&self, netns: &Netns) -> Vec<Through<'a>> {
        let mut list: Vec<Through<'a>> = Vec::new();
        for entry in netns.ipvs_table.iter().flat_map(|table| &table.entries) {
            if entry.state != "ESTABLISHED" {
                continue;
            }
            let flow = entry.virtual_flow;
            let at_server = entry.real_flow().reversed();
            let ends = [flow, at_server].into_iter().filter_map(|flow| self.one(flow)).collect();
            list.push(Through { flow, ends });
        }
        list
    }

    /// Connections that the conntrack of a namespace translates, and no IPVS service of it.
    pub fn translated(&self, netns: &Netns) -> Vec<Through<'a>> {
        const ESTABLISHED: u8 = 3;
        let services = netns.services.as_deref().unwrap_or_default();
        let balanced = |flow: Flow| {
            services.iter().any(|it| it.ip == flow.dst.ip() && it.port == flow.dst.port())
        };
        let translated = netns.tracked.iter().filter(|entry| {
            entry.state == Some(ESTABLISHED)
                && entry.reply != entry.original.reversed()
                && !balanced(entry.original)
        });
        translated
            .map(|entry| {
                let flows = [entry.original, entry.reply];
                let ends = flows.into_iter().filter_map(|flow| self.one(flow)).collect();
                Through { flow: entry.original, ends }
            })
            .collect()
    }
}
