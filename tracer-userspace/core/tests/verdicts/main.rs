//! Streams of events, each with the verdict that it must lead to.

mod abort_reasons;
mod application;
mod firewall_reject;
mod ipvs;
mod joining;
mod middlebox;
mod nat;
mod never_blamed;
mod peer;
mod started_late;
