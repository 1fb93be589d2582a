//! Istio's own cases: every manifest through the injector, as `kube-inject` sees it (file) and as the API server sends the pod
//! that its controller would create (admission). The data lie beside the project and are not part of it.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail here")]

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use weir_webhook::inject::{InjectRequest, Outcome, Workload, inject};
use weir_webhook::settings::{NativeSidecars, Platform, Settings};
use weir_webhook::yaml;

/// Cases that need templates in Go's template language: not a capability of the injector.
const NEED_GO_TEMPLATES: [&str; 3] =
    ["custom-template.yaml.injected", "gateway-spire.yaml.injected", "sidecar-spire.yaml.injected"];

/// Cases whose expected output holds a defect; a test of its own below shows what is done instead.
const BETTER: [&str; 4] = [
    "cronjob.yaml.injected",
    "merge-probers.yaml.injected",
    "only-proxy-container.yaml.injected",
    "cronjob-old-version.yaml.injected",
];

#[derive(Deserialize)]
struct Cases {
    harness: Harness,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Harness {
    default_values: Value,
    mesh_config: Value,
    namespaces: BTreeMap<String, BTreeMap<String, String>>,
}

#[derive(Deserialize, Clone)]
#[serde(rename_all = "camelCase")]
struct Case {
    input: String,
    want: Option<String>,
    values_patch: Value,
    mesh_patch: Value,
    native_sidecar: bool,
    #[serde(default)]
    compliance_policy: Option<String>,
    #[serde(default)]
    platform: Option<String>,
    #[serde(default)]
    expected_error: Option<String>,
    #[serde(default)]
    skip_webhook: bool,
    #[serde(default)]
    skip_kube_inject: bool,
    #[serde(default)]
    extra_templates: Vec<String>,
}

impl Case {
    fn name(&self) -> &str {
        self.want.as_deref().unwrap_or(&self.input)
    }
}

struct Suite {
    directory: PathBuf,
    harness: Harness,
    cases: Vec<Case>,
}

impl Suite {
    /// The data, or a note that they are absent.
    fn load() -> Option<Self> {
        let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/conformance/inject");
        let Ok(text) = std::fs::read_to_string(directory.join("cases.json")) else {
            println!("skipped: no conformance data at {}", directory.display());
            return None;
        };
        let Cases { harness, cases } = serde_json::from_str(&text).expect("cases.json has the known form");
        Some(Self { directory, harness, cases })
    }

    fn case(&self, name: &str) -> Case {
        self.cases.iter().find(|case| case.name() == name).unwrap_or_else(|| panic!("no case {name}")).clone()
    }

    fn settings(&self, case: &Case, revision: &str) -> Settings {
        let mut values = self.harness.default_values.clone();
        merge_patch(&mut values, &case.values_patch);
        let mut mesh = self.harness.mesh_config.clone();
        merge_patch(&mut mesh, &case.mesh_patch);
        let mut settings =
            Settings::from_documents(Some(&values), Some(&mesh)).expect("documents of the suite are good");
        revision.clone_into(&mut settings.revision);
        settings.native_sidecars = if case.native_sidecar { NativeSidecars::On } else { NativeSidecars::Off };
        if case.platform.as_deref() == Some("openshift") {
            settings.platform = Platform::OpenShift;
        }
        settings.compliance_policy = case.compliance_policy.clone().unwrap_or_default();
        settings
    }

    fn documents(&self, folder: &str, file: &str) -> Vec<Value> {
        let path = self.directory.join(folder).join(file);
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        split(&text).iter().map(|text| yaml::from_str(text).unwrap_or_else(|error| panic!("{file}: {error}"))).collect()
    }

    /// All objects of a manifest, items of lists too.
    fn objects(&self, folder: &str, file: &str) -> Vec<Value> {
        let mut objects = Vec::new();
        for document in self.documents(folder, file) {
            match document["items"].as_array() {
                Some(items) if document["kind"] == "List" => objects.extend(items.iter().cloned()),
                _ => objects.push(document),
            }
        }
        objects
    }

    fn request(&self, pod: Value, namespace: &str, workload: Option<Workload>) -> InjectRequest {
        InjectRequest {
            pod,
            namespace: (!namespace.is_empty()).then(|| namespace.to_owned()),
            namespace_annotations: self.harness.namespaces.get(namespace).cloned().unwrap_or_default(),
            url_env: BTreeMap::new(),
            workload,
        }
    }
}

/// RFC 7396.
fn merge_patch(target: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in fields {
        if value.is_null() {
            target.as_object_mut().expect("it was made one").shift_remove(key);
        } else {
            merge_patch(&mut target[key], value);
        }
    }
}

fn split(text: &str) -> Vec<String> {
    let mut documents = vec![String::new()];
    for line in text.lines() {
        if line.starts_with("---") {
            documents.push(String::new());
        } else if let Some(document) = documents.last_mut() {
            document.push_str(line);
            document.push('\n');
        }
    }
    documents.retain(|document| document.lines().any(|line| !line.trim().is_empty() && !line.starts_with('#')));
    documents
}

/// The pod template of an object, for the kinds that have one.
fn template(object: &mut Value) -> Option<&mut Value> {
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
fn inject_object(suite: &Suite, settings: &Settings, object: &Value) -> Result<Value, String> {
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
        Outcome::Injected { pod: injected, .. } => *pod = injected,
        Outcome::Skipped(_) => {}
    }
    Ok(object)
}

/// The pod that the controller of an object would create.
fn pod_of(object: &Value) -> Option<Value> {
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

/// What two equal objects look alike in: without what Kubernetes' typed writers add or drop.
fn normal(value: &mut Value, path: &[&str]) {
    match value {
        Value::Object(object) => {
            let list_of_env = path.last() == Some(&"env");
            if list_of_env
                && let Some(name) = object.get("name").and_then(Value::as_str)
                && ["PROXY_CONFIG", "ISTIO_KUBE_APP_PROBERS", "ISTIO_PROMETHEUS_ANNOTATIONS"].contains(&name)
            {
                parse_in_place(object, "value");
            }
            if path.last() == Some(&"annotations") {
                parse_in_place(object, "sidecar.istio.io/status");
                parse_in_place(object, "proxy.istio.io/overrides");
                object.retain(|key, _| !key.starts_with("weir.dev/"));
            }
            let quantities = matches!(path.last(), Some(&"limits" | &"requests"));
            let keys: Vec<String> = object.keys().cloned().collect();
            for key in keys {
                let Some(value) = object.get_mut(&key) else { continue };
                if quantities && let Some(number) = quantity(value) {
                    *value = json!(number);
                }
                let deeper: Vec<&str> = path.iter().copied().chain([key.as_str()]).collect();
                normal(value, &deeper);
                let zero = key == "initialDelaySeconds" && *value == json!(0);
                let empty = match &*value {
                    Value::Null => true,
                    Value::String(text) => text.is_empty(),
                    Value::Array(items) => items.is_empty(),
                    Value::Object(fields) => fields.is_empty(),
                    _ => false,
                };
                if zero || empty || key == "creationTimestamp" {
                    object.remove(&key);
                }
            }
            object.sort_keys();
        }
        Value::Array(items) => items.iter_mut().for_each(|item| normal(item, path)),
        _ => {}
    }
}

fn parse_in_place(object: &mut Map<String, Value>, key: &str) {
    if let Some(value) = object.get_mut(key) {
        let text = value.as_str().unwrap_or_default();
        *value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{key} is no JSON ({error}): {text}"));
    }
}

fn quantity(value: &Value) -> Option<f64> {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let scale = match &text[end..] {
        "" => 1.0,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "Ki" => 1024.0,
        "Mi" => 1024.0 * 1024.0,
        "Gi" => 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    Some(text[..end].parse::<f64>().ok()? * scale)
}

fn normalised(mut object: Value) -> Value {
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
        if fields.get("kind") == Some(&json!("DeploymentConfig"))
            && let Some(spec) = fields.get_mut("spec").and_then(Value::as_object_mut)
        {
            spec.retain(|key, value| {
                let zero = [("minReadySeconds", json!(0)), ("paused", json!(false)), ("test", json!(false))];
                !zero.contains(&(key, value.clone()))
            });
        }
    }
    normal(&mut object, &[]);
    object
}

/// The lines in which two objects differ, with a little context.
fn difference(got: &Value, want: &Value) -> Option<String> {
    if got == want {
        return None;
    }
    let print = |value: &Value| serde_json::to_string_pretty(value).expect("values print");
    let (got, want) = (print(got), print(want));
    let changes = line_diff(&want, &got);
    Some(changes)
}

/// A small line diff: common head and tail cut away.
fn line_diff(want: &str, got: &str) -> String {
    let (want, got): (Vec<&str>, Vec<&str>) = (want.lines().collect(), got.lines().collect());
    let head = want.iter().zip(&got).take_while(|(a, b)| a == b).count();
    let tail = want[head..].iter().rev().zip(got[head..].iter().rev()).take_while(|(a, b)| a == b).count();
    let show =
        |mark: &str, lines: &[&str]| lines.iter().take(25).map(|line| format!("  {mark}{line}\n")).collect::<String>();
    let context = show(" ", &want[head.saturating_sub(4)..head]);
    context + &show("-", &want[head..want.len() - tail]) + &show("+", &got[head..got.len() - tail])
}

fn report(mode: &str, passed: usize, failures: &[String]) {
    println!("{mode}: {passed} cases passed, {} failed", failures.len());
    assert!(failures.is_empty(), "{mode}: {passed} passed, {} failed\n{}", failures.len(), failures.join("\n"));
    assert!(passed > 50, "{mode}: only {passed} cases ran");
}

fn is_listed(case: &Case) -> bool {
    assert_eq!(
        NEED_GO_TEMPLATES.contains(&case.name()),
        !case.extra_templates.is_empty(),
        "{} is skipped for its templates if and only if it has some",
        case.name()
    );
    NEED_GO_TEMPLATES.contains(&case.name()) || BETTER.contains(&case.name())
}

#[test]
fn every_manifest_comes_out_as_expected() {
    let Some(suite) = Suite::load() else { return };
    let (mut passed, mut failures) = (0, Vec::new());
    for case in suite.cases.iter().filter(|case| !case.skip_kube_inject) {
        if is_listed(case) {
            continue;
        }
        let settings = suite.settings(case, "");
        let objects = suite.objects("input", &case.input);
        let results: Vec<_> = objects.iter().map(|object| inject_object(&suite, &settings, object)).collect();
        if let Some(expected) = &case.expected_error {
            let text = results.iter().find_map(|result| result.as_ref().err()).cloned().unwrap_or_default();
            if text.to_lowercase().contains(expected) {
                passed += 1;
            } else {
                failures.push(format!("{}: expected an error with {expected:?}, got {text:?}", case.name()));
            }
            continue;
        }
        let want = suite.objects("want", case.name());
        let before = failures.len();
        if want.len() != results.len() {
            failures.push(format!("{}: {} objects, want {}", case.name(), results.len(), want.len()));
        }
        for (got, want) in results.into_iter().zip(want) {
            match got {
                Err(error) => failures.push(format!("{}: {error}", case.name())),
                Ok(got) => {
                    let difference = difference(&normalised(got), &normalised(want));
                    failures.extend(difference.map(|difference| format!("{}:\n{difference}", case.name())));
                }
            }
        }
        passed += usize::from(failures.len() == before);
    }
    report("file mode", passed, &failures);
}

#[test]
fn every_admitted_pod_comes_out_as_expected() {
    let Some(suite) = Suite::load() else { return };
    let (mut passed, mut failures) = (0, Vec::new());
    for case in suite.cases.iter().filter(|case| !case.skip_webhook && case.expected_error.is_none()) {
        if is_listed(case) {
            continue;
        }
        let settings = suite.settings(case, "default");
        let before = failures.len();
        for (object, want) in suite.objects("input", &case.input).iter().zip(suite.objects("want", case.name())) {
            let (Some(pod), Some(want)) = (pod_of(object), pod_of(&want)) else { continue };
            let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
            let request = suite.request(pod.clone(), namespace, None);
            let got = match inject(&request, &settings) {
                Err(error) => {
                    failures.push(format!("{}: {error}", case.name()));
                    continue;
                }
                Ok(Outcome::Injected { pod, .. }) => pod,
                Ok(Outcome::Skipped(_)) => pod,
            };
            let without_status = |mut pod: Value| {
                if let Some(annotations) = pod["metadata"]["annotations"].as_object_mut() {
                    annotations.remove("sidecar.istio.io/status");
                }
                normalised(pod)
            };
            let difference = difference(&without_status(got), &without_status(want));
            failures.extend(difference.map(|difference| format!("{}:\n{difference}", case.name())));
        }
        passed += usize::from(failures.len() == before);
    }
    report("admission", passed, &failures);
}

#[test]
fn injecting_an_injected_pod_changes_nothing() {
    let Some(suite) = Suite::load() else { return };
    let mut checked = 0;
    for case in suite.cases.iter().filter(|case| case.expected_error.is_none() && case.extra_templates.is_empty()) {
        for native in [NativeSidecars::On, NativeSidecars::Off] {
            let mut settings = suite.settings(case, "default");
            settings.native_sidecars = native;
            for object in suite.objects("input", &case.input) {
                let Some(pod) = pod_of(&object) else { continue };
                let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
                let Outcome::Injected { pod: once, .. } =
                    inject(&suite.request(pod, namespace, None), &settings).expect("the first time")
                else {
                    continue;
                };
                let again = inject(&suite.request(once.clone(), namespace, None), &settings).expect("the second time");
                let Outcome::Injected { pod: twice, .. } = again else { panic!("{}: skipped", case.name()) };
                assert!(
                    once == twice,
                    "{} ({native:?}):\n{}",
                    case.name(),
                    difference(&twice, &once).unwrap_or_default()
                );
                checked += 1;
            }
        }
    }
    println!("{checked} pods injected twice");
    assert!(checked > 150, "only {checked} pods");
}

#[test]
fn an_injected_pod_changes_its_kind_of_sidecar_without_a_trace() {
    let Some(suite) = Suite::load() else { return };
    let mut checked = 0;
    for case in suite.cases.iter().filter(|case| case.expected_error.is_none() && case.extra_templates.is_empty()) {
        if BETTER.contains(&case.name()) {
            continue;
        }
        let settings_of = |native| {
            let mut settings = suite.settings(case, "default");
            settings.native_sidecars = native;
            settings
        };
        for (from, to) in [(NativeSidecars::Off, NativeSidecars::On), (NativeSidecars::On, NativeSidecars::Off)] {
            for object in suite.objects("input", &case.input) {
                let Some(pod) = pod_of(&object) else { continue };
                let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
                let inject =
                    |pod: Value, settings: &Settings| match inject(&suite.request(pod, namespace, None), settings) {
                        Ok(Outcome::Injected { pod, .. }) => Some(pod),
                        Ok(Outcome::Skipped(_)) => None,
                        Err(error) => panic!("{}: {error}", case.name()),
                    };
                let (from, to) = (settings_of(from), settings_of(to));
                let (Some(before), Some(direct)) = (inject(pod.clone(), &from), inject(pod, &to)) else { continue };
                let Some(by_detour) = inject(before, &to) else { panic!("{}: skipped", case.name()) };
                // The record of the user's containers stays as the first injection wrote it: it may name the other list.
                let without_record = |mut pod: Value| {
                    if let Some(annotations) = pod["metadata"]["annotations"].as_object_mut() {
                        annotations.shift_remove("proxy.istio.io/overrides");
                    }
                    normalised(pod)
                };
                let difference = difference(&without_record(by_detour), &without_record(direct));
                assert_eq!(difference, None, "{}:\n{}", case.name(), difference.as_deref().unwrap_or_default());
                checked += 1;
            }
        }
    }
    println!("{checked} pods changed their kind of sidecar");
    assert!(checked > 100, "only {checked} pods");
}

#[test]
fn metadata_of_a_cron_job_reaches_its_pods() {
    let Some(suite) = Suite::load() else { return };
    for name in ["cronjob.yaml.injected", "cronjob-old-version.yaml.injected"] {
        let case = suite.case(name);
        let settings = suite.settings(&case, "");
        let object = &suite.objects("input", &case.input)[0];
        let got = normalised(inject_object(&suite, &settings, object).unwrap());
        let mut want = suite.objects("want", name).remove(0);
        // Istio writes what belongs to the pod to the metadata of the job.
        let metadata = want["spec"]["jobTemplate"]["metadata"].take();
        want["spec"]["jobTemplate"]["spec"]["template"]["metadata"] = metadata;
        assert_eq!(difference(&got, &normalised(want)), None, "{name}");
    }
}

#[test]
fn a_sidecar_of_an_older_injector_is_replaced_whole() {
    let Some(suite) = Suite::load() else { return };
    let case = suite.case("merge-probers.yaml.injected");
    let settings = suite.settings(&case, "");
    let object = &suite.objects("input", &case.input)[0];
    let got = inject_object(&suite, &settings, object).unwrap();
    let spec = &got["spec"]["template"]["spec"];
    let proxies = |list: &str| {
        spec[list].as_array().unwrap().iter().filter(|container| container["name"] == "istio-proxy").count()
    };
    assert_eq!((proxies("containers"), proxies("initContainers")), (0, 1));
    let proxy =
        spec["initContainers"].as_array().unwrap().iter().find(|container| container["name"] == "istio-proxy").unwrap();
    // Istio's result keeps these of the old proxy.
    assert_eq!(proxy["readinessProbe"]["failureThreshold"], 4);
    assert_eq!(proxy["lifecycle"].get("postStart"), None);
    let env = |name: &str| proxy["env"].as_array().unwrap().iter().find(|variable| variable["name"] == name);
    assert_eq!(env("JWT_POLICY"), None);
    // What cannot be read from the pod any more is kept: the probes of the application point at the agent already.
    let want = suite.objects("want", case.name()).remove(0);
    let old = want["spec"]["template"]["spec"]["initContainers"].as_array().unwrap();
    let old = old.iter().find(|container| container["name"] == "istio-proxy").unwrap();
    let old_probes =
        old["env"].as_array().unwrap().iter().find(|variable| variable["name"] == "ISTIO_KUBE_APP_PROBERS");
    let parse =
        |variable: Option<&Value>| serde_json::from_str::<Value>(variable.unwrap()["value"].as_str().unwrap()).unwrap();
    assert_eq!(parse(env("ISTIO_KUBE_APP_PROBERS")), parse(old_probes));
}

#[test]
fn a_pod_with_nothing_but_a_proxy_keeps_a_container() {
    let values = json!({"global": {"hub": "h", "tag": "t"}});
    let settings = Settings::from_documents(Some(&values), None).unwrap();
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "only"},
        "spec": {"containers": [{"name": "istio-proxy", "image": "auto"}]},
    });
    let request = InjectRequest { pod, ..InjectRequest::default() };
    let Outcome::Injected { pod, warnings, .. } = inject(&request, &settings).unwrap() else { panic!("skipped") };
    assert_eq!(pod["spec"]["containers"][0]["image"], "h/proxyv2:t");
    assert_eq!(pod["spec"]["initContainers"][0]["name"], "istio-init");
    assert_eq!(pod["spec"]["initContainers"].as_array().unwrap().len(), 1);
    assert!(warnings[0].contains("no container but the proxy"), "{warnings:?}");
}
