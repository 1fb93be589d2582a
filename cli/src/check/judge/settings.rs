//! The documents that an installation is configured with, found as its Deployment names them, and read as the webhook reads them.

use serde_json::Value;
use weir_injector::settings::{Documents, NativeSidecars, Platform, ProxyConfigResources, Settings};
use weir_injector::yaml;

use super::flags::Flags;
use super::view::View;
use crate::check::fault::{self, Fault};
use crate::check::finding::{Findings, Object};
use crate::check::snapshot::Snapshot;

/// Something wrong with the settings of an installation.
#[derive(Debug, Clone)]
pub(super) struct Trouble {
    fault: &'static Fault,
    object: Object,
    text: String,
    fix: Option<String>,
}

/// Where a document is.
struct Place {
    namespace: String,
    map: String,
    key: String,
}

/// A document that is named, as far as it was found.
enum Found {
    /// Nobody names it.
    Unnamed,
    /// It is there.
    Document(Object, Value),
    /// Whether it is there is not known.
    Unknown,
    /// It is not there, or is no YAML.
    Bad(Trouble),
}

pub(super) fn judge(view: &View<'_>, findings: &mut Findings) {
    for trouble in view.installations.iter().flat_map(|installed| &installed.troubles) {
        let fix = trouble.fix.as_deref().unwrap_or(trouble.fault.action);
        findings.fixed(trouble.fault, trouble.object.clone(), &trouble.text, fix);
    }
}

/// The settings of an installation, where all documents are known and good; and what is wrong with them.
pub(super) fn of(
    snapshot: &Snapshot,
    deployment: &Value,
    flags: &Flags,
    revision: &str,
) -> (Option<Settings>, Vec<Trouble>) {
    let mut troubles = Vec::new();
    let mut unknown = false;
    let mut objects = Vec::new();
    let documents = ["values", "mesh", "config"].map(|document| match found(snapshot, deployment, flags, document) {
        Found::Unnamed => None,
        Found::Document(object, value) => {
            objects.push((document, object));
            Some(value)
        }
        Found::Unknown => {
            unknown = true;
            None
        }
        Found::Bad(trouble) => {
            troubles.push(trouble);
            None
        }
    });
    let [values, mesh, config] = &documents;
    let documents = Documents { values: values.as_ref(), mesh: mesh.as_ref(), config: config.as_ref() };
    let settings = match Settings::from_all(documents) {
        Ok(settings) => Some(settings),
        Err(errors) => {
            for (document, object) in objects {
                let mut texts =
                    errors.iter().filter(|error| error.document == document).map(ToString::to_string).peekable();
                if texts.peek().is_some() {
                    let text = format!("refused: {}", texts.collect::<Vec<_>>().join("; "));
                    troubles.push(Trouble { fault: &fault::SETTINGS_REFUSED, object, text, fix: None });
                }
            }
            None
        }
    };
    let known = !unknown && troubles.is_empty();
    (settings.filter(|_| known).map(|settings| completed(settings, snapshot, flags, revision)), troubles)
}

/// What is not in the documents.
fn completed(mut settings: Settings, snapshot: &Snapshot, flags: &Flags, revision: &str) -> Settings {
    settings.revision = if revision == "default" { String::new() } else { revision.to_owned() };
    settings.native_sidecars = match flags.get("native-sidecars") {
        Some("false") => NativeSidecars::Off,
        Some("true") => NativeSidecars::On,
        _ if flags.lists("watch", "nodes") => NativeSidecars::ByNodes,
        _ => NativeSidecars::On,
    };
    if flags.get("platform").is_some_and(|platform| platform.eq_ignore_ascii_case("openshift")) {
        settings.platform = Platform::OpenShift;
    }
    let nodes = snapshot.nodes.iter().flatten().filter_map(|node| {
        Some((node["metadata"]["name"].as_str()?, node["status"]["nodeInfo"]["kubeletVersion"].as_str()?))
    });
    settings.nodes = nodes.collect();
    if flags.lists("watch", "proxyconfigs")
        && let Some(resources) = &snapshot.proxy_configs
    {
        settings.proxy_configs = ProxyConfigResources::from_objects(resources).unwrap_or_default();
    }
    settings
}

fn found(snapshot: &Snapshot, deployment: &Value, flags: &Flags, document: &str) -> Found {
    let place = match place(deployment, flags, document) {
        Named::Nowhere => return Found::Unnamed,
        Named::OutOfSight => return Found::Unknown,
        Named::There(place) => place,
    };
    let Some(maps) = &snapshot.config_maps else { return Found::Unknown };
    let object = Object::new("ConfigMap", &place.namespace, &place.map);
    let missing = |text: String| {
        Found::Bad(Trouble { fault: &fault::CONFIG_MAP_MISSING, object: object.clone(), text, fix: None })
    };
    let is_it = |map: &&Value| {
        map["metadata"]["namespace"] == place.namespace.as_str() && map["metadata"]["name"] == place.map.as_str()
    };
    let Some(map) = maps.iter().find(is_it) else {
        return missing(format!("it is not there, or holds no configuration; weir-webhook takes `{document}` from it"));
    };
    let Some(text) = map["data"][&place.key].as_str() else {
        // The document `config` may be missing where it is asked for together with the values.
        return if document == "config" {
            Found::Unnamed
        } else {
            missing(format!("it has no key {:?}, from which weir-webhook takes `{document}`", place.key))
        };
    };
    match yaml::from_str(text) {
        Ok(value) => Found::Document(object, value),
        Err(error) => Found::Bad(Trouble {
            fault: &fault::SETTINGS_REFUSED,
            object,
            text: format!("key {}: {error}", place.key),
            fix: None,
        }),
    }
}

/// Where the flags of a Deployment say a document is.
enum Named {
    /// It is built in.
    Nowhere,
    /// In a file of the image, or of a volume that is no ConfigMap.
    OutOfSight,
    /// In a ConfigMap.
    There(Place),
}

fn place(deployment: &Value, flags: &Flags, document: &str) -> Named {
    if let Some(path) = flags.get(document) {
        return mounted(deployment, path).map_or(Named::OutOfSight, Named::There);
    }
    let flag = if document == "mesh" { "mesh-config-map" } else { "injector-config-map" };
    let Some(map) = flags.get(flag).map(str::to_owned) else { return Named::Nowhere };
    let own = deployment["metadata"]["namespace"].as_str().unwrap_or_default();
    let namespace = flags.get("istio-namespace").unwrap_or(own).to_owned();
    Named::There(Place { namespace, map, key: document.to_owned() })
}

/// The ConfigMap and its key behind a file of the container.
fn mounted(deployment: &Value, path: &str) -> Option<Place> {
    let pod = &deployment["spec"]["template"]["spec"];
    let list = |value: &'_ Value| value.as_array().cloned().unwrap_or_default();
    let mounts =
        list(&pod["containers"]).iter().flat_map(|container| list(&container["volumeMounts"])).collect::<Vec<_>>();
    let below = |mount: &Value| {
        let folder = mount["mountPath"].as_str()?.trim_end_matches('/').to_owned();
        path.strip_prefix(&folder)?.strip_prefix('/').map(str::to_owned)
    };
    let (mount, file) = mounts.iter().find_map(|mount| Some((mount, below(mount)?)))?;
    let volume = list(&pod["volumes"]).into_iter().find(|volume| volume["name"] == mount["name"])?;
    let map = volume["configMap"]["name"].as_str()?.to_owned();
    let items = list(&volume["configMap"]["items"]);
    let item = items.iter().find(|item| item["path"] == file.as_str());
    let key = item.and_then(|item| item["key"].as_str()).map_or(file, str::to_owned);
    let namespace = deployment["metadata"]["namespace"].as_str().unwrap_or_default().to_owned();
    Some(Place { namespace, map, key })
}
