//! Frames of NRI: messages of ttrpc, on several channels of one connection.
//!
//! ```text
//! frame    channel u32 │ length u32 │ bytes of that channel
//! message  length u32 │ stream u32 │ type u8 │ flags u8 │ protobuf        (in the bytes of a channel, cut anywhere)
//! ```
//!
//! All numbers are big-endian. Channel 1 has the runtime's calls of the plugin, channel 2 the plugin's calls of the runtime.

use std::io;
use std::time::Duration;

use futures_util::StreamExt as _;
use prost::bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;
use tokio_util::codec::{Decoder as _, FramedRead, LengthDelimitedCodec};

/// Longest message of ttrpc, without its header.
pub(super) const MAX_MESSAGE: usize = 4 << 20;
/// Longest message that is sent, with its header: readers of the runtime take a frame at once, into a buffer of this size.
pub(super) const MAX_SENT: usize = 4096;
const MESSAGE_HEADER: usize = 10;
const FRAME_HEADER: usize = 8;
/// Time for the runtime to take a message.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// A logical connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Channel {
    /// Calls of the plugin by the runtime.
    Plugin = 1,
    /// Calls of the runtime by the plugin.
    Runtime = 2,
}

impl Channel {
    const ALL: [Self; 2] = [Self::Plugin, Self::Runtime];
}

/// Type of a ttrpc message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MessageType {
    Request = 1,
    Response = 2,
}

/// A ttrpc message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TtrpcMessage {
    pub(super) channel: Channel,
    pub(super) stream: u32,
    /// `None` for a type that this plugin does not use.
    pub(super) kind: Option<MessageType>,
    pub(super) payload: Bytes,
}

/// A multiplexed connection.
#[derive(Debug)]
pub(super) struct Connection {
    frames: FramedRead<OwnedReadHalf, LengthDelimitedCodec>,
    writer: OwnedWriteHalf,
    inboxes: [Inbox; 2],
}

/// What has been received on a channel.
#[derive(Debug)]
struct Inbox {
    channel: Channel,
    /// Bytes of messages that have not been taken yet: one that is not complete, and a frame.
    bytes: BytesMut,
    decoder: LengthDelimitedCodec,
}

/// Returns a decoder of records, of `max` bytes after the header at most, that keeps the header.
fn codec(length_at: usize, header: usize, max: usize) -> LengthDelimitedCodec {
    LengthDelimitedCodec::builder()
        .length_field_offset(length_at)
        .length_field_length(4)
        .length_adjustment(isize::try_from(header).unwrap_or_default())
        .num_skip(0)
        .max_frame_length(max)
        .new_codec()
}

impl Connection {
    pub(super) fn new(stream: UnixStream) -> Self {
        let (reader, writer) = stream.into_split();
        Self {
            frames: FramedRead::new(reader, codec(4, FRAME_HEADER, MESSAGE_HEADER + MAX_MESSAGE)),
            writer,
            inboxes: Channel::ALL.map(|channel| Inbox {
                channel,
                bytes: BytesMut::new(),
                decoder: codec(0, MESSAGE_HEADER, MAX_MESSAGE),
            }),
        }
    }

    /// Receives the next message; `None` at the end of the connection. Not cancel safe.
    ///
    /// # Errors
    /// The connection fails, or a frame or a message is too long.
    pub(super) async fn receive(&mut self) -> io::Result<Option<TtrpcMessage>> {
        loop {
            for Inbox { channel, bytes, decoder } in &mut self.inboxes {
                if let Some(mut message) = decoder.decode(bytes)? {
                    message.advance(4);
                    let (stream, kind) = (message.get_u32(), message.get_u8());
                    message.advance(1);
                    let kind = [MessageType::Request, MessageType::Response].into_iter().find(|k| *k as u8 == kind);
                    return Ok(Some(TtrpcMessage { channel: *channel, stream, kind, payload: message.freeze() }));
                }
            }
            let Some(mut frame) = self.frames.next().await.transpose()? else { return Ok(None) };
            let number = frame.get_u32();
            frame.advance(4);
            // Bytes of other channels have no reader.
            if let Some(inbox) = self.inboxes.iter_mut().find(|inbox| inbox.channel as u32 == number) {
                inbox.bytes.unsplit(frame);
            }
        }
    }

    /// Sends a message, which is not longer than [`MAX_SENT`].
    ///
    /// # Errors
    /// The connection fails, or the runtime does not read.
    pub(super) async fn send(
        &mut self,
        channel: Channel,
        stream: u32,
        kind: MessageType,
        payload: &[u8],
    ) -> io::Result<()> {
        let length = |length: usize| {
            u32::try_from(length).map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "the message is too long"))
        };
        let mut frame = BytesMut::with_capacity(FRAME_HEADER + MESSAGE_HEADER + payload.len());
        frame.put_u32(channel as u32);
        frame.put_u32(length(MESSAGE_HEADER + payload.len())?);
        frame.put_u32(length(payload.len())?);
        frame.put_u32(stream);
        frame.put_u8(kind as u8);
        frame.put_u8(0);
        frame.put_slice(payload);
        timeout(WRITE_TIMEOUT, self.writer.write_all(&frame)).await.map_err(|_| io::ErrorKind::TimedOut)?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(stream: u32, kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes().to_vec();
        bytes.extend(stream.to_be_bytes());
        bytes.extend([kind, 0]);
        bytes.extend(payload);
        bytes
    }

    fn frame(channel: u32, bytes: &[u8]) -> Vec<u8> {
        let mut frame = channel.to_be_bytes().to_vec();
        frame.extend(u32::try_from(bytes.len()).unwrap().to_be_bytes());
        frame.extend(bytes);
        frame
    }

    async fn receive_all(bytes: &[u8]) -> (Vec<TtrpcMessage>, Option<String>) {
        let (mut peer, stream) = UnixStream::pair().unwrap();
        let bytes = bytes.to_vec();
        tokio::spawn(async move { peer.write_all(&bytes).await });
        let (mut connection, mut messages) = (Connection::new(stream), Vec::new());
        loop {
            match connection.receive().await {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => return (messages, None),
                Err(error) => return (messages, Some(error.to_string())),
            }
        }
    }

    #[tokio::test]
    async fn messages_are_put_together_per_channel() {
        let (first, second) = (message(1, 1, b"on the plugin's"), message(3, 2, b"on the runtime's"));
        let third = message(5, 1, &vec![7; 100_000]);
        let mut bytes = frame(1, &first[..4]);
        bytes.extend(frame(2, &second[..12]));
        bytes.extend(frame(9, b"a channel without a reader"));
        bytes.extend(frame(1, &[&first[4..], &third[..4096]].concat()));
        bytes.extend(frame(2, &second[12..]));
        bytes.extend(frame(1, &third[4096..]));
        bytes.extend(frame(1, &message(7, 3, b"")));
        let (messages, error) = receive_all(&bytes).await;
        let found: Vec<_> = messages.iter().map(|m| (m.channel, m.stream, m.kind, m.payload.len())).collect();
        assert_eq!(
            (found, error),
            (
                vec![
                    (Channel::Plugin, 1, Some(MessageType::Request), 15),
                    (Channel::Runtime, 3, Some(MessageType::Response), 16),
                    (Channel::Plugin, 5, Some(MessageType::Request), 100_000),
                    (Channel::Plugin, 7, None, 0),
                ],
                None
            )
        );
    }

    #[tokio::test]
    async fn what_is_too_long_ends_the_connection_unread() {
        let frame_header = [1_u32.to_be_bytes(), u32::MAX.to_be_bytes()].concat();
        let long_message = frame(1, &[((4_u32 << 20) + 1).to_be_bytes().to_vec(), vec![0; 6]].concat());
        for bytes in [frame_header, long_message] {
            let (messages, error) = receive_all(&bytes).await;
            assert!(messages.is_empty() && error.is_some(), "{messages:?}");
        }
        let largest = message(1, 1, &vec![0; MAX_MESSAGE]);
        assert_eq!(receive_all(&frame(1, &largest)).await.0.len(), 1);
        // A message that never ends, and a connection that does.
        assert_eq!(receive_all(&frame(1, &largest[..100])).await, (Vec::new(), None));
    }

    #[tokio::test]
    async fn sent_messages_are_received_as_they_are() {
        let (one, other) = UnixStream::pair().unwrap();
        let (mut one, mut other) = (Connection::new(one), Connection::new(other));
        one.send(Channel::Runtime, 1, MessageType::Request, b"register").await.unwrap();
        let received = other.receive().await.unwrap().unwrap();
        assert_eq!(
            received,
            TtrpcMessage {
                channel: Channel::Runtime,
                stream: 1,
                kind: Some(MessageType::Request),
                payload: Bytes::from_static(b"register")
            }
        );
    }
}
