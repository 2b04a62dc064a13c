//! User space deleted the conntrack entry of a connection behind NAT.

use super::{Cause, Family, NotFix, Verdict, human_s, nothing_ruled_out};
use crate::{
    evidence::Evidence,
    fix::{Change, Fix, FixOwner, Risk},
    incident::Finding,
};

pub const CAUSE: Cause = Cause {
    id: "conntrack_deleted",
    family: Family::StateLost,
    title: "user space deleted the conntrack entry",
    judge,
    rule_out: nothing_ruled_out,
    fixes,
    not_fixes,
};

fn judge(evidence: &Evidence<'_>) -> Option<Verdict> {
    if !evidence.looks_like_lost_state() {
        return None;
    }
    let (loss, end) = evidence.conntrack()?;
    if end.portid == 0 {
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
                    "{who} deleted the entry {} (reply {}) {}, {} before",
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
        id: "stop_deleting_tcp_entries",
        owner: FixOwner::Node,
        risk: Risk::Low,
        summary: format!("stop {who} from deleting entries of live TCP connections"),
        reason: "NAT forgets the translation with the entry; only UDP needs such flushes".into(),
        current: None,
        wanted: None,
        changes: vec![Change::Advice {
            text: "limit the deletion to udp (conntrack -D -p udp …), or drain connections first"
                .into(),
        }],
    }]
}

fn not_fixes(_: &Evidence<'_>) -> Vec<NotFix> {
    vec![(
        "net.netfilter.nf_conntrack_tcp_timeout_established".into(),
        "the entry did not time out, it was deleted".into(),
    )]
}
