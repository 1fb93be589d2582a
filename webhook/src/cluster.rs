//! What the server does with the API server of its cluster, where flags ask for it.
//!
//! ```text
//! flags ──Settings──▶ start ──▶ Context (clients, events, where to register) ──▶ parts, each a task
//!
//! ca: Secret, Lease ──▶ leaf that is served, what is to be trusted ─┐
//! file of a CA ─────────────────────────────────────────────────────┴─▶ bundle: caBundle of webhook configurations
//! ```
//!
//! Without any of those flags there is no part, no client, and no right that the server would need. No part is needed to answer reviews:
//! when the API server is away, the last state goes on to be served.

pub mod bundle;
pub mod ca;
pub mod configuration;
mod connect;
pub mod lease;
mod parts;

use std::sync::Arc;

use tokio::sync::watch;
use weir_runtime::Connect;
use weir_runtime::events::{self, Events, Reporter};
use weir_runtime::stop::Stop;

use self::bundle::{Refresh, Trust};
pub use self::connect::{Settings, SettingsError};
pub use self::parts::{Part, Parts};
use crate::server::health::Health;
use crate::server::metrics::Metrics;
use crate::server::tls::Served;

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

/// Starts all parts that the settings ask for. `served` is what the TLS port serves.
///
/// # Errors
/// There is no API server to talk to, or a file cannot be used, in words. A server that does not answer is no error: parts wait for it.
pub async fn start(
    settings: Settings,
    metrics: &Arc<Metrics>,
    served: &Served,
    parts: &mut Parts,
) -> Result<(), String> {
    let Settings { kubeconfig, namespace, replica, revision, interval, ca, bundle, ca_file, followed } = settings;
    let connect = weir_runtime::connect::connector(kubeconfig.as_deref()).await?;
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

    let Some(mode) = bundle else { return Ok(()) };
    let (trust, trusted) = watch::channel(None);
    let refresh = match &ca {
        Some(ca) => ca::refresh(Arc::clone(&context.connect), context.namespace.clone(), ca.secret.clone()),
        None => as_known(trusted.clone()),
    };
    let bundles = bundle::Keeper::new(context.clone(), &revision, mode, Arc::clone(served), (trusted, refresh), parts);
    if let Some(options) = ca {
        let keeper = ca::Keeper::new(context, options, Arc::clone(served), trust, bundles.bundles());
        parts.spawn("ca", Box::pin(keeper.run()));
    } else if let Some(file) = ca_file {
        let follower = bundle::CaFile::open(file, trust)?;
        parts.spawn("ca file", Box::pin(follower.run(context, interval)));
    }
    parts.spawn("ca bundle", Box::pin(bundles.run()));
    Ok(())
}

/// What is to be trusted, where what is known is all that there is.
fn as_known(trusted: watch::Receiver<Option<Arc<Trust>>>) -> Refresh {
    Arc::new(move || {
        let known = trusted.borrow().clone().ok_or_else(|| "the CA is not known".to_owned());
        Box::pin(async move { known })
    })
}
