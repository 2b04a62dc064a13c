//! Connections whose entry is not on record, reconstructed from the state of the host.

use std::net::SocketAddr;

use rsttrace_model::{
    flow::{Flow, Nanos},
    socket::SocketState,
};

/// A connection through IPVS, reconstructed from services, sockets and tables.
#[derive(Clone, Copy, Debug)]
pub struct Balanced<'a> {
    /// Namespace of the service.
    pub netns: u32,
    /// Client to virtual service.
    pub virtual_flow: Flow,
    /// The real server, where only one is possible and it receives the client's packets translated.
    pub server: Option<SocketAddr>,
    /// The client's socket, where a segment of the server reached its host untranslated.
    pub client: Option<&'a SocketState>,
    /// Whether its entry still exists; `None` when unknown.
    pub has_entry: Option<bool>,
    /// When the state was read.
    pub(super) read: Nanos,
}

impl Balanced<'_> {
    /// When the client's socket last heard from its peer.
    pub fn client_heard(&self) -> Option<Nanos> {
        Some(self.read.saturating_sub(self.client?.heard_ns_before()?))
    }
}

/// A connection behind NAT, reconstructed from its two sockets. The server's packet reached the client's host
/// untranslated, and the client's socket has another address as its peer: a host on the path translated the
/// connection before and does not any more.
#[derive(Clone, Copy, Debug)]
pub struct Translated<'a> {
    /// Client to server, as the client addressed it.
    pub original: Flow,
    /// The server that has the connection.
    pub server: SocketAddr,
    /// The only namespace of this host that has rules for NAT.
    pub netns: Option<u32>,
    /// Its entry still exists.
    pub has_entry: bool,
    pub(super) client: &'a SocketState,
    pub(super) read: Nanos,
}

impl Translated<'_> {
    /// When the client's socket last heard from its peer.
    pub fn client_heard(&self) -> Option<Nanos> {
        Some(self.read.saturating_sub(self.client.heard_ns_before()?))
    }
}
