//! A pod of a manifest, turned into what a kubelet asks of the runtime: of a pod template that `kubectl kustomize` has rendered.
//!
//! Only what the project's own manifests use is known; anything else of a container is refused by name, so that no test runs less than
//! what a cluster would run.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use crate::cri::{Container, LinuxSandboxSecurityContext, Mount, NamespaceOption, PodSandboxConfig, Security};
use crate::runtime::Runtime;

/// Fields of a container that are not the runtime's business.
const NOT_THE_RUNTIMES: [&str; 4] = ["ports", "readinessProbe", "livenessProbe", "resources"];

/// Renders an overlay of `manifests/`, as `kubectl apply -k` would.
///
/// # Errors
/// When there is no kubectl or it refuses.
pub fn render(overlay: &str) -> anyhow::Result<Vec<Value>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests").join(overlay);
    let output = Command::new("kubectl").arg("kustomize").arg(&folder).output().context("kubectl")?;
    ensure!(output.status.success(), "kubectl kustomize: {}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_saphyr::from_multiple(std::str::from_utf8(&output.stdout)?)?)
}

/// Runs the pods of a DaemonSet on a node.
#[derive(Debug)]
pub struct Kubelet<'a> {
    /// The node.
    pub runtime: &'a Runtime,
    /// Folders that the manifests mean and where they are here; the longest that fits counts. What fits none is refused, but `/proc`.
    pub host: Vec<(PathBuf, PathBuf)>,
    /// Environment that every container gets besides its own, as that of the API server's service.
    pub env: Vec<(String, String)>,
}

impl Kubelet<'_> {
    /// The sandbox and the containers (those of `initContainers` first) of the DaemonSet of that name among rendered objects. Values that
    /// come from fields of the pod are those of a node called `node-1`.
    ///
    /// # Errors
    /// When there is none, or something in it is not known here.
    pub fn pod<'t>(
        &self,
        objects: &'t [Value],
        daemon_set: &str,
    ) -> anyhow::Result<(PodSandboxConfig, Vec<Container<'t>>)> {
        let named = |object: &&Value| object["kind"] == "DaemonSet" && object["metadata"]["name"] == daemon_set;
        let spec = &objects.iter().find(named).context("no such DaemonSet")?["spec"]["template"]["spec"];
        let host_network = spec["hostNetwork"] == true;
        let mut sandbox = self.runtime.pod(daemon_set, []);
        if host_network {
            // It has the node's name then.
            sandbox.hostname.clear();
        }
        if let Some(linux) = &mut sandbox.linux {
            linux.security_context =
                Some(LinuxSandboxSecurityContext { namespace_options: Some(NamespaceOption::network(host_network)) });
        }
        let lists = ["initContainers", "containers"].map(|list| spec[list].as_array().into_iter().flatten());
        let containers = lists.into_iter().flatten().map(|container| {
            self.container(objects, spec, container).with_context(|| format!("container {}", container["name"]))
        });
        Ok((sandbox, containers.collect::<Result<_, _>>()?))
    }

    fn container<'t>(&self, objects: &[Value], spec: &Value, container: &'t Value) -> anyhow::Result<Container<'t>> {
        let mut made = Container { host_network: spec["hostNetwork"] == true, ..Container::default() };
        made.security.seccomp_default = spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault";
        made.env.clone_from(&self.env);
        for (field, value) in container.as_object().context("no object")? {
            match field.as_str() {
                "name" => made.name = value.as_str().context("name")?,
                "image" => made.image = value.as_str().context("image")?,
                "args" => made.args = strings(value),
                "envFrom" => made.env.extend(env_from(objects, value)?),
                "env" => made.env.extend(env(value)?),
                "securityContext" => security(value, &mut made)?,
                "volumeMounts" => made.mounts = self.mounts(spec, value)?,
                known if NOT_THE_RUNTIMES.contains(&known) => {}
                other => bail!("field {other} is not known here"),
            }
        }
        Ok(made)
    }

    fn mounts(&self, spec: &Value, mounts: &Value) -> anyhow::Result<Vec<Mount>> {
        let volumes = spec["volumes"].as_array().context("volumes")?;
        let mount = |mount: &Value| {
            let volume = volumes.iter().find(|volume| volume["name"] == mount["name"]).context("no such volume")?;
            let path = Path::new(volume["hostPath"]["path"].as_str().context("only hostPath is known here")?);
            Ok(Mount {
                container_path: mount["mountPath"].as_str().context("mountPath")?.to_owned(),
                host_path: self.host_path(path)?.display().to_string(),
                readonly: mount["readOnly"] == true,
                propagation: i32::from(mount["mountPropagation"] == "HostToContainer"),
            })
        };
        mounts.as_array().into_iter().flatten().map(mount).collect()
    }

    fn host_path(&self, path: &Path) -> anyhow::Result<PathBuf> {
        if path == Path::new("/proc") {
            return Ok(path.to_owned());
        }
        let fits =
            self.host.iter().filter_map(|(theirs, here)| Some((theirs, here.join(path.strip_prefix(theirs).ok()?))));
        let (_, here) = fits
            .max_by_key(|(theirs, _)| theirs.as_os_str().len())
            .with_context(|| format!("{} is no folder of this node", path.display()))?;
        Ok(here)
    }
}

fn strings(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn env(list: &Value) -> anyhow::Result<Vec<(String, String)>> {
    let value = |entry: &Value| {
        let field = entry.pointer("/valueFrom/fieldRef/fieldPath").and_then(Value::as_str);
        Ok(match (entry["value"].as_str(), field) {
            (Some(value), _) => value,
            (_, Some("spec.nodeName")) => "node-1",
            (_, Some("metadata.namespace")) => "weir-node",
            (_, Some("metadata.name")) => "weir-agent-x",
            _ => bail!("variable {} is not known here", entry["name"]),
        }
        .to_owned())
    };
    let entries = list.as_array().into_iter().flatten();
    entries.map(|entry| Ok((entry["name"].as_str().context("name")?.to_owned(), value(entry)?))).collect()
}

fn env_from(objects: &[Value], list: &Value) -> anyhow::Result<Vec<(String, String)>> {
    let mut env = Vec::new();
    for entry in list.as_array().into_iter().flatten() {
        let name = &entry["configMapRef"]["name"];
        let map = objects.iter().find(|object| object["kind"] == "ConfigMap" && object["metadata"]["name"] == *name);
        let data = map.with_context(|| format!("no ConfigMap {name}"))?["data"].as_object();
        env.extend(
            data.into_iter().flatten().map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned())),
        );
    }
    Ok(env)
}

fn security(context: &Value, container: &mut Container<'_>) -> anyhow::Result<()> {
    ensure!(context["privileged"] != true, "privileged is not known here");
    container.uid = context["runAsUser"].as_i64().context("runAsUser")?;
    let Security { add, drop, read_only_root, no_new_privileges, .. } = &mut container.security;
    *add = strings(&context["capabilities"]["add"]);
    *drop = strings(&context["capabilities"]["drop"]);
    *read_only_root = context["readOnlyRootFilesystem"] == true;
    *no_new_privileges = context["allowPrivilegeEscalation"] == false;
    Ok(())
}
