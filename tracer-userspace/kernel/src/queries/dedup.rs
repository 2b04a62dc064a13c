//! Queries that were sent already.

use std::collections::{HashSet, VecDeque};

use rsttrace_model::flow::Nanos;

use super::SECOND;

/// Number of subjects of one kind that are kept.
pub(super) const KEPT: usize = 4096;

/// The last [`KEPT`] subjects that were queried.
pub(super) struct Recent<T> {
    seen: HashSet<T>,
    order: VecDeque<T>,
}

impl<T> Default for Recent<T> {
    fn default() -> Self {
        Self { seen: HashSet::new(), order: VecDeque::new() }
    }
}

impl<T: Copy + Eq + std::hash::Hash> Recent<T> {
    pub(super) fn is_new(&mut self, subject: T) -> bool {
        if !self.seen.insert(subject) {
            return false;
        }
        self.order.push_back(subject);
        if self.order.len() > KEPT
            && let Some(oldest) = self.order.pop_front()
        {
            self.seen.remove(&oldest);
        }
        true
    }
}

/// Dropped packets of one client to a service that has lost a real server, in one namespace.
#[derive(Clone, Copy)]
pub(super) struct DropsOfClient {
    pub(super) since: Nanos,
    newest: Nanos,
    pub(super) asked: bool,
}

impl DropsOfClient {
    /// A server that is added again within a second breaks no connection: the next retry gets through.
    const PATIENCE: Nanos = SECOND;
    /// Retries are at most 120 s apart (TCP_RTO_MAX, include/net/tcp.h), so a later drop is unrelated.
    const FORGOTTEN: Nanos = 130 * SECOND;

    pub(super) fn new(ts: Nanos) -> Self {
        Self { since: ts, newest: ts, asked: false }
    }

    /// Adds a dropped packet. Returns whether the query is due.
    pub(super) fn add(&mut self, ts: Nanos) -> bool {
        if ts.saturating_sub(self.newest) > Self::FORGOTTEN {
            *self = Self::new(ts);
        }
        self.newest = ts;
        !self.asked && ts.saturating_sub(self.since) >= Self::PATIENCE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_due_when_packets_of_a_client_have_been_dropped_for_a_second() {
        let mut dropping = DropsOfClient::new(0);
        let due: Vec<_> =
            [2, 6, 14].into_iter().map(|tenths| dropping.add(tenths * SECOND / 10)).collect();
        assert_eq!(due, [false, false, true]);
        dropping.asked = true;
        assert!(!dropping.add(3 * SECOND));
        // Much later the server is removed a second time.
        assert!(!dropping.add(1000 * SECOND) && dropping.add(1002 * SECOND));
    }
}
