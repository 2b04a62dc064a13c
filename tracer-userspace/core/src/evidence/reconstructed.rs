//! Connections whose entry is not on record, put together from what exists.

use std::net::SocketAddr;

use rsttrace_model::{
    flow::{Flow, Nanos},
    socket::SocketState,
};

/// What is left of a connection through IPVS.
#[derive(Clone, Copy, Debug)]
pub struct Balanced<'a> {
    /// Namespace of the service.
    pub netns: u32,
    /// Client to virtual service.
    pub virtual_flow: Flow,
    /// The real server, where only one can be meant and it sees the client's packets translated.
    pub server: Option<SocketAddr>,
    /// The client's own socket, where a segment of the server strayed to its host.
    pub client: Option<&'a SocketState>,
    /// Whether its entry exists still; `None` when nobody can tell.
    pub has_entry: Option<bool>,
    /// When that was read.
    pub(super) read: Nanos,
}

impl Balanced<'_> {
    /// When the client's socket last heard from its peer.
    pub fn client_heard(&self) -> Option<Nanos> {
        Some(self.read.saturating_sub(self.client?.heard_ns_before()?))
    }
}

/// The server's packet reached the client's host as it left, and the client's socket knows another
/// address: somebody on the way had translated it, and does no more.
#[derive(Clone, Copy, Debug)]
pub struct Translated<'a> {
    /// As the client called.
    pub original: Flow,
    /// Who has the connection.
    pub server: SocketAddr,
    /// The only namespace of this host that has rules for NAT.
    pub netns: Option<u32>,
    /// Its entry exists still.
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
