//! Derives the settings of the nodes from the agent that runs there, whichever tool installed it.

use serde_json::{Value, json};

use crate::chart::{Release, defaults};
use crate::cluster::Cluster;
use crate::failure::Failure;
use crate::objects::{CONFIG_MAP, ObjectRef};

/// The agent's DaemonSet.
pub(crate) const AGENT: &str = "weir-agent";
/// The DaemonSet that removes the plugin.
pub(crate) const UNINSTALLER: &str = "weir-uninstall";
/// The ConfigMap of both.
pub(crate) const CONFIG_MAP_NAME: &str = "weir-node";
/// The platform that is added to the chart's table.
const DETECTED_PLATFORM: &str = "detected";

/// Returns a release with the agent's image and the directories of its nodes.
///
/// # Errors
/// The cluster rejects a request, or the DaemonSet was not installed by weir.
pub(crate) async fn release_for_agent(cluster: &Cluster, agent: &Value) -> Result<Release, Failure> {
    let namespace = agent["metadata"]["namespace"].as_str().unwrap_or_default();
    let map = agent.pointer("/spec/template/spec/containers/0/envFrom/0/configMapRef/name").and_then(Value::as_str);
    let map = ObjectRef::new(CONFIG_MAP, namespace, map.unwrap_or_default());
    let found = cluster.object(&map).await?;
    let settings = found
        .ok_or_else(|| Failure::findings(vec![format!("{map} not found; it names the directories of the nodes")]))?;
    read(agent, &settings["data"])
}

fn read(agent: &Value, environment: &Value) -> Result<Release, Failure> {
    let pod = &agent["spec"]["template"]["spec"];
    let volume = |name: &str| {
        let volumes = pod["volumes"].as_array().into_iter().flatten();
        volumes.filter(|volume| volume["name"] == name).find_map(|volume| volume["hostPath"].as_object())
    };
    let path = |name: &str| volume(name).and_then(|host| host["path"].as_str()).unwrap_or_default();
    let lacks = |what: &str| {
        Failure::findings(vec![format!("daemonset.apps/{AGENT} has no {what}; it was not installed by weir")])
    };
    let (net, bin) = (path("cni-net-dir"), volume("cni-bin-dir").ok_or_else(|| lacks("plugin directory"))?);
    let image = pod.pointer("/containers/0/image").and_then(Value::as_str).ok_or_else(|| lacks("image"))?;
    let mut values = defaults()?;
    values["platform"] = DETECTED_PLATFORM.into();
    values["images"]["agent"] = image.into();
    values["platforms"][DETECTED_PLATFORM] = json!({
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
    Release::new(weir_injector::selection::configurations::WEBHOOK_NAMESPACE.to_owned(), values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chart::ChartArgs;

    #[test]
    fn uninstaller_is_derived_from_the_installed_agent() {
        for platform in defaults().unwrap()["platforms"].as_object().unwrap().keys() {
            let setting = format!("platform={platform},images.agent=r.example/agent:9");
            let installed = ChartArgs::of(&[&setting]).release().unwrap().objects().unwrap();
            let of = |objects: &[Value], kind: &str, name: &str| {
                objects
                    .iter()
                    .find(|object| object["kind"] == kind && object["metadata"]["name"] == name)
                    .unwrap()
                    .clone()
            };
            let agent = of(&installed, "DaemonSet", AGENT);
            let environment = of(&installed, "ConfigMap", CONFIG_MAP_NAME);
            let uninstall = |release: Release| -> Vec<Value> {
                let objects = release
                    .with_value("/webhook/enabled", false)
                    .with_value("/node/uninstall", true)
                    .objects()
                    .unwrap();
                let on_nodes = |object: &Value| object["kind"] == "DaemonSet" || object["kind"] == "ConfigMap";
                objects.into_iter().filter(on_nodes).collect()
            };
            let wanted = uninstall(ChartArgs::of(&[&setting]).release().unwrap());
            assert_eq!(uninstall(read(&agent, &environment["data"]).unwrap()), wanted, "{platform}");
        }
    }
}
