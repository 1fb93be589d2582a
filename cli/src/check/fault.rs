//! Every fault that `weir check` knows by name. `docs/check.md` is this table (tested).

use serde::Serialize;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Severity {
    /// Worth knowing.
    Info,
    /// It works, and will not for ever or not for everybody.
    Warning,
    /// Pods do not start, or run outside of the mesh.
    Error,
}

impl Severity {
    /// As it is written.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// A kind of fault. Code and name are stable.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// `WEIR301`.
    pub(crate) code: &'static str,
    /// `ca-bundle-empty`.
    pub(crate) name: &'static str,
    /// How bad it is.
    pub(crate) severity: Severity,
    /// What it means, as a sentence.
    pub(crate) means: &'static str,
    /// What to do, where a finding does not say it more closely.
    pub(crate) action: &'static str,
}

macro_rules! faults {
    ($($constant:ident = $code:literal $name:literal $severity:ident: $means:literal, $action:literal;)*) => {
        $(
            #[doc = $means]
            pub(crate) const $constant: Fault =
                Fault { code: $code, name: $name, severity: Severity::$severity, means: $means, action: $action };
        )*
        /// All of them, in the order of their codes.
        pub(crate) const ALL: &[&Fault] = &[$(&$constant),*];
    };
}

faults! {
    NOT_READ = "WEIR101" "not-read" Info:
        "Something could not be read, so what depends on it was not checked.",
        "run the check as somebody with the right to read it";
    KUBERNETES_TOO_OLD = "WEIR102" "kubernetes-too-old" Error:
        "The API server is older than 1.25, the oldest one whose objects the manifests can use.",
        "update the cluster";
    NATIVE_SIDECARS_NOT_RUN = "WEIR103" "native-sidecars-not-run" Error:
        "The sidecar is made an init container that keeps running, and there are nodes older than 1.29, which would wait for its end for ever.",
        "set --native-sidecars=auto or false of weir-webhook, or update the nodes";
    RIGHT_MISSING = "WEIR104" "right-missing" Error:
        "You may not create or change an object that the installation consists of.",
        "ask for the right, or have somebody install who has it";
    SERVICE_ACCOUNT_RIGHT_MISSING = "WEIR105" "service-account-right-missing" Error:
        "The flags of the webhook or the agent ask for what its service account may not do.",
        "apply the Roles of the manifests again";
    CONTROL_PLANE_MISSING = "WEIR106" "control-plane-missing" Warning:
        "No istiod is in the namespace that sidecars are told to connect to: they would not become ready.",
        "install Istio's control plane, or name its namespace with --istioNamespace";
    WEBHOOK_NOT_CALLED = "WEIR107" "webhook-not-called" Error:
        "A pod that an entry selects was created on trial and came back without a sidecar: the API server does not call the webhook, or passes over its failure.",
        "see that the API server has the admission plugin MutatingAdmissionWebhook, and look for failurePolicy Ignore";
    PROBE_REFUSED = "WEIR108" "probe-refused" Info:
        "The pod that was created on trial was refused by something else, so it does not show whether the webhook is reached.",
        "name a namespace where you may create pods with --probe-namespace";

    NOT_INSTALLED = "WEIR201" "not-installed" Error:
        "There is no Deployment of the webhook.",
        "weir install";
    WEBHOOK_CONFIGURATION_MISSING = "WEIR202" "webhook-configuration-missing" Error:
        "The webhook runs, but the API server is not told to call it.",
        "weir install";
    SERVICE_MISSING = "WEIR203" "service-missing" Error:
        "The webhook configuration names a Service that is not there.",
        "weir install";
    SERVICE_PORT_MISMATCH = "WEIR204" "service-port-mismatch" Error:
        "The port that the API server asks for leads to no port on which the webhook listens.",
        "apply the Service of the manifests again";
    SERVICE_SELECTS_NOTHING = "WEIR205" "service-selects-nothing" Error:
        "The selector of the Service does not fit the labels of the webhook's pods.",
        "apply the Service and the Deployment of the manifests again";
    NO_READY_ENDPOINTS = "WEIR206" "no-ready-endpoints" Error:
        "No pod of the webhook is ready, so nobody answers the API server.",
        "kubectl -n weir-system describe pods";
    NETWORK_POLICY_BLOCKS = "WEIR207" "network-policy-blocks" Error:
        "A NetworkPolicy selects the webhook's pods, and none lets the API server in on the webhook's port.",
        "apply the NetworkPolicy of the manifests, which lets everybody in on port 15017";
    CONNECTION_REFUSED = "WEIR208" "connection-refused" Error:
        "The API server gets to the webhook's address, and nothing listens there.",
        "kubectl -n weir-system logs deployment/weir-webhook";
    CONNECTION_TIMEOUT = "WEIR209" "connection-timeout" Error:
        "The API server's packets to the webhook's pods are lost: a firewall between control plane and nodes (GKE private clusters, security groups of EKS), or a network that the control plane is not part of.",
        "allow TCP port 15017 from the control plane to the nodes, or run the webhook with hostNetwork on a port that is open";
    CONNECTION_BROKEN = "WEIR210" "connection-broken" Error:
        "The API server's connection to the webhook fails in another way.",
        "read the message: it is the API server's own";
    WEBHOOK_ANSWERS_ERROR = "WEIR211" "webhook-answers-error" Error:
        "Something answers the API server in the webhook's place, or the webhook answers with an error.",
        "see that path, Service and port of the webhook configuration are those of the manifests";
    WEBHOOK_DENIES = "WEIR212" "webhook-denies" Error:
        "The webhook is reached and denies a plain pod.",
        "read the reason: most often a setting is wrong";

    CA_BUNDLE_EMPTY = "WEIR301" "ca-bundle-empty" Error:
        "An entry has no caBundle, so the API server trusts no certificate of the webhook.",
        "with the built-in CA the webhook writes it: kubectl -n weir-system logs deployment/weir-webhook. With files of your own, start it with --patch-ca-bundle and --ca-cert-file, or write the field yourself";
    CA_BUNDLE_INVALID = "WEIR302" "ca-bundle-invalid" Error:
        "The caBundle of an entry holds no certificate that can be read.",
        "remove the caBundle from what your deployment tool applies; the webhook writes it";
    CA_EXPIRED = "WEIR303" "ca-expired" Error:
        "Every CA in the caBundle has expired.",
        "renew the CA: with the built-in one, kubectl -n weir-system delete secret weir-webhook-ca";
    CA_BUNDLE_DIFFERS = "WEIR304" "ca-bundle-differs" Warning:
        "The entries of one installation have different caBundles: somebody else writes them, too.",
        "remove the caBundle from what your deployment tool applies, or have it ignore differences in that field";
    CA_BUNDLE_STALE = "WEIR305" "ca-bundle-stale" Error:
        "The caBundle does not verify the certificate that the webhook serves.",
        "remove the caBundle from what your deployment tool applies; with files of your own, put the CA of tls.crt into it";
    CERTIFICATE_EXPIRED = "WEIR306" "certificate-expired" Error:
        "The certificate that the webhook serves has expired.",
        "renew it; with the built-in CA restart the webhook: kubectl -n weir-system rollout restart deployment/weir-webhook";
    CERTIFICATE_EXPIRING = "WEIR307" "certificate-expiring" Warning:
        "The certificate that the webhook serves is near its end, and should have been renewed.",
        "see why it is not renewed: kubectl -n weir-system logs deployment/weir-webhook; kubectl get certificates -A";
    CERTIFICATE_NAME = "WEIR308" "certificate-name" Error:
        "The certificate that the webhook serves is not for the name by which the API server calls it.",
        "make the certificate for SERVICE.NAMESPACE.svc";
    CLIENT_CERTIFICATE_REFUSED = "WEIR309" "client-certificate-refused" Error:
        "The webhook asks for a client certificate, and the API server has none that it takes.",
        "give the API server a certificate (--admission-control-config-file), or drop --client-ca-file of weir-webhook";

    ENTRY_MISSING = "WEIR401" "entry-missing" Error:
        "A webhook configuration lacks an entry: one of the ways to ask for a sidecar does nothing.",
        "weir install, or weir tag set for a tag";
    ENTRY_ALTERED = "WEIR402" "entry-altered" Warning:
        "An entry is not what the manifests say.",
        "weir install, or weir tag set for a tag";
    FAILURE_POLICY_IGNORE = "WEIR403" "failure-policy-ignore" Warning:
        "An entry that pods opt in to has failurePolicy Ignore: when the webhook is away they start outside of the mesh, and nobody notices.",
        "set failurePolicy: Fail";
    TIMEOUT_UNSUITABLE = "WEIR404" "timeout-unsuitable" Warning:
        "The timeout of an entry is too short for a webhook that is just starting, or so long that requests pile up at the API server.",
        "set timeoutSeconds: 5";
    DEACTIVATED = "WEIR405" "deactivated" Warning:
        "The default injector is off, and no other one is the default: istio-injection=enabled does nothing.",
        "weir tag set default --revision REVISION";
    WRONG_TARGET = "WEIR406" "wrong-target" Error:
        "An entry sends pods to something that is not the webhook of its revision.",
        "weir install, or weir tag set for a tag";
    DOUBLE_INJECTION = "WEIR407" "double-injection" Error:
        "Two injectors take the same pods.",
        "give one of them a revision of its own, or turn its default entries off (weir tag set default, istioctl tag set default)";
    TAG_DANGLING = "WEIR408" "tag-dangling" Error:
        "A tag stands for a revision that is not there.",
        "weir tag set TAG --revision REVISION --overwrite, or weir tag remove TAG";
    REVISION_UNKNOWN = "WEIR409" "revision-unknown" Error:
        "A namespace names a revision that no injector serves: its pods start outside of the mesh.",
        "label the namespace with a revision or tag that is there, or make it: weir tag set";
    NAMESPACE_LABELS_CONFLICT = "WEIR410" "namespace-labels-conflict" Warning:
        "A namespace has both istio-injection and istio.io/rev; the first one counts alone.",
        "remove one of the two labels";
    NAMESPACE_LABEL_UNCLEAR = "WEIR411" "namespace-label-unclear" Warning:
        "The label istio-injection of a namespace is neither enabled nor disabled, which means disabled.",
        "kubectl label namespace NAME istio-injection=enabled --overwrite";
    SYSTEM_NAMESPACE_LABELLED = "WEIR412" "system-namespace-labelled" Warning:
        "A namespace of the system, or our own, asks for sidecars, which it never gets.",
        "remove the label";
    LABEL_IN_WRONG_PLACE = "WEIR413" "label-in-wrong-place" Warning:
        "A label or annotation about injection stands where nobody reads it.",
        "put sidecar.istio.io/inject among the labels of the pod template";

    SINGLE_REPLICA = "WEIR501" "single-replica" Warning:
        "The webhook has one replica: while it is away no pod that asks for a sidecar starts.",
        "kubectl -n weir-system scale deployment/weir-webhook --replicas=2";
    DISRUPTION_BUDGET_MISSING = "WEIR502" "disruption-budget-missing" Warning:
        "No PodDisruptionBudget keeps a drain of nodes from taking all replicas at once.",
        "apply the PodDisruptionBudget of the manifests";
    DISRUPTION_BUDGET_BLOCKS = "WEIR503" "disruption-budget-blocks" Warning:
        "The PodDisruptionBudget lets no replica go, so nodes cannot be drained.",
        "set minAvailable below the number of replicas";
    REPLICAS_ON_ONE_NODE = "WEIR504" "replicas-on-one-node" Warning:
        "All replicas are on one node, and end with it.",
        "kubectl -n weir-system rollout restart deployment/weir-webhook, once there are other nodes to go to";
    REPLICA_NOT_READY = "WEIR505" "replica-not-ready" Warning:
        "A replica of the webhook is not ready.",
        "kubectl -n weir-system describe pods";
    REPLICA_CRASHES = "WEIR506" "replica-crashes" Error:
        "A pod of the webhook or the agent does not start, or ends again and again.",
        "kubectl logs --previous";
    VERSIONS_DIFFER = "WEIR507" "versions-differ" Warning:
        "Replicas, agents and this program are of different versions, and no rollout is under way.",
        "finish the update: weir install";
    SETTINGS_CHANGE_REFUSED = "WEIR508" "settings-change-refused" Warning:
        "A replica has refused a change of its certificate or configuration, and goes on with the last good one.",
        "mend what the message names; the replica takes it by itself";
    REPLICA_FINDING = "WEIR509" "replica-finding" Warning:
        "A replica of the webhook works, and has found something that somebody should look at.",
        "read what it says; kubectl -n weir-system logs deployment/weir-webhook has the rest";

    AGENTS_NOT_INSTALLED = "WEIR601" "agents-not-installed" Error:
        "Pods get no init container for their rules, and there is no agent on the nodes that would see to them: traffic goes past the sidecar.",
        "apply the node agent (manifests/node), or set pilot.cni.enabled: false";
    AGENT_MISSING = "WEIR602" "agent-missing" Error:
        "A node that takes pods has no agent.",
        "see why: kubectl -n weir-node describe daemonset weir-agent; it has to tolerate all taints";
    AGENT_NOT_READY = "WEIR603" "agent-not-ready" Error:
        "The agent of a node is not ready: pods of the mesh do not start there, or start without rules.",
        "read its conditions: docs/node-agent.md, section At three in the morning";
    AGENT_FINDING = "WEIR604" "agent-finding" Warning:
        "The agent of a node works, and has found something that somebody should look at.",
        "docs/node-agent.md, section At three in the morning";
    CNI_MODE_OFF = "WEIR605" "cni-mode-off" Warning:
        "Agents are on the nodes, but the values have pilot.cni.enabled off, so pods get the privileged init container.",
        "set pilot.cni.enabled: true in the values";
    RUNTIME_WITHOUT_ANNOTATIONS = "WEIR606" "runtime-without-annotations" Warning:
        "The container runtime of a node does not hand annotations of pods to CNI plugins (containerd before 1.5, CRI-O before 1.29, Docker).",
        "update the runtime; until then every pod depends on the agent's answer";
    KERNEL_OLD = "WEIR607" "kernel-old" Info:
        "The kernel of a node is older than 5.2: capture rules take two tables, one for each family, and one step more when they are replaced.",
        "nothing has to be done; a newer kernel has one table for both";
    NODE_NOT_READY_TAINT = "WEIR608" "node-not-ready-taint" Warning:
        "A node is ready and still has the taint with which it waits for the agent.",
        "see that the agent there is ready and may patch nodes (manifests/node/components/taint)";

    CONFIG_MAP_MISSING = "WEIR701" "config-map-missing" Error:
        "The webhook is to take its configuration from a ConfigMap, or a key in it, that is not there.",
        "make it, or change the flags of weir-webhook";
    SETTINGS_REFUSED = "WEIR702" "settings-refused" Error:
        "The configuration has a field that the webhook refuses: it does not start with it, or goes on with the one before.",
        "mend the field that is named";

    POD_WITHOUT_SIDECAR = "WEIR801" "pod-without-sidecar" Warning:
        "A pod that should have a sidecar has none.",
        "make it anew: kubectl rollout restart";
    POD_LEFT_ALONE = "WEIR802" "pod-left-alone" Info:
        "A pod in a namespace of the mesh is left alone for what it is.",
        "nothing, if it is meant to be outside of the mesh; the label sidecar.istio.io/inject=false says so";
    DOUBLE_SIDECAR = "WEIR803" "double-sidecar" Error:
        "A pod has two sidecars, or its traffic is captured twice.",
        "let one injector take it, and make it anew";
    SIDECAR_OUTDATED = "WEIR804" "sidecar-outdated" Warning:
        "A pod's sidecar is not what it would get today: it was made before the configuration changed.",
        "kubectl rollout restart";
    PODS_WITHOUT_RULES = "WEIR805" "pods-without-rules" Error:
        "The agent of a node has found pods of the mesh without their capture rules.",
        "weir check node, over a port-forward to that agent, names them";
    PODS_REFUSED = "WEIR806" "pods-refused" Error:
        "A workload gets no pods, because the webhook is not reached or denies them.",
        "read the message";
    POD_SECURITY_REFUSES = "WEIR807" "pod-security-refuses" Error:
        "The Pod Security level of a namespace refuses what would be injected.",
        "set pilot.cni.enabled: true, so that pods need no privileged init container; or lower the level of the namespace";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_names_are_unique_and_in_order() {
        assert!(ALL.windows(2).all(|pair| pair[0].code < pair[1].code));
        let names: std::collections::BTreeSet<&str> = ALL.iter().map(|fault| fault.name).collect();
        assert_eq!(names.len(), ALL.len());
        for fault in ALL {
            assert!(fault.means.ends_with('.') && !fault.action.is_empty(), "{}", fault.name);
            assert!(fault.name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'), "{}", fault.name);
        }
    }
}
