use serde_json::json;

use super::*;
use crate::settings::Settings;

fn resource(place: (&str, &str), created: &str, selector: &Value, spec: &Value) -> Value {
    let mut spec = spec.clone();
    if !selector.is_null() {
        spec["selector"] = json!({"matchLabels": selector});
    }
    json!({"apiVersion": "networking.istio.io/v1beta1", "kind": "ProxyConfig", "spec": spec,
           "metadata": {"namespace": place.0, "name": place.1, "creationTimestamp": created}})
}

fn printed(resources: &[Value], namespace: &str, labels: &Value, annotation: Option<&str>) -> Value {
    let mesh = json!({"rootNamespace": "mesh-root", "defaultConfig": {"proxyMetadata": {"FROM": "mesh", "MESH": "1"}}});
    let mesh = Settings::from_values_and_mesh(None, Some(&mesh)).unwrap().mesh;
    let resources = ProxyConfigResources::from_objects(resources).unwrap();
    let config = resources.resolve(&mesh, namespace, |key| labels[key].as_str(), annotation).unwrap();
    serde_json::from_str(&config.to_env()).unwrap()
}

fn from(place: &str) -> Value {
    json!({"environmentVariables": {"FROM": place, place: "1"}})
}

#[test]
fn each_level_overrides_the_one_before() {
    let resources = [
        resource(("shop", "pods"), "", &json!({"app": "web"}), &from("SELECTED")),
        resource(("shop", "all"), "", &Value::Null, &from("NAMESPACE")),
        resource(("mesh-root", "all"), "", &Value::Null, &from("ROOT")),
        resource(("other", "all"), "", &Value::Null, &from("OTHER")),
    ];
    let annotation = Some("proxyMetadata: {FROM: annotation, NAMESPACE: '2', ANNOTATION: '1'}");
    let metadata = |namespace: &str, labels: Value, annotation: Option<&str>| {
        printed(&resources, namespace, &labels, annotation)["proxyMetadata"].clone()
    };
    assert_eq!(
        metadata("shop", json!({"app": "web", "more": "x"}), annotation),
        json!({"ANNOTATION": "1", "FROM": "SELECTED", "MESH": "1", "NAMESPACE": "2", "ROOT": "1", "SELECTED": "1"})
    );
    assert_eq!(
        metadata("shop", json!({"app": "db"}), annotation),
        json!({"ANNOTATION": "1", "FROM": "annotation", "MESH": "1", "NAMESPACE": "2", "ROOT": "1"})
    );
    assert_eq!(
        metadata("shop", json!({}), None),
        json!({"FROM": "NAMESPACE", "MESH": "1", "NAMESPACE": "1", "ROOT": "1"})
    );
    assert_eq!(metadata("alone", json!({}), None), json!({"FROM": "ROOT", "MESH": "1", "ROOT": "1"}));
    assert_eq!(metadata("mesh-root", json!({}), None), json!({"FROM": "ROOT", "MESH": "1", "ROOT": "1"}));
}

#[test]
fn the_oldest_resource_of_a_level_wins_then_the_name() {
    let at = |name: &str, created: &str, selector: &Value| {
        resource(("shop", name), created, selector, &json!({"environmentVariables": {"FROM": name}}))
    };
    let pods = json!({"app": "web"});
    let resources = [
        at("younger", "2026-02-01T00:00:00Z", &Value::Null),
        at("twin-b", "2025-01-01T00:00:00Z", &Value::Null),
        at("twin-a", "2025-01-01T00:00:00Z", &Value::Null),
        at("selects-younger", "2025-01-02T00:00:00Z", &pods),
        at("selects", "2025-01-01T23:59:59Z", &pods),
    ];
    assert_eq!(printed(&resources, "shop", &json!({}), None)["proxyMetadata"]["FROM"], "twin-a");
    assert_eq!(printed(&resources, "shop", &pods, None)["proxyMetadata"]["FROM"], "selects");
}

#[test]
fn only_concurrency_variables_and_image_are_read() {
    let spec = json!({"concurrency": 0, "image": {"imageType": "debug"}, "statusPort": 1, "drainDuration": "1s"});
    let resources = [resource(("shop", "a"), "", &Value::Null, &spec)];
    assert_eq!(
        printed(&resources, "shop", &json!({}), Some("concurrency: 4\nimage: {imageType: distroless}")),
        json!({"concurrency": 4, "proxyMetadata": {"FROM": "mesh", "MESH": "1"}, "image": {"imageType": "distroless"}})
    );
    assert_eq!(printed(&resources, "shop", &json!({}), None)["concurrency"], 0);
}

#[test]
fn waypoint_resources_do_not_apply_to_pods() {
    let mut waypoint = resource(("shop", "w"), "", &Value::Null, &json!({"concurrency": 7}));
    waypoint["spec"]["targetRef"] = json!({"kind": "Gateway", "name": "w"});
    assert_eq!(printed(&[waypoint], "shop", &json!({}), None).get("concurrency"), None);
}

#[test]
fn every_error_names_its_object() {
    let bad = [
        resource(("shop", "a"), "", &json!({"app": 1}), &json!({"concurrency": -1, "environmentVariables": {"A": 2}})),
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "b"}}),
        json!({"apiVersion": "networking.istio.io/v1", "kind": "ProxyConfig", "metadata": {"name": "c"}, "spec": []}),
        json!(7),
    ];
    let errors = ProxyConfigResources::from_objects(&bad).unwrap_err();
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    for start in [
        "ProxyConfig: shop/a: spec.selector.matchLabels.app: must be a string",
        "ProxyConfig: shop/a: spec.concurrency: must not be negative, found -1",
        "ProxyConfig: shop/a: spec.environmentVariables.A: must be a string",
        "ProxyConfig: b: .: is not a ProxyConfig of networking.istio.io",
        "ProxyConfig: c: spec: must be an object",
    ] {
        assert!(texts.iter().any(|text| text.starts_with(start)), "{start}: {texts:#?}");
    }
    assert!(
        texts
            .contains(&"ProxyConfig: object without a name: .: is not a ProxyConfig of networking.istio.io".to_owned()),
        "{texts:#?}"
    );
}
