//! What would break, before it does: the settings and tables of a host, judged by rules.
//!
//! [`view::View`] is plain data, read once from the live host or from a directory that stands in for
//! it; the rules are functions of it.

mod live;
pub mod view;

pub use live::read;
