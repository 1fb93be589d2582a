//! Misbehaviour on order.

use std::time::Duration;

/// What happens instead of an answer, or before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// The answer comes this much later.
    Slow(Duration),
    /// An error of this status, 401, 410, 429, 500, ...
    Status(u16),
    /// No answer at all; the connection stays open.
    Hang,
    /// A watch that begins with the event `ERROR` and this status, as the real one tells 410.
    ErrorEvent(u16),
}

/// Which requests are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// All.
    Always,
    /// A watch.
    Watch,
    /// A list, not a watch.
    List,
    /// Requests of this method, `GET`, `POST`, `PATCH`, `DELETE`.
    Method(&'static str),
    /// Requests of this user, `system:serviceaccount:NAMESPACE:NAME`.
    User(&'static str),
    /// Requests for this resource, `secrets`, `configmaps`, ...
    Resource(&'static str),
}

/// A trouble that is still to come.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) when: When,
    pub(super) trouble: Trouble,
    pub(super) times: usize,
}

/// A request, as far as it matters here.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) method: &'a str,
    pub(super) watch: bool,
    pub(super) list: bool,
    pub(super) resource: &'a str,
    /// Empty for one that is not known.
    pub(super) user: &'a str,
}

impl When {
    fn fits(self, asked: Asked<'_>) -> bool {
        match self {
            Self::Always => true,
            Self::Watch => asked.watch,
            Self::List => asked.list && !asked.watch,
            Self::Method(method) => asked.method == method,
            Self::User(user) => asked.user == user,
            Self::Resource(resource) => asked.resource == resource,
        }
    }
}

/// Takes the first trouble that the request meets.
pub(super) fn next(pending: &mut Vec<Pending>, asked: Asked<'_>) -> Option<Trouble> {
    let found = pending.iter_mut().find(|pending| pending.when.fits(asked))?;
    let trouble = found.trouble;
    found.times = found.times.saturating_sub(1);
    pending.retain(|pending| pending.times > 0);
    Some(trouble)
}
