//! A connection behind NAT whose conntrack entry is not on record, reconstructed from its two sockets.

use rsttrace_model::socket::SocketState;

use super::{balanced::are_one_connection, facts::Evidence, reconstructed::Translated};

impl<'a> Evidence<'a> {
    pub(super) fn find_translated(&self) -> Option<Translated<'a>> {
        if self.has_loss() || self.invalid.is_some() || self.balanced.is_some() {
            return None;
        }
        let at = self.stateless()?;
        let packet = at.value.trigger?.flow;
        let (_, _, victim) = self.victims().find(|(_, _, socket)| socket.flow == packet)?;
        let lookup = self.baseline.lookup(at.netns, packet)?;
        let is_its_client = |socket: &&SocketState| {
            socket.flow.dst != packet.src
                // Two connections without payload cannot be distinguished.
                && socket.bytes_received.is_some_and(|bytes| bytes > 0)
                && victim.bytes_received > 0
                && are_one_connection(socket, victim)
        };
        let client = only(lookup.sockets.iter().flatten().filter(is_its_client))?;
        let entries = lookup.conntrack.iter().flat_map(|found| &found.entries);
        Some(Translated {
            original: client.flow,
            server: packet.src,
            netns: self.nat_namespace(),
            has_entry: entries.into_iter().any(|entry| entry.original == client.flow),
            client,
            read: lookup.read,
        })
    }

    /// The namespace that does NAT for this connection. Both ends are on this host, so if only one namespace
    /// has NAT rules, those rules apply.
    fn nat_namespace(&self) -> Option<u32> {
        only(self.hosts.iter().filter(|(_, host)| host.translates != Some(false)))
            .filter(|(_, host)| host.translates == Some(true))
            .map(|(netns, _)| *netns)
    }
}

fn only<T>(mut items: impl Iterator<Item = T>) -> Option<T> {
    let first = items.next()?;
    items.next().is_none().then_some(first)
}
