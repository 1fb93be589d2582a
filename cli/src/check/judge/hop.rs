//! Which hop between the API server and the webhook is blocked, read from the API server's message.

use crate::check::fault::{self, Fault};

/// What a message of the API server says about a webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hop {
    /// The fault.
    pub(super) fault: &'static Fault,
    /// What it means.
    pub(super) text: String,
}

/// A piece of the API server's message, the fault, and what it means.
///
/// Sources: k8s.io/apiserver `pkg/util/webhook` and `admission/plugin/webhook`, Go's `net`, `net/http` and `crypto/x509`.
const SIGNS: &[(&str, &Fault, &str)] = &[
    ("no endpoints available for service", &fault::NO_READY_ENDPOINTS, "the Service has no ready endpoint"),
    ("no service port", &fault::SERVICE_PORT_MISMATCH, "the Service does not have the port that is asked for"),
    ("connection refused", &fault::CONNECTION_REFUSED, "nothing listens at the address"),
    (
        "certificate signed by unknown authority",
        &fault::CA_BUNDLE_STALE,
        "the caBundle does not verify the certificate that is served",
    ),
    ("unable to parse bytes as PEM block", &fault::CA_BUNDLE_INVALID, "the caBundle holds no certificate"),
    ("unable to load root certificates", &fault::CA_BUNDLE_INVALID, "the caBundle holds no certificate"),
    (
        "certificate has expired or is not yet valid",
        &fault::CERTIFICATE_EXPIRED,
        "the certificate that is served has expired, or the clock of one side is wrong",
    ),
    ("x509: certificate is valid for", &fault::CERTIFICATE_NAME, "the certificate that is served is for another name"),
    (
        "x509: certificate is not valid for any names",
        &fault::CERTIFICATE_NAME,
        "the certificate that is served is for no name",
    ),
    ("doesn't contain any IP SANs", &fault::CERTIFICATE_NAME, "the certificate that is served is for another name"),
    (
        "certificate relies on legacy Common Name",
        &fault::CERTIFICATE_NAME,
        "the certificate that is served has no subject alternative name",
    ),
    (
        "tls: certificate required",
        &fault::CLIENT_CERTIFICATE_REFUSED,
        "the webhook asks for a client certificate, and gets none",
    ),
    (
        "tls: bad certificate",
        &fault::CLIENT_CERTIFICATE_REFUSED,
        "the webhook does not take the API server's client certificate",
    ),
    (
        "tls: unknown certificate authority",
        &fault::CLIENT_CERTIFICATE_REFUSED,
        "the webhook does not take the API server's client certificate",
    ),
    ("x509:", &fault::CA_BUNDLE_STALE, "the API server does not accept the certificate that is served"),
    ("i/o timeout", &fault::CONNECTION_TIMEOUT, "packets to the webhook's pods are lost"),
    (
        "context deadline exceeded",
        &fault::CONNECTION_TIMEOUT,
        "no answer came in time, most often because packets to the webhook's pods are lost",
    ),
    (
        "Client.Timeout exceeded",
        &fault::CONNECTION_TIMEOUT,
        "no answer came in time, most often because packets to the webhook's pods are lost",
    ),
    (
        "TLS handshake timeout",
        &fault::CONNECTION_TIMEOUT,
        "the connection is made, and nothing comes back over it: packets are lost, or too large for the path (MTU)",
    ),
    ("no such host", &fault::CONNECTION_BROKEN, "the name of the URL is not known to the API server's resolver"),
    ("server gave HTTP response to HTTPS client", &fault::CONNECTION_BROKEN, "the port speaks HTTP without TLS"),
    ("no route to host", &fault::CONNECTION_BROKEN, "there is no way from the control plane to the webhook's pods"),
    (
        "network is unreachable",
        &fault::CONNECTION_BROKEN,
        "there is no way from the control plane to the webhook's pods",
    ),
    (
        "connection reset by peer",
        &fault::CONNECTION_BROKEN,
        "the connection is cut, by the webhook or something on the way",
    ),
    ("broken pipe", &fault::CONNECTION_BROKEN, "the connection is cut, by the webhook or something on the way"),
    ("EOF", &fault::CONNECTION_BROKEN, "the connection is closed without an answer"),
    (
        "could not find the requested resource",
        &fault::WEBHOOK_ANSWERS_ERROR,
        "what answers does not know the path (404)",
    ),
    ("forbidden", &fault::WEBHOOK_ANSWERS_ERROR, "what answers refuses the API server (403)"),
    ("an error on the server", &fault::WEBHOOK_ANSWERS_ERROR, "what answers says that it has failed (500)"),
    ("the server is currently unable", &fault::WEBHOOK_ANSWERS_ERROR, "what answers says that it is busy (503)"),
    ("server rejected our request", &fault::WEBHOOK_ANSWERS_ERROR, "what answers refuses the request"),
];

/// Reads a message: whose webhook it is about, and what it says. `None` where it is about none.
pub(super) fn read(message: &str) -> Option<(String, Hop)> {
    if let Some(rest) = message.split("admission webhook \"").nth(1) {
        let (webhook, rest) = rest.split_once('"')?;
        let reason = rest.trim_start_matches(" denied the request").trim_start_matches([':', ' ']);
        let text = format!("denied: {reason}");
        return Some((webhook.to_owned(), Hop { fault: &fault::WEBHOOK_DENIES, text }));
    }
    let rest = message.split("failed calling webhook \"").nth(1)?;
    let (webhook, rest) = rest.split_once('"')?;
    let said =
        rest.trim_start_matches([':', ' ']).trim_start_matches("failed to call webhook").trim_start_matches([':', ' ']);
    Some((webhook.to_owned(), of(said)))
}

/// What the end of such a message says.
pub(super) fn of(said: &str) -> Hop {
    // service "weir-webhook" not found
    let service_missing = said.contains("service \"") && said.contains("not found");
    let found = SIGNS.iter().find(|(sign, ..)| said.contains(sign));
    let (fault, meaning): (&'static Fault, _) = match found {
        _ if service_missing => (&fault::SERVICE_MISSING, "the Service is not there"),
        Some((_, fault, meaning)) => (fault, *meaning),
        None if said.starts_with("Post \"") => (&fault::CONNECTION_BROKEN, "the call fails"),
        // The request as such went well, or its address would be told.
        None => (&fault::WEBHOOK_ANSWERS_ERROR, "what answers is no webhook"),
    };
    Hop { fault, text: format!("{meaning} ({said})") }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Messages as API servers write them.
    #[test]
    fn names_the_hop_of_every_message() {
        let call = r#"Internal error occurred: failed calling webhook "namespace.sidecar-injector.weir.dev": failed to call webhook: "#;
        let post = r#"Post "https://weir-webhook.weir-system.svc:443/inject?timeout=5s": "#;
        for (said, name) in [
            (
                r#"Post "https://w.svc:443/inject": no endpoints available for service "weir-webhook""#,
                "no-ready-endpoints",
            ),
            (r#"Post "https://w.svc:443/inject": service "weir-webhook" not found"#, "service-missing"),
            (r#"no service port 443 found for service "weir-webhook""#, "service-port-mismatch"),
            ("dial tcp 10.96.12.7:443: connect: connection refused", "connection-refused"),
            ("dial tcp 10.0.0.7:15017: i/o timeout", "connection-timeout"),
            ("context deadline exceeded", "connection-timeout"),
            (
                "net/http: request canceled while waiting for connection (Client.Timeout exceeded while awaiting headers)",
                "connection-timeout",
            ),
            ("net/http: TLS handshake timeout", "connection-timeout"),
            (
                "tls: failed to verify certificate: x509: certificate signed by unknown authority (possibly because of \"crypto/rsa: verification error\")",
                "ca-bundle-stale",
            ),
            (
                "tls: failed to verify certificate: x509: certificate is valid for localhost, not weir-webhook.weir-system.svc",
                "certificate-name",
            ),
            (
                "tls: failed to verify certificate: x509: certificate has expired or is not yet valid: current time 2026-11-27T00:00:00Z is after 2026-01-01T00:00:00Z",
                "certificate-expired",
            ),
            ("unable to load root certificates: unable to parse bytes as PEM block", "ca-bundle-invalid"),
            ("remote error: tls: certificate required", "client-certificate-refused"),
            ("http: server gave HTTP response to HTTPS client", "connection-broken"),
            ("dial tcp: lookup injector.example: no such host", "connection-broken"),
            ("EOF", "connection-broken"),
            ("the server could not find the requested resource", "webhook-answers-error"),
            (r#"an error on the server ("panic") has prevented the request from succeeding"#, "webhook-answers-error"),
            ("something that nobody has seen yet", "connection-broken"),
        ] {
            let (webhook, hop) = read(&format!("{call}{post}{said}")).expect(said);
            assert_eq!((webhook.as_str(), hop.fault.name), ("namespace.sidecar-injector.weir.dev", name), "{said}");
            assert!(hop.text.contains(said), "{}", hop.text);
        }
        for said in [
            "no kind \"Pod\" is registered for version \"admission.k8s.io/v1\" in scheme \"pkg/runtime/scheme.go:111\"",
            "received invalid webhook response: expected response.uid=\"a\", got \"b\"",
        ] {
            assert_eq!(read(&format!("{call}{said}")).expect(said).1.fault.name, "webhook-answers-error", "{said}");
        }
    }

    #[test]
    fn a_denial_is_told_from_a_failure_and_from_what_others_say() {
        let denied = r#"admission webhook "object.sidecar-injector.weir.dev" denied the request: invalid value 'x'"#;
        let (webhook, hop) = read(denied).unwrap();
        assert_eq!((webhook.as_str(), hop.fault.name), ("object.sidecar-injector.weir.dev", "webhook-denies"));
        assert_eq!(hop.text, "denied: invalid value 'x'");
        assert_eq!(read("pods \"x\" is forbidden: violates PodSecurity \"restricted:latest\""), None);
    }
}
