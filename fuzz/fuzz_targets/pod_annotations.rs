//! Annotations of a pod: injection succeeds and is idempotent, or fails with a message.
#![no_main]

use std::sync::LazyLock;

use serde_json::{Map, Value, json};
use weir_fuzz::bounded_target;
use weir_injector::settings::Settings;
use weir_injector::{InjectOutcome, InjectRequest, inject};

/// One line of the input for each.
const NAMES: [&str; 21] = [
    "inject.istio.io/templates",
    "proxy.istio.io/config",
    "proxy.istio.io/overrides",
    "sidecar.istio.io/status",
    "sidecar.istio.io/interceptionMode",
    "traffic.sidecar.istio.io/includeOutboundIPRanges",
    "traffic.sidecar.istio.io/excludeInboundPorts",
    "traffic.sidecar.istio.io/excludeInterfaces",
    "status.sidecar.istio.io/port",
    "readiness.status.sidecar.istio.io/periodSeconds",
    "sidecar.istio.io/proxyCPU",
    "sidecar.istio.io/proxyCPULimit",
    "sidecar.istio.io/bootstrapOverride",
    "sidecar.istio.io/userVolume",
    "sidecar.istio.io/userVolumeMount",
    "sidecar.istio.io/nativeSidecar",
    "prometheus.io/port",
    "prometheus.istio.io/scrape-targets",
    "k8s.v1.cni.cncf.io/networks",
    "apm.datadoghq.com/env",
    "weir.dev/original",
];

static SETTINGS: LazyLock<Settings> = LazyLock::new(|| {
    let values =
        json!({"global": {"proxy": {"tracer": "datadog"}}, "pilot": {"cni": {"enabled": true, "provider": "multus"}}});
    Settings::from_values_and_mesh(Some(&values), None).expect("the values are valid")
});

bounded_target!(|text: &str| {
    let lines = NAMES.iter().zip(text.split('\n')).filter(|(_, value)| !value.is_empty());
    let annotations: Map<String, Value> = lines.map(|(name, value)| ((*name).to_owned(), value.into())).collect();
    let pod = json!({
        "metadata": {"name": "web", "annotations": annotations},
        "spec": {"containers": [{"name": "app", "image": "a", "readinessProbe": {"httpGet": {"port": 80}}}]},
    });
    let injected = |pod: Value| inject(&InjectRequest { pod, ..InjectRequest::default() }, &SETTINGS);
    match injected(pod) {
        Ok(InjectOutcome::Injected { pod: once, .. }) => match injected(once.clone()) {
            Ok(InjectOutcome::Injected { pod: twice, .. }) => assert_eq!(once, twice),
            other => panic!("{other:?} of {once}"),
        },
        Ok(InjectOutcome::Skipped { .. }) => {}
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
