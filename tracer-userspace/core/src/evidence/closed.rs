//! Whether the end that reset the connection had closed it before. Then the reset says so, whatever else ended
//! meanwhile: with its IPVS or conntrack entry alive, the closed socket would have reset the packet too.

use std::net::SocketAddr;

use rsttrace_model::flow::Nanos;

use super::facts::{Evidence, TOLERANCE};
use crate::{
    event::{EndedSocket, SocketEnd},
    verdict::Confidence,
};

/// The FIN of a close is itself a received segment, at most this long in flight.
const IN_FLIGHT: Nanos = 1_000_000_000;

/// The end that reset the connection, before it did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ResettingEnd<'a> {
    /// It had not sent a FIN, or a process still holds its socket.
    Open,
    /// The client had sent a FIN. Whether it was a close is not known.
    ClientShut,
    /// The server had sent a FIN. Whether it was a close is not known.
    ServerShut,
    /// Its application had closed it.
    Closed(&'a SocketEnd),
}

impl<'a> Evidence<'a> {
    /// What is known of the end that reset the connection because it had no socket.
    pub fn resetting_end(&self) -> ResettingEnd<'a> {
        let Some((at, packet)) = self.stateless().and_then(|at| Some((at, at.value.trigger?)))
        else {
            let peer = self.received().map(|at| at.value.socket.flow.dst);
            return peer.map_or(ResettingEnd::Open, |peer| self.shut(peer));
        };
        let here = packet.flow.dst;
        let server = self.real_server(here);
        let mut ended = self.baseline.ended(at.netns, packet.flow).iter();
        let its_own = |it: &&EndedSocket| {
            let is_at_end =
                (it.netns == at.netns && it.flow.src == here) || Some(it.flow.src) == server;
            is_at_end
                && self.case.identity.flows().contains(&it.flow.key())
                && self.explains(&it.end)
        };
        match ended.find(its_own) {
            Some(EndedSocket { held: Some(true), .. }) => ResettingEnd::Open,
            Some(EndedSocket { held: Some(false), end, .. }) => ResettingEnd::Closed(end),
            _ if self.is_held(at.netns, here) => ResettingEnd::Open,
            _ => self.shut(here),
        }
    }

    /// The confidence of a lost entry, whose end is on record: observed if the reset's sender, or the rule that answered
    /// because the entry was missing, is on record too, and inferred if the server may have closed the connection before.
    pub fn lost_entry_confidence(&self) -> Confidence {
        if self.resetting_end() == ResettingEnd::ServerShut {
            return Confidence::Inferred;
        }
        let seen = match self.plain_loss() {
            Some(_) => {
                self.rejected().is_some()
                    || self.drops.iter().any(|it| it.1.rejected_by().is_some())
            }
            None => self.stateless().is_some(),
        };
        match seen && !self.zone_is_ambiguous {
            true => Confidence::Observed,
            false => Confidence::Correlated,
        }
    }

    /// Whether an end of this connection's socket came before the reset, and not before the victim last received. A victim
    /// that has not received the FIN and was heard of since belongs to a later connection of the tuple.
    fn explains(&self, end: &SocketEnd) -> bool {
        let alive = self.last_received().unwrap_or(0);
        let slack = if self.peer_closed() { IN_FLIGHT } else { TOLERANCE };
        end.err == 0 && end.ts < self.case.opened && end.ts.saturating_add(slack) >= alive
    }

    /// The server for which an address stood, according to the entry that was lost.
    fn real_server(&self, address: SocketAddr) -> Option<SocketAddr> {
        let ipvs = self.ipvs().map(|(_, end)| (end.virtual_flow.dst, end.real_flow.dst));
        let nat = self.conntrack().map(|(_, end)| (end.original.dst, end.reply.src));
        ipvs.or(nat).filter(|(service, _)| *service == address).map(|(_, server)| server)
    }

    /// Whether a process holds a socket of this connection at this address.
    fn is_held(&self, netns: u32, here: SocketAddr) -> bool {
        let packet = self.stateless().and_then(|at| at.value.trigger);
        let lookup = packet.and_then(|packet| self.baseline.lookup(netns, packet.flow));
        let mut sockets = lookup.into_iter().flat_map(|lookup| lookup.sockets.iter().flatten());
        sockets.any(|socket| {
            let own = self.case.identity.flows().contains(&socket.flow.key());
            socket.flow.src == here && own && socket.inode != 0
        })
    }

    /// What the state of the lost IPVS entry and of a victim shows of the end at this address.
    fn shut(&self, here: SocketAddr) -> ResettingEnd<'a> {
        let is_client = self.client_view().is_some_and(|view| view.src == here);
        let by_entry = self.ipvs().is_some_and(|(_, end)| match is_client {
            true => end.client_had_closed(),
            false => end.server_had_closed(),
        });
        match by_entry || self.peer_closed() {
            false => ResettingEnd::Open,
            true if is_client => ResettingEnd::ClientShut,
            true => ResettingEnd::ServerShut,
        }
    }
}
