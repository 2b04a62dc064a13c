//! Finds what will break on a host before it breaks: rules check its settings, tables and sockets. Pure:
//! the rules are functions of a [`HostState`].

mod connections;
mod finding;
mod origin;
pub mod path;
mod remedies;
pub mod rules;

pub use finding::{CheckFinding, Rank};
pub use rules::{Rule, RuleInput};

use rsttrace_core::fix::in_kube_proxy;
use rsttrace_model::host_state::HostState;

/// The result of `rsttrace check`.
#[derive(Clone, Copy, Debug)]
pub struct Audit<'a> {
    pub state: &'a HostState,
    pub findings: &'a [CheckFinding],
    pub path: Option<&'a path::Path>,
}

/// All findings of the rules, the most severe first.
#[must_use]
pub fn findings(input: &RuleInput<'_>) -> Vec<CheckFinding> {
    let mut list: Vec<CheckFinding> =
        rules::ALL.iter().flat_map(|rule| (rule.judge)(input)).collect();
    list.sort_by_key(|finding| std::cmp::Reverse(finding.rank));
    for finding in &mut list {
        keep_over_kube_proxy(input.state, finding);
    }
    list
}

/// Puts the change of kube-proxy's configuration before the first fix that kube-proxy's next start undoes.
fn keep_over_kube_proxy(state: &HostState, finding: &mut CheckFinding) {
    let found = finding.fixes.iter().enumerate().find_map(|(at, fix)| {
        let in_its_configuration = in_kube_proxy(state, &fix.changes)?;
        Some((at, in_its_configuration))
    });
    let has = |id: &str| finding.fixes.iter().any(|fix| fix.id == id);
    if let Some((at, fix)) = found.filter(|(_, fix)| !has(fix.id)) {
        finding.fixes.insert(at, fix);
    }
}
