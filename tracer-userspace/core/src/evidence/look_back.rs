//! Which of the remembered losses may explain a case.

use rsttrace_model::flow::Nanos;

use super::facts::Evidence;
use crate::{
    event::{ConntrackEnd, ConntrackInvalid, has},
    history::losses::{Loss, LossEntry, LossHistory},
};

/// A loss and the packet it dooms can be one softirq apart, and stamps of segments are a jiffy
/// coarse (10 ms at HZ=100).
const TOLERANCE: Nanos = 12_000_000;

/// A reset answers a packet within a round trip.
const ANSWERED_WITHIN: Nanos = 1_000_000_000;

impl<'a> Evidence<'a> {
    /// Finds the losses that may explain this case: earlier than it, later than the last segment that
    /// either end received, in a namespace of the case before any other, the newest first.
    pub(super) fn look_back(&mut self, histories: [&'a LossHistory; 2]) {
        let alive = self.last_received();
        let namespaces = self.namespaces();
        let mut losses: Vec<&LossEntry> = histories
            .into_iter()
            .flat_map(|history| history.of(self.case.identity.flows()))
            .filter(|loss| {
                // Retries renew a drop, and so does what the dead end still answers; both may come before
                // the judgement.
                let came = match &loss.loss {
                    Loss::Drop(_) => loss.since,
                    _ => loss.ts,
                };
                came <= self.case.opened.saturating_add(TOLERANCE)
                    && loss.ts.saturating_add(TOLERANCE) >= alive.unwrap_or(0)
                    && !self.is_elsewhere(loss)
                    && !self.has_new_entry(loss)
            })
            .collect();
        losses.sort_by_key(|loss| (namespaces.contains(&loss.netns), loss.ts));
        for loss in losses.into_iter().rev() {
            match &loss.loss {
                Loss::Ipvs(end) if self.ipvs.is_none() => self.ipvs = Some((loss, end)),
                // A plain entry is picked up again; one that IPVS took along is IPVS's own.
                Loss::Conntrack(end)
                    if self.conntrack.is_none()
                        && end.is_nat()
                        && !has(&end.stack, "ip_vs_conn_drop_conntrack") =>
                {
                    self.conntrack = Some((loss, end));
                }
                Loss::Conntrack(end) => self.zone_is_ambiguous |= self.is_in_other_zone(loss, end),
                Loss::Drop(drop) => self.drops.push((loss, drop)),
                _ => {}
            }
        }
        if alive.is_none() {
            self.keep_newest_loss();
        }
    }

    /// The INVALID packet that this case's reset answers: it went untranslated to a host that did not
    /// know its tuple.
    pub(super) fn find_invalid(
        &self,
        histories: [&'a LossHistory; 2],
    ) -> Option<(&'a LossEntry, &'a ConntrackInvalid)> {
        let answered = match (self.stateless(), self.received()) {
            (Some(at), _) => at.value.trigger?.flow,
            (None, Some(at)) => at.value.socket.flow,
            (None, None) => return None,
        };
        let opened = self.case.opened;
        histories.into_iter().flat_map(|history| history.of(&[answered])).find_map(|loss| {
            let Loss::Invalid(invalid) = &loss.loss else {
                return None;
            };
            let before = loss.since <= opened.saturating_add(TOLERANCE);
            let just_now = opened.saturating_sub(loss.ts) <= ANSWERED_WITHIN;
            (invalid.packet.flow == answered && before && just_now).then_some((loss, &**invalid))
        })
    }

    /// Whether this is the end of the known entry's namesake in another conntrack zone.
    fn is_in_other_zone(&self, loss: &LossEntry, end: &ConntrackEnd) -> bool {
        self.conntrack.is_some_and(|(known, entry)| {
            known.netns == loss.netns && entry.original == end.original && entry.zone != end.zone
        })
    }

    /// Without a local socket nothing says which of several losses it was: the newest is assumed.
    fn keep_newest_loss(&mut self) {
        let ipvs = self.ipvs.map_or(0, |(loss, _)| loss.ts);
        let conntrack = self.conntrack.map_or(0, |(loss, _)| loss.ts);
        if ipvs < conntrack {
            self.ipvs = None;
        } else {
            self.conntrack = None;
        }
        let newest = ipvs.max(conntrack);
        self.drops.retain(|(loss, _)| loss.ts >= newest);
    }

    /// Whether a loss belongs to an equal tuple in another namespace: the packet that was answered is
    /// still addressed as the client sent it, so it met its entry where it was answered.
    fn is_elsewhere(&self, loss: &LossEntry) -> bool {
        let as_sent = match &loss.loss {
            Loss::Ipvs(end) => end.virtual_flow,
            Loss::Conntrack(end) => end.original,
            Loss::Drop(_) | Loss::Invalid(_) => return false,
        };
        self.stateless().is_some_and(|at| {
            at.netns != loss.netns
                && at.value.trigger.is_some_and(|trigger| trigger.flow == as_sent)
        })
    }

    /// Whether the packet that was answered had been translated as before: it had made a new entry, or
    /// IPVS had taken it without one, and what it did not find at its end is not this loss's doing.
    fn has_new_entry(&self, loss: &LossEntry) -> bool {
        let [there, back] = match &loss.loss {
            Loss::Ipvs(end) if end.real_flow != end.virtual_flow => {
                [end.real_flow, end.virtual_flow]
            }
            Loss::Conntrack(end) if end.is_nat() => [end.reply.reversed(), end.original],
            _ => return false,
        };
        let answered = self.stateless().and_then(|at| at.value.trigger);
        answered.is_some_and(|trigger| trigger.flow == there || trigger.flow == back.reversed())
    }
}
