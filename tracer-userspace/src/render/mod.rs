//! Output of the commands, as text and as JSON. Text from the host (process names, cgroups) is untrusted:
//! `page::Page` escapes it for the terminal.

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
