//! `rsttrace`: the command line ([`cli`], [`filter`], [`cmd`]) and its output ([`render`], [`doctor`]).

pub mod cli;
pub mod cmd;
pub mod doctor;
pub mod filter;
pub mod render;
