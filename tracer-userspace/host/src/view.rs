//! The view of the live host, or of a directory that stands in for a host.

use std::{
    collections::BTreeSet,
    io::{self, ErrorKind},
    path::Path,
};

use rsttrace_model::{
    host_state::{HostState, Machine, Netns, NotRead},
    netns::{NetnsReach, Place},
};

use super::configured;
use crate::{Host, MachineFacts, NetnsContents, NetnsScan, fixture};

/// Limit of connections whose conntrack entries are looked up, with one request each.
const MOST_TRACKED: usize = 1024;

const FIREWALL: &str = "the nftables rules";

/// Reads as much of this host as we may. Changes nothing. A failed reading is not fatal: [`HostState::not_read`]
/// lists what could not be read.
#[must_use]
pub fn read(host: &Host) -> HostState {
    let mut view = gathered(host.machine(), host.scan_all());
    let mut inodes = BTreeSet::new();
    let mut flows = Vec::new();
    for netns in &view.namespaces {
        for socket in netns.connections.iter().flat_map(|list| &list.sockets) {
            inodes.insert(socket.inode);
            flows.push(socket.flow);
        }
    }
    inodes.remove(&0);
    view.held = host.held(&inodes);
    flows.truncate(MOST_TRACKED);
    for netns in view.namespaces.iter_mut().filter(|netns| netns.translates == Some(true)) {
        netns.tracked = host.tracked_in(netns.place.netns, &flows).unwrap_or_default();
    }
    configure(&mut view, host.root());
    let hidden = host.hidden_processes();
    if hidden > 0 {
        view.not_read.push(NotRead {
            what: match hidden {
                1 => "the network namespace of 1 process".into(),
                _ => format!("the network namespaces of {hidden} processes"),
            },
            why: "ptrace access denied (requires CAP_SYS_PTRACE)".into(),
        });
    }
    view
}

/// The view of a directory that stands in for a host ([`fixture`]).
///
/// # Errors
/// When the directory contains no copy of a host.
pub fn read_root(root: &Path) -> io::Result<HostState> {
    let mut view = gathered(fixture::machine(root)?, fixture::namespaces(root));
    configure(&mut view, root);
    let replaced = ["the TCP sockets", FIREWALL];
    view.not_read.retain(|unseen| !replaced.iter().any(|it| unseen.what.starts_with(it)));
    view.not_read.push(NotRead {
        what: "sockets and accept queues".into(),
        why: "not contained in any file".into(),
    });
    for netns in view.namespaces.iter().filter(|netns| netns.firewall.is_none()) {
        view.not_read.push(NotRead {
            what: format!("{FIREWALL} {}", netns.place.describe()),
            why: "missing file nft-ruleset (the output of `nft -a list ruleset`)".into(),
        });
    }
    Ok(view)
}

fn gathered(facts: MachineFacts, scans: Vec<NetnsScan>) -> HostState {
    let mut view = HostState {
        machine: Machine {
            release: facts.release,
            cpus: facts.cpus,
            ram_bytes: facts.ram_bytes,
            ..Machine::default()
        },
        ..HostState::default()
    };
    for NetnsScan { inum, reach, contents } in scans {
        let place = Place { netns: inum, reach };
        match contents {
            Ok(contents) => {
                // Other namespaces do not show all settings of the host.
                if view.namespaces.is_empty() || place.reach == NetnsReach::Initial {
                    view.machine.values = contents.machine.clone();
                }
                let netns = netns(place, contents);
                view.not_read.extend(unread(&netns));
                view.namespaces.push(netns);
            }
            // The namespace ended during the scan.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => view.not_read.push(NotRead {
                what: format!("everything {}", place.describe()),
                why: match error.kind() {
                    ErrorKind::PermissionDenied => {
                        "entering another network namespace requires CAP_SYS_ADMIN".into()
                    }
                    _ => error.to_string(),
                },
            }),
        }
    }
    view
}

fn configure(view: &mut HostState, root: &Path) {
    view.configured = configured::read(root, &view.machine.release);
    let unread = view.configured.unread.iter();
    view.not_read.extend(unread.map(|it| match it.split_once(": ") {
        Some((what, why)) => NotRead { what: what.into(), why: why.into() },
        None => NotRead { what: it.clone(), why: String::new() },
    }));
}

fn netns(place: Place, contents: NetnsContents) -> Netns {
    let NetnsContents { state, values, addresses, connections, listeners, ipvs, .. } = contents;
    Netns {
        place,
        values,
        services: state.ipvs.and_then(|ipvs| ipvs.services),
        translates: state.translates,
        firewall: contents.firewall,
        legacy_tables: contents.legacy_tables,
        listeners: state.listeners,
        queues: listeners,
        connections,
        ipvs_table: ipvs,
        addresses,
        tracked: Vec::new(),
        conntrack: state.conntrack.map(|conntrack| conntrack.stat).unwrap_or_default(),
        tcp: state.counters,
    }
}

/// What could not be read of a namespace that was entered.
fn unread(netns: &Netns) -> Vec<NotRead> {
    let place = netns.place.describe();
    let mut list = Vec::new();
    let mut denied: Vec<&str> = netns.values.denied().collect();
    let has_ipvs = netns.ipvs_table.is_some() || denied.iter().any(|key| key.starts_with("ipvs."));
    denied.retain(|key| !key.starts_with("ipvs."));
    let denied_timeouts = netns.values.denied().any(|key| key.starts_with("ipvs."));
    if has_ipvs && denied_timeouts {
        list.push(NotRead {
            what: format!("the IPVS timeouts {place}"),
            why: "requires CAP_NET_ADMIN".into(),
        });
    }
    if !denied.is_empty() {
        list.push(NotRead {
            what: format!("{} {place}", denied.join(", ")),
            why: "cannot read the file".into(),
        });
    }
    if netns.translates.is_none() || netns.firewall.is_none() {
        list.push(NotRead {
            what: format!("{FIREWALL} {place} (NAT, INVALID packets)"),
            why: "requires CAP_NET_ADMIN".into(),
        });
    }
    if !netns.legacy_tables.is_empty() {
        list.push(NotRead {
            what: format!("the rules of {} {place}", netns.legacy_tables.join(", ")),
            why: "requires CAP_NET_ADMIN, and a copy of a host does not contain them \
                  (`iptables-legacy-save` lists them)"
                .into(),
        });
    }
    if netns.connections.is_none() {
        list.push(NotRead {
            what: format!("the TCP sockets {place}"),
            why: "tcp_diag is missing or may not be loaded".into(),
        });
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_is_read_without_privileges() {
        let host = Host::new().expect("proc is mounted");
        let view = read(&host);
        assert!(view.machine.cpus > 0 && view.machine.ram_bytes.is_some());
        let first = view.namespaces.first().expect("our own at least");
        assert!(first.values.number("net.ipv4.tcp_keepalive_time").is_some());
    }
}
