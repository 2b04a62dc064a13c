//! Which rules can answer a packet to one address and port with a reset or an ICMP error. Every chain is followed
//! from its hook, and each rule is evaluated for the packet, as far as it depends on the destination alone.

mod ruleset;
#[cfg(test)]
mod tests;
mod walk;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::Path,
};

use rsttrace_model::firewall::{Answer, Rejecting};
use ruleset::Ruleset;
use tracer_common::net::IPPROTO_TCP;

use super::{has_nf_tables, legacy, legacy_in};

pub(super) use walk::{Body, Rule, Rules};

/// What is known of the packet: it goes to `dst`, by TCP.
#[derive(Clone, Copy)]
pub(super) struct Packet {
    pub dst: SocketAddr,
}

impl Packet {
    pub(super) fn is_v4(self) -> bool {
        self.dst.is_ipv4()
    }

    pub(super) fn address(self) -> Vec<u8> {
        match self.dst.ip() {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        }
    }

    /// The key of kube-proxy's maps: address, protocol and port, each in whole words.
    fn key(self) -> Vec<u8> {
        let port = self.dst.port().to_be_bytes();
        [&self.address(), [IPPROTO_TCP, 0, 0, 0].as_slice(), &port, &[0, 0]].concat()
    }
}

/// One part of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// A condition: whether it holds, if that is known.
    Test(Option<bool>),
    Comment(String),
    /// The comment of the map element that the packet matches.
    Because(String),
    Reject(Answer),
    Verdict(Verdict),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Ends the chains of the hook: accept, drop, queue.
    Ends,
    Returns,
    Jump(String),
    Goto(String),
}

/// The rules of the calling thread's namespace.
///
/// # Errors
/// When the rules cannot be read.
pub(super) fn read(dst: SocketAddr) -> io::Result<Vec<Rejecting>> {
    let packet = Packet { dst };
    let mut rules = Rules::default();
    for table in legacy_in(Path::new("/proc/thread-self/net")) {
        legacy::parts(&table, packet, &mut rules)?;
    }
    // A netlink request would load the module.
    if !has_nf_tables() {
        return Ok(rules.rejecting(&mut |_| Ok(Vec::new())));
    }
    let (mut link, mut ruleset) = Ruleset::read(&mut rules)?;
    Ok(rules.rejecting(&mut |rule| {
        let mut find = |family, table: &str, set: &str, key: &[u8]| {
            ruleset::element(&mut link, family, table, set, key)
        };
        ruleset.parts(rule, packet, &mut find)
    }))
}
