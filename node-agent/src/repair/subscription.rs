//! Subscribes to the changes of one network namespace.

use std::io;

use weir_kernel::notifications::NotificationSocket;

/// Device and inode of a network namespace (namespaces(7)).
pub(super) type NetnsId = (u64, u64);

/// The sockets that receive notifications about one network namespace.
#[derive(Debug)]
pub struct Subscription {
    /// `None` where the kernel has no nf_tables.
    pub(super) nftables: Option<NotificationSocket>,
    pub(super) routing: NotificationSocket,
}

impl Subscription {
    /// Subscribes in the namespace of the calling thread.
    pub(super) fn open() -> io::Result<Self> {
        let nftables = match NotificationSocket::nftables() {
            Ok(socket) => Some(socket),
            Err(error) if weir_kernel::nft::generation().is_ok() => return Err(error),
            Err(_) => None,
        };
        Ok(Self { nftables, routing: NotificationSocket::routing()? })
    }
}
