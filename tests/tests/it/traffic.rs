//! The rules decide where real connections between network namespaces arrive: every case for IPv4, IPv6 and every backend.

mod backend;
mod defaults;
mod invalid;
mod iptables;
mod modes;
mod replace;
mod settings;
mod world;
