//! The CA Secret as an object of the API server.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use serde_json::{Value, json};
use weir_runtime::ClientFactory;
use weir_runtime::client::with_timeout;

use super::plan::SecretState;
use super::state::{self, CaState, KEYS, ParsedSecret};
use crate::controllers::ca_bundle::{TrustBundle, TrustFetcher};

/// Annotation of the Secret that requests a rotation, by any new value.
const ROTATE_ANNOTATION: &str = "weir.dev/rotate-ca";

/// The Secret as just read.
pub(super) struct FetchedSecret {
    pub(super) state: SecretState,
    pub(super) resource_version: Option<String>,
    pub(super) uid: Option<String>,
    pub(super) findings: Vec<String>,
}

impl From<Option<Secret>> for FetchedSecret {
    fn from(secret: Option<Secret>) -> Self {
        let Some(secret) = secret else {
            return Self { state: SecretState::Absent, resource_version: None, uid: None, findings: Vec::new() };
        };
        let rotate = secret.metadata.annotations.as_ref().and_then(|all| all.get(ROTATE_ANNOTATION)).cloned();
        let data: BTreeMap<String, Vec<u8>> =
            secret.data.unwrap_or_default().into_iter().map(|(key, bytes)| (key, bytes.0)).collect();
        let type_ = secret.type_.unwrap_or_default();
        let (state, findings) = match state::parse(&data) {
            _ if type_ != "Opaque" => {
                (SecretState::Foreign, vec![format!("its type is {type_:?} instead of \"Opaque\"")])
            }
            ParsedSecret::Empty => (SecretState::Empty, Vec::new()),
            ParsedSecret::Valid(state, findings) => {
                (SecretState::Valid { state, has_extra_keys: !findings.is_empty(), rotate }, findings)
            }
            ParsedSecret::Invalid(findings) => (SecretState::Invalid, findings),
        };
        Self { state, resource_version: secret.metadata.resource_version, uid: secret.metadata.uid, findings }
    }
}

/// Returns a fetcher of the trust bundle in the Secret.
pub fn trust_fetcher(client_factory: ClientFactory, namespace: String, secret: String) -> TrustFetcher {
    Arc::new(move || {
        let (client, namespace, secret) = (client_factory(), namespace.clone(), secret.clone());
        Box::pin(async move {
            let found = with_timeout(Api::<Secret>::namespaced(client?, &namespace).get_opt(&secret)).await;
            match FetchedSecret::from(found.map_err(|error| error.to_string())?).state {
                SecretState::Valid { state, .. } => TrustBundle::parse(&state.bundle()).map(Arc::new),
                _ => Err(format!("Secret {namespace}/{secret} holds no valid CA")),
            }
        })
    })
}

fn encode(state: &CaState) -> serde_json::Map<String, Value> {
    let encode = |text: String| Value::String(base64::engine::general_purpose::STANDARD.encode(text));
    state.to_data().into_iter().map(|(key, text)| (key.to_owned(), encode(text))).collect()
}

/// Returns the Secret to create.
pub(super) fn new_secret(name: &str, state: &CaState) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/name": "weir-webhook"}},
        "data": encode(state),
    })
}

/// Returns the merge patch that removes unused keys of ours, and leaves all others alone.
pub(super) fn secret_patch(resource_version: &str, state: &CaState) -> Value {
    let mut data = encode(state);
    for key in KEYS {
        data.entry(key).or_insert(Value::Null);
    }
    json!({"metadata": {"resourceVersion": resource_version}, "data": data})
}
