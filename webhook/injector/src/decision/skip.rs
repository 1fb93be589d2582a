/// Reason for which a pod is not injected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SkipReason {
    /// `spec.hostNetwork`: capture rules would capture the node's traffic.
    HostNetwork,
    /// The pod is in one of Kubernetes' own namespaces.
    SystemNamespace,
    /// The API server's mirror of a static pod, which the kubelet runs from a file.
    StaticPod,
    /// The pod runs on Windows nodes.
    Windows,
    /// `sidecar.istio.io/inject: "false"`.
    OptedOut,
    /// A `neverInjectSelector` matches.
    NeverSelector,
    /// The policy is `disabled` and the pod does not opt in.
    PolicyDisabled,
    /// The policy is neither `enabled` nor `disabled`.
    UnknownPolicy,
    /// The pod has a sidecar, but no record of its injection.
    UnrecordedSidecar,
}

impl SkipReason {
    /// Returns the name in metrics and logs; stable.
    pub const fn name(self) -> &'static str {
        match self {
            Self::HostNetwork => "host_network",
            Self::SystemNamespace => "system_namespace",
            Self::StaticPod => "static_pod",
            Self::Windows => "windows",
            Self::OptedOut => "explicitly_off",
            Self::NeverSelector => "never_selector",
            Self::PolicyDisabled => "policy_disabled",
            Self::UnknownPolicy => "unknown_policy",
            Self::UnrecordedSidecar => "unrecorded_sidecar",
        }
    }

    /// Returns the reason as a clause for users.
    pub const fn message(self) -> &'static str {
        match self {
            Self::HostNetwork => "the pod uses the host network; capture rules would capture the node's own traffic",
            Self::SystemNamespace => "pods in this system namespace are never injected",
            Self::StaticPod => {
                "the kubelet runs this static pod from a file on its node; an injected sidecar would never run"
            }
            Self::Windows => "the pod is for Windows nodes, and the sidecar needs Linux",
            Self::OptedOut => "sidecar.istio.io/inject is \"false\"",
            Self::NeverSelector => "a neverInjectSelector matches the pod's labels",
            Self::PolicyDisabled => "the injector's policy is \"disabled\" and the pod does not opt in",
            Self::UnknownPolicy => "the injector's policy is neither \"enabled\" nor \"disabled\"",
            Self::UnrecordedSidecar => {
                "the pod has a sidecar but no annotation sidecar.istio.io/status; remove the sidecar from the manifest, or \
                 restore the annotation"
            }
        }
    }

    /// Returns what to change to get a sidecar.
    pub const fn remedy(self) -> &'static str {
        match self {
            Self::HostNetwork => "run the pod without spec.hostNetwork",
            Self::SystemNamespace => "run the pod in another namespace",
            Self::StaticPod => "run it as a DaemonSet instead",
            Self::Windows => "run the pod on Linux nodes",
            Self::OptedOut => "remove sidecar.istio.io/inject from the pod, or set it to \"true\"",
            Self::NeverSelector => "set the pod's label sidecar.istio.io/inject to \"true\", which overrides selectors",
            Self::PolicyDisabled => "set the pod's label sidecar.istio.io/inject to \"true\"",
            Self::UnknownPolicy => "set the injector's policy (global.proxy.autoInject) to \"enabled\" or \"disabled\"",
            Self::UnrecordedSidecar => {
                "remove the old sidecar from the manifest, or restore the annotation sidecar.istio.io/status"
            }
        }
    }
}
