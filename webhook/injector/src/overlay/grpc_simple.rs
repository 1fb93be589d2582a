//! The template `grpc-simple`: an application that speaks xDS to the control plane in plain text, without an agent. Nothing
//! is captured.

use serde_json::{Value, json};

use super::{env, object, partial_pod};
use crate::annotations as name;
use crate::context::InjectContext;

/// The init container that writes the bootstrap file.
const INIT: &str = "grpc-bootstrap-init";
const INIT_IMAGE: &str = "busybox:1.28";
/// The volume and folder of the bootstrap file.
const VOLUME: &str = "grpc-io-proxyless-bootstrap";
const FOLDER: &str = "/var/lib/grpc/data/";

pub(super) fn render(context: &InjectContext<'_>) -> Value {
    let mount = json!({"name": VOLUME, "mountPath": FOLDER});
    let path = format!("{FOLDER}bootstrap.json");
    let init = json!({
        "name": INIT,
        "image": INIT_IMAGE,
        // The text is constant: the shell expands values of the pod and of the administrator from variables.
        "command": ["sh", "-c", format!("cat > {path} <<END\n{}\nEND\n", bootstrap())],
        "env": [
            env::field("INSTANCE_IP", "status.podIP"),
            env::field("POD_NAME", "metadata.name"),
            env::field("POD_NAMESPACE", "metadata.namespace"),
            env::variable("ISTIO_NAMESPACE", &context.settings.values.global.istio_namespace),
        ],
        "volumeMounts": [mount],
    });
    let containers: Vec<Value> = context
        .applications
        .iter()
        .map(|application| {
            json!({
                "name": application["name"],
                "env": [
                    env::variable("GRPC_XDS_BOOTSTRAP", &path),
                    env::variable("GRPC_GO_LOG_VERBOSITY_LEVEL", "99"),
                    env::variable("GRPC_GO_LOG_SEVERITY_LEVEL", "info"),
                ],
                "volumeMounts": [mount],
            })
        })
        .collect();
    let annotations = object([(name::REWRITE_PROBES, "false".into())]);
    let spec = object([
        ("initContainers", json!([init])),
        ("containers", containers.into()),
        ("volumes", json!([{"name": VOLUME, "emptyDir": {}}])),
    ]);
    partial_pod(object([]), annotations, spec)
}

/// Returns a bootstrap for gRPC's xDS client (gRFC A27) with shell variables in it.
fn bootstrap() -> Value {
    json!({
        "xds_servers": [{
            "server_uri": "dns:///istiod.${ISTIO_NAMESPACE}.svc:15010",
            "channel_creds": [{"type": "insecure"}],
            "server_features": ["xds_v3"],
        }],
        "node": {
            "id": "sidecar~${INSTANCE_IP}~${POD_NAME}.${POD_NAMESPACE}~cluster.local",
            "metadata": {"INSTANCE_IPS": "${INSTANCE_IP}", "NAMESPACE": "${POD_NAMESPACE}", "GENERATOR": "grpc"},
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shell_expands_the_bootstrap() {
        let script = format!("cat <<END\n{}\nEND\n", bootstrap());
        let output = std::process::Command::new("sh")
            .args(["-c", &script])
            .envs([
                ("INSTANCE_IP", "10.0.0.7"),
                ("POD_NAME", "web"),
                ("POD_NAMESPACE", "shop"),
                ("ISTIO_NAMESPACE", "mesh"),
            ])
            .output()
            .unwrap();
        let file: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(file["xds_servers"][0]["server_uri"], "dns:///istiod.mesh.svc:15010");
        assert_eq!(file["node"]["id"], "sidecar~10.0.0.7~web.shop~cluster.local");
        assert_eq!(file["node"]["metadata"]["GENERATOR"], "grpc");
    }
}
