//! What was asked already.

use std::collections::{HashSet, VecDeque};

use rsttrace_model::flow::Nanos;

use super::SECOND;

/// Things of one kind that are remembered as asked.
pub(super) const KEPT: usize = 4096;

/// The last few thousand things that were asked about.
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
    pub(super) fn is_new(&mut self, thing: T) -> bool {
        if !self.seen.insert(thing) {
            return false;
        }
        self.order.push_back(thing);
        if self.order.len() > KEPT
            && let Some(oldest) = self.order.pop_front()
        {
            self.seen.remove(&oldest);
        }
        true
    }
}

/// Packets of one client that a namespace drops, for a service that has lost a server.
#[derive(Clone, Copy)]
pub(super) struct DropsOfClient {
    pub(super) since: Nanos,
    newest: Nanos,
    pub(super) asked: bool,
}

impl DropsOfClient {
    /// A server that is added again within a second breaks nothing: the next retry gets through.
    const PATIENCE: Nanos = SECOND;
    /// Retries are at most 120 s apart (TCP_RTO_MAX, include/net/tcp.h): later it is another story.
    const FORGOTTEN: Nanos = 130 * SECOND;

    pub(super) fn new(ts: Nanos) -> Self {
        Self { since: ts, newest: ts, asked: false }
    }

    /// One more is dropped; whether it is time to ask.
    pub(super) fn again(&mut self, ts: Nanos) -> bool {
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
    fn a_client_is_asked_about_when_its_packets_have_been_dropped_for_a_second() {
        let mut dropping = DropsOfClient::new(0);
        let due: Vec<_> =
            [2, 6, 14].into_iter().map(|tenths| dropping.again(tenths * SECOND / 10)).collect();
        assert_eq!(due, [false, false, true]);
        dropping.asked = true;
        assert!(!dropping.again(3 * SECOND));
        // Much later its server is removed again.
        assert!(!dropping.again(1000 * SECOND) && dropping.again(1002 * SECOND));
    }
}
