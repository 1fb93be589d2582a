//! Authentication and authorization.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use axum::http::{HeaderMap, Method, header};
use serde_json::{Value, json};

use super::resources::qualified;
use super::store::{StatusError, Store};
use super::target::Target;
use super::{ApiServer, State};

/// An authenticated user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// `kubernetes-admin`, `system:serviceaccount:NAMESPACE:NAME`, ...
    pub name: String,
    /// `system:masters`, `system:serviceaccounts`, ...
    pub groups: Vec<String>,
}

impl User {
    /// Returns the administrator, who may do everything.
    pub fn admin() -> Self {
        let groups = ["system:masters", "system:authenticated"].map(str::to_owned).to_vec();
        Self { name: "kubernetes-admin".to_owned(), groups }
    }

    /// Returns the user of a service account.
    pub fn service_account(namespace: &str, name: &str) -> Self {
        let groups = [
            "system:serviceaccounts".to_owned(),
            format!("system:serviceaccounts:{namespace}"),
            "system:authenticated".to_owned(),
        ];
        Self { name: format!("system:serviceaccount:{namespace}:{name}"), groups: groups.to_vec() }
    }

    /// Returns the `userInfo` of a review.
    pub(super) fn info(&self) -> Value {
        json!({ "username": self.name, "groups": self.groups })
    }
}

/// Action of a user, for authorization.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestAttributes {
    /// The user.
    pub user: User,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`.
    pub verb: String,
    /// API group, empty for the core group.
    pub group: String,
    /// `pods`, `secrets`, ...
    pub resource: String,
    /// `status`, `proxy` or empty.
    pub subresource: String,
    /// Empty for all namespaces and for cluster-scoped resources.
    pub namespace: String,
    /// Empty for collections.
    pub name: String,
}

#[derive(Clone, Default)]
pub(super) enum Authorizer {
    #[default]
    AllowAll,
    Rule(Arc<dyn Fn(&RequestAttributes) -> bool + Send + Sync>),
    /// The roles and bindings that are stored.
    Roles,
}

impl fmt::Debug for Authorizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AllowAll => "AllowAll",
            Self::Rule(_) => "Rule",
            Self::Roles => "Roles",
        })
    }
}

/// The known tokens and the authorizer.
#[derive(Debug, Default)]
pub(super) struct Auth {
    /// Users by bearer token; without any, everybody is the administrator.
    tokens: BTreeMap<String, User>,
    pub(super) authorizer: Authorizer,
}

impl Auth {
    /// Returns a token of an administrator, for a kubeconfig.
    pub(super) fn admin_token(&self) -> Option<&str> {
        self.tokens.iter().find(|(_, user)| **user == User::admin()).map(|(token, _)| token.as_str())
    }

    /// Returns the user of a request, or the one it impersonates (`kubectl --as`).
    pub(super) fn authenticate(&self, headers: &HeaderMap) -> Result<User, StatusError> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let bearer = text(header::AUTHORIZATION.as_str()).and_then(|value| value.strip_prefix("Bearer "));
        let user = match bearer.and_then(|token| self.tokens.get(token)) {
            Some(user) => user.clone(),
            None if self.tokens.is_empty() => User::admin(),
            None => return Err(StatusError::new(401, "Unauthorized", "Unauthorized")),
        };
        let Some(name) = text("impersonate-user") else { return Ok(user) };
        let groups =
            headers.get_all("impersonate-group").iter().filter_map(|value| Some(value.to_str().ok()?.to_owned()));
        let parts: Vec<&str> = name.split(':').collect();
        Ok(match parts.as_slice() {
            ["system", "serviceaccount", namespace, account] => User::service_account(namespace, account),
            _ => User { name: name.to_owned(), groups: groups.chain(["system:authenticated".to_owned()]).collect() },
        })
    }

    pub(super) fn is_allowed(&self, store: &Store, attributes: &RequestAttributes) -> bool {
        match &self.authorizer {
            Authorizer::AllowAll => true,
            Authorizer::Rule(rule) => rule(attributes),
            Authorizer::Roles => super::rbac::is_allowed(store, attributes),
        }
    }
}

impl RequestAttributes {
    /// Returns the attributes of a request; `named` is the object that a field selector names.
    pub(super) fn of(user: User, method: &Method, watch: bool, target: &Target, named: Option<&str>) -> Self {
        let all = target.name.is_empty();
        let verb = match *method {
            Method::GET if watch => "watch",
            Method::GET if all => "list",
            Method::GET => "get",
            Method::POST => "create",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE if all => "deletecollection",
            _ => "delete",
        };
        let name = if all { named.unwrap_or_default() } else { &target.name };
        Self {
            user,
            verb: verb.to_owned(),
            group: target.group().to_owned(),
            resource: target.resource.clone(),
            subresource: target.subresource.clone(),
            namespace: target.namespace.clone(),
            name: name.to_owned(),
        }
    }

    pub(super) fn forbidden(&self) -> StatusError {
        let Self { user, verb, group, resource, subresource, namespace, name } = self;
        let place = if namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace \"{namespace}\"")
        };
        let part = if subresource.is_empty() { resource.clone() } else { format!("{resource}/{subresource}") };
        let object = if name.is_empty() { String::new() } else { format!(" \"{name}\"") };
        let message = format!(
            "{}{object} is forbidden: User \"{}\" cannot {verb} resource \"{part}\" in API group \"{group}\" {place}",
            qualified(&format!("{group}/"), resource).trim_end_matches('.'),
            user.name
        );
        StatusError::new(403, "Forbidden", message)
    }
}

/// Answers a `SelfSubjectAccessReview` or `SubjectAccessReview`.
pub(super) fn review(state: &State, by: &User, mut review: Value) -> Value {
    let spec = &review["spec"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let user = match spec["user"].as_str() {
        None => by.clone(),
        Some(name) => {
            let groups = spec["groups"].as_array().into_iter().flatten().map(text).collect();
            User { name: name.to_owned(), groups }
        }
    };
    let resource = &spec["resourceAttributes"];
    let attributes = RequestAttributes {
        user,
        verb: text(&resource["verb"]),
        group: text(&resource["group"]),
        resource: text(&resource["resource"]),
        subresource: text(&resource["subresource"]),
        namespace: text(&resource["namespace"]),
        name: text(&resource["name"]),
    };
    let allowed = state.auth.is_allowed(&state.store, &attributes);
    review["status"] = json!({ "allowed": allowed });
    review
}

impl ApiServer {
    /// Makes `token` the administrator's and the only known one: requests without it get 401. `None` serves everybody.
    pub fn require_token(&self, token: Option<&str>) {
        let tokens = token.map(|token| (token.to_owned(), User::admin()));
        self.shared.state().auth.tokens = tokens.into_iter().collect();
    }

    /// Adds a bearer token; requests without a known one get 401.
    pub fn add_token(&self, token: &str, user: User) {
        self.shared.state().auth.tokens.insert(token.to_owned(), user);
    }

    /// Authorizes requests and answers attributes reviews by `rule`. By default everybody may do everything.
    pub fn authorize(&self, rule: impl Fn(&RequestAttributes) -> bool + Send + Sync + 'static) {
        self.shared.state().auth.authorizer = Authorizer::Rule(Arc::new(rule));
    }

    /// Authorizes requests by the stored roles and bindings.
    pub fn authorize_by_roles(&self) {
        self.shared.state().auth.authorizer = Authorizer::Roles;
    }
}
