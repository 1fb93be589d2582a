//! The Secret as an object of the API server.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use serde_json::{Value, json};
use weir_runtime::connect::{Connect, bounded};

use super::plan::Seen;
use super::state::{self, CaState, KEYS, Read};
use crate::cluster::bundle::{Refresh, Trust};

/// Annotation of the Secret by which an administrator asks for a rotation: any value that was not there before.
pub const ROTATE: &str = "weir.dev/rotate-ca";
/// The Secret, as just read.
pub(super) struct Found {
    pub(super) seen: Seen,
    pub(super) version: Option<String>,
    pub(super) uid: Option<String>,
    pub(super) findings: Vec<String>,
}

impl From<Option<Secret>> for Found {
    fn from(secret: Option<Secret>) -> Self {
        let Some(secret) = secret else {
            return Self { seen: Seen::Absent, version: None, uid: None, findings: Vec::new() };
        };
        let rotate = secret.metadata.annotations.as_ref().and_then(|all| all.get(ROTATE)).cloned();
        let data: BTreeMap<String, Vec<u8>> =
            secret.data.unwrap_or_default().into_iter().map(|(key, bytes)| (key, bytes.0)).collect();
        let kind = secret.type_.unwrap_or_default();
        let (seen, findings) = match state::read(&data) {
            _ if kind != "Opaque" => (Seen::Foreign, vec![format!("its type is {kind:?} instead of \"Opaque\"")]),
            Read::Empty => (Seen::Empty, Vec::new()),
            Read::Good(state, findings) => (Seen::Good { state, untidy: !findings.is_empty(), rotate }, findings),
            Read::Damaged(findings) => (Seen::Damaged, findings),
        };
        Self { seen, version: secret.metadata.resource_version, uid: secret.metadata.uid, findings }
    }
}

/// Reads what is to be trusted from the Secret itself.
pub fn refresh(connect: Connect, namespace: String, secret: String) -> Refresh {
    Arc::new(move || {
        let (client, namespace, secret) = (connect(), namespace.clone(), secret.clone());
        Box::pin(async move {
            let found = bounded(Api::<Secret>::namespaced(client?, &namespace).get_opt(&secret)).await;
            match Found::from(found.map_err(|refusal| refusal.to_string())?).seen {
                Seen::Good { state, .. } => Trust::parse(&state.bundle()).map(Arc::new),
                _ => Err(format!("Secret {namespace}/{secret} holds no CA at the moment")),
            }
        })
    })
}

fn encoded(state: &CaState) -> serde_json::Map<String, Value> {
    let encode = |text: String| Value::String(base64::engine::general_purpose::STANDARD.encode(text));
    state.to_data().into_iter().map(|(key, text)| (key.to_owned(), encode(text))).collect()
}

/// The whole object.
pub(super) fn new_secret(name: &str, state: &CaState) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/name": "weir-webhook"}},
        "data": encoded(state),
    })
}

/// Keys of others stay; ours that are no longer there are removed.
pub(super) fn changed_secret(version: &str, state: &CaState) -> Value {
    let mut data = encoded(state);
    for key in KEYS {
        data.entry(key).or_insert(Value::Null);
    }
    json!({"metadata": {"resourceVersion": version}, "data": data})
}
