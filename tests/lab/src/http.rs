//! Minimal HTTP client and server.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};

use crate::error::LabError;

/// Timeout of one request; that of the webhook configuration in our manifests.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum size of a request head, in bytes.
const MAX_HEAD_BYTES: u64 = 64 * 1024;

/// An HTTP response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Body.
    pub body: String,
}

/// Sends `GET http://TO/PATH` from the network namespace of the calling thread.
///
/// # Errors
/// Returns an error if there is no response, whatever its status.
pub fn get(to: SocketAddr, path: &str) -> Result<Response, LabError> {
    let url = format!("http://{to}{path}");
    let get = || -> Result<Response, ureq::Error> {
        let mut response = client(None).get(&url).call()?;
        Ok(Response { status: response.status().as_u16(), body: response.body_mut().read_to_string()? })
    };
    get().map_err(|error| LabError::new(format!("GET {url}"), io::Error::other(error)))
}

/// Reads the head of a request and responds with status 200 and a text.
pub fn respond(mut stream: &TcpStream, body: &str) -> io::Result<()> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut head = BufReader::new(stream.take(MAX_HEAD_BYTES));
    let mut line = String::new();
    // The head ends with an empty line, which is CR LF.
    while head.read_line(&mut line)? > 2 {
        line.clear();
    }
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )
}

/// Creates a client that trusts only this certificate authority; without one it supports plain HTTP only. Ignores proxy variables.
pub(crate) fn client(root: Option<Certificate<'static>>) -> ureq::Agent {
    let roots: Vec<_> = root.into_iter().collect();
    let tls = TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .root_certs(RootCerts::new_with_certs(&roots))
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build();
    let config = ureq::Agent::config_builder().proxy(None).http_status_as_error(false).timeout_global(Some(TIMEOUT));
    config.tls_config(tls).build().new_agent()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    #[test]
    fn client_gets_the_response() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        thread::scope(|scope| {
            scope.spawn(|| respond(&listener.accept().unwrap().0, "hello").unwrap());
            assert_eq!(get(to, "/").unwrap(), Response { status: 200, body: "hello".to_owned() });
        });
    }
}
