//! Addresses of interfaces.

use std::net::IpAddr;

use crate::firewall::{Interface, Outgoing};

/// An address of an interface.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    pub ip: IpAddr,
    /// Number of the interface.
    pub index: u32,
    /// Name of the interface; IPv4 only.
    pub interface: Option<String>,
    /// It has a lifetime, as DHCP gives.
    pub leased: bool,
    /// The link has an other end, as of PPP or a tunnel.
    pub point_to_point: bool,
}

impl Address {
    /// One that somebody set for good.
    pub fn fixed(ip: IpAddr) -> Self {
        Self { ip, index: 1, interface: None, leased: false, point_to_point: false }
    }

    /// Whether packets that leave through its interface meet a rule for these.
    pub fn leaves(&self, out: &Outgoing) -> bool {
        let is = |interface: &Interface| match (interface, &self.interface) {
            (Interface::Index(index), _) => self.index == *index,
            (Interface::Name(name), Some(own)) => own == name,
            (Interface::Prefix(prefix), Some(own)) => own.starts_with(prefix.as_str()),
            (Interface::Name(_) | Interface::Prefix(_), None) => false,
        };
        match out {
            Outgoing::All => true,
            Outgoing::Only(interface) => is(interface),
            Outgoing::Except(interface) => !is(interface),
            // Which those are is not read.
            Outgoing::Some => false,
        }
    }
}
