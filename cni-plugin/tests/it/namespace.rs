//! Real namespaces: what ADD leaves in the kernel, what CHECK finds, what a failure leaves.

use std::process::Command;

use weir_lab::{Netns, privilege};

use crate::call::{Call, STATUS, conf, prev_result};

/// Output of a program inside the namespace; it has to succeed.
fn inside(netns: &Netns, program: &str, args: &[&str]) -> String {
    let output = netns.run(|| Command::new(program).args(args).output()).unwrap().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn ruleset(netns: &Netns) -> String {
    inside(netns, "nft", &["list", "ruleset"])
}

#[test]
fn leaves_pods_outside_the_mesh_untouched() {
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
