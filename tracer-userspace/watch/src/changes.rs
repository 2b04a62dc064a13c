//! What has ended between two readings, and what that means.

use rsttrace_model::{
    connection::{End, InNetns, IpvsReading, Snapshot},
    conntrack::ConntrackEntry,
    flow::Nanos,
    tcp_state,
};

use super::SECOND;

/// What is no more, since the reading before, and what that means.
pub fn changes(before: &Snapshot, now: &Snapshot) -> Vec<String> {
    let mut list = Vec::new();
    let lives = now.living().next().is_some();
    for gone in &before.ipvs {
        let same = |it: &&InNetns<IpvsReading>| {
            it.place.netns == gone.place.netns
                && it.value.entry.virtual_flow == gone.value.entry.virtual_flow
        };
        if now.ipvs.iter().any(|it| same(&it)) {
            continue;
        }
        let why = ended(before.ipvs_left_s(&gone.value), before.at, now.at);
        let then = if lives {
            "the sockets do not know: the next packet meets no state and breaks the connection"
        } else {
            "no open socket of it is left here"
        };
        list.push(format!("the IPVS entry {} is gone ({why}): {then}", gone.place.describe()));
    }
    for gone in &before.conntrack {
        let same = |it: &&InNetns<ConntrackEntry>| {
            it.place.netns == gone.place.netns && it.value.original == gone.value.original
        };
        if now.conntrack.iter().any(|it| same(&it)) {
            continue;
        }
        let why = ended(gone.value.left_s.map(u64::from), before.at, now.at);
        let then = match conntrack_loss(before, now, gone) {
            _ if !lives => "no open socket of it is left here",
            Loss::Translation => "its translation is lost; the next packet may go astray",
            Loss::WithIpvs => "IPVS deletes it together with its own, which has run out",
            Loss::UnderIpvs => "if IPVS still has its own, the next packet makes a new one",
            Loss::Nothing => "harmless: the next packet makes a new one",
        };
        list.push(format!("the conntrack entry {} is gone ({why}): {then}", gone.place.describe()));
    }
    for gone in &before.ends {
        let socket = &gone.value.socket;
        let there = |it: &InNetns<End>| {
            it.place.netns == gone.place.netns && it.value.socket.flow == socket.flow
        };
        if !now.ends.iter().any(there) {
            list.push(format!(
                "the socket {} {} is gone: it was in {}",
                socket.flow.src,
                gone.place.describe(),
                tcp_state::name(socket.state)
            ));
        }
    }
    list
}

/// What the end of a conntrack entry means.
enum Loss {
    Translation,
    WithIpvs,
    UnderIpvs,
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

/// Seconds that may have passed between two readings of whole seconds.
fn elapsed(before: Nanos, now: Nanos) -> u64 {
    now.saturating_sub(before) / SECOND + 1
}

/// How an entry came to its end, judged by what it had left when it was last read.
fn ended(left_s: Option<u64>, before: Nanos, now: Nanos) -> String {
    match left_s {
        Some(left) if left <= elapsed(before, now) => "it expired".into(),
        Some(left) => format!("removed, {left} s before its time"),
        None => "removed, or expired".into(),
    }
}
