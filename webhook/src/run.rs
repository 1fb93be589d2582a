//! The process: ports, file watchers and controllers, from start to shutdown.
//!
//! On SIGTERM the server turns unready, serves on for the configured delay, and then drains. A second signal skips the delay.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tracing::info;
use weir_injector::inject;
use weir_runtime::CancellationToken;
use weir_runtime::health::ReadinessImpact;
use weir_runtime::listen::{self, ListenAddr, Port};
use weir_runtime::tasks::{Tasks, TerminationSignals};

use crate::client_auth::{ClientCa, ClientVerifier};
use crate::config::Config;
use crate::controllers;
use crate::file_watch::{FileChange, WatchedFiles, log_change, poll_forever, report_change};
use crate::health::ServerHealth;
use crate::metrics::{Metrics, ReloadSource};
use crate::server::bodies::BodyLimit;
use crate::server::concurrency::ConcurrencyLimit;
use crate::server::log_limit::LogLimiter;
use crate::server::review::InjectFn;
use crate::server::router::{self, AppState};
use crate::settings_builder::{CurrentSettings, SettingsFiles};
use crate::settings_report::report_settings_update;
use crate::tls::{self, ServedCertificate, ServerCert};

/// Time for background tasks to stop at shutdown.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

/// Error that keeps the server from starting.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A port cannot be bound.
    #[error("cannot listen on {addr}: {reason}")]
    Bind {
        /// As configured.
        addr: ListenAddr,
        /// The kernel's reason.
        reason: std::io::Error,
    },
    /// The controllers have no API server, or cannot read a file.
    #[error("{0}")]
    Controllers(String),
    /// The TLS library rejects its own defaults.
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    https: SocketAddr,
    http: Option<SocketAddr>,
    app: Arc<AppState>,
    /// Ends the ports, whose tasks return how many connections were aborted.
    stop_ports: CancellationToken,
    ports: Vec<JoinHandle<usize>>,
    tasks: Tasks,
    shutdown_delay: Duration,
}

impl Server {
    /// Starts everything, and serves from then on.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(config: Config) -> Result<Self, StartError> {
        Self::start_with(config, inject).await
    }

    /// As [`Server::start`], with another injection function.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start_with(config: Config, inject: InjectFn) -> Result<Self, StartError> {
        let Config { flags, certificate, client_ca, settings, controllers } = config;
        let served = Arc::clone(certificate.current());
        let verifier =
            client_ca.as_ref().map(|ca| ClientVerifier::new(Arc::clone(ca.current()), flags.client_name.clone()));
        let acceptor = TlsAcceptor::from(Arc::new(tls::server_config(Arc::clone(&served), verifier)?));
        let metrics = Arc::new(Metrics::new());
        record_certificate_expiry(&metrics, &served);
        let health = Arc::new(ServerHealth::new(Arc::clone(&served)));
        let tasks = Tasks::new(health.conditions().clone());
        if let Some(ca) = client_ca {
            spawn_client_ca_watch(&tasks, ca, &health, flags.reload_interval());
        }
        if let Some(controllers) = controllers {
            controllers::start(controllers, &metrics, &health, &served, &tasks)
                .await
                .map_err(StartError::Controllers)?;
        }
        let app = Arc::new(AppState {
            settings: initial_settings(&settings, &metrics, &health),
            metrics,
            health,
            concurrency: ConcurrencyLimit::new(flags.max_in_flight, flags.request_timeout),
            bodies: BodyLimit::new(flags.max_review_bytes_in_flight.get()),
            log_limiter: LogLimiter::new(flags.log_max_per_second),
            inject,
        });
        // Both ports are bound before either serves.
        let https = Bound::new(flags.https_addr).await?;
        let http = match flags.http_addr.0 {
            Some(addr) => Some(Bound::new(addr).await?),
            None => None,
        };
        let (tls_addr, plain_addr) = (https.addr, http.as_ref().map(|http| http.addr));
        let stop_ports = CancellationToken::new();
        let serve = |bound: Bound, tls, router| {
            let metrics = app.metrics.connections().clone();
            let port = Port { listener: bound.listener, tls, router, limits: flags.limits(), metrics };
            tokio::spawn(listen::serve(port, stop_ports.clone()))
        };
        let mut ports = vec![serve(https, Some(acceptor), router::https(Arc::clone(&app)))];
        ports.extend(http.map(|http| serve(http, None, router::http(Arc::clone(&app)))));
        spawn_file_watches(&tasks, certificate, settings, &app, flags.reload_interval());
        info!(https = %tls_addr, http = plain_addr.map(tracing::field::display), "listening");
        let shutdown_delay = flags.shutdown_delay;
        Ok(Self { https: tls_addr, http: plain_addr, app, stop_ports, ports, tasks, shutdown_delay })
    }

    /// Returns the address of the TLS port.
    pub fn https(&self) -> SocketAddr {
        self.https
    }

    /// Returns the address of the plain port.
    pub fn http(&self) -> Option<SocketAddr> {
        self.http
    }

    /// Turns unready, serves on for the configured delay (or until `skip_delay`), stops accepting, and drains. Returns how many
    /// connections were aborted.
    pub async fn shutdown(self, skip_delay: impl Future<Output = ()>) -> usize {
        self.app.health.begin_shutdown();
        info!(delay = ?self.shutdown_delay, "shutting down");
        tokio::select! {
            () = tokio::time::sleep(self.shutdown_delay) => {}
            () = skip_delay => info!("second termination signal; skipping the shutdown delay"),
        }
        self.stop_ports.cancel();
        let mut aborted = 0;
        for port in self.ports {
            aborted += port.await.unwrap_or(0);
        }
        self.tasks.shut_down(SHUTDOWN_GRACE).await;
        aborted
    }
}

/// A bound port.
struct Bound {
    listener: TcpListener,
    addr: SocketAddr,
}

impl Bound {
    async fn new(addr: ListenAddr) -> Result<Self, StartError> {
        let error = |reason| StartError::Bind { addr, reason };
        let listener = listen::bind(addr).await.map_err(error)?;
        let addr = listener.local_addr().map_err(error)?;
        Ok(Self { listener, addr })
    }
}

/// Reports the settings at start; they may be pending, until the caches of the controllers are synced.
fn initial_settings(settings: &SettingsFiles, metrics: &Metrics, health: &ServerHealth) -> CurrentSettings {
    let builder = settings.builder().lock();
    if let Some(settings) = builder.current().load().as_deref() {
        metrics.declare_assertions(&settings.assertions);
        metrics.set_settings_timestamp(SystemTime::now());
        health.settings().set_ok("ConfigurationLoaded", "ok");
    } else {
        let reason = builder.rejection().unwrap_or("cluster caches not synced yet");
        health.settings().set_failed("ConfigurationPending", format!("not loaded yet: {reason}"));
    }
    Arc::clone(builder.current())
}

fn spawn_client_ca_watch(tasks: &Tasks, ca: WatchedFiles<ClientCa>, health: &ServerHealth, interval: Duration) {
    let condition = health.conditions().register("client-ca", ReadinessImpact::Advisory, "FileLoaded", "ok");
    condition.set_ok("FileLoaded", "ok");
    let shutdown = tasks.shutdown_token();
    tasks.spawn("client-ca-watch", async move {
        let report = |_: &_, change| report_change(&condition, "client CA", &change);
        shutdown.run_until_cancelled(poll_forever(ca, interval, WatchedFiles::poll, report)).await;
    });
}

fn spawn_file_watches(
    tasks: &Tasks,
    certificate: WatchedFiles<Option<ServerCert>>,
    settings: SettingsFiles,
    app: &Arc<AppState>,
    interval: Duration,
) {
    let (shutdown, state) = (tasks.shutdown_token(), Arc::clone(app));
    tasks.spawn("certificate-watch", async move {
        let report = |files: &WatchedFiles<_>, change| report_certificate_change(&state, files.current(), &change);
        shutdown.run_until_cancelled(poll_forever(certificate, interval, WatchedFiles::poll, report)).await;
    });
    let (shutdown, state) = (tasks.shutdown_token(), Arc::clone(app));
    tasks.spawn("settings-file-watch", async move {
        let report = |files: &SettingsFiles, update| {
            report_settings_update(&state.metrics, &state.health, &update, files.builder(), SystemTime::now());
        };
        shutdown.run_until_cancelled(poll_forever(settings, interval, SettingsFiles::poll, report)).await;
    });
    let (shutdown, state) = (tasks.shutdown_token(), Arc::clone(app));
    tasks.spawn("log-limit", async move {
        let flush = async {
            loop {
                tokio::time::sleep(interval).await;
                state.log_limiter.flush();
            }
        };
        shutdown.run_until_cancelled(flush).await;
    });
}

fn report_certificate_change(app: &AppState, served: &ServedCertificate, change: &FileChange) {
    log_change("certificate", change);
    app.metrics.record_reload(ReloadSource::Certificate, *change == FileChange::Reloaded);
    match change {
        FileChange::Reloaded => {
            app.health.set_certificate_rejection(None);
            record_certificate_expiry(&app.metrics, served);
        }
        FileChange::Rejected(reason) => app.health.set_certificate_rejection(Some(reason)),
    }
}

fn record_certificate_expiry(metrics: &Metrics, served: &ServedCertificate) {
    if let Some(cert) = served.load().as_ref() {
        metrics.set_certificate_expiry(cert.not_after());
    }
}

/// Starts, serves until SIGTERM or SIGINT, and shuts down gracefully.
///
/// # Errors
/// The server cannot start, or a signal handler cannot be installed.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let mut signals = TerminationSignals::new()?;
    info!(flags = ?config.flags, "configuration");
    let server = Server::start(config).await?;
    signals.recv().await;
    let aborted_connections = server.shutdown(signals.recv()).await;
    info!(aborted_connections, "shut down");
    Ok(())
}
