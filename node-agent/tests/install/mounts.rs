//! The real thing: a full disk and a read-only one, in a mount namespace of their own.

use std::process::{Command, Output};

use crate::node::{LIST, Node, types};

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
fn a_read_only_folder_of_plugins_is_named_and_nothing_refers_to_the_plugin() {
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
    let told = text(&output.stderr);
    assert!(told.contains("is read-only: mount it writable") && told.contains("os error 30"), "{told}");
}

#[test]
fn a_mount_without_programs_is_named() {
    if !weir_tests::privileged() {
        return;
    }
    let node = Node::new();
    node.write("10-a.conflist", LIST);
    let output = in_namespace(&node, "mount -t tmpfs -o noexec none $BIN; $AGENT");
    assert!(text(&output.stdout).contains("is mounted noexec"), "{output:?}");
}

#[test]
fn a_full_disk_leaves_the_network_whole_and_is_overcome() {
    if !weir_tests::privileged() {
        return;
    }
    let node = Node::new();
    // A page of the disk is left for a list of one page: neither the copy nor the new list fits beside it.
    let long = LIST.replace("1.50e3", &format!("\"{}\"", "x".repeat(3500)));
    node.write("list", &long);
    let output = in_namespace(
        &node,
        "mv $CONF/list $BIN/list; mount -t tmpfs -o size=8k none $CONF; cp $BIN/list $CONF/10-a.conflist; echo x > $CONF/filler
         ! $AGENT; cat $CONF/10-a.conflist; ls -A $CONF >&2; mount -o remount,size=1m $CONF; $AGENT >&2; cat $CONF/10-a.conflist >&2",
    );
    assert!(output.status.success(), "{output:?}");
    assert_eq!(text(&output.stdout), long);
    let told = text(&output.stderr);
    assert!(told.contains("os error 28"), "{told}");
    assert!(!told.contains(".weir-tmp-"), "nothing is left behind: {told}");
    let list = &told[told.find('{').unwrap()..];
    assert_eq!(types(list), ["bridge", "portmap", "weir-cni"]);
}
