//! `inject`, then `uninject`: the original text, whatever its format.

use proptest::prelude::*;
use weir_injector::settings::Documents;

use super::*;
use crate::uninject::uninject_text;

fn injected(text: &str) -> RewrittenStream {
    let settings = Settings::from_documents(Documents::default()).unwrap();
    inject_text(text, &ManifestInjector { settings, namespace: None })
}

/// Injects a text and takes it back; fails unless the result is the text, byte for byte.
fn assert_restored(text: &str) {
    let once = injected(text);
    assert_eq!(once.findings, Vec::<String>::new(), "{text}");
    assert!(once.text.contains("sidecar.istio.io/status"), "{}", once.text);
    assert!(!once.notices.iter().any(|notice| notice.contains("will not restore")), "{:?}\n{text}", once.notices);
    let restored = uninject_text(&once.text);
    assert_eq!(restored.text, text, "{}", once.text);
    assert_eq!(injected(&once.text).text, once.text, "injected again");
}

fn one_of(texts: &'static [&'static str]) -> impl Strategy<Value = &'static str> {
    prop::sample::select(texts)
}

/// A Deployment, each part of which has one of several formats.
fn deployment() -> impl Strategy<Value = String> {
    let head = one_of(&[
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec:\n",
        "# The front.\n\napiVersion: \"apps/v1\"\nkind: 'Deployment' # of web\nmetadata:\n    name: web\n\nspec:\n  replicas: 1\n",
        "metadata:\n  name: web\n  annotations: {}\nkind: Deployment\napiVersion: apps/v1\n# How.\nspec:\n",
    ]);
    let metadata = one_of(&[
        "",
        "    metadata:\n",
        "    metadata: {labels: {app: web}} # short\n",
        "    metadata:\n      annotations:\n      labels: {\"app\": 'web',\n        # why\n        tier: front}\n",
        "    metadata:\n      labels:\n        app: 'web'\n\n      annotations:\n        'prometheus.io/scrape': 'true' # asked\n        prometheus.io/port: \"8080\"\n",
        "    metadata:\n      annotations: {prometheus.io/scrape: \"true\"}\n      labels:\n        security.istio.io/tlsMode: \"istio\"\n",
    ]);
    let probe = one_of(&[
        "",
        "        readinessProbe: {httpGet: {path: /, port: http}}\n",
        "        readinessProbe:\n          httpGet:\n            # Not the metrics.\n            path: '/ready'\n            port: \"http\" # by name\n\n",
        "        livenessProbe:\n          tcpSocket: {port: 80}\n          periodSeconds: 0010\n",
        "        livenessProbe:\n          grpc:\n            port: 80 # plain\n            service: \"\"\n",
        "        lifecycle: {preStop: {httpGet: {path: \"/bye\", port: 80}}}\n",
    ]);
    let containers = one_of(&[
        "",
        "      - {name: second, image: \"b\"}\n",
        "      # The user's.\n      - name: istio-proxy # of the mesh\n        image: auto\n        resources: {requests: {cpu: '1'}}\n\n",
        "      - name: istio-proxy\n        image: \"auto\"\n        env: [{name: A, value: 'b'}]\n      - name: 'third'\n        image: c\n",
    ]);
    let rest = one_of(&[
        "",
        "      initContainers:\n      - name: \"first\"\n        image: i # small\n      # At the end.\n",
        "      initContainers: [{name: first, image: i}]\n      volumes:\n      - {name: data, emptyDir: {}}\n\n",
        "      volumes: []\n      securityContext: {fsGroup: 0644}\n      imagePullSecrets:\n",
        "      terminationGracePeriodSeconds: 5\n\n\n# The last word.\n",
    ]);
    (head, metadata, probe, containers, rest).prop_map(|(head, metadata, probe, containers, rest)| {
        let app = "      - name: app\n        image: nginx # pinned elsewhere\n        ports: [{containerPort: 80, name: http}]\n";
        format!("{head}  template:\n{metadata}    spec:\n      containers:\n{app}{probe}{containers}{rest}")
    })
}

/// A stream with a Deployment somewhere in it.
fn stream() -> impl Strategy<Value = String> {
    let before = one_of(&["", "---\n", "# License\n---\n", "kind: Other\nodd:   { a: 0080 }\n--- # next\n\n---\n"]);
    let after =
        one_of(&["", "---\n", "---\n\n---\n", "--- # end\nkind: Other\nname: 'no line end'", "---\n# nothing\n"]);
    let end = one_of(&["\n", "\r\n"]);
    (before, deployment(), after, end, any::<bool>()).prop_map(|(before, object, after, end, is_cut)| {
        let text = format!("{before}{object}{after}");
        let text = if is_cut { text.trim_end() } else { &text };
        text.replace('\n', end)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn original_text_is_restored(text in stream()) {
        assert_restored(&text);
    }

    #[test]
    fn json_is_restored(text in deployment(), is_pretty in any::<bool>()) {
        let value = weir_injector::yaml::from_str(&text).unwrap();
        let json = if is_pretty { serde_json::to_string_pretty(&value).unwrap() } else { value.to_string() };
        assert_restored(&json);
    }
}

#[test]
fn unusual_texts_are_restored() {
    for text in [
        "{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers: [{name: a, image: i}]}} # flow\n",
        "\u{feff}apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: a, image: i}]}\n",
        "apiVersion: v1\nkind: Pod\nmetadata: &m\n  name: p\n  labels: &l {app: p}\nspec:\n  nodeSelector: *l\n  containers:\n  - name: a\n    image: i\n",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  containers:\n  - name: a\n    image: i\n    image: j\n",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  containers:\n  -\n    name: a\n    image: >-\n      i\n    args: [\"-c\"]\n",
        "{\"apiVersion\": \"v1\",\n\"kind\":\"Pod\", \"metadata\" : {\"name\": \"p\", \"annotations\":{\"a\":\"\\/\\u0041\"} },\n  \"spec\": {\"containers\": [ {\"name\":\"a\"} ]}}",
    ] {
        assert_restored(text);
    }
}

#[test]
fn edits_after_the_injection_are_kept() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  containers:\n  - name: a\n    image: \"i\"\n";
    let once = injected(text).text;
    assert!(once.contains("# weir.dev/original-text: "), "{once}");
    let edited = once.replace("image: \"i\"", "image: \"j\" # newer");
    assert_eq!(uninject_text(&edited).text, text.replace("\"i\"", "\"j\" # newer"), "lines that nobody touched");

    let edited = once.replace("  name: p\n", "  # Here.\n  namespace: shop\n  name: p\n");
    let restored = uninject_text(&edited);
    assert!(restored.text.contains("  # Here.\n  namespace: shop\n  name: p\n"), "{}", restored.text);
    assert!(!restored.text.contains("original-text"), "{}", restored.text);
    assert!(
        restored.notices.iter().any(|notice| notice.contains("edited since its injection")),
        "{:?}",
        restored.notices
    );
}

#[test]
fn injection_with_another_configuration_keeps_the_original_text() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  containers:\n  - name: a\n    image: \"i\"\n";
    let once = injected(text).text;
    let mut settings = Settings::from_documents(Documents::default()).unwrap();
    settings.native_sidecars = weir_injector::settings::NativeSidecars::Off;
    let again = inject_text(&once, &ManifestInjector { settings, namespace: None }).text;
    assert_ne!(again, once);
    assert_eq!(again.matches("original-text").count(), 1, "{again}");
    assert_eq!(uninject_text(&again).text, text);
}

#[test]
fn forged_record_does_not_change_the_value() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  containers:\n  - name: a\n    image: i\n";
    let once = injected(text).text;
    let forged = once.replace("metadata: {name: p}", "metadata: {name: q}");
    assert_ne!(forged, once);
    let restored = uninject_text(&forged);
    assert!(!restored.text.contains("name: q"), "{}", restored.text);
}
