//! `weir manifest generate`, compared with Helm, and with the options of the binaries that the manifests run.

use std::path::Path;
use std::process::Command;

use clap::Parser as _;
use serde_json::Value;
use weir_injector::yaml;

use crate::run::weir;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

#[test]
fn generated_objects_are_those_of_helm() {
    let python = Path::new(ROOT).join("target/tools/kubernetes-validate/bin/python");
    if !python.exists() {
        return weir_lab::skip_or_fail(format_args!("no {}; manifests/validate.sh installs it", python.display()));
    }
    let manifests = Path::new(ROOT).join("manifests");
    let binary = assert_cmd::cargo::cargo_bin!("weir");
    let compare = manifests.join("compare.py");
    let output = Command::new(python).arg(compare).arg(&manifests).arg("--weir").arg(binary).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    println!("{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn settings_come_from_files_stdin_and_options() {
    let run = weir(
        &["manifest", "generate", "-f", "-", "--set", "webhook.replicas=4"],
        "webhook: {replicas: 3}\nnode: {enabled: false}\n",
    );
    assert_eq!(run.code, 0, "{}", run.stderr);
    let documents: Vec<Value> = run.stdout.split("---\n").skip(1).map(|text| yaml::from_str(text).unwrap()).collect();
    let deployment = documents.iter().find(|object| object["kind"] == "Deployment").unwrap();
    assert_eq!(deployment["spec"]["replicas"], 4);
    assert!(!documents.iter().any(|object| object["kind"] == "DaemonSet"));
    let wrong = weir(&["manifest", "generate", "--set", "a", "--set", "x[=1"], "");
    assert_eq!(wrong.code, 2);
    assert_eq!(wrong.stderr.lines().count(), 2, "{}", wrong.stderr);
    let unknown = weir(&["manifest", "generate", "-f", "-"], "webhok: {}\n");
    assert!(unknown.code == 1 && unknown.stderr.contains("webhok: no such setting"), "{}", unknown.stderr);
}

/// Returns the arguments of every container that runs a binary of the project.
fn arguments(text: &str, image: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for document in text.split("---\n") {
        let object = yaml::from_str(document).unwrap();
        let pod = &object["spec"]["template"]["spec"];
        for list in ["initContainers", "containers"] {
            for container in pod[list].as_array().into_iter().flatten() {
                if container["image"].as_str().unwrap().starts_with(image) {
                    let args = container["args"].as_array().unwrap().iter();
                    found.push(args.map(|arg| arg.as_str().unwrap().to_owned()).collect());
                }
            }
        }
    }
    found
}

#[test]
fn binaries_accept_every_argument_of_the_manifests() {
    let mut seen = (0, 0);
    for settings in [
        "node.repair=true",
        "webhook.certificates=cert-manager,config.from=istio",
        "webhook.certificates=secret,webhook.caBundle=Q0E\\=,revision=r1,node.enabled=true",
        "node.uninstall=true",
    ] {
        let run = weir(&["manifest", "generate", "--set", settings], "");
        assert_eq!(run.code, 0, "{}", run.stderr);
        for args in arguments(&run.stdout, "weir-webhook") {
            let command = ["weir-webhook".to_owned()].into_iter().chain(args);
            if let Err(error) = weir_webhook::args::Cli::try_parse_from(command) {
                panic!("{error}");
            }
            seen.0 += 1;
        }
        for args in arguments(&run.stdout, "weir-agent") {
            let command = ["weir-agent".to_owned()].into_iter().chain(args);
            if let Err(error) = weir_agent::args::Cli::try_parse_from(command) {
                panic!("{error}");
            }
            seen.1 += 1;
        }
    }
    assert_eq!(seen, (4, 5));
}
