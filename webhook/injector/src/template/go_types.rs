//! The structs of Kubernetes' and Istio's API that templates read: their fields with Go names and zero values.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use gotmpl::Value as Data;

use super::value::{COMPLETE_KEY, TYPED_OBJECT_KEY, list, text};
use crate::go_names::go_name;

/// Go type of a field of a Kubernetes object; it determines the zero value.
#[derive(Clone, Copy)]
pub(super) enum GoType {
    Text,
    Flag,
    /// `int32`.
    Number,
    Slice,
    Structs(&'static LazyLock<GoStruct>),
    /// A map with keys of the user.
    Keyed,
    Struct(&'static LazyLock<GoStruct>),
    /// A pointer, or a type that is not in the tables below; the zero value is nil.
    Other,
}

impl GoType {
    /// Returns the value of a field that is not set.
    pub(super) fn zero(self) -> Data {
        match self {
            Text => text(""),
            Flag => Data::Bool(false),
            Number => Data::Int(0),
            Slice | Structs(_) => list([]),
            Keyed => Data::Map(Arc::default()),
            Struct(go_struct) => Data::Map(Arc::new(go_struct.zero.clone())),
            Other => Data::Nil,
        }
    }
}

use GoType::{Flag, Keyed, Number, Other, Slice, Struct, Structs, Text};

/// A struct of Kubernetes' API.
pub(super) struct GoStruct {
    /// JSON name, Go name and type of each field.
    pub(super) fields: Vec<(&'static str, Arc<str>, GoType)>,
    /// The object without any field set.
    pub(super) zero: BTreeMap<Arc<str>, Data>,
}

impl GoStruct {
    /// All fields of a struct, by type. The order is that of Go.
    fn complete<const N: usize>(fields: [(&'static str, GoType); N]) -> Self {
        let mut all = Self::open(fields);
        all.zero.insert(COMPLETE_KEY.into(), Data::Bool(true));
        all
    }

    /// Some fields of a struct that has others.
    pub(super) fn open<const N: usize>(fields: [(&'static str, GoType); N]) -> Self {
        let named = fields.into_iter().map(|(json, go_type)| (json, Arc::from(go_name(json)), go_type));
        let fields: Vec<(&str, Arc<str>, GoType)> = named.collect();
        let mut zero: BTreeMap<Arc<str>, Data> =
            fields.iter().map(|(_, go, go_type)| (Arc::clone(go), go_type.zero())).collect();
        zero.insert(TYPED_OBJECT_KEY.into(), list([]));
        Self { fields, zero }
    }

    pub(super) fn has_field(&self, field: &str) -> bool {
        self.fields.iter().any(|(_, go, _)| **go == *field)
    }
}

pub(super) static META: LazyLock<GoStruct> = LazyLock::new(|| {
    GoStruct::complete([
        ("name", Text),
        ("generateName", Text),
        ("namespace", Text),
        ("selfLink", Text),
        ("uid", Text),
        ("resourceVersion", Text),
        ("generation", Number),
        ("creationTimestamp", Other),
        ("deletionTimestamp", Other),
        ("deletionGracePeriodSeconds", Other),
        ("labels", Keyed),
        ("annotations", Keyed),
        ("ownerReferences", Slice),
        ("finalizers", Slice),
        ("managedFields", Slice),
    ])
});
static PORT: LazyLock<GoStruct> = LazyLock::new(|| {
    GoStruct::complete([
        ("name", Text),
        ("hostPort", Number),
        ("containerPort", Number),
        ("protocol", Text),
        ("hostIP", Text),
    ])
});
static VARIABLE: LazyLock<GoStruct> =
    LazyLock::new(|| GoStruct::complete([("name", Text), ("value", Text), ("valueFrom", Other)]));
static MOUNT: LazyLock<GoStruct> = LazyLock::new(|| {
    GoStruct::complete([
        ("name", Text),
        ("readOnly", Flag),
        ("recursiveReadOnly", Other),
        ("mountPath", Text),
        ("subPath", Text),
        ("mountPropagation", Other),
        ("subPathExpr", Text),
    ])
});
static RESOURCES: LazyLock<GoStruct> =
    LazyLock::new(|| GoStruct::complete([("limits", Keyed), ("requests", Keyed), ("claims", Slice)]));
static CONTAINER: LazyLock<GoStruct> = LazyLock::new(|| {
    GoStruct::complete([
        ("name", Text),
        ("image", Text),
        ("command", Slice),
        ("args", Slice),
        ("workingDir", Text),
        ("ports", Structs(&PORT)),
        ("envFrom", Slice),
        ("env", Structs(&VARIABLE)),
        ("resources", Struct(&RESOURCES)),
        ("resizePolicy", Slice),
        ("restartPolicy", Other),
        ("restartPolicyRules", Slice),
        ("volumeMounts", Structs(&MOUNT)),
        ("volumeDevices", Slice),
        ("livenessProbe", Other),
        ("readinessProbe", Other),
        ("startupProbe", Other),
        ("lifecycle", Other),
        ("terminationMessagePath", Text),
        ("terminationMessagePolicy", Text),
        ("imagePullPolicy", Text),
        ("securityContext", Other),
        ("stdin", Flag),
        ("stdinOnce", Flag),
        ("tty", Flag),
    ])
});
static NAMED: LazyLock<GoStruct> = LazyLock::new(|| GoStruct::open([("name", Text)]));
pub(super) static SPEC: LazyLock<GoStruct> = LazyLock::new(|| {
    GoStruct::complete([
        ("volumes", Structs(&NAMED)),
        ("initContainers", Structs(&CONTAINER)),
        ("containers", Structs(&CONTAINER)),
        ("ephemeralContainers", Slice),
        ("restartPolicy", Text),
        ("terminationGracePeriodSeconds", Other),
        ("activeDeadlineSeconds", Other),
        ("dnsPolicy", Text),
        ("nodeSelector", Keyed),
        ("serviceAccountName", Text),
        ("serviceAccount", Text),
        ("automountServiceAccountToken", Other),
        ("nodeName", Text),
        ("hostNetwork", Flag),
        ("hostPID", Flag),
        ("hostIPC", Flag),
        ("shareProcessNamespace", Other),
        ("securityContext", Other),
        ("imagePullSecrets", Structs(&NAMED)),
        ("hostname", Text),
        ("subdomain", Text),
        ("affinity", Other),
        ("schedulerName", Text),
        ("tolerations", Slice),
        ("hostAliases", Slice),
        ("priorityClassName", Text),
        ("priority", Other),
        ("dnsConfig", Other),
        ("readinessGates", Slice),
        ("runtimeClassName", Other),
        ("enableServiceLinks", Other),
        ("preemptionPolicy", Other),
        ("overhead", Keyed),
        ("topologySpreadConstraints", Slice),
        ("setHostnameAsFQDN", Other),
        ("os", Other),
        ("hostUsers", Other),
        ("schedulingGates", Slice),
        ("resourceClaims", Slice),
        ("resources", Other),
        ("hostnameOverride", Other),
        ("schedulingGroup", Other),
        ("workloadRef", Other),
    ])
});

/// Fields of `MeshConfig` (istio/api `mesh/v1alpha1/config.proto`), with their zero values; null for messages.
pub(super) static MESH: LazyLock<BTreeMap<Arc<str>, Data>> = LazyLock::new(|| {
    let mut fields = BTreeMap::new();
    let mut add = |names: &[&str], zero: Data| {
        fields.extend(names.iter().map(|name| (Arc::from(*name), zero.clone())));
    };
    add(&["ProxyListenPort", "ProxyInboundListenPort", "ProxyHttpPort"], Data::Int(0));
    add(
        &["EnableTracing", "EnableEnvoyAccessLogService", "DisableEnvoyListenerLog", "PolicyCheckFailOpen"],
        Data::Bool(false),
    );
    add(
        &[
            "IngressClass",
            "IngressService",
            "IngressSelector",
            "AccessLogFile",
            "AccessLogFormat",
            "TrustDomain",
            "RootNamespace",
            "InboundClusterStatName",
            "OutboundClusterStatName",
            "MixerCheckServer",
            "MixerReportServer",
            "SdsUdsPath",
        ],
        text(""),
    );
    add(&["IngressControllerMode"], text("UNSPECIFIED"));
    add(&["AccessLogEncoding"], text("TEXT"));
    add(&["H2UpgradePolicy"], text("DO_NOT_UPGRADE"));
    add(
        &[
            "ConfigSources",
            "TrustDomainAliases",
            "CaCertificates",
            "DefaultServiceExportTo",
            "DefaultVirtualServiceExportTo",
            "DefaultDestinationRuleExportTo",
            "Certificates",
            "ServiceSettings",
            "ServiceScopeConfigs",
            "ExtensionProviders",
            "DiscoverySelectors",
        ],
        list([]),
    );
    add(
        &[
            "ConnectTimeout",
            "ProtocolDetectionTimeout",
            "TcpKeepalive",
            "DefaultConfig",
            "OutboundTrafficPolicy",
            "InboundTrafficPolicy",
            "EnableAutoMtls",
            "LocalityLbSetting",
            "DnsRefreshRate",
            "ThriftConfig",
            "EnablePrometheusMerge",
            "VerifyCertificateAtClient",
            "Ca",
            "DefaultProviders",
            "PathNormalization",
            "DefaultHttpRetryPolicy",
            "MeshMTLS",
            "TlsDefaults",
            "HboneIdleTimeout",
            "ReportBatchMaxEntries",
            "ReportBatchMaxTime",
        ],
        Data::Nil,
    );
    fields
});
