//! Reports updates of the injector settings: in the log, as metrics and as the condition `settings`.

use std::time::SystemTime;

use tracing::{debug, info, warn};

use crate::health::ServerHealth;
use crate::metrics::{Metrics, ReloadSource};
use crate::settings_builder::{SettingsUpdate, SharedSettingsBuilder};

/// Reports an update of a builder that happened at `now`.
pub fn report_settings_update(
    metrics: &Metrics,
    health: &ServerHealth,
    update: &SettingsUpdate,
    builder: &SharedSettingsBuilder,
    now: SystemTime,
) {
    match update {
        SettingsUpdate::Unchanged => {}
        SettingsUpdate::ClusterUpdated => debug!("applied cluster changes to settings"),
        SettingsUpdate::Applied(ignored_keys) => {
            info!("applied new settings");
            for key in ignored_keys {
                let (document, path, reason) = (key.document, key.path.as_str(), key.reason.as_str());
                warn!(document, path, reason, "ignored key in settings document");
            }
            if let Some(settings) = builder.lock().current().load().as_deref() {
                metrics.declare_assertions(&settings.assertions);
            }
            metrics.record_reload(ReloadSource::Settings, true);
            metrics.set_settings_timestamp(now);
            health.settings().set_ok("ConfigurationLoaded", "ok");
        }
        SettingsUpdate::Rejected(reason) => {
            warn!(error = reason, "rejected changed settings; keeping the last good ones");
            metrics.record_reload(ReloadSource::Settings, false);
            let message = format!("using the last good version; change rejected: {reason}");
            health.settings().set_degraded("ConfigurationRejected", message);
        }
        SettingsUpdate::Pending(reason) => {
            warn!(reason, "no settings yet; injection is unavailable");
            health.settings().set_failed("ConfigurationPending", format!("not loaded yet: {reason}"));
        }
    }
}
