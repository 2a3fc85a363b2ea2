//! Work that outlives the process that asked for it.

use std::ffi::c_int;
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions};

use crate::error::KernelError;

/// A process that works on its own.
#[derive(Debug)]
pub struct Detached {
    pid: Pid,
}

/// What has become of a [`Detached`] process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It works on.
    Running,
    /// Its work returned true.
    Succeeded,
    /// Its work returned false, or something ended it.
    Failed,
}

/// Does `work` in a process of its own, which goes on if this one ends: in a session of its own, and
/// with standard input, output and error closed, so that nobody who reads them waits for it. It
/// shares the other open files.
///
/// Only for programs that have one thread at that moment: of the others only this one would go on, and
/// `work` might wait for ever for a lock that one of them held.
pub fn detach(work: impl FnOnce() -> bool) -> Result<Detached, KernelError> {
    // SAFETY: the caller has one thread, so the child is a complete copy of the program.
    let forked = unsafe { libc::fork() };
    match Pid::from_raw(forked) {
        Some(pid) if forked > 0 => return Ok(Detached { pid }),
        _ if forked < 0 => {
            let errno = Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::AGAIN);
            return Err(KernelError::system("start a process for work that goes on", errno));
        }
        _ => {}
    }
    // It fails only for the leader of a group, which a process just forked is not.
    let _ = rustix::process::setsid();
    close_standard_files();
    let status = c_int::from(!work());
    // SAFETY: ends this process at once; what the parent registered for its own end must not run here.
    unsafe { libc::_exit(status) }
}

/// Puts `/dev/null` in place of standard input, output and error.
fn close_standard_files() {
    // SAFETY: the path is a C string; dup2 and close take any number. Failures leave the files open,
    // which only makes a reader wait.
    unsafe {
        let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC);
        for standard in 0..=2 {
            if null >= 0 {
                libc::dup2(null, standard);
            } else {
                libc::close(standard);
            }
        }
    }
}

impl Detached {
    /// What has become of it, without waiting.
    pub fn outcome(&self) -> Outcome {
        self.wait(WaitOptions::NOHANG)
    }

    /// Waits for its end.
    pub fn finish(&self) -> Outcome {
        loop {
            match self.wait(WaitOptions::empty()) {
                Outcome::Running => {}
                ended => return ended,
            }
        }
    }

    fn wait(&self, options: WaitOptions) -> Outcome {
        match rustix::process::waitpid(Some(self.pid), options) {
            Ok(None) | Err(Errno::INTR) => Outcome::Running,
            Ok(Some((_, status))) if status.exit_status() == Some(0) => Outcome::Succeeded,
            _ => Outcome::Failed,
        }
    }
}

/// The listening socket that systemd opened for this process (`sd_listen_fds(3)`), if it did. To be called
/// once.
pub fn socket_of_systemd() -> Option<OwnedFd> {
    /// `SD_LISTEN_FDS_START`
    const FIRST: RawFd = 3;
    let number = |name| std::env::var(name).ok()?.parse::<u32>().ok();
    if number("LISTEN_PID") != Some(std::process::id()) || number("LISTEN_FDS").is_none_or(|count| count == 0)
    {
        return None;
    }
    // SAFETY: fcntl takes any number; this one is known for a descriptor if it succeeds.
    let is_open = unsafe { libc::fcntl(FIRST, libc::F_SETFD, libc::FD_CLOEXEC) } == 0;
    // SAFETY: it is open, and whoever started this process opened it for nobody else; nothing of this process
    // takes it for its own, since it was open before the program began.
    is_open.then(|| unsafe { OwnedFd::from_raw_fd(FIRST) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detached_work_reports_how_it_ended() {
        // The test harness has threads, but this work takes no lock and no memory.
        assert_eq!(detach(|| true).unwrap().finish(), Outcome::Succeeded);
        assert_eq!(detach(|| false).unwrap().finish(), Outcome::Failed);
    }
}
