//! A whole Kubernetes cluster on one machine: a control plane and three nodes with different container runtimes, and istiod.
//!
//! ```text
//! plan.rs ───── machines, addresses, processes: pure
//! files.rs ──── the configuration files of a machine, from templates/: pure
//! pki.rs ────── certificates and kubeconfigs
//! images.rs ─── container images, as archives
//! machine.rs ── namespaces and cgroups of a machine: on, off, commands in it
//! init.rs ───── process 1 of a machine: mounts, and processes that are restarted
//! network.rs ── the links between the machines
//! cluster.rs ── all of it, up and down
//! bin/app.rs ── the server and client of the tests
//! ```
//!
//! Every machine has network, mount, process, host name and cgroup namespaces of its own. What it writes to `/etc`, `/opt` and `/var` is in
//! the cluster's directory. On this machine there are one process for each of them, one veth link and one cgroup.

pub mod cluster;
pub mod files;
pub mod images;
pub mod init;
pub mod machine;
pub mod network;
pub mod pki;
pub mod plan;

pub use cluster::Cluster;
