//! What the server does with the API server of its cluster, where flags ask for it.
//!
//! ```text
//! flags ──Settings──▶ start ──▶ Context (clients, events, where to register) ──▶ parts, each a task
//! ```
//!
//! Without any of those flags there is no part, no client, and no right that the server would need. No part is needed to answer reviews:
//! when the API server is away, the last state goes on to be served.

pub mod configuration;
mod connect;
mod parts;

use std::sync::Arc;

use weir_cluster::Connect;
use weir_cluster::events::{self, Events, Reporter};

pub use self::connect::{Settings, SettingsError};
pub use self::parts::{Part, Parts};
use crate::server::health::Health;
use crate::server::metrics::Metrics;
use weir_cluster::stop::Stop;

/// What every part gets.
#[derive(Clone)]
pub struct Context {
    /// Makes clients.
    pub connect: Connect,
    /// The webhook's own namespace.
    pub namespace: String,
    /// Name of this replica.
    pub replica: String,
    /// Where it tells what an administrator should hear.
    pub events: Events,
    /// Where it registers its metrics.
    pub metrics: Arc<Metrics>,
    /// Where it registers its conditions.
    pub health: Arc<Health>,
    /// When it has to end.
    pub stop: Stop,
}

/// Starts all parts that the settings ask for.
///
/// # Errors
/// There is no API server to talk to, in words. One that does not answer is no error: parts wait for it.
pub async fn start(settings: Settings, metrics: &Arc<Metrics>, parts: &mut Parts) -> Result<(), String> {
    let Settings { kubeconfig, namespace, replica, followed } = settings;
    let connect = weir_cluster::connect::connector(kubeconfig.as_deref()).await?;
    let (events, teller) = metrics.with_registry(|registry| events::channel(registry, "weir_webhook"));
    let reporter = Reporter { controller: "weir-webhook".to_owned(), instance: Some(replica.clone()) };
    let context = Context {
        connect: Arc::clone(&connect),
        namespace,
        replica,
        events,
        metrics: Arc::clone(metrics),
        health: Arc::clone(parts.health()),
        stop: parts.stop(),
    };
    if let Some(followed) = followed {
        configuration::spawn(followed, &context, parts);
    }
    parts.spawn("events", Box::pin(teller.run(connect, reporter, parts.stop())));
    Ok(())
}
