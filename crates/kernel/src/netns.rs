//! Network namespaces: open, enter and come back, make and remove named ones like `ip netns`.
//!
//! A network namespace belongs to a thread: entering one changes the calling thread alone.
//! Source: `namespaces(7)`, `ioctl_ns(2)`, iproute2 `ip/ipnetns.c`.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, UnmountFlags};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use crate::error::KernelError;

/// Where named network namespaces are kept, as iproute2 has it.
pub const DIRECTORY: &str = "/var/run/netns";

const NSFS_MAGIC: u32 = 0x6e73_6673;
const NS_GET_NSTYPE: libc::c_ulong = 0xb703;

/// An open network namespace.
#[derive(Debug)]
pub struct Namespace {
    fd: OwnedFd,
    shown: String,
}

/// Opens the namespace at a path such as `/run/netns/blue` or `/proc/1/ns/net`.
///
/// A path that is not there gives ENOENT (see [`KernelError::errno`]); one that is no network
/// namespace is refused: a runtime that died may leave an empty file behind.
pub fn open(path: &Path) -> Result<Namespace, KernelError> {
    let shown = path.display().to_string();
    let doing = || format!("open network namespace {shown}");
    let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| KernelError::system(doing(), errno))?;
    let kind = rustix::fs::fstatfs(&fd).map_err(|errno| KernelError::system(doing(), errno))?.f_type;
    let not_one = |why: &str| KernelError::Other { doing: doing(), why: why.to_owned() };
    if kind as u32 != NSFS_MAGIC {
        return Err(not_one("it is a file, but no namespace"));
    }
    // SAFETY: NS_GET_NSTYPE takes no argument and returns a number; the descriptor is open.
    let namespace_type = unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_NSTYPE as _) };
    if namespace_type != libc::CLONE_NEWNET {
        return Err(not_one("it is a namespace, but not of the network"));
    }
    Ok(Namespace { fd, shown })
}

/// The namespace of the calling thread.
pub fn current() -> Result<Namespace, KernelError> {
    open(Path::new("/proc/thread-self/ns/net"))
}

impl Namespace {
    /// Runs `work` inside the namespace on this thread and comes back.
    ///
    /// # Panics
    /// If the thread cannot go back to where it was: nothing it does would be right any more.
    pub fn enter<T>(&self, work: impl FnOnce() -> T) -> Result<T, KernelError> {
        struct Back(Namespace);
        impl Drop for Back {
            fn drop(&mut self) {
                self.0.join().expect("a namespace that the thread just was in can be entered again");
            }
        }
        let back = Back(current()?);
        if let Err(errno) = self.join() {
            std::mem::forget(back);
            return Err(KernelError::system(format!("enter network namespace {}", self.shown), errno));
        }
        Ok(work())
    }

    /// Enters the namespace for good: this thread stays in it.
    pub fn join_for_good(&self) -> Result<(), KernelError> {
        self.join()
            .map_err(|errno| KernelError::system(format!("enter network namespace {}", self.shown), errno))
    }

    /// Whether two are the same namespace, however they were opened.
    pub fn is_same(&self, other: &Namespace) -> bool {
        let identity = |namespace: &Namespace| {
            rustix::fs::fstat(&namespace.fd).ok().map(|stat| (stat.st_dev, stat.st_ino))
        };
        identity(self).is_some_and(|own| Some(own) == identity(other))
    }

    fn join(&self) -> Result<(), Errno> {
        rustix::thread::move_into_link_name_space(self.fd.as_fd(), Some(LinkNameSpaceType::Network))
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Makes a namespace and gives it a name, as `ip netns add` does. Refused with EEXIST if the name is
/// taken.
pub fn create_named(name: &str) -> Result<Namespace, KernelError> {
    let doing = || format!("create network namespace {name}");
    let system = |errno| KernelError::system(doing(), errno);
    let path = named(name).ok_or_else(|| KernelError::Other {
        doing: doing(),
        why: "want a name without '/' that is not '.' or '..'".to_owned(),
    })?;
    fs::create_dir_all(DIRECTORY).map_err(|error| KernelError::io(doing(), &error))?;
    share_directory().map_err(system)?;
    File::create_new(&path).map_err(|error| KernelError::io(doing(), &error))?;

    // On a thread of its own, since a thread that has unshared cannot be trusted to come back.
    let bind = {
        let path = path.clone();
        move || {
            // SAFETY: only the network namespace is unshared; the thread shares memory, files and
            // mounts with the others as before.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?;
            rustix::mount::mount_bind("/proc/thread-self/ns/net", &path)
        }
    };
    let bound = std::thread::spawn(bind).join().unwrap_or(Err(Errno::IO));
    bound.map_err(system).inspect_err(|_| {
        let _ = fs::remove_file(&path);
    })?;
    open(&path)
}

/// Takes a name away, as `ip netns delete` does; the namespace goes with its last process. That
/// there is none of that name is no error.
pub fn remove_named(name: &str) -> Result<(), KernelError> {
    let doing = || format!("delete network namespace {name}");
    let Some(path) = named(name) else { return Ok(()) };
    match rustix::mount::unmount(&path, UnmountFlags::DETACH) {
        // INVAL: a file that nothing is mounted on, as a run that was killed leaves it.
        Ok(()) | Err(Errno::NOENT | Errno::INVAL) => {}
        Err(errno) => return Err(KernelError::system(doing(), errno)),
    }
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(KernelError::io(doing(), &error)),
        _ => Ok(()),
    }
}

/// The path of a named namespace; none if that is no name.
fn named(name: &str) -> Option<PathBuf> {
    let plain = !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0']);
    plain.then(|| Path::new(DIRECTORY).join(name))
}

/// Makes the directory a shared mount, so that names come and go in other mount namespaces as well.
fn share_directory() -> Result<(), Errno> {
    let share = || {
        let flags = MountPropagationFlags::SHARED | MountPropagationFlags::REC;
        rustix::mount::mount_change(DIRECTORY, flags)
    };
    match share() {
        Err(Errno::INVAL) => {
            // It is no mount point yet: bind it to itself, like iproute2.
            rustix::mount::mount_bind_recursive(DIRECTORY, DIRECTORY)?;
            share()
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_network_namespace_is_refused() {
        let error = open(Path::new("/proc/version")).unwrap_err().to_string();
        assert!(error.ends_with("it is a file, but no namespace"), "{error}");
        let error = open(Path::new("/proc/self/ns/mnt")).unwrap_err().to_string();
        assert!(error.ends_with("it is a namespace, but not of the network"), "{error}");
        assert_eq!(open(Path::new("/run/no/such")).unwrap_err().errno(), Some(Errno::NOENT));
    }

    #[test]
    fn the_current_namespace_is_itself() {
        let own = current().unwrap();
        assert!(own.is_same(&open(Path::new("/proc/self/ns/net")).unwrap()));
    }
}
