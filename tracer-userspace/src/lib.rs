//! `rsttrace`: the command line ([`cli`], [`filter`], [`cmd`]) and what it prints ([`render`],
//! [`doctor`]).

pub mod cli;
pub mod cmd;
pub mod doctor;
pub mod filter;
pub mod render;
