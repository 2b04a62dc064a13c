//! Predicts what happens to one connection: when each table entry expires, when the next keepalive is sent, and
//! which comes first. Pure: the input is a reading, the output is text.

use std::net::SocketAddr;

use rsttrace_model::{
    connection::{InNetns, Snapshot},
    flow::{Flow, Nanos},
    socket::{SocketState, TimerKind},
    tcp_state,
};

mod changes;

pub use changes::changes;

/// The prediction for one connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outlook {
    pub level: Level,
    pub text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// No entry that the connection needs expires before the next keepalive.
    Fine,
    /// The result depends on what this host cannot see.
    Open,
    /// The connection breaks unless one end sends a packet, or it is already cut off.
    Breaks,
    /// The connection has ended.
    Over,
}

impl Level {
    /// The name in the output.
    pub fn id(self) -> &'static str {
        match self {
            Self::Fine => "fine",
            Self::Open => "open",
            Self::Breaks => "breaks",
            Self::Over => "over",
        }
    }
}

/// How late a timer of the kernel's timer wheel may fire, in percent: an eighth (kernel/time/timer.c).
const LATE: u64 = 13;

const SECOND: Nanos = 1_000_000_000;

/// The entry that expires first, of those that the next packet needs, and the seconds it has left.
fn first_loss(sight: &Snapshot) -> Option<(String, u64)> {
    let ipvs = sight.ipvs.iter().filter_map(|balanced| {
        let left = sight.ipvs_left_s(&balanced.value)?;
        Some((format!("the IPVS entry {}", balanced.place.describe()), left))
    });
    let translated = sight.conntrack.iter().filter(|entry| sight.depends_on(entry));
    let conntrack = translated.filter_map(|entry| {
        let left = entry.value.left_s?.into();
        Some((format!("the conntrack entry {}", entry.place.describe()), left))
    });
    ipvs.chain(conntrack).min_by_key(|(_, left)| *left)
}

/// The prediction. It is not `Fine` when a part of the host could not be read.
pub fn outlook(sight: &Snapshot) -> Outlook {
    let mut outlook = seen(sight);
    if outlook.level == Level::Fine && !sight.unseen.is_empty() {
        outlook.level = Level::Open;
        outlook.text += "; but not everything could be read";
    }
    outlook
}

fn seen(sight: &Snapshot) -> Outlook {
    let prediction = |level, text: String| Outlook { level, text };
    if sight.is_empty() {
        return prediction(Level::Over, "nothing of the connection is left on this host".into());
    }
    let ends: Vec<_> = sight.living().collect();
    if ends.is_empty() && !sight.ends.is_empty() {
        return prediction(
            Level::Over,
            "both sides have closed the connection; what is left expires by itself".into(),
        );
    }
    if let Some(lost) = &sight.lost {
        let text = format!(
            "{lost} is gone while the sockets are still open: the next packet finds no entry and breaks \
             the connection"
        );
        return prediction(Level::Breaks, text);
    }
    if let Some(service) = without_entry(sight) {
        let text = format!(
            "{} is an IPVS service {}, and no IPVS table has an entry for the connection: the next packet \
             finds no entry and breaks the connection",
            service.value,
            service.place.describe()
        );
        // The entry may be in a table that could not be read.
        let level = if sight.unseen.is_empty() { Level::Breaks } else { Level::Open };
        return prediction(level, text);
    }
    if let Some(waiting) = unanswered(sight) {
        return prediction(Level::Open, waiting);
    }
    let keepalive = ends.iter().filter_map(|socket| socket.next_keepalive_ms()).min();
    match (first_loss(sight), keepalive) {
        (Some((entry, left)), Some(next)) => keepalive_against(&entry, left, next),
        (Some((entry, left)), None) => no_keepalive(sight, &entry, left, ends.len()),
        (None, _) if sight.ends.is_empty() => prediction(
            Level::Open,
            "neither end is on this host, and no table of this host translates the connection".into(),
        ),
        (None, _) if !sight.ipvs.is_empty() => {
            prediction(Level::Fine, "packets are flowing: the IPVS timer was just refreshed".into())
        }
        (None, None) if ends.len() < 2 => prediction(
            Level::Open,
            "no table of this host translates the connection, so no entry here can expire; without \
             keepalive, an entry of a device on the path may"
                .into(),
        ),
        (None, _) => prediction(
            Level::Fine,
            "no table of this host translates the connection, so no entry here can expire".into(),
        ),
    }
}

/// The IPVS service that an open socket is connected to although no table has an entry for the connection: the
/// entry was lost before the watch began.
fn without_entry(sight: &Snapshot) -> Option<&InNetns<SocketAddr>> {
    let translated = sight.conntrack.iter().any(|entry| sight.depends_on(entry));
    if translated || !sight.ipvs.is_empty() {
        return None;
    }
    let flows = || sight.living().map(|socket| socket.flow);
    let handshake = |socket: &&SocketState| socket.state == tcp_state::SYN_SENT;
    let talks_to = |service: &SocketAddr| {
        let mut open = sight.living().filter(|socket| !handshake(socket));
        // A socket that holds the service's own address needs no entry.
        open.any(|it| it.flow.dst == *service && !flows().any(|at| at == it.flow.reversed()))
    };
    sight.services.iter().find(|service| talks_to(&service.value))
}

/// Data or window probes without an answer from the peer.
fn unanswered(sight: &Snapshot) -> Option<String> {
    let unanswered = |socket: &SocketState| {
        let timer = socket.timer?;
        let what = match timer.kind {
            TimerKind::Retransmit if socket.retransmits > 0 => "data is retransmitted",
            TimerKind::ZeroWindow => "the next window probe is sent",
            _ => return None,
        };
        Some(format!(
            "{what} in {} ({} without an answer so far); no keepalives are sent meanwhile",
            tenths(timer.left_ms.into()),
            socket.retransmits
        ))
    };
    sight.living().find_map(unanswered)
}

fn no_keepalive(sight: &Snapshot, entry: &str, left: u64, ends: usize) -> Outlook {
    let limit = sight.ipvs.first().and_then(|balanced| balanced.value.limit_s);
    let after =
        limit.map_or_else(String::new, |limit| format!(", {limit} s after the last packet"));
    match ends {
        0 => Outlook {
            level: Level::Open,
            text: format!(
                "neither end is on this host, so their keepalives are unknown; {entry} expires in {left} s \
                 unless a packet passes"
            ),
        },
        1 => Outlook {
            level: Level::Open,
            text: format!(
                "no keepalive at the end on this host; unless the other end sends a packet, {entry} \
                 expires in {left} s{after}, and the next packet breaks the connection"
            ),
        },
        _ => Outlook {
            level: Level::Breaks,
            text: format!(
                "no keepalive: unless one end sends a packet, {entry} expires in {left} s{after}, and the \
                 next packet breaks the connection"
            ),
        },
    }
}

/// Compares the expiry of an entry with the next keepalive, which may be late by [`LATE`] percent.
fn keepalive_against(entry: &str, left: u64, next_ms: u64) -> Outlook {
    let left_ms = left * 1000;
    let late_ms = next_ms + next_ms * LATE / 100;
    let next = tenths(next_ms);
    if late_ms < left_ms {
        Outlook {
            level: Level::Fine,
            text: format!(
                "{entry} expires in {left} s; the next keepalive is sent in {next}: fine"
            ),
        }
    } else if next_ms < left_ms {
        Outlook {
            level: Level::Open,
            text: format!(
                "{entry} expires in {left} s; the next keepalive is sent in {next}, or up to an eighth \
                 later: too close"
            ),
        }
    } else {
        Outlook {
            level: Level::Breaks,
            text: format!(
                "{entry} expires in {left} s and the next keepalive is sent only in {next}: unless one end \
                 sends a packet before, the keepalive breaks the connection"
            ),
        }
    }
}

/// Formats milliseconds as seconds: `212 s`, with tenths below ten seconds.
pub fn tenths(ms: u64) -> String {
    if ms < 10_000 {
        format!("{}.{} s", ms / 1000, ms % 1000 / 100)
    } else {
        format!("{} s", ms / 1000)
    }
}

/// Parses `SRC:PORT→DST:PORT`, `SRC:PORT->DST:PORT` or `SRC:PORT DST:PORT`.
///
/// # Errors
/// What is wrong, and what is expected.
pub fn parse_flow(text: &str) -> Result<Flow, String> {
    let spaced = text.replace("->", " ").replace('→', " ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let [src, dst] = words.as_slice() else {
        return Err(format!(
            "invalid connection `{text}` (expected SRC:PORT→DST:PORT, such as \
             10.0.0.1:40000→10.96.0.10:3306)"
        ));
    };
    let address = |word: &str| {
        let parsed: Result<SocketAddr, _> = word.parse();
        parsed.map(|it| SocketAddr::new(it.ip().to_canonical(), it.port())).map_err(|_| {
            format!("invalid address `{word}` (expected address:port, or [address]:port for IPv6)")
        })
    };
    let flow = Flow { src: address(src)?, dst: address(dst)? };
    if flow.src.is_ipv4() != flow.dst.is_ipv4() {
        return Err("the two addresses are of different address families".into());
    }
    if flow.src.port() == 0 || flow.dst.port() == 0 {
        return Err("invalid port `0` (port must be 1 to 65535)".into());
    }
    Ok(flow)
}

#[cfg(test)]
mod tests;
