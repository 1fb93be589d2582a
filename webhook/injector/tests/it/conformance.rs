//! Runs Istio's own cases through the injector: as manifests, like `kube-inject`, and as the pods that a controller creates from
//! them, like the webhook. The data are not part of this repository.

pub(super) mod suite;

use serde_json::{Value, json};
use weir_injector::settings::{NativeSidecars, Settings};
use weir_injector::uninject::uninject;
use weir_injector::{InjectOutcome, InjectRequest, inject};
use weir_tests::conformance::{Case, Suite, difference, normalized};

use suite::{InjectorSuite as _, inject_object, pod_of, template};

fn report(mode: &str, passed: usize, failures: &[String]) {
    eprintln!("{mode}: {passed} cases passed, {} failed", failures.len());
    assert!(failures.is_empty(), "{mode}: {passed} passed, {} failed\n{}", failures.len(), failures.join("\n"));
    assert!(passed > 50, "{mode}: only {passed} cases ran");
}

#[test]
fn manifests_are_injected_like_kube_inject() {
    let Some(suite) = Suite::load() else { return };
    let (mut passed, mut failures) = (0, Vec::new());
    for case in suite.cases.iter().filter(|case| !case.skip_kube_inject) {
        if !case.matches_upstream() {
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
                    let difference = difference(&normalized(got), &normalized(want));
                    failures.extend(difference.map(|difference| format!("{}:\n{difference}", case.name())));
                }
            }
        }
        passed += usize::from(failures.len() == before);
    }
    report("file mode", passed, &failures);
}

#[test]
fn admitted_pods_are_injected_like_the_webhook() {
    let Some(suite) = Suite::load() else { return };
    let (mut passed, mut failures) = (0, Vec::new());
    for case in suite.cases.iter().filter(|case| !case.skip_webhook && case.expected_error.is_none()) {
        if !case.matches_upstream() {
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
                Ok(InjectOutcome::Injected { pod, .. }) => pod,
                Ok(InjectOutcome::Skipped { .. }) => pod,
            };
            let without_status = |mut pod: Value| {
                if let Some(annotations) = pod["metadata"]["annotations"].as_object_mut() {
                    annotations.remove("sidecar.istio.io/status");
                }
                normalized(pod)
            };
            let difference = difference(&without_status(got), &without_status(want));
            failures.extend(difference.map(|difference| format!("{}:\n{difference}", case.name())));
        }
        passed += usize::from(failures.len() == before);
    }
    report("admission", passed, &failures);
}

#[test]
fn injection_is_idempotent() {
    let Some(suite) = Suite::load() else { return };
    let mut checked = 0;
    for case in suite.cases.iter().filter(|case| case.expected_error.is_none()) {
        for native in [NativeSidecars::On, NativeSidecars::Off] {
            let mut settings = suite.settings(case, "default");
            settings.native_sidecars = native;
            for object in suite.objects("input", &case.input) {
                let Some(pod) = pod_of(&object) else { continue };
                let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
                let InjectOutcome::Injected { pod: once, .. } =
                    inject(&suite.request(pod, namespace, None), &settings).expect("the first time")
                else {
                    continue;
                };
                let again = inject(&suite.request(once.clone(), namespace, None), &settings).expect("the second time");
                let InjectOutcome::Injected { pod: twice, .. } = again else { panic!("{}: skipped", case.name()) };
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
fn switching_between_native_and_classic_leaves_no_trace() {
    let Some(suite) = Suite::load() else { return };
    let mut checked = 0;
    for case in suite.cases.iter().filter(|case| case.expected_error.is_none()) {
        if !case.matches_upstream() {
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
                        Ok(InjectOutcome::Injected { pod, .. }) => Some(pod),
                        Ok(InjectOutcome::Skipped { .. }) => None,
                        Err(error) => panic!("{}: {error}", case.name()),
                    };
                let (from, to) = (settings_of(from), settings_of(to));
                let (Some(before), Some(direct)) = (inject(pod.clone(), &from), inject(pod, &to)) else { continue };
                let Some(by_detour) = inject(before, &to) else { panic!("{}: skipped", case.name()) };
                // The record of the user's containers stays as the first injection wrote it, and may name the other list.
                let without_record = |mut pod: Value| {
                    if let Some(annotations) = pod["metadata"]["annotations"].as_object_mut() {
                        annotations.shift_remove("proxy.istio.io/overrides");
                    }
                    normalized(pod)
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

/// Injects every object of a case as a manifest, and calls `check` with the original and the injected pod.
fn for_every_injected_pod(suite: &Suite, mut look: impl FnMut(&str, &Value, &Value)) {
    for case in suite.cases.iter().filter(|case| case.expected_error.is_none()) {
        let settings = suite.settings(case, "");
        for object in suite.objects("input", &case.input) {
            let Some(pod) = template(&mut object.clone()).cloned() else { continue };
            let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
            if let Ok(InjectOutcome::Injected { pod: injected, .. }) =
                inject(&suite.request(pod.clone(), namespace, None), &settings)
            {
                look(case.name(), &pod, &injected);
            }
        }
    }
}

#[test]
fn every_injection_can_be_undone_exactly() {
    let Some(suite) = Suite::load() else { return };
    let (mut undone, mut longest) = (0, 0);
    for_every_injected_pod(&suite, |name, pod, injected| {
        // An earlier injection by Istio in the input is undone as well, as far as possible.
        if pod.pointer("/metadata/annotations/sidecar.istio.io~1status").is_some() {
            return;
        }
        let back = uninject(injected).unwrap().unwrap();
        assert_eq!(back.pod.to_string(), pod.to_string(), "{name}");
        assert_eq!(back.unrecoverable, Vec::<String>::new(), "{name}");
        longest = longest.max(injected["metadata"]["annotations"]["weir.dev/original"].as_str().unwrap().len());
        undone += 1;
    });
    eprintln!("{undone} injections undone; the longest record has {longest} bytes");
    assert!(undone > 90 && longest < 1024, "{undone} pods, {longest} bytes");
}

#[test]
fn istios_injections_can_be_undone_up_to_unrecorded_fields() {
    let Some(suite) = Suite::load() else { return };
    let (mut undone, mut failures) = (0, Vec::new());
    // What custom templates added is unknown too.
    let is_compared =
        |case: &&Case| case.expected_error.is_none() && case.matches_upstream() && case.extra_templates.is_empty();
    for case in suite.cases.iter().filter(is_compared) {
        let pairs = suite.objects("input", &case.input).into_iter().zip(suite.objects("want", case.name()));
        for (mut object, mut injected) in pairs {
            let (Some(pod), Some(injected)) = (template(&mut object), template(&mut injected)) else { continue };
            let Some(back) = uninject(injected).unwrap_or_else(|error| panic!("{}: {error}", case.name())) else {
                continue;
            };
            assert!(!back.unrecoverable.is_empty(), "{}: Istio records too little", case.name());
            undone += 1;
            let (got, want) = (without_unrecorded(back.pod), without_unrecorded(pod.take()));
            if let Some(difference) = difference(&normalized(got), &normalized(want)) {
                failures.push(format!("{}:\n{difference}", case.name()));
            }
        }
    }
    eprintln!("{undone} of Istio's injections undone, {} with differences", failures.len());
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(undone > 90, "{undone}");
}

/// Removes what Istio's injector does not record (`docs/uninject.md`): labels and annotations that may have been the user's,
/// and names of ports in probes.
fn without_unrecorded(mut pod: Value) -> Value {
    const UNRECORDED: [&str; 15] = [
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
            texts.retain(|key, _| !UNRECORDED.contains(&key.as_str()));
        }
    }
    for list in ["containers", "initContainers"] {
        for container in pod["spec"][list].as_array_mut().into_iter().flatten() {
            // Istio's injector removes the user that OpenShift has assigned to the proxy before it records the overrides.
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
fn cron_job_metadata_reaches_its_pods() {
    let Some(suite) = Suite::load() else { return };
    for name in ["cronjob.yaml.injected", "cronjob-old-version.yaml.injected"] {
        let case = suite.case(name);
        let settings = suite.settings(&case, "");
        let object = &suite.objects("input", &case.input)[0];
        let got = normalized(inject_object(&suite, &settings, object).unwrap());
        let mut want = suite.objects("want", name).remove(0);
        // Istio adds the pod's metadata to the job instead.
        let metadata = want["spec"]["jobTemplate"]["metadata"].take();
        want["spec"]["jobTemplate"]["spec"]["template"]["metadata"] = metadata;
        assert_eq!(difference(&got, &normalized(want)), None, "{name}");
    }
}

#[test]
fn sidecar_of_an_older_injector_is_replaced_completely() {
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
    // The agent's record of the probes is kept, because the application's probes already point to the agent.
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
fn template_overrides_reach_a_native_proxy() {
    let Some(suite) = Suite::load() else { return };
    let case = suite.case("sidecar-spire.yaml.injected");
    let settings = suite.settings(&case, "");
    let object = &suite.objects("input", &case.input)[0];
    let got = normalized(inject_object(&suite, &settings, object).unwrap());
    // Istio leaves a second proxy without an image in the containers, and the API server rejects the pod.
    let mut want = suite.objects("want", case.name()).remove(0);
    let spec = &mut want["spec"]["template"]["spec"];
    spec["containers"].as_array_mut().unwrap().retain(|container| container["name"] != "istio-proxy");
    let mounts = spec["initContainers"][1]["volumeMounts"].as_array_mut().unwrap();
    mounts.iter_mut().find(|mount| mount["name"] == "workload-socket").unwrap()["readOnly"] = true.into();
    let annotations = want["spec"]["template"]["metadata"]["annotations"].as_object_mut().unwrap();
    let status = annotations["sidecar.istio.io/status"].as_str().unwrap();
    let status = status.replace(r#""containers":["istio-proxy"]"#, r#""containers":null"#);
    annotations["sidecar.istio.io/status"] = status.into();
    assert_eq!(difference(&got, &normalized(want)), None);
}

#[test]
fn pod_with_only_a_proxy_keeps_a_container() {
    let values = json!({"global": {"hub": "h", "tag": "t"}});
    let settings = Settings::from_values_and_mesh(Some(&values), None).unwrap();
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "only"},
        "spec": {"containers": [{"name": "istio-proxy", "image": "auto"}]},
    });
    let request = InjectRequest { pod, ..InjectRequest::default() };
    let InjectOutcome::Injected { pod, warnings, .. } = inject(&request, &settings).unwrap() else { panic!("skipped") };
    assert_eq!(pod["spec"]["containers"][0]["image"], "h/proxyv2:t");
    assert_eq!(pod["spec"]["initContainers"][0]["name"], "istio-init");
    assert_eq!(pod["spec"]["initContainers"].as_array().unwrap().len(), 1);
    assert!(warnings[0].contains("no container but the proxy"), "{warnings:?}");
}
