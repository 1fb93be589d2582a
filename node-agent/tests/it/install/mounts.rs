//! Full, read-only and noexec file systems, in a mount namespace of their own.

use std::process::{Command, Output};

use super::node::{LIST, Node, types};

/// Runs a script with `$AGENT` (with its flags), `$CONF` and `$BIN` set, in a mount namespace of its own.
fn in_namespace(node: &Node, script: &str) -> Output {
    let agent = format!("{} install --wait=0s {}", env!("CARGO_BIN_EXE_weir-agent"), node.flags(&[]).join(" "));
    Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-eu", "-c", script])
        .env("AGENT", agent)
        .env("CONF", node.conf())
        .env("BIN", node.bin())
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_read_only_plugin_directory_is_reported() {
    if !weir_tests::privileged() {
        return;
    }
    let node = Node::new();
    node.write("10-a.conflist", LIST);
    let output = in_namespace(
        &node,
        "mount --bind $BIN $BIN; mount -o remount,bind,ro $BIN; ! $AGENT; cat $CONF/10-a.conflist; mount -o remount,bind,rw $BIN; $AGENT >&2",
    );
    assert!(output.status.success(), "{output:?}");
    assert_eq!(text(&output.stdout), LIST);
    let stderr = text(&output.stderr);
    assert!(stderr.contains("is read-only: mount it writable") && stderr.contains("os error 30"), "{stderr}");
}

#[test]
fn a_noexec_mount_is_reported() {
    if !weir_tests::privileged() {
        return;
    }
    let node = Node::new();
    node.write("10-a.conflist", LIST);
    let output = in_namespace(&node, "mount -t tmpfs -o noexec none $BIN; $AGENT");
    assert!(text(&output.stdout).contains("is mounted noexec"), "{output:?}");
}

#[test]
fn a_full_disk_leaves_the_network_valid() {
    if !weir_tests::privileged() {
        return;
    }
    let node = Node::new();
    // One page is left: neither the backup nor the new list fits.
    let long = LIST.replace("1.50e3", &format!("\"{}\"", "x".repeat(3500)));
    node.write("list", &long);
    let output = in_namespace(
        &node,
        "mv $CONF/list $BIN/list; mount -t tmpfs -o size=8k none $CONF; cp $BIN/list $CONF/10-a.conflist; echo x > $CONF/filler
         ! $AGENT; cat $CONF/10-a.conflist; ls -A $CONF >&2; mount -o remount,size=1m $CONF; $AGENT >&2; cat $CONF/10-a.conflist >&2",
    );
    assert!(output.status.success(), "{output:?}");
    assert_eq!(text(&output.stdout), long);
    let stderr = text(&output.stderr);
    assert!(stderr.contains("os error 28"), "{stderr}");
    assert!(!stderr.contains(".weir-tmp-"), "nothing is left behind: {stderr}");
    let list = &stderr[stderr.find('{').unwrap()..];
    assert_eq!(types(list), ["bridge", "portmap", "weir-cni"]);
}
