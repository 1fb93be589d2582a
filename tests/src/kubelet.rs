//! Pods of the project's manifests, translated to calls of the runtime as a kubelet would do it.
//!
//! An unsupported field of a container is an error, so that no test runs less than a cluster would.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use crate::cri::{Container, LinuxSandboxSecurityContext, Mount, NamespaceOption, PodSandboxConfig, Security};
use crate::cri_runtime::CriRuntime;

/// Fields of a container that do not concern the runtime.
const IGNORED_FIELDS: [&str; 5] = ["ports", "readinessProbe", "livenessProbe", "resources", "terminationMessagePolicy"];

/// Renders an overlay of `manifests/` with `kubectl kustomize`.
///
/// # Errors
/// When kubectl is missing or fails.
pub fn render(overlay: &str) -> anyhow::Result<Vec<Value>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests").join(overlay);
    let output = Command::new("kubectl").arg("kustomize").arg(&dir).output().context("kubectl")?;
    ensure!(output.status.success(), "kubectl kustomize: {}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_saphyr::from_multiple(std::str::from_utf8(&output.stdout)?)?)
}

/// Translates the pods of DaemonSets for a node.
#[derive(Debug)]
pub struct Kubelet<'a> {
    /// The node.
    pub runtime: &'a CriRuntime,
    /// Host paths of the manifests and their places on this node; the longest prefix wins. Other host paths except `/proc` are errors.
    pub host: Vec<(PathBuf, PathBuf)>,
    /// Environment that is added to every container.
    pub env: Vec<(String, String)>,
}

impl Kubelet<'_> {
    /// Returns the sandbox and the containers (`initContainers` first) of a DaemonSet among rendered objects, on a node `node-1`.
    ///
    /// # Errors
    /// When there is no such DaemonSet, or it has an unsupported field.
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
        let mut translated = Container { host_network: spec["hostNetwork"] == true, ..Container::default() };
        translated.security.seccomp_default = spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault";
        translated.env.clone_from(&self.env);
        for (field, value) in container.as_object().context("no object")? {
            match field.as_str() {
                "name" => translated.name = value.as_str().context("name")?,
                "image" => translated.image = value.as_str().context("image")?,
                "args" => translated.args = strings(value),
                "envFrom" => translated.env.extend(env_from(objects, value)?),
                "env" => translated.env.extend(env(value)?),
                "securityContext" => security(value, &mut translated)?,
                "volumeMounts" => translated.mounts = self.mounts(spec, value)?,
                known if IGNORED_FIELDS.contains(&known) => {}
                other => bail!("unsupported field {other}"),
            }
        }
        Ok(translated)
    }

    fn mounts(&self, spec: &Value, mounts: &Value) -> anyhow::Result<Vec<Mount>> {
        let volumes = spec["volumes"].as_array().context("volumes")?;
        let mount = |mount: &Value| {
            let volume = volumes.iter().find(|volume| volume["name"] == mount["name"]).context("no such volume")?;
            let path = Path::new(volume["hostPath"]["path"].as_str().context("unsupported volume: not hostPath")?);
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
            .with_context(|| format!("unknown host path {}", path.display()))?;
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
            (_, Some("status.hostIP")) => "127.0.0.1",
            _ => bail!("unsupported source of variable {}", entry["name"]),
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
    ensure!(context["privileged"] != true, "unsupported field privileged");
    container.uid = context["runAsUser"].as_i64().context("runAsUser")?;
    let Security { add, drop, read_only_root, no_new_privileges, .. } = &mut container.security;
    *add = strings(&context["capabilities"]["add"]);
    *drop = strings(&context["capabilities"]["drop"]);
    *read_only_root = context["readOnlyRootFilesystem"] == true;
    *no_new_privileges = context["allowPrivilegeEscalation"] == false;
    Ok(())
}
