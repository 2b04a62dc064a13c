//! The namespaces of one scenario: a client, a node that forwards, one or two servers.
//!
//! ```text
//!   client 10.N.1.2 ──── 10.N.1.1 node 10.N.2.1 ──── 10.N.2.2 server
//!                           VIP 10.N.100.1 │
//!                                     10.N.3.1 ───── 10.N.3.2 spare
//! ```
//!
//! N is the scenario's number, so that the addresses of an incident identify its scenario. IPv6 is the same with
//! `fd00:N:1::2` and so on.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
};

use anyhow::{Context, Result};

use crate::{netns::Namespace, tools};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Client,
    Node,
    Server,
    /// A second server.
    Spare,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Node => "node",
            Self::Server => "server",
            Self::Spare => "spare",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topology {
    /// Client and server on one link; everything else is routed to the server.
    Direct,
    /// Through the node, to one server.
    Routed,
    /// Through the node, to two servers.
    RoutedTwo,
}

impl Topology {
    fn roles(self) -> &'static [Role] {
        match self {
            Self::Direct => &[Role::Client, Role::Server],
            Self::Routed => &[Role::Client, Role::Node, Role::Server],
            Self::RoutedTwo => &[Role::Client, Role::Node, Role::Server, Role::Spare],
        }
    }
}

/// The addresses of one scenario.
#[derive(Clone, Copy, Debug)]
pub struct Net {
    number: u8,
    v6: bool,
}

impl Net {
    pub fn new(number: u8) -> Self {
        Self { number, v6: false }
    }

    /// The same hosts with their IPv6 addresses.
    pub fn v6(self) -> Self {
        Self { v6: true, ..self }
    }

    fn ip(&self, subnet: u8, host: u8) -> IpAddr {
        if self.v6 {
            let [number, subnet, host] = [self.number, subnet, host].map(u16::from);
            IpAddr::V6(Ipv6Addr::new(0xfd00, number, subnet, 0, 0, 0, 0, host))
        } else {
            IpAddr::V4(Ipv4Addr::new(10, self.number, subnet, host))
        }
    }

    pub fn client(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip(1, 2), port)
    }

    pub fn server(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip(2, 2), port)
    }

    /// The node's address on the servers' side.
    pub fn node(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip(2, 1), port)
    }

    pub fn spare(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip(3, 2), port)
    }

    /// The address of the service.
    pub fn vip(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip(100, 1), port)
    }

    /// The node's address on the server's link, and an unused address on that link.
    pub fn node_addresses(&self) -> (IpAddr, IpAddr) {
        (self.ip(2, 1), self.ip(2, 3))
    }

    /// A host that is not on this machine: only a raw socket answers for it.
    pub fn remote(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip(9, 9), port)
    }

    /// A client that is not on this machine.
    pub fn remote_client(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip(9, 8), port)
    }

    pub fn owns(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(ip) => ip.octets()[..2] == [10, self.number],
            IpAddr::V6(ip) => match ip.to_ipv4_mapped() {
                Some(ip) => self.owns(IpAddr::V4(ip)),
                None => ip.segments()[..2] == [0xfd00, u16::from(self.number)],
            },
        }
    }
}

/// `::ffff:a.b.c.d`, as a dual-stack program addresses an IPv4 peer.
pub fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) => SocketAddr::new(IpAddr::V6(ip.to_ipv6_mapped()), address.port()),
        IpAddr::V6(_) => address,
    }
}

pub struct Lab {
    namespaces: Vec<(Role, Namespace)>,
}

impl Lab {
    pub fn build(net: Net, topology: Topology) -> Result<Self> {
        let name = |role: Role| format!("rt{}-{}", net.number, role.name());
        let mut batch = String::new();
        for &role in topology.roles() {
            if Path::new("/run/netns").join(name(role)).exists() {
                // Left over from a run that was killed.
                writeln!(batch, "netns del {}", name(role))?;
            }
            writeln!(batch, "netns add {}", name(role))?;
        }
        for (one, its_link, other, other_link) in links(topology) {
            let (one, other) = (name(one), name(other));
            writeln!(
                batch,
                "link add {its_link} netns {one} type veth peer name {other_link} netns {other}"
            )?;
        }
        tools::run(None, "ip -batch -", &batch).context("make the namespaces")?;
        let mut lab = Self { namespaces: Vec::new() };
        for &role in topology.roles() {
            let namespace = Namespace::open(&name(role))?;
            namespace
                .ip(&interior(net, topology, role))
                .with_context(|| format!("set up {}", namespace.name()))?;
            if role == Role::Node {
                namespace.sysctl("net/ipv4/ip_forward", 1)?;
                namespace.sysctl("net/ipv6/conf/all/forwarding", 1)?;
            }
            lab.namespaces.push((role, namespace));
        }
        Ok(lab)
    }

    pub fn inodes(&self) -> Vec<(Role, u64)> {
        self.namespaces.iter().map(|(role, namespace)| (*role, namespace.inode())).collect()
    }

    pub fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        self.namespaces.iter().map(|(_, namespace)| namespace)
    }

    fn namespace(&self, role: Role) -> Result<&Namespace> {
        self.namespaces
            .iter()
            .find_map(|(has, namespace)| (*has == role).then_some(namespace))
            .with_context(|| format!("this topology has no {}", role.name()))
    }

    pub fn client(&self) -> Result<&Namespace> {
        self.namespace(Role::Client)
    }

    pub fn node(&self) -> Result<&Namespace> {
        self.namespace(Role::Node)
    }

    pub fn server(&self) -> Result<&Namespace> {
        self.namespace(Role::Server)
    }

    pub fn spare(&self) -> Result<&Namespace> {
        self.namespace(Role::Spare)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let mut batch = String::new();
        for (_, namespace) in &self.namespaces {
            let _ = writeln!(batch, "netns del {}", namespace.name());
        }
        if let Err(error) = tools::run(None, "ip -batch -", &batch) {
            eprintln!("# teardown: {error:#}");
        }
    }
}

/// Pairs of (namespace, its interface, other namespace, its interface).
fn links(topology: Topology) -> Vec<(Role, &'static str, Role, &'static str)> {
    match topology {
        Topology::Direct => vec![(Role::Client, "eth0", Role::Server, "eth0")],
        Topology::Routed | Topology::RoutedTwo => {
            let mut links = vec![
                (Role::Client, "eth0", Role::Node, "client"),
                (Role::Server, "eth0", Role::Node, "server"),
            ];
            if topology == Topology::RoutedTwo {
                links.push((Role::Spare, "eth0", Role::Node, "spare"));
            }
            links
        }
    }
}

/// The `ip` commands that run inside one namespace.
fn interior(net: Net, topology: Topology, role: Role) -> String {
    let mut lines = String::from("link set lo up\n");
    let mut interface = |name: &str, subnet: u8, host: u8, gateway: Option<(u8, u8)>| {
        // Direct has a single link, with all subnets of the scenario.
        let (bits, bits6) = if topology == Topology::Direct { (16, 32) } else { (24, 48) };
        let v6 = net.v6();
        lines += &format!("link set {name} up\n");
        lines += &format!("addr add {}/{bits} dev {name}\n", net.ip(subnet, host));
        lines += &format!("addr add {}/{bits6} dev {name} nodad\n", v6.ip(subnet, host));
        if let Some((subnet, host)) = gateway {
            lines += &format!("route add default via {}\n", net.ip(subnet, host));
            lines += &format!("route add default via {}\n", v6.ip(subnet, host));
        }
    };
    match (topology, role) {
        (Topology::Direct, Role::Client) => {
            interface("eth0", 1, 2, None);
            lines += &format!("route add {} via {}\n", net.ip(9, 9), net.ip(2, 2));
        }
        (Topology::Direct, _) => interface("eth0", 2, 2, None),
        (_, Role::Client) => interface("eth0", 1, 2, Some((1, 1))),
        (_, Role::Server) => interface("eth0", 2, 2, Some((2, 1))),
        (_, Role::Spare) => interface("eth0", 3, 2, Some((3, 1))),
        (_, Role::Node) => {
            interface("client", 1, 1, None);
            interface("server", 2, 1, None);
            if topology == Topology::RoutedTwo {
                interface("spare", 3, 1, None);
            }
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_belong_to_one_scenario_only() {
        let (mine, other) = (Net::new(12), Net::new(13));
        for address in [mine.client(1), mine.vip(1), mine.v6().server(1), mapped(mine.spare(1))] {
            assert!(mine.owns(address.ip()), "{address}");
            assert!(!other.owns(address.ip()), "{address}");
        }
        assert!(!Net::new(0).owns(IpAddr::V6(Ipv6Addr::LOCALHOST)));
    }

    #[test]
    fn every_link_of_a_topology_joins_namespaces_that_it_has() {
        for topology in [Topology::Direct, Topology::Routed, Topology::RoutedTwo] {
            for (one, _, other, _) in links(topology) {
                assert!(topology.roles().contains(&one) && topology.roles().contains(&other));
            }
        }
    }
}
