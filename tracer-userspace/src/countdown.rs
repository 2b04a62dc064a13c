//! What tables and timers know of one connection, how long each will remember it, and what happens first.
//! Pure: readings in, sentences out.

use std::net::SocketAddr;

use crate::{
    event::{Flow, Nanos, tcp_state},
    fix::Place,
    host::{ConntrackEntry, IpvsEntry, Owner, SocketState, TimerKind},
};

mod changes;

pub use changes::changes;

/// Something found in a network namespace.
#[derive(Clone, Debug, PartialEq)]
pub struct In<T> {
    pub place: Place,
    pub it: T,
}

/// An IPVS entry, which can only be read with its whole table: every few seconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Balanced {
    pub entry: IpvsEntry,
    pub read: Nanos,
    /// `ipvsadm --set`, of established connections, seconds.
    pub limit_s: Option<u32>,
}

/// One end of the connection on this host.
#[derive(Clone, Debug, PartialEq)]
pub struct End {
    pub socket: SocketState,
    pub owner: Option<Owner>,
}

/// One reading of everything.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sight {
    pub at: Nanos,
    pub ends: Vec<In<End>>,
    pub ipvs: Vec<In<Balanced>>,
    pub conntrack: Vec<In<ConntrackEntry>>,
    /// Its addresses that are IPVS services, where no table has an entry of it.
    pub services: Vec<In<SocketAddr>>,
    /// An entry that was there, without which open sockets are cut off.
    pub lost: Option<String>,
    /// What could not be looked at, and why.
    pub unseen: Vec<String>,
}

/// What will happen, as far as it can be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outlook {
    pub level: Level,
    pub text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Nothing forgets it.
    Fine,
    /// It depends on what is not seen from here.
    Open,
    /// It breaks unless somebody sends something.
    Breaks,
    /// It has ended.
    Over,
}

impl Level {
    /// The word in the output.
    pub fn id(self) -> &'static str {
        match self {
            Self::Fine => "fine",
            Self::Open => "open",
            Self::Breaks => "breaks",
            Self::Over => "over",
        }
    }
}

/// A timer of the kernel's wheel may be late by an eighth (kernel/time/timer.c), parts of a hundred.
const LATE: u64 = 13;

const MS: Nanos = 1_000_000;
const SECOND: Nanos = 1_000_000_000;

impl SocketState {
    /// Whether it may still carry data.
    fn lives(&self) -> bool {
        !matches!(self.state, tcp_state::TIME_WAIT | tcp_state::CLOSE | tcp_state::LISTEN)
    }

    /// A keepalive timer that stands for keepalives: elsewhere it ends a state.
    fn next_keepalive_ms(&self) -> Option<u64> {
        let open = matches!(self.state, tcp_state::ESTABLISHED | tcp_state::CLOSE_WAIT);
        let timer = self.timer.filter(|timer| open && timer.kind == TimerKind::Keepalive)?;
        Some(timer.left_ms.into())
    }
}

impl ConntrackEntry {
    /// It rewrites addresses.
    pub fn translates(&self) -> bool {
        self.reply != self.original.reversed()
    }
}

impl Sight {
    /// Nothing of the connection is left here.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty() && self.ipvs.is_empty() && self.conntrack.is_empty()
    }

    /// Remembers what has been lost since the reading before.
    pub fn after(&mut self, before: &Self) {
        let lost_ipvs = (!before.ipvs.is_empty() && self.ipvs.is_empty()).then(|| {
            before.ipvs.first().map(|it| format!("the IPVS entry {}", it.place.describe()))
        });
        let translated = |sight: &Self| {
            let mut entries = sight.conntrack.iter();
            entries.find(|it| sight.depends_on(it)).map(|it| it.place.describe())
        };
        let lost_nat = match (translated(before), translated(self)) {
            (Some(place), None) => Some(format!("the conntrack entry {place}")),
            _ => None,
        };
        let back = (!self.ipvs.is_empty()) || translated(self).is_some();
        let carried = before.lost.clone().filter(|_| !back);
        self.lost = lost_ipvs.flatten().or(lost_nat).or(carried);
    }

    fn living(&self) -> impl Iterator<Item = &SocketState> {
        self.ends.iter().map(|end| &end.it.socket).filter(|socket| socket.lives())
    }

    /// When a packet was last sent or received here, as far as sockets tell.
    fn last_packet(&self) -> Option<Nanos> {
        let age = |socket: &SocketState| {
            let ages = socket.ages?;
            Some(ages.data_sent_ms.min(ages.data_received_ms).min(ages.ack_received_ms))
        };
        let youngest = self.living().filter_map(age).min()?;
        Some(self.at.saturating_sub(u64::from(youngest) * MS))
    }

    /// Seconds that an IPVS entry has left now. `None` when a packet has passed since it was read, which has
    /// wound its timer up again.
    pub fn ipvs_left_s(&self, balanced: &Balanced) -> Option<u64> {
        // The stamp of a segment is as coarse as a jiffy.
        const COARSE: Nanos = 20 * MS;
        let passed = self.last_packet().is_some_and(|last| last > balanced.read + COARSE);
        let counted = self.at.saturating_sub(balanced.read) / SECOND;
        (!passed).then(|| u64::from(balanced.entry.left_s).saturating_sub(counted))
    }

    /// The entry without which the next packet meets no state, and its seconds.
    fn first_loss(&self) -> Option<(String, u64)> {
        let ipvs = self.ipvs.iter().filter_map(|balanced| {
            let left = self.ipvs_left_s(&balanced.it)?;
            Some((format!("the IPVS entry {}", balanced.place.describe()), left))
        });
        let translated = self.conntrack.iter().filter(|entry| self.depends_on(entry));
        let conntrack = translated.filter_map(|entry| {
            let left = entry.it.left_s?.into();
            Some((format!("the conntrack entry {}", entry.place.describe()), left))
        });
        ipvs.chain(conntrack).min_by_key(|(_, left)| *left)
    }

    /// Conntrack translates it, and not only on behalf of IPVS, which would make a new entry.
    fn depends_on(&self, entry: &In<ConntrackEntry>) -> bool {
        let balanced = self.ipvs.iter().any(|it| it.place.netns == entry.place.netns);
        entry.it.translates() && !balanced
    }

    /// What happens first. What was not looked at may hold a surprise.
    pub fn outlook(&self) -> Outlook {
        let mut outlook = self.seen();
        if outlook.level == Level::Fine && !self.unseen.is_empty() {
            outlook.level = Level::Open;
            outlook.text += "; but not everything could be looked at";
        }
        outlook
    }

    fn seen(&self) -> Outlook {
        let say = |level, text: String| Outlook { level, text };
        if self.is_empty() {
            return say(Level::Over, "nothing of it is left on this host".into());
        }
        let ends: Vec<_> = self.living().collect();
        if ends.is_empty() && !self.ends.is_empty() {
            return say(
                Level::Over,
                "both sides have closed it; what is left waits for its end".into(),
            );
        }
        if let Some(lost) = &self.lost {
            let text = format!(
                "{lost} is gone and the sockets do not know: the next packet meets no state and breaks \
                 the connection"
            );
            return say(Level::Breaks, text);
        }
        if let Some(service) = self.without_entry() {
            let text = format!(
                "{} is an IPVS service {}, and no IPVS table has an entry of the connection: the next packet \
                 meets no state and breaks the connection",
                service.it,
                service.place.describe()
            );
            // It may be in what could not be looked at.
            let level = if self.unseen.is_empty() { Level::Breaks } else { Level::Open };
            return say(level, text);
        }
        if let Some(waiting) = self.unanswered() {
            return say(Level::Open, waiting);
        }
        let keepalive = ends.iter().filter_map(|socket| socket.next_keepalive_ms()).min();
        match (self.first_loss(), keepalive) {
            (Some((entry, left)), Some(next)) => keepalive_against(&entry, left, next),
            (Some((entry, left)), None) => self.no_keepalive(&entry, left, ends.len()),
            (None, _) if self.ends.is_empty() => say(
                Level::Open,
                "neither end is on this host, and no table here translates it".into(),
            ),
            (None, _) if !self.ipvs.is_empty() => {
                say(Level::Fine, "packets pass: its IPVS timer has just been wound up".into())
            }
            (None, None) if ends.len() < 2 => say(
                Level::Open,
                "no table of this host translates it: nothing here can forget it; without keepalive, a \
                 device on the path may"
                    .into(),
            ),
            (None, _) => say(
                Level::Fine,
                "no table of this host translates it: nothing here can forget it".into(),
            ),
        }
    }

    /// The IPVS service that an open socket talks to although no table translates for it: the entry was lost
    /// before anybody looked.
    fn without_entry(&self) -> Option<&In<SocketAddr>> {
        let translated = self.conntrack.iter().any(|entry| self.depends_on(entry));
        if translated || !self.ipvs.is_empty() {
            return None;
        }
        let flows = || self.living().map(|socket| socket.flow);
        let handshake = |socket: &&SocketState| socket.state == tcp_state::SYN_SENT;
        let talks_to = |service: &SocketAddr| {
            let mut open = self.living().filter(|socket| !handshake(socket));
            // A socket that holds the service's own address needs no entry.
            open.any(|it| it.flow.dst == *service && !flows().any(|at| at == it.flow.reversed()))
        };
        self.services.iter().find(|service| talks_to(&service.it))
    }

    /// Data or a window that the peer does not answer for.
    fn unanswered(&self) -> Option<String> {
        let waits = |socket: &SocketState| {
            let timer = socket.timer?;
            let what = match timer.kind {
                TimerKind::Retransmit if socket.retransmits > 0 => "data is sent again",
                TimerKind::ZeroWindow => "the peer's window is probed again",
                _ => return None,
            };
            Some(format!(
                "{what} in {} ({} without an answer so far); keepalive rests meanwhile",
                tenths(timer.left_ms.into()),
                socket.retransmits
            ))
        };
        self.living().find_map(waits)
    }

    fn no_keepalive(&self, entry: &str, left: u64, ends: usize) -> Outlook {
        let limit = self.ipvs.first().and_then(|balanced| balanced.it.limit_s);
        let after =
            limit.map_or_else(String::new, |limit| format!(", {limit} s after the last packet"));
        match ends {
            0 => Outlook {
                level: Level::Open,
                text: format!(
                    "neither end is on this host, so nobody here knows of keepalives; unless a packet \
                     comes, {entry} expires in {left} s"
                ),
            },
            1 => Outlook {
                level: Level::Open,
                text: format!(
                    "no keepalive at the end on this host; unless the other end sends something, {entry} \
                     expires in {left} s{after}, and the next packet breaks the connection"
                ),
            },
            _ => Outlook {
                level: Level::Breaks,
                text: format!(
                    "no keepalive: unless somebody sends something, {entry} expires in {left} s{after}, and \
                     the next packet breaks the connection"
                ),
            },
        }
    }
}

/// Which comes first, with the wheel's lateness.
fn keepalive_against(entry: &str, left: u64, next_ms: u64) -> Outlook {
    let left_ms = left * 1000;
    let late_ms = next_ms + next_ms * LATE / 100;
    let next = tenths(next_ms);
    if late_ms < left_ms {
        Outlook {
            level: Level::Fine,
            text: format!(
                "{entry} expires in {left} s; the next keepalive goes out in {next}: fine"
            ),
        }
    } else if next_ms < left_ms {
        Outlook {
            level: Level::Open,
            text: format!(
                "{entry} expires in {left} s; the next keepalive goes out in {next}, or an eighth later: \
                 too close"
            ),
        }
    } else {
        Outlook {
            level: Level::Breaks,
            text: format!(
                "{entry} expires in {left} s and the next keepalive goes out only in {next}: unless \
                 somebody sends something before, it breaks the connection"
            ),
        }
    }
}

/// `212 s`, and tenths below ten.
pub fn tenths(ms: u64) -> String {
    if ms < 10_000 {
        format!("{}.{} s", ms / 1000, ms % 1000 / 100)
    } else {
        format!("{} s", ms / 1000)
    }
}

/// Every tuple by which a reading names the connection.
pub fn tuples(sight: &Sight) -> Vec<Flow> {
    let mut flows: Vec<Flow> = Vec::new();
    let balanced = sight.ipvs.iter().map(|it| &it.it.entry);
    let all = balanced
        .flat_map(|entry| [entry.virtual_flow, entry.real_flow()])
        .chain(sight.conntrack.iter().flat_map(|it| [it.it.original, it.it.reply.reversed()]))
        .chain(sight.ends.iter().map(|it| it.it.socket.flow));
    for flow in all {
        if !flows.iter().any(|it| it.key() == flow.key()) {
            flows.push(flow);
        }
    }
    flows
}

/// `SRC:PORT→DST:PORT`, `SRC:PORT->DST:PORT` or `SRC:PORT DST:PORT`.
///
/// # Errors
/// A sentence that says what is wrong.
pub fn parse_flow(text: &str) -> Result<Flow, String> {
    let spaced = text.replace("->", " ").replace('→', " ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let [src, dst] = words.as_slice() else {
        return Err(format!("`{text}` is no connection such as 10.0.0.1:40000→10.96.0.10:3306"));
    };
    let address = |word: &str| {
        let parsed: Result<SocketAddr, _> = word.parse();
        parsed
            .map(|it| SocketAddr::new(it.ip().to_canonical(), it.port()))
            .map_err(|_| format!("`{word}` is no address:port, or [address]:port for IPv6"))
    };
    let flow = Flow { src: address(src)?, dst: address(dst)? };
    if flow.src.is_ipv4() != flow.dst.is_ipv4() {
        return Err("the two addresses are of different families".into());
    }
    if flow.src.port() == 0 || flow.dst.port() == 0 {
        return Err("port 0 is nobody's".into());
    }
    Ok(flow)
}

#[cfg(test)]
mod tests;
