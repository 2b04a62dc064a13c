//! What would break, before it does: the settings and tables of a host, judged by rules.
//!
//! [`view::View`] is plain data, read once from the live host or from a directory that stands in for
//! it; the rules are functions of it.

pub mod configured;
mod connections;
mod finding;
mod live;
mod origin;
pub mod path;
mod remedies;
pub mod rules;
pub mod view;

pub use finding::{Finding, Rank};
pub use live::{read, read_root};
pub use origin::{proxy_name, writer};
pub use rules::{Question, Rule};

/// A host, judged.
#[derive(Clone, Copy, Debug)]
pub struct Audit<'a> {
    pub view: &'a view::View,
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
