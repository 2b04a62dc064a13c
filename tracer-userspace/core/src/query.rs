//! Queries: what the correlator has to read from the host because of an event.
//!
//! [`wanted`] gives all queries of an event. The live stream runs them and puts each answer behind the event
//! in the stream, so that a capture holds the answers and a replay reads nothing from a host.

use std::{net::SocketAddr, time::Duration};

use rsttrace_model::{
    errno::ETIMEDOUT,
    flow::{Flow, Nanos},
    owner::OwnedSocket,
    tcp_flag, tcp_state,
};

use crate::{
    correlator::closing_task,
    event::{Body, DropReason, Event, Socket, Via},
};

/// After this time the state of a namespace in which a connection broke is read again.
const FRESH: Duration = Duration::from_millis(500);

/// For a refused connect only the port range and the listeners matter, which rarely change.
const STALE: Duration = Duration::from_secs(30);

/// A query, and the event that answers it.
#[derive(Clone, Debug, PartialEq)]
pub enum Query {
    /// The process that has this pid now: [`Body::Process`].
    Process { pid: u32 },
    /// The state that exists for a packet without a connection in this namespace: [`Body::StateLookup`].
    State { netns: u32, packet: Flow },
    /// The IPVS entry of a connection that timed out, if it has lost its real server:
    /// [`Body::IpvsOrphan`].
    IpvsOrphan { flow: Flow },
    /// The IPVS service at an address that did not answer: [`Body::Netns`].
    IpvsService { address: SocketAddr },
    /// The IPVS entry of a client whose packets this namespace drops, if it has lost its real server:
    /// [`Body::IpvsOrphan`].
    IpvsDropped { netns: u32, flow: Flow },
    /// How full the accept queue at an address that did not answer is: [`Body::AcceptQueue`].
    AcceptQueue { netns: u32, address: SocketAddr },
    /// The owner of a socket: [`Body::Owner`].
    Owner(OwnedSocket),
    /// How long other connections to the same service are idle and still work, because this connection was
    /// reset after it had been idle for `idle`: any number of [`Body::Survived`].
    IdlePeriods { netns: u32, flow: Flow, idle: Nanos },
    /// The socket of this host, if there is one, that is the peer of a socket that received a reset; `flow` has its own
    /// side first: [`Body::PeerSocket`].
    Peer { netns: u32, flow: Flow },
    /// What the kernel keeps of a connection whose packet a rule answered, or which timed out:
    /// [`Body::FilteredFlow`].
    Filtered { flow: Flow },
    /// What the filter rules of a namespace depend on: [`Body::FilterRules`].
    FilterRules { netns: u32 },
    /// The rules of a namespace that can reject a packet to this address: [`Body::RejectingRules`].
    RejectingRules { netns: u32, dst: SocketAddr },
    /// Settings, counters and listeners of a namespace, read at most `max_age` ago: [`Body::Netns`].
    Netns { netns: u32, max_age: Duration },
}

/// The queries of an event, the most urgent first.
pub fn wanted(event: &Event) -> Vec<Query> {
    let Event { ts, netns, ref body } = *event;
    let mut queries = Vec::new();
    let (mut owner_of, mut max_age) = (None, STALE);
    match body {
        Body::ResetSent(sent) => {
            let answers_syn = sent.trigger.is_some_and(|trigger| trigger.has(tcp_flag::SYN));
            let closer = closing_task(sent, ts).filter(|_| !answers_syn);
            if let Some((_, task)) = closer {
                queries.push(Query::Process { pid: task.pid });
            }
            // No process holds a closed socket any more.
            let held = sent.trigger.is_none() && closer.is_none();
            owner_of = sent.socket.as_ref().filter(|_| held);
            if !answers_syn {
                max_age = FRESH;
            }
            if let Some(packet) =
                sent.trigger.filter(|_| sent.via == Via::Netfilter && !answers_syn)
            {
                queries.push(Query::Filtered { flow: packet.flow });
                queries.push(Query::FilterRules { netns });
            }
            if let Some(packet) = sent.trigger.filter(|_| sent.has_no_matching_socket()) {
                queries.push(Query::State { netns, packet: packet.flow });
            }
        }
        Body::ResetReceived(received) => {
            let socket = &received.socket;
            owner_of = Some(socket).filter(|socket| has_owner(socket));
            max_age = FRESH;
            if socket.state != tcp_state::SYN_SENT {
                queries.push(Query::Peer { netns, flow: socket.flow.reversed() });
            }
            if let Some(last) = socket.last_received {
                let idle = ts.saturating_sub(last);
                queries.push(Query::IdlePeriods { netns, flow: socket.flow, idle });
            }
        }
        Body::SocketError(error) => {
            let socket = &error.socket;
            owner_of = Some(socket).filter(|socket| has_owner(socket));
            max_age = FRESH;
            let gave_up = socket.err == ETIMEDOUT || socket.err_soft != 0;
            if gave_up && socket.rcv_nxt != 0 {
                // Its conntrack entry may still translate it, in a namespace that has no NAT any more.
                queries.push(Query::State { netns, packet: socket.flow });
            }
            if gave_up {
                queries.push(Query::Filtered { flow: socket.flow });
            }
            if socket.err == ETIMEDOUT {
                queries.push(Query::IpvsOrphan { flow: socket.flow });
                if socket.rcv_nxt == 0 {
                    queries.push(Query::IpvsService { address: socket.flow.dst });
                }
            }
            if socket.was_never_answered() {
                queries.push(Query::AcceptQueue { netns, address: socket.flow.dst });
            }
        }
        Body::PacketDrop(drop) => {
            max_age = FRESH;
            match drop.why {
                DropReason::NoDestination => {
                    queries.push(Query::IpvsDropped { netns, flow: drop.packet.flow });
                }
                DropReason::Rejected { .. } if drop.packet.is_syn() => {
                    queries.push(Query::RejectingRules { netns, dst: drop.packet.flow.dst });
                }
                DropReason::Rejected { .. } if !drop.packet.has(tcp_flag::SYN) => {
                    queries.push(Query::FilterRules { netns });
                }
                _ => {}
            }
        }
        Body::IpvsEnd(_) | Body::IpvsServerRemoved(_) | Body::ConntrackEnd(_) => max_age = FRESH,
        // An earlier reading would still show the chain.
        Body::NatChainRemoved(_) => max_age = Duration::ZERO,
        _ => {}
    }
    if let Some(socket) = owner_of.filter(|socket| socket.inode != 0) {
        let Socket { inode, flow, ref opener, .. } = *socket;
        let opener = opener.clone();
        queries.push(Query::Owner(OwnedSocket { inode, netns, flow, opener }));
    }
    if netns != 0 {
        queries.push(Query::Netns { netns, max_age });
    }
    queries
}

/// Whether the owner matters. For a refused connect it is not worth a walk through all processes, because a
/// port scan can be refused a thousand times a second.
fn has_owner(socket: &Socket) -> bool {
    socket.state != tcp_state::SYN_SENT || socket.err == ETIMEDOUT
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{
        CLIENT, CLIENT_NS, NODE_NS, SECOND, SERVER, VIP, active, data, failed, no_destination_drop,
        no_socket, received, sent, socket,
    };

    const NOW: Nanos = 1000 * SECOND;

    fn owners(queries: &[Query]) -> usize {
        queries.iter().filter(|query| matches!(query, Query::Owner(_))).count()
    }

    #[test]
    fn the_reset_of_an_idle_connection_queries_its_owner_and_the_idle_periods_of_its_service() {
        let queries = wanted(&received(NOW, CLIENT_NS, socket(1, CLIENT, VIP, 27 * SECOND)));
        assert_eq!(owners(&queries), 1);
        let idle = |query: &Query| matches!(query, Query::IdlePeriods { idle, .. } if *idle == 973 * SECOND);
        assert!(queries.iter().any(idle), "{queries:?}");
        assert_eq!(queries.last(), Some(&Query::Netns { netns: CLIENT_NS, max_age: FRESH }));
    }

    #[test]
    fn a_refused_connect_does_not_query_its_owner() {
        let mut connecting = socket(1, CLIENT, VIP, 0);
        connecting.state = tcp_state::SYN_SENT;
        assert_eq!(owners(&wanted(&received(NOW, CLIENT_NS, connecting))), 0);
    }

    #[test]
    fn a_packet_without_a_matching_socket_queries_the_state_that_exists() {
        let queries = wanted(&sent(NOW, NODE_NS, no_socket(data(CLIENT, VIP))));
        assert_eq!(queries[0], Query::State { netns: NODE_NS, packet: data(CLIENT, VIP).flow });
    }

    #[test]
    fn a_socket_that_its_process_closed_queries_that_process_and_not_a_holder() {
        let abort = active(socket(1, SERVER, CLIENT, NOW), &["__tcp_close", "tcp_close"], "");
        let queries = wanted(&sent(NOW, CLIENT_NS, abort));
        assert_eq!((&queries[0], owners(&queries)), (&Query::Process { pid: 77 }, 0));
    }

    #[test]
    fn a_connect_without_an_answer_queries_ipvs_and_the_accept_queue() {
        let mut connecting = socket(1, CLIENT, VIP, 0);
        (connecting.rcv_nxt, connecting.bytes_received) = (0, 0);
        let queries = wanted(&failed(NOW, CLIENT_NS, connecting, ETIMEDOUT, &["tcp_write_timer"]));
        let [flow, address] = [(); 2].map(|()| socket(1, CLIENT, VIP, 0).flow);
        let expected = [
            Query::Filtered { flow },
            Query::IpvsOrphan { flow },
            Query::IpvsService { address: address.dst },
            Query::AcceptQueue { netns: CLIENT_NS, address: address.dst },
        ];
        assert_eq!(queries[..4], expected);
    }

    #[test]
    fn a_drop_for_a_service_that_lost_a_server_queries_the_entry_of_its_client() {
        let queries = wanted(&no_destination_drop(NOW, data(CLIENT, VIP)));
        assert_eq!(queries[0], Query::IpvsDropped { netns: NODE_NS, flow: data(CLIENT, VIP).flow });
    }
}
