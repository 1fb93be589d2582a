//! Downloads of manifests, with a limit on size and time.

use std::io::Read as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

/// Limits of a download.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) bytes: u64,
    pub(crate) time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 16 * 1024 * 1024, time: Duration::from_secs(30) }
    }
}

/// Returns whether an argument is a URL and not a file.
pub(crate) fn is_url(name: &str) -> bool {
    name.starts_with("http://") || name.starts_with("https://")
}

/// Downloads a text. The certificate of an https server must be signed by an authority that this machine trusts (`SSL_CERT_FILE`).
///
/// # Errors
/// The server cannot be reached, does not respond with 200, or a limit is exceeded; the message names the URL.
pub(crate) fn fetch(url: &str, limits: Limits) -> anyhow::Result<String> {
    let context = || format!("cannot read {url}");
    let mut builder = ureq::Agent::config_builder().timeout_global(Some(limits.time)).max_redirects(5);
    if url.starts_with("https://") {
        builder = builder.https_only(true).tls_config(tls());
    }
    let mut response = ureq::Agent::new_with_config(builder.build()).get(url).call().with_context(context)?;
    let mut bytes = Vec::new();
    let reader = response.body_mut().as_reader();
    reader.take(limits.bytes + 1).read_to_end(&mut bytes).with_context(context)?;
    anyhow::ensure!(bytes.len() as u64 <= limits.bytes, "{}: it has more than {} bytes", context(), limits.bytes);
    String::from_utf8(bytes).map_err(|_| anyhow::anyhow!("{url}: not valid UTF-8"))
}

fn tls() -> TlsConfig {
    // Certificates that cannot be parsed are no authorities.
    let found = rustls_native_certs::load_native_certs().certs;
    let roots = found.iter().map(|certificate| Certificate::from_der(certificate).to_owned()).collect();
    TlsConfig::builder()
        .root_certs(RootCerts::Specific(Arc::new(roots)))
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build()
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{Ipv4Addr, TcpListener};
    use std::thread;

    use super::*;

    /// Serves one response to one request.
    fn serve(response: &'static str, delay: Duration) -> String {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let url = format!("http://{}/web.yaml", listener.local_addr().unwrap());
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 4096]).unwrap();
            thread::sleep(delay);
            // The client may have given up.
            let _ = stream.write_all(response.as_bytes());
        });
        url
    }

    fn error(response: &'static str, delay: Duration) -> String {
        let url = serve(response, delay);
        let error = fetch(&url, Limits { bytes: 4, time: Duration::from_millis(500) }).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.starts_with(&format!("cannot read {url}: ")), "{text}");
        text
    }

    #[test]
    fn a_text_is_downloaded() {
        let url = serve("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\na: 1\n", Duration::ZERO);
        assert_eq!(fetch(&url, Limits::default()).unwrap(), "a: 1\n");
    }

    #[test]
    fn size_time_and_status_are_bounded() {
        let long = error("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\na: 1\n", Duration::ZERO);
        assert!(long.ends_with("it has more than 4 bytes"), "{long}");
        assert!(error("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", Duration::ZERO).contains("404"));
        assert!(error("", Duration::from_secs(5)).contains("timeout"));
    }

    #[test]
    fn only_http_and_https_are_urls() {
        assert!(is_url("https://h/web.yaml") && is_url("http://h/web.yaml"));
        assert!(!is_url("file:///etc/passwd") && !is_url("https.yaml"));
    }
}
