//! ADD where `lo` is still down: containerd attaches it and the pod's network at the same time.

use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::time::Duration;

use iptables_rules::names::address::PASSTHROUGH_V6;
use serde_json::json;
use weir_lab::{Netns, privilege, process};

use crate::call::{Call, STATUS, conf, prev_result};
use crate::chain::reference_plugins;

const BOUND: Duration = Duration::from_secs(20);

/// Returns a namespace whose `lo` is down.
pub(crate) fn with_loopback_down() -> Netns {
    let pod = Netns::new("loopback").unwrap();
    set_loopback(&pod, "down");
    pod
}

fn set_loopback(pod: &Netns, state: &str) {
    let set = || Command::new("ip").args(["link", "set", "lo", state]).status();
    assert!(pod.run(set).unwrap().unwrap().success());
}

/// Asserts that the proxy can connect to the application from `::6`.
fn assert_passthrough(pod: &Netns) {
    let connect = || {
        let server = TcpListener::bind("[::1]:0").unwrap();
        let client = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None).unwrap();
        client.bind(&SocketAddr::from((PASSTHROUGH_V6, 0)).into()).unwrap();
        client.connect_timeout(&server.local_addr().unwrap().into(), Duration::from_secs(5)).unwrap();
        server.accept().unwrap().1.ip()
    };
    assert_eq!(pod.run(connect).unwrap(), PASSTHROUGH_V6);
}

#[test]
fn loopback_plugin_succeeds_before_and_after_add() {
    if !privilege::available_or_skip() {
        return;
    }
    let Some(plugins) = reference_plugins() else { return };
    let conf = conf("1.0.0", &[STATUS]);
    for add_first in [true, false] {
        let pod = with_loopback_down();
        let add = || Call::new("ADD").netns(&pod.path()).conf(&conf).run().assert_success(&prev_result(&conf));
        if add_first {
            add();
        }
        let mut loopback = Command::new(plugins.join("loopback"));
        let env = [("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "c0ffee"), ("CNI_IFNAME", "lo"), ("CNI_PATH", "/")];
        loopback.env_clear().envs(env).env("CNI_NETNS", pod.path());
        let entry = json!({ "cniVersion": "1.0.0", "name": "cni-loopback", "type": "loopback" }).to_string();
        let output = process::run(&mut loopback, entry.as_bytes(), BOUND).unwrap();
        assert!(output.status.success(), "ADD first: {add_first}: {output:?}");
        if !add_first {
            add();
        }
        Call::new("CHECK").netns(&pod.path()).conf(&conf).run().assert_success("");
        assert_passthrough(&pod);
    }
}

#[test]
fn add_restores_passthrough_after_loopback_was_down() {
    if !privilege::available_or_skip() {
        return;
    }
    let conf = conf("1.0.0", &[STATUS]);
    let pod = with_loopback_down();
    let call = |verb: &str| Call::new(verb).netns(&pod.path()).conf(&conf);
    for up_before in [false, true, false] {
        set_loopback(&pod, "down");
        if up_before {
            set_loopback(&pod, "up");
        }
        call("CHECK").run().error();
        call("ADD").run().assert_success(&prev_result(&conf));
        call("CHECK").run().assert_success("");
        assert_passthrough(&pod);
    }
}
