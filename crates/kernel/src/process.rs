//! Work that outlives the process that asked for it.

use std::ffi::c_int;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::pipe::PipeFlags;
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
/// with standard input, output and error closed, so that nobody who reads them waits for it. Of the
/// other open files it shares those in `kept`: one that it held open without need might be a lock, or
/// a namespace that somebody wants to unmount.
///
/// Only for programs that have one thread at that moment: of the others only this one would go on, and
/// `work` might wait for ever for a lock that one of them held.
pub fn detach(kept: &[RawFd], work: impl FnOnce() -> bool) -> Result<Detached, KernelError> {
    let failed = |errno| KernelError::system("start a process for work that goes on", errno);
    // Its other end is closed once that process has closed what is none of its business.
    let (closed, open) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(failed)?;
    let mut kept = [kept, &[open.as_raw_fd()]].concat();
    kept.sort_unstable();
    // SAFETY: the caller has one thread, so the child is a complete copy of the program.
    let forked = unsafe { libc::fork() };
    match Pid::from_raw(forked) {
        Some(pid) if forked > 0 => {
            drop(open);
            // Whatever comes, waiting is over: at worst a file is open for a moment longer.
            let _ = rustix::io::read(&closed, &mut [0]);
            return Ok(Detached { pid });
        }
        _ if forked < 0 => {
            let errno = Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::AGAIN);
            return Err(failed(errno));
        }
        _ => {}
    }
    // It fails only for the leader of a group, which a process just forked is not.
    let _ = rustix::process::setsid();
    close_standard_files();
    close_all_but(&kept);
    drop(open);
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

/// Closes all files above the standard ones, but for those in `kept`, which is sorted.
fn close_all_but(kept: &[RawFd]) {
    let mut first = 3;
    for next in kept.iter().copied().chain([RawFd::MAX]) {
        if first < next {
            // SAFETY: nothing of this process uses those files again: all it does from here on is work
            // with those that are kept, and it ends without dropping anything. Linux before 5.9 does not
            // know the call; there the files stay open as long as the process.
            unsafe { libc::syscall(libc::SYS_close_range, first, next - 1, 0) };
        }
        first = next.saturating_add(1);
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

/// Processor time that a process has spent with all its threads, those that have ended included.
pub fn processor_time(pid: u32) -> Result<Duration, KernelError> {
    let failed = |errno| KernelError::system(format!("read the processor time of process {pid}"), errno);
    let pid = libc::pid_t::try_from(pid).map_err(|_| failed(Errno::SRCH))?;
    let mut clock = 0;
    // SAFETY: it writes a clock's number to where the pointer leads, while this call lasts.
    let found = unsafe { libc::clock_getcpuclockid(pid, &raw mut clock) };
    if found != 0 {
        return Err(failed(Errno::from_raw_os_error(found)));
    }
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes a timespec to where the pointer leads, while this call lasts.
    if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        let errno = std::io::Error::last_os_error();
        return Err(failed(Errno::from_io_error(&errno).unwrap_or(Errno::SRCH)));
    }
    // Neither is ever negative.
    let (seconds, nanoseconds) = (u64::try_from(time.tv_sec), u32::try_from(time.tv_nsec));
    Ok(Duration::new(seconds.unwrap_or_default(), nanoseconds.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_grows_and_nobody_has_none() {
        let own = || processor_time(std::process::id()).unwrap();
        let before = own();
        while own() == before {
            std::hint::spin_loop();
        }
        assert!(processor_time(u32::MAX).unwrap_err().to_string().contains("4294967295"));
    }

    #[test]
    fn detached_work_reports_how_it_ended() {
        // The test harness has threads, but this work takes no lock and no memory.
        assert_eq!(detach(&[], || true).unwrap().finish(), Outcome::Succeeded);
        assert_eq!(detach(&[], || false).unwrap().finish(), Outcome::Failed);
    }

    #[test]
    fn detached_work_holds_no_file_open_but_those_it_needs() {
        let files = [(); 3].map(|()| std::fs::File::open("/dev/null").unwrap());
        let is_open = |file: &std::fs::File| rustix::io::fcntl_getfd(file).is_ok();
        let [first, kept, last] = &files;
        let work = || is_open(kept) && !is_open(first) && !is_open(last);
        assert_eq!(detach(&[kept.as_raw_fd()], work).unwrap().finish(), Outcome::Succeeded);
        assert!(files.iter().all(is_open));
    }
}
