//! Links and routes between the machines: a bridge on the machine of the control plane, to which all others and this machine are linked.
//!
//! This machine gets one address and no route but that of its link.

use std::fmt::Write as _;

use anyhow::ensure;
use weir_lab::process;

use crate::machine::Machine;
use crate::plan::{CONTROL_IP, HOST_IP, NODES, Node};

/// Name of the link on this machine.
pub const HOST_LINK: &str = "weir-cluster";

/// Returns whether the link exists in this process's network namespace.
pub fn is_linked() -> bool {
    // Not /sys/class/net, which may show another namespace's links.
    nix::net::if_::if_nametoindex(HOST_LINK).is_ok()
}

/// Removes the link from this process's network namespace, if it is there.
///
/// # Errors
/// When the command fails.
pub fn unlink() -> anyhow::Result<()> {
    match ip(&format!("link delete {HOST_LINK}\n")) {
        // The kernel removes it, too.
        Err(error) if is_linked() => Err(error),
        _ => Ok(()),
    }
}

/// Commands for `ip -batch` on the machine of the control plane: the bridge, and routes to pods.
fn control() -> String {
    let (v4, v6) = CONTROL_IP;
    let mut commands = format!(
        "link set lo up\nlink add nodes type bridge\naddress add {v4}/24 dev nodes\naddress add {v6}/64 dev nodes nodad\nlink set nodes up\n"
    );
    commands += &routes_to_pods(None);
    commands
}

/// Commands on a node. Its default route leads to the control plane, where it ends.
fn node(node: Node) -> String {
    let (v4, v6) = node.ips();
    let (gateway4, gateway6) = CONTROL_IP;
    let mut commands = format!(
        "link set lo up\naddress add {v4}/24 dev eth0\naddress add {v6}/64 dev eth0 nodad\nlink set eth0 up\n\
         route add default via {gateway4}\nroute add default via {gateway6}\n"
    );
    commands += &routes_to_pods(Some(node));
    commands
}

fn routes_to_pods(of: Option<Node>) -> String {
    let mut commands = String::new();
    for other in NODES.into_iter().filter(|&other| Some(other) != of) {
        let ((v4, v6), (pods4, pods6)) = (other.ips(), other.pod_cidrs());
        // Writing to a String cannot fail.
        let _ = writeln!(commands, "route add {pods4} via {v4}\nroute add {pods6} via {v6}");
    }
    commands
}

/// Sets up the network of the control plane, and the link to this machine.
///
/// # Errors
/// When a command fails.
pub fn connect_control(machine: &Machine) -> anyhow::Result<()> {
    batch(machine, &control())?;
    let netns = machine.netns()?;
    ip(&format!(
        "link add {HOST_LINK} type veth peer name host netns {0}\naddress add {HOST_IP}/24 dev {HOST_LINK}\nlink set {HOST_LINK} up\n",
        netns.display()
    ))?;
    batch(machine, "link set host master nodes up\n")
}

/// Connects a node.
///
/// # Errors
/// When a command fails.
pub fn connect_node(control: &Machine, machine: &Machine, of: Node) -> anyhow::Result<()> {
    let name = of.name();
    let (here, there) = (control.netns()?, machine.netns()?);
    ip(&format!("link add eth0 netns {} type veth peer name {name} netns {}\n", there.display(), here.display()))?;
    batch(control, &format!("link set {name} master nodes up\n"))?;
    batch(machine, &node(of))
}

fn batch(machine: &Machine, commands: &str) -> anyhow::Result<()> {
    machine.run(&["ip", "-batch", "-"], commands).map(drop)
}

/// Runs commands of `ip` on this machine.
fn ip(commands: &str) -> anyhow::Result<()> {
    let mut command = std::process::Command::new("ip");
    let output = process::run(command.args(["-batch", "-"]), commands.as_bytes(), std::time::Duration::from_secs(10))?;
    ensure!(output.status.success(), "ip {commands}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
