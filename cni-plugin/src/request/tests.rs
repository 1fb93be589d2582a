use std::collections::BTreeMap;
use std::os::unix::ffi::OsStringExt;

use proptest::prelude::*;

use super::*;

fn from(pairs: &[(&str, &str)]) -> Result<Request, String> {
    let env: BTreeMap<&str, &str> = pairs.iter().copied().collect();
    Request::from_env(&|name| env.get(name).map(OsString::from)).map_err(|failure| {
        assert_eq!(failure.code(), 4);
        failure.to_string()
    })
}

const COMPLETE: [(&str, &str); 4] =
    [("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "c1"), ("CNI_NETNS", "/run/netns/a"), ("CNI_IFNAME", "eth0")];

#[test]
fn every_missing_variable_is_named() {
    assert_eq!(
        from(&[("CNI_COMMAND", "ADD")]).unwrap_err(),
        "invalid environment: CNI_CONTAINERID is missing; CNI_IFNAME is missing; CNI_NETNS is missing"
    );
    assert_eq!(from(&[]).unwrap_err(), "invalid environment: CNI_COMMAND is missing");
    assert_eq!(from(&[("CNI_COMMAND", "add")]).unwrap_err(), "invalid environment: CNI_COMMAND 'add' is unknown");
}

#[test]
fn del_needs_no_network_namespace() {
    let mut env = COMPLETE;
    env[0].1 = "DEL";
    env[2].1 = "";
    assert_eq!(from(&env).unwrap().netns, None);
    env[0].1 = "CHECK";
    assert!(from(&env).unwrap_err().contains("CNI_NETNS is missing"));
}

#[test]
fn verbs_without_a_container_need_no_parameters() {
    for verb in ["STATUS", "GC", "VERSION"] {
        assert!(from(&[("CNI_COMMAND", verb)]).is_ok(), "{verb}");
    }
}

#[test]
fn pod_arguments_parse_in_any_order() {
    let mut env = COMPLETE.to_vec();
    for args in [
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1;K8S_POD_INFRA_CONTAINER_ID=abc;K8S_POD_UID=1-2",
        "K8S_POD_UID=1-2;K8S_POD_NAME=web-1;FOO=a=b;IgnoreUnknown=1;K8S_POD_NAMESPACE=shop",
    ] {
        env.push(("CNI_ARGS", args));
        let pod = from(&env).unwrap().pod;
        assert_eq!(pod.full_name(), "shop/web-1");
        assert!(pod.is_kubernetes());
    }
    env.push(("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=podman-box"));
    assert!(!from(&env).unwrap().pod.is_kubernetes());
    env.push(("CNI_ARGS", ""));
    assert_eq!(from(&env).unwrap().pod, PodArgs::default());
}

#[test]
fn malformed_pairs_and_unknown_keys_are_rejected() {
    let mut env = COMPLETE.to_vec();
    env.push(("CNI_ARGS", "K8S_POD_NAME;COLOR=red;IgnoreUnknown=maybe"));
    assert_eq!(
        from(&env).unwrap_err(),
        "invalid environment: CNI_ARGS: 'K8S_POD_NAME' is not KEY=VALUE; CNI_ARGS: IgnoreUnknown 'maybe' is not 0, 1, true or false; \
         CNI_ARGS: unknown key 'COLOR' without IgnoreUnknown=1"
    );
}

#[test]
fn invalid_ids_and_interface_names_are_rejected() {
    for (name, value) in [
        ("CNI_CONTAINERID", "-x"),
        ("CNI_CONTAINERID", "a/b"),
        ("CNI_IFNAME", "a b"),
        ("CNI_IFNAME", "eth0:1"),
        ("CNI_IFNAME", ".."),
        ("CNI_IFNAME", "sixteen-letters-"),
    ] {
        let mut env = COMPLETE.to_vec();
        env.push((name, value));
        assert!(from(&env).unwrap_err().contains(&format!("{name} '{value}'")));
    }
}

#[test]
fn text_that_is_not_utf8_is_rejected() {
    let failure = Request::from_env(&|name| match name {
        "CNI_ARGS" => Some(OsString::from_vec(vec![0xff])),
        _ => COMPLETE.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value)),
    });
    assert_eq!(failure.unwrap_err().to_string(), "invalid environment: CNI_ARGS is not UTF-8");
}

proptest! {
    #[test]
    fn never_panics(args in ".{0,80}", id in ".{0,20}", interface in ".{0,20}") {
        let mut env = COMPLETE.to_vec();
        env.extend([("CNI_ARGS", args.as_str()), ("CNI_CONTAINERID", &id), ("CNI_IFNAME", &interface)]);
        let _ = from(&env);
    }
}
