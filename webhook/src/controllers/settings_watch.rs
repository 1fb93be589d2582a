//! Watches what injector settings are built from: ConfigMaps, `ProxyConfig` resources, nodes and namespaces.
//!
//! ```text
//! Reflector ──transform──▶ Cache ──notifies──▶ one task: debounces, applies changes ──▶ SettingsBuilder ──▶ settings in use
//! ```
//!
//! Objects are reduced to what settings are built from, so that a heartbeat of a node wakes nobody. While the API server is away, the
//! cached state is used.

mod objects;

use std::collections::HashMap;
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
use weir_injector::settings::{Namespaces, Nodes, ProxyConfigResources};
use weir_runtime::events::EventRecord;
use weir_runtime::health::{Condition, ReadinessImpact};
use weir_runtime::tasks::Tasks;
use weir_runtime::{Cache, ObjectLimits, Reflector, SkippedObject};

use self::objects::{ConfigMapData, NodeObject, NodeVersion, ParsedProxyConfig, namespace_facts};
use super::ControllerContext;
use crate::metrics::ReloadSource;
use crate::settings_builder::{
    DocumentState, SettingsBuilder, SettingsDocument, SettingsUpdate, SharedSettingsBuilder,
};
use crate::settings_report::report_settings_update;

/// Applying a manifest changes several objects at once.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// The same until there are settings, for which pods wait.
const STARTUP_DEBOUNCE: Duration = Duration::from_millis(5);
/// Interval at which conditions are updated while nothing changes.
const STATUS_INTERVAL: Duration = Duration::from_secs(5);
/// Group and version of `ProxyConfig` resources.
const GROUP: &str = "networking.istio.io";
const VERSION: &str = "v1beta1";
/// Tenants write `ProxyConfig` resources, and they are kept whole, several times: real ones have less than 2 KiB.
const PROXY_CONFIG_LIMITS: ObjectLimits = ObjectLimits { object_bytes: 64 << 10, namespace_bytes: 256 << 10 };
/// Skipped objects that a condition names.
const SKIPPED_SHOWN: usize = 5;
/// Silence of the API server that is reported; bookmarks come about every minute.
const SILENCE_THRESHOLD: Duration = Duration::from_mins(5);

/// Objects that are watched, and the builder that gets them.
#[derive(Debug, Clone)]
pub struct WatchConfig {
    /// Builds settings.
    pub builder: SharedSettingsBuilder,
    /// ConfigMaps with documents.
    pub config_maps: Vec<ConfigMapRef>,
    /// Whether to watch `ProxyConfig` resources.
    pub proxy_configs: bool,
    /// Whether to watch nodes.
    pub nodes: bool,
    /// Whether to watch namespaces.
    pub namespaces: bool,
}

/// A ConfigMap that holds documents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigMapRef {
    /// Namespace of the ConfigMap.
    pub namespace: String,
    /// Name of the ConfigMap.
    pub name: String,
    /// Documents that it may hold; one is enough.
    pub documents: Vec<SettingsDocument>,
}

impl ConfigMapRef {
    /// Returns the state of its documents before the first list.
    pub fn pending_state(&self) -> DocumentState {
        DocumentState::Missing(format!("{self} not read yet"))
    }
}

impl std::fmt::Display for ConfigMapRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ConfigMap {}/{}", self.namespace, self.name)
    }
}

/// Applies the objects of a cache to the builder; returns events to record.
type ApplyFn = Box<dyn FnMut(&mut SettingsBuilder) -> Vec<EventRecord> + Send>;

struct CacheStatus {
    synced: bool,
    age: Option<Duration>,
    last_error: Option<String>,
    skipped: Vec<SkippedObject>,
}

/// A cache, and what is done with its objects.
struct WatchedResource {
    source: ReloadSource,
    changes: watch::Receiver<u64>,
    apply: ApplyFn,
    status: Box<dyn Fn() -> CacheStatus + Send>,
    condition: Condition,
}

/// Starts the watches, and the task that applies their changes.
pub(super) fn spawn(config: WatchConfig, context: &ControllerContext, tasks: &Tasks) {
    let WatchConfig { builder, config_maps, proxy_configs, nodes, namespaces } = config;
    let mut resources = Vec::new();
    let mut map_caches = Vec::new();
    for map in config_maps {
        let cache = Cache::default();
        map_caches.push((map.clone(), cache.clone()));
        let namespace = map.namespace.clone();
        let watch = ResourceWatch {
            source: ReloadSource::Settings,
            name: if map.documents.contains(&SettingsDocument::Mesh) {
                "mesh-config-map"
            } else {
                "injector-config-map"
            },
            api: Box::new(move |client| Api::<ConfigMap>::namespaced(client, &namespace)),
            field_selector: format!("metadata.name={}", map.name),
            limits: ObjectLimits::ETCD,
            transform: ConfigMapData::from,
        };
        let apply = move |cache: &Cache<_>, builder: &mut _| apply_config_map(&map, cache, builder);
        resources.push(watch.spawn(cache, context, tasks, apply));
    }
    if proxy_configs {
        let watch = ResourceWatch {
            source: ReloadSource::ProxyConfigs,
            name: "proxyconfigs",
            api: Box::new(|client| Api::<DynamicObject>::all_with(client, &proxy_config_kind())),
            field_selector: String::new(),
            limits: PROXY_CONFIG_LIMITS,
            transform: ParsedProxyConfig::from,
        };
        resources.push(watch.spawn(Cache::default(), context, tasks, apply_proxy_configs()));
    }
    if nodes {
        let watch = ResourceWatch {
            source: ReloadSource::Nodes,
            name: "nodes",
            api: Box::new(Api::<NodeObject>::all),
            field_selector: String::new(),
            limits: ObjectLimits::ETCD,
            transform: NodeVersion::from,
        };
        resources.push(watch.spawn(Cache::default(), context, tasks, |cache, builder| {
            let nodes = cache.all();
            let versions: Nodes = nodes.iter().map(|node| (node.name.as_str(), &node.kubelet)).collect();
            let nodes = versions.with_pod_cidrs(nodes.iter().map(|node| &node.pod_cidrs));
            builder.cluster_state_mut().nodes = Some(nodes);
            Vec::new()
        }));
    }
    if namespaces {
        let watch = ResourceWatch {
            source: ReloadSource::Namespaces,
            name: "namespaces",
            api: Box::new(Api::<PartialObjectMeta<Namespace>>::all),
            field_selector: String::new(),
            limits: ObjectLimits::ETCD,
            transform: namespace_facts,
        };
        resources.push(watch.spawn(Cache::default(), context, tasks, |cache, builder| {
            let all: Namespaces = cache.all().iter().map(|kept| (kept.0.clone(), kept.1.clone())).collect();
            builder.cluster_state_mut().namespaces = Some(all);
            Vec::new()
        }));
    }
    let (context, shutdown) = (context.clone(), context.shutdown.clone());
    tasks.spawn("settings-watch", async move {
        shutdown.run_until_cancelled(run(resources, map_caches, builder, context)).await;
    });
}

fn proxy_config_kind() -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(GROUP, VERSION, "ProxyConfig"), "proxyconfigs")
}

/// Objects of one kind to watch.
struct ResourceWatch<K, T> {
    source: ReloadSource,
    /// Name of the condition and of the task.
    name: &'static str,
    api: Box<dyn Fn(Client) -> Api<K> + Send + Sync>,
    field_selector: String,
    limits: ObjectLimits,
    transform: fn(K) -> T,
}

impl<K, T> ResourceWatch<K, T>
where
    K: Resource + DeserializeOwned + Send + Sync + 'static,
    T: PartialEq + Send + Sync + 'static,
{
    fn spawn(
        self,
        cache: Cache<T>,
        context: &ControllerContext,
        tasks: &Tasks,
        mut apply: impl FnMut(&Cache<T>, &mut SettingsBuilder) -> Vec<EventRecord> + Send + 'static,
    ) -> WatchedResource {
        let Self { source, name, api, field_selector, limits, transform } = self;
        let reflector = Reflector {
            client_factory: Arc::clone(&context.client_factory),
            kind: name,
            api,
            field_selector,
            label_selector: String::new(),
            limits,
            transform: Box::new(transform),
            cache: cache.clone(),
        };
        tasks.spawn(name, reflector.run(context.shutdown.clone()));
        let conditions = context.health.conditions();
        let status = cache.clone();
        WatchedResource {
            source,
            changes: cache.subscribe(),
            apply: Box::new(move |builder| apply(&cache, builder)),
            status: Box::new(move || CacheStatus {
                synced: status.is_synced(),
                age: status.age(),
                last_error: status.last_error(),
                skipped: status.skipped(),
            }),
            condition: conditions.register(name, ReadinessImpact::Blocking, "CacheNotSynced", "cache not synced yet"),
        }
    }
}

impl WatchedResource {
    fn update_condition(&self) {
        let CacheStatus { synced, age, last_error, skipped } = (self.status)();
        let silence = age.filter(|age| *age > SILENCE_THRESHOLD);
        let error = last_error.or(silence.map(|silence| format!("no event for {} s", silence.as_secs())));
        match (synced, error) {
            (true, None) if !skipped.is_empty() => {
                let shown: Vec<_> = skipped.iter().take(SKIPPED_SHOWN).map(ToString::to_string).collect();
                let more = skipped.len() - shown.len();
                let more = if more == 0 { String::new() } else { format!("; and {more} more") };
                let message =
                    format!("synced; skipped objects (last good versions are used): {}{more}", shown.join("; "));
                self.condition.set_degraded("ObjectsSkipped", message);
            }
            (true, None) => self.condition.set_ok("CacheSynced", "synced"),
            (true, Some(error)) => {
                self.condition.set_ok("CacheStale", format!("using the cached state; API server: {error}"));
            }
            (false, Some(error)) => self.condition.set_failed("CacheNotSynced", error),
            (false, None) => {}
        }
    }
}

/// Submits the documents of a ConfigMap to the builder.
fn apply_config_map(
    map: &ConfigMapRef,
    cache: &Cache<ConfigMapData>,
    builder: &mut SettingsBuilder,
) -> Vec<EventRecord> {
    let found = cache.all();
    let data = found.first().map(|map| &map.data);
    let has_any = data.is_some_and(|data| map.documents.iter().any(|document| data.contains_key(document.key())));
    for document in &map.documents {
        let key = document.key();
        let state = match data.map(|data| (data, data.get(key))) {
            None => DocumentState::Missing(format!("{map} not found; create it, or configure another name")),
            Some((_, Some(text))) => {
                DocumentState::Present { origin: format!("{map}, key {key}"), bytes: text.clone().into_bytes() }
            }
            Some((_, None)) if has_any => DocumentState::BuiltIn,
            Some((data, None)) => {
                let keys: Vec<&str> = data.keys().map(String::as_str).collect();
                let keys = if keys.is_empty() { "none".to_owned() } else { keys.join(", ") };
                DocumentState::Missing(format!("{map} has no key {key:?}; its keys: {keys}"))
            }
        };
        builder.set_document(*document, state);
    }
    Vec::new()
}

/// Merges all `ProxyConfig` resources; of a rejected one, the last good version stays in use.
fn apply_proxy_configs() -> impl FnMut(&Cache<ParsedProxyConfig>, &mut SettingsBuilder) -> Vec<EventRecord> + Send {
    let mut good: HashMap<String, ProxyConfigResources> = HashMap::new();
    let mut rejected: HashMap<String, String> = HashMap::new();
    move |cache, builder| {
        let found = cache.all();
        let mut events = Vec::new();
        let exists = |uid: &String| found.iter().any(|object| object.uid == *uid);
        good.retain(|uid, _| exists(uid));
        rejected.retain(|uid, _| exists(uid));
        for object in &found {
            match &object.parsed {
                Ok(parsed) => {
                    good.insert(object.uid.clone(), parsed.clone());
                    rejected.remove(&object.uid);
                }
                Err(reason) if rejected.insert(object.uid.clone(), reason.clone()).as_ref() != Some(reason) => {
                    let (namespace, name) = (object.namespace.as_str(), object.name.as_str());
                    warn!(namespace, name, error = reason, "rejected ProxyConfig; keeping its last good version");
                    events.push(EventRecord {
                        regarding: object.object_reference(),
                        warning: true,
                        reason: "ProxyConfigRejected",
                        note: format!("not used for injection: {reason}"),
                    });
                }
                Err(_) => {}
            }
        }
        builder.cluster_state_mut().proxy_configs = Some(ProxyConfigResources::merge(good.values()));
        events
    }
}

/// Applies changes of all resources, builds settings, and updates conditions, for ever.
async fn run(
    mut resources: Vec<WatchedResource>,
    maps: Vec<(ConfigMapRef, Cache<ConfigMapData>)>,
    builder: SharedSettingsBuilder,
    context: ControllerContext,
) {
    let (mut was_rejected, mut is_pending) = (false, true);
    loop {
        let changed = select_all(resources.iter_mut().map(|resource| Box::pin(resource.changes.changed())));
        // `changed` has marked the change of the first resource as seen, but not those of the others.
        let first = tokio::select! {
            (_, first, _) = changed => Some(first),
            () = sleep(STATUS_INTERVAL) => None,
        };
        if first.is_some() {
            sleep(if is_pending { STARTUP_DEBOUNCE } else { DEBOUNCE }).await;
        }
        for (index, resource) in resources.iter_mut().enumerate() {
            if first == Some(index) || resource.changes.has_changed().unwrap_or(false) {
                resource.changes.borrow_and_update();
                let events = (resource.apply)(&mut builder.lock());
                if resource.source != ReloadSource::Settings {
                    context.metrics.record_reload(resource.source, events.is_empty());
                }
                for event in events {
                    context.events.record(event);
                }
            }
            resource.update_condition();
        }
        // Parsing templates may take long, which must not delay requests.
        let shared = builder.clone();
        match tokio::task::spawn_blocking(move || shared.lock().build()).await {
            Ok(update) => {
                is_pending = matches!(update, SettingsUpdate::Pending(_));
                record_config_map_events(&update, &maps, &mut was_rejected, &context);
                let now = SystemTime::now();
                report_settings_update(&context.metrics, &context.health, &update, &builder, now);
            }
            Err(error) => error!(%error, "settings build panicked; keeping the last settings"),
        }
    }
}

/// Records that the documents of ConfigMaps were rejected, and that they are in use again after that.
fn record_config_map_events(
    update: &SettingsUpdate,
    maps: &[(ConfigMapRef, Cache<ConfigMapData>)],
    was_rejected: &mut bool,
    context: &ControllerContext,
) {
    let (warning, reason, note) = match update {
        SettingsUpdate::Rejected(reason) => {
            (true, "ConfigurationRejected", format!("keeping the last good configuration: {reason}"))
        }
        SettingsUpdate::Pending(reason) => {
            (true, "ConfigurationRejected", format!("no configuration yet; injection is unavailable: {reason}"))
        }
        SettingsUpdate::Applied(_) if *was_rejected => {
            (false, "ConfigurationApplied", "configuration is valid again and in use".to_owned())
        }
        SettingsUpdate::Applied(_) | SettingsUpdate::ClusterUpdated | SettingsUpdate::Unchanged => return,
    };
    *was_rejected = warning;
    for (map, cache) in maps {
        for found in cache.all() {
            let regarding = ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("ConfigMap".to_owned()),
                namespace: Some(map.namespace.clone()),
                name: Some(map.name.clone()),
                uid: Some(found.uid.clone()),
                ..ObjectReference::default()
            };
            context.events.record(EventRecord { regarding, warning, reason, note: note.clone() });
        }
    }
}
