//! `pods/NAME/portforward` over WebSocket: channel 2n has the data of the n-th port, channel 2n + 1 its errors
//! (`v4.channel.k8s.io`; k8s.io/kubelet, `pkg/cri/streaming/portforward/websocket.go`).

use std::convert::Infallible;
use std::net::SocketAddr;

use axum::body::Body;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use futures_util::{SinkExt as _, StreamExt as _};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{Bytes, Message};

use super::Shared;
use super::store::StatusError;
use super::target::Target;

const PROTOCOL: &str = "v4.channel.k8s.io";

/// The connection of a request that asks for an upgrade.
pub(super) struct Upgrade(Option<OnUpgrade>);

impl<S: Send + Sync> FromRequestParts<S> for Upgrade {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self(parts.extensions.remove()))
    }
}

/// Switches to WebSocket, and forwards the first port.
pub(super) fn forward(
    shared: &Shared,
    target: &Target,
    ports: &str,
    headers: &HeaderMap,
    upgrade: Upgrade,
) -> Result<Response, StatusError> {
    let bad = |message: &str| StatusError::new(400, "BadRequest", message);
    let key = headers.get(header::SEC_WEBSOCKET_KEY).ok_or_else(|| bad("no WebSocket"))?;
    let on_upgrade = upgrade.0.ok_or_else(|| bad("the connection cannot be upgraded"))?;
    let port: u16 = ports.split(',').next().and_then(|port| port.parse().ok()).ok_or_else(|| bad("no port"))?;
    let pod = (target.namespace.clone(), target.name.clone(), port);
    let addr = shared.state().pod_ports.get(&pod).copied();
    let response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_ACCEPT, derive_accept_key(key.as_bytes()))
        .header(header::SEC_WEBSOCKET_PROTOCOL, PROTOCOL);
    tokio::spawn(async move {
        if let Ok(upgraded) = on_upgrade.await {
            let stream = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
            // The client sees the connection end.
            let _ = copy(stream, port, addr).await;
        }
    });
    response.body(Body::empty()).map_err(|error| bad(&error.to_string()))
}

async fn copy(
    mut client: WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>,
    port: u16,
    addr: Option<SocketAddr>,
) -> anyhow::Result<()> {
    let frame = |channel: u8, data: &[u8]| Message::Binary(Bytes::from([&[channel], data].concat()));
    for channel in [0, 1] {
        client.send(frame(channel, &port.to_le_bytes())).await?;
    }
    let pod = match addr {
        Some(addr) => TcpStream::connect(addr).await.map_err(|error| error.to_string()),
        None => Err(format!("dial tcp4 127.0.0.1:{port}: connect: connection refused")),
    };
    let mut pod = match pod {
        Ok(pod) => pod,
        Err(reason) => {
            client.send(frame(1, reason.as_bytes())).await?;
            return Ok(client.close(None).await?);
        }
    };
    let mut buffer = vec![0; 16 << 10];
    loop {
        tokio::select! {
            read = pod.read(&mut buffer) => match read? {
                0 => return Ok(client.close(None).await?),
                length => client.send(frame(0, &buffer[..length])).await?,
            },
            message = client.next() => match message.transpose()? {
                Some(Message::Binary(bytes)) if bytes.first() == Some(&0) => pod.write_all(&bytes[1..]).await?,
                Some(Message::Close(_)) | None => return Ok(()),
                Some(_) => {}
            },
        }
    }
}
