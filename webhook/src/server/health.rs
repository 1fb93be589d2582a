//! Whether the server can serve, and what an administrator should look at.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use weir_runtime::health::{self as conditions, Condition, Readiness, Weight};

use super::metrics::Source;
use super::tls::{Served, ServerCert};

/// State behind `/readyz`.
#[derive(Debug)]
pub struct Health {
    stopping: AtomicBool,
    certificate: Served,
    /// Changes that were refused, by source. The server goes on with the last good ones, so they do not make it unready.
    refused: Mutex<[Option<String>; 2]>,
    /// Why there are no settings yet, where there are none.
    waiting: Mutex<Option<String>>,
    /// What the parts about the cluster say.
    parts: conditions::Health,
}

/// Sources of which a change can be refused as a whole.
const REFUSABLE: [Source; 2] = [Source::Certificate, Source::Settings];

impl Health {
    /// Ready as long as the certificate of the moment is valid.
    pub fn new(certificate: Served) -> Self {
        let (refused, parts) = (Mutex::default(), conditions::Health::default());
        Self { stopping: AtomicBool::new(false), certificate, refused, waiting: Mutex::default(), parts }
    }

    /// Registers a condition of a part; it is bad for the reason `pending` until the part says otherwise.
    pub fn register(&self, name: &'static str, weight: Weight, pending: &str) -> Condition {
        self.parts.register(name, weight, pending)
    }

    /// From now on unready, for good.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Notes why a change of `source` was refused; `None` when all is well again.
    pub fn note(&self, source: Source, refused: Option<&str>) {
        let mut all = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        for (state, _) in all.iter_mut().zip(REFUSABLE).filter(|(_, known)| *known == source) {
            *state = refused.map(str::to_owned);
        }
    }

    /// Notes why there are no settings to inject with; `None` once there are.
    pub fn wait_for_settings(&self, reason: Option<&str>) {
        *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) = reason.map(str::to_owned);
    }

    /// The state at `now`, in the form of the API server's own `/readyz?verbose`.
    pub fn readiness(&self, now: SystemTime) -> Readiness {
        let stopping = self.stopping.load(Ordering::Relaxed);
        let end = self.certificate.load().as_ref().as_ref().map(ServerCert::not_after);
        let unusable = match end {
            None => Some("there is none yet".to_owned()),
            Some(end) => (end <= now).then(|| "expired".to_owned()),
        };
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let waiting = waiting.map(|reason| format!("there are none yet: {reason}"));
        let ready = !stopping && unusable.is_none() && waiting.is_none();
        let mut detail = String::new();
        detail.push_str(if stopping { "[-]stopping: the server was told to end\n" } else { "[+]serving\n" });
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        for ((source, refused), unusable) in REFUSABLE.iter().zip(refused.iter()).zip([unusable, waiting]) {
            let mark = if unusable.is_some() { '-' } else { '+' };
            let name = source.name();
            let state = match refused {
                None => unusable.as_deref().unwrap_or("ok").replace('\n', " "),
                Some(reason) => {
                    let served = unusable.as_deref().unwrap_or("the last good one is in use");
                    format!("{served}; its change was refused: {reason}")
                }
            };
            // Writing to a string does not fail.
            let _ = writeln!(detail, "[{mark}]{name}: {state}");
        }
        let parts = self.parts.readiness();
        // Without a cluster there are no parts, and nothing of them to wait for.
        let parts_ready = parts.ready || parts.detail.is_empty();
        detail.push_str(&parts.detail);
        Readiness { ready: ready && parts_ready, detail }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use arc_swap::ArcSwap;

    use super::super::certs;
    use super::*;

    fn health(now: SystemTime) -> Health {
        let made = certs::make(&["localhost".to_owned()], 1, now).unwrap();
        let cert = ServerCert::from_pem(made.cert.as_bytes(), made.key.as_bytes(), now).unwrap();
        Health::new(Arc::new(ArcSwap::from_pointee(Some(cert))))
    }

    #[test]
    fn is_not_ready_without_a_certificate_or_while_a_part_is_not() {
        let now = SystemTime::now();
        let none = Health::new(Arc::new(ArcSwap::from_pointee(None)));
        let state = none.readiness(now);
        assert!(!state.ready && state.detail.contains("[-]certificate: there is none yet"), "{}", state.detail);

        let health = health(now);
        let bundle = health.register("ca-bundle", Weight::Blocking, "not seen yet");
        let advice = health.register("events", Weight::Advisory, "not sent");
        assert!(!health.readiness(now).ready);
        bundle.good("ok");
        let state = health.readiness(now);
        assert!(state.ready && state.detail.ends_with("[+]ca-bundle: ok\n[!]events: not sent\n"), "{}", state.detail);
        drop(advice);
    }

    #[test]
    fn a_refused_change_shows_but_does_not_make_it_unready() {
        let now = SystemTime::now();
        let health = health(now);
        assert_eq!(
            health.readiness(now),
            Readiness { ready: true, detail: "[+]serving\n[+]certificate: ok\n[+]settings: ok\n".into() }
        );
        health.note(Source::Settings, Some("values: global: no"));
        let state = health.readiness(now);
        assert!(state.ready);
        assert!(
            state
                .detail
                .contains("[+]settings: the last good one is in use; its change was refused: values: global: no\n"),
            "{}",
            state.detail
        );
        health.note(Source::Settings, None);
        assert!(health.readiness(now).detail.contains("[+]settings: ok"));
    }

    #[test]
    fn an_expired_certificate_makes_it_unready() {
        let now = SystemTime::now();
        let health = health(now);
        let state = health.readiness(now + Duration::from_hours(48));
        assert!(!state.ready);
        assert!(state.detail.contains("[-]certificate: expired"), "{}", state.detail);
    }

    #[test]
    fn without_settings_it_is_not_ready_and_says_why() {
        let now = SystemTime::now();
        let health = health(now);
        health.wait_for_settings(Some("ConfigMap istio-system/istio is not there"));
        let state = health.readiness(now);
        assert!(!state.ready);
        let line = "[-]settings: there are none yet: ConfigMap istio-system/istio is not there\n";
        assert!(state.detail.contains(line), "{}", state.detail);
        health.wait_for_settings(None);
        assert!(health.readiness(now).ready);
    }

    #[test]
    fn stopping_makes_it_unready() {
        let now = SystemTime::now();
        let health = health(now);
        health.stop();
        assert!(!health.readiness(now).ready);
    }
}
