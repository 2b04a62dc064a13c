//! State and losses that are kept in addition to the open cases.

pub mod baseline;
pub mod idle_periods;
pub mod ipvs_servers;
pub mod losses;
pub mod memory;
