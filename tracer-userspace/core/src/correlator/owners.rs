//! Which process is at each end of a connection.

use std::{collections::VecDeque, net::SocketAddr};

use rsttrace_model::{
    flow::{Flow, Nanos},
    owner::{Owner, OwnerBy},
};

use crate::{
    event::{ResetSent, Socket, Task, Via, has},
    evidence::Evidence,
    incident::Side,
    verdict::Family,
};

/// Answers of each kind that are kept until their incident is reported.
const MAX_ANSWERS: usize = 4096;

/// How long a reading of a pid is valid for later closes: one reading answers all queries for the same pid
/// within a second.
const PID_VALID_FOR: Nanos = 2_000_000_000;

/// The answers of the host to queries for processes.
#[derive(Default)]
pub struct Owners {
    /// By inode.
    sockets: VecDeque<(u64, Owner)>,
    processes: VecDeque<Process>,
}

/// A process as it was read at a time.
struct Process {
    seen: Nanos,
    started: Nanos,
    owner: Owner,
}

impl Owners {
    pub fn socket_is(&mut self, inode: u64, owner: Owner) {
        push(&mut self.sockets, (inode, owner));
    }

    pub fn process_is(&mut self, seen: Nanos, started: Nanos, owner: Owner) {
        push(&mut self.processes, Process { seen, started, owner });
    }

    /// The owner of a socket; without an answer, the process that connected it.
    fn of_socket(&self, socket: &Socket) -> Option<Owner> {
        let answered = self
            .sockets
            .iter()
            .rev()
            .find(|(inode, _)| socket.inode != 0 && *inode == socket.inode)
            .map(|(_, owner)| owner.clone());
        answered.or_else(|| socket.opener.as_ref().map(Owner::from))
    }

    /// The process of a task that closed a socket at a time. The process that was read for the pid counts
    /// only if it had started by then.
    fn of_closer(&self, (at, task): (Nanos, &Task)) -> Owner {
        let known = self.processes.iter().rev().find(|process| {
            process.owner.pid == task.pid
                && process.started <= at
                && at <= process.seen.saturating_add(PID_VALID_FOR)
        });
        let owner = match known {
            Some(process) => process.owner.clone(),
            None => Owner { pid: task.pid, comm: task.comm.clone(), ..Owner::default() },
        };
        Owner { by: OwnerBy::Close, ..owner }
    }
}

fn push<T>(list: &mut VecDeque<T>, item: T) {
    if list.len() >= MAX_ANSWERS {
        list.pop_front();
    }
    list.push_back(item);
}

/// The task that closed the socket for which a reset is sent, and when. Never an unrelated task: a close does
/// not run in softirq, and an unreadable stack proves nothing.
pub fn closing_task(sent: &ResetSent, at: Nanos) -> Option<(Nanos, &Task)> {
    /// Functions that a task reaches by its own call or by its exit.
    const CLOSES: [&str; 4] = ["inet_release", "inet6_release", "tcp_close", "tcp_disconnect"];
    /// Below these functions `current` did not close the socket: softirqs, kernel threads, `ss -K`.
    const UNRELATED: [&str; 5] =
        ["__do_softirq", "handle_softirqs", "run_timer_softirq", "kthread", "tcp_abort"];
    let passes = |names: &[&str]| names.iter().any(|name| has(&sent.stack, name));
    let (ts, task) = match (&sent.trigger, &sent.end) {
        // A firewall rule answers whether or not there is a socket.
        _ if sent.via == Via::Netfilter => return None,
        // A socket that ended with an error was not closed by a task.
        (Some(_), Some(end)) if end.err == 0 => (end.ts, &end.task),
        (None, _) if passes(&CLOSES) && !passes(&UNRELATED) => (at, &sent.task),
        _ => return None,
    };
    (task.pid != 0).then_some((ts, task))
}

/// The processes of a case.
#[derive(Default)]
pub struct Ends {
    /// The process that has to act, with its side: where an application caused the break, that application;
    /// otherwise the process that lost its connection. Where it is unknown, the process at the other end.
    pub owner: Option<(Side, Owner)>,
    /// The process at the other end.
    pub peer: Option<Owner>,
}

/// Finds the processes at both ends, as far as they are on this host. `side` gives the end to which an address
/// belongs.
pub fn ends(
    evidence: &Evidence<'_>,
    family: Family,
    owners: &Owners,
    side: impl Fn(SocketAddr) -> Option<Side>,
) -> Ends {
    let src = |flow: Option<Flow>| flow.map(|flow| flow.src);
    let victims =
        evidence.victims().map(|(_, _, socket)| (Some(socket.flow.src), owners.of_socket(socket)));
    let resetting = evidence.case.sent.iter().filter_map(|at| {
        let by_socket = || at.value.socket.as_ref().and_then(|socket| owners.of_socket(socket));
        let by_call = closing_task(&at.value, at.ts).map(|closer| owners.of_closer(closer));
        Some((src(at.value.flow()), Some(by_call.or_else(by_socket)?)))
    });
    let mut known: Vec<(Side, Owner)> = Vec::new();
    let candidates: Vec<_> = match family {
        Family::Application => resetting.chain(victims).collect(),
        _ => victims.chain(resetting).collect(),
    };
    for (address, owner) in candidates {
        if let Some(side) = address.and_then(&side)
            && let Some(owner) = owner
            && known.iter().all(|(known, _)| *known != side)
        {
            known.push((side, owner));
        }
    }
    let mut known = known.into_iter();
    Ends { owner: known.next(), peer: known.next().map(|(_, owner)| owner) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        event::{Body, Event, SocketEnd},
        incident::Incident,
        testing::{
            CLIENT, CLIENT_NS, SECOND, SERVER, SERVER_NS, active, at, data, failed, no_socket,
            received, replay, sent, socket, stack, task,
        },
    };
    use rsttrace_model::owner::Opener;

    const CLOSING: [&str; 4] =
        ["tcp_send_active_reset", "__tcp_close", "tcp_close", "inet_release"];

    fn closed(stack: &[&str]) -> ResetSent {
        active(socket(2, SERVER, CLIENT, SECOND), stack, "TCP_ABORT_ON_CLOSE")
    }

    fn end(err: u32) -> Option<SocketEnd> {
        let task = task("server", 20);
        Some(SocketEnd { ts: SECOND, task, err, old_state: 1, new_state: 4, idle_s: None })
    }

    fn owner(pid: u32, comm: &str) -> Box<Owner> {
        Box::new(Owner {
            pid,
            comm: comm.into(),
            container_id: Some("3f9c".repeat(16)),
            ..Owner::default()
        })
    }

    fn holds(ts: Nanos, inode: u64, pid: u32, comm: &str) -> Event {
        at(ts, CLIENT_NS, Body::Owner { inode, owner: owner(pid, comm) })
    }

    fn opener(pid: u32) -> Option<Opener> {
        Some(Opener { pid, comm: "client".into(), start_boottime_ns: 0, cgroup: 0 })
    }

    /// The server closes with unread data; then come the answers of the host.
    fn unread(connected_by: Option<Opener>, answers: Vec<Event>) -> Incident {
        let mut reset = closed(&CLOSING);
        if let Some(socket) = &mut reset.socket {
            socket.unread = 5;
        }
        reset.task = task("worker", 20);
        let mut victim = socket(1, CLIENT, SERVER, SECOND);
        victim.opener = connected_by;
        let mut events = vec![
            received(2 * SECOND, CLIENT_NS, victim.clone()),
            failed(2 * SECOND, CLIENT_NS, victim, 104, &["tcp_reset"]),
            sent(2 * SECOND, SERVER_NS, reset),
        ];
        events.extend(answers);
        replay(events).remove(0)
    }

    fn names(incident: &Incident) -> Vec<(u32, &str, OwnerBy)> {
        let owners = incident.owner.iter().chain(&incident.peer);
        owners.map(|owner| (owner.pid, owner.comm.as_str(), owner.by)).collect()
    }

    #[test]
    fn a_task_that_closes_is_named_and_an_unrelated_task_is_not() {
        let sent = ResetSent { task: task("worker", 20), ..closed(&CLOSING) };
        assert_eq!(closing_task(&sent, 7).map(|(ts, task)| (ts, task.pid)), Some((7, 20)));
        for below in ["__do_softirq", "handle_softirqs", "kthread", "tcp_abort"] {
            let names = stack(&[&CLOSING[..], &[below]].concat());
            assert_eq!(
                closing_task(&ResetSent { stack: names, ..sent.clone() }, 7),
                None,
                "{below}"
            );
        }
        for names in [vec![], vec!["tcp_send_active_reset", "tcp_keepalive_timer"]] {
            assert_eq!(closing_task(&ResetSent { stack: stack(&names), ..sent.clone() }, 7), None);
        }
        let idle = ResetSent { task: task("swapper/0", 0), ..sent };
        assert_eq!(closing_task(&idle, 7), None);
    }

    #[test]
    fn the_earlier_closer_is_named_unless_the_socket_had_an_error_or_a_rule_answers() {
        let answer = ResetSent { end: end(0), ..no_socket(data(CLIENT, SERVER)) };
        assert_eq!(closing_task(&answer, 7).map(|(ts, task)| (ts, task.pid)), Some((SECOND, 20)));
        assert_eq!(closing_task(&ResetSent { via: Via::Netfilter, ..answer.clone() }, 7), None);
        assert_eq!(closing_task(&ResetSent { end: end(104), ..answer }, 7), None);
    }

    #[test]
    fn the_owner_of_an_application_cause_is_that_application_and_its_peer_is_the_victim() {
        let incident = unread(opener(10), vec![]);
        assert_eq!(incident.cause.id, "close_unread_data");
        assert_eq!(incident.owner_side, Some(Side::Destination));
        assert_eq!(
            names(&incident),
            [(20, "worker", OwnerBy::Close), (10, "client", OwnerBy::Connect)]
        );
    }

    #[test]
    fn the_process_that_holds_the_socket_is_preferred_to_the_one_that_connected_it() {
        let incident = unread(opener(10), vec![holds(2 * SECOND, 1, 11, "child")]);
        assert_eq!(names(&incident)[1], (11, "child", OwnerBy::Descriptor));
    }

    #[test]
    fn a_process_that_had_the_pid_before_the_close_is_the_closer() {
        let seen = |started| {
            let body = Body::Process { started, owner: owner(20, "server") };
            unread(None, vec![at(2 * SECOND, 0, body)]).owner.expect("the closer")
        };
        let same = seen(SECOND);
        assert_eq!((same.comm.as_str(), same.by), ("server", OwnerBy::Close));
        assert!(same.container_id.is_some());
        let later = seen(2 * SECOND + 1);
        assert_eq!((later.comm.as_str(), later.container_id), ("worker", None));
    }

    #[test]
    fn the_owner_of_any_other_cause_is_the_process_that_lost_its_connection() {
        let answer = ResetSent { end: end(0), ..no_socket(data(CLIENT, SERVER)) };
        let victim = socket(1, CLIENT, SERVER, SECOND);
        let incident = replay([
            sent(100 * SECOND, SERVER_NS, answer),
            received(100 * SECOND, CLIENT_NS, victim),
            holds(100 * SECOND, 1, 10, "client"),
        ])
        .remove(0);
        assert_eq!((incident.cause.id, incident.owner_side), ("socket_gone", Some(Side::Source)));
        assert_eq!(
            names(&incident),
            [(10, "client", OwnerBy::Descriptor), (20, "server", OwnerBy::Close)]
        );
    }
}
