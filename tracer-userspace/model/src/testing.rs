//! Short literals for tests.

use std::net::SocketAddr;

use crate::flow::Flow;

/// # Panics
/// When `text` is not an address and port.
pub fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address literal")
}

/// # Panics
/// When one of them is not an address and port.
pub fn flow(src: &str, dst: &str) -> Flow {
    Flow { src: address(src), dst: address(dst) }
}
