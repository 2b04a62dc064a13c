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
    /// The address has a lifetime, as with DHCP.
    pub leased: bool,
    /// The link is point-to-point, as with PPP or a tunnel.
    pub point_to_point: bool,
}

impl Address {
    /// A static address.
    pub fn fixed(ip: IpAddr) -> Self {
        Self { ip, index: 1, interface: None, leased: false, point_to_point: false }
    }

    /// Whether a rule for these interfaces applies to packets that leave through its interface.
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
            // The interfaces of the set are not read.
            Outgoing::Some => false,
        }
    }
}
