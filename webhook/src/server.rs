//! The admission server around [`weir_injector::inject`].
//!
//! ```text
//! flags ──args──▶ config ──▶ certificate, files  (watch: re-read, last good kept)
//!                                          │
//! cluster: ConfigMaps, nodes, ... ──▶ live: settings of the moment ──tell──▶ health, metrics, log
//!                                          │
//! socket ──listen (tls)──▶ router ─gate─▶ review ─▶ inject::inject ─▶ answer
//!                            │                                          │
//!                      health, metrics ◀─────────── count, log (lines) ◀┘
//! ```
//!
//! `main.rs` calls [`run`] and turns errors into exit codes. Everything that can be wrong with flags and files is found before a
//! socket is bound. On SIGTERM the server first turns unready, serves on for the configured delay, then drains.

pub mod certs;
pub mod clients;
pub mod config;
pub mod gate;
pub mod health;
pub mod lines;
pub mod listen;
pub mod live;
pub mod logging;
pub mod metrics;
pub mod review;
pub mod router;
pub mod tell;
pub mod tls;
pub mod watch;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::net::TcpListener;
use tokio::sync::watch as channel;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tracing::{error, info, warn};

use weir_runtime::health::Weight;

use crate::args::ListenAddr;
use crate::cluster::{self, Parts};
use clients::Clients;
use config::{ClientFile, Config};
use gate::Gate;
use health::Health;
use lines::Lines;
use listen::{Limits, Port};
use live::Files;
use metrics::{Metrics, Source};
use review::Decide;
use router::App;
use tell::tell;
use tls::{Served, ServerCert};
use watch::{Look, Watched};
use weir_injector::inject;

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A port that cannot be had.
    #[error("cannot listen on {addr}: {reason}")]
    Bind {
        /// As configured.
        addr: ListenAddr,
        /// The kernel's reason.
        reason: std::io::Error,
    },
    /// There is no API server to talk to.
    #[error("{0}")]
    Cluster(String),
    /// The TLS library refused its own defaults.
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// A server that runs.
#[derive(Debug)]
pub struct Server {
    https: SocketAddr,
    http: Option<SocketAddr>,
    app: Arc<App>,
    stop: channel::Sender<bool>,
    ports: Vec<JoinHandle<usize>>,
    reload: JoinHandle<()>,
    background: Parts,
    shutdown_delay: Duration,
}

impl Server {
    /// Binds the ports and serves from then on.
    ///
    /// # Errors
    /// A port that cannot be had.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        Self::start_with(config, inject::inject).await
    }

    /// As [`Server::start`], with another function that decides.
    ///
    /// # Errors
    /// A port that cannot be had.
    pub async fn start_with(config: Config, decide: Decide) -> Result<Self, StartError> {
        let Config {
            https_addr,
            http_addr,
            limits,
            request_timeout,
            max_in_flight,
            log_max_per_second,
            reload_interval,
            shutdown_delay,
            certificate,
            clients,
            settings,
            cluster,
        } = config;
        let checked = clients.as_ref().map(|file| Clients::new(Arc::clone(file.ca.current()), file.names.clone()));
        let acceptor = TlsAcceptor::from(Arc::new(tls::server_config(Arc::clone(certificate.current()), checked)?));
        let metrics = Arc::new(Metrics::new());
        tell_expiry(&metrics, certificate.current());
        let health = Arc::new(Health::new(Arc::clone(certificate.current())));
        let mut background = Parts::new(Arc::clone(&health));
        if let Some(ClientFile { ca, .. }) = clients {
            let condition = health.register("client-ca", Weight::Advisory, "");
            condition.good("ok");
            let told = move |_: &Watched<_>, look| watch::tell(&condition, "the CA of clients", &look);
            let stop = background.stop();
            let part = async move {
                tokio::select! {
                    () = watch::follow(ca, reload_interval, told) => {}
                    () = stop.requested() => {}
                }
            };
            background.spawn("client ca", Box::pin(part));
        }
        if let Some(cluster) = cluster {
            cluster::start(cluster, &metrics, certificate.current(), &mut background)
                .await
                .map_err(StartError::Cluster)?;
        }
        let current = {
            let maker = settings.maker().lock();
            let waiting = maker.current().load().is_none();
            health.wait_for_settings(waiting.then(|| maker.problem().unwrap_or("the cluster was not seen yet")));
            if !waiting {
                metrics.settings_made(SystemTime::now());
            }
            Arc::clone(maker.current())
        };
        let app = Arc::new(App {
            settings: current,
            metrics: Arc::clone(&metrics),
            health,
            gate: Gate::new(max_in_flight, request_timeout),
            lines: Lines::new(log_max_per_second),
            decide,
        });
        // Both are bound before either serves.
        let https = bind(https_addr).await?;
        let http = match http_addr {
            Some(addr) => Some(bind(addr).await?),
            None => None,
        };
        let (stop, stopped) = channel::channel(false);
        let port = |listener, tls, router| Port { listener, tls, router, limits, metrics: Arc::clone(&metrics) };
        let tls_addr = local_addr(&https, https_addr)?;
        let mut ports = vec![tokio::spawn(listen::serve(
            port(https, Some(acceptor), router::https(Arc::clone(&app))),
            stopped.clone(),
        ))];
        let mut plain_addr = None;
        if let (Some(listener), Some(addr)) = (http, http_addr) {
            plain_addr = Some(local_addr(&listener, addr)?);
            ports.push(tokio::spawn(listen::serve(port(listener, None, router::http(Arc::clone(&app))), stopped)));
        }
        let reload = tokio::spawn(reload(certificate, settings, Arc::clone(&app), reload_interval));
        info!(https = %tls_addr, http = plain_addr.map(tracing::field::display), "listening");
        Ok(Self { https: tls_addr, http: plain_addr, app, stop, ports, reload, background, shutdown_delay })
    }

    /// Where the TLS port is.
    pub fn https(&self) -> SocketAddr {
        self.https
    }

    /// Where the plain port is.
    pub fn http(&self) -> Option<SocketAddr> {
        self.http
    }

    /// Turns unready, serves on for the configured delay (less if `hurry` comes first), stops accepting, and waits for what is under way
    /// within the configured bound. Returns how many connections had to be cut.
    pub async fn shutdown(self, hurry: impl Future<Output = ()>) -> usize {
        self.app.health.stop();
        info!(delay = ?self.shutdown_delay, "stopping");
        tokio::select! {
            () = tokio::time::sleep(self.shutdown_delay) => {}
            () = hurry => info!("told again to stop: not waiting any longer"),
        }
        self.reload.abort();
        // Nobody to tell means that all ports have ended already.
        let _ = self.stop.send(true);
        let mut cut = 0;
        for port in self.ports {
            cut += port.await.unwrap_or(0);
        }
        self.background.finish().await;
        cut
    }
}

async fn bind(addr: ListenAddr) -> Result<TcpListener, StartError> {
    listen::bind(addr).await.map_err(|reason| StartError::Bind { addr, reason })
}

fn local_addr(listener: &TcpListener, addr: ListenAddr) -> Result<SocketAddr, StartError> {
    listener.local_addr().map_err(|reason| StartError::Bind { addr, reason })
}

/// Looks at the files on a timer, for as long as the server runs.
async fn reload(mut certificate: Watched<Option<ServerCert>>, mut settings: Files, app: Arc<App>, interval: Duration) {
    loop {
        tokio::time::sleep(interval).await;
        // File systems can hang; that must not take a worker from the requests.
        let looked = tokio::task::spawn_blocking(move || {
            let looks = (certificate.look(), settings.look());
            (certificate, settings, looks)
        });
        let (looked_certificate, looked_settings, looks) = match looked.await {
            Ok(looked) => looked,
            Err(reason) => {
                error!(%reason, "files are not looked at any more");
                for source in [Source::Certificate, Source::Settings] {
                    app.health.note(source, Some("its files are not looked at any more; a restart is needed"));
                }
                return;
            }
        };
        app.lines.report();
        (certificate, settings) = (looked_certificate, looked_settings);
        if note(&app, &looks.0) {
            tell_expiry(&app.metrics, certificate.current());
        }
        tell(&app.metrics, &app.health, &looks.1, SystemTime::now());
    }
}

fn tell_expiry(metrics: &Metrics, served: &Served) {
    if let Some(cert) = served.load().as_ref() {
        metrics.certificate_expires(cert.not_after());
    }
}

/// Tells of a look at the files of the certificate; true where something new is in use.
fn note(app: &App, look: &Look) -> bool {
    let source = Source::Certificate;
    let name = source.name();
    match look {
        Look::Same => false,
        Look::Replaced | Look::Restored => {
            info!(source = name, "changed files are in use");
            app.metrics.reloaded(source, true);
            app.health.note(source, None);
            true
        }
        Look::Refused(reason) => {
            warn!(source = name, reason = reason.as_str(), "changed files are refused; the last good ones stay in use");
            app.metrics.reloaded(source, false);
            app.health.note(source, Some(reason));
            false
        }
    }
}

/// Starts, serves until SIGTERM or SIGINT, and stops gracefully.
///
/// # Errors
/// A port that cannot be had; a signal handler that cannot be set.
pub async fn run(config: Config) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let Config {
        https_addr,
        http_addr,
        limits,
        request_timeout,
        max_in_flight,
        log_max_per_second,
        reload_interval,
        shutdown_delay,
        certificate,
        clients,
        settings,
        cluster,
    } = &config;
    let Limits { connections, handshake, idle, drain } = limits;
    info!(
        %https_addr, http_addr = http_addr.map(tracing::field::display), connections, ?handshake, ?idle, ?drain, ?request_timeout,
        max_in_flight, log_max_per_second,
        ?reload_interval, ?shutdown_delay, ?certificate, ?clients, settings_files = ?settings.files(), ?cluster,
        "configuration"
    );
    info!(settings = ?*settings.maker().lock().current().load(), "injecting with");
    let server = Server::start(config).await?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    let again = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let cut = server.shutdown(again).await;
    info!(cut, "stopped");
    Ok(())
}
