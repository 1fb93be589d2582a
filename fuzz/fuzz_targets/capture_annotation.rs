//! `weir.dev/capture`: an accepted annotation survives encoding and decoding, and the text of its rules can be parsed.
#![no_main]

use iptables_rules::{CaptureConfig, plan};
use weir_fuzz::bounded_target;

bounded_target!(|text: &str| {
    match CaptureConfig::from_capture_annotation(text) {
        Ok(config) => {
            let written = config.to_capture_annotation();
            assert_eq!(CaptureConfig::from_capture_annotation(&written).as_ref(), Ok(&config));
            if let Ok(rules) = plan(&config) {
                weir_kernel::fuzzing::text_of(&rules);
            }
        }
        Err(errors) => assert!(errors.iter().all(|error| !error.reason.is_empty()) && !errors.is_empty()),
    }
});
