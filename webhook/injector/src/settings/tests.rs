use serde_json::json;

use super::*;

#[test]
fn builtin_values_are_istios_with_cni_mode_on() {
    let settings = Settings::from_values_and_mesh(None, None).unwrap();
    assert!(settings.values.pilot.cni_enabled);
    assert_eq!(settings.values.global.hub, "docker.io/istio");
    assert_eq!(settings.values.proxy.status_port, 15020);
    assert_eq!(settings.values.proxy.startup_failures, Some(600));
    assert_eq!(settings.values.proxy.resources["limits"], json!({"cpu": "2000m", "memory": "1024Mi"}));
    assert_eq!(settings.mesh.trust_domain, "cluster.local");
    assert_eq!(settings.injection.policy, "enabled");
    assert_eq!(settings.injection.default_templates, ["sidecar"]);
}

#[test]
fn given_values_do_not_turn_cni_mode_on() {
    let settings = Settings::from_values_and_mesh(Some(&json!({"global": {"tag": 1.5}})), None).unwrap();
    assert!(!settings.values.pilot.cni_enabled);
    assert_eq!(settings.values.global.tag, "1.5");
}

#[test]
fn null_is_absent_and_unknown_keys_are_accepted() {
    let values = json!({
        "global": {"proxy": {"resources": {"limits": {"cpu": null}, "requests": {"cpu": "0", "memory": null}}, "logLevel": null}},
        "gateways": null, "somethingElse": [1],
    });
    let settings = Settings::from_values_and_mesh(Some(&values), None).unwrap();
    assert_eq!(Value::Object(settings.values.proxy.resources), json!({"requests": {"cpu": "0"}}));
    assert_eq!(settings.values.proxy.log_level, "warning");
}

#[test]
fn reports_every_ill_typed_field_with_its_path() {
    let values =
        json!({"global": {"hub": 5, "proxy": {"statusPort": 70000, "privileged": "maybe"}, "imagePullSecrets": [1]}});
    let mesh = json!({"defaultConfig": {"concurrency": "x"}, "proxyListenPort": []});
    let errors = Settings::from_values_and_mesh(Some(&values), Some(&mesh)).unwrap_err();
    let paths: Vec<&str> = errors.iter().map(|error| error.path.as_str()).collect();
    let want = [
        "global.hub",
        "global.imagePullSecrets[0]",
        "global.proxy.privileged",
        "global.proxy.statusPort",
        "defaultConfig.concurrency",
        "proxyListenPort",
    ];
    assert_eq!(paths, want);
    assert_eq!(errors[0].to_string(), "values: global.hub: must be a string, found a number (5)");
}

#[test]
fn a_document_that_is_not_an_object_is_reported_once() {
    let errors = Settings::from_values_and_mesh(Some(&json!([])), None).unwrap_err();
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert_eq!(errors[0].to_string(), "values: .: must be an object, found a list");
}

#[test]
fn a_config_map_object_is_rejected_with_a_command() {
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"values": "{}"}});
    let errors = Settings::from_values_and_mesh(Some(&object), Some(&object)).unwrap_err();
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(texts.len(), 2, "{texts:?}");
    assert!(texts[0].contains("get configmap istio-sidecar-injector -o jsonpath='{.data.values}'"), "{texts:?}");
    assert!(texts[1].contains("get configmap istio -o jsonpath='{.data.mesh}'"), "{texts:?}");
}

#[test]
fn cni_mode_of_old_charts_is_read() {
    let settings = |values: Value| Settings::from_values_and_mesh(Some(&values), None).unwrap();
    assert!(settings(json!({"istio_cni": {"enabled": true}})).values.pilot.cni_enabled);
    assert!(!settings(json!({"istio_cni": {"enabled": false}})).values.pilot.cni_enabled);
    assert!(settings(json!({"global": {"tag": "latest"}, "istio_cni": {"chained": true}})).release.is_before(22));
}

#[test]
fn template_of_old_releases_is_rejected() {
    let read = |template: &str| {
        let config = json!({"template": template});
        Settings::from_documents(Documents { config: Some(&config), ..Documents::default() })
    };
    let errors = read("metadata: {}").unwrap_err();
    assert!(errors[0].to_string().starts_with("config: template: is a template of Istio before 1.8"), "{errors:?}");
    assert!(read("{{ Template_Version_And_Istio_Version_Mismatched_Check_Installation }}").is_ok());
}

#[test]
fn templates_without_a_text_are_builtin() {
    let config = json!({"templates": {"sidecar": "spec: {}", "mine": "spec: {}", "waypoint": "spec: {}"}});
    let settings = Settings::from_documents(Documents { config: Some(&config), ..Documents::default() }).unwrap();
    let templates = &settings.injection.templates;
    assert_eq!(templates.rendered_names().collect::<Vec<_>>(), ["mine", "sidecar"]);
    assert_eq!(templates.builtin_names().collect::<Vec<_>>(), ["gateway", "grpc-agent", "grpc-simple"]);
}
