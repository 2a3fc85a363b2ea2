//! [`Kernel`]: what the reconciler needs of a kernel; [`Linux`]: the real one.

use fabric::dataplane::{Change, Observed};
use fabric::firewall::TableName;
use fabric::link_name::LinkName;

use crate::error::{Doing, KernelError};
use crate::netlink::{Protocol, Socket};
use crate::nftables::Nftables;

/// What one look at the kernel takes in, beyond links, addresses, next hops and routes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope {
    /// The devices of which neighbors and forwarding entries are read; those that are not there
    /// have none.
    pub links: Vec<LinkName>,
    /// The settings that are read.
    pub sysctls: Vec<String>,
    /// The firewall tables that are read.
    pub tables: Vec<TableName>,
}

/// A change that was not made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Its place among the changes.
    pub index: usize,
    /// The change.
    pub change: Change,
    /// Why it was not made.
    pub error: KernelError,
}

/// A kernel that can be looked at and changed.
pub trait Kernel {
    /// Takes one look.
    fn observe(&mut self, scope: &Scope) -> Result<Observed, KernelError>;

    /// Makes changes in order. One that fails does not keep the others from being tried; what is so
    /// already, and what is gone already, is no failure.
    fn apply(&mut self, changes: &[Change]) -> Vec<Failure>;
}

/// The kernel of the network namespace in which this was opened.
///
/// Settings below `/proc/sys` are those of the calling thread's namespace, which must be the same.
#[derive(Debug)]
pub struct Linux {
    pub(crate) socket: Socket,
    /// Opened when first needed: a kernel without nf_tables still has routes.
    nftables: Option<Nftables>,
}

impl Linux {
    /// Opens the kernel of the calling thread's network namespace.
    pub fn open() -> Result<Linux, KernelError> {
        let socket = Socket::open(Protocol::Route).doing(|| "speak to the kernel".to_owned())?;
        Ok(Linux { socket, nftables: None })
    }

    /// The socket for `NETLINK_ROUTE`, for single requests.
    pub fn socket(&mut self) -> &mut Socket {
        &mut self.socket
    }

    /// The number of the socket by which changes are made: see [`crate::monitor::Monitor::leave_out`].
    pub fn port(&self) -> u32 {
        self.socket.port()
    }

    pub(crate) fn nftables(&mut self) -> Result<&mut Nftables, KernelError> {
        match &mut self.nftables {
            Some(nftables) => Ok(nftables),
            closed => Ok(closed.insert(Nftables::open()?)),
        }
    }
}

impl Kernel for Linux {
    fn observe(&mut self, scope: &Scope) -> Result<Observed, KernelError> {
        crate::observe::observe(self, scope)
    }

    fn apply(&mut self, changes: &[Change]) -> Vec<Failure> {
        crate::apply::apply(self, changes)
    }
}
