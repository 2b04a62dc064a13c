//! Finds the losses in the history that may explain a case.

use rsttrace_model::{flow::Nanos, ipvs::masquerades};

use super::facts::{Evidence, TOLERANCE};
use crate::{
    event::{ConntrackEnd, ConntrackInvalid, has},
    history::losses::{Loss, LossEntry},
};

/// A reset answers a packet within a round trip.
const ANSWERED_WITHIN: Nanos = 1_000_000_000;

impl<'a> Evidence<'a> {
    /// Finds the losses that may explain this case: before the case opened, and after the last segment that
    /// either end received. Losses in a namespace of the case come before others, then the newest first.
    pub(super) fn look_back(&mut self) {
        let alive = self.last_received();
        let namespaces = self.namespaces();
        let mut losses: Vec<&LossEntry> = self
            .memory
            .of(self.case.identity.flows())
            .filter(|loss| {
                // Retries update the time of a drop, and so do later answers of the closed end.
                // Both may come before the verdict.
                let since = match &loss.loss {
                    Loss::Drop(_) => loss.since,
                    _ => loss.ts,
                };
                since <= self.case.opened.saturating_add(TOLERANCE)
                    && loss.ts.saturating_add(TOLERANCE) >= self.alive_through(&loss.loss)
                    && !self.is_elsewhere(loss)
                    && !self.has_new_entry(loss)
            })
            .collect();
        losses.sort_by_key(|loss| (namespaces.contains(&loss.netns), loss.ts));
        for loss in losses.into_iter().rev() {
            match &loss.loss {
                Loss::Ipvs(end) if self.ipvs.is_none() => self.ipvs = Some((loss, end)),
                // conntrack picks up a connection without NAT again. An entry that IPVS deleted
                // with its own entry counts as the IPVS loss.
                Loss::Conntrack(end)
                    if self.conntrack.is_none()
                        && match end.is_nat() {
                            true => self.misdirected(loss),
                            false => self.rests_on(loss),
                        }
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

    /// When a segment that passed through this entry was last received at an end of the connection; 0 when none is known.
    /// With direct routing or a tunnel the server's segments do not pass, so what the client received shows nothing.
    fn alive_through(&self, loss: &Loss) -> Nanos {
        let one_way = match loss {
            Loss::Ipvs(end) if !masquerades(end.flags) => Some(end.virtual_flow.src),
            _ => None,
        };
        let ends = self.victims().filter(|(_, _, socket)| Some(socket.flow.src) != one_way);
        ends.filter_map(|(_, _, socket)| socket.last_received).max().unwrap_or(0)
    }

    /// Whether a packet of the connection went astray because of a lost conntrack entry. conntrack picks a connection up
    /// again at its next packet, unless tcp_loose is 0: so a connection that only timed out had other reasons.
    fn misdirected(&self, loss: &LossEntry) -> bool {
        let only_timed_out = self.sent().is_none() && self.received().is_none();
        let table = self.host(loss.netns).and_then(|host| host.conntrack.as_ref());
        !only_timed_out || table.is_some_and(|table| table.loose == Some(false))
    }

    /// The INVALID packet that this case's reset answers: the packet was forwarded untranslated to a host
    /// without a connection of its tuple.
    pub(super) fn find_invalid(&self) -> Option<(&'a LossEntry, &'a ConntrackInvalid)> {
        let answered = match (self.stateless(), self.received()) {
            (Some(at), _) => at.value.trigger?.flow,
            (None, Some(at)) => at.value.socket.flow,
            (None, None) => return None,
        };
        let opened = self.case.opened;
        self.memory.of(&[answered]).find_map(|loss| {
            let Loss::Invalid(invalid) = &loss.loss else {
                return None;
            };
            let before = loss.since <= opened.saturating_add(TOLERANCE);
            let just_now = opened.saturating_sub(loss.ts) <= ANSWERED_WITHIN;
            (invalid.packet.flow == answered && before && just_now).then_some((loss, &**invalid))
        })
    }

    /// Whether this is the end of an entry with the same tuple in another conntrack zone.
    fn is_in_other_zone(&self, loss: &LossEntry, end: &ConntrackEnd) -> bool {
        self.conntrack.is_some_and(|(known, entry)| {
            known.netns == loss.netns && entry.original == end.original && entry.zone != end.zone
        })
    }

    /// Keeps only the newest loss: without a local socket it is unknown which of several losses it was.
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

    /// Whether a loss belongs to an equal tuple in another namespace. The packet that was answered has the
    /// addresses that the client used, so its entry is in the namespace that answered.
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

    /// Whether the packet that was answered was translated as before: it had made a new entry, or IPVS had
    /// accepted it without an entry. Then this loss does not explain the missing socket.
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
