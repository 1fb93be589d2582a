//! Reviews of other operations than CREATE, as the webhook answers them: allowed as they are, whatever the objects hold, because what is
//! denied or patched there would be the pod of somebody that runs already.
#![no_main]

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde_json::{Value, json};
use weir_fuzz::bounded_target;
use weir_injector::admission::AdmissionResult;
use weir_injector::settings::Settings;
use weir_webhook::server::review::handle;

static SETTINGS: LazyLock<Settings> =
    LazyLock::new(|| Settings::from_values_and_mesh(None, None).expect("the built-in settings are sound"));

// The operation, the subresource, the object and the old object, one on each line. What is not JSON is sent as a string.
bounded_target!(|text: &str| {
    let mut lines = text.splitn(4, '\n');
    let mut next = || lines.next().unwrap_or_default();
    let (operation, subresource) = (next(), next());
    let mut object = || {
        let text = next();
        serde_json::from_str(text).unwrap_or_else(|_| Value::from(text))
    };
    let body = json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "1", "kind": {"group": "", "version": "v1", "kind": "Pod"}, "operation": operation, "subResource": subresource,
            "namespace": "shop", "object": object(), "oldObject": object(),
        },
    });
    let result = handle(body.to_string().as_bytes(), BTreeMap::new(), &SETTINGS, weir_injector::inject);
    assert_eq!(result.status, 200, "{result:?}");
    let answer: Value = serde_json::from_slice(&result.response.to_json()).expect("a response is JSON");
    assert_eq!(answer["response"]["uid"], "1");
    if !matches!(operation, "" | "CREATE") || !subresource.is_empty() {
        assert!(matches!(result.response.result, AdmissionResult::Allowed { patch: None }), "{answer}");
    }
});
