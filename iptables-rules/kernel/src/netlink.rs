//! A synchronous netlink socket that never blocks: the kernel works inside `send`, and every answer is queued when that returns.

use std::io;

use netlink_packet_core::{
    NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer, NetlinkDeserializable, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable,
};
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, setsockopt, sockopt};

/// Longest datagram of a dump (`SKB_WITH_OVERHEAD(32768)` in net/netlink/af_netlink.c).
const DATAGRAM: usize = 32 * 1024;
/// Batches up to this size pass with the smallest send buffer a distribution sets (`net.core.wmem_default`, 212,992 bytes).
const DEFAULT_SEND_BUFFER: usize = 160 * 1024;
/// Attempts of a call that a signal interrupts.
const INTERRUPTED_AT_MOST: usize = 16;
/// Attempts of a dump that others' changes disturb.
pub(crate) const DUMPS_AT_MOST: usize = 8;

/// A netlink socket in the network namespace of the thread that opened it.
pub(crate) struct Netlink {
    socket: Socket,
}

/// One answer of the kernel.
#[derive(Debug)]
pub(crate) enum Answer<T> {
    /// An object.
    Object(T),
    /// The verdict on the message with this sequence number; `None` is an acknowledgement.
    Verdict {
        /// Sequence number of the message.
        sequence: u32,
        /// The refusal.
        errno: Option<Errno>,
    },
}

/// What a dump gave.
pub(crate) enum Dumped<T> {
    /// Everything.
    Complete(Vec<T>),
    /// Something changed meanwhile; ask again.
    Disturbed,
    /// The kernel refused.
    Refused(Errno),
}

impl Netlink {
    /// Opens a socket for a protocol of [`netlink_sys::protocols`].
    pub(crate) fn open(protocol: isize) -> io::Result<Self> {
        Ok(Self { socket: Socket::new(protocol)? })
    }

    /// Sends messages, and gives back what the kernel answers to them. `decode` turns an object into a value.
    pub(crate) fn exchange<M, T>(
        &self,
        messages: &[u8],
        decode: impl FnMut(M) -> Option<T>,
    ) -> io::Result<Vec<Answer<T>>>
    where
        M: NetlinkDeserializable,
    {
        self.send(messages)?;
        let mut decode = decode;
        let mut answers = Vec::new();
        self.drain(|header, bytes| {
            if header.message_type() == NLMSG_ERROR {
                answers.push(Answer::Verdict { sequence: header.sequence_number(), errno: code(bytes)? });
            } else if let Some(value) = object(bytes)?.and_then(&mut decode) {
                answers.push(Answer::Object(value));
            }
            Ok(())
        })?;
        Ok(answers)
    }

    /// Sends one dump request, and gives back everything it lists.
    pub(crate) fn dump<M, T>(&self, request: &[u8], mut decode: impl FnMut(M) -> Option<T>) -> io::Result<Dumped<T>>
    where
        M: NetlinkDeserializable,
    {
        self.send(request)?;
        let mut items = Vec::new();
        let (mut done, mut disturbed, mut refused) = (false, false, None);
        self.drain(|header, bytes| {
            disturbed |= header.flags() & NLM_F_DUMP_INTR != 0;
            match header.message_type() {
                NLMSG_ERROR => refused = code(bytes)?,
                NLMSG_DONE => {
                    done = true;
                    refused = refused.or(code(bytes)?);
                }
                _ => items.extend(object(bytes)?.and_then(&mut decode)),
            }
            Ok(())
        })?;
        match refused {
            Some(Errno::EINTR) => Ok(Dumped::Disturbed),
            Some(errno) => Ok(Dumped::Refused(errno)),
            None if disturbed => Ok(Dumped::Disturbed),
            None if done => Ok(Dumped::Complete(items)),
            None => Err(io::Error::other("the kernel's list has no end")),
        }
    }

    fn send(&self, messages: &[u8]) -> io::Result<()> {
        if messages.len() > DEFAULT_SEND_BUFFER {
            // The kernel refuses messages larger than the buffer, and doubles what it is given. Only root of the host may exceed the
            // limit; the others get as much as they may, and the send tells whether it was enough.
            let size = messages.len() + messages.len() / 8;
            setsockopt(&self.socket, sockopt::SndBufForce, &size)
                .or_else(|_| setsockopt(&self.socket, sockopt::SndBuf, &size))?;
        }
        for _ in 0..INTERRUPTED_AT_MOST {
            match self.socket.send(messages, 0) {
                Ok(sent) if sent == messages.len() => return Ok(()),
                Ok(sent) => return Err(io::Error::other(format!("{sent} of {} bytes sent", messages.len()))),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Err(Errno::EINTR.into())
    }

    /// Reads until nothing is left, and hands over message by message.
    fn drain(&self, mut each: impl FnMut(&NetlinkBuffer<&[u8]>, &[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut buffer: Vec<u8> = Vec::with_capacity(DATAGRAM);
        let flags = (MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC).bits();
        let mut interrupted = 0;
        loop {
            buffer.clear();
            let sender: SocketAddr = match self.socket.recv_from(&mut buffer, flags) {
                Ok((_, sender)) => sender,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted && interrupted < INTERRUPTED_AT_MOST => {
                    interrupted += 1;
                    continue;
                }
                Err(error) => return Err(error),
            };
            if sender.port_number() != 0 {
                continue; // not the kernel: any process of the namespace may write to us
            }
            messages(&buffer, &mut each)?;
        }
    }
}

/// Hands over the messages of a datagram: header, and the message whole.
pub(crate) fn messages(
    datagram: &[u8],
    mut each: impl FnMut(&NetlinkBuffer<&[u8]>, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut rest = datagram;
    while rest.len() >= HEADER {
        let header = NetlinkBuffer::new(rest);
        let length = header.length() as usize;
        // A refusal repeats the message refused, which may be longer than our buffer; its head is all we need.
        let whole = if header.message_type() == NLMSG_ERROR { length.min(rest.len()) } else { length };
        if !(HEADER..=rest.len()).contains(&whole) {
            return Err(io::Error::other("an answer is cut off"));
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

/// The code in a verdict: 0 is success, anything else a negative error number.
fn code(message: &[u8]) -> io::Result<Option<Errno>> {
    let bytes = message.get(HEADER..HEADER + 4).and_then(|bytes| bytes.try_into().ok());
    let code = bytes.map(i32::from_ne_bytes).ok_or_else(|| io::Error::other("a verdict is cut off"))?;
    Ok((code != 0).then(|| Errno::from_raw(-code)))
}

pub(crate) fn object<M: NetlinkDeserializable>(message: &[u8]) -> io::Result<Option<M>> {
    let decoded = NetlinkMessage::<M>::deserialize(message).map_err(io::Error::other)?;
    Ok(match decoded.payload {
        NetlinkPayload::InnerMessage(inner) => Some(inner),
        _ => None,
    })
}
