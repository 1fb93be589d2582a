//! Verbs, versions, codes and invalid input. Nothing here needs privileges.

use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::call::{CAPABILITY, Call, STATUS, conf, prev_result};

const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

#[test]
fn version_lists_the_supported_versions() {
    let expected = |version: &str| json!({ "cniVersion": version, "supportedVersions": VERSIONS });
    for (stdin, version) in [
        (r#"{"cniVersion":"0.4.0"}"#, "0.4.0"),
        (r#"{"cniVersion":"9.0.0"}"#, "1.1.0"),
        ("", "1.1.0"),
        ("not json", "1.1.0"),
    ] {
        let answer = Call::new("VERSION").stdin(stdin).run();
        assert_eq!(answer.code, Some(0));
        assert_eq!(serde_json::from_str::<Value>(&answer.stdout).unwrap(), expected(version), "{stdin:?}");
    }
    // VERSION needs no other variable.
    let bare = Call::new("VERSION").without("CNI_CONTAINERID").without("CNI_NETNS").without("CNI_IFNAME").run();
    assert_eq!(bare.code, Some(0));
}

#[test]
fn started_by_hand_it_prints_about() {
    let answer = Call::new("").without("CNI_COMMAND").run();
    assert_eq!((answer.code, answer.stdout.as_str()), (Some(0), ""));
    assert!(answer.stderr.contains("weir-cni") && answer.stderr.contains("1.1.0"), "{}", answer.stderr);
    // With a configuration on stdin it is a call without a verb.
    Call::new("").without("CNI_COMMAND").conf(&conf("1.0.0", &[])).run().assert_error(4, &["CNI_COMMAND"]);
}

#[test]
fn pods_outside_the_mesh_pass_in_every_version() {
    for version in VERSIONS {
        let conf = conf(version, &[("app", "web")]);
        let answer = Call::new("ADD").conf(&conf).run();
        answer.assert_success(&prev_result(&conf));
        assert!(answer.stderr.contains("not in the mesh"), "{}", answer.stderr);
    }
}

#[test]
fn each_missing_variable_is_named() {
    for verb in ["ADD", "CHECK"] {
        for variable in ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS"] {
            for call in [Call::new(verb).without(variable), Call::new(verb).env(variable, "")] {
                call.conf(&conf("1.0.0", &[])).run().assert_error(4, &[&format!("{variable} is missing")]);
            }
        }
    }
    for variable in ["CNI_CONTAINERID", "CNI_IFNAME"] {
        Call::new("DEL").without(variable).conf(&conf("1.0.0", &[])).run().assert_error(4, &[variable]);
    }
    Call::new("ADD")
        .without("CNI_CONTAINERID")
        .without("CNI_IFNAME")
        .without("CNI_NETNS")
        .conf(&conf("1.0.0", &[]))
        .run()
        .assert_error(4, &["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS"]);
    Call::new("FROB").run().assert_error(4, &["CNI_COMMAND 'FROB'"]);
    // CNI_PATH is only needed by plugins that call others.
    Call::new("ADD")
        .without("CNI_PATH")
        .conf(&conf("1.0.0", &[]))
        .run()
        .assert_success(&prev_result(&conf("1.0.0", &[])));
}

#[test]
fn invalid_arguments_are_named() {
    let with = |args: &str| Call::new("ADD").env("CNI_ARGS", args).conf(&conf("1.0.0", &[])).run();
    with("K8S_POD_NAME").assert_error(4, &["CNI_ARGS", "'K8S_POD_NAME'"]);
    with("COLOR=red").assert_error(4, &["COLOR", "IgnoreUnknown"]);
    with("COLOR=red;IgnoreUnknown=true").assert_success(&prev_result(&conf("1.0.0", &[])));
}

#[test]
fn unsupported_versions_fail_with_code_1() {
    for version in ["0.1.0", "0.2.0", "0.3.0", "1.2.0", "", "latest"] {
        let answer = Call::new("ADD").conf(&conf(version, &[])).run();
        answer.assert_error(1, &[&format!("'{version}'")]);
        assert!(answer.error()["details"].as_str().unwrap().contains("0.3.1, 0.4.0, 1.0.0, 1.1.0"));
    }
    Call::new("ADD").conf(&json!({ "name": "x" })).run().assert_error(1, &["cniVersion is missing"]);
    Call::new("CHECK").conf(&conf("0.3.1", &[])).run().assert_error(1, &["CHECK needs 0.4.0"]);
    for verb in ["STATUS", "GC"] {
        Call::new(verb).conf(&conf("1.0.0", &[])).run().assert_error(1, &["needs 1.1.0"]);
    }
}

#[test]
fn malformed_configurations_fail_with_code_6() {
    for stdin in [&b"{"[..], b"", b"[1]", b"\"x\"", b"{}x", b"\xff\xfe", b"{\"cniVersion\": 1}", b"\0"] {
        Call::new("ADD").stdin(stdin).run().assert_error(6, &["decode"]);
    }
    let mut large = conf("1.0.0", &[]);
    large["args"] = "x".repeat(5 << 20).into();
    Call::new("ADD").conf(&large).run().assert_error(6, &["exceeds 4194304 bytes"]);
}

#[test]
fn deep_nesting_does_not_overflow_the_stack() {
    let deep = "[".repeat(200_000) + &"]".repeat(200_000);
    let prev = format!(r#"{{"x":{deep}}}"#);
    let text = format!(r#"{{"cniVersion":"1.0.0","runtimeConfig":{{"{CAPABILITY}":null}},"prevResult":{prev}}}"#);
    Call::new("ADD").stdin(text).run().assert_success(&prev);
}

#[test]
fn add_and_check_need_prev_result() {
    for prev in [None, Some(json!(null)), Some(json!("x"))] {
        for verb in ["ADD", "CHECK"] {
            let mut conf = conf("1.0.0", &[STATUS]);
            match &prev {
                None => conf.as_object_mut().unwrap().retain(|key, _| key != "prevResult"),
                Some(value) => conf["prevResult"] = value.clone(),
            }
            Call::new(verb).conf(&conf).run().assert_error(7, &["prevResult"]);
        }
    }
}

#[test]
fn errors_carry_the_version_of_the_configuration() {
    for version in VERSIONS {
        let mut conf = conf(version, &[]);
        conf["prevResult"] = json!([]);
        assert_eq!(Call::new("ADD").conf(&conf).run().error()["cniVersion"], version);
    }
    assert_eq!(Call::new("ADD").stdin("{").run().error()["cniVersion"], "1.1.0");
}

#[test]
fn del_always_succeeds() {
    let mut bare = conf("1.0.0", &[STATUS]);
    bare.as_object_mut().unwrap().retain(|key, _| key != "prevResult" && key != "runtimeConfig");
    for stdin in [
        conf("0.3.1", &[STATUS]).to_string(),
        bare.to_string(),
        conf("9.9.9", &[]).to_string(),
        "{".to_owned(),
        String::new(),
    ] {
        for del in [Call::new("DEL"), Call::new("DEL").without("CNI_NETNS"), Call::new("DEL").env("CNI_NETNS", "")] {
            del.stdin(stdin.clone()).run().assert_success("");
        }
    }
    let answer = Call::new("DEL").stdin("{").run();
    assert!(answer.stderr.contains("\"level\":\"warn\""), "{}", answer.stderr);
}

#[test]
fn gc_succeeds_without_output() {
    let mut gc = conf("1.1.0", &[]);
    gc.as_object_mut().unwrap().retain(|key, _| key != "prevResult" && key != "runtimeConfig");
    gc["cni.dev/valid-attachments"] = json!([{ "containerID": "gone", "ifname": "eth0" }]);
    let call =
        Call::new("GC").without("CNI_CONTAINERID").without("CNI_NETNS").without("CNI_IFNAME").without("CNI_ARGS");
    call.clone().conf(&gc).run().assert_success("");
    call.stdin("{").run().assert_error(6, &["decode"]);
}

#[test]
fn missing_annotations_name_entry_or_runtime() {
    let mut conf = conf("1.0.0", &[]);
    conf["runtimeConfig"] = json!({ "cgroupPath": "/x" });
    Call::new("ADD").conf(&conf).run().assert_error(11, &["shop/web-1", "no pod annotations"]);
    conf["capabilities"] = json!({ "portMappings": true });
    Call::new("ADD").conf(&conf).run().assert_error(7, &["capabilities", CAPABILITY]);
    // Pods that are skipped without annotations are not affected.
    let prev = prev_result(&conf);
    Call::new("ADD").env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=box").conf(&conf).run().assert_success(&prev);
    Call::new("ADD")
        .env("CNI_ARGS", "K8S_POD_NAMESPACE=kube-system;K8S_POD_NAME=dns")
        .conf(&conf)
        .run()
        .assert_success(&prev);
    Call::new("ADD").without("CNI_ARGS").conf(&conf).run().assert_success(&prev);
}

#[test]
fn invalid_keys_fail_meshed_pods_only() {
    let mut conf = conf("1.0.0", &[STATUS]);
    conf["exclude_namespace"] = json!(["a"]);
    conf["plugin_log_level"] = json!("loud");
    Call::new("ADD").conf(&conf).run().assert_error(7, &["'exclude_namespace' is unknown", "plugin_log_level: 'loud'"]);
    conf["runtimeConfig"][CAPABILITY] = json!({});
    Call::new("ADD").conf(&conf).run().assert_success(&prev_result(&conf));
}

#[test]
fn all_invalid_annotations_are_named() {
    let bad = [
        STATUS,
        ("traffic.sidecar.istio.io/excludeInboundPorts", "80x"),
        ("sidecar.istio.io/interceptionMode", "SIDEWAYS"),
    ];
    Call::new("ADD").conf(&conf("1.0.0", &bad)).run().assert_error(100, &["shop/web-1", "'80x'", "'SIDEWAYS'"]);
    let capture = [STATUS, ("weir.dev/capture", "{\"mode\":")];
    Call::new("ADD").conf(&conf("1.0.0", &capture)).run().assert_error(100, &["weir.dev/capture"]);
    // A newer webhook: the pod waits for an upgrade of the node.
    for newer in [r#"{"v":2}"#, r#"{"v":1,"later":true}"#] {
        let answer = Call::new("ADD").conf(&conf("1.0.0", &[STATUS, ("weir.dev/capture", newer)])).run();
        answer.assert_error(11, &["older than the webhook"]);
    }
    // Without the status annotation Istio's do not matter; ours shows that the pod was injected.
    let istio = conf("1.0.0", &bad[1..]);
    Call::new("ADD").conf(&istio).run().assert_success(&prev_result(&istio));
    let stripped = conf("1.0.0", &capture[1..]);
    Call::new("ADD").conf(&stripped).run().assert_error(11, &["status is missing", "weir.dev/capture"]);
}

#[test]
fn an_invalid_netns_fails_with_code_8() {
    let conf = conf("1.0.0", &[STATUS]);
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "not a namespace").unwrap();
    for path in [file.path().to_str().unwrap(), "/run/netns/weir-no-such-namespace", "/", "/proc/self/ns/net"] {
        for verb in ["ADD", "CHECK"] {
            Call::new(verb).env("CNI_NETNS", path).conf(&conf).run().assert_error(8, &[path]);
        }
    }
}

#[test]
fn log_level_is_respected() {
    let run = |level: &str| {
        let mut conf = conf("1.0.0", &[]);
        conf["plugin_log_level"] = json!(level);
        Call::new("ADD").conf(&conf).run().stderr
    };
    assert!(run("info").contains("skipping pod"));
    assert!(run("").contains("skipping pod"));
    assert_eq!(run("warn"), "");
    assert_eq!(run("none"), "");
}

#[test]
fn a_closed_stdout_fails_without_a_signal() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_weir-cni"))
        .env_clear()
        .env("CNI_COMMAND", "VERSION")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    child.stdin.take().unwrap().write_all(b"{}").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("stdout"));
}

#[test]
fn the_example_conflist_is_valid() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/cni/10-example.conflist");
    let list: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let mut entry = list["plugins"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(entry["type"], "weir-cni");
    for key in ["cniVersion", "name"] {
        entry[key] = list[key].clone();
    }
    entry["prevResult"] = json!({});
    entry["runtimeConfig"] = json!({ CAPABILITY: { STATUS.0: STATUS.1 } });
    // The configuration is valid: the call fails only at the network namespace.
    Call::new("ADD").conf(&entry).run().assert_error(8, &["/run/netns/weir-no-such-namespace"]);
    assert_eq!(entry["capabilities"][CAPABILITY], true);
}
