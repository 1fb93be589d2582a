//! Configuration that is followed in the cluster: ConfigMaps, `ProxyConfig` resources, nodes and namespaces.
//!
//! ```text
//! Follower ──keep──▶ Cache ──wakes──▶ one task: waits 100 ms, hands on what changed ──▶ Maker ──▶ the settings of the moment
//! ```
//!
//! What is kept of an object is what settings are made of, so that a heartbeat of a node wakes nobody. Where the API server is away,
//! what was known last goes on to be used.

mod objects;

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::select_all;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ObjectReference};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind, PartialObjectMeta};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{error, warn};
use weir_runtime::events::Told;
use weir_runtime::health::{Condition, Weight};
use weir_runtime::{Cache, Follower};

use self::objects::{KeptMap, KeptNode, KeptResource, NodeObject, annotations_of};
use super::{Context, Parts};
use crate::server::live::{Document, Made, Maker, Shared, Text};
use crate::server::metrics::Source;
use crate::server::tell::tell;
use weir_injector::settings::{Namespaces, Nodes, ProxyConfigResources};

/// Changes come in crowds: whoever applies a manifest changes several objects.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// How often the state of the caches is looked at where nothing changes.
const LOOK: Duration = Duration::from_secs(5);
/// Group and version of the `ProxyConfig` resources.
const GROUP: &str = "networking.istio.io";
const VERSION: &str = "v1beta1";
/// Silence of the API server that is told; bookmarks come about every minute.
const SILENT: Duration = Duration::from_mins(5);

/// What is followed, and for whom.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Who makes settings of it.
    pub maker: Shared,
    /// ConfigMaps.
    pub maps: Vec<MapName>,
    /// `ProxyConfig` resources.
    pub proxy_configs: bool,
    /// Nodes.
    pub nodes: bool,
    /// Namespaces.
    pub namespaces: bool,
}

/// A ConfigMap that documents are read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What it may have; of several, one suffices.
    pub documents: Vec<Document>,
}

impl MapName {
    /// Why a document of it is not there, before anything is known.
    pub fn pending(&self) -> Text {
        Text::Missing(format!("{self} was not seen yet"))
    }
}

impl std::fmt::Display for MapName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ConfigMap {}/{}", self.namespace, self.name)
    }
}

/// Hands on what a cache has now; gives back what an administrator should hear.
type HandOn = Box<dyn FnMut(&mut Maker) -> Vec<Told> + Send>;

/// State of a cache: whether it was complete once, how long ago the API server said anything, and what is wrong.
type State = (bool, Option<Duration>, Option<String>);

/// One cache and what it is for.
struct Followed {
    source: Source,
    changes: watch::Receiver<u64>,
    hand_on: HandOn,
    state: Box<dyn Fn() -> State + Send>,
    condition: Condition,
}

/// Starts following.
pub(super) fn spawn(wanted: Wanted, context: &Context, parts: &mut Parts) {
    let Wanted { maker, maps, proxy_configs, nodes, namespaces } = wanted;
    let mut all = Vec::new();
    let mut map_caches = Vec::new();
    for map in maps {
        let (name, namespace) = (map.name.clone(), map.namespace.clone());
        let cache = Cache::default();
        map_caches.push((map.clone(), cache.clone()));
        let followed = Kind {
            source: Source::Settings,
            name: if map.documents.contains(&Document::Mesh) { "mesh-config-map" } else { "injector-config-map" },
            what: "ConfigMaps of that name",
            api: Box::new(move |client| Api::<ConfigMap>::namespaced(client, &namespace)),
            fields: format!("metadata.name={name}"),
            keep: KeptMap::of,
        };
        all.push(followed.follow(cache, context, parts, move |kept, maker| hand_on_map(&map, kept, maker)));
    }
    if proxy_configs {
        let followed = Kind {
            source: Source::ProxyConfigs,
            name: "proxyconfigs",
            what: "ProxyConfig resources",
            api: Box::new(|client| Api::<DynamicObject>::all_with(client, &proxy_config_kind())),
            fields: String::new(),
            keep: KeptResource::of,
        };
        all.push(followed.follow(Cache::default(), context, parts, hand_on_resources()));
    }
    if nodes {
        let followed = Kind {
            source: Source::Nodes,
            name: "nodes",
            what: "nodes",
            api: Box::new(Api::<NodeObject>::all),
            fields: String::new(),
            keep: KeptNode::of,
        };
        all.push(followed.follow(Cache::default(), context, parts, |nodes, maker| {
            let nodes = nodes.all();
            let nodes: Nodes = nodes.iter().map(|node| (node.name.as_str(), &node.version)).collect();
            maker.live().nodes = Some(nodes);
            Vec::new()
        }));
    }
    if namespaces {
        let followed = Kind {
            source: Source::Namespaces,
            name: "namespaces",
            what: "namespaces",
            api: Box::new(Api::<PartialObjectMeta<Namespace>>::all),
            fields: String::new(),
            keep: annotations_of,
        };
        all.push(followed.follow(Cache::default(), context, parts, |namespaces, maker| {
            let namespaces: Namespaces = namespaces.all().iter().map(|kept| (kept.0.clone(), kept.1.clone())).collect();
            maker.live().namespaces = Some(namespaces);
            Vec::new()
        }));
    }
    parts.spawn("configuration", Box::pin(follow_all(all, map_caches, maker, context.clone())));
}

fn proxy_config_kind() -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(GROUP, VERSION, "ProxyConfig"), "proxyconfigs")
}

/// Objects of one kind that are followed.
struct Kind<K, T> {
    source: Source,
    name: &'static str,
    what: &'static str,
    api: Box<dyn Fn(Client) -> Api<K> + Send + Sync>,
    fields: String,
    keep: fn(K) -> T,
}

impl<K, T> Kind<K, T>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    T: PartialEq + Send + Sync + 'static,
{
    fn follow(
        self,
        cache: Cache<T>,
        context: &Context,
        parts: &mut Parts,
        mut hand_on: impl FnMut(&Cache<T>, &mut Maker) -> Vec<Told> + Send + 'static,
    ) -> Followed {
        let Self { source, name, what, api, fields, keep } = self;
        let follower = Follower {
            connect: Arc::clone(&context.connect),
            what,
            api,
            fields,
            labels: String::new(),
            keep: Box::new(keep),
            cache: cache.clone(),
        };
        parts.spawn(name, Box::pin(follower.run(parts.stop())));
        let state = cache.clone();
        Followed {
            source,
            changes: cache.subscribe(),
            hand_on: Box::new(move |maker| hand_on(&cache, maker)),
            state: Box::new(move || (state.is_synced(), state.age(), state.trouble())),
            condition: context.health.register(name, Weight::Blocking, "nothing was heard of the API server yet"),
        }
    }
}

impl Followed {
    fn show(&self) {
        let (synced, age, trouble) = (self.state)();
        let silent = age.filter(|age| *age > SILENT).map(|age| format!("silent for {} s", age.as_secs()));
        match (synced, trouble.or(silent)) {
            (true, None) => self.condition.good("followed"),
            (true, Some(trouble)) => {
                self.condition.good(format!("what was known before goes on to be used; the API server: {trouble}"));
            }
            (false, Some(trouble)) => self.condition.bad(trouble),
            (false, None) => {}
        }
    }
}

/// Gives the documents of a ConfigMap to the maker.
fn hand_on_map(map: &MapName, cache: &Cache<KeptMap>, maker: &mut Maker) -> Vec<Told> {
    let found = cache.all();
    let data = found.first().map(|map| &map.data);
    let has_any = data.is_some_and(|data| map.documents.iter().any(|document| data.contains_key(document.key())));
    for document in &map.documents {
        let text = match data.map(|data| (data, data.get(document.key()))) {
            None => Text::Missing(format!("{map} is not there; create it, or name another one")),
            Some((_, Some(text))) => {
                Text::Given { place: format!("{map}, key {}", document.key()), bytes: text.clone().into_bytes() }
            }
            Some((_, None)) if has_any => Text::BuiltIn,
            Some((data, None)) => {
                let keys: Vec<&str> = data.keys().map(String::as_str).collect();
                let keys = if keys.is_empty() { "none".to_owned() } else { keys.join(", ") };
                Text::Missing(format!("{map} has no key {:?}; it has {keys}", document.key()))
            }
        };
        maker.text(*document, text);
    }
    Vec::new()
}

/// Joins the resources; of one that is refused, the last good version counts.
fn hand_on_resources() -> impl FnMut(&Cache<KeptResource>, &mut Maker) -> Vec<Told> + Send {
    let mut good: HashMap<String, ProxyConfigResources> = HashMap::new();
    let mut refused: HashMap<String, String> = HashMap::new();
    move |cache, maker| {
        let found = cache.all();
        let mut told = Vec::new();
        let is_there = |uid: &String| found.iter().any(|kept| kept.uid == *uid);
        good.retain(|uid, _| is_there(uid));
        refused.retain(|uid, _| is_there(uid));
        for kept in &found {
            match &kept.read {
                Ok(read) => {
                    good.insert(kept.uid.clone(), read.clone());
                    refused.remove(&kept.uid);
                }
                Err(reason) if refused.insert(kept.uid.clone(), reason.clone()).as_ref() != Some(reason) => {
                    warn!(namespace = kept.namespace, name = kept.name, reason, "a ProxyConfig is refused");
                    told.push(Told {
                        about: ObjectReference {
                            api_version: Some(format!("{GROUP}/{VERSION}")),
                            kind: Some("ProxyConfig".to_owned()),
                            namespace: Some(kept.namespace.clone()),
                            name: Some(kept.name.clone()),
                            uid: Some(kept.uid.clone()),
                            ..ObjectReference::default()
                        },
                        warning: true,
                        reason: "ProxyConfigRefused",
                        note: format!("not used for injection: {reason}"),
                    });
                }
                Err(_) => {}
            }
        }
        maker.live().proxy_configs = Some(ProxyConfigResources::join(good.values()));
        told
    }
}

async fn follow_all(mut all: Vec<Followed>, maps: Vec<(MapName, Cache<KeptMap>)>, maker: Shared, context: Context) {
    let mut was_refused = false;
    loop {
        let changed = select_all(all.iter_mut().map(|followed| Box::pin(followed.changes.changed())));
        // Its own change is seen by then, those of the others are not.
        let first = tokio::select! {
            (_, first, _) = changed => Some(first),
            () = sleep(LOOK) => None,
            () = context.stop.requested() => return,
        };
        if first.is_some() {
            sleep(DEBOUNCE).await;
        }
        for (index, followed) in all.iter_mut().enumerate() {
            let again = followed.changes.has_changed().unwrap_or(false);
            if again || first == Some(index) {
                followed.changes.borrow_and_update();
                let told = (followed.hand_on)(&mut maker.lock());
                if followed.source != Source::Settings {
                    context.metrics.reloaded(followed.source, told.is_empty());
                }
                for told in told {
                    context.events.tell(told);
                }
            }
            followed.show();
        }
        // Templates may take their time to be read; no request has to wait for that.
        let shared = maker.clone();
        match tokio::task::spawn_blocking(move || shared.lock().make()).await {
            Ok(made) => {
                tell_about_maps(&made, &maps, &mut was_refused, &context);
                tell(&context.metrics, &context.health, &made, SystemTime::now());
            }
            Err(reason) => error!(%reason, "settings could not be made, which is a defect; the last ones stay in use"),
        }
    }
}

/// Events about the ConfigMaps: refused, and taken again after that.
fn tell_about_maps(made: &Made, maps: &[(MapName, Cache<KeptMap>)], was_refused: &mut bool, context: &Context) {
    let (warning, reason, note) = match made {
        Made::Refused(reason) => (true, "ConfigurationRefused", format!("the last good one stays in use: {reason}")),
        Made::Waiting(reason) => (true, "ConfigurationRefused", format!("nothing is injected: {reason}")),
        Made::InUse(_) if *was_refused => (false, "ConfigurationTaken", "it is in use now".to_owned()),
        Made::InUse(_) | Made::Updated | Made::Same => return,
    };
    *was_refused = warning;
    for (map, cache) in maps {
        for found in cache.all() {
            let about = ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("ConfigMap".to_owned()),
                namespace: Some(map.namespace.clone()),
                name: Some(map.name.clone()),
                uid: Some(found.uid.clone()),
                ..ObjectReference::default()
            };
            context.events.tell(Told { about, warning, reason, note: note.clone() });
        }
    }
}
