//! Annotations and variables of a pod: an accepted configuration can be planned and encoded in `weir.dev/capture`; errors name the setting.
#![no_main]

use std::collections::BTreeMap;

use iptables_rules::annotations::{ProxySpec, SETTINGS, SettingSource};
use iptables_rules::{CaptureConfig, plan};
use weir_fuzz::bounded_target;

// One line for each setting, in their order.
bounded_target!(|text: &str| {
    let given = |source| -> BTreeMap<String, String> {
        let lines = SETTINGS.iter().zip(text.split('\n'));
        lines.filter(|(setting, _)| setting.source == source).map(|(s, v)| (s.name.to_owned(), v.to_owned())).collect()
    };
    let proxy = ProxySpec { env: given(SettingSource::Variable), ..ProxySpec::default() };
    match CaptureConfig::from_annotations(&given(SettingSource::Annotation), &proxy) {
        Ok(config) => {
            plan(&config).expect("every accepted configuration can be planned");
            let encoded = config.to_capture_annotation();
            assert_eq!(CaptureConfig::from_capture_annotation(&encoded), Ok(config));
        }
        Err(errors) => {
            assert!(!errors.is_empty());
            for error in errors {
                assert!(SETTINGS.iter().any(|setting| setting.name == error.name), "{error}");
                assert!(!error.to_string().contains(char::is_control), "{error:?}");
            }
        }
    }
});
