//! A proxy on loopback that speaks HTTP CONNECT and SOCKS5 on one port, and connects to one address whatever it is asked for.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// A running proxy. Its threads end with the test's process.
#[derive(Debug)]
pub struct ForwardProxy {
    addr: SocketAddr,
    targets: Arc<Mutex<Vec<String>>>,
}

impl ForwardProxy {
    /// Starts a proxy in front of an address.
    ///
    /// # Errors
    /// When no port is free.
    pub fn start(backend: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let addr = listener.local_addr()?;
        let targets = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&targets);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let seen = Arc::clone(&seen);
                thread::spawn(move || serve(client, backend, &seen));
            }
        });
        Ok(Self { addr, targets })
    }

    /// Returns its URL for HTTP CONNECT.
    pub fn http_url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Returns its URL for SOCKS5.
    pub fn socks5_url(&self) -> String {
        format!("socks5://{}", self.addr)
    }

    /// Returns what it was asked to connect to, as `HOST:PORT`.
    pub fn targets(&self) -> Vec<String> {
        self.targets.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn serve(client: TcpStream, backend: SocketAddr, seen: &Mutex<Vec<String>>) -> io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let is_socks = reader.fill_buf()?.first() == Some(&5);
    let target = if is_socks { accept_socks5(&mut reader, &client)? } else { accept_connect(&mut reader, &client)? };
    seen.lock().unwrap_or_else(PoisonError::into_inner).push(target);
    let server = TcpStream::connect(backend)?;
    let (mut to_server, mut from_server, mut to_client) = (server.try_clone()?, server, client);
    thread::spawn(move || {
        let _ = io::copy(&mut from_server, &mut to_client);
        let _ = to_client.shutdown(Shutdown::Both);
    });
    io::copy(&mut reader, &mut to_server)?;
    to_server.shutdown(Shutdown::Write)
}

/// `CONNECT HOST:PORT HTTP/1.1` and headers.
fn accept_connect(reader: &mut BufReader<TcpStream>, mut client: &TcpStream) -> io::Result<String> {
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut header = String::new();
    while reader.read_line(&mut header)? > 2 {
        header.clear();
    }
    let mut words = request.split_whitespace();
    if words.next() == Some("CONNECT")
        && let Some(target) = words.next()
    {
        client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
        return Ok(target.to_owned());
    }
    client.write_all(b"HTTP/1.1 405 Method Not Allowed\r\n\r\n")?;
    Err(io::Error::other(request))
}

/// A greeting without authentication and a request with a host name (RFC 1928).
fn accept_socks5(reader: &mut BufReader<TcpStream>, mut client: &TcpStream) -> io::Result<String> {
    let mut read = |length: usize| {
        let mut bytes = vec![0; length];
        reader.read_exact(&mut bytes).map(|()| bytes)
    };
    let methods = read(2)?[1];
    read(methods.into())?;
    client.write_all(&[5, 0])?;
    let kind = read(4)?[3];
    let host = match kind {
        1 => <[u8; 4]>::try_from(read(4)?).map(|octets| Ipv4Addr::from(octets).to_string()).unwrap_or_default(),
        3 => {
            let length = read(1)?[0];
            String::from_utf8_lossy(&read(length.into())?).into_owned()
        }
        other => return Err(io::Error::other(format!("address type {other}"))),
    };
    let port = read(2)?;
    client.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0])?;
    Ok(format!("{host}:{}", u16::from_be_bytes([port[0], port[1]])))
}
