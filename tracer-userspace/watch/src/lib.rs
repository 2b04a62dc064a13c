//! What tables and timers know of one connection, how long each will remember it, and what happens first.
//! Pure: readings in, sentences out.

use std::net::SocketAddr;

use rsttrace_model::{
    connection::{InNetns, Snapshot},
    flow::{Flow, Nanos},
    socket::{SocketState, TimerKind},
    tcp_state,
};

mod changes;

pub use changes::changes;

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

const SECOND: Nanos = 1_000_000_000;

/// The entry without which the next packet meets no state, and its seconds.
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

/// What happens first. What was not looked at may hold a surprise.
pub fn outlook(sight: &Snapshot) -> Outlook {
    let mut outlook = seen(sight);
    if outlook.level == Level::Fine && !sight.unseen.is_empty() {
        outlook.level = Level::Open;
        outlook.text += "; but not everything could be looked at";
    }
    outlook
}

fn seen(sight: &Snapshot) -> Outlook {
    let say = |level, text: String| Outlook { level, text };
    if sight.is_empty() {
        return say(Level::Over, "nothing of it is left on this host".into());
    }
    let ends: Vec<_> = sight.living().collect();
    if ends.is_empty() && !sight.ends.is_empty() {
        return say(
            Level::Over,
            "both sides have closed it; what is left waits for its end".into(),
        );
    }
    if let Some(lost) = &sight.lost {
        let text = format!(
            "{lost} is gone and the sockets do not know: the next packet meets no state and breaks \
             the connection"
        );
        return say(Level::Breaks, text);
    }
    if let Some(service) = without_entry(sight) {
        let text = format!(
            "{} is an IPVS service {}, and no IPVS table has an entry of the connection: the next packet \
             meets no state and breaks the connection",
            service.value,
            service.place.describe()
        );
        // It may be in what could not be looked at.
        let level = if sight.unseen.is_empty() { Level::Breaks } else { Level::Open };
        return say(level, text);
    }
    if let Some(waiting) = unanswered(sight) {
        return say(Level::Open, waiting);
    }
    let keepalive = ends.iter().filter_map(|socket| socket.next_keepalive_ms()).min();
    match (first_loss(sight), keepalive) {
        (Some((entry, left)), Some(next)) => keepalive_against(&entry, left, next),
        (Some((entry, left)), None) => no_keepalive(sight, &entry, left, ends.len()),
        (None, _) if sight.ends.is_empty() => say(
            Level::Open,
            "neither end is on this host, and no table here translates it".into(),
        ),
        (None, _) if !sight.ipvs.is_empty() => {
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

/// Data or a window that the peer does not answer for.
fn unanswered(sight: &Snapshot) -> Option<String> {
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
    sight.living().find_map(waits)
}

fn no_keepalive(sight: &Snapshot, entry: &str, left: u64, ends: usize) -> Outlook {
    let limit = sight.ipvs.first().and_then(|balanced| balanced.value.limit_s);
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
