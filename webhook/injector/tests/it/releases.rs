//! Runs the cases of released versions of Istio, with the documents of each release: as manifests, like `kube-inject`, and as the pods
//! that a controller creates from them, like the webhook. The data are not part of this repository.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Value, json};
use weir_injector::settings::{Documents, NativeSidecars, Platform, Settings};
use weir_injector::{InjectOutcome, InjectRequest, Workload, inject, yaml};
use weir_tests::conformance::{DEVIATIONS, difference, normalized};

use crate::conformance::suite::{pod_of, read_objects, template};

/// Settings of the mesh that Istio's test changes in its code, so that the documents of the case do not have them.
fn mesh_changes(want: &str) -> Value {
    match want {
        "hello-tproxy.yaml.injected" | "proxy-override-runas.yaml.tproxy.injected" => {
            json!({"defaultConfig": {"interceptionMode": "TPROXY"}})
        }
        "format-duration.yaml.injected" => json!({"defaultConfig": {"drainDuration": "23s"}}),
        "hello-probes-localhost.yaml.injected" => json!({"inboundTrafficPolicy": {"mode": "LOCALHOST"}}),
        _ => json!({}),
    }
}

#[derive(Deserialize)]
struct ReleaseCase {
    input: String,
    /// Missing if the injection must be rejected.
    want: Option<String>,
    native: bool,
    special: String,
    template: String,
    values: String,
    mesh: String,
}

struct Release {
    directory: PathBuf,
    cases: Vec<ReleaseCase>,
}

impl Release {
    /// Reads all releases, those under `WEIR_RELEASES` included; without any the test is [skipped](weir_lab::skip_or_fail).
    fn load_all() -> Vec<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/conformance/releases");
        let more = std::env::var_os("WEIR_RELEASES").map(PathBuf::from);
        let entries = [Some(root.clone()), more].into_iter().flatten().filter_map(|root| std::fs::read_dir(root).ok());
        let mut directories: Vec<PathBuf> = entries.flatten().map(|entry| entry.unwrap().path()).collect();
        directories.sort();
        if directories.is_empty() {
            weir_lab::skip_or_fail(format_args!("no conformance data at {}", root.display()));
        }
        let load = |directory: PathBuf| {
            let text = std::fs::read_to_string(directory.join("cases.json")).unwrap();
            Self { cases: serde_json::from_str(&text).unwrap(), directory }
        };
        directories.into_iter().map(load).collect()
    }

    fn name(&self) -> String {
        self.directory.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    fn settings(&self, case: &ReleaseCase) -> Settings {
        let document = |file: &str| {
            let text = std::fs::read_to_string(self.directory.join("documents").join(file)).unwrap();
            yaml::from_str(&text).unwrap()
        };
        let (values, mut mesh, config) = (document(&case.values), document(&case.mesh), document(&case.template));
        json_patch::merge(&mut mesh, &mesh_changes(case.want.as_deref().unwrap_or_default()));
        let documents = Documents { values: Some(&values), mesh: Some(&mesh), config: Some(&config) };
        let mut settings = Settings::from_documents(documents)
            .unwrap_or_else(|errors| panic!("{} {}: {errors:?}", self.name(), case.input));
        settings.native_sidecars = if case.native { NativeSidecars::On } else { NativeSidecars::Off };
        if case.special.starts_with("openshift") {
            settings.platform = Platform::OpenShift;
        }
        settings
    }

    fn objects(&self, folder: &str, file: &str) -> Vec<Value> {
        read_objects(&self.directory.join(folder).join(file))
    }
}

fn request(pod: Value, namespace: &str, workload: Option<Workload>) -> InjectRequest {
    let mut namespace_annotations = BTreeMap::new();
    if namespace == "test-ns" {
        for range in ["uid-range", "supplemental-groups"] {
            namespace_annotations.insert(format!("openshift.io/sa.scc.{range}"), "1000620000/10000".to_owned());
        }
    }
    let namespace = (!namespace.is_empty()).then(|| namespace.to_owned());
    InjectRequest { pod, namespace, namespace_annotations, workload, ..InjectRequest::default() }
}

/// Injects an object as a manifest.
fn inject_manifest(settings: &Settings, object: &Value) -> Result<Value, String> {
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
    let request = InjectRequest { is_manifest: true, ..request(pod.clone(), &namespace, workload) };
    let outcome = inject(&request, settings).map_err(|error| error.to_string())?;
    if let InjectOutcome::Injected { pod: injected, .. } = outcome {
        *pod = injected;
    }
    Ok(object)
}

/// Admits the pod that a controller creates from an object; `None` if it creates none.
fn admit(settings: &Settings, object: &Value) -> Option<Result<Value, String>> {
    let pod = pod_of(object)?;
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
    Some(match inject(&request(pod.clone(), namespace, None), settings) {
        Ok(InjectOutcome::Injected { pod, .. }) => Ok(pod),
        Ok(InjectOutcome::Skipped { .. }) => Ok(pod),
        Err(error) => Err(error.to_string()),
    })
}

/// Returns a pod as two admissions are compared: without the record of the injection.
fn admitted(mut pod: Value) -> Value {
    if let Some(annotations) = pod["metadata"]["annotations"].as_object_mut() {
        annotations.remove("sidecar.istio.io/status");
    }
    normalized(pod)
}

/// Returns whether the pod has an annotation `weir.dev/capture` if and only if a CNI plugin captures its traffic.
fn is_capture_annotated(pod: &Value) -> bool {
    let inits = pod["spec"]["initContainers"].as_array().map_or(&[][..], Vec::as_slice);
    let validated = inits.iter().any(|container| container["name"] == "istio-validation");
    validated == pod["metadata"]["annotations"].get("weir.dev/capture").is_some()
}

/// Compares one case in both modes; returns its differences.
fn differences(release: &Release, case: &ReleaseCase, want: &str) -> Result<(), String> {
    let settings = release.settings(case);
    let (inputs, wanted) = (release.objects("input", &case.input), release.objects("want", want));
    if inputs.len() != wanted.len() {
        return Err(format!("{} objects, want {}", inputs.len(), wanted.len()));
    }
    for (input, want) in inputs.iter().zip(wanted) {
        let openshift = settings.platform == Platform::OpenShift;
        if !openshift || template(&mut input.clone()).is_some() {
            let got = inject_manifest(&settings, input)?;
            if let Some(difference) = difference(&normalized(got), &normalized(want.clone())) {
                return Err(format!("file mode:\n{difference}"));
            }
        }
        if let (Some(got), Some(want)) = (admit(&settings, input), pod_of(&want)) {
            let got = got?;
            if !is_capture_annotated(&got) {
                return Err("annotation weir.dev/capture is wrong".to_owned());
            }
            if let Some(difference) = difference(&admitted(got), &admitted(want)) {
                return Err(format!("admission:\n{difference}"));
            }
        }
    }
    Ok(())
}

#[test]
fn released_versions_inject_like_istio() {
    let mut failures = Vec::new();
    for release in Release::load_all() {
        let (mut passed, mut compared) = (0, 0);
        for case in &release.cases {
            let Some(want) = &case.want else { continue };
            if DEVIATIONS.iter().any(|(name, _)| name == want) {
                continue;
            }
            compared += 1;
            match differences(&release, case, want) {
                Ok(()) => passed += 1,
                Err(difference) => failures.push(format!("{} {want}: {difference}", release.name())),
            }
        }
        eprintln!("{}: {passed} of {compared} cases pass; {} in all", release.name(), release.cases.len());
        assert!(compared > 70, "{}: only {compared} cases", release.name());
    }
    assert!(failures.is_empty(), "{} failed\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn released_versions_reject_invalid_annotations() {
    for release in Release::load_all() {
        let mut rejected = 0;
        for case in release.cases.iter().filter(|case| case.want.is_none()) {
            let settings = release.settings(case);
            for object in release.objects("input", &case.input) {
                let name = format!("{} {}", release.name(), case.input);
                assert!(inject_manifest(&settings, &object).is_err(), "{name}: file mode");
                assert!(admit(&settings, &object).is_none_or(|result| result.is_err()), "{name}: admission");
                rejected += 1;
            }
        }
        assert!(rejected >= 5, "{}: {rejected} rejected", release.name());
    }
}
