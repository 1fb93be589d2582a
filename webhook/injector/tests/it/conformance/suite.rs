//! Builds the injector's input from the cases.

use std::path::Path;

use serde_json::{Value, json};
use weir_injector::settings::{NativeSidecars, Platform, Settings};
use weir_injector::{InjectOutcome, InjectRequest, Workload, inject, yaml};
use weir_tests::conformance::{Case, Suite, documents};

/// Builds the injector's types from the cases.
pub(super) trait InjectorSuite {
    fn case(&self, name: &str) -> Case;
    fn settings(&self, case: &Case, revision: &str) -> Settings;
    /// Returns all objects of a manifest, including the items of lists.
    fn objects(&self, folder: &str, file: &str) -> Vec<Value>;
    fn request(&self, pod: Value, namespace: &str, workload: Option<Workload>) -> InjectRequest;
}

impl InjectorSuite for Suite {
    fn case(&self, name: &str) -> Case {
        self.cases.iter().find(|case| case.name() == name).unwrap_or_else(|| panic!("no case {name}")).clone()
    }

    fn settings(&self, case: &Case, revision: &str) -> Settings {
        let mut settings = Settings::from_values_and_mesh(Some(&self.values(case)), Some(&self.mesh(case)))
            .expect("the documents of the suite are valid");
        revision.clone_into(&mut settings.revision);
        settings.nodes = case.node_versions.iter().enumerate().map(|(n, version)| (n.to_string(), version)).collect();
        settings.native_sidecars =
            if case.native_sidecar_mode == "auto" { NativeSidecars::ByNodes } else { NativeSidecars::Off };
        assert_eq!(settings.is_native_on(None), case.native_sidecar, "{}", case.name());
        if case.platform == "openshift" {
            settings.platform = Platform::OpenShift;
        }
        case.compliance_policy.clone_into(&mut settings.compliance_policy);
        settings
    }

    fn objects(&self, folder: &str, file: &str) -> Vec<Value> {
        read_objects(&self.path(folder, file))
    }

    fn request(&self, pod: Value, namespace: &str, workload: Option<Workload>) -> InjectRequest {
        InjectRequest {
            pod,
            namespace: (!namespace.is_empty()).then(|| namespace.to_owned()),
            namespace_annotations: self.harness.namespaces.get(namespace).cloned().unwrap_or_default(),
            workload,
            ..InjectRequest::default()
        }
    }
}

/// Reads all objects of a manifest, including the items of lists.
pub(crate) fn read_objects(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut objects = Vec::new();
    for text in documents(&text) {
        let document = yaml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        match document["items"].as_array() {
            Some(items) if document["kind"] == "List" => objects.extend(items.iter().cloned()),
            _ => objects.push(document),
        }
    }
    objects
}

/// Returns the pod template of an object, if its kind has one.
pub(crate) fn template(object: &mut Value) -> Option<&mut Value> {
    let path = match object["kind"].as_str()? {
        "Deployment"
        | "DaemonSet"
        | "ReplicaSet"
        | "StatefulSet"
        | "Job"
        | "ReplicationController"
        | "DeploymentConfig" => "/spec/template",
        "CronJob" => "/spec/jobTemplate/spec/template",
        "Pod" => "",
        _ => return None,
    };
    object.pointer_mut(path)
}

/// Injects an object as a manifest.
pub(super) fn inject_object(suite: &Suite, settings: &Settings, object: &Value) -> Result<Value, String> {
    let mut object = object.clone();
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let namespace = text("/metadata/namespace");
    let workload = Workload {
        api_version: text("/apiVersion"),
        kind: text("/kind"),
        name: text("/metadata/name"),
        namespace: namespace.clone(),
    };
    let workload = (workload.kind != "Pod").then_some(workload);
    let Some(pod) = template(&mut object) else { return Ok(object) };
    let request = suite.request(pod.clone(), &namespace, workload);
    match inject(&request, settings).map_err(|error| error.to_string())? {
        InjectOutcome::Injected { pod: injected, .. } => *pod = injected,
        InjectOutcome::Skipped { .. } => {}
    }
    Ok(object)
}

/// Returns the pod that the controller of an object would create.
pub(crate) fn pod_of(object: &Value) -> Option<Value> {
    if object["kind"] == "Pod" {
        return Some(object.clone());
    }
    let mut object = object.clone();
    let (api_version, kind, name) =
        (object["apiVersion"].clone(), object["kind"].clone(), object["metadata"]["name"].clone());
    let namespace = object["metadata"].get("namespace").cloned();
    let mut pod = template(&mut object)?.take();
    pod["apiVersion"] = "v1".into();
    pod["kind"] = "Pod".into();
    if let Some(namespace) = namespace {
        pod["metadata"]["namespace"] = namespace;
    }
    let (api_version, kind, owner) = if kind == "Deployment" {
        pod["metadata"]["labels"]["pod-template-hash"] = "fake".into();
        (json!("apps/v1"), json!("ReplicaSet"), format!("{}-fake", name.as_str()?))
    } else {
        (api_version, kind, name.as_str()?.to_owned())
    };
    pod["metadata"]["generateName"] = format!("{owner}-").into();
    pod["metadata"]["ownerReferences"] =
        json!([{"apiVersion": api_version, "kind": kind, "name": owner, "controller": true}]);
    Some(pod)
}
