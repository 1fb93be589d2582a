//! Istio's own cases: every manifest through the injector, as `kube-inject` sees it (file) and as the API server sends the pod
//! that its controller would create (admission). The data lie beside the project and are not part of it.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use weir_injector::inject::uninject::uninject;
use weir_injector::inject::{InjectRequest, Outcome, Workload, inject};
use weir_injector::settings::{NativeSidecars, Platform, Settings};
use weir_injector::yaml;
use weir_tests::conformance::{Case, Suite, difference, documents, normalised};

/// The cases as the library takes them.
trait ForLibrary {
    fn case(&self, name: &str) -> Case;
    fn settings(&self, case: &Case, revision: &str) -> Settings;
    /// All objects of a manifest, items of lists too.
    fn objects(&self, folder: &str, file: &str) -> Vec<Value>;
    fn request(&self, pod: Value, namespace: &str, workload: Option<Workload>) -> InjectRequest;
}

impl ForLibrary for Suite {
    fn case(&self, name: &str) -> Case {
        self.cases.iter().find(|case| case.name() == name).unwrap_or_else(|| panic!("no case {name}")).clone()
    }

    fn settings(&self, case: &Case, revision: &str) -> Settings {
        let mut settings = Settings::from_documents(Some(&self.values(case)), Some(&self.mesh(case)))
            .expect("documents of the suite are good");
        revision.clone_into(&mut settings.revision);
        settings.nodes = case.node_versions.iter().enumerate().map(|(n, version)| (n.to_string(), version)).collect();
        settings.native_sidecars =
            if case.native_sidecar_mode == "auto" { NativeSidecars::ByNodes } else { NativeSidecars::Off };
        assert_eq!(settings.native_for(None), case.native_sidecar, "{}", case.name());
        if case.platform == "openshift" {
            settings.platform = Platform::OpenShift;
        }
        case.compliance_policy.clone_into(&mut settings.compliance_policy);
        settings
    }

    fn objects(&self, folder: &str, file: &str) -> Vec<Value> {
        let mut objects = Vec::new();
        for text in documents(&self.text(folder, file)) {
            let document = yaml::from_str(&text).unwrap_or_else(|error| panic!("{file}: {error}"));
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
        Outcome::Skipped { .. } => {}
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

fn report(mode: &str, passed: usize, failures: &[String]) {
    eprintln!("{mode}: {passed} cases passed, {} failed", failures.len());
    assert!(failures.is_empty(), "{mode}: {passed} passed, {} failed\n{}", failures.len(), failures.join("\n"));
    assert!(passed > 50, "{mode}: only {passed} cases ran");
}

#[test]
fn every_manifest_comes_out_as_expected() {
    let Some(suite) = Suite::load() else { return };
    let (mut passed, mut failures) = (0, Vec::new());
    for case in suite.cases.iter().filter(|case| !case.skip_kube_inject) {
        if !case.is_met() {
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
        if !case.is_met() {
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
                Ok(Outcome::Skipped { .. }) => pod,
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
    for case in suite.cases.iter().filter(|case| case.expected_error.is_none()) {
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
    eprintln!("{checked} pods injected twice");
    assert!(checked > 150, "only {checked} pods");
}

#[test]
fn an_injected_pod_changes_its_kind_of_sidecar_without_a_trace() {
    let Some(suite) = Suite::load() else { return };
    let mut checked = 0;
    for case in suite.cases.iter().filter(|case| case.expected_error.is_none()) {
        if !case.is_met() {
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
                        Ok(Outcome::Skipped { .. }) => None,
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
    eprintln!("{checked} pods changed their kind of sidecar");
    assert!(checked > 100, "only {checked} pods");
}

/// Injects every object of a case as a manifest, and shows the original and the injected pod.
fn for_every_injected_pod(suite: &Suite, mut look: impl FnMut(&str, &Value, &Value)) {
    for case in suite.cases.iter().filter(|case| case.expected_error.is_none()) {
        let settings = suite.settings(case, "");
        for object in suite.objects("input", &case.input) {
            let Some(pod) = template(&mut object.clone()).cloned() else { continue };
            let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
            if let Ok(Outcome::Injected { pod: injected, .. }) =
                inject(&suite.request(pod.clone(), namespace, None), &settings)
            {
                look(case.name(), &pod, &injected);
            }
        }
    }
}

#[test]
fn every_injection_can_be_taken_back_to_the_letter() {
    let Some(suite) = Suite::load() else { return };
    let (mut taken_back, mut longest) = (0, 0);
    for_every_injected_pod(&suite, |name, pod, injected| {
        // What Istio's injector left in an input is taken back with ours, as far as it tells.
        if pod.pointer("/metadata/annotations/sidecar.istio.io~1status").is_some() {
            return;
        }
        let back = uninject(injected).unwrap().unwrap();
        assert_eq!(back.pod.to_string(), pod.to_string(), "{name}");
        assert_eq!(back.unknown, Vec::<String>::new(), "{name}");
        longest = longest.max(injected["metadata"]["annotations"]["weir.dev/original"].as_str().unwrap().len());
        taken_back += 1;
    });
    eprintln!("{taken_back} injections taken back; the longest record has {longest} bytes");
    assert!(taken_back > 90 && longest < 1024, "{taken_back} pods, {longest} bytes");
}

#[test]
fn what_istio_injected_is_taken_back_but_for_what_it_does_not_tell() {
    let Some(suite) = Suite::load() else { return };
    let (mut taken_back, mut failures) = (0, Vec::new());
    // What templates of an administrator did is not known either.
    let told = |case: &&Case| case.expected_error.is_none() && case.is_met() && case.extra_templates.is_empty();
    for case in suite.cases.iter().filter(told) {
        let pairs = suite.objects("input", &case.input).into_iter().zip(suite.objects("want", case.name()));
        for (mut object, mut injected) in pairs {
            let (Some(pod), Some(injected)) = (template(&mut object), template(&mut injected)) else { continue };
            let Some(back) = uninject(injected).unwrap_or_else(|error| panic!("{}: {error}", case.name())) else {
                continue;
            };
            assert!(!back.unknown.is_empty(), "{}: Istio writes nothing down", case.name());
            taken_back += 1;
            let (got, want) = (without_unknowables(back.pod), without_unknowables(pod.take()));
            if let Some(difference) = difference(&normalised(got), &normalised(want)) {
                failures.push(format!("{}:\n{difference}", case.name()));
            }
        }
    }
    eprintln!("{taken_back} of Istio's own injections taken back, {} with differences", failures.len());
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(taken_back > 90, "{taken_back}");
}

/// A pod without what Istio's injector does not write down about it (`docs/uninject.md`): labels and annotations that may have been
/// the user's, ports by name in probes, order of volumes, pull secrets of the configuration.
fn without_unknowables(mut pod: Value) -> Value {
    const UNKNOWABLE: [&str; 15] = [
        "security.istio.io/tlsMode",
        "service.istio.io/canonical-name",
        "service.istio.io/canonical-revision",
        "topology.istio.io/network",
        "kubectl.kubernetes.io/default-container",
        "kubectl.kubernetes.io/default-logs-container",
        "sidecar.istio.io/interceptionMode",
        "sidecar.istio.io/rewriteAppHTTPProbers",
        "traffic.sidecar.istio.io/includeInboundPorts",
        "traffic.sidecar.istio.io/excludeInboundPorts",
        "traffic.sidecar.istio.io/includeOutboundIPRanges",
        "traffic.sidecar.istio.io/excludeOutboundIPRanges",
        "traffic.sidecar.istio.io/includeOutboundPorts",
        "traffic.sidecar.istio.io/excludeOutboundPorts",
        "istio.io/rev",
    ];
    for map in ["labels", "annotations"] {
        if let Some(texts) = pod["metadata"][map].as_object_mut() {
            texts.retain(|key, _| !UNKNOWABLE.contains(&key.as_str()));
        }
    }
    for list in ["containers", "initContainers"] {
        for container in pod["spec"][list].as_array_mut().into_iter().flatten() {
            // On OpenShift the user of the proxy is assigned, and goes before Istio's injector stores anything.
            if container["name"] == "istio-proxy"
                && let Some(security) = container.get_mut("securityContext").and_then(Value::as_object_mut)
            {
                security.retain(|field, id| field != "runAsUser" || *id != 1_000_620_000);
            }
            let ports = container["ports"].as_array().cloned().unwrap_or_default();
            for handler in
                ["readinessProbe", "livenessProbe", "startupProbe", "lifecycle/preStop", "lifecycle/postStart"]
            {
                for action in ["httpGet", "tcpSocket"] {
                    let Some(port) = container.pointer_mut(&format!("/{handler}/{action}/port")) else { continue };
                    if let Some(named) = ports.iter().find(|named| port.is_string() && named["name"] == *port) {
                        *port = named["containerPort"].clone();
                    }
                }
            }
        }
    }
    pod
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
fn what_a_template_says_about_the_proxy_reaches_a_native_one() {
    let Some(suite) = Suite::load() else { return };
    let case = suite.case("sidecar-spire.yaml.injected");
    let settings = suite.settings(&case, "");
    let object = &suite.objects("input", &case.input)[0];
    let got = normalised(inject_object(&suite, &settings, object).unwrap());
    // Istio leaves a second proxy among the containers, without an image, and the API server refuses the pod.
    let mut want = suite.objects("want", case.name()).remove(0);
    let spec = &mut want["spec"]["template"]["spec"];
    spec["containers"].as_array_mut().unwrap().retain(|container| container["name"] != "istio-proxy");
    let mounts = spec["initContainers"][1]["volumeMounts"].as_array_mut().unwrap();
    mounts.iter_mut().find(|mount| mount["name"] == "workload-socket").unwrap()["readOnly"] = true.into();
    let annotations = want["spec"]["template"]["metadata"]["annotations"].as_object_mut().unwrap();
    let status = annotations["sidecar.istio.io/status"].as_str().unwrap();
    let status = status.replace(r#""containers":["istio-proxy"]"#, r#""containers":null"#);
    annotations["sidecar.istio.io/status"] = status.into();
    assert_eq!(difference(&got, &normalised(want)), None);
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
