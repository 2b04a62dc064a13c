//! Streams of events, each with its expected verdict.

mod abort_reasons;
mod application;
mod firewall_reject;
mod handshakes;
mod ipvs;
mod joining;
mod lost_entries;
mod middlebox;
mod nat;
mod never_blamed;
mod peer;
mod reviewed;
mod started_late;
