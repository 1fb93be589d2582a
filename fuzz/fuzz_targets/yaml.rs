//! YAML of users and administrators: the parsed value is the same when it is written and parsed as JSON.
#![no_main]

use weir_fuzz::bounded_target;
use weir_injector::settings::{ProxyConfigResources, Settings};
use weir_injector::yaml;

bounded_target!(|text: &str| {
    let Ok(value) = yaml::from_str(text) else { return };
    assert_eq!(yaml::from_str(&value.to_string()).expect("JSON is YAML"), value);
    // Settings documents are accepted or rejected without a panic.
    if let Ok(settings) = Settings::from_values_and_mesh(Some(&value), Some(&value)) {
        let _ = settings.mesh.default_config.with_annotation(text);
    }
    let _ = ProxyConfigResources::from_objects([&value]);
});
