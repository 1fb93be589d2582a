//! Reason for which the API server could not call a webhook, classified from its error message.

use crate::fault::{self, Fault};

/// A failed call of a webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WebhookCallError {
    pub(super) fault: &'static Fault,
    /// Meaning of the message, and the message.
    pub(super) text: String,
}

/// Part of the API server's message, the fault, and what it means. The first match counts.
///
/// Sources: k8s.io/apiserver `pkg/util/webhook` and `admission/plugin/webhook`, Go's `net`, `net/http` and `crypto/x509`.
const MESSAGE_PATTERNS: &[(&str, &Fault, &str)] = &[
    ("no endpoints available for service", &fault::NO_READY_ENDPOINTS, "the Service has no ready endpoint"),
    ("no service port", &fault::SERVICE_PORT_MISMATCH, "the Service does not have the requested port"),
    ("connection refused", &fault::CONNECTION_REFUSED, "nothing listens at the address"),
    (
        "certificate signed by unknown authority",
        &fault::CA_BUNDLE_STALE,
        "the caBundle does not verify the certificate",
    ),
    ("unable to parse bytes as PEM block", &fault::CA_BUNDLE_INVALID, "the caBundle holds no certificate"),
    ("unable to load root certificates", &fault::CA_BUNDLE_INVALID, "the caBundle holds no certificate"),
    (
        "certificate has expired or is not yet valid",
        &fault::CERTIFICATE_EXPIRED,
        "the certificate has expired, or the clock of one side is wrong",
    ),
    ("x509: certificate is valid for", &fault::CERTIFICATE_NAME, "the certificate is for another name"),
    ("x509: certificate is not valid for any names", &fault::CERTIFICATE_NAME, "the certificate is for no name"),
    ("doesn't contain any IP SANs", &fault::CERTIFICATE_NAME, "the certificate is for another name"),
    (
        "certificate relies on legacy Common Name",
        &fault::CERTIFICATE_NAME,
        "the certificate has no subject alternative name",
    ),
    (
        "tls: certificate required",
        &fault::CLIENT_CERTIFICATE_REFUSED,
        "the webhook requires a client certificate and receives none",
    ),
    (
        "tls: bad certificate",
        &fault::CLIENT_CERTIFICATE_REFUSED,
        "the webhook does not accept the API server's client certificate",
    ),
    (
        "tls: unknown certificate authority",
        &fault::CLIENT_CERTIFICATE_REFUSED,
        "the webhook does not accept the API server's client certificate",
    ),
    ("x509:", &fault::CA_BUNDLE_STALE, "the API server does not accept the certificate"),
    ("i/o timeout", &fault::CONNECTION_TIMEOUT, "packets to the webhook's pods are dropped"),
    (
        "context deadline exceeded",
        &fault::CONNECTION_TIMEOUT,
        "no response in time, usually because packets to the webhook's pods are dropped",
    ),
    (
        "Client.Timeout exceeded",
        &fault::CONNECTION_TIMEOUT,
        "no response in time, usually because packets to the webhook's pods are dropped",
    ),
    (
        "TLS handshake timeout",
        &fault::CONNECTION_TIMEOUT,
        "connected, but no response: packets are dropped, or too large for the path (MTU)",
    ),
    ("no such host", &fault::CONNECTION_BROKEN, "the API server cannot resolve the host name of the URL"),
    ("server gave HTTP response to HTTPS client", &fault::CONNECTION_BROKEN, "the port serves HTTP without TLS"),
    ("no route to host", &fault::CONNECTION_BROKEN, "no route from the control plane to the webhook's pods"),
    ("network is unreachable", &fault::CONNECTION_BROKEN, "no route from the control plane to the webhook's pods"),
    (
        "connection reset by peer",
        &fault::CONNECTION_BROKEN,
        "the webhook, or something in between, resets the connection",
    ),
    ("broken pipe", &fault::CONNECTION_BROKEN, "the webhook, or something in between, resets the connection"),
    ("EOF", &fault::CONNECTION_BROKEN, "the connection is closed without a response"),
    ("could not find the requested resource", &fault::WEBHOOK_ANSWERS_ERROR, "the server does not know the path (404)"),
    ("forbidden", &fault::WEBHOOK_ANSWERS_ERROR, "the server rejects the API server (403)"),
    ("an error on the server", &fault::WEBHOOK_ANSWERS_ERROR, "the server failed (500)"),
    ("the server is currently unable", &fault::WEBHOOK_ANSWERS_ERROR, "the server is overloaded (503)"),
    ("server rejected our request", &fault::WEBHOOK_ANSWERS_ERROR, "the server rejects the request"),
];

/// Returns the webhook that a message of the API server is about, and the error. `None` if it is about no webhook.
pub(super) fn parse_message(message: &str) -> Option<(String, WebhookCallError)> {
    if let Some(rest) = message.split("admission webhook \"").nth(1) {
        let (webhook, rest) = rest.split_once('"')?;
        let reason = rest.trim_start_matches(" denied the request").trim_start_matches([':', ' ']);
        let error = WebhookCallError { fault: &fault::WEBHOOK_DENIES, text: format!("denied: {reason}") };
        return Some((webhook.to_owned(), error));
    }
    let rest = message.split("failed calling webhook \"").nth(1)?;
    let (webhook, rest) = rest.split_once('"')?;
    let reason =
        rest.trim_start_matches([':', ' ']).trim_start_matches("failed to call webhook").trim_start_matches([':', ' ']);
    Some((webhook.to_owned(), classify(reason)))
}

fn classify(reason: &str) -> WebhookCallError {
    // service "weir-webhook" not found
    let is_service_missing = reason.contains("service \"") && reason.contains("not found");
    let found = MESSAGE_PATTERNS.iter().find(|(pattern, ..)| reason.contains(pattern));
    let (fault, meaning): (&'static Fault, _) = match found {
        _ if is_service_missing => (&fault::SERVICE_MISSING, "the Service does not exist"),
        Some((_, fault, meaning)) => (fault, *meaning),
        None if reason.starts_with("Post \"") => (&fault::CONNECTION_BROKEN, "the call fails"),
        // Errors of the HTTP request itself name its URL: this one is about the response.
        None => (&fault::WEBHOOK_ANSWERS_ERROR, "the response is not that of a webhook"),
    };
    WebhookCallError { fault, text: format!("{meaning} ({reason})") }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Messages of real API servers, and the fault that each shows.
    const MESSAGES: &[(&str, &str)] = &[
        (r#"Post "https://w.svc:443/inject": no endpoints available for service "weir-webhook""#, "no-ready-endpoints"),
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
    ];

    #[test]
    fn classifies_messages_of_api_servers() {
        let call = r#"Internal error occurred: failed calling webhook "namespace.sidecar-injector.weir.dev": failed to call webhook: "#;
        let post = r#"Post "https://weir-webhook.weir-system.svc:443/inject?timeout=5s": "#;
        for (reason, name) in MESSAGES {
            let (webhook, error) = parse_message(&format!("{call}{post}{reason}")).unwrap();
            assert_eq!(
                (webhook.as_str(), error.fault.name),
                ("namespace.sidecar-injector.weir.dev", *name),
                "{reason}"
            );
            assert!(error.text.contains(reason), "{}", error.text);
        }
        for reason in [
            "no kind \"Pod\" is registered for version \"admission.k8s.io/v1\" in scheme \"pkg/runtime/scheme.go:111\"",
            "received invalid webhook response: expected response.uid=\"a\", got \"b\"",
        ] {
            let (_, error) = parse_message(&format!("{call}{reason}")).unwrap();
            assert_eq!(error.fault.name, "webhook-answers-error", "{reason}");
        }
    }

    #[test]
    fn distinguishes_denials_from_failures_and_other_plugins() {
        let denied = r#"admission webhook "object.sidecar-injector.weir.dev" denied the request: invalid value 'x'"#;
        let (webhook, error) = parse_message(denied).unwrap();
        assert_eq!((webhook.as_str(), error.fault.name), ("object.sidecar-injector.weir.dev", "webhook-denies"));
        assert_eq!(error.text, "denied: invalid value 'x'");
        assert_eq!(parse_message("pods \"x\" is forbidden: violates PodSecurity \"restricted:latest\""), None);
    }
}
