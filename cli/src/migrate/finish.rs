//! `weir migrate finish`: removes Istio's injector and istio-cni, when no pod depends on them.

use clap::Args;
use serde_json::{Map, Value};

use super::current::Origin;
use super::injector::{Injector, Vendor};
use super::inventory::{self, ISTIO_CNI, Objects};
use super::object::{is_live, label, labels, name, namespace};
use super::record::{Phase, Record};
use super::{ScopeArgs, collect};
use crate::cluster::Cluster;
use crate::console::{confirm, print_line};
use crate::failure::Failure;
use crate::manifest::pods;
use crate::objects::{CONFIGURATION, DAEMON_SET, ObjectRef, POD};
use crate::rollout::{self, WaitArgs};

/// Limit of objects that are named.
const MAX_NAMES: usize = 20;

/// Options of `weir migrate finish`.
#[derive(Debug, Args)]
pub(super) struct FinishArgs {
    #[command(flatten)]
    pub(super) scope: ScopeArgs,

    /// Print what would be done
    #[arg(long)]
    dry_run: bool,

    /// Skip the confirmation
    #[arg(short = 'y', long, alias = "skip-confirmation")]
    yes: bool,

    #[command(flatten)]
    pub(super) wait: WaitArgs,
}

/// Removes Istio's injector and istio-cni.
///
/// # Errors
/// Something depends on them, or the cluster rejects a request.
pub(super) async fn finish(cluster: &Cluster, args: &FinishArgs) -> Result<(), Failure> {
    if !args.scope.namespaces.is_empty() {
        return Err(Failure::usage("weir migrate finish is about the whole cluster; leave out --namespace"));
    }
    let objects = collect::objects(cluster, &args.scope.istio_namespace, &[]).await?;
    let removal = Removal::of(&objects);
    if removal.is_empty() {
        return print_line("Istio's injector and istio-cni are not installed");
    }
    let mut dependents = dependents(&objects, &args.scope.revision);
    if !dependents.is_empty() {
        let more = dependents.len().saturating_sub(MAX_NAMES);
        dependents.truncate(MAX_NAMES);
        dependents.extend((more > 0).then(|| format!("and {more} more")));
        let advice = "Istio's injector and istio-cni stay; move the rest with weir migrate run, or recreate the pods";
        return Err(Failure::findings(dependents).and(advice.to_owned()));
    }
    for line in removal.describe(&objects) {
        print_line(&line)?;
    }
    if args.dry_run {
        return print_line("dry run: nothing was changed");
    }
    confirm(&format!("{}: remove them?", cluster.server), args.yes)?;
    cluster.delete_all(removal.injectors.clone()).await?;
    for plugin in &removal.plugins {
        cluster.delete_all([plugin.clone()]).await?;
        // It takes itself out of the nodes' CNI configuration when it ends.
        let pods = format!("{}={}", ISTIO_CNI.0, ISTIO_CNI.1);
        rollout::wait_gone(cluster, POD, &plugin.namespace, &pods, args.wait.required_timeout()).await?;
    }
    for line in &removal.advice {
        print_line(line)?;
    }
    Ok(())
}

/// Objects to remove, and those that stay.
#[derive(Debug, Default)]
struct Removal {
    injectors: Vec<ObjectRef>,
    plugins: Vec<ObjectRef>,
    /// Plugins that stay.
    kept: Vec<String>,
    /// Next steps for a person.
    advice: Vec<String>,
}

impl Removal {
    fn of(objects: &Objects) -> Self {
        let mut removal = Self::default();
        for configuration in &objects.configurations {
            if Injector::of(configuration).is_some_and(|injector| injector.vendor == Vendor::Istio) {
                removal.injectors.push(ObjectRef::new(CONFIGURATION, "", name(configuration)));
            }
        }
        for plugin in inventory::cni_plugins(objects) {
            if plugin.is_ambient {
                removal
                    .kept
                    .push(format!("daemonset {}/{} stays: it serves ambient mode", plugin.namespace, plugin.name));
            } else {
                removal.plugins.push(ObjectRef::new(DAEMON_SET, &plugin.namespace, &plugin.name));
            }
        }
        let is_helm = |object: &&Value| label(object, "app.kubernetes.io/managed-by") == Some("Helm");
        if objects.configurations.iter().filter(is_helm).any(|object| Injector::of(object).is_some()) {
            let text = "set global.operatorManageWebhooks=true in the values of istiod's chart, or its next upgrade creates the injector again";
            removal.advice.push(text.to_owned());
        }
        let is_plugin = |object: &&Value| label(object, ISTIO_CNI.0) == Some(ISTIO_CNI.1);
        if let Some(plugin) =
            objects.controllers.iter().filter(is_plugin).find(is_helm).filter(|_| !removal.plugins.is_empty())
        {
            removal
                .advice
                .push(format!("the rest of istio-cni stays: helm uninstall istio-cni -n {}, or istioctl with components.cni.enabled=false, removes it", namespace(plugin)));
        }
        removal.advice.push(
            "weir tag set default --revision REVISION lets the label istio-injection=enabled mean Weir from now on"
                .to_owned(),
        );
        removal
    }

    fn is_empty(&self) -> bool {
        self.injectors.is_empty() && self.plugins.is_empty()
    }

    fn describe(&self, objects: &Objects) -> Vec<String> {
        let mut lines: Vec<String> =
            self.injectors.iter().chain(&self.plugins).map(|what| format!("remove {what}")).collect();
        lines.extend(self.kept.iter().cloned());
        let crio = inventory::crio_nodes(&objects.nodes);
        if !self.plugins.is_empty() && !crio.is_empty() {
            lines.push(format!(
                "warning: istio-cni removes its binary, without which CRI-O cannot stop pods that were started with it; put \
                 /opt/cni/bin/istio-cni back on these nodes until those pods are gone: {}",
                crio.iter().take(MAX_NAMES).map(String::as_str).collect::<Vec<_>>().join(", ")
            ));
        }
        lines
    }
}

/// Returns everything that still depends on Istio's injector or istio-cni.
fn dependents(objects: &Objects, revision: &str) -> Vec<String> {
    let mut found = Vec::new();
    if !inventory::weir_revisions(&objects.configurations).iter().any(|installed| installed == revision) {
        found.push(format!("revision {revision} of Weir is not installed"));
    }
    let injectors = inventory::injectors(&objects.configurations);
    let selects = |namespace: &Map<String, Value>, pod: &Map<String, Value>| {
        injectors.iter().find(|injector| injector.vendor == Vendor::Istio && injector.selects(namespace, pod))
    };
    for object in &objects.namespaces {
        if let Ok(Some(record)) = Record::of_namespace(object)
            && record.phase != Phase::Moved
        {
            found.push(format!("namespace {}: its migration is not complete ({})", name(object), record.phase.name()));
        } else if let Some(injector) = selects(&labels(object), &Map::new()) {
            found.push(format!("namespace {}: {} selects its pods", name(object), injector.configuration));
        }
    }
    for object in &objects.controllers {
        let of =
            objects.namespaces.iter().find(|found| name(found) == namespace(object)).map(labels).unwrap_or_default();
        let mut object = object.clone();
        let template =
            pods::find(&mut object).ok().and_then(|found| found.first()?.request().ok()).map(|request| request.pod);
        let Some(template) = template else { continue };
        // Those that the namespace selects are reported once.
        if let (Some(injector), None) = (selects(&of, &labels(&template)), selects(&of, &Map::new())) {
            let kind = object["kind"].as_str().unwrap_or_default();
            found.push(format!(
                "{kind} {}/{}: {} selects its pods by their labels",
                namespace(&object),
                name(&object),
                injector.configuration
            ));
        }
    }
    for pod in objects.pods.iter().filter(|pod| is_live(pod)) {
        if let Some(origin @ (Origin::InitContainer | Origin::IstioCni)) = Origin::of(pod) {
            let origin = origin.name();
            found.push(format!(
                "pod {}/{}: Istio's injector has injected it (rules of {origin})",
                namespace(pod),
                name(pod)
            ));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use weir_injector::selection::InjectorRevision;
    use weir_injector::selection::configurations::WebhookOptions;

    use super::*;
    use crate::migrate::tests::objects;

    fn with_weir() -> Objects {
        let mut objects = objects();
        let revision = InjectorRevision { revision: "weir".to_owned(), ..InjectorRevision::default() };
        objects.configurations.extend(revision.webhook_configurations(&WebhookOptions::default()));
        objects
            .controllers
            .push(json!({"kind": "DaemonSet", "metadata": {"name": "istio-cni-node", "namespace": "istio-system",
            "labels": {"k8s-app": "istio-cni-node", "app.kubernetes.io/managed-by": "Helm"}}}));
        objects.nodes.push(
            json!({"metadata": {"name": "n1"}, "status": {"nodeInfo": {"containerRuntimeVersion": "cri-o://1.33"}}}),
        );
        objects
    }

    #[test]
    fn everything_that_depends_on_istio_is_named() {
        let mut objects = with_weir();
        insta::assert_debug_snapshot!(dependents(&objects, "weir"), @r#"
        [
            "namespace shop: istio-sidecar-injector selects its pods",
            "pod shop/web-abc-x: Istio's injector has injected it (rules of istio-cni)",
            "pod shop/old-abc-x: Istio's injector has injected it (rules of istio-init)",
        ]
        "#);
        objects.namespaces[0]["metadata"]["labels"] = json!({"istio.io/rev": "weir"});
        for pod in &mut objects.pods {
            pod["metadata"]["annotations"]["weir.dev/capture"] = "{}".into();
        }
        assert_eq!(dependents(&objects, "weir"), [""; 0]);
        objects.controllers[0]["metadata"]["namespace"] = "other".into();
        objects.controllers[0]["spec"]["template"]["metadata"]["labels"]["sidecar.istio.io/inject"] = "true".into();
        let left = dependents(&objects, "weir");
        assert_eq!(left, ["Deployment other/web: istio-sidecar-injector selects its pods by their labels"]);
        assert_eq!(dependents(&with_weir(), "other")[0], "revision other of Weir is not installed");
    }

    #[test]
    fn plugin_of_ambient_mode_stays() {
        let mut objects = with_weir();
        let removal = Removal::of(&objects);
        insta::assert_snapshot!(removal.describe(&objects).into_iter().chain(removal.advice).collect::<Vec<_>>().join("\n"), @r"
        remove mutatingwebhookconfiguration.admissionregistration.k8s.io/istio-sidecar-injector
        remove daemonset.apps/istio-cni-node
        warning: istio-cni removes its binary, without which CRI-O cannot stop pods that were started with it; put /opt/cni/bin/istio-cni back on these nodes until those pods are gone: n1
        the rest of istio-cni stays: helm uninstall istio-cni -n istio-system, or istioctl with components.cni.enabled=false, removes it
        weir tag set default --revision REVISION lets the label istio-injection=enabled mean Weir from now on
        ");
        objects.namespaces[1]["metadata"]["labels"]["istio.io/dataplane-mode"] = "ambient".into();
        let removal = Removal::of(&objects);
        assert!(removal.plugins.is_empty() && removal.kept[0].contains("ambient"), "{removal:?}");
    }
}
