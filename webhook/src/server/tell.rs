//! What came of making settings, for the log, the metrics and readiness.

use std::time::SystemTime;

use tracing::{debug, info, warn};

use super::health::Health;
use super::live::Made;
use super::metrics::{Metrics, Source};

/// Tells it where something is new.
pub fn tell(metrics: &Metrics, health: &Health, made: &Made, now: SystemTime) {
    let source = Source::Settings;
    match made {
        Made::Same => {}
        Made::Updated => debug!("what is known of the cluster has changed"),
        Made::InUse(passed_over) => {
            info!("new settings are in use");
            for finding in passed_over {
                warn!(document = finding.document, path = finding.path, reason = finding.reason, "passed over");
            }
            metrics.reloaded(source, true);
            metrics.settings_made(now);
            health.note(source, None);
            health.wait_for_settings(None);
        }
        Made::Refused(reason) => {
            warn!(source = source.name(), reason, "changed settings are refused; the last good ones stay in use");
            metrics.reloaded(source, false);
            health.note(source, Some(reason));
        }
        Made::Waiting(reason) => {
            warn!(source = source.name(), reason, "there are no settings yet, and nothing is injected");
            health.wait_for_settings(Some(reason));
        }
    }
}
