//! Who asks, and what they may do.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use axum::http::{HeaderMap, Method, header};
use serde_json::{Value, json};

use super::resources::qualified;
use super::store::{Refusal, Store};
use super::target::Target;
use super::{ApiServer, State};

/// Somebody who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// `kubernetes-admin`, `system:serviceaccount:NAMESPACE:NAME`, ...
    pub name: String,
    /// `system:masters`, `system:serviceaccounts`, ...
    pub groups: Vec<String>,
}

impl User {
    /// Who may do everything.
    pub fn admin() -> Self {
        let groups = ["system:masters", "system:authenticated"].map(str::to_owned).to_vec();
        Self { name: "kubernetes-admin".to_owned(), groups }
    }

    /// A service account.
    pub fn service_account(namespace: &str, name: &str) -> Self {
        let groups = [
            "system:serviceaccounts".to_owned(),
            format!("system:serviceaccounts:{namespace}"),
            "system:authenticated".to_owned(),
        ];
        Self { name: format!("system:serviceaccount:{namespace}:{name}"), groups: groups.to_vec() }
    }

    /// As reviews carry it.
    pub(super) fn info(&self) -> Value {
        json!({ "username": self.name, "groups": self.groups })
    }
}

/// Something that somebody wants to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// Who.
    pub user: User,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`.
    pub verb: String,
    /// Group of the resource, empty for the core.
    pub group: String,
    /// `pods`
    pub resource: String,
    /// `status`, `proxy` or empty.
    pub subresource: String,
    /// Empty for all of them, and for what is in none.
    pub namespace: String,
    /// Empty where it is about no object in particular.
    pub name: String,
}

/// Who decides.
#[derive(Clone, Default)]
pub(super) enum Authorizer {
    #[default]
    Everything,
    Rule(Arc<dyn Fn(&Access) -> bool + Send + Sync>),
    /// The roles and bindings that are stored.
    Roles,
}

impl fmt::Debug for Authorizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Everything => "Everything",
            Self::Rule(_) => "Rule",
            Self::Roles => "Roles",
        })
    }
}

/// How requests are told apart.
#[derive(Debug, Default)]
pub(super) struct Auth {
    /// By bearer token; with none, everybody is the administrator.
    tokens: BTreeMap<String, User>,
    pub(super) authorizer: Authorizer,
}

impl Auth {
    /// The token of an administrator, for a kubeconfig.
    pub(super) fn admins_token(&self) -> Option<&str> {
        self.tokens.iter().find(|(_, user)| **user == User::admin()).map(|(token, _)| token.as_str())
    }

    /// Who asks; also in the name of somebody else, as `kubectl --as` does.
    pub(super) fn identify(&self, headers: &HeaderMap) -> Result<User, Refusal> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let bearer = text(header::AUTHORIZATION.as_str()).and_then(|value| value.strip_prefix("Bearer "));
        let user = match bearer.and_then(|token| self.tokens.get(token)) {
            Some(user) => user.clone(),
            None if self.tokens.is_empty() => User::admin(),
            None => return Err(Refusal::new(401, "Unauthorized", "Unauthorized")),
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

    /// Whether somebody may do something.
    pub(super) fn allows(&self, store: &Store, access: &Access) -> bool {
        match &self.authorizer {
            Authorizer::Everything => true,
            Authorizer::Rule(rule) => rule(access),
            Authorizer::Roles => super::rbac::allows(store, access),
        }
    }
}

impl Access {
    /// What a request wants; `named` is the object that a field selector names.
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

    pub(super) fn refusal(&self) -> Refusal {
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
        Refusal::new(403, "Forbidden", message)
    }
}

/// The answer to a `SelfSubjectAccessReview` or `SubjectAccessReview`.
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
    let asked = &spec["resourceAttributes"];
    let access = Access {
        user,
        verb: text(&asked["verb"]),
        group: text(&asked["group"]),
        resource: text(&asked["resource"]),
        subresource: text(&asked["subresource"]),
        namespace: text(&asked["namespace"]),
        name: text(&asked["name"]),
    };
    let allowed = state.auth.allows(&state.store, &access);
    review["status"] = json!({ "allowed": allowed });
    review
}

impl ApiServer {
    /// From now on only requests with a known bearer token are served, all others get 401; this one is the administrator's. `None`
    /// serves everybody.
    pub fn require_token(&self, token: Option<&str>) {
        let tokens = token.map(|token| (token.to_owned(), User::admin()));
        self.shared.state().auth.tokens = tokens.into_iter().collect();
    }

    /// Knows a bearer token from now on; everybody without one gets 401.
    pub fn know(&self, token: &str, user: User) {
        self.shared.state().auth.tokens.insert(token.to_owned(), user);
    }

    /// Lets this decide who may do what: for every request, and in the answers to access reviews. At first everybody may do everything.
    pub fn authorize(&self, rule: impl Fn(&Access) -> bool + Send + Sync + 'static) {
        self.shared.state().auth.authorizer = Authorizer::Rule(Arc::new(rule));
    }

    /// Lets the stored roles and their bindings decide who may do what.
    pub fn authorize_by_roles(&self) {
        self.shared.state().auth.authorizer = Authorizer::Roles;
    }
}
