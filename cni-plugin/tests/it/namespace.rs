//! ADD, CHECK and failures in real network namespaces.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::json;
use weir_lab::{Netns, privilege};

use crate::call::{CAPABILITY, Call, STATUS, conf, prev_result};

/// Returns the output of a program inside the namespace, which must succeed.
fn inside(netns: &Netns, program: &str, args: &[&str]) -> String {
    let output = netns.run(|| Command::new(program).args(args).output()).unwrap().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn ruleset(netns: &Netns) -> String {
    inside(netns, "nft", &["list", "ruleset"])
}

#[test]
fn add_check_and_del_succeed_and_add_is_idempotent() {
    if !privilege::available_or_skip() {
        return;
    }
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let pod = Netns::new("life").unwrap();
        let conf = conf(version, &[STATUS]);
        let call = |verb: &str| Call::new(verb).netns(&pod.path()).conf(&conf);
        assert_eq!(ruleset(&pod), "");

        call("ADD").run().assert_success(&prev_result(&conf));
        let rules = ruleset(&pod);
        for part in ["table inet weir", "ISTIO_OUTPUT", "ISTIO_INBOUND", "15001", "15006", "1337"] {
            assert!(rules.contains(part), "{part} is not in:\n{rules}");
        }
        let addresses = inside(&pod, "ip", &["-6", "addr", "show", "dev", "lo"]);
        assert!(addresses.contains("::6/128"), "{addresses}");

        let again = call("ADD").run();
        again.assert_success(&prev_result(&conf));
        assert!(again.stderr.contains("capture rules unchanged"), "{}", again.stderr);
        assert_eq!(ruleset(&pod), rules);

        if version != "0.3.1" {
            call("CHECK").run().assert_success("");
        }
        call("DEL").run().assert_success("");
        call("DEL").run().assert_success("");
        let path = pod.path();
        drop(pod);
        Call::new("DEL").netns(&path).conf(&conf).run().assert_success("");
    }
}

#[test]
fn a_killed_add_leaves_all_rules_or_none() {
    if !privilege::available_or_skip() {
        return;
    }
    let conf = conf("1.0.0", &[STATUS]);
    let pod = Netns::new("whole").unwrap();
    Call::new("ADD").netns(&pod.path()).conf(&conf).run().assert_success(&prev_result(&conf));
    let complete = ruleset(&pod);
    // At 40 moments, up to 6 ms after the start.
    for step in 0..40 {
        let pod = Netns::new("killed").unwrap();
        let call = |verb: &str| Call::new(verb).netns(&pod.path()).conf(&conf);
        call("ADD").run_and_kill(Duration::from_micros(150 * step));
        let left = ruleset(&pod);
        assert!(left.is_empty() || left == complete, "{left}");
        call("ADD").run().assert_success(&prev_result(&conf));
        call("CHECK").run().assert_success("");
    }
}

#[test]
fn add_restores_flushed_rules() {
    if !privilege::available_or_skip() {
        return;
    }
    let pod = Netns::new("mended").unwrap();
    let conf = conf("1.0.0", &[STATUS]);
    let call = |verb: &str| Call::new(verb).netns(&pod.path()).conf(&conf);
    call("ADD").run().assert_success(&prev_result(&conf));
    inside(&pod, "nft", &["flush", "table", "inet", "weir"]);
    call("ADD").run().assert_success(&prev_result(&conf));
    call("CHECK").run().assert_success("");
}

#[test]
fn check_reports_changed_rules() {
    if !privilege::available_or_skip() {
        return;
    }
    let pod = Netns::new("check").unwrap();
    let conf = conf("1.0.0", &[STATUS]);
    let call = |verb: &str| Call::new(verb).netns(&pod.path()).conf(&conf);
    call("CHECK").run().assert_error(102, &["shop/web-1"]);

    call("ADD").run().assert_success(&prev_result(&conf));
    call("CHECK").run().assert_success("");
    inside(&pod, "nft", &["flush", "chain", "inet", "weir", "ISTIO_OUTPUT"]);
    call("CHECK").run().assert_error(102, &["ISTIO_OUTPUT"]);
    inside(&pod, "nft", &["delete", "table", "inet", "weir"]);
    call("CHECK").run().assert_error(102, &["weir"]);

    // CHECK of a pod outside the mesh succeeds.
    let other = crate::call::conf("1.0.0", &[]);
    Call::new("CHECK").netns(&pod.path()).conf(&other).run().assert_success("");
}

#[test]
fn check_reports_a_missing_passthrough_address() {
    if !privilege::available_or_skip() {
        return;
    }
    let pod = Netns::new("address").unwrap();
    let conf = conf("1.0.0", &[STATUS]);
    let call = |verb: &str| Call::new(verb).netns(&pod.path()).conf(&conf);
    call("ADD").run().assert_success(&prev_result(&conf));
    inside(&pod, "ip", &["-6", "addr", "del", "::6/128", "dev", "lo"]);
    call("CHECK").run().assert_error(102, &["::6/128"]);
}

#[test]
fn a_second_add_with_other_annotations_replaces_the_rules() {
    if !privilege::available_or_skip() {
        return;
    }
    let pod = Netns::new("replace").unwrap();
    let add = |annotations: &[(&str, &str)]| {
        let conf = conf("1.0.0", annotations);
        let answer = Call::new("ADD").netns(&pod.path()).conf(&conf).run();
        answer.assert_success(&prev_result(&conf));
        answer.stderr
    };
    add(&[STATUS]);
    assert!(!ruleset(&pod).contains("4711"));
    let log = add(&[STATUS, ("traffic.sidecar.istio.io/excludeOutboundPorts", "4711")]);
    assert!(log.contains("replaced"), "{log}");
    assert!(ruleset(&pod).contains("4711"));
}

#[test]
fn pods_outside_the_mesh_are_unchanged() {
    if !privilege::available_or_skip() {
        return;
    }
    let pod = Netns::new("outside").unwrap();
    let init = r#"{"initContainers":["istio-init"],"containers":["istio-proxy"]}"#;
    for annotations in [&[][..], &[(STATUS.0, init)], &[STATUS, ("sidecar.istio.io/interceptionMode", "NONE")]] {
        let conf = conf("1.0.0", annotations);
        Call::new("ADD").netns(&pod.path()).conf(&conf).run().assert_success(&prev_result(&conf));
    }
    assert_eq!(ruleset(&pod), "");
}

#[test]
fn a_failed_add_leaves_no_rules() {
    if !privilege::available_or_skip() {
        return;
    }
    let pod = Netns::new("fails").unwrap();
    let bad = conf("1.0.0", &[STATUS, ("weir.dev/capture", "{")]);
    Call::new("ADD").netns(&pod.path()).conf(&bad).run().assert_error(100, &["weir.dev/capture"]);
    assert_eq!(ruleset(&pod), "");
}

#[test]
fn captures_ipv4_where_ipv6_is_switched_off() {
    if !privilege::available_or_skip() {
        return;
    }
    let pod = Netns::new("v4only").unwrap();
    for scope in ["all", "lo"] {
        pod.set_sysctl(&format!("net/ipv6/conf/{scope}/disable_ipv6"), "1").unwrap();
    }
    let conf = conf("1.0.0", &[STATUS]);
    let call = |verb: &str| Call::new(verb).netns(&pod.path()).conf(&conf);
    call("ADD").run().assert_success(&prev_result(&conf));
    assert!(ruleset(&pod).contains("15001"));
    call("CHECK").run().assert_success("");
}

#[test]
fn status_checks_kernel_and_configuration() {
    if !privilege::available_or_skip() {
        return;
    }
    let mut conf = conf("1.1.0", &[]);
    conf.as_object_mut().unwrap().retain(|key, _| key != "prevResult" && key != "runtimeConfig");
    let status = |conf: &serde_json::Value| {
        let call = Call::new("STATUS")
            .without("CNI_CONTAINERID")
            .without("CNI_NETNS")
            .without("CNI_IFNAME")
            .without("CNI_ARGS");
        call.conf(conf).run()
    };
    status(&conf).assert_success("");
    conf["exclude_namespace"] = json!([]);
    status(&conf).assert_error(7, &["exclude_namespace"]);
    conf.as_object_mut().unwrap().retain(|key, _| key != "exclude_namespace");
    conf["capabilities"] = json!({});
    status(&conf).assert_error(7, &[CAPABILITY]);
}

#[test]
fn iptables_backend_behaves_like_nft() {
    if !privilege::available_or_skip() {
        return;
    }
    let pod = Netns::new("iptables").unwrap();
    let mut conf = conf("1.0.0", &[STATUS]);
    conf["backend"] = json!("iptables");
    let call = |verb: &str| Call::new(verb).netns(&pod.path()).conf(&conf);
    call("CHECK").run().assert_error(102, &["shop/web-1", "ISTIO_OUTPUT"]);
    call("ADD").run().assert_success(&prev_result(&conf));
    for program in ["iptables-save", "ip6tables-save"] {
        let rules = inside(&pod, program, &[]);
        assert!(rules.contains("-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001"), "{program}:\n{rules}");
    }
    assert!(!ruleset(&pod).contains("table inet weir"));
    call("CHECK").run().assert_success("");
    let again = call("ADD").run();
    again.assert_success(&prev_result(&conf));
    assert!(again.stderr.contains("capture rules unchanged"), "{}", again.stderr);
    inside(&pod, "iptables", &["-t", "nat", "-F", "ISTIO_OUTPUT"]);
    call("CHECK").run().assert_error(102, &["iptables nat ISTIO_OUTPUT"]);

    let bare = Netns::new("bare").unwrap();
    let without = Call::new("ADD").env("PATH", "/nonexistent").netns(&bare.path()).conf(&conf).run();
    without.assert_error(11, &["shop/web-1", "iptables-nft-restore"]);
    assert_eq!(ruleset(&bare), "");
}

#[test]
fn a_failed_second_family_is_rolled_back() {
    if !privilege::available_or_skip() {
        return;
    }
    // A directory with links to all programs, except for ip6tables-restore, which always fails.
    let folder = tempfile::tempdir().unwrap();
    for program in ["iptables-save", "iptables-restore", "ip6tables-save"] {
        std::os::unix::fs::symlink(format!("/usr/sbin/{program}"), folder.path().join(program)).unwrap();
    }
    std::os::unix::fs::symlink("/bin/false", folder.path().join("ip6tables-restore")).unwrap();
    let pod = Netns::new("half").unwrap();
    let mut conf = conf("1.0.0", &[STATUS]);
    conf["backend"] = json!("iptables");
    let answer = Call::new("ADD").env("PATH", folder.path().to_str().unwrap()).netns(&pod.path()).conf(&conf).run();
    answer.assert_error(11, &["ip6tables-restore"]);
    let rules = inside(&pod, "iptables-save", &[]);
    assert!(!rules.contains("ISTIO"), "{rules}");
}

#[test]
fn eight_pods_at_once_get_their_own_rules() {
    if !privilege::available_or_skip() {
        return;
    }
    let pods: Vec<Netns> = (0..8).map(|n| Netns::new(&format!("pod{n}")).unwrap()).collect();
    thread::scope(|scope| {
        for (n, pod) in pods.iter().enumerate() {
            scope.spawn(move || {
                let port = (7000 + n).to_string();
                let conf = conf("1.0.0", &[STATUS, ("traffic.sidecar.istio.io/excludeOutboundPorts", &port)]);
                Call::new("ADD").netns(&pod.path()).conf(&conf).run().assert_success(&prev_result(&conf));
            });
        }
    });
    for (n, pod) in pods.iter().enumerate() {
        let rules = ruleset(pod);
        assert!(rules.contains(&(7000 + n).to_string()), "{rules}");
        assert!(!rules.contains(&(7000 + (n + 1) % 8).to_string()), "{rules}");
    }
}

#[test]
fn visibility_iptables_shows_the_rules() {
    if !privilege::available_or_skip() {
        return;
    }
    let pod = Netns::new("visible").unwrap();
    let mut conf = conf("1.1.0", &[STATUS]);
    conf["visibility"] = json!("iptables");
    // No iptables program is run.
    let call = |verb: &str| Call::new(verb).env("PATH", "/nonexistent").netns(&pod.path()).conf(&conf);
    call("STATUS").run().assert_success("");
    call("CHECK").run().assert_error(102, &["shop/web-1", "ISTIO_OUTPUT"]);
    call("ADD").run().assert_success(&prev_result(&conf));
    for program in ["iptables-nft-save", "ip6tables-nft-save"] {
        let rules = inside(&pod, program, &[]);
        assert!(rules.contains("-A ISTIO_INBOUND -p tcp -m tcp --dport 15021 -j RETURN"), "{program}:\n{rules}");
    }
    call("CHECK").run().assert_success("");
    assert!(call("ADD").run().stderr.contains("capture rules unchanged"));
    inside(&pod, "iptables-nft", &["-t", "nat", "-F", "ISTIO_OUTPUT"]);
    call("CHECK").run().assert_error(102, &["iptables nat ISTIO_OUTPUT"]);
}

/// A process that keeps a network namespace in a user namespace of its own, as runtimes make them for pods with `hostUsers: false`.
struct OtherUsers(Child);

impl OtherUsers {
    fn start() -> Self {
        let mut process =
            Command::new("unshare").args(["--user", "--net", "cat"]).stdin(Stdio::piped()).spawn().unwrap();
        let own = fs::read_link("/proc/self/ns/net").unwrap();
        let netns = format!("/proc/{}/ns/net", process.id());
        for _ in 0..1000 {
            if fs::read_link(&netns).unwrap() != own {
                break;
            }
            assert!(process.try_wait().unwrap().is_none(), "unshare failed");
            thread::sleep(Duration::from_millis(10));
        }
        for map in ["uid_map", "gid_map"] {
            fs::write(format!("/proc/{}/{map}", process.id()), "0 100000 65536").unwrap();
        }
        Self(process)
    }

    fn netns(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.0.id()).into()
    }

    /// Runs a command as one of the users in the namespaces; returns its exit status.
    fn run(&self, user: &str, command: &str) -> Option<i32> {
        let [target, uid, gid] =
            [format!("--target={}", self.0.id()), format!("--setuid={user}"), format!("--setgid={user}")];
        let args = [&target, "--user", "--net", &uid, &gid, "bash", "-c", command];
        Command::new("nsenter").args(args).stderr(Stdio::null()).status().unwrap().code()
    }
}

impl Drop for OtherUsers {
    fn drop(&mut self) {
        let _ = self.0.kill().and_then(|()| self.0.wait());
    }
}

/// Users are counted as in the pod: its user 1337 is the proxy, although another one on the node.
#[test]
fn a_pod_with_users_of_its_own_is_captured() {
    if !privilege::available_or_skip() {
        return;
    }
    let pod = OtherUsers::start();
    let network = "ip link set lo up && ip link add eth0 type veth peer name other && ip address add 10.9.9.1/24 dev eth0 && ip link set eth0 up && ip link set other up";
    let netns = format!("--net={}", pod.netns().display());
    assert!(Command::new("nsenter").args([&netns, "bash", "-c", network]).status().unwrap().success());
    let conf = conf("1.0.0", &[STATUS]);
    let call = |verb: &str| Call::new(verb).netns(&pod.netns()).conf(&conf);
    call("ADD").run().assert_success(&prev_result(&conf));
    call("CHECK").run().assert_success("");
    // Redirected to the proxy's port, where nothing listens; else nobody answers on that network.
    let connect = "timeout 1 bash -c '</dev/tcp/10.9.9.2/80'";
    let (refused, no_answer) = (Some(1), Some(124));
    assert_eq!((pod.run("1000", connect), pod.run("1337", connect)), (refused, no_answer));
    call("DEL").run().assert_success("");
}
