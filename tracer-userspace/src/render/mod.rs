//! How incidents are shown: [`json`] for machines, [`table`] for people. Text from the host (process
//! names, cgroups) is hostile; [`escape`] makes it harmless for a terminal.

pub mod check;
pub mod doctor;
pub mod explain;
pub mod fix;
mod fold;
pub mod notice;
mod page;
pub mod plan;
pub mod profile;
pub mod table;
pub mod watch;
