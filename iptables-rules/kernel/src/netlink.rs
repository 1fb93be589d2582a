//! Synchronous netlink socket. It never blocks: the kernel does its work in `send`, and all replies are queued when that returns.

use std::cell::RefCell;
use std::io;

use netlink_packet_core::{
    NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer, NetlinkDeserializable, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable,
};
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, setsockopt, sockopt};

use crate::read_limits::ReadBudget;

/// Maximum length of a datagram in a dump (`SKB_WITH_OVERHEAD(32768)` in net/netlink/af_netlink.c).
const DATAGRAM: usize = 32 * 1024;
/// Batches up to this size fit into the default send buffer (`net.core.wmem_default`, at least 212,992 bytes).
const DEFAULT_SEND_BUFFER: usize = 160 * 1024;
/// Repetitions of a call after signals.
const MAX_INTERRUPTS: usize = 16;
/// Attempts at a dump while other programs change the objects.
pub(crate) const MAX_DUMP_ATTEMPTS: usize = 8;

/// A netlink socket in the network namespace of the thread that opened it.
pub(crate) struct Netlink {
    socket: Socket,
    /// Buffer of [`DATAGRAM`] bytes for replies.
    buffer: RefCell<Vec<u8>>,
    /// Budget of dumps. After an exceeded limit the socket holds the rest of the dump, and must not be used any more.
    budget: ReadBudget,
}

/// A reply of the kernel.
#[derive(Debug)]
pub(crate) enum Reply<T> {
    /// A requested object.
    Object(T),
    /// The acknowledgement of a message, or the error.
    Ack {
        /// Sequence number of the message.
        sequence: u32,
        /// The error; `None` for success.
        errno: Option<Errno>,
    },
}

/// Result of a dump.
pub(crate) enum DumpResult<T> {
    /// All objects.
    Complete(Vec<T>),
    /// The objects changed during the dump (`NLM_F_DUMP_INTR`); it has to be repeated.
    Interrupted,
    /// The kernel returned an error.
    Failed(Errno),
}

impl Netlink {
    /// Opens a socket for a protocol of [`netlink_sys::protocols`].
    pub(crate) fn open(protocol: isize) -> io::Result<Self> {
        let buffer = RefCell::new(Vec::with_capacity(DATAGRAM));
        Ok(Self { socket: Socket::new(protocol)?, buffer, budget: ReadBudget::new() })
    }

    /// Sends messages and returns the replies. `decode` converts an object to a value.
    pub(crate) fn exchange<M, T>(
        &self,
        messages: &[u8],
        decode: impl FnMut(M) -> Option<T>,
    ) -> io::Result<Vec<Reply<T>>>
    where
        M: NetlinkDeserializable,
    {
        self.send(messages)?;
        let mut decode = decode;
        let mut replies = Vec::new();
        self.drain(None, |header, bytes| {
            if header.message_type() == NLMSG_ERROR {
                replies.push(Reply::Ack { sequence: header.sequence_number(), errno: ack_error(bytes)? });
            } else if let Some(value) = object(bytes)?.and_then(&mut decode) {
                replies.push(Reply::Object(value));
            }
            Ok(())
        })?;
        Ok(replies)
    }

    /// Sends a dump request and returns all objects, unless they exceed the [`crate::ReadLimits`].
    pub(crate) fn dump<M, T>(&self, request: &[u8], mut decode: impl FnMut(M) -> Option<T>) -> io::Result<DumpResult<T>>
    where
        M: NetlinkDeserializable,
    {
        self.send(request)?;
        let mut items = Vec::new();
        let (mut done, mut interrupted, mut failed) = (false, false, None);
        self.drain(Some(&self.budget), |header, bytes| {
            interrupted |= header.flags() & NLM_F_DUMP_INTR != 0;
            match header.message_type() {
                NLMSG_ERROR => failed = ack_error(bytes)?,
                NLMSG_DONE => {
                    done = true;
                    failed = failed.or(ack_error(bytes)?);
                }
                _ => {
                    self.budget.take_object()?;
                    items.extend(object(bytes)?.and_then(&mut decode));
                }
            }
            Ok(())
        })?;
        match failed {
            Some(Errno::EINTR) => Ok(DumpResult::Interrupted),
            Some(errno) => Ok(DumpResult::Failed(errno)),
            None if interrupted => Ok(DumpResult::Interrupted),
            None if done => Ok(DumpResult::Complete(items)),
            None => Err(io::Error::other("netlink dump has no end")),
        }
    }

    fn send(&self, messages: &[u8]) -> io::Result<()> {
        if messages.len() > DEFAULT_SEND_BUFFER {
            // The kernel rejects messages larger than the buffer, and doubles the given size. Only root of the host may exceed the limit;
            // others get the maximum, and the send fails if it is too small.
            let size = messages.len() + messages.len() / 8;
            setsockopt(&self.socket, sockopt::SndBufForce, &size)
                .or_else(|_| setsockopt(&self.socket, sockopt::SndBuf, &size))?;
        }
        for _ in 0..MAX_INTERRUPTS {
            match self.socket.send(messages, 0) {
                Ok(sent) if sent == messages.len() => return Ok(()),
                Ok(sent) => return Err(io::Error::other(format!("{sent} of {} bytes sent", messages.len()))),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Err(Errno::EINTR.into())
    }

    /// Reads all queued messages, as far as the budget reaches.
    fn drain(
        &self,
        budget: Option<&ReadBudget>,
        mut each: impl FnMut(&NetlinkBuffer<&[u8]>, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut buffer = self.buffer.borrow_mut();
        let flags = (MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC).bits();
        let mut interrupted = 0;
        loop {
            buffer.clear();
            let sender: SocketAddr = match self.socket.recv_from(&mut *buffer, flags) {
                Ok((_, sender)) => sender,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted && interrupted < MAX_INTERRUPTS => {
                    interrupted += 1;
                    continue;
                }
                Err(error) => return Err(error),
            };
            if sender.port_number() != 0 {
                continue; // not from the kernel: any process of the namespace can send messages
            }
            if let Some(budget) = budget {
                budget.take_bytes(buffer.len())?;
            }
            messages(&buffer, &mut each)?;
        }
    }
}

/// Calls `each` with the header and bytes of every message in a datagram.
pub(crate) fn messages(
    datagram: &[u8],
    mut each: impl FnMut(&NetlinkBuffer<&[u8]>, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut rest = datagram;
    while rest.len() >= HEADER {
        let header = NetlinkBuffer::new(rest);
        let length = header.length() as usize;
        // An error contains the rejected message, which may be longer than the buffer; only its header is needed.
        let whole = if header.message_type() == NLMSG_ERROR { length.min(rest.len()) } else { length };
        if !(HEADER..=rest.len()).contains(&whole) {
            return Err(io::Error::other("truncated netlink message"));
        }
        each(&header, &rest[..whole])?;
        rest = &rest[whole.next_multiple_of(4).min(rest.len())..];
    }
    Ok(())
}

/// Appends one message in wire format.
pub(crate) fn append<M>(bytes: &mut Vec<u8>, sequence: u32, flags: u16, message: M)
where
    M: NetlinkSerializable + Into<NetlinkPayload<M>>,
{
    let mut message = NetlinkMessage::from(message);
    message.header.flags = flags | NLM_F_REQUEST;
    message.header.sequence_number = sequence;
    message.finalize();
    let start = bytes.len();
    bytes.resize(start + message.header.length as usize, 0);
    message.serialize(&mut bytes[start..]);
}

/// Bytes of a netlink message header (`struct nlmsghdr`, linux/netlink.h).
const HEADER: usize = 16;

/// Returns the error of an acknowledgement: 0 is success, anything else a negative error number.
fn ack_error(message: &[u8]) -> io::Result<Option<Errno>> {
    let bytes = message.get(HEADER..HEADER + 4).and_then(|bytes| bytes.try_into().ok());
    let code = bytes.map(i32::from_ne_bytes).ok_or_else(|| io::Error::other("truncated netlink acknowledgement"))?;
    Ok((code != 0).then(|| Errno::from_raw(-code)))
}

pub(crate) fn object<M: NetlinkDeserializable>(message: &[u8]) -> io::Result<Option<M>> {
    let decoded = NetlinkMessage::<M>::deserialize(message).map_err(io::Error::other)?;
    Ok(match decoded.payload {
        NetlinkPayload::InnerMessage(inner) => Some(inner),
        _ => None,
    })
}
