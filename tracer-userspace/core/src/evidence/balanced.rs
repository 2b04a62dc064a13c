//! A connection through IPVS whose entry is not on record, reconstructed from the services, the sockets and
//! the tables of the host.

use std::net::SocketAddr;

use rsttrace_model::{
    flow::{Flow, Nanos},
    ipvs::{IPPROTO_TCP, IpvsService},
    lookup::StateLookup,
    socket::SocketState,
    tcp_state,
};

use super::{facts::Evidence, reconstructed::Balanced};
use crate::{
    case::Stamped,
    event::{Packet, ResetSent, Socket},
};

/// `ip_vs_conn.flags & IP_VS_CONN_F_FWD_MASK`: only masquerading translates addresses.
const MASQUERADING: u32 = 0;

/// A SYN and a FIN count as a byte each.
const CONTROL: u64 = 2;

impl<'a> Evidence<'a> {
    pub(super) fn find_balanced(&self) -> Option<Balanced<'a>> {
        if self.has_loss() || self.invalid.is_some() {
            return None;
        }
        let at = self.stateless()?;
        let packet = at.value.trigger?;
        self.answered_for_service(at, packet).or_else(|| self.untranslated_to_client(at, packet))
    }

    /// The TCP stack of the virtual address answered the client's packet.
    fn answered_for_service(
        &self,
        at: &Stamped<ResetSent>,
        packet: Packet,
    ) -> Option<Balanced<'a>> {
        let service = self.ipvs_service(at.netns, packet.flow.dst)?;
        Some(Balanced {
            netns: at.netns,
            virtual_flow: packet.flow,
            server: self.server_of(at.netns, service, packet.flow),
            client: None,
            // With an entry, IPVS would have accepted the packet.
            has_entry: Some(false),
            read: at.ts,
        })
    }

    /// The real server's packet was not translated back, and the client's host has a connection to the service
    /// only.
    fn untranslated_to_client(
        &self,
        at: &Stamped<ResetSent>,
        packet: Packet,
    ) -> Option<Balanced<'a>> {
        let lookup = self.baseline.lookup(at.netns, packet.flow)?;
        let victim = self.victims().map(|(_, _, socket)| socket);
        let victim = victim.into_iter().find(|socket| socket.flow == packet.flow);
        let mut found = None;
        for socket in lookup.sockets.as_deref()? {
            let service = socket.flow.dst;
            let Some(netns) = self.ipvs_namespace(service, packet.flow.src) else {
                continue;
            };
            if victim.is_some_and(|victim| !are_one_connection(socket, victim)) {
                continue;
            }
            if found.is_some() {
                return None;
            }
            found = Some(Balanced {
                netns,
                virtual_flow: socket.flow,
                server: Some(packet.flow.src),
                client: Some(socket),
                has_entry: has_entry(lookup, netns, socket.flow, at.ts),
                read: lookup.read,
            });
        }
        found
    }

    /// The namespace whose IPVS service sends connections to this server.
    fn ipvs_namespace(&self, service: SocketAddr, server: SocketAddr) -> Option<u32> {
        self.hosts.iter().find_map(|(netns, host)| {
            let services = host.ipvs.as_ref()?.services.as_ref()?;
            let forwards = services
                .iter()
                .filter(|it| {
                    it.protocol == IPPROTO_TCP && (it.ip, it.port) == (service.ip(), service.port())
                })
                .any(|it| servers(it).any(|known| known == server));
            forwards.then_some(*netns)
        })
    }

    fn server_of(
        &self,
        netns: u32,
        service: &IpvsService,
        virtual_flow: Flow,
    ) -> Option<SocketAddr> {
        if let Some(server) = self.baseline.server(netns, virtual_flow) {
            return servers(service).find(|known| *known == server);
        }
        if service.destinations.iter().any(|it| it.forward != MASQUERADING) {
            return None;
        }
        let holds = |server: &SocketAddr| {
            let flow = Flow { src: *server, dst: virtual_flow.src };
            self.baseline.peers_of(flow.dst).contains(&flow.src)
                || self.victims().any(|(_, _, socket)| socket.flow == flow)
        };
        let all: Vec<_> = servers(service).collect();
        let holders: Vec<_> = all.iter().copied().filter(holds).collect();
        match (&holders[..], &all[..]) {
            ([one], _) | ([], [one]) => Some(*one),
            _ => None,
        }
    }
}

/// Real servers that receive the client's packets translated.
fn servers(service: &IpvsService) -> impl Iterator<Item = SocketAddr> + '_ {
    service
        .destinations
        .iter()
        .filter(|it| it.forward == MASQUERADING)
        .map(|it| SocketAddr::new(it.ip, it.port))
}

/// Whether the table of a namespace has an entry that had not expired by `ts`. `None` when unknown.
fn has_entry(lookup: &StateLookup, netns: u32, virtual_flow: Flow, ts: Nanos) -> Option<bool> {
    let found = lookup.ipvs.iter().find(|found| found.netns == netns)?;
    let ends = |left_s: u32| found.read.saturating_add((u64::from(left_s) + 1) * 1_000_000_000);
    let alive = (found.table.entries.iter())
        .any(|entry| entry.virtual_flow == virtual_flow && ends(entry.left_s) > ts);
    (alive || !found.table.truncated).then_some(alive)
}

/// Whether two sockets can be the ends of one connection: one has received what the other has had
/// acknowledged.
pub(super) fn are_one_connection(client: &SocketState, server: &Socket) -> bool {
    if client.state != tcp_state::ESTABLISHED && server.state == tcp_state::ESTABLISHED {
        return false;
    }
    let (Some(received), Some(acked)) = (client.bytes_received, client.bytes_acked) else {
        return true;
    };
    received <= server.bytes_sent.saturating_add(CONTROL)
        && acked <= server.bytes_received.saturating_add(CONTROL)
        && server.bytes_received <= acked.saturating_add(u64::from(client.send_queue))
}
