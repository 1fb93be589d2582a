//! Recognizes the templates that Istio ships, which are not rendered: the built-in ones are equivalent.
//!
//! A text is Istio's if it has the signature of the shipped template and writes no field, name or path that the shipped one does
//! not write. A shipped template with an addition is a custom template.

/// Templates that Istio's gateway controller renders into its own objects.
const GATEWAY_CONTROLLER_TEMPLATES: [&str; 4] = ["waypoint", "kube-gateway", "agentgateway", "agentgateway-waypoint"];

/// Strings that the text of a shipped template contains in every release since 1.8, the first with several templates.
const SIGNATURES: [(&str, &[&str]); 4] = [
    (
        "sidecar",
        &[
            "protoToJSON .ProxyConfig",
            "ISTIO_META_POD_PORTS",
            "ISTIO_META_APP_CONTAINERS",
            "istio-iptables",
            "- sidecar",
        ],
    ),
    ("gateway", &["protoToJSON .ProxyConfig", "ISTIO_META_POD_PORTS", "ISTIO_META_APP_CONTAINERS", "- router"]),
    ("grpc-agent", &["protoToJSON .ProxyConfig", "ISTIO_META_GENERATOR", "GRPC_XDS_BOOTSTRAP", "mesh-metrics"]),
    ("grpc-simple", &["grpc-bootstrap-init", "GRPC_XDS_BOOTSTRAP", "grpc-io-proxyless-bootstrap", "xds_servers"]),
];

/// Fields that shipped templates set.
const FIELDS: &str = "metadata labels annotations spec containers initContainers volumes volumeMounts name image args command env value \
    valueFrom fieldRef fieldPath resourceFieldRef resource divisor ports containerPort protocol imagePullPolicy resources requests limits \
    cpu memory securityContext allowPrivilegeEscalation capabilities add drop privileged readOnlyRootFilesystem runAsGroup runAsNonRoot \
    runAsUser fsGroup seccompProfile restartPolicy lifecycle postStart preStop exec httpGet path port initialDelaySeconds periodSeconds \
    timeoutSeconds failureThreshold readinessProbe startupProbe livenessProbe mountPath readOnly emptyDir medium downwardAPI items \
    configMap optional secret secretName projected sources serviceAccountToken audience expirationSeconds clusterTrustBundle signerName \
    csi driver imagePullSecrets sysctls dnsConfig searches security.istio.io/tlsMode networking.istio.io/tunnel istio.io/rev \
    service.istio.io/canonical-name service.istio.io/canonical-revision kubectl.kubernetes.io/default-logs-container \
    kubectl.kubernetes.io/default-container k8s.v1.cni.cncf.io/networks sidecar.istio.io/interceptionMode \
    sidecar.istio.io/rewriteAppHTTPProbers traffic.sidecar.istio.io/includeOutboundIPRanges \
    traffic.sidecar.istio.io/excludeOutboundIPRanges traffic.sidecar.istio.io/includeInboundPorts \
    traffic.sidecar.istio.io/excludeInboundPorts traffic.sidecar.istio.io/includeOutboundPorts \
    traffic.sidecar.istio.io/excludeOutboundPorts traffic.sidecar.istio.io/kubevirtInterfaces \
    traffic.sidecar.istio.io/excludeInterfaces istio.io/reroute-virtual-interfaces";

/// Containers, variables, volumes, ports and mount paths in shipped templates.
const NAMES: &str = "istio-init istio-validation istio-proxy enable-core-dump grpc-bootstrap-init http-envoy-prom mesh-metrics \
    REWRITE_PROBE_LEGACY_LOCALHOST_DESTINATION JWT_POLICY PILOT_CERT_PROVIDER CA_ADDR POD_NAME POD_NAMESPACE INSTANCE_IP SERVICE_ACCOUNT \
    HOST_IP ISTIO_CPU_LIMIT PROXY_CONFIG ISTIO_META_POD_PORTS ISTIO_META_APP_CONTAINERS GOMEMLIMIT GOMAXPROCS COMPLIANCE_POLICY GODEBUG \
    ISTIO_META_CLUSTER_ID ISTIO_META_NODE_NAME ISTIO_META_INTERCEPTION_MODE ISTIO_META_NETWORK ISTIO_META_WORKLOAD_NAME ISTIO_META_OWNER \
    ISTIO_BOOTSTRAP_OVERRIDE ISTIO_META_MESH_ID TRUST_DOMAIN OTEL_RESOURCE_ATTRIBUTES ISTIO_METAJSON_ANNOTATIONS CANONICAL_SERVICE \
    CANONICAL_REVISION ISTIO_META_GENERATOR OUTPUT_CERTS ISTIO_META_DNS_CAPTURE DISABLE_ENVOY ISTIO_NAMESPACE \
    GRPC_XDS_EXPERIMENTAL_SECURITY_SUPPORT GRPC_XDS_BOOTSTRAP GRPC_GO_LOG_VERBOSITY_LEVEL GRPC_GO_LOG_SEVERITY_LEVEL \
    workload-socket credential-socket workload-certs gke-workload-certificate istio-envoy istio-data istio-podinfo istio-token istio-xds \
    istiod-ca-cert istio-ca-root-cert istio-ca-crl istio-certs custom-bootstrap-volume lightstep-certs grpc-io-proxyless-bootstrap \
    istio-ca istiod-root-cert net.ipv4.ip_unprivileged_port_start istio-kubeconfig \
    /var/run/secrets/workload-spiffe-uds /var/run/secrets/credential-uds /var/run/secrets/workload-spiffe-credentials \
    /var/run/secrets/istio /var/run/secrets/istio/crl /var/lib/istio/data /etc/istio/custom-bootstrap /etc/istio/proxy \
    /var/run/secrets/tokens /etc/certs/ /etc/istio/pod /var/lib/grpc/data/";

/// Whether the gateway controller renders the template of that name, so that it is not for pods.
pub(crate) fn is_gateway_controller_template(name: &str) -> bool {
    GATEWAY_CONTROLLER_TEMPLATES.contains(&name)
}

/// Whether `text` is Istio's template of that name.
pub(crate) fn is_istio_template(name: &str, text: &str) -> bool {
    let Some((_, signature)) = SIGNATURES.iter().find(|(known, _)| *known == name) else { return false };
    signature.iter().all(|part| text.contains(part)) && without_actions(text).lines().all(is_line_of_istio)
}

/// Returns the literal text of a template, with U+FFFD in place of each action.
fn without_actions(text: &str) -> String {
    let mut literal = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, action)) = rest.split_once("{{") {
        literal.push_str(before);
        literal.push('\u{fffd}');
        rest = action.split_once("}}").map_or("", |(_, after)| after);
    }
    literal + rest
}

/// Whether a line of YAML has a field and value of Istio's templates. A line without a key is not checked.
fn is_line_of_istio(line: &str) -> bool {
    let line = line.trim().trim_start_matches("- ").trim_start();
    let Some((key, value)) = line.split_once(':') else { return true };
    let is_qualified_name = key.starts_with(|c: char| c.is_ascii_alphabetic())
        && key.chars().all(|c| c.is_ascii_alphanumeric() || "./-_".contains(c));
    if !is_qualified_name || !(value.is_empty() || value.starts_with(' ')) {
        return true;
    }
    let known = |words: &str, word: &str| words.split_whitespace().any(|known| known == word);
    let value = value.split(" #").next().unwrap_or_default().trim().trim_matches(['"', '\'']);
    let literal = !value.is_empty() && !value.contains('\u{fffd}');
    known(FIELDS, key) && (!literal || !["name", "mountPath"].contains(&key) || known(NAMES, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A text with the signature and the fields of Istio's template.
    const LIKE_SHIPPED: &str = "\
metadata:
  labels:
    security.istio.io/tlsMode: {{ index .ObjectMeta.Labels `security.istio.io/tlsMode` | default \"istio\" | quote }}
spec:
  initContainers:
  - name: istio-init
    args: [istio-iptables]
  containers:
  - name: istio-proxy  # the proxy
    args:
    - proxy
    - sidecar
    env:
    - name: PROXY_CONFIG
      value: |
        {{ protoToJSON .ProxyConfig }}
    - name: ISTIO_META_POD_PORTS
      value: |-
        [
        ]
    - name: ISTIO_META_APP_CONTAINERS
      value: \"{{ range .Spec.Containers }}{{ .Name }}{{ end }}\"
    - name: {{ $key }}
      value: x
";

    #[test]
    fn signature_and_fields_identify_a_shipped_template() {
        assert!(is_istio_template("sidecar", LIKE_SHIPPED));
        assert!(!is_istio_template("gateway", LIKE_SHIPPED), "text of another template");
        assert!(!is_istio_template("mine", LIKE_SHIPPED), "another name");
    }

    #[test]
    fn an_addition_makes_it_custom() {
        for addition in [
            "    - name: MY_VARIABLE\n      value: x\n",
            "  terminationGracePeriodSeconds: 60\n",
            "  - name: helper\n    image: x\n",
            "    volumeMounts:\n    - mountPath: /run/spire\n",
        ] {
            assert!(!is_istio_template("sidecar", &format!("{LIKE_SHIPPED}{addition}")), "{addition}");
        }
    }

    #[test]
    fn a_text_without_the_signature_is_custom() {
        assert!(!is_istio_template("sidecar", "spec:\n  containers:\n  - name: istio-proxy\n"));
    }
}
