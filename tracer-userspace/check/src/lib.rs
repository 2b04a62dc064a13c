//! What would break, before it does: the settings and tables of a host, judged by rules. Pure: the
//! rules are functions of a [`View`].

mod connections;
mod finding;
mod origin;
pub mod path;
mod remedies;
pub mod rules;

pub use finding::{Finding, Rank};
pub use rules::{Question, Rule};

use rsttrace_model::host_state::View;

/// A host, judged.
#[derive(Clone, Copy, Debug)]
pub struct Audit<'a> {
    pub view: &'a View,
    pub findings: &'a [Finding],
    pub path: Option<&'a path::Path>,
}

/// Everything that the rules find, the worst first.
#[must_use]
pub fn findings(question: &Question<'_>) -> Vec<Finding> {
    let mut list: Vec<Finding> =
        rules::ALL.iter().flat_map(|rule| (rule.judge)(question)).collect();
    list.sort_by_key(|finding| std::cmp::Reverse(finding.rank));
    list
}
