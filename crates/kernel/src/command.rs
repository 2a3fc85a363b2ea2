//! Programs of the host: the only place where one is run.
//!
//! Each run is bounded in time, has no terminal and no surprises in its environment, and fails with
//! what the program said.
//!
//! In a container whose image has no program, the host's own can be run with the host's files as its
//! root ([`Program::of_host`]): where they are mounted at `/host`, or where the container sees the
//! host's processes and may look into the first one's files. The network namespace stays the caller's.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::error::KernelError;

/// How long a program may take. The slowest run here waits for the lock of iptables.
const LIMIT: Duration = Duration::from_secs(30);
/// Where system programs are, for when `PATH` says less.
const SYSTEM_DIRECTORIES: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];

/// Where the files of the host are seen from within a container: mounted, or through its first process.
const HOST_ROOTS: [&str; 2] = ["/host", "/proc/1/root"];

/// The file that is run under this name: from `PATH`, or else from the system's directories.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = SYSTEM_DIRECTORIES.map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(system)
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join(program))
        .find(|file| rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok() && file.is_file())
}

/// Runs a program in the calling thread's namespaces, gives it `input`, and returns what it printed.
pub fn run(program: &str, arguments: &[&str], input: &str) -> Result<String, KernelError> {
    let file = find(program).ok_or_else(|| KernelError::Other {
        doing: doing(program, arguments),
        why: "there is no such program in PATH or in /usr/sbin, /sbin, /usr/bin, /bin".to_owned(),
    })?;
    run_within(LIMIT, &Program { file, root: None }, arguments, input)
}

/// A program that is there, here or on the host around this container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Its path, as seen from its root.
    file: PathBuf,
    /// The directory that is its root, unless that is ours.
    root: Option<PathBuf>,
}

impl Program {
    /// A program of ours, or else of the host around us.
    pub fn of_host(name: &str) -> Option<Program> {
        let ours = find(name).map(|file| Program { file, root: None });
        ours.or_else(|| HOST_ROOTS.iter().find_map(|root| Program::below(Path::new(root), name)))
    }

    /// A program below a directory that will be its root.
    pub fn below(root: &Path, name: &str) -> Option<Program> {
        let files = SYSTEM_DIRECTORIES.map(|directory| Path::new(directory).join(name));
        // Links are followed by the kernel once the root is another one; from here they lead astray.
        let there =
            |file: &PathBuf| root.join(file.strip_prefix("/").unwrap_or(file)).symlink_metadata().is_ok();
        let file = files.into_iter().find(there)?;
        Some(Program { file, root: Some(root.to_owned()) })
    }

    /// Runs it in the calling thread's namespaces, gives it `input`, and returns what it printed.
    ///
    /// Another root takes the capability `SYS_CHROOT`.
    pub fn run(&self, arguments: &[&str], input: &str) -> Result<String, KernelError> {
        run_within(LIMIT, self, arguments, input)
    }
}

fn doing(program: &str, arguments: &[&str]) -> String {
    let words: Vec<&str> = std::iter::once(program).chain(arguments.iter().copied()).collect();
    format!("run {}", words.join(" "))
}

fn run_within(
    limit: Duration,
    program: &Program,
    arguments: &[&str],
    input: &str,
) -> Result<String, KernelError> {
    let Program { file, root } = program;
    let doing = || {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let of = root.iter().map(|root| format!(" of the host at {}", root.display())).collect::<String>();
        doing(&name, arguments) + &of
    };
    #[allow(clippy::disallowed_methods, reason = "this is the place where programs are run")]
    let mut command = std::process::Command::new(file);
    command
        .args(arguments)
        // Words of other languages could not be understood.
        .env("LC_ALL", "C")
        .env_remove("NOTIFY_SOCKET")
        .current_dir("/")
        // So that what it starts itself ends with it when its time is over.
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if let Some(root) = root {
        command.env("PATH", SYSTEM_DIRECTORIES.join(":"));
        let root = root.clone();
        let change = move || {
            rustix::process::chroot(&root)?;
            rustix::process::chdir("/")?;
            Ok(())
        };
        // SAFETY: between fork and exec only system calls are made: both paths are short enough that
        // rustix needs no memory from the heap for them, and the closure takes no lock.
        unsafe { command.pre_exec(change) };
    }
    let begun = Instant::now();
    let mut child = command.spawn().map_err(|error| KernelError::io(doing(), &error))?;
    let outcome = converse(&mut child, input, limit);
    tracing::debug!(program = %file.display(), ?arguments, took = ?begun.elapsed(), "ran a program");
    let (status, output, complaint) = outcome.map_err(|error| KernelError::io(doing(), &error))?;
    if status.success() {
        return Ok(output);
    }
    let complaint = complaint.trim();
    let why = if complaint.is_empty() { status.to_string() } else { format!("{status}: {complaint}") };
    Err(KernelError::Other { doing: doing(), why })
}

/// Writes the input and reads both outputs at the same time, so that no full pipe blocks the other,
/// until the program has ended or its time is over.
fn converse(
    child: &mut Child,
    input: &str,
    limit: Duration,
) -> std::io::Result<(ExitStatus, String, String)> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // A program that does not read its input to the end says why itself.
            stdin.map(|mut pipe| pipe.write_all(input.as_bytes()))
        });
        let output = scope.spawn(move || read(stdout));
        let complaint = scope.spawn(move || read(stderr));
        let mut ended = wait(child, limit);
        if let Err(error) = ended {
            // The pipes close with the programs, and the readers end.
            let _ = rustix::process::kill_process_group(Pid::from_child(child), Signal::KILL);
            ended = child.wait().and(Err(error));
        }
        let [output, complaint] = [output, complaint].map(|reader| reader.join().unwrap_or_default());
        Ok((ended?, output, complaint))
    })
}

fn read(pipe: Option<impl Read>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        let _ = pipe.read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn wait(child: &mut Child, limit: Duration) -> std::io::Result<ExitStatus> {
    let handle = match rustix::process::pidfd_open(Pid::from_child(child), PidfdFlags::empty()) {
        // Before Linux 5.3 there is no way to wait for a child and a clock at once.
        Err(Errno::NOSYS) => return child.wait(),
        handle => handle?,
    };
    let timeout = Timespec { tv_sec: limit.as_secs().cast_signed(), tv_nsec: limit.subsec_nanos().into() };
    let mut waited = [PollFd::new(&handle, PollFlags::IN)];
    match rustix::io::retry_on_intr(|| rustix::event::poll(&mut waited, Some(&timeout)))? {
        0 => Err(std::io::Error::other(format!("it has not ended after {limit:?}"))),
        _ => child.wait(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_prints_is_returned_however_much_it_reads_and_writes() {
        let input = "0123456789\n".repeat(100_000);
        assert_eq!(run("cat", &[], &input).as_deref(), Ok(input.as_str()));
        assert_eq!(run("true", &[], &input).as_deref(), Ok(""), "it reads nothing of its input");
    }

    #[test]
    fn a_failure_carries_the_programs_own_words() {
        let error = run("sh", &["-c", "echo no such luck >&2; exit 3"], "").unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot run sh -c echo no such luck >&2; exit 3: exit status: 3: no such luck"
        );
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let error = run("no-such-program", &[], "").unwrap_err().to_string();
        assert!(error.starts_with("cannot run no-such-program: there is no such program"), "{error}");
    }

    #[test]
    fn a_program_that_does_not_end_is_ended_with_all_that_it_started() {
        let begun = Instant::now();
        let limit = Duration::from_millis(50);
        let shell = Program { file: find("sh").unwrap(), root: None };
        let error = run_within(limit, &shell, &["-c", "sleep 60 & sleep 60"], "").unwrap_err().to_string();
        assert!(error.ends_with("it has not ended after 50ms"), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    }
}
