//! Catalogue of the faults that `weir check` knows. The tables of `docs/check.md` have the same texts (tested).

/// Severity of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth knowing.
    Info,
    /// Works now, but not in all cases or not for long.
    Warning,
    /// Pods do not start, or run outside the mesh.
    Error,
}

impl Severity {
    /// Returns the name in output and flags.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// A kind of fault. Code and name are stable.
#[derive(Debug, PartialEq, Eq)]
pub struct Fault {
    /// Stable code, such as `WEIR301`.
    pub code: &'static str,
    /// Stable name, such as `ca-bundle-empty`.
    pub name: &'static str,
    /// Severity of the fault.
    pub severity: Severity,
    /// Meaning of the fault, as a sentence.
    pub meaning: &'static str,
    /// Fix, unless a finding has one of its own.
    pub action: &'static str,
}

macro_rules! faults {
    ($($constant:ident = $code:literal $name:literal $severity:ident: $meaning:literal, $action:literal;)*) => {
        $(
            #[doc = $meaning]
            pub(crate) const $constant: Fault =
                Fault { code: $code, name: $name, severity: Severity::$severity, meaning: $meaning, action: $action };
        )*
        /// All faults, in the order of their codes.
        pub(crate) const ALL: &[&Fault] = &[$(&$constant),*];
    };
}

faults! {
    NOT_READ = "WEIR101" "not-read" Info:
        "Something could not be read, so the checks that need it were skipped.",
        "run the check as a user who may read it";
    KUBERNETES_TOO_OLD = "WEIR102" "kubernetes-too-old" Error:
        "The API server is older than 1.29, the oldest version that the manifests support.",
        "upgrade the cluster";
    NATIVE_SIDECARS_NOT_RUN = "WEIR103" "native-sidecars-not-run" Error:
        "Pods get a native sidecar, but some nodes are older than 1.29: pods on them would never finish initializing.",
        "set --native-sidecars=auto or false of weir-webhook, or upgrade the nodes";
    RIGHT_MISSING = "WEIR104" "right-missing" Error:
        "You may not create or change an object of the installation.",
        "ask for the permission, or have somebody install who has it";
    SERVICE_ACCOUNT_RIGHT_MISSING = "WEIR105" "service-account-right-missing" Error:
        "The service account of the webhook or the agent lacks a permission that their flags need.",
        "apply the Roles of the manifests again";
    CONTROL_PLANE_MISSING = "WEIR106" "control-plane-missing" Warning:
        "The namespace of the control plane has no running istiod, so sidecars would not become ready.",
        "install or start Istio's control plane, or name its namespace with --istioNamespace";
    WEBHOOK_NOT_CALLED = "WEIR107" "webhook-not-called" Error:
        "The dry-run pod matches a webhook entry but got no sidecar: the API server does not call the webhook, or ignores its failure.",
        "check that the API server runs the admission plugin MutatingAdmissionWebhook, and look for failurePolicy Ignore";
    PROBE_REFUSED = "WEIR108" "probe-refused" Info:
        "The dry-run pod was rejected for another reason, so it does not show whether the webhook is reachable.",
        "name a namespace in which you may create pods with --probe-namespace";
    CONTROL_PLANE_UNSUPPORTED = "WEIR109" "control-plane-unsupported" Warning:
        "The control plane is of a release of Istio that is not supported.",
        "use a release in docs/compatibility.md, or another version of Weir";

    NOT_INSTALLED = "WEIR201" "not-installed" Error:
        "The Deployment of the webhook does not exist.",
        "weir install";
    WEBHOOK_CONFIGURATION_MISSING = "WEIR202" "webhook-configuration-missing" Error:
        "The webhook runs, but no webhook configuration calls it.",
        "weir install";
    SERVICE_MISSING = "WEIR203" "service-missing" Error:
        "The webhook configuration names a Service that does not exist.",
        "weir install";
    SERVICE_PORT_MISMATCH = "WEIR204" "service-port-mismatch" Error:
        "The Service port that the API server calls does not lead to the port on which the webhook listens.",
        "apply the Service of the manifests again";
    SERVICE_SELECTS_NOTHING = "WEIR205" "service-selects-nothing" Error:
        "The selector of the Service does not match the labels of the webhook's pods.",
        "apply the Service and the Deployment of the manifests again";
    NO_READY_ENDPOINTS = "WEIR206" "no-ready-endpoints" Error:
        "No pod of the webhook is ready.",
        "kubectl -n weir-system describe pods";
    NETWORK_POLICY_BLOCKS = "WEIR207" "network-policy-blocks" Error:
        "A NetworkPolicy selects the webhook's pods, and none admits the API server on the webhook's port.",
        "apply the NetworkPolicy of the manifests, which admits everybody on port 15017";
    CONNECTION_REFUSED = "WEIR208" "connection-refused" Error:
        "The API server reaches the webhook's address, but nothing listens there.",
        "kubectl -n weir-system logs deployment/weir-webhook";
    CONNECTION_TIMEOUT = "WEIR209" "connection-timeout" Error:
        "Packets from the API server to the webhook's pods are dropped: by a firewall between control plane and nodes (GKE private clusters, security groups of EKS), or because the control plane is not part of the pod network.",
        "allow TCP port 15017 from the control plane to the nodes, or run the webhook with hostNetwork on an open port";
    CONNECTION_BROKEN = "WEIR210" "connection-broken" Error:
        "The API server's connection to the webhook fails in another way.",
        "read the API server's message";
    WEBHOOK_ANSWERS_ERROR = "WEIR211" "webhook-answers-error" Error:
        "Something else answers instead of the webhook, or the webhook answers with an error.",
        "check that path, Service and port of the webhook configuration are those of the manifests";
    WEBHOOK_DENIES = "WEIR212" "webhook-denies" Error:
        "The webhook is reachable but denies a plain pod.",
        "read the reason; usually a setting is invalid";

    CA_BUNDLE_EMPTY = "WEIR301" "ca-bundle-empty" Error:
        "A webhook entry has no caBundle, so the API server does not trust the webhook's certificate.",
        "with the built-in CA the webhook writes it: kubectl -n weir-system logs deployment/weir-webhook. With your own certificate files, start the webhook with --patch-ca-bundle and --ca-cert-file, or write the field yourself";
    CA_BUNDLE_INVALID = "WEIR302" "ca-bundle-invalid" Error:
        "The caBundle of a webhook entry holds no valid certificate.",
        "remove the caBundle from what your deployment tool applies; the webhook writes it";
    CA_EXPIRED = "WEIR303" "ca-expired" Error:
        "Every CA in the caBundle has expired.",
        "with the built-in CA the webhook renews it, and kubectl -n weir-system logs deployment/weir-webhook says what prevents it; with your own files, renew the CA and its caBundle";
    CA_BUNDLE_DIFFERS = "WEIR304" "ca-bundle-differs" Warning:
        "The webhook entries of one revision have different caBundles: another writer changes them too.",
        "remove the caBundle from what your deployment tool applies, or have it ignore differences in that field";
    CA_BUNDLE_STALE = "WEIR305" "ca-bundle-stale" Error:
        "The caBundle does not verify the certificate that the webhook serves.",
        "remove the caBundle from what your deployment tool applies; with your own certificate files, put the CA of tls.crt into it";
    CERTIFICATE_EXPIRED = "WEIR306" "certificate-expired" Error:
        "The webhook's certificate has expired.",
        "renew it; with the built-in CA restart the webhook: kubectl -n weir-system rollout restart deployment/weir-webhook";
    CERTIFICATE_EXPIRING = "WEIR307" "certificate-expiring" Warning:
        "The webhook's certificate expires soon and should have been renewed.",
        "find out why it was not renewed: kubectl -n weir-system logs deployment/weir-webhook; kubectl get certificates -A";
    CERTIFICATE_NAME = "WEIR308" "certificate-name" Error:
        "The webhook's certificate is not valid for the name by which the API server calls the webhook.",
        "issue the certificate for SERVICE.NAMESPACE.svc";
    CLIENT_CERTIFICATE_REFUSED = "WEIR309" "client-certificate-refused" Error:
        "The webhook requires a client certificate, and the API server presents none that it accepts.",
        "give the API server a certificate (--admission-control-config-file), or remove --client-ca-file of weir-webhook";
    CLIENTS_NOT_VERIFIED = "WEIR310" "clients-not-verified" Info:
        "The webhook verifies no client certificates, so every pod that reaches its port can send reviews; its limits keep that from stopping the API server's.",
        "give the API server a client certificate and set --client-ca-file of weir-webhook: docs/certificates.md";

    ENTRY_MISSING = "WEIR401" "entry-missing" Error:
        "A webhook configuration lacks a webhook entry: one of the ways to request a sidecar has no effect.",
        "weir install, or weir tag set for a tag";
    ENTRY_ALTERED = "WEIR402" "entry-altered" Warning:
        "A webhook entry differs from the manifests.",
        "weir install, or weir tag set for a tag";
    FAILURE_POLICY_IGNORE = "WEIR403" "failure-policy-ignore" Warning:
        "A webhook entry for opted-in pods has failurePolicy Ignore: while the webhook is down, pods silently start outside the mesh.",
        "set failurePolicy: Fail";
    TIMEOUT_UNSUITABLE = "WEIR404" "timeout-unsuitable" Warning:
        "The timeout of a webhook entry is too short for a webhook that is just starting, or so long that requests pile up at the API server.",
        "set timeoutSeconds: 5";
    DEACTIVATED = "WEIR405" "deactivated" Warning:
        "The default injector is deactivated and no other one is the default: istio-injection=enabled has no effect.",
        "weir tag set default --revision REVISION";
    WRONG_TARGET = "WEIR406" "wrong-target" Error:
        "A webhook entry calls something other than the webhook of its revision.",
        "weir install, or weir tag set for a tag";
    DOUBLE_INJECTION = "WEIR407" "double-injection" Error:
        "Two injectors select the same pods.",
        "give one of them its own revision, or deactivate its default entries (weir tag set default, istioctl tag set default)";
    TAG_DANGLING = "WEIR408" "tag-dangling" Error:
        "A tag points to a revision that does not exist.",
        "weir tag set TAG --revision REVISION --overwrite, or weir tag remove TAG";
    REVISION_UNKNOWN = "WEIR409" "revision-unknown" Error:
        "A namespace names a revision that no injector serves: its pods start outside the mesh.",
        "label the namespace with an existing revision or tag, or create the tag: weir tag set";
    NAMESPACE_LABELS_CONFLICT = "WEIR410" "namespace-labels-conflict" Warning:
        "A namespace has both istio-injection and istio.io/rev; only istio-injection has an effect.",
        "remove one of the two labels";
    NAMESPACE_LABEL_UNCLEAR = "WEIR411" "namespace-label-unclear" Warning:
        "The label istio-injection of a namespace is neither enabled nor disabled, which means disabled.",
        "kubectl label namespace NAME istio-injection=enabled --overwrite";
    SYSTEM_NAMESPACE_LABELLED = "WEIR412" "system-namespace-labelled" Warning:
        "A system namespace, or one of Weir's own, has an injection label, but its pods never get sidecars.",
        "remove the label";
    LABEL_IN_WRONG_PLACE = "WEIR413" "label-in-wrong-place" Warning:
        "An injection label or annotation is on an object where it has no effect.",
        "put sidecar.istio.io/inject among the labels of the pod template";
    ADMISSION_POLICY_INCOMPLETE = "WEIR414" "admission-policy-incomplete" Warning:
        "An admission policy of Weir or its binding is missing, but not all of them are: annotations about capture can be changed, or written by users.",
        "weir install";

    SINGLE_REPLICA = "WEIR501" "single-replica" Warning:
        "The webhook has one replica: while it is down, no pod that requests a sidecar starts.",
        "kubectl -n weir-system scale deployment/weir-webhook --replicas=2";
    DISRUPTION_BUDGET_MISSING = "WEIR502" "disruption-budget-missing" Warning:
        "No PodDisruptionBudget keeps a node drain from evicting all replicas at once.",
        "apply the PodDisruptionBudget of the manifests";
    DISRUPTION_BUDGET_BLOCKS = "WEIR503" "disruption-budget-blocks" Warning:
        "The PodDisruptionBudget allows no eviction, so nodes cannot be drained.",
        "set minAvailable below the number of replicas";
    REPLICAS_ON_ONE_NODE = "WEIR504" "replicas-on-one-node" Warning:
        "All replicas are on one node and are lost with it.",
        "kubectl -n weir-system rollout restart deployment/weir-webhook, once other nodes are available";
    REPLICA_NOT_READY = "WEIR505" "replica-not-ready" Warning:
        "A replica of the webhook is not ready.",
        "kubectl -n weir-system describe pods";
    REPLICA_CRASHES = "WEIR506" "replica-crashes" Error:
        "A pod of the webhook or the agent does not start, or crashes again and again.",
        "kubectl logs --previous";
    VERSIONS_DIFFER = "WEIR507" "versions-differ" Warning:
        "Replicas, agents and this program have different versions, and no rollout is in progress.",
        "finish the upgrade: weir install";
    SETTINGS_CHANGE_REFUSED = "WEIR508" "settings-change-refused" Warning:
        "A replica rejected a change of its certificate or configuration and keeps using the last good version.",
        "fix the reported field; it is reloaded automatically";
    REPLICA_FINDING = "WEIR509" "replica-finding" Warning:
        "A replica of the webhook works but reports an advisory condition.",
        "read the reported condition; kubectl -n weir-system logs deployment/weir-webhook has more";

    AGENTS_NOT_INSTALLED = "WEIR601" "agents-not-installed" Error:
        "Pods get no init container for their capture rules, and no node agent is installed whose plugin would program them: traffic bypasses the sidecar.",
        "apply the node agent (manifests/node), or set pilot.cni.enabled: false";
    AGENT_MISSING = "WEIR602" "agent-missing" Error:
        "A node that runs pods has no agent.",
        "find out why: kubectl -n weir-node describe daemonset weir-agent; it has to tolerate all taints";
    AGENT_NOT_READY = "WEIR603" "agent-not-ready" Error:
        "The agent of a node is not ready: meshed pods do not start there, or start without capture rules.",
        "read its conditions: docs/node-agent.md, section Troubleshooting";
    AGENT_FINDING = "WEIR604" "agent-finding" Warning:
        "The agent of a node works but reports an advisory condition.",
        "docs/node-agent.md, section Troubleshooting";
    CNI_MODE_OFF = "WEIR605" "cni-mode-off" Warning:
        "The node agent is installed, but the values have pilot.cni.enabled: false, so pods get the privileged init container.",
        "set pilot.cni.enabled: true in the values";
    RUNTIME_WITHOUT_ANNOTATIONS = "WEIR606" "runtime-without-annotations" Warning:
        "The container runtime of a node does not pass pod annotations to CNI plugins (containerd before 1.5, CRI-O before 1.29, Docker).",
        "upgrade the runtime; until then every pod depends on the agent's answer";
    KERNEL_OLD = "WEIR607" "kernel-old" Info:
        "The kernel of a node is older than 5.2: capture rules need two tables, one per address family, and replacing them takes one more step.",
        "no action needed; newer kernels have one table for both families";
    NODE_NOT_READY_TAINT = "WEIR608" "node-not-ready-taint" Warning:
        "The agent of a node is ready, but the node still has the taint that keeps pods away until then.",
        "check that the agent may patch nodes (manifests/node/components/taint)";

    CONFIG_MAP_MISSING = "WEIR701" "config-map-missing" Error:
        "The webhook's flags name a ConfigMap, or a key of it, that does not exist.",
        "create it, or change the flags of weir-webhook";
    SETTINGS_REFUSED = "WEIR702" "settings-refused" Error:
        "The webhook rejects a field of its configuration: it does not start, or keeps using the last good version.",
        "fix the reported field";

    POD_WITHOUT_SIDECAR = "WEIR801" "pod-without-sidecar" Warning:
        "A pod that should have a sidecar has none.",
        "recreate the pod: kubectl rollout restart";
    POD_LEFT_ALONE = "WEIR802" "pod-left-alone" Info:
        "A pod in a meshed namespace is skipped because of its own properties.",
        "no action needed if it should stay outside the mesh; the label sidecar.istio.io/inject=false makes that explicit";
    DOUBLE_SIDECAR = "WEIR803" "double-sidecar" Error:
        "A pod has two sidecars, or its traffic is captured twice.",
        "let only one injector select it, and recreate it";
    SIDECAR_OUTDATED = "WEIR804" "sidecar-outdated" Warning:
        "A pod's sidecar differs from what the pod would get today: the configuration has changed since.",
        "kubectl rollout restart";
    PODS_WITHOUT_RULES = "WEIR805" "pods-without-rules" Error:
        "The agent of a node found meshed pods without their capture rules.",
        "weir check node NODE lists them";
    PODS_REFUSED = "WEIR806" "pods-refused" Error:
        "The pods of a workload cannot be created, because the webhook is not reachable or denies them.",
        "read the message";
    POD_SECURITY_REFUSES = "WEIR807" "pod-security-refuses" Error:
        "The Pod Security level of a namespace rejects the injected containers.",
        "set pilot.cni.enabled: true, so that pods need no privileged init container; or lower the level of the namespace";
    CAPTURE_ANNOTATIONS_CHANGED = "WEIR808" "capture-annotations-changed" Warning:
        "The annotations of running pods ask for other capture rules than the pods were started with. They have no effect until the pods are recreated.",
        "find out who changed them, and recreate the pods; weir check node NODE lists them";
    SIDECAR_IMAGE_NOT_PULLED = "WEIR809" "sidecar-image-not-pulled" Error:
        "A node cannot pull the image of an injected container, so the pod does not start.",
        "correct global.hub and global.tag of the values, or give the pod's service account the Secret of the registry";
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
            assert!(fault.meaning.ends_with('.') && !fault.action.is_empty(), "{}", fault.name);
            assert!(fault.name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'), "{}", fault.name);
        }
    }
}
