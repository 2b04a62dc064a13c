//! Evidence listed, no verdict: never a guess.

use rsttrace_model::{errno::ECONNREFUSED, units::human_s};

use super::{cause::Cause, doc::Doc};
use crate::{
    event::has,
    evidence::{Balanced, Evidence, Translated},
    verdict::{Family, Finding, Verdict},
};

pub const CAUSE: Cause = Cause {
    id: "unknown",
    family: Family::Unknown,
    title: "evidence listed, no verdict",
    doc: Doc {
        about: "What was seen fits no cause, or fits several and nothing on record decides. The \
                evidence is listed with the kernel's own reason where it has one, and `prove` names the \
                cheapest test that would settle it. It never carries a confidence.",
        signs: &[],
        mistaken_for: &[],
        fixes: &[],
        not_fixes: &[],
    },
    judge,
    ..Cause::BASE
};

#[expect(clippy::unnecessary_wraps, reason = "the signature of every cause's judge")]
fn judge(evidence: &Evidence<'_>) -> Option<Verdict> {
    // What strays in after the client was reset only meets what the reset left behind.
    let strayed = evidence.stateless().filter(|at| {
        let here = at.value.trigger.map(|trigger| trigger.flow.dst);
        evidence.client_view().map(|flow| flow.src) == here
            && evidence
                .received()
                .is_none_or(|reset| reset.ts > at.ts || Some(reset.value.socket.flow.src) != here)
    });
    let (why, prove) = if let Some(balanced) = evidence.balanced() {
        without_entry(evidence, balanced)
    } else if let Some(translated) = evidence.translated() {
        untranslated(evidence, translated)
    } else if let Some(at) = strayed {
        let from = at.value.trigger.map_or(String::new(), |t| t.flow.src.ip().to_string());
        (
            format!(
                "a segment from {from} reached the client's host for a connection it does not know"
            ),
            "is there NAT or IPVS on the way? its entry may have ended before tracing began: run rsttrace \
             there, and keep it running",
        )
    } else if let Some(at) = evidence.sent() {
        let reason = at.value.reason.as_deref().map_or(String::new(), |r| format!(" ({r})"));
        let nameless = at.value.trigger.is_none() && evidence.session.lacks("kernel_symbols");
        let prove = match nameless {
            true => {
                "let kernel symbols be read (kernel.kptr_restrict, CAP_SYSLOG): the next one then names \
                 the function that aborted the socket"
            }
            false => {
                "keep rsttrace running before the next one: what died earlier is then on record"
            }
        };
        (format!("this host sent the reset{reason}, and nothing on record explains it"), prove)
    } else if !evidence.session.shows_all("reset_sent") && evidence.received().is_some() {
        (
            "RST received; this kernel does not show every reset that this host sends".to_owned(),
            "capture on the interfaces of this host: a reset that comes from none of them was made here",
        )
    } else if evidence.received().is_some() && evidence.lost_records() {
        (
            "RST received, and records were lost at that time: this host may have sent it"
                .to_owned(),
            "wait for the next one: losses are rare, and are counted in lost_events",
        )
    } else if let Some(at) = evidence.received() {
        match at.value.packet {
            None => (
                "RST received, sender not on this host".to_owned(),
                "capture the reset (tcpdump 'tcp[tcpflags] & tcp-rst != 0'): with ACK a live peer \
                 aborted, without ACK somebody had no state",
            ),
            Some(_) => (
                "RST received, and a firewall module was loaded too recently to know its part"
                    .to_owned(),
                "wait for the next one: the firewall's resets are seen from now on",
            ),
        }
    } else if evidence.error().is_some_and(|at| at.value.socket.err == ECONNREFUSED)
        && !evidence.sees_every_rule()
    {
        (
            "the connect was refused, and a firewall module was loaded too recently to know its part"
                .to_owned(),
            "connect again: the firewall's answers are seen from now on",
        )
    } else if let Some(at) = evidence.error() {
        let icmp = ["tcp_v4_err", "tcp_v6_err"].iter().any(|name| has(&at.value.stack, name));
        (
            format!(
                "{} failed with {}",
                if icmp { "an ICMP error came: the socket" } else { "the socket" },
                rsttrace_model::errno::errno_name(at.value.socket.err)
                    .map_or(format!("errno {}", at.value.socket.err), str::to_owned)
            ),
            "capture ICMP on this host: an error that arrives from the network names its router",
        )
    } else {
        ("a packet was dropped by netfilter".to_owned(), "nft monitor trace")
    };
    let mut findings = Vec::new();
    if let Some((loss, end)) = evidence.ipvs() {
        findings.push(super::ipvs_idle_expired::finding(evidence, loss.ts, end));
    }
    if let Some((loss, end)) = evidence.conntrack() {
        findings.push(Finding {
            kind: "conntrack_ended",
            ts: loss.ts,
            summary: format!("conntrack entry {} (reply {}) had ended", end.original, end.reply),
        });
    }
    Some(Verdict { confidence: None, why, findings, prove: Some(prove.into()) })
}

/// A connection through IPVS of which nobody saw the entry end.
fn without_entry(evidence: &Evidence<'_>, balanced: Balanced<'_>) -> (String, &'static str) {
    let service = balanced.virtual_flow.dst;
    match balanced.has_entry {
        Some(true) => {
            return (
                format!(
                    "a packet of its server reached the client untranslated, though {service} still has \
                     its IPVS entry"
                ),
                "does the server's way back still lead through the node that balances? compare `ip route \
                 get` on both",
            );
        }
        None => {
            return (
                format!(
                    "a packet of its server reached the client untranslated; whether {service} still \
                     has its IPVS entry could not be read"
                ),
                "keep rsttrace running: the end of an entry is then seen",
            );
        }
        Some(false) => {}
    }
    let idle = match evidence.idle_s() {
        Some(idle_s) => format!("after {} of silence", human_s(idle_s)),
        None => "and how long it was silent is not known here".to_owned(),
    };
    (
        format!("{service} is an IPVS service here and had no entry for it, {idle}"),
        "was the table flushed, a server removed and added again, or the address moved here from another \
         node? silence longer than the timeout of `ipvsadm -L --timeout` would be an idle expiry. Keep \
         rsttrace running: the end of an entry is then seen",
    )
}

/// A connection through NAT of which nobody saw the entry end.
fn untranslated(evidence: &Evidence<'_>, translated: Translated<'_>) -> (String, &'static str) {
    let Translated { server, original, .. } = translated;
    let idle = evidence.idle_s().map_or(String::new(), |s| format!(" after {}", human_s(s)));
    let met =
        format!("a packet of {server} reached the client of {} untranslated{idle}", original.dst);
    if translated.has_entry {
        return (
            format!("{met}, though the conntrack entry that translates it still exists"),
            "does the way back still lead through the host that does the NAT? compare `ip route get` on \
             both ends",
        );
    }
    (
        format!("{met}: its conntrack entry was gone before tracing began"),
        "was the entry deleted or the table flushed (conntrack -D or -F, a CNI, an interface that went \
         down)? silence longer than net.netfilter.nf_conntrack_tcp_timeout_established of the namespace \
         that does the NAT would be an idle expiry. Keep rsttrace running there: the end of an entry is \
         then seen",
    )
}
