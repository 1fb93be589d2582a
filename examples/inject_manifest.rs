//! Injects the sidecar into the manifest of a pod, as the webhook and `weir inject` do, and prints the result.
//!
//! The library is a pure function of the pod and the settings: it needs no cluster.

#![expect(clippy::print_stdout, reason = "the output of the example")]

use anyhow::{Context as _, bail};
use serde_json::json;
use weir_injector::settings::Settings;
use weir_injector::{InjectOutcome, InjectRequest, inject, patch, yaml};

const MANIFEST: &str = "
apiVersion: v1
kind: Pod
metadata:
  name: web
  namespace: shop
  labels: {app: web}
  annotations:
    traffic.sidecar.istio.io/excludeOutboundPorts: '6379'
spec:
  containers:
    - name: web
      image: nginx:1.27
      ports: [{containerPort: 8080}]
";

fn main() -> anyhow::Result<()> {
    // Istio's `values` and `mesh` documents. Here only the mesh is given; the built-in values stand in for the others.
    let mesh = json!({ "trustDomain": "example.org", "outboundTrafficPolicy": { "mode": "REGISTRY_ONLY" } });
    let settings = match Settings::from_values_and_mesh(None, Some(&mesh)) {
        Ok(settings) => settings,
        // All invalid fields at once, each with its path.
        Err(errors) => bail!("invalid settings: {errors:?}"),
    };

    // Pods are JSON values, so that fields newer than this library are kept.
    let pod = yaml::from_str(MANIFEST)?;
    let request = InjectRequest { pod: pod.clone(), ..InjectRequest::default() };
    let injected = match inject(&request, &settings).context("the webhook would deny this pod")? {
        InjectOutcome::Injected { pod, warnings, .. } => {
            for warning in &warnings {
                eprintln!("warning: {warning}");
            }
            pod
        }
        InjectOutcome::Skipped { reason, .. } => bail!("the pod is not injected: {reason:?}"),
    };
    println!("{}", yaml::to_string(&injected)?);

    // What the webhook sends to the API server is the difference, as a JSON patch (RFC 6902).
    let operations = patch::diff(&pod, &injected);
    println!("# {} patch operations", operations.len());
    Ok(())
}

#[test]
fn runs() {
    main().unwrap();
}
