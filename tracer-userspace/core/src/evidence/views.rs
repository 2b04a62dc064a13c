//! Which end initiated the connection: the tuple that the initiator used, and the tuple that the responder
//! has.

use std::net::SocketAddr;

use rsttrace_model::{flow::Flow, ipvs::masquerades, tcp_flag, tcp_state};

use super::facts::Evidence;
use crate::case::Stamped;

/// `net.ipv4.ip_local_port_range` where it could not be read (net/ipv4/af_inet.c).
const DEFAULT_PORT_RANGE: (u16, u16) = (32768, 60999);

/// One end's view of the connection.
struct Side {
    /// Initiator to responder.
    flow: Flow,
    /// Whether this is the view of the initiator.
    at_initiator: bool,
}

impl Evidence<'_> {
    /// Initiator to responder, as the initiator addressed it. Where its socket is known, this is the socket's own flow:
    /// behind a second translation no entry shows it.
    pub fn client_view(&self) -> Option<Flow> {
        let entry = self.client_side_of_entry()?;
        let server = self.server_view();
        let is_server = |flow: Flow| server.is_some_and(|view| view.dst == flow.src);
        let dialled =
            self.victims().map(|(netns, _, socket)| (netns, socket.flow)).find(|(netns, flow)| {
                flow.dst.port() != 0
                    && flow.key() != entry.key()
                    && !is_server(*flow)
                    && flow.src != entry.dst
                    && self.initiates(*netns, *flow)
            });
        Some(dialled.map_or(entry, |(_, flow)| flow))
    }

    /// The same, as an entry on the path shows it.
    fn client_side_of_entry(&self) -> Option<Flow> {
        if let Some((_, end)) = self.ipvs {
            return Some(end.virtual_flow);
        }
        if let Some((original, _)) = self.nat_tuples() {
            return Some(original);
        }
        if let Some(orphan) = self.ipvs_orphan() {
            return Some(orphan.value.virtual_flow);
        }
        if let Some(balanced) = self.balanced {
            return Some(balanced.virtual_flow);
        }
        if let Some(translated) = self.translated {
            return Some(translated.original);
        }
        let sides = self.sides();
        sides.iter().find(|side| side.at_initiator).or(sides.first()).map(|side| side.flow)
    }

    /// Initiator to responder, as the responder sees it: behind NAT.
    pub fn server_view(&self) -> Option<Flow> {
        if let Some((_, end)) = self.ipvs {
            let translates = masquerades(end.flags);
            return Some(if translates { end.real_flow } else { end.virtual_flow });
        }
        if let Some((_, reply)) = self.nat_tuples() {
            return Some(reply.reversed());
        }
        if let Some(Stamped { netns, value: orphan, .. }) = self.ipvs_orphan() {
            let (virtual_flow, real_flow) = (orphan.virtual_flow, orphan.real_flow());
            // The entry does not show its forwarding method.
            let removed = self.ipvs_server_removed(*netns, virtual_flow, real_flow);
            let translates = removed.is_some_and(|at| masquerades(at.value.flags));
            return Some(if translates { real_flow } else { virtual_flow });
        }
        if let Some(balanced) = self.balanced {
            let Flow { src, dst } = balanced.virtual_flow;
            return Some(Flow { src, dst: balanced.server.unwrap_or(dst) });
        }
        if let Some(translated) = self.translated {
            return Some(Flow { dst: translated.server, ..translated.original });
        }
        let sides = self.sides();
        sides.iter().find(|side| !side.at_initiator).or(sides.first()).map(|side| side.flow)
    }

    fn sides(&self) -> Vec<Side> {
        let mut sides = Vec::new();
        for (netns, _, socket) in self.victims() {
            if socket.flow.dst.port() != 0 {
                sides.push(self.side(netns, socket.flow));
            }
        }
        for at in &self.case.sent {
            if let Some(flow) = at.value.flow() {
                sides.push(self.side(at.netns, flow));
            }
        }
        for at in &self.case.drops {
            sides.push(self.side(at.netns, at.value.packet.flow));
        }
        sides
    }

    /// Orients a flow whose source is a local end.
    fn side(&self, netns: u32, local_first: Flow) -> Side {
        let at_initiator = self.initiates(netns, local_first);
        let flow = if at_initiator { local_first } else { local_first.reversed() };
        Side { flow, at_initiator }
    }

    /// Whether `flow.src` made the connection: not a listener, not an IPVS service. If nothing else is known
    /// it is the end with an ephemeral port, and of two such ports the larger one.
    fn initiates(&self, netns: u32, flow: Flow) -> bool {
        for at in &self.case.sent {
            let Some(trigger) = at.value.trigger.filter(|t| t.flow.key() == flow.key()) else {
                continue;
            };
            let listener =
                at.value.socket.as_ref().is_some_and(|socket| socket.state == tcp_state::LISTEN);
            let plain_syn = trigger.has(tcp_flag::SYN) && !trigger.has(tcp_flag::ACK);
            if listener || plain_syn {
                return trigger.flow.src == flow.src;
            }
        }
        if let Some((_, _, socket)) =
            self.victims().find(|(_, _, s)| s.state == tcp_state::SYN_SENT)
            && socket.flow.key() == flow.key()
        {
            return socket.flow.src == flow.src;
        }
        let sent = self.case.sent.iter().filter_map(|at| at.value.socket.as_ref());
        let mut sockets = self.victims().map(|(_, _, socket)| socket).chain(sent);
        if let Some(socket) = sockets.find(|it| it.opener.is_some() && it.flow.key() == flow.key())
        {
            // Its process called connect().
            return socket.flow.src == flow.src;
        }
        for drop in &self.case.drops {
            let packet = &drop.value.packet;
            if packet.has(tcp_flag::SYN) && packet.flow.key() == flow.key() {
                return (packet.flow.src == flow.src) != packet.has(tcp_flag::ACK);
            }
        }
        let is_service =
            |address| self.hosts.keys().any(|netns| self.ipvs_service(*netns, address).is_some());
        match (is_service(flow.src), is_service(flow.dst)) {
            (true, false) => return false,
            (false, true) => return true,
            _ => {}
        }
        match (self.listens(flow.src), self.listens(flow.dst)) {
            (true, false) => return false,
            (false, true) => return true,
            _ => {}
        }
        let (low, high) = self
            .hosts
            .get(&netns)
            .and_then(|host| host.tcp.local_port_range)
            .unwrap_or(DEFAULT_PORT_RANGE);
        let ephemeral = |port: u16| (low..=high).contains(&port);
        match (ephemeral(flow.src.port()), ephemeral(flow.dst.port())) {
            (true, false) => true,
            (false, true) => false,
            _ => match (self.never_listened(flow.src), self.never_listened(flow.dst)) {
                (true, false) => true,
                (false, true) => false,
                _ => flow.src.port() > flow.dst.port(),
            },
        }
    }

    /// Whether this is the address of a local end of the case, and a socket listens there.
    fn listens(&self, address: SocketAddr) -> bool {
        let replied = self.case.sent.iter().filter_map(|at| Some((at.netns, at.value.flow()?.src)));
        let held = self.victims().map(|(netns, _, socket)| (netns, socket.flow.src));
        replied.chain(held).any(|(netns, local)| {
            local == address && self.host(netns).and_then(|host| host.listens(local)) == Some(true)
        })
    }

    /// Whether this is the address of a victim and no socket is known to have listened there. A socket that
    /// accepts a connection shares its port with a listener.
    fn never_listened(&self, address: SocketAddr) -> bool {
        self.victims().any(|(netns, _, socket)| {
            socket.flow.src == address
                && self.host(netns).and_then(|host| host.listens(address)) == Some(false)
        })
    }
}
