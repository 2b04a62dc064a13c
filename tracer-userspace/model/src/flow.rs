//! A connection's addresses, and kernel time.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// CLOCK_MONOTONIC nanoseconds.
pub type Nanos = u64;

/// One direction of a connection; for a socket `src` is the local side. IPv4-mapped IPv6 addresses
/// are IPv4 here, so that a mapped socket and the packets of its connection have the same key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Flow {
    pub src: SocketAddr,
    pub dst: SocketAddr,
}

impl Flow {
    pub fn reversed(self) -> Self {
        Self { src: self.dst, dst: self.src }
    }

    /// The same value for both directions.
    pub fn key(self) -> Self {
        if self.src <= self.dst { self } else { self.reversed() }
    }
}

impl std::fmt::Display for Flow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} -> {}", self.src, self.dst)
    }
}
