//! The signals: what we want to know of the kernel, and the ways to know it, best first.
//!
//! The ELF says which programs exist and what they need; this list says which of them together make
//! up a signal, and what stays invisible otherwise. `live` attaches from it and tells the gaps.

use std::path::Path;

/// One thing worth knowing.
pub struct Signal {
    pub id: &'static str,
    pub title: &'static str,
    /// Tried in order; the first whose hooks all attach is used.
    pub ways: &'static [Way],
    /// The module its functions live in: it may be loaded later, and unloaded.
    pub module: Option<&'static str>,
    /// What nobody can see when no way works.
    pub blind: &'static str,
}

impl Signal {
    /// What is not seen when no way works, and why, if its module is not there: then there is nothing to
    /// see.
    pub fn unseen(&self, is_absent: impl Fn(&str) -> bool) -> String {
        match self.module.filter(|module| is_absent(module)) {
            Some(module) => {
                format!("{module} is not loaded: nothing to see, and hooked as soon as it is")
            }
            None => self.blind.into(),
        }
    }
}

/// Whether a module is neither loaded nor, as far as its directory tells, built in.
pub fn is_absent(module: &str) -> bool {
    !Path::new("/sys/module").join(module).exists()
}

/// A set of hooks that together give a signal.
pub struct Way {
    /// Hook names of the ELF; each is attached by the first of its programs that this kernel takes.
    pub hooks: &'static [&'static str],
    /// A fact (see `manifest.rs`) that this kernel must have.
    pub needs: Option<&'static str>,
    /// It costs too much where a kprobe could be used as soon as its module is loaded.
    pub without_kprobes: bool,
    /// What this way does not show, in a sentence.
    pub blind: Option<&'static str>,
    /// What it costs, where that is more than the rare event it waits for.
    pub cost: Option<&'static str>,
}

const fn way(hooks: &'static [&'static str]) -> Way {
    Way { hooks, needs: None, without_kprobes: false, blind: None, cost: None }
}

impl Way {
    const fn needs(self, fact: &'static str) -> Self {
        Self { needs: Some(fact), ..self }
    }
    const fn only_without_kprobes(self) -> Self {
        Self { without_kprobes: true, ..self }
    }
    const fn blind(self, sentence: &'static str) -> Self {
        Self { blind: Some(sentence), ..self }
    }
    const fn cost(self, sentence: &'static str) -> Self {
        Self { cost: Some(sentence), ..self }
    }
}

/// What no kernel shows us, whatever is attached.
pub const NEVER_SEEN: &[&str] = &[
    "resets merely forwarded between two other hosts: only those that this host sends or receives open \
     an incident",
    "packets that never reach the kernel's TCP: XDP, AF_XDP and DPDK, offloaded TCP, user-space stacks \
     such as gVisor's",
    "packets that a firewall rule drops without an answer, where kprobes are used: a timeout does not name \
     the rule",
    "what died before tracing began: such verdicts are inferred, or unknown",
    "UDP, QUIC and SCTP: TCP only",
];

/// Looking at every dropped packet.
const EVERY_DROP: &str = "it looks at every packet that the kernel drops";

/// The second program where the kernel may leave the first one out.
const CHANGES_OF_STATE: &[Way] = &[
    way(&["inet_sock_set_state", "inet_sock_set_state_backup"])
        .needs("OFFSET_OF_bpf_prog_DOT_active"),
    way(&["inet_sock_set_state"]),
];

/// Without one of these no reset can be seen at all.
pub const ESSENTIAL: [&str; 2] = ["reset_sent", "reset_received"];

/// Every signal, in the order in which they are told.
pub const ALL: &[Signal] = &[
    Signal {
        id: "reset_sent",
        title: "a reset leaves this host, and why",
        module: None,
        ways: &[
            // Tried in this order: those before 6.10 are older than preemptible tracepoints.
            way(&["tcp_send_reset", "tcp_send_reset_backup"])
                .needs("ARG_OF_btf_trace_tcp_send_reset_DOT_sk_rst_reason"),
            way(&["tcp_send_reset", "tcp_v4_send_reset", "tcp_v6_send_reset"]),
            way(&["tcp_send_reset", "tcp_v4_send_reset"])
                .blind("IPv6 resets for packets without a socket are not seen"),
            way(&["tcp_send_reset"]).blind(
                "resets for packets without a socket are not seen (this kernel's tracepoint leaves \
                 them out, and it has no kprobes): lost IPVS and conntrack state looks like a remote \
                 reset",
            ),
        ],
        blind: "resets that this host sends are not seen",
    },
    Signal {
        id: "reset_received",
        title: "a socket of this host accepts a reset",
        module: None,
        ways: &[
            way(&["tcp_reset"]).needs("ARG_OF_tcp_reset_DOT_sk_buff"),
            way(&["tcp_receive_reset"]).blind(
                "the ACK bit and TTL of a received reset are not readable: peer_aborted and \
                 peer_state_lost cannot be told apart",
            ),
        ],
        blind: "resets that sockets of this host receive are not seen",
    },
    Signal {
        id: "socket_error",
        title: "a socket is given an error",
        module: None,
        ways: CHANGES_OF_STATE,
        blind: "timeouts are not seen: keepalive_exhausted, retransmission_timeout, user_timeout",
    },
    Signal {
        id: "socket_end",
        title: "who closed a connection",
        module: None,
        ways: CHANGES_OF_STATE,
        blind: "who closed a connection before a later packet met nothing is not known",
    },
    Signal {
        id: "ipvs_end",
        title: "an IPVS entry ends",
        module: Some("ip_vs"),
        ways: &[
            way(&["ip_vs_conn_expire", "ip_vs_conn_expire_now"])
                .needs("OFFSET_OF_ip_vs_conn_DOT_timer"),
            way(&["timer_expire_entry"])
                .needs("ADDRESS_OF_ip_vs_conn_expire")
                .only_without_kprobes()
                .cost("it runs, and compares one pointer, whenever any kernel timer expires")
                .blind(
                "IPVS entries that end by a server's removal or the drop_entry defence are not seen, \
                 only those that run out",
            ),
        ],
        blind: "IPVS entries ending are not seen (ip_vs is not loaded, or cannot be hooked): \
                ipvs_idle_expired can only be inferred",
    },
    Signal {
        id: "ipvs_no_server",
        title: "an IPVS service has no server for a connection",
        module: Some("ip_vs"),
        ways: &[way(&["ip_vs_leave"]).needs("OFFSET_OF_ip_vs_service_DOT_port")],
        blind: "connections that IPVS refuses for want of a server are not seen (ip_vs is not loaded, or \
                cannot be hooked): no_backend looks like connection_refused",
    },
    Signal {
        id: "ipvs_server_removed",
        title: "a real server is taken out of an IPVS service, and by whom",
        module: Some("ip_vs"),
        ways: &[
            way(&["__ip_vs_del_dest", "kfree_skb"])
                .needs("OFFSET_OF_ip_vs_dest_DOT_vaddr")
                .cost(
                    "for an hour after a removal without vs/expire_nodest_conn it looks at every packet \
                     that the kernel drops",
                ),
            way(&["__ip_vs_del_dest"]).needs("OFFSET_OF_ip_vs_dest_DOT_vaddr").blind(
                "packets that IPVS drops for a removed server are not seen: ends that are both elsewhere \
                 are not told of it",
            ),
        ],
        blind: "who takes real servers out of IPVS is not seen (ip_vs is not loaded, or cannot be hooked): \
                ipvs_server_removed can only be correlated",
    },
    Signal {
        id: "conntrack_end",
        title: "a conntrack entry ends, and by whom",
        module: Some("nf_conntrack"),
        ways: &[way(&["nf_ct_delete"])],
        blind: "conntrack entries ending are not seen: conntrack_idle_expired and conntrack_deleted \
                cannot be told",
    },
    Signal {
        id: "conntrack_full",
        title: "a full conntrack table drops a packet",
        module: Some("nf_conntrack"),
        ways: &[
            way(&["early_drop", "kfree_skb"]),
            way(&["kfree_skb_netfilter"])
                .needs("VALUE_OF_skb_drop_reason_DOT_SKB_DROP_REASON_NETFILTER_DROP")
                .only_without_kprobes()
                .cost(EVERY_DROP)
                .blind(
                    "a full conntrack table is told from a DROP rule by the table's count only",
                ),
        ],
        blind: "packets dropped by a full conntrack table are not seen",
    },
    Signal {
        id: "conntrack_invalid",
        title: "conntrack judges a packet of a translated connection INVALID",
        module: Some("nf_conntrack"),
        ways: &[way(&["nf_ct_l4proto_log_invalid"])],
        blind: "packets that conntrack judges INVALID are not seen: conntrack_invalid cannot be told",
    },
    Signal {
        id: "conntrack_clash",
        title: "NAT finds no free tuple for a new connection",
        module: Some("nf_conntrack"),
        ways: &[way(&["nf_ct_resolve_clash", "nf_ct_resolve_clash_return"])],
        blind: "packets dropped because NAT found no free port are not seen: nat_port_exhausted \
                cannot be told",
    },
    Signal {
        id: "firewall_reset",
        title: "an IPv4 firewall rule answers with a reset or an ICMP error",
        module: Some("nf_reject_ipv4"),
        ways: &[way(&["nf_send_reset", "nf_send_unreach"]), FIREWALL_BY_DROP],
        blind: "rejects by IPv4 firewall rules are not seen (no reject rule has loaded nf_reject_ipv4)",
    },
    Signal {
        id: "firewall_reset6",
        title: "an IPv6 firewall rule answers with a reset or an ICMP error",
        module: Some("nf_reject_ipv6"),
        ways: &[way(&["nf_send_reset6", "nf_send_unreach6"]), FIREWALL_BY_DROP],
        blind: "rejects by IPv6 firewall rules are not seen (no reject rule has loaded nf_reject_ipv6)",
    },
];

/// The one way to a firewall's answer without kprobes.
const FIREWALL_BY_DROP: Way = way(&["kfree_skb_netfilter"])
    .needs("VALUE_OF_skb_drop_reason_DOT_SKB_DROP_REASON_NETFILTER_DROP")
    .only_without_kprobes()
    .cost(EVERY_DROP)
    .blind(
        "a firewall's reset or ICMP error is inferred from the drop of the packet it answers, and only \
         when its receiver is on this host",
    );

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{live::OBJECT, manifest::Manifest};

    /// `None` in a build without the object, which `cargo xtask test` never is.
    fn manifest() -> Option<Manifest> {
        if OBJECT.is_empty() {
            eprintln!("no eBPF object in this build: nothing to compare");
            return None;
        }
        Some(Manifest::from_elf(OBJECT).expect("the object's names follow the grammar"))
    }

    #[test]
    fn every_hook_of_the_object_belongs_to_a_signal_and_every_signals_hook_exists() {
        let Some(manifest) = manifest() else { return };
        let hooks: BTreeSet<&str> = manifest.programs.iter().map(|p| p.hook.as_str()).collect();
        let named: BTreeSet<&str> =
            ALL.iter().flat_map(|s| s.ways).flat_map(|way| way.hooks).copied().collect();
        let lonely: Vec<_> = hooks.difference(&named).collect();
        let missing: Vec<_> = named.difference(&hooks).collect();
        assert!(lonely.is_empty(), "hooks that no signal in this file names: {lonely:?}");
        assert!(missing.is_empty(), "hooks that signals name and the object lacks: {missing:?}");
    }

    #[test]
    fn every_signal_a_cause_needs_is_one_of_these() {
        for cause in rsttrace_core::causes::ALL {
            for need in cause.doc.detections.iter().flat_map(|detection| detection.needs) {
                let looked_up = crate::host_access::ALL.iter().map(|it| it.id);
                let mut known = ALL.iter().map(|it| it.id).chain(looked_up);
                assert!(known.any(|id| id == need.signal()), "{cause:?}: {need:?}");
            }
        }
    }

    #[test]
    fn every_fact_a_way_needs_is_a_fact_of_the_object() {
        let Some(manifest) = manifest() else { return };
        let facts: BTreeSet<&str> = manifest.facts.iter().map(|f| f.symbol.as_str()).collect();
        for needed in ALL.iter().flat_map(|s| s.ways).filter_map(|way| way.needs) {
            assert!(facts.contains(needed), "{needed}");
        }
    }
}
