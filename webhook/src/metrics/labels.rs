//! Values of metric labels.

/// Reason for which a request to `/inject` was not allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReviewFailure {
    /// The pod has invalid settings.
    Denied,
    /// The body is not an AdmissionReview.
    BadRequest,
    /// The `Content-Type` is not JSON.
    MediaType,
    /// The body exceeds its limit.
    TooLarge,
    /// The request did not arrive in time.
    Timeout,
    /// Too many reviews in flight.
    Overloaded,
    /// There are no settings yet.
    NotReady,
    /// A bug of the webhook.
    Internal,
}

impl ReviewFailure {
    pub(super) const ALL: [Self; 8] = [
        Self::Denied,
        Self::BadRequest,
        Self::MediaType,
        Self::TooLarge,
        Self::Timeout,
        Self::Overloaded,
        Self::NotReady,
        Self::Internal,
    ];

    /// Returns the value of the label `reason`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::BadRequest => "bad_request",
            Self::MediaType => "media_type",
            Self::TooLarge => "too_large",
            Self::Timeout => "timeout",
            Self::Overloaded => "overloaded",
            Self::NotReady => "not_ready",
            Self::Internal => "internal",
        }
    }
}

/// Files that are reloaded while the server runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReloadSource {
    /// Certificate and key.
    Certificate,
    /// Documents of the settings: values, mesh and config.
    Settings,
    /// `ProxyConfig` resources.
    ProxyConfigs,
    /// Nodes.
    Nodes,
    /// Namespaces.
    Namespaces,
}

impl ReloadSource {
    pub(super) const ALL: [Self; 5] =
        [Self::Certificate, Self::Settings, Self::ProxyConfigs, Self::Nodes, Self::Namespaces];

    /// Returns the value of the label `source`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Certificate => "certificate",
            Self::Settings => "settings",
            Self::ProxyConfigs => "proxyconfigs",
            Self::Nodes => "nodes",
            Self::Namespaces => "namespaces",
        }
    }
}
