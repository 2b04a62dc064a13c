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
        about: "What was seen fits no cause, or fits several and no recorded event decides between \
                them. The evidence is listed with the kernel's own reason where it has one, and \
                `prove` names the cheapest test that would settle it. An `unknown` verdict never \
                carries a confidence.",
        detections: &[],
        mistaken_for: &[],
        fixes: &[],
        not_fixes: &[],
    },
    judge,
    ..Cause::BASE
};

#[expect(clippy::unnecessary_wraps, reason = "the signature of every cause's judge")]
fn judge(evidence: &Evidence<'_>) -> Option<Verdict> {
    // A segment that arrives after the client was reset only finds that the reset removed the connection.
    let unmatched = evidence.stateless().filter(|at| {
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
    } else if let Some(at) = unmatched {
        let from = at.value.trigger.map_or(String::new(), |t| t.flow.src.ip().to_string());
        (
            format!(
                "a segment from {from} reached the client's host, which does not know the \
                 connection"
            ),
            "check for NAT or IPVS on the path; its entry may have ended before tracing began, so \
             run rsttrace there and keep it running",
        )
    } else if let Some(packet) = evidence.unmatched() {
        let from = packet.flow.src.ip();
        let forgot = match evidence.may_have_forgotten() {
            true => ", as far as the records reach back",
            false => "",
        };
        (
            format!("a segment from {from} matches no connection that is known here{forgot}"),
            "a scan looks like this, and so does a connection whose server restarted or whose address \
             moved here before tracing began; check whether its sender is a client of this service",
        )
    } else if let Some(at) = evidence.sent() {
        let reason = at.value.reason.as_deref().map_or(String::new(), |r| format!(" ({r})"));
        let no_symbols = at.value.trigger.is_none() && evidence.session.lacks("kernel_symbols");
        let prove = match no_symbols {
            true => {
                "allow rsttrace to read kernel symbols (kernel.kptr_restrict, CAP_SYSLOG); the \
                 next incident then names the function that aborted the socket"
            }
            false => {
                "keep rsttrace running until the next incident; it then has a record of what ended \
                 before"
            }
        };
        (format!("this host sent the reset{reason}, and no recorded event explains it"), prove)
    } else if !evidence.session.shows_all("reset_sent") && evidence.received().is_some() {
        (
            "RST received; this kernel does not show every reset that this host sends".to_owned(),
            "capture on the interfaces of this host; a reset that arrives on none of them was sent \
             by this host",
        )
    } else if evidence.received().is_some() && evidence.lost_records() {
        (
            "RST received, but records were lost at that time, so this host may have sent it"
                .to_owned(),
            "wait for the next incident; losses are rare, and lost_events counts them",
        )
    } else if let Some(at) = evidence.received() {
        match at.value.packet {
            None => (
                "RST received, sender not on this host".to_owned(),
                "capture the reset (tcpdump 'tcp[tcpflags] & tcp-rst != 0'); with ACK a live peer \
                 aborted, without ACK the responder had no state",
            ),
            Some(_) => (
                "RST received, but a firewall module was loaded too recently to know whether it \
                 sent the reset"
                    .to_owned(),
                "wait for the next incident; the firewall's resets are seen from now on",
            ),
        }
    } else if evidence.error().is_some_and(|at| at.value.socket.err == ECONNREFUSED)
        && !evidence.sees_every_refusal()
    {
        (
            "the connect was refused, and this host may have done so: a firewall module was loaded \
             too recently, or records were lost"
                .to_owned(),
            "connect again; the firewall's answers are seen from now on",
        )
    } else if let Some(at) = evidence.error() {
        let icmp = ["tcp_v4_err", "tcp_v6_err"].iter().any(|name| has(&at.value.stack, name));
        (
            format!(
                "{} failed with {}",
                if icmp { "an ICMP error arrived and the socket" } else { "the socket" },
                rsttrace_model::errno::errno_name(at.value.socket.err)
                    .map_or(format!("errno {}", at.value.socket.err), str::to_owned)
            ),
            "capture ICMP on this host; an error that arrives from the network names its router",
        )
    } else {
        ("netfilter dropped a packet".to_owned(), "trace the packet with nft monitor trace")
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

/// A connection through IPVS whose entry was not seen to end.
fn without_entry(evidence: &Evidence<'_>, balanced: Balanced<'_>) -> (String, &'static str) {
    let service = balanced.virtual_flow.dst;
    match balanced.has_entry {
        Some(true) => {
            return (
                format!(
                    "a packet from its server reached the client untranslated, although the IPVS \
                     entry of {service} still exists"
                ),
                "check whether the server's return path still leads through the node with IPVS; \
                 compare `ip route get` on both",
            );
        }
        None => {
            return (
                format!(
                    "a packet from its server reached the client untranslated; whether the IPVS \
                     entry of {service} still exists could not be read"
                ),
                "keep rsttrace running; it then observes the end of an entry",
            );
        }
        Some(false) => {}
    }
    let idle = match evidence.idle_s() {
        Some(idle_s) => format!("after {} idle", human_s(idle_s)),
        None => "and its idle time is not known here".to_owned(),
    };
    (
        format!("{service} is an IPVS service here and had no entry for the connection, {idle}"),
        "check whether the table was flushed, a server was removed and added again, or the address \
         moved here from another node; an idle time longer than the timeout of `ipvsadm -L \
         --timeout` would be an idle expiry. Keep rsttrace running; it then observes the end of an \
         entry",
    )
}

/// A connection through NAT whose entry was not seen to end.
fn untranslated(evidence: &Evidence<'_>, translated: Translated<'_>) -> (String, &'static str) {
    let Translated { server, original, .. } = translated;
    let idle = evidence.idle_s().map_or(String::new(), |s| format!(" after {} idle", human_s(s)));
    let met =
        format!("a packet from {server} reached the client of {} untranslated{idle}", original.dst);
    if translated.has_entry {
        return (
            format!("{met}, although the conntrack entry that translates it still exists"),
            "check whether the return path still leads through the host that does the NAT; compare \
             `ip route get` on both ends",
        );
    }
    (
        format!("{met}; its conntrack entry was gone before tracing began"),
        "check whether the entry was deleted or the table flushed (conntrack -D or -F, a CNI, an \
         interface that went down); an idle time longer than \
         net.netfilter.nf_conntrack_tcp_timeout_established of the namespace that does the NAT \
         would be an idle expiry. Keep rsttrace running there; it then observes the end of an entry",
    )
}
