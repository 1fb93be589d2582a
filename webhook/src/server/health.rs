//! Whether the server can serve, and what an administrator should look at.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use arc_swap::ArcSwap;

use super::metrics::Source;
use super::tls::ServerCert;

/// State behind `/readyz`.
#[derive(Debug)]
pub struct Health {
    stopping: AtomicBool,
    certificate: Arc<ArcSwap<ServerCert>>,
    /// Changes that were refused, by source. The server goes on with the last good ones, so they do not make it unready.
    refused: Mutex<[Option<String>; 2]>,
}

/// Answer of `/readyz`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readiness {
    /// 200 or 503.
    pub ready: bool,
    /// One line for each check.
    pub detail: String,
}

const fn index(source: Source) -> usize {
    match source {
        Source::Certificate => 0,
        Source::Settings => 1,
    }
}

impl Health {
    /// Ready as long as the certificate of the moment is valid.
    pub fn new(certificate: Arc<ArcSwap<ServerCert>>) -> Self {
        Self { stopping: AtomicBool::new(false), certificate, refused: Mutex::default() }
    }

    /// From now on unready, for good.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Notes why a change of `source` was refused; `None` when all is well again.
    pub fn note(&self, source: Source, refused: Option<&str>) {
        let mut all = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        all[index(source)] = refused.map(str::to_owned);
    }

    /// The state at `now`, in the form of the API server's own `/readyz?verbose`.
    pub fn readiness(&self, now: SystemTime) -> Readiness {
        let stopping = self.stopping.load(Ordering::Relaxed);
        let expired = self.certificate.load().not_after() <= now;
        let mut detail = String::new();
        detail.push_str(if stopping { "[-]stopping: the server was told to end\n" } else { "[+]serving\n" });
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        for source in [Source::Certificate, Source::Settings] {
            let expired = expired && source == Source::Certificate;
            let mark = if expired { '-' } else { '+' };
            let name = source.name();
            let state = match (&refused[index(source)], expired) {
                (None, false) => "ok".to_owned(),
                (None, true) => "expired".to_owned(),
                (Some(reason), expired) => {
                    let served = if expired { "expired" } else { "the last good one is in use" };
                    format!("{served}; its change was refused: {reason}")
                }
            };
            // Writing to a string does not fail.
            let _ = writeln!(detail, "[{mark}]{name}: {state}");
        }
        Readiness { ready: !stopping && !expired, detail }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::certs;
    use super::*;

    fn health(now: SystemTime) -> Health {
        let made = certs::make(&["localhost".to_owned()], 1, now).unwrap();
        let cert = ServerCert::from_pem(made.cert.as_bytes(), made.key.as_bytes(), now).unwrap();
        Health::new(Arc::new(ArcSwap::from_pointee(cert)))
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
    fn stopping_makes_it_unready() {
        let now = SystemTime::now();
        let health = health(now);
        health.stop();
        assert!(!health.readiness(now).ready);
    }
}
