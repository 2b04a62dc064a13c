//! Short event literals for tests.

use rsttrace_model::{flow::Nanos, ipvs::IpvsEntry, socket::Keepalive, tcp_flag, tcp_state};

use crate::{
    correlator::Correlator,
    event::{
        Body, ConntrackEnd, ConntrackInvalid, DropReason, Event, IpvsEnd, IpvsServerRemoved,
        Packet, PacketDrop, PacketEntry, ResetReceived, ResetSent, Session, SignalCoverage, Socket,
        SocketError, Stack, Task, Via,
    },
    incident::Incident,
};

pub use rsttrace_model::testing::{address, flow};

pub const SECOND: Nanos = 1_000_000_000;

/// Namespaces of the usual three hosts.
pub const CLIENT_NS: u32 = 11;
pub const NODE_NS: u32 = 12;
pub const SERVER_NS: u32 = 13;

pub const CLIENT: &str = "10.0.0.2:41822";
pub const VIP: &str = "10.96.0.10:3306";
pub const SERVER: &str = "10.0.1.2:3306";

pub fn stack(names: &[&str]) -> Stack {
    names.iter().map(|name| (*name).into()).collect()
}

pub fn task(comm: &str, pid: u32) -> Task {
    Task { pid, comm: comm.into(), exiting: false, exit_code: 0 }
}

pub fn at(ts: Nanos, netns: u32, body: Body) -> Event {
    Event { ts, netns, body }
}

pub fn session(ts: Nanos) -> Event {
    let covered = |id: &str| SignalCoverage {
        id: id.into(),
        way: Some("test".into()),
        blind: None,
        attaching: false,
    };
    let session = Session {
        boot_id: "boot".into(),
        hostname: "node".into(),
        kernel: "test".into(),
        initial_netns: 1,
        pid: 0,
        wall_offset_ns: 1_763_695_304_000_000_000,
        coverage: ["reset_sent", "reset_received", "ipvs_end", "conntrack_end", "conntrack_full"]
            .map(covered)
            .to_vec(),
    };
    at(ts, 1, Body::Session(Box::new(session)))
}

/// An established socket that has carried payload and received from its peer at `last_received`.
pub fn socket(id: u64, local: &str, remote: &str, last_received: Nanos) -> Socket {
    Socket {
        id,
        inode: id,
        flow: flow(local, remote),
        state: tcp_state::ESTABLISHED,
        tw_substate: 0,
        dead: false,
        linger_zero: false,
        linger2_negative: false,
        err: 0,
        err_soft: 0,
        bytes_received: 100,
        bytes_sent: 100,
        unread: 0,
        read_end: false,
        last_received: Some(last_received),
        last_sent: None,
        keepalive: Keepalive {
            enabled: false,
            time_s: 7200.0,
            intvl_s: 75.0,
            probes: 9,
            time_is_own: false,
        },
        user_timeout_ms: 0,
        packets_out: 0,
        snd_una: 5000,
        snd_nxt: 5000,
        snd_wnd: 65535,
        rcv_nxt: 9000,
        retransmits: 0,
        probes_out: 0,
        retries2: 15,
        ack_backlog: 0,
        max_ack_backlog: 0,
        opener: None,
        cookies_sent: None,
    }
}

/// A data segment of the connection whose client is `socket` above.
pub fn data(src: &str, dst: &str) -> Packet {
    Packet {
        flow: flow(src, dst),
        seq: 5000,
        ack: 9000,
        payload: 43,
        flags: tcp_flag::ACK | 8,
        ttl: 64,
    }
}

/// The TCP stack answers `trigger`, for which it has no socket.
pub fn no_socket(trigger: Packet) -> ResetSent {
    ResetSent {
        socket: None,
        trigger: Some(trigger),
        end: None,
        task: task("swapper", 0),
        stack: Vec::new(),
        reason: Some("NO_SOCKET".into()),
        via: Via::Tracepoint,
        entry: PacketEntry::Unknown,
    }
}

/// A listener answers `trigger`, a packet of a connection it never had.
pub fn at_listener(trigger: Packet) -> ResetSent {
    let mut listener = socket(900, "0.0.0.0:3306", "0.0.0.0:0", 0);
    listener.state = tcp_state::LISTEN;
    ResetSent { socket: Some(listener), reason: Some("TCP_FLAGS".into()), ..no_socket(trigger) }
}

/// A socket aborts actively, below these functions.
pub fn active(socket: Socket, functions: &[&str], reason: &str) -> ResetSent {
    ResetSent {
        socket: Some(socket),
        trigger: None,
        end: None,
        task: task("server", 77),
        stack: stack(functions),
        reason: Some(reason.into()),
        via: Via::Tracepoint,
        entry: PacketEntry::Unknown,
    }
}

pub fn sent(ts: Nanos, netns: u32, it: ResetSent) -> Event {
    at(ts, netns, Body::ResetSent(Box::new(it)))
}

/// `socket` accepts a reset without ACK.
pub fn received(ts: Nanos, netns: u32, socket: Socket) -> Event {
    let packet = Packet {
        flow: socket.flow.reversed(),
        seq: socket.rcv_nxt,
        ack: 0,
        payload: 0,
        flags: 4,
        ttl: 64,
    };
    at(ts, netns, Body::ResetReceived(Box::new(ResetReceived { socket, packet: Some(packet) })))
}

/// `socket` fails with `err` below these functions.
pub fn failed(ts: Nanos, netns: u32, mut socket: Socket, err: u32, functions: &[&str]) -> Event {
    socket.err = err;
    let it = SocketError { socket, task: task("swapper", 0), stack: stack(functions) };
    at(ts, netns, Body::SocketError(Box::new(it)))
}

/// The IPVS entry of CLIENT to VIP expires.
pub fn ipvs_end(timeout_s: f64) -> IpvsEnd {
    IpvsEnd {
        virtual_flow: flow(CLIENT, VIP),
        real_flow: flow(CLIENT, SERVER),
        state: 1,
        flags: 0,
        timeout_s,
        last_packet: None,
        forced: false,
        server_gone: false,
        packets: None,
        task: task("swapper", 0),
        stack: stack(&["ip_vs_conn_expire", "call_timer_fn"]),
    }
}

/// SERVER is removed from VIP.
pub fn server_removed(ts: Nanos) -> Event {
    server_removed_by(ts, &["__ip_vs_del_dest", "ip_vs_del_dest", "do_ip_vs_set_ctl"])
}

/// SERVER is removed from VIP by these functions.
pub fn server_removed_by(ts: Nanos, functions: &[&str]) -> Event {
    let it = IpvsServerRemoved {
        service: address(VIP),
        server: address(SERVER),
        flags: 0,
        task: task("ipvsadm", 321),
        stack: stack(functions),
    };
    at(ts, NODE_NS, Body::IpvsServerRemoved(Box::new(it)))
}

/// The server of the IPVS entry of CLIENT to VIP is found removed.
pub fn ipvs_orphan(ts: Nanos) -> Event {
    let it = IpvsEntry {
        virtual_flow: flow(CLIENT, VIP),
        server: address(SERVER),
        state: "ESTABLISHED".into(),
        left_s: 700,
    };
    at(ts, NODE_NS, Body::IpvsOrphan(Box::new(it)))
}

pub fn ipvs_ended(ts: Nanos, end: IpvsEnd) -> Event {
    at(ts, NODE_NS, Body::IpvsEnd(Box::new(end)))
}

/// The DNAT entry of CLIENT to VIP ends.
pub fn conntrack_end(deadline: Nanos, portid: u32) -> ConntrackEnd {
    ConntrackEnd {
        original: flow(CLIENT, VIP),
        reply: flow(SERVER, CLIENT),
        status: 1 << 5 | 0xe,
        state: 3,
        deadline,
        portid,
        zone: 0,
        task: task("conntrack", 55),
        stack: stack(&["nf_ct_delete"]),
    }
}

pub fn conntrack_ended(ts: Nanos, end: ConntrackEnd) -> Event {
    at(ts, NODE_NS, Body::ConntrackEnd(Box::new(end)))
}

/// conntrack on the node judges `packet` of CLIENT to VIP INVALID.
pub fn judged_invalid(ts: Nanos, packet: Packet) -> Event {
    let (original, reply) = (flow(CLIENT, VIP), flow(SERVER, CLIENT));
    let it = ConntrackInvalid { packet, original, reply, state: 3 };
    at(ts, NODE_NS, Body::ConntrackInvalid(Box::new(it)))
}

fn dropped(ts: Nanos, packet: Packet, why: DropReason) -> Event {
    at(ts, NODE_NS, Body::PacketDrop(Box::new(PacketDrop { packet, why })))
}

/// NAT finds no tuple for the connection of `packet`, which is dropped.
pub fn clash_drop(ts: Nanos, packet: Packet) -> Event {
    let tuple = flow("10.0.1.1:50000", &packet.flow.dst.to_string());
    dropped(ts, packet, DropReason::Clash { tuple })
}

/// A full table drops `packet`.
pub fn full_drop(ts: Nanos, packet: Packet) -> Event {
    dropped(ts, packet, DropReason::TableFull)
}

/// A rule rejects `packet` with an ICMP error.
pub fn rule_reject(ts: Nanos, packet: Packet) -> Event {
    let stack = stack(&["nf_send_unreach", "nft_reject_inet_eval", "nft_do_chain"]);
    dropped(ts, packet, DropReason::Rejected { stack, nat: None, entry: PacketEntry::Unknown })
}

/// netfilter drops `packet`, for a service that has lost a server.
pub fn no_destination_drop(ts: Nanos, packet: Packet) -> Event {
    dropped(ts, packet, DropReason::NoDestination)
}

/// IPVS has no server for `syn`.
pub fn no_server_drop(ts: Nanos, syn: Packet) -> Event {
    dropped(ts, syn, DropReason::NoServer)
}

/// The incident of the article: idle for 973 s, the IPVS entry expired after 900 s.
pub fn article() -> Vec<Event> {
    let broke = 1000 * SECOND;
    let victim = socket(1, CLIENT, VIP, 27 * SECOND);
    vec![
        ipvs_ended(930 * SECOND, ipvs_end(900.0)),
        sent(broke, NODE_NS, no_socket(data(CLIENT, VIP))),
        received(broke + 50_000, CLIENT_NS, victim.clone()),
        failed(broke + 90_000, CLIENT_NS, victim, 104, &["tcp_reset"]),
    ]
}

/// Runs a stream that starts at time 0 and returns every incident.
pub fn replay(events: impl IntoIterator<Item = Event>) -> Vec<Incident> {
    let mut correlator = Correlator::new();
    correlator.push(session(0));
    let mut incidents = Vec::new();
    for event in events {
        incidents.extend(correlator.tick(event.ts));
        correlator.push(event);
    }
    incidents.extend(correlator.finish());
    incidents
}

/// Ids of the causes, in order; a repeat at the other end is marked with `+`.
pub fn causes(incidents: &[Incident]) -> Vec<String> {
    incidents
        .iter()
        .map(|incident| match incident.follows {
            Some(_) => format!("+{}", incident.cause.id),
            None => incident.cause.id.into(),
        })
        .collect()
}
