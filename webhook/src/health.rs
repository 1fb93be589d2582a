//! Readiness of the webhook, and what an administrator should look at.

use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use weir_runtime::health::{Condition, Health, Readiness, ReadinessImpact};

use crate::tls::{ServedCertificate, ServerCert};

/// The conditions behind `/readyz`: `shutdown`, `certificate` and `settings`, and those of the controllers.
#[derive(Debug)]
pub struct ServerHealth {
    conditions: Health,
    shutdown: Condition,
    settings: Condition,
    certificate: Condition,
    served: ServedCertificate,
    /// Reason for which the changed files of the certificate were rejected.
    certificate_rejection: Mutex<Option<String>>,
}

impl ServerHealth {
    /// Registers the conditions of the server; `settings` has failed until it is set.
    pub fn new(served: ServedCertificate) -> Self {
        let conditions = Health::default();
        let register = |name, reason, message| conditions.register(name, ReadinessImpact::Blocking, reason, message);
        let shutdown = register("shutdown", "Serving", "");
        shutdown.set_ok("Serving", "not in progress");
        let certificate = register("certificate", "CertificateMissing", "not issued yet");
        let settings = register("settings", "ConfigurationPending", "not loaded yet");
        Self { conditions, shutdown, settings, certificate, served, certificate_rejection: Mutex::default() }
    }

    /// Returns where controllers and tasks register their conditions.
    pub fn conditions(&self) -> &Health {
        &self.conditions
    }

    /// Returns the condition of the injector settings.
    pub fn settings(&self) -> &Condition {
        &self.settings
    }

    /// Makes the server unready for good.
    pub fn begin_shutdown(&self) {
        self.shutdown.set_failed("ShuttingDown", "in progress");
    }

    /// Sets why changed certificate files were rejected; `None` once they were accepted.
    pub fn set_certificate_rejection(&self, reason: Option<&str>) {
        *self.certificate_rejection.lock().unwrap_or_else(PoisonError::into_inner) = reason.map(str::to_owned);
    }

    /// Returns the state of all conditions at `now`.
    pub fn readiness(&self, now: SystemTime) -> Readiness {
        self.update_certificate(now);
        self.conditions.readiness()
    }

    fn update_certificate(&self, now: SystemTime) {
        let rejection = self.certificate_rejection.lock().unwrap_or_else(PoisonError::into_inner);
        let rejection = rejection.as_deref().map(|reason| format!("change rejected: {reason}"));
        let failed = match self.served.load().as_ref().as_ref().map(ServerCert::not_after) {
            None => Some(("CertificateMissing", "not issued yet")),
            Some(end) => (end <= now).then_some(("CertificateExpired", "expired")),
        };
        match (failed, rejection) {
            (None, None) => self.certificate.set_ok("CertificateValid", "ok"),
            (None, Some(rejection)) => {
                let message = format!("using the last good version; {rejection}");
                self.certificate.set_degraded("CertificateRejected", message);
            }
            (Some((reason, message)), None) => self.certificate.set_failed(reason, message),
            (Some((reason, message)), Some(rejection)) => {
                self.certificate.set_failed(reason, format!("{message}; {rejection}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use arc_swap::ArcSwap;

    use super::*;
    use crate::certs;

    fn health(now: SystemTime) -> ServerHealth {
        let generated = certs::generate(&["localhost".to_owned()], 1, now).unwrap();
        let cert = ServerCert::from_pem(generated.cert.as_bytes(), generated.key.as_bytes(), now).unwrap();
        let health = ServerHealth::new(Arc::new(ArcSwap::from_pointee(Some(cert))));
        health.settings().set_ok("ConfigurationLoaded", "ok");
        health
    }

    #[test]
    fn ready_with_certificate_and_settings_until_shutdown() {
        let now = SystemTime::now();
        let health = health(now);
        let readiness = health.readiness(now);
        assert!(readiness.ready);
        assert_eq!(readiness.to_text(), "[+]shutdown: not in progress\n[+]certificate: ok\n[+]settings: ok\n");
        health.begin_shutdown();
        assert!(!health.readiness(now).ready);
    }

    #[test]
    fn missing_or_expired_certificate_makes_it_unready() {
        let now = SystemTime::now();
        let missing = ServerHealth::new(Arc::new(ArcSwap::from_pointee(None))).readiness(now);
        assert!(!missing.ready && missing.to_text().contains("[-]certificate: not issued yet\n"));
        let expired = health(now).readiness(now + Duration::from_hours(48));
        assert!(!expired.ready && expired.to_text().contains("[-]certificate: expired\n"));
    }

    #[test]
    fn rejected_certificate_change_shows_but_stays_ready() {
        let now = SystemTime::now();
        let health = health(now);
        health.set_certificate_rejection(Some("tls.key: missing"));
        let readiness = health.readiness(now);
        let line = "[!]certificate: using the last good version; change rejected: tls.key: missing\n";
        assert!(readiness.ready && readiness.to_text().contains(line), "{}", readiness.to_text());
        health.set_certificate_rejection(None);
        assert!(health.readiness(now).to_text().contains("[+]certificate: ok\n"));
    }
}
