//! Renders the timers of one connection as a screen, as lines and as JSON.

use std::collections::BTreeMap;

use rsttrace_model::{
    connection::{End, InNetns, IpvsReading, Snapshot},
    conntrack::{ConntrackEntry, state_name},
    flow::Flow,
    owner::Owner,
    socket::{SocketState, TimerKind},
    tcp_state,
};
use rsttrace_schema::json::{object, timestamp};
use rsttrace_watch::{Level, Outlook, tenths};
use serde_json::{Value, json};

use super::page::{Page, Style};

/// One reading of the connection, and what has ended before.
#[derive(Debug)]
pub struct Frame<'a> {
    pub flow: Flow,
    pub sight: &'a Snapshot,
    pub outlook: &'a Outlook,
    /// What has ended since the watch began, each with its time in nanoseconds since the epoch.
    pub events: &'a [(i64, String)],
    pub wall_ns: i64,
}

fn style(level: Level) -> Style {
    match level {
        Level::Fine => Style::Green,
        Level::Open => Style::Yellow,
        Level::Breaks => Style::Red,
        Level::Over => Style::Dim,
    }
}

/// Renders the screen, which is redrawn for each frame.
pub fn screen(frame: &Frame<'_>, color: bool, width: usize) -> String {
    let Frame { sight, outlook, .. } = frame;
    let mut page = Page::new(color, width);
    page.paragraph(&[], "", &[(Style::Bold, &frame.flow.to_string())]);
    for it in &sight.ipvs {
        page.labelled("IPVS", Style::Bold, &ipvs(sight, it));
    }
    for it in &sight.conntrack {
        page.labelled("CONNTRACK", Style::Bold, &conntrack(it));
    }
    for it in &sight.ends {
        page.labelled("SOCKET", Style::Bold, &end(it));
    }
    page.labelled(&outlook.level.id().to_uppercase(), style(outlook.level), &outlook.text);
    for (wall_ns, event) in frame.events {
        let text = format!("{} {event}", clock(*wall_ns));
        page.labelled("ENDED", Style::Yellow, &text);
    }
    for unseen in &sight.unseen {
        page.labelled("NOT SEEN", Style::Dim, unseen);
    }
    page.finish().unwrap_or_default()
}

fn ipvs(sight: &Snapshot, found: &InNetns<IpvsReading>) -> String {
    let entry = &found.value.entry;
    let left = match sight.ipvs_left_s(&found.value) {
        Some(left) => format!("{left} s left"),
        None => "timer just refreshed".into(),
    };
    let limit = found.value.limit_s.map_or_else(String::new, |limit| format!(" of {limit} s"));
    let server = entry.server;
    format!("{} {left}{limit}, to {server}, {}", entry.state, found.place.describe())
}

fn conntrack(found: &InNetns<ConntrackEntry>) -> String {
    let entry = &found.value;
    let state = entry.state.map_or("", |state| state_name(state.into()));
    let left =
        entry.left_s.map_or_else(|| "expiry unknown".into(), |left| format!("{left} s left"));
    let nat = if entry.translates() {
        format!(", answered by {} to {}", entry.reply.src, entry.reply.dst)
    } else {
        String::new()
    };
    format!("{state} {left}{nat}, {}", found.place.describe())
}

fn end(found: &InNetns<End>) -> String {
    let End { socket, owner } = &found.value;
    let owner = owner.as_ref().map_or_else(String::new, |owner| format!(", {}", process(owner)));
    format!(
        "{} {}, {}{owner}, {}",
        socket.flow.src,
        tcp_state::name(socket.state),
        timer(socket),
        found.place.describe()
    )
}

fn process(owner: &Owner) -> String {
    format!("{} (pid {})", owner.comm, owner.pid)
}

fn timer(socket: &SocketState) -> String {
    let Some(timer) = socket.timer else {
        return "no keepalive".into();
    };
    let left = tenths(timer.left_ms.into());
    match timer.kind {
        TimerKind::Keepalive => format!("keepalive in {left}"),
        TimerKind::Retransmit => format!("retransmits in {left} ({} so far)", socket.retransmits),
        TimerKind::ZeroWindow => format!("window probe in {left} ({} so far)", socket.retransmits),
        TimerKind::TimeWait => format!("{left} left"),
    }
}

/// The time of day in UTC: `03:21:44`.
fn clock(wall_ns: i64) -> String {
    let text = timestamp(wall_ns);
    text.get(11..19).unwrap_or(&text).to_owned()
}

/// Renders one line, for a pipe. New events come before it, one line each.
pub fn line(frame: &Frame<'_>, new_events: usize) -> String {
    let Frame { sight, outlook, .. } = frame;
    let mut text = String::new();
    let old = frame.events.len().saturating_sub(new_events);
    for (wall_ns, event) in frame.events.iter().skip(old) {
        text += &format!("{} {event}\n", clock(*wall_ns));
    }
    let mut parts: Vec<String> = Vec::new();
    for it in &sight.ipvs {
        let left =
            sight.ipvs_left_s(&it.value).map_or_else(|| "refreshed".into(), |s| format!("{s} s"));
        parts.push(format!("IPVS {} {left}", it.value.entry.state));
    }
    for it in &sight.conntrack {
        let left = it.value.left_s.map_or_else(|| "?".into(), |left| format!("{left} s"));
        let state = it.value.state.map_or("", |state| state_name(state.into()));
        parts.push(format!("conntrack {state} {left}"));
    }
    for it in &sight.ends {
        let socket = &it.value.socket;
        let state = tcp_state::name(socket.state);
        parts.push(format!("{} {state} {}", socket.flow.src, timer(socket)));
    }
    parts.push(format!("{}: {}", outlook.level.id(), outlook.text));
    let mut page = Page::new(false, usize::MAX);
    page.verbatim("", &format!("{} {}", clock(frame.wall_ns), parts.join(" | ")));
    text + &page.finish().unwrap_or_default()
}

/// Renders one JSON object.
pub fn json(frame: &Frame<'_>, new_events: usize) -> Value {
    let Frame { sight, outlook, flow, .. } = frame;
    let old = frame.events.len().saturating_sub(new_events);
    let events: Vec<Value> =
        frame.events.iter().skip(old).map(|(_, text)| text.clone().into()).collect();
    object([
        ("@timestamp", Some(timestamp(frame.wall_ns).into())),
        ("source", Some(address(flow.src))),
        ("destination", Some(address(flow.dst))),
        ("ipvs", Some(sight.ipvs.iter().map(|it| ipvs_json(sight, it)).collect())),
        ("conntrack", Some(sight.conntrack.iter().map(conntrack_json).collect())),
        ("sockets", Some(sight.ends.iter().map(end_json).collect())),
        ("outlook", Some(json!({"level": outlook.level.id(), "text": outlook.text}))),
        ("ended", (!events.is_empty()).then(|| events.into())),
        ("not_seen", (!sight.unseen.is_empty()).then(|| sight.unseen.clone().into())),
    ])
}

fn address(address: std::net::SocketAddr) -> Value {
    json!({"ip": address.ip().to_string(), "port": address.port()})
}

fn tuple(flow: Flow) -> Value {
    json!({"source": address(flow.src), "destination": address(flow.dst)})
}

fn ipvs_json(sight: &Snapshot, found: &InNetns<IpvsReading>) -> Value {
    let entry = &found.value.entry;
    object([
        ("netns", Some(found.place.netns.into())),
        ("state", Some(entry.state.clone().into())),
        ("left_s", sight.ipvs_left_s(&found.value).map(Value::from)),
        ("limit_s", found.value.limit_s.map(Value::from)),
        ("virtual", Some(tuple(entry.virtual_flow))),
        ("server", Some(address(entry.server))),
    ])
}

fn conntrack_json(found: &InNetns<ConntrackEntry>) -> Value {
    let entry = &found.value;
    object([
        ("netns", Some(found.place.netns.into())),
        ("state", entry.state.map(|state| state_name(state.into()).into())),
        ("left_s", entry.left_s.map(Value::from)),
        ("original", Some(tuple(entry.original))),
        ("reply", Some(tuple(entry.reply))),
    ])
}

fn end_json(found: &InNetns<End>) -> Value {
    let End { socket, owner } = &found.value;
    let timer = socket.timer.map(|timer| {
        json!({
            "kind": match timer.kind {
                TimerKind::Keepalive => "keepalive",
                TimerKind::Retransmit => "retransmit",
                TimerKind::ZeroWindow => "zero_window",
                TimerKind::TimeWait => "time_wait",
            },
            "left_ms": timer.left_ms,
        })
    });
    object([
        ("netns", Some(found.place.netns.into())),
        ("local", Some(address(socket.flow.src))),
        ("remote", Some(address(socket.flow.dst))),
        ("state", Some(tcp_state::name(socket.state).into())),
        ("timer", timer),
        ("retransmits", (socket.retransmits > 0).then(|| socket.retransmits.into())),
        (
            "process",
            owner.as_ref().map(|owner| {
                json!({
                    "pid": owner.pid,
                    "name": rsttrace_model::escape::terminal(&owner.comm),
                })
            }),
        ),
    ])
}

/// Renders a list of connections to choose from, numbered from 1. `holders` maps the inode of a socket to the
/// process that has it open.
pub fn list(sockets: &[SocketState], holders: &BTreeMap<u64, Owner>, more: usize) -> String {
    let mut page = Page::new(false, usize::MAX);
    for (index, socket) in sockets.iter().enumerate() {
        let holder = holders.get(&socket.inode);
        let line = format!(
            "{:4}  {}  {}  {}{}",
            index + 1,
            socket.flow,
            tcp_state::name(socket.state),
            timer(socket),
            holder.map_or_else(String::new, |owner| format!("  {}", process(owner)))
        );
        page.verbatim("", &line);
    }
    if more > 0 {
        page.verbatim("", &format!("      and {more} more (name one of them by its addresses)"));
    }
    page.finish().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rsttrace_model::testing::flow;

    #[test]
    fn a_list_names_the_process_of_each_connection_and_counts_the_unlisted_ones() {
        let socket = SocketState {
            flow: flow("10.0.0.2:41822", "10.96.0.10:3306"),
            state: tcp_state::ESTABLISHED,
            inode: 7,
            uid: 0,
            timer: None,
            retransmits: 0,
            receive_queue: 0,
            send_queue: 0,
            ages: None,
            bytes_received: None,
            bytes_acked: None,
            v6_only: false,
        };
        let owner = Owner { pid: 4121, comm: "node\u{1b}[2J".into(), ..Owner::default() };
        let text = list(&[socket], &BTreeMap::from([(7, owner)]), 3);
        assert_eq!(
            text,
            "   1  10.0.0.2:41822 -> 10.96.0.10:3306  ESTABLISHED  no keepalive  node\\u{1b}[2J (pid 4121)\n      \
             and 3 more (name one of them by its addresses)\n"
        );
    }
}
