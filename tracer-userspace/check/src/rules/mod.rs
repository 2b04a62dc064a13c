//! The rules: one file each, a value and a pure function of the view.

use rsttrace_model::host_state::{Netns, View};

use super::{connections::Ends, finding::Finding};

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

/// What is asked of the rules.
pub struct Question<'a> {
    pub view: &'a View,
    pub(super) ends: Ends<'a>,
}

impl<'a> Question<'a> {
    #[must_use]
    pub fn new(view: &'a View) -> Self {
        Self { view, ends: Ends::of(view) }
    }

    fn namespaces(&self) -> impl Iterator<Item = &'a Netns> {
        self.view.namespaces.iter()
    }
}

/// A rule.
pub struct Rule {
    pub id: &'static str,
    /// The causes that it can foresee.
    pub causes: &'static [&'static str],
    /// What it holds against what, and where that comes from.
    pub doc: &'static str,
    pub judge: fn(&Question<'_>) -> Vec<Finding>,
}

/// Every rule, the likeliest trouble first.
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

const TCP: u8 = 6;
const UDP: u8 = 17;
