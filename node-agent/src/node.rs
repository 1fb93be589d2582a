//! The parts about the node's pods, put together: cache, sockets, repair, events, taint.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Json, Router};
use kube::Api;
use prometheus_client::metrics::gauge::Gauge;
use tokio::time::sleep;
use weir_protocol::agent::REPORT_SOCKET;

use crate::args::RunArgs;
use crate::events::{self, Events};
use crate::health::{Condition, Weight};
use crate::http::Peer;
use crate::pods::{Connect, Follower, PodFacts, PodObject, Pods};
use crate::repair::{self, Actor, Listing, Repairer, Settings, States};
use crate::run::Context;
use crate::socket::{Answerer, Counts, Fetch, Reports};
use crate::stop::Stop;
use crate::taint::Tainter;

/// How often condition and age are brought up to date.
const LOOK: Duration = Duration::from_secs(1);
/// A cache that was last refreshed so long ago is said to be old; bookmarks come about every minute.
const OLD: Duration = Duration::from_mins(5);

/// A part with its name.
pub type Part = (&'static str, Pin<Box<dyn Future<Output = ()> + Send>>);

/// What the rest of the agent gets of it.
pub struct Node {
    /// Tasks to run.
    pub parts: Vec<Part>,
    /// `GET /pods`, for the monitoring port.
    pub router: Router,
    /// Where events go.
    pub events: Events,
}

/// What lists the pods.
#[derive(Debug, Clone)]
struct Lister {
    node: String,
    pods: Pods,
    states: States,
    repairs: bool,
}

/// Makes clients of the API server. Where none is configured, the agent does what it can without one.
pub async fn connector() -> Connect {
    weir_runtime::connect::infer().await.unwrap_or_else(|reason| Arc::new(move || Err(reason.clone())))
}

/// Puts the parts together.
pub fn node(args: &RunArgs, connect: &Connect, context: &Context) -> Node {
    let Context { health, metrics, stop, .. } = context;
    let flags = &args.node;
    let entry = args.install.entry();
    let node = flags.node_name.clone();
    let pods = Pods::default();
    let states = States::default();
    let (events, teller) = events::channel(metrics);
    let reports = Reports::register(metrics);
    let attachments = reports.attachments.clone();
    let named = !node.is_empty();

    let answerer = Answerer {
        pods: pods.clone(),
        fetch: named.then(|| fetch(connect, &entry.exclude_namespaces)),
        // What is left is for the way there and back.
        budget: entry.agent_timeout * 3 / 4,
        counts: Counts::register(metrics),
    };
    let run = &args.install.cni_agent_run_dir;
    let mut parts: Vec<Part> = vec![
        ("questions", Box::pin(answerer.serve(entry.agent_socket.clone(), stop.clone()))),
        ("reports", Box::pin(reports.serve(run.join(REPORT_SOCKET), stop.clone()))),
        ("events", Box::pin(teller.run(Arc::clone(connect), events::reporter(&node), stop.clone()))),
    ];
    let weight = if named { Weight::Blocking } else { Weight::Advisory };
    let condition = health.register("pods", weight, "the pods of the node are not known yet");
    if named {
        let age = Gauge::<i64>::default();
        metrics.register(|registry| {
            let help =
                "Seconds since the API server last said anything about the pods of the node; -1 before its first word";
            registry.register("weir_agent_pod_cache_age_seconds", help, age.clone());
        });
        parts.push(("pod condition", Box::pin(watch_condition(pods.clone(), condition, age, stop.clone()))));
        let follower = Follower {
            connect: Arc::clone(connect),
            node: node.clone(),
            exclude_namespaces: entry.exclude_namespaces.clone(),
            pods: pods.clone(),
        };
        parts.push(("pods", Box::pin(follower.run(stop.clone()))));
        if flags.repair_enabled {
            let settings = Settings {
                in_place: flags.repair_repair_pods,
                interval: flags.repair_interval,
                backend: entry.backend,
                places: flags.places(&args.install.host_root),
            };
            let actor = flags.fallback().map(|fallback| Actor::new(Arc::clone(connect), fallback, flags.limits()));
            let repairer = Repairer {
                pods: pods.clone(),
                attachments,
                settings,
                states: states.clone(),
                counts: repair::Counts::register(metrics),
                events: events.clone(),
            };
            parts.push(("repair", Box::pin(repairer.run(actor, stop.clone()))));
        }
        if flags.taint_enabled {
            let tainter = Tainter {
                connect: Arc::clone(connect),
                node: node.clone(),
                keys: flags.taint_names.clone(),
                when_broken: flags.taint_when_broken,
                health: health.clone(),
            };
            parts.push(("taint", Box::pin(tainter.run(stop.clone()))));
        }
    } else {
        condition.bad("NODE_NAME is not set: the agent installs, but neither answers about pods nor repairs them");
    }
    let repairs = named && flags.repair_enabled && flags.repair_repair_pods;
    let lister = Lister { node, pods, states, repairs };
    let router = Router::new().route("/pods", get(list)).with_state(lister);
    Node { parts, router, events }
}

/// Asks the API server itself for a pod.
fn fetch(connect: &Connect, exclude_namespaces: &[String]) -> Fetch {
    let (connect, exclude) = (Arc::clone(connect), exclude_namespaces.to_vec());
    Arc::new(move |namespace, name| {
        let (client, exclude) = (connect(), exclude.clone());
        Box::pin(async move {
            let pod = Api::<PodObject>::namespaced(client?, &namespace).get_opt(&name).await;
            pod.map(|pod| pod.map(|pod| PodFacts::of(pod, &exclude))).map_err(|error| error.to_string())
        })
    })
}

/// Keeps the condition and the age up to date. What was known once stays good enough: pods with our annotation need no agent, and a node
/// must not fall out of service because the API server does.
async fn watch_condition(pods: Pods, condition: Condition, age: Gauge<i64>, stop: Stop) {
    while !stop.is_requested() {
        let seconds = pods.age().map_or(-1, |age| i64::try_from(age.as_secs()).unwrap_or(i64::MAX));
        age.set(seconds);
        match (pods.is_synced(), pods.trouble()) {
            (true, None) if pods.age().is_some_and(|age| age >= OLD) => {
                condition.good(format!("known, but nothing was heard for {seconds} s"));
            }
            (true, None) => condition.good("known"),
            (true, Some(trouble)) => condition.good(format!("known, but {seconds} s old: {trouble}")),
            (false, trouble) => {
                condition.bad(trouble.unwrap_or_else(|| "the pods of the node are not known yet".to_owned()));
            }
        }
        tokio::select! {
            () = sleep(LOOK) => {}
            () = stop.requested() => {}
        }
    }
}

async fn list(State(lister): State<Lister>, Extension(Peer(peer)): Extension<Peer>) -> Response {
    if !peer.ip().to_canonical().is_loopback() {
        return (StatusCode::FORBIDDEN, "pods are listed on the pod's own loopback: forward the port\n")
            .into_response();
    }
    let Lister { node, pods, states, repairs } = lister;
    let listing = Listing {
        node,
        synced: pods.is_synced(),
        age_seconds: pods.age().map(|age| age.as_secs()),
        trouble: pods.trouble(),
        repairs,
        pods: states.all(),
    };
    Json(listing).into_response()
}
