//! User space deleted the conntrack entry of a connection behind NAT.

use rsttrace_model::units::human_s;

use super::{
    cause::Cause,
    doc::{Detection, Doc, RequiredSignal},
    remedy,
};
use crate::{
    causes::cause::Facts,
    evidence::Evidence,
    fix::{Fix, FixOwner, Remedy, Risk},
    verdict::{Family, Finding, NotFix, Verdict},
};

pub const CAUSE: Cause = Cause {
    id: "conntrack_deleted",
    family: Family::StateLost,
    title: "user space deleted the conntrack entry",
    doc: Doc {
        about: "A program deleted the conntrack entry of a connection (conntrack -D or -F, \
                kube-proxy, a CNI agent). Without NAT this matters only to a rule that tests the \
                conntrack state: the next packet counts as new. Behind NAT the translation is \
                lost with the entry. If the \
                server sends first, its packet leaves untranslated and the client's host resets \
                it. If the client sends first, conntrack picks the flow up again (tcp_loose=1) and \
                translates it anew, perhaps to another server or from another port. The server \
                that receives the packet then does not know the connection and resets it.",
        detections: &[
            Detection::observed(
                "nf_ct_delete ran for a netlink port, in the context of the deleting process, and \
                 a TCP stack without this connection reset the next packet",
                &[RequiredSignal::Any("conntrack_end"), RequiredSignal::Full("reset_sent")],
            ),
            Detection::correlated(
                "the deletion was seen, the sender of the reset was not",
                &[RequiredSignal::Any("conntrack_end"), RequiredSignal::Any("reset_received")],
            ),
            Detection::inferred(
                "the same, and the server had sent its FIN before; whether it had closed its socket is \
                 not known",
                &[RequiredSignal::Any("conntrack_end")],
            ),
        ],
        mistaken_for: &[
            (
                "conntrack_idle_expired",
                "there is no netlink port, and the entry's deadline had passed",
            ),
            (
                "conntrack -L",
                "it removes only entries whose deadline had already passed; those count as expired",
            ),
            (
                "an entry without NAT that no rule needs",
                "nothing breaks; the next packet creates a new entry",
            ),
        ],
        fixes: &[STOP_DELETING],
        not_fixes: NOT_FIXES,
    },
    judge,
    fixes,
    not_fixes,
    facts: Facts::CONNTRACK,
    ..Cause::BASE
};

const STOP_DELETING: Remedy = Remedy {
    id: "stop_deleting_tcp_entries",
    owner: FixOwner::Node,
    risk: Risk::Low,
    summary: "stop the tool from deleting entries of live TCP connections",
    reason: "NAT and stateful rules depend on the entry; only UDP needs such deletions",
    how: "limit the deletion to UDP (conntrack -D -p udp …), or drain the connections first",
};

const NOT_FIXES: &[(&str, &str)] = &[(
    "net.netfilter.nf_conntrack_tcp_timeout_established",
    "the entry did not time out, it was deleted",
)];

fn judge(evidence: &Evidence<'_>) -> Option<Verdict> {
    if !evidence.looks_like_lost_state() {
        return None;
    }
    let (loss, end) = evidence.conntrack()?;
    // A lookup by rsttrace itself also removes an expired entry that it finds.
    let own = end.task.pid == evidence.session.pid && end.task.pid != 0;
    if end.portid == 0 || own {
        return None;
    }
    let confidence = evidence.lost_entry_confidence();
    // Netlink requests run in the sender's own context, so `current` is the deleter.
    let who = end.task.to_string();
    Some(
        Verdict::new(confidence, format!("its conntrack entry had been deleted by {who}")).finding(
            Finding {
                kind: "conntrack_deleted",
                ts: loss.ts,
                summary: format!(
                    "{who} deleted the conntrack entry {} (reply {}) {}, {} earlier",
                    end.original,
                    end.reply,
                    evidence.place(loss.netns).describe(),
                    human_s(evidence.age_s(loss.ts)),
                ),
            },
        ),
    )
}

fn fixes(evidence: &Evidence<'_>) -> Vec<Fix> {
    let who = evidence.conntrack().map_or("the tool".into(), |(_, end)| end.task.comm.clone());
    vec![Fix {
        summary: format!("stop {who} from deleting entries of live TCP connections"),
        ..STOP_DELETING.fix()
    }]
}

fn not_fixes(_: &Evidence<'_>) -> Vec<NotFix> {
    remedy::to_not_fixes(NOT_FIXES)
}
