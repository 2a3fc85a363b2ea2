//! [`KernelError`]: what was attempted, and how the kernel refused it.

use std::io;

use rustix::io::Errno;

use crate::netlink::NetlinkError;

/// Something that Linux did not do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// A netlink request came to nothing.
    #[error("cannot {doing}: {cause}")]
    Netlink {
        /// What was attempted, as in "cannot …".
        doing: String,
        /// Why not.
        cause: NetlinkError,
    },
    /// A system call failed.
    #[error("cannot {doing}: {errno}")]
    System {
        /// What was attempted, as in "cannot …".
        doing: String,
        /// How it failed.
        errno: Errno,
    },
    /// There is no such device.
    #[error("there is no device {0}")]
    NoLink(String),
    /// Anything else.
    #[error("cannot {doing}: {why}")]
    Other {
        /// What was attempted, as in "cannot …".
        doing: String,
        /// Why not, and what would help.
        why: String,
    },
}

impl KernelError {
    /// A failed system call, from the error number it left.
    pub fn system(doing: impl Into<String>, errno: Errno) -> KernelError {
        KernelError::System { doing: doing.into(), errno }
    }

    /// A failed operation of the standard library.
    pub fn io(doing: impl Into<String>, error: &io::Error) -> KernelError {
        let doing = doing.into();
        match Errno::from_io_error(error) {
            Some(errno) => KernelError::System { doing, errno },
            None => KernelError::Other { doing, why: error.to_string() },
        }
    }

    /// The error number, where the kernel gave one.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            KernelError::Netlink { cause, .. } => cause.errno(),
            KernelError::System { errno, .. } => Some(*errno),
            KernelError::NoLink(_) => Some(Errno::NODEV),
            KernelError::Other { .. } => None,
        }
    }
}

/// Says what a netlink request was for.
pub(crate) trait Doing<T> {
    /// Turns a bare refusal into an error that names what was attempted.
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, KernelError>;
}

impl<T> Doing<T> for Result<T, NetlinkError> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, KernelError> {
        self.map_err(|cause| KernelError::Netlink { doing: what(), cause })
    }
}
