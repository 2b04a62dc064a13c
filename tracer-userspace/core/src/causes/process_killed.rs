//! The owning process died with data unread.

use super::{
    cause::Cause,
    close_unread_data,
    doc::{Detection, Doc, RequiredSignal},
    remedy,
};
use crate::{
    evidence::Evidence,
    fix::Fix,
    verdict::{Confidence, Family, Finding, NotFix, Verdict},
};

pub const CAUSE: Cause = Cause {
    id: "process_killed",
    family: Family::Application,
    title: "the owning process died with data unread",
    doc: Doc {
        about: "A process died of a signal or ended with an error while its sockets held unread \
                data. The kernel closes the files of the process, and a close with unread data \
                resets the peer (RFC 2525 2.17). A process that dies with everything read sends a \
                FIN like any other.",
        detections: &[Detection::observed(
            "the reset of a close with unread data, sent by an exiting process that was killed or \
             has a status other than 0",
            &[RequiredSignal::Any("reset_sent"), RequiredSignal::Any("kernel_symbols")],
        )],
        mistaken_for: &[
            ("close_unread_data", "the process kept running, or ended with status 0"),
            ("socket_gone", "the packet arrived after the process had ended"),
        ],
        fixes: &[remedy::STOP_GRACEFULLY],
        not_fixes: NOT_FIXES,
    },
    judge,
    fixes,
    not_fixes,
    ..Cause::BASE
};

const NOT_FIXES: &[(&str, &str)] =
    &[("net.ipv4.tcp_keepalive_*", "the connection was not idle; its owner died")];

fn judge(evidence: &Evidence<'_>) -> Option<Verdict> {
    let (at, unread) = close_unread_data::abort(evidence)?;
    let task = &at.value.task;
    if !task.died() {
        return None;
    }
    let who = task.to_string();
    let how = task.ending()?;
    Some(Verdict::new(Confidence::Observed, format!("{who} {how} with data unread")).finding(
        Finding {
            kind: "process_died",
            ts: at.ts,
            summary: format!("{who} {how}; its socket still held {unread}"),
        },
    ))
}

fn fixes(evidence: &Evidence<'_>) -> Vec<Fix> {
    let died = close_unread_data::abort(evidence).map(|(at, _)| &at.value.task);
    vec![died.map_or_else(|| remedy::STOP_GRACEFULLY.fix(), remedy::stop_gracefully)]
}

fn not_fixes(_: &Evidence<'_>) -> Vec<NotFix> {
    remedy::to_not_fixes(NOT_FIXES)
}
