//! Loads the settings documents that a Deployment names, as the webhook does.

use serde_json::Value;
use weir_injector::settings::{Documents, NativeSidecars, Platform, ProxyConfigResources, Settings};
use weir_injector::yaml;

use crate::fault::{self, Fault};
use crate::finding::FindingObject;
use crate::flags::Flags;
use crate::snapshot::Snapshot;
use crate::snapshot::own::Controller;

/// Something wrong with the settings documents of a revision.
#[derive(Debug, Clone)]
pub(super) struct SettingsProblem {
    pub(super) fault: &'static Fault,
    pub(super) object: FindingObject,
    pub(super) text: String,
}

/// Place of a settings document according to the flags.
enum DocumentSource {
    /// No flag names one.
    BuiltIn,
    /// In a file of the image, or of a volume that is no ConfigMap.
    Unreadable,
    ConfigMap(DocumentLocation),
}

struct DocumentLocation {
    namespace: String,
    config_map: String,
    key: String,
}

/// A settings document, if it was found.
enum DocumentLookup {
    /// The built-in one is used.
    Unset,
    Found(FindingObject, Value),
    /// It cannot be read from here.
    Unknown,
    Invalid(SettingsProblem),
}

/// Loads the settings of a revision. They are `None` unless all documents are known and valid.
pub(super) fn load(
    snapshot: &Snapshot,
    deployment: &Controller,
    flags: &Flags,
    revision: &str,
) -> (Option<Settings>, Vec<SettingsProblem>) {
    let mut problems = Vec::new();
    let mut is_unknown = false;
    let mut objects = Vec::new();
    let documents = ["values", "mesh", "config"].map(|document| match look_up(snapshot, deployment, flags, document) {
        DocumentLookup::Unset => None,
        DocumentLookup::Found(object, value) => {
            objects.push((document, object));
            Some(value)
        }
        DocumentLookup::Unknown => {
            is_unknown = true;
            None
        }
        DocumentLookup::Invalid(problem) => {
            problems.push(problem);
            None
        }
    });
    let [values, mesh, config] = &documents;
    let documents = Documents { values: values.as_ref(), mesh: mesh.as_ref(), config: config.as_ref() };
    let settings = match Settings::from_documents(documents) {
        Ok(settings) => Some(settings),
        Err(errors) => {
            for (document, object) in objects {
                let texts = errors.iter().filter(|error| error.document == document).map(ToString::to_string);
                let texts: Vec<String> = texts.collect();
                if !texts.is_empty() {
                    let text = format!("rejected: {}", texts.join("; "));
                    problems.push(SettingsProblem { fault: &fault::SETTINGS_REFUSED, object, text });
                }
            }
            None
        }
    };
    let settings = settings.filter(|_| !is_unknown && problems.is_empty());
    (settings.map(|settings| complete(settings, snapshot, flags, revision)), problems)
}

/// Adds what the webhook takes from its flags and from the cluster.
fn complete(mut settings: Settings, snapshot: &Snapshot, flags: &Flags, revision: &str) -> Settings {
    settings.revision = if revision == "default" { String::new() } else { revision.to_owned() };
    settings.native_sidecars = match flags.get("native-sidecars") {
        Some("false") => NativeSidecars::Off,
        Some("true") => NativeSidecars::On,
        _ if flags.contains("watch", "nodes") => NativeSidecars::ByNodes,
        _ => NativeSidecars::On,
    };
    if flags.get("platform").is_some_and(|platform| platform.eq_ignore_ascii_case("openshift")) {
        settings.platform = Platform::OpenShift;
    }
    let nodes = snapshot.nodes.iter().flatten();
    settings.nodes =
        nodes.map(|node| (node.metadata.name.as_str(), node.status.node_info.kubelet_version.as_str())).collect();
    if flags.contains("watch", "proxyconfigs")
        && let Some(resources) = &snapshot.proxy_configs
    {
        settings.proxy_configs = ProxyConfigResources::from_objects(resources).unwrap_or_default();
    }
    settings
}

fn look_up(snapshot: &Snapshot, deployment: &Controller, flags: &Flags, document: &str) -> DocumentLookup {
    let DocumentLocation { namespace, config_map, key } = match source(deployment, flags, document) {
        DocumentSource::BuiltIn => return DocumentLookup::Unset,
        DocumentSource::Unreadable => return DocumentLookup::Unknown,
        DocumentSource::ConfigMap(location) => location,
    };
    let Some(maps) = &snapshot.config_maps else { return DocumentLookup::Unknown };
    let object = FindingObject::new("ConfigMap", &namespace, &config_map);
    let invalid = |fault, text| DocumentLookup::Invalid(SettingsProblem { fault, object: object.clone(), text });
    let Some(map) = maps.iter().find(|map| map.metadata.namespace == namespace && map.metadata.name == config_map)
    else {
        let text = format!("does not exist or has no settings; weir-webhook reads `{document}` from it");
        return invalid(&fault::CONFIG_MAP_MISSING, text);
    };
    let Some(text) = map.data.get(&key) else {
        // `config` is optional when it is requested together with the values.
        if document == "config" {
            return DocumentLookup::Unset;
        }
        let text = format!("has no key {key:?}, from which weir-webhook reads `{document}`");
        return invalid(&fault::CONFIG_MAP_MISSING, text);
    };
    match yaml::from_str(text) {
        Ok(value) => DocumentLookup::Found(object, value),
        Err(error) => invalid(&fault::SETTINGS_REFUSED, format!("key {key}: {error}")),
    }
}

fn source(deployment: &Controller, flags: &Flags, document: &str) -> DocumentSource {
    if let Some(path) = flags.get(document) {
        return mounted(deployment, path).map_or(DocumentSource::Unreadable, DocumentSource::ConfigMap);
    }
    let flag = if document == "mesh" { "mesh-config-map" } else { "injector-config-map" };
    let Some(config_map) = flags.get(flag).map(str::to_owned) else { return DocumentSource::BuiltIn };
    let namespace = flags.get("istio-namespace").unwrap_or(&deployment.metadata.namespace).to_owned();
    DocumentSource::ConfigMap(DocumentLocation { namespace, config_map, key: document.to_owned() })
}

/// Returns the ConfigMap and key that are mounted as a file of the container.
fn mounted(deployment: &Controller, path: &str) -> Option<DocumentLocation> {
    let pod = &deployment.spec.template.spec;
    let mounts = pod.containers.iter().flat_map(|container| &container.volume_mounts);
    let (mount, file) = mounts.into_iter().find_map(|mount| {
        let file = path.strip_prefix(mount.mount_path.trim_end_matches('/'))?.strip_prefix('/')?;
        Some((mount, file))
    })?;
    let volume = pod.volumes.iter().find(|volume| volume.name == mount.name)?.config_map.as_ref()?;
    let item = volume.items.iter().find(|item| item.path == file);
    let key = item.map_or(file, |item| item.key.as_str()).to_owned();
    let namespace = deployment.metadata.namespace.clone();
    Some(DocumentLocation { namespace, config_map: volume.name.clone(), key })
}
