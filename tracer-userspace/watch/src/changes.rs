//! What ended between two readings, and the effect on the connection.

use rsttrace_model::{
    connection::{End, InNetns, IpvsReading, Snapshot},
    conntrack::ConntrackEntry,
    flow::Nanos,
    tcp_state,
};

use super::SECOND;

/// Entries and sockets that ended since the reading `before`, each with the effect, one sentence each.
pub fn changes(before: &Snapshot, now: &Snapshot) -> Vec<String> {
    let mut list = Vec::new();
    let is_open = now.living().next().is_some();
    for gone in &before.ipvs {
        let same = |it: &&InNetns<IpvsReading>| {
            it.place.netns == gone.place.netns
                && it.value.entry.virtual_flow == gone.value.entry.virtual_flow
        };
        if now.ipvs.iter().any(|it| same(&it)) {
            continue;
        }
        let why = ended(before.ipvs_left_s(&gone.value), before.at, now.at);
        let effect = if is_open {
            "the sockets are still open, so the next packet finds no entry and breaks the connection"
        } else {
            "no open socket of the connection is left on this host"
        };
        list.push(format!("the IPVS entry {} is gone ({why}): {effect}", gone.place.describe()));
    }
    for gone in &before.conntrack {
        let same = |it: &&InNetns<ConntrackEntry>| {
            it.place.netns == gone.place.netns && it.value.original == gone.value.original
        };
        if now.conntrack.iter().any(|it| same(&it)) {
            continue;
        }
        let why = ended(gone.value.left_s.map(u64::from), before.at, now.at);
        let effect = match conntrack_loss(before, now, gone) {
            _ if !is_open => "no open socket of the connection is left on this host",
            Loss::Translation => {
                "its address translation is lost, so the next packet may go to the wrong destination"
            }
            Loss::WithIpvs => {
                "IPVS deletes the conntrack entry together with its own entry, which has expired"
            }
            Loss::UnderIpvs => {
                "if the IPVS entry still exists, the next packet creates a new conntrack entry"
            }
            Loss::Nothing => "harmless, because the next packet creates a new entry",
        };
        list.push(format!(
            "the conntrack entry {} is gone ({why}): {effect}",
            gone.place.describe()
        ));
    }
    for gone in &before.ends {
        let socket = &gone.value.socket;
        let there = |it: &InNetns<End>| {
            it.place.netns == gone.place.netns && it.value.socket.flow == socket.flow
        };
        if !now.ends.iter().any(there) {
            list.push(format!(
                "the socket {} {} is gone (it was in {})",
                socket.flow.src,
                gone.place.describe(),
                tcp_state::name(socket.state)
            ));
        }
    }
    list
}

/// The effect of a conntrack entry that ended.
enum Loss {
    /// The connection depended on its address translation.
    Translation,
    /// The IPVS entry expired and took the conntrack entry with it.
    WithIpvs,
    /// The IPVS entry has not expired, and a packet makes IPVS create a new conntrack entry.
    UnderIpvs,
    /// The entry did not translate.
    Nothing,
}

fn conntrack_loss(before: &Snapshot, now: &Snapshot, gone: &InNetns<ConntrackEntry>) -> Loss {
    let balanced = before.ipvs.iter().find(|it| it.place.netns == gone.place.netns);
    match balanced {
        None if gone.value.translates() => Loss::Translation,
        None => Loss::Nothing,
        Some(it)
            if before
                .ipvs_left_s(&it.value)
                .is_some_and(|left| left <= elapsed(before.at, now.at)) =>
        {
            Loss::WithIpvs
        }
        Some(_) => Loss::UnderIpvs,
    }
}

/// Seconds that may have passed between two readings, which are rounded to whole seconds.
fn elapsed(before: Nanos, now: Nanos) -> u64 {
    now.saturating_sub(before) / SECOND + 1
}

/// How an entry ended, judged by the time that it had left at the last reading, in seconds.
fn ended(left_s: Option<u64>, before: Nanos, now: Nanos) -> String {
    match left_s {
        Some(left) if left <= elapsed(before, now) => "expired".into(),
        Some(left) => format!("removed {left} s before its expiry"),
        None => "removed or expired".into(),
    }
}
