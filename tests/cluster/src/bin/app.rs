//! `weir-cluster-app`: the server and the client of the tests in the cluster, and the pause container.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use axum::extract::{ConnectInfo, Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use axum::{Json, Router};
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

/// Timeout of a request or connection; those of Envoy are shorter.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Serve and send requests
#[derive(Debug, Parser)]
#[command(name = "weir-cluster-app", version)]
struct Cli {
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Serve HTTP, and echo lines of text over TCP
    Serve {
        /// Port of HTTP
        #[arg(long, env = "PORT", default_value_t = 8080)]
        port: u16,
        /// Port of the echo
        #[arg(long, env = "TCP_PORT", default_value_t = 9000)]
        tcp_port: u16,
        /// The name that responses have
        #[arg(long, env = "VERSION", default_value = "v1")]
        version: String,
        /// Services that are asked for each response, as URLs
        #[arg(long = "call")]
        calls: Vec<String>,
    },
    /// Collect spans as Zipkin does, on port 9411
    Collect,
    /// Send requests and print how often each response came
    Load {
        /// Number of requests
        #[arg(short, default_value_t = 1)]
        number: usize,
        /// Requests at the same time
        #[arg(short, default_value_t = 1)]
        concurrency: usize,
        /// Duration for which to send instead, as in 10s
        #[arg(long = "for", value_parser = parse_seconds)]
        duration: Option<Duration>,
        /// Headers, as in `name: value`
        #[arg(short = 'H')]
        headers: Vec<String>,
        /// Where to
        url: String,
    },
    /// Open connections, send a line and print how often each answer came
    Tcp {
        /// Number of connections
        #[arg(short, default_value_t = 1)]
        number: usize,
        /// Where to, HOST:PORT
        address: String,
    },
    /// Print the addresses of a name
    Resolve {
        /// The name
        name: String,
    },
    /// Wait for a signal to end
    Pause,
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.strip_suffix('s').and_then(|number| number.parse().ok());
    seconds.map(Duration::from_secs).ok_or_else(|| format!("{text:?} is no number of seconds"))
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Action::Serve { port, tcp_port, version, calls } => {
            let server = Server { version, calls, requests: AtomicUsize::new(0) };
            serve_echo(tcp_port, server.version.clone())?;
            serve(port, routes(Arc::new(server)))
        }
        Action::Collect => serve(9411, collector()),
        Action::Load { number, concurrency, duration, headers, url } => {
            let deadline = duration.map(|duration| Instant::now() + duration);
            let number = if deadline.is_some() { usize::MAX } else { number };
            report(repeat(number, concurrency, deadline, || request(&url, &headers)))
        }
        Action::Tcp { number, address } => report(repeat(number, 1, None, || echo(&address))),
        Action::Resolve { name } => {
            let lines = (name.as_str(), 0).to_socket_addrs()?.map(|address| (address.ip().to_string(), 1));
            report(lines.collect())
        }
        Action::Pause => runtime()?.block_on(end()),
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

/// Waits for SIGTERM or SIGINT, which process 1 has to handle.
async fn end() -> anyhow::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// Prints each text with its number, the most frequent first.
fn report(counts: BTreeMap<String, usize>) -> anyhow::Result<()> {
    let mut lines: Vec<_> = counts.into_iter().collect();
    lines.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let mut out = std::io::stdout().lock();
    lines.iter().try_for_each(|(text, count)| writeln!(out, "{count}\t{text}"))?;
    Ok(())
}

/// Calls `once` a number of times or until the deadline, and counts the results. What failed counts as `error: ...`.
fn repeat(
    number: usize,
    concurrency: usize,
    deadline: Option<Instant>,
    once: impl Fn() -> anyhow::Result<String> + Sync,
) -> BTreeMap<String, usize> {
    let (next, counts) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    thread::scope(|scope| {
        for _ in 0..concurrency {
            scope.spawn(|| {
                while next.fetch_add(1, Ordering::Relaxed) < number && deadline.is_none_or(|end| Instant::now() < end) {
                    let result = once().unwrap_or_else(|error| format!("error: {error:#}"));
                    *counts.lock().unwrap_or_else(PoisonError::into_inner).entry(result).or_insert(0) += 1;
                }
            });
        }
    });
    counts.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Sends one request over a connection of its own. Returns status and body.
fn request(url: &str, headers: &[String]) -> anyhow::Result<String> {
    let config = ureq::Agent::config_builder().proxy(None).http_status_as_error(false).timeout_global(Some(TIMEOUT));
    let agent = config.max_redirects(0).build().new_agent();
    let mut request = agent.get(url).header("connection", "close");
    for header in headers {
        let (name, value) = header.split_once(':').with_context(|| format!("header {header:?} has no colon"))?;
        request = request.header(name, value.trim());
    }
    let mut response = request.call()?;
    Ok(format!("{} {}", response.status().as_u16(), response.body_mut().read_to_string()?.trim_end()))
}

fn echo(address: &str) -> anyhow::Result<String> {
    let to = address.to_socket_addrs()?.next().context("no address")?;
    let mut stream = TcpStream::connect_timeout(&to, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(b"hello\n")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    anyhow::ensure!(!line.is_empty(), "the connection was closed");
    Ok(line.trim_end().to_owned())
}

/// Headers that a service passes on to those that it calls: tracing as Istio's documentation lists them, and bookinfo's user.
const PASSED_ON: [&str; 7] =
    ["x-request-id", "x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid", "x-b3-sampled", "x-b3-flags", "end-user"];

/// State of the server.
struct Server {
    version: String,
    calls: Vec<String>,
    requests: AtomicUsize,
}

impl Server {
    /// Returns the version and, in brackets, the body of each service that it calls.
    fn answer(&self, headers: &HeaderMap) -> anyhow::Result<String> {
        let pass_on = |name: &&str| Some(format!("{name}: {}", headers.get(*name)?.to_str().ok()?));
        let headers: Vec<String> = PASSED_ON.iter().filter_map(pass_on).collect();
        self.calls.iter().try_fold(self.version.clone(), |text, url| {
            let response = request(url, &headers)?;
            Ok(format!("{text} [{}]", response.strip_prefix("200 ").unwrap_or(&response)))
        })
    }
}

fn serve_echo(port: u16, name: String) -> anyhow::Result<()> {
    let listener = listen(port)?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let name = name.clone();
            thread::spawn(move || {
                let mut out = stream.try_clone()?;
                BufReader::new(stream).lines().try_for_each(|line| writeln!(out, "{name} {}", line?))
            });
        }
    });
    Ok(())
}

fn listen(port: u16) -> anyhow::Result<TcpListener> {
    TcpListener::bind(("::", port)).with_context(|| format!("listen on port {port}"))
}

/// Returns the routes `/` (the version), `/headers`, `/client` (its address), `/status/CODE`, `/delay/MILLISECONDS`, `/requests` (how many
/// came to `/` and `/status`), `/metrics` (that number for Prometheus) and `/healthz`.
fn routes(server: Arc<Server>) -> Router {
    type Shared = State<Arc<Server>>;
    Router::new()
        .route("/healthz", get(|| async { "ok" }))
        // Answered by the proxy as soon as that has its routes, and not counted before.
        .route("/configured", get(|| async { StatusCode::NOT_FOUND }))
        .route(
            "/requests",
            get(|State(server): Shared| async move { server.requests.load(Ordering::Relaxed).to_string() }),
        )
        .route(
            "/metrics",
            get(|State(server): Shared| async move {
                format!("# TYPE app_requests counter\napp_requests_total {}\n", server.requests.load(Ordering::Relaxed))
            }),
        )
        .route("/headers", get(|headers: HeaderMap| async move { format!("{headers:?}") }))
        .route(
            "/client",
            get(|ConnectInfo(client): ConnectInfo<SocketAddr>| async move { client.ip().to_canonical().to_string() }),
        )
        .route(
            "/status/{code}",
            get(|State(server): Shared, Path(code): Path<u16>| async move {
                server.requests.fetch_add(1, Ordering::Relaxed);
                StatusCode::from_u16(code).unwrap_or(StatusCode::BAD_REQUEST)
            }),
        )
        .route(
            "/delay/{milliseconds}",
            get(|State(server): Shared, Path(milliseconds): Path<u64>| async move {
                tokio::time::sleep(Duration::from_millis(milliseconds)).await;
                server.version.clone()
            }),
        )
        .fallback(|State(server): Shared, headers: HeaderMap| async move {
            server.requests.fetch_add(1, Ordering::Relaxed);
            let answer = tokio::task::spawn_blocking(move || server.answer(&headers)).await;
            answer
                .map_err(anyhow::Error::from)
                .flatten()
                .map_err(|error| (StatusCode::BAD_GATEWAY, format!("{error:#}")))
        })
        .with_state(server)
}

/// A span of Zipkin's API v2, as far as it is used.
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Span {
    trace_id: String,
    kind: Option<String>,
    local_endpoint: Endpoint,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint {
    service_name: String,
}

/// Returns the routes of Zipkin's API v2 that proxies use, and `/trace/ID`: which services have sent spans of a trace, and of which kind.
fn collector() -> Router {
    type Shared = State<Arc<Mutex<BTreeMap<String, BTreeSet<String>>>>>;
    Router::new()
        .route(
            "/api/v2/spans",
            post(|State(traces): Shared, Json(spans): Json<Vec<Span>>| async move {
                let mut traces = traces.lock().unwrap_or_else(PoisonError::into_inner);
                for span in spans {
                    let name = format!("{} {}", span.local_endpoint.service_name, span.kind.unwrap_or_default());
                    traces.entry(span.trace_id).or_default().insert(name);
                }
                StatusCode::ACCEPTED
            }),
        )
        .route("/healthz", get(|| async { "ok" }))
        // Answered by the proxy as soon as that has its routes, and not counted before.
        .route("/configured", get(|| async { StatusCode::NOT_FOUND }))
        .route(
            "/trace/{id}",
            get(|State(traces): Shared, Path(id): Path<String>| async move {
                let traces = traces.lock().unwrap_or_else(PoisonError::into_inner);
                traces.get(&id).into_iter().flatten().cloned().collect::<Vec<_>>().join(", ")
            }),
        )
        .with_state(Arc::default())
}

fn serve(port: u16, routes: Router) -> anyhow::Result<()> {
    let http = listen(port)?;
    runtime()?.block_on(async {
        http.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(http)?;
        let service = routes.into_make_service_with_connect_info::<SocketAddr>();
        let serving = axum::serve(listener, service).with_graceful_shutdown(async { drop(end().await) });
        Ok(serving.await?)
    })
}
