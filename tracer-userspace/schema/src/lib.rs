//! Incidents and summaries as JSON.

pub mod json;
