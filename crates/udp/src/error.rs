//! [`UdpError`]: why there is no data path.

use std::net::SocketAddr;

use kernel::KernelError;
use kernel::netlink::NetlinkError;
use rustix::io::Errno;

/// Why there is no data path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UdpError {
    /// Somebody else has the port.
    #[error(
        "cannot listen on udp {0}: the port is taken, perhaps by another flanneld or the original; \
         `ss -ulpn 'sport = :{port}'` says by whom: stop it, or give all nodes another Backend.Port",
        port = .0.port()
    )]
    PortInUse(SocketAddr),
    /// The address is not (any more) one of this host, or not yet.
    #[error(
        "cannot listen on udp {0}: this host has no such address (any more), or still looks for duplicates of it; \
         `ip address show to {ip}` says which: give it back, or see to it that nobody else has it",
        ip = .0.ip()
    )]
    NoAddress(SocketAddr),
    /// The address does not say on which link it is.
    #[error(
        "cannot listen on udp {0}: no other node can send to a link-local address; give the interface another IPv6 \
         address (`ip address add`)"
    )]
    LinkLocal(SocketAddr),
    /// None of the addresses can be listened on.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Nowhere(Vec<UdpError>),
    /// A system call failed.
    #[error("cannot {doing}: {errno}")]
    System {
        /// What was attempted, as in "cannot …".
        doing: String,
        /// How it failed.
        errno: Errno,
    },
    /// The device cannot be had.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The kernel cannot be asked about the device.
    #[error("cannot speak to the kernel: {0}")]
    Netlink(#[from] NetlinkError),
}

impl UdpError {
    pub(crate) fn system(doing: impl Into<String>) -> impl FnOnce(Errno) -> UdpError {
        let doing = doing.into();
        move |errno| UdpError::System { doing, errno }
    }
}
