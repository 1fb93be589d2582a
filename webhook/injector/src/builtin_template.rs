//! Names of the built-in templates.

/// A built-in template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BuiltinTemplate {
    /// A proxy beside the application, and the capture of its traffic.
    Sidecar,
    /// A standalone proxy.
    Gateway,
    /// An agent beside an application that speaks xDS itself (proxyless gRPC).
    GrpcAgent,
    /// An application that speaks xDS itself, without an agent.
    GrpcSimple,
}

impl BuiltinTemplate {
    const ALL: [(&'static str, Self); 4] = [
        ("sidecar", Self::Sidecar),
        ("gateway", Self::Gateway),
        ("grpc-agent", Self::GrpcAgent),
        ("grpc-simple", Self::GrpcSimple),
    ];

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, template)| *template)
    }

    pub(crate) fn names() -> [&'static str; Self::ALL.len()] {
        Self::ALL.map(|(name, _)| name)
    }
}
