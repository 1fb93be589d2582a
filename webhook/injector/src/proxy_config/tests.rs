use super::*;

#[test]
fn env_leaves_out_defaults() {
    assert_eq!(ProxyConfig::default().to_env(), "{}\n");
    let same =
        ProxyConfig::default().with_annotation("drainDuration: 45s\nproxyMetadata: {}\nstatusPort: 15020").unwrap();
    assert_eq!(same.to_env(), "{}\n");
}

#[test]
fn env_has_declaration_order_and_sorted_map_keys() {
    let text = "proxyMetadata: {FOO: bar, A: b}\nconcurrency: 0\ndiscoveryAddress: foo:123\ntracing: {}\nunknown: 1\n";
    let config = ProxyConfig::default().with_annotation(text).unwrap();
    let want = r#"{"discoveryAddress":"foo:123","concurrency":0,"tracing":{},"proxyMetadata":{"A":"b","FOO":"bar"}}"#;
    assert_eq!(config.to_env(), format!("{want}\n"));
}

#[test]
fn overlay_replaces_fields_but_merges_metadata_and_headers() {
    let lower = "proxyMetadata: {A: lower, B: lower}\ntracing: {zipkin: {address: 'z:9411'}}\n\
                 proxyHeaders: {server: {value: x}, preserveHttp1HeaderCase: true}\nextraStatTags: [a]";
    let upper = "proxyMetadata: {B: upper}\ntracing: {sampling: 5}\nproxyHeaders: {requestId: {disabled: true}}\nextraStatTags: [b]";
    let config = ProxyConfig::default().with_annotation(lower).unwrap().with_annotation(upper).unwrap();
    let printed: Value = serde_json::from_str(&config.to_env()).unwrap();
    assert_eq!(printed["proxyMetadata"], json!({"A": "lower", "B": "upper"}));
    assert_eq!(printed["tracing"], json!({"sampling": 5}));
    assert_eq!(printed["proxyHeaders"], json!({"requestId": {"disabled": true}, "server": {"value": "x"}}));
    assert_eq!(printed["extraStatTags"], json!(["b"]));
}

#[test]
fn reports_all_invalid_values_together() {
    let text = "statusPort: 70000\ndrainDuration: 1.5s\ndiscoveryAddress: nowhere\nconcurrency: many";
    let errors = ProxyConfig::default().with_annotation(text).unwrap_err();
    assert_eq!(errors.len(), 4, "{errors:?}");
    assert!(errors.iter().any(|error| error.starts_with("statusPort: 70000")), "{errors:?}");
    assert!(ProxyConfig::default().with_annotation("[1]").is_err());
}
