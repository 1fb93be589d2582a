//! The little HTTP that a laboratory speaks.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};

use crate::error::LabError;

/// Bound of one request; what an API server grants a webhook by our manifests.
const BOUND: Duration = Duration::from_secs(5);
/// Longest head of a request that is read, in bytes.
const MOST: u64 = 64 * 1024;

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// The whole body.
    pub body: String,
}

/// `GET http://TO/PATH` from the network namespace of the calling thread.
///
/// # Errors
/// When there is no answer; every status is one.
pub fn get(to: SocketAddr, path: &str) -> Result<Answer, LabError> {
    let url = format!("http://{to}{path}");
    let ask = || -> Result<Answer, ureq::Error> {
        let mut response = agent(None).get(&url).call()?;
        Ok(Answer { status: response.status().as_u16(), body: response.body_mut().read_to_string()? })
    };
    ask().map_err(|error| LabError::new(format!("GET {url}"), io::Error::other(error)))
}

/// Reads the head of a request and answers 200 with a text; the connection is to end there.
///
/// # Errors
/// When the client is gone or too slow.
pub fn answer(mut stream: &TcpStream, body: &str) -> io::Result<()> {
    stream.set_read_timeout(Some(BOUND))?;
    stream.set_write_timeout(Some(BOUND))?;
    let mut head = BufReader::new(stream.take(MOST));
    let mut line = String::new();
    // Up to the empty line, which is CR LF.
    while head.read_line(&mut line)? > 2 {
        line.clear();
    }
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )
}

/// A client that trusts this certificate authority alone; without one it is for plain HTTP only. Proxies of the environment do not count.
pub(crate) fn agent(root: Option<Certificate<'static>>) -> ureq::Agent {
    let roots: Vec<_> = root.into_iter().collect();
    let tls = TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .root_certs(RootCerts::new_with_certs(&roots))
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build();
    let config = ureq::Agent::config_builder().proxy(None).http_status_as_error(false).timeout_global(Some(BOUND));
    config.tls_config(tls).build().new_agent()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    #[test]
    fn answers_what_it_asks() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        thread::scope(|scope| {
            scope.spawn(|| answer(&listener.accept().unwrap().0, "hello").unwrap());
            assert_eq!(get(to, "/").unwrap(), Answer { status: 200, body: "hello".to_owned() });
        });
    }
}
