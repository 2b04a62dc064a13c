//! What is remembered beside the open cases.

pub mod baseline;
pub mod idle_periods;
pub mod ipvs_servers;
pub mod losses;
