//! The rules. Each has a file of its own: a [`Rule`] and a pure function of the host's state.

use rsttrace_model::{
    host_state::{HostState, Netns},
    ipvs::{IPPROTO_TCP as TCP, IPPROTO_UDP as UDP},
};

use super::{connections::Ends, finding::CheckFinding};

mod accept_queue;
mod configured;
mod conntrack_before_ipvs;
mod conntrack_hidden;
mod conntrack_idle;
mod conntrack_invalid;
mod conntrack_losses;
mod conntrack_pick_up;
mod conntrack_room;
mod dead_peer;
mod equal_timers;
mod ipvs_defence;
mod ipvs_halfclose;
mod ipvs_idle;
mod ipvs_no_server;
mod ipvs_reuse;
mod ipvs_server_removed;
mod ipvs_sloppy;
mod masquerade;
mod orphans;
#[cfg(test)]
mod tests;
mod udp_timers;
mod user_timeout;

/// What the rules read.
pub struct RuleInput<'a> {
    pub state: &'a HostState,
    pub(super) ends: Ends<'a>,
}

impl<'a> RuleInput<'a> {
    #[must_use]
    pub fn new(state: &'a HostState) -> Self {
        Self { state, ends: Ends::of(state) }
    }

    fn namespaces(&self) -> impl Iterator<Item = &'a Netns> {
        self.state.namespaces.iter()
    }
}

/// A rule.
pub struct Rule {
    pub id: &'static str,
    /// Ids of the causes that the rule can predict.
    pub causes: &'static [&'static str],
    /// What the rule compares, and the source of its numbers.
    pub doc: &'static str,
    pub judge: fn(&RuleInput<'_>) -> Vec<CheckFinding>,
}

/// Every rule, the most likely problem first.
pub const ALL: &[Rule] = &[
    ipvs_idle::RULE,
    conntrack_idle::RULE,
    conntrack_room::RULE,
    conntrack_losses::RULE,
    accept_queue::RULE,
    equal_timers::RULE,
    conntrack_before_ipvs::RULE,
    configured::RULE,
    ipvs_halfclose::RULE,
    ipvs_server_removed::RULE,
    ipvs_no_server::RULE,
    ipvs_sloppy::RULE,
    ipvs_reuse::RULE,
    ipvs_defence::RULE,
    conntrack_invalid::RULE,
    conntrack_pick_up::RULE,
    conntrack_hidden::RULE,
    masquerade::RULE,
    udp_timers::RULE,
    orphans::RULE,
    dead_peer::RULE,
    user_timeout::RULE,
];
