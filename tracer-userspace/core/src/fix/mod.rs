//! Fixes as typed changes. Commands, persistent files, checks and undo lines are rendered from the
//! changes, so they cannot disagree.

mod caveats;
mod change;
mod kubernetes;
mod persist;
mod snippets;

pub use change::{Change, Fix, FixOwner, Remedy, Risk};
pub use kubernetes::{in_kube_proxy, set_in_kube_proxy};
pub use persist::{IPVSADM, Persist};
pub use snippets::{Client, Pace, Snippet};
