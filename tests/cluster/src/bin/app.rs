//! `weir-cluster-app`: the server and the client of the tests in the cluster, and the pause container.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream, ToSocketAddrs as _};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::routing::get;
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
    },
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
        Action::Serve { port, tcp_port, version } => serve(port, tcp_port, version),
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
                    *counts.lock().unwrap_or_else(std::sync::PoisonError::into_inner).entry(result).or_insert(0) += 1;
                }
            });
        }
    });
    counts.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
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

/// What the server knows.
struct Server {
    version: String,
    requests: AtomicUsize,
}

/// Serves `/` (the version), `/headers`, `/status/CODE`, `/delay/MILLISECONDS`, `/requests` (how many came to `/`) and `/healthz`.
fn serve(port: u16, tcp_port: u16, version: String) -> anyhow::Result<()> {
    let any = |port| TcpListener::bind(("::", port)).with_context(|| format!("listen on port {port}"));
    let (http, tcp, name) = (any(port)?, any(tcp_port)?, version.clone());
    thread::spawn(move || {
        for stream in tcp.incoming().flatten() {
            let name = name.clone();
            thread::spawn(move || {
                let mut out = stream.try_clone()?;
                BufReader::new(stream).lines().try_for_each(|line| writeln!(out, "{name} {}", line?))
            });
        }
    });
    let server: &'static Server = Box::leak(Box::new(Server { version, requests: AtomicUsize::new(0) }));
    let routes = Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route(
            "/requests",
            get(|State(server): State<&'static Server>| async { server.requests.load(Ordering::Relaxed).to_string() }),
        )
        .route("/headers", get(|headers: HeaderMap| async move { format!("{headers:?}") }))
        .route(
            "/status/{code}",
            get(|Path(code): Path<u16>| async move { StatusCode::from_u16(code).unwrap_or(StatusCode::BAD_REQUEST) }),
        )
        .route(
            "/delay/{milliseconds}",
            get(|State(server): State<&'static Server>, Path(milliseconds): Path<u64>| async move {
                tokio::time::sleep(Duration::from_millis(milliseconds)).await;
                server.version.clone()
            }),
        )
        .fallback(|State(server): State<&'static Server>, _: Uri| async {
            server.requests.fetch_add(1, Ordering::Relaxed);
            server.version.clone()
        })
        .with_state(server);
    runtime()?.block_on(async {
        http.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(http)?;
        let serving = axum::serve(listener, routes).with_graceful_shutdown(async { drop(end().await) });
        Ok(serving.await?)
    })
}
