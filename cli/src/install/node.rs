//! What the agent that runs on the nodes says about them: how it was installed, whoever installed it.

use serde_json::{Value, json};

use crate::chart::{Release, defaults};
use crate::cluster::Cluster;
use crate::failure::Failure;
use crate::objects::{CONFIG_MAP, Ref};

/// The agent's DaemonSet.
pub(super) const AGENT: &str = "weir-agent";
/// The DaemonSet that takes the plugin off again.
pub(super) const CLEANER: &str = "weir-uninstall";
/// The ConfigMap of both.
pub(super) const SETTINGS: &str = "weir-node";
/// The row of the table of platforms that is made of it.
const FOUND: &str = "found";

/// Settings for the nodes that an agent runs on: its image, and where the folders are.
///
/// # Errors
/// The cluster refuses; the DaemonSet is none that Weir made.
pub(super) async fn settings_of(cluster: &Cluster, agent: &Value) -> Result<Release, Failure> {
    let namespace = agent["metadata"]["namespace"].as_str().unwrap_or_default();
    let map = agent.pointer("/spec/template/spec/containers/0/envFrom/0/configMapRef/name").and_then(Value::as_str);
    let map = Ref::new(CONFIG_MAP, namespace, map.unwrap_or_default());
    let found = cluster.object(&map).await.map_err(|refused| cluster.failure(&map, &refused))?;
    let settings = found.ok_or_else(|| {
        Failure::refused(vec![format!("{map} is not there, which says where nodes have their folders")])
    })?;
    read(agent, &settings["data"])
}

fn read(agent: &Value, environment: &Value) -> Result<Release, Failure> {
    let pod = &agent["spec"]["template"]["spec"];
    let volume = |name: &str| {
        let volumes = pod["volumes"].as_array().into_iter().flatten();
        volumes.filter(|volume| volume["name"] == name).find_map(|volume| volume["hostPath"].as_object())
    };
    let path = |name: &str| volume(name).and_then(|host| host["path"].as_str()).unwrap_or_default();
    let refuse =
        |what: &str| Failure::refused(vec![format!("daemonset.apps/{AGENT} has no {what}: weir did not make it")]);
    let (net, bin) = (path("cni-net-dir"), volume("cni-bin-dir").ok_or_else(|| refuse("folder of plugins"))?);
    let image = pod.pointer("/containers/0/image").and_then(Value::as_str).ok_or_else(|| refuse("image"))?;
    let mut values = defaults()?;
    values["platform"] = FOUND.into();
    values["images"]["agent"] = image.into();
    values["platforms"][FOUND] = json!({
        "name": environment["WEIR_PLATFORM"].as_str().unwrap_or_default(),
        "netDir": net,
        "binDir": bin["path"],
        "binDirType": bin.get("type").unwrap_or(&Value::Null),
        "runtimeConfigDir": path("runtime-config"),
        "seLinuxType": pod.pointer("/securityContext/seLinuxOptions/type").and_then(Value::as_str).unwrap_or_default(),
        "multus": environment["CHAINED_CNI_PLUGIN"] == "false",
    });
    if let Some(secrets) = pod.get("imagePullSecrets") {
        values["images"]["pullSecrets"] = secrets.clone();
    }
    Release::new(weir_injector::inject::selection::objects::NAMESPACE.to_owned(), values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chart::SettingsArgs;

    /// Whatever the platform, the agent that runs on it says enough to take the plugin off again.
    #[test]
    fn what_takes_the_plugin_off_is_made_of_the_agent_that_installed_it() {
        for platform in defaults().unwrap()["platforms"].as_object().unwrap().keys() {
            let setting = format!("platform={platform},images.agent=r.example/agent:9");
            let installed = SettingsArgs::of(&[&setting]).release().unwrap().objects().unwrap();
            let of = |objects: &[Value], kind: &str, name: &str| {
                objects
                    .iter()
                    .find(|object| object["kind"] == kind && object["metadata"]["name"] == name)
                    .unwrap()
                    .clone()
            };
            let agent = of(&installed, "DaemonSet", AGENT);
            let environment = of(&installed, "ConfigMap", SETTINGS);
            let uninstall = |release: Release| -> Vec<Value> {
                let objects = release.with("/webhook/enabled", false).with("/node/uninstall", true).objects().unwrap();
                let on_nodes = |object: &Value| object["kind"] == "DaemonSet" || object["kind"] == "ConfigMap";
                objects.into_iter().filter(on_nodes).collect()
            };
            let wanted = uninstall(SettingsArgs::of(&[&setting]).release().unwrap());
            assert_eq!(uninstall(read(&agent, &environment["data"]).unwrap()), wanted, "{platform}");
        }
    }
}
