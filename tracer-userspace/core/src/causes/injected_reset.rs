//! A device between the ends sent the reset in the peer's name.

use rsttrace_model::{tcp_flag, tcp_state, units::human_s};

use super::{
    cause::Cause,
    doc::{Detection, Doc, RequiredSignal},
    foreign_reset::{idle_before, without_sender},
    remedy,
};
use crate::{
    evidence::{Evidence, seconds},
    fix::{Fix, FixOwner, Remedy, Risk},
    verdict::{Confidence, Family, Finding, NotFix, Verdict},
};

pub const CAUSE: Cause = Cause {
    id: "injected_reset",
    family: Family::Remote,
    title: "a device between the ends sent the reset in the peer's name",
    doc: Doc {
        about: "A socket of this host accepted a reset that its peer did not send. Intrusion \
                prevention systems, load balancers and tools such as tcpkill make a segment with \
                the peer's addresses and the right sequence number, and may send one to each end. \
                Where the peer's socket is on this host too, it is still open, and no hook saw it \
                send a reset. Elsewhere only the timing shows it: a TCP stack sends a reset without \
                ACK only in answer to a segment, and this socket had sent none.",
        detections: &[
            Detection::observed(
                "the peer's socket is on this host and still open after the reset, and every reset \
                 that this host sends would have been seen",
                &[RequiredSignal::Any("reset_received"), RequiredSignal::Full("reset_sent")],
            ),
            Detection::inferred(
                "the reset had no ACK, and the socket had sent nothing for 10 s or more that it \
                 could answer",
                &[RequiredSignal::Full("reset_received"), RequiredSignal::Full("reset_sent")],
            ),
        ],
        mistaken_for: &[
            ("peer_aborted", "the peer's socket sent the reset itself, and is gone"),
            ("peer_state_lost", "the reset answers a segment that this host had just sent"),
            (
                "middlebox_idle_timeout",
                "a device resets every connection at the same idle time, and breaks were measured",
            ),
        ],
        fixes: &[FIND_SENDER],
        not_fixes: NOT_FIXES,
    },
    judge,
    fixes,
    not_fixes,
    unseen_origin: Some("remote"),
    ..Cause::BASE
};

const FIND_SENDER: Remedy = Remedy {
    id: "find_the_sender",
    owner: FixOwner::Firewall,
    risk: Risk::Low,
    summary: "find the device that sends resets in the peer's name, and change its policy",
    reason: "neither application closed the connection",
    how: "capture at both ends (tcpdump 'tcp[tcpflags] & tcp-rst != 0' -v) and compare the TTL of the \
          reset with that of the peer's other segments: the difference is the distance of the sender; \
          look for an intrusion prevention system, a proxy, or tcpkill there",
};

const NOT_FIXES: &[(&str, &str)] = &[
    ("any keepalive or timeout sysctl", "the reset is not the end of a timer of either host"),
    ("a change at the peer's application", "it did not close the connection"),
];

fn judge(evidence: &Evidence<'_>) -> Option<Verdict> {
    let at = without_sender(evidence)?;
    let (ts, peer) = (at.ts, at.value.socket.flow.dst);
    if let Some((netns, socket)) = evidence.living_peer() {
        let place = evidence.place(netns).describe();
        let why = format!(
            "the peer's socket {peer} {place} is still open and sent no reset; a device or program \
             between the ends sent it"
        );
        let found = Finding {
            kind: "peer_still_open",
            ts,
            summary: format!(
                "after the reset the socket {peer} {place} was in state {}, held by a process",
                tcp_state::name(socket.state)
            ),
        };
        return Some(Verdict::new(Confidence::Observed, why).finding(found).prove(
            "capture the reset on every interface on the path (tcpdump -ni any 'tcp[tcpflags] & tcp-rst \
             != 0'): the sender is behind the first interface that shows it",
        ));
    }
    let packet = at.value.packet?;
    let idle = idle_before(&at.value.socket, ts)?;
    if packet.has(tcp_flag::ACK) {
        return None;
    }
    let idle = human_s(seconds(idle));
    Some(
        Verdict::new(
            Confidence::Inferred,
            format!(
                "a reset without ACK arrived that answers nothing: the socket had sent no segment \
                 for {idle}, so a device on the path sent it in the name of {peer}"
            ),
        )
        .finding(Finding {
            kind: "unsolicited_rst",
            ts,
            summary: format!(
                "RST without ACK from {peer}, TTL {}, {idle} after the last segment",
                packet.ttl
            ),
        })
        .prove(format!(
            "run rsttrace on the host of {}: its socket then still exists and sent no reset",
            peer.ip()
        )),
    )
}

fn fixes(_: &Evidence<'_>) -> Vec<Fix> {
    vec![FIND_SENDER.fix()]
}

fn not_fixes(_: &Evidence<'_>) -> Vec<NotFix> {
    remedy::to_not_fixes(NOT_FIXES)
}
