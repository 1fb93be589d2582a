//! Faults that tests inject.

use std::time::Duration;

/// Behaviour of the server instead of a response, or before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerFault {
    /// Delays the response.
    Slow(Duration),
    /// Responds with this status: 401, 410, 429, 500, ...
    Status(u16),
    /// Never responds; the connection stays open.
    Hang,
    /// Starts a watch with an event `ERROR` of this status, as kube-apiserver reports 410.
    ErrorEvent(u16),
}

/// Requests that a fault applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultTarget {
    /// All requests.
    Always,
    /// Watches.
    Watch,
    /// Lists, not watches.
    List,
    /// Requests of this method, `GET`, `POST`, `PATCH`, `DELETE`.
    Method(&'static str),
    /// Requests of this user, `system:serviceaccount:NAMESPACE:NAME`.
    User(&'static str),
    /// Requests for this resource, `secrets`, `configmaps`, ...
    Resource(&'static str),
}

/// A fault to inject `times` more times.
#[derive(Debug)]
pub(super) struct PendingFault {
    pub(super) target: FaultTarget,
    pub(super) fault: ServerFault,
    pub(super) times: usize,
}

/// Fields that a [`FaultTarget`] matches on.
#[derive(Debug, Clone, Copy)]
pub(super) struct RequestInfo<'a> {
    pub(super) method: &'a str,
    pub(super) watch: bool,
    pub(super) list: bool,
    pub(super) resource: &'a str,
    /// Empty where authentication failed.
    pub(super) user: &'a str,
}

impl FaultTarget {
    fn matches(self, request: RequestInfo<'_>) -> bool {
        match self {
            Self::Always => true,
            Self::Watch => request.watch,
            Self::List => request.list && !request.watch,
            Self::Method(method) => request.method == method,
            Self::User(user) => request.user == user,
            Self::Resource(resource) => request.resource == resource,
        }
    }
}

/// Takes the first fault that applies to a request.
pub(super) fn take_matching(pending: &mut Vec<PendingFault>, request: RequestInfo<'_>) -> Option<ServerFault> {
    let found = pending.iter_mut().find(|pending| pending.target.matches(request))?;
    let fault = found.fault;
    found.times = found.times.saturating_sub(1);
    pending.retain(|pending| pending.times > 0);
    Some(fault)
}
