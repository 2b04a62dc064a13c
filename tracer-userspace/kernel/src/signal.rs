//! The signals that the kernel can be traced for, and the ways to attach to each, best first.
//!
//! The ELF file lists the programs and what each of them needs. The list below groups these programs into
//! signals, and describes what is not traced without them. `live` attaches the programs of this list and
//! reports the gaps.

use std::path::Path;

/// One kind of kernel event, or one property of events, that can be traced.
pub struct Signal {
    pub id: &'static str,
    pub title: &'static str,
    /// Tried in order; the first whose hooks all attach is used.
    pub ways: &'static [AttachOption],
    /// The kernel module of the hooked functions. It may be loaded and unloaded while we trace.
    pub module: Option<&'static str>,
    /// What is not traced when no way works.
    pub blind: &'static str,
}

impl Signal {
    /// What is not traced when no way works. While the module is absent there is nothing to trace.
    pub fn unseen(&self, is_absent: impl Fn(&str) -> bool) -> String {
        match self.module.filter(|module| is_absent(module)) {
            Some(module) => {
                format!(
                    "{module} is not loaded, so there is nothing to trace; its hooks attach \
                     automatically when it loads"
                )
            }
            None => self.blind.into(),
        }
    }
}

/// Whether a module has no directory in `/sys/module`: it is not loaded, or built in without parameters.
pub fn is_absent(module: &str) -> bool {
    !Path::new("/sys/module").join(module).exists()
}

/// A set of hooks that together provide a signal.
pub struct AttachOption {
    /// Hook names of the ELF. Of each hook's programs, the first that this kernel accepts is attached.
    pub hooks: &'static [&'static str],
    /// A fact (see [`crate::manifest`]) that this kernel must have.
    pub needs: Option<&'static str>,
    /// Its cost is too high on a kernel with kprobes, where a kprobe can be attached once the module is loaded. Used there
    /// only where the functions of the better ways cannot be hooked.
    pub without_kprobes: bool,
    /// What is not traced this way, as a sentence.
    pub blind: Option<&'static str>,
    /// When its programs run, if that is more often than the rare event that the signal is about.
    pub cost: Option<&'static str>,
}

const fn way(hooks: &'static [&'static str]) -> AttachOption {
    AttachOption { hooks, needs: None, without_kprobes: false, blind: None, cost: None }
}

impl AttachOption {
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

/// What cannot be traced on any kernel, whatever is attached.
pub const NEVER_SEEN: &[&str] = &[
    "resets that are only forwarded between two other hosts: an incident opens only for a reset that this \
     host sends or receives",
    "packets that never reach the kernel's TCP stack: XDP, AF_XDP and DPDK, offloaded TCP, user-space \
     stacks such as gVisor's",
    "sockets and table entries that ended before tracing began: verdicts that need them are inferred or \
     unknown",
    "UDP, QUIC and SCTP: only TCP is traced",
];

/// The cost of a program on `kfree_skb`.
const EVERY_DROP: &str = "the program checks the reason of every packet that the kernel drops";

/// The backup program is needed where the kernel may skip a run of the first one.
const CHANGES_OF_STATE: &[AttachOption] = &[
    way(&["inet_sock_set_state", "inet_sock_set_state_backup"])
        .needs("OFFSET_OF_bpf_prog_DOT_active"),
    way(&["inet_sock_set_state"]),
];

/// Without one of these no reset can be traced at all.
pub const ESSENTIAL: [&str; 2] = ["reset_sent", "reset_received"];

/// Every signal, in the order in which they are listed.
pub const ALL: &[Signal] = &[
    Signal {
        id: "reset_sent",
        title: "this host sends a reset, and why",
        module: None,
        ways: &[
            // The backup first: kernels before 6.10 do not need one, as their tracepoints are not
            // preemptible.
            way(&["tcp_send_reset", "tcp_send_reset_backup"])
                .needs("ARG_OF_btf_trace_tcp_send_reset_DOT_sk_rst_reason"),
            way(&["tcp_send_reset", "tcp_v4_send_reset", "tcp_v6_send_reset"]),
            way(&["tcp_send_reset", "tcp_v4_send_reset"])
                .blind("IPv6 resets for packets without a socket are not traced"),
            way(&["tcp_send_reset"]).blind(
                "resets for packets without a socket are not traced (this kernel's tracepoint omits \
                 them, and there are no kprobes), so lost IPVS and conntrack state looks like a remote \
                 reset",
            ),
        ],
        blind: "resets that this host sends are not traced",
    },
    Signal {
        id: "reset_received",
        title: "a socket of this host accepts a reset",
        module: None,
        ways: &[
            way(&["tcp_reset"]).needs("ARG_OF_tcp_reset_DOT_sk_buff"),
            way(&["tcp_receive_reset"]).blind(
                "the ACK bit and TTL of a received reset cannot be read, so peer_aborted and \
                 peer_state_lost become unknown",
            ),
        ],
        blind: "resets that sockets of this host receive are not traced",
    },
    Signal {
        id: "socket_error",
        title: "a socket is closed with an error (sk_err)",
        module: None,
        ways: CHANGES_OF_STATE,
        blind: "connection timeouts are not traced, so keepalive_exhausted, retransmission_timeout and \
                user_timeout are not reported",
    },
    Signal {
        id: "socket_end",
        title: "which task closed a connection",
        module: None,
        ways: CHANGES_OF_STATE,
        blind: "the task that closed a connection is unknown when a later packet finds no socket",
    },
    Signal {
        id: "ipvs_end",
        title: "an IPVS connection entry ends",
        module: Some("ip_vs"),
        ways: &[
            way(&["ip_vs_conn_expire", "ip_vs_conn_expire_now"])
                .needs("OFFSET_OF_ip_vs_conn_DOT_timer"),
            way(&["timer_expire_entry"])
                .needs("ADDRESS_OF_ip_vs_conn_expire")
                .only_without_kprobes()
                .cost("the program runs and compares one pointer whenever any kernel timer expires")
                .blind(
                "only IPVS entries that expire are traced, not those that end because a real server was \
                 removed or by the drop_entry defence",
            ),
        ],
        blind: "the end of an IPVS entry is not traced (ip_vs is not loaded, or cannot be hooked), so \
                ipvs_idle_expired can only be inferred",
    },
    Signal {
        id: "ipvs_no_server",
        title: "an IPVS service has no real server for a new connection",
        module: Some("ip_vs"),
        ways: &[way(&["ip_vs_leave"]).needs("OFFSET_OF_ip_vs_service_DOT_port")],
        blind: "connections that IPVS refuses because it has no real server are not traced (ip_vs is not \
                loaded, or cannot be hooked), so no_backend looks like connection_refused",
    },
    Signal {
        id: "ipvs_server_removed",
        title: "a real server is removed from an IPVS service, and by which task",
        module: Some("ip_vs"),
        ways: &[
            way(&["__ip_vs_del_dest", "kfree_skb"])
                .needs("OFFSET_OF_ip_vs_dest_DOT_vaddr")
                .cost(
                    "for one hour after a real server is removed while vs/expire_nodest_conn is 0, the \
                     program checks every packet that the kernel drops",
                ),
            way(&["__ip_vs_del_dest"]).needs("OFFSET_OF_ip_vs_dest_DOT_vaddr").blind(
                "packets that IPVS drops because their real server was removed are not traced, so \
                 nothing is reported when both ends of the connection are on other hosts",
            ),
        ],
        blind: "the removal of a real server from IPVS is not traced (ip_vs is not loaded, or cannot be \
                hooked), so ipvs_server_removed can only be correlated",
    },
    Signal {
        id: "conntrack_end",
        title: "a conntrack entry ends, and what ended it",
        module: Some("nf_conntrack"),
        ways: &[way(&["nf_ct_delete"])],
        blind: "the end of a conntrack entry is not traced, so conntrack_idle_expired can only be \
                inferred and conntrack_deleted becomes unknown",
    },
    Signal {
        id: "nat_chain_removed",
        title: "a NAT chain is removed, and by which task",
        module: Some("nf_nat"),
        ways: &[way(&["nf_nat_unregister_fn"])],
        blind: "the removal of NAT chains is not traced (nf_nat is not loaded, or cannot be hooked), so \
                nat_removed looks like retransmission_timeout",
    },
    Signal {
        id: "conntrack_full",
        title: "a packet is dropped because the conntrack table is full",
        module: Some("nf_conntrack"),
        ways: &[
            way(&["early_drop", "kfree_skb"]),
            way(&["kfree_skb_netfilter"])
                .needs("VALUE_OF_skb_drop_reason_DOT_SKB_DROP_REASON_NETFILTER_DROP")
                .only_without_kprobes()
                .cost(EVERY_DROP)
                .blind(
                    "only the table's entry count distinguishes a full conntrack table from a DROP \
                     rule",
                ),
        ],
        blind: "packets dropped because the conntrack table is full are not traced",
    },
    Signal {
        id: "rule_drop",
        title: "netfilter drops a TCP packet without an answer",
        module: None,
        ways: &[
            way(&["kfree_skb_rule"])
                .needs("VALUE_OF_skb_drop_reason_DOT_SKB_DROP_REASON_NETFILTER_DROP")
                .cost(EVERY_DROP),
            way(&["kfree_skb_rule"]).needs("ADDRESS_OF_nf_hook_slow").cost(EVERY_DROP),
        ],
        blind: "packets that a firewall rule drops without an answer are not traced, so a timeout does not name \
                the rule",
    },
    Signal {
        id: "conntrack_invalid",
        title: "conntrack marks a packet of a connection with NAT as INVALID",
        module: Some("nf_conntrack"),
        ways: &[way(&["nf_ct_l4proto_log_invalid"])],
        blind: "packets that conntrack marks INVALID are not traced, so conntrack_invalid becomes \
                unknown",
    },
    Signal {
        id: "conntrack_clash",
        title: "NAT finds no free tuple for a new connection",
        module: Some("nf_conntrack"),
        ways: &[way(&["nf_ct_resolve_clash", "nf_ct_resolve_clash_return"])],
        blind: "packets dropped because NAT found no free port are not traced, so nat_port_exhausted \
                becomes unknown",
    },
    Signal {
        id: "firewall_reset",
        title: "an IPv4 firewall rule rejects a packet with a reset or an ICMP error",
        module: Some("nf_reject_ipv4"),
        ways: &[way(&["nf_send_reset", "nf_send_unreach"]), FIREWALL_BY_DROP],
        blind: "rejects by IPv4 firewall rules are not traced (no reject rule has loaded nf_reject_ipv4)",
    },
    Signal {
        id: "firewall_reset6",
        title: "an IPv6 firewall rule rejects a packet with a reset or an ICMP error",
        module: Some("nf_reject_ipv6"),
        ways: &[way(&["nf_send_reset6", "nf_send_unreach6"]), FIREWALL_BY_DROP],
        blind: "rejects by IPv6 firewall rules are not traced (no reject rule has loaded nf_reject_ipv6)",
    },
];

/// The only way to trace a firewall's answer without kprobes.
const FIREWALL_BY_DROP: AttachOption = way(&["kfree_skb_netfilter"])
    .needs("VALUE_OF_skb_drop_reason_DOT_SKB_DROP_REASON_NETFILTER_DROP")
    .only_without_kprobes()
    .cost(EVERY_DROP)
    .blind(
        "a firewall's reset or ICMP error is inferred from the drop of the packet that it answers, and \
         only when the receiver of the reset or ICMP error is on this host",
    );

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{live::OBJECT, manifest::Manifest};

    /// `None` in a build without the object. `cargo xtask test` always has it.
    fn manifest() -> Option<Manifest> {
        if OBJECT.is_empty() {
            eprintln!("skipped: no eBPF object in this build");
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
        let unused: Vec<_> = hooks.difference(&named).collect();
        let missing: Vec<_> = named.difference(&hooks).collect();
        assert!(unused.is_empty(), "hooks that no signal in this file names: {unused:?}");
        assert!(missing.is_empty(), "hooks that signals name and the object lacks: {missing:?}");
    }

    #[test]
    fn every_signal_that_a_cause_needs_is_listed() {
        for cause in rsttrace_core::causes::ALL {
            for need in cause.doc.detections.iter().flat_map(|detection| detection.needs) {
                let looked_up = crate::host_access::ALL.iter().map(|it| it.id);
                let mut known = ALL.iter().map(|it| it.id).chain(looked_up);
                assert!(known.any(|id| id == need.signal()), "{cause:?}: {need:?}");
            }
        }
    }

    #[test]
    fn every_fact_that_a_way_needs_is_in_the_object() {
        let Some(manifest) = manifest() else { return };
        let facts: BTreeSet<&str> = manifest.facts.iter().map(|f| f.symbol.as_str()).collect();
        for needed in ALL.iter().flat_map(|s| s.ways).filter_map(|way| way.needs) {
            assert!(facts.contains(needed), "{needed}");
        }
    }
}
