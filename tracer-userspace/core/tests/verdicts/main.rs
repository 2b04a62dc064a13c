//! Streams of events, each with its expected verdict.

mod abort_reasons;
mod application;
mod firewall_reject;
mod handshakes;
mod ipvs;
mod joining;
mod known_faults;
mod lost_entries;
mod middlebox;
mod nat;
mod never_blamed;
mod peer;
mod started_late;
