//! What the rules mean, by real connections between real namespaces: every case for IPv4 and IPv6, and for every backend.
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic like tests")]

mod backend;
mod defaults;
mod invalid;
mod iptables;
mod modes;
mod replace;
mod settings;
mod world;
