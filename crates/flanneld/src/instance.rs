//! One flanneld per node: the lock that a second one does not get.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, flock};
use tokio::time::Instant;

/// How long another flanneld may take to end.
const PATIENCE: Duration = Duration::from_secs(2);

/// Held for as long as this daemon is the node's flanneld. The kernel lets go of it when the
/// process ends, however it ends.
#[derive(Debug)]
pub struct Instance {
    _lock: File,
}

impl Instance {
    /// Becomes the node's flanneld, or says which process is. One that is just ending, as in an
    /// upgrade, is waited for.
    pub async fn lock(path: &Path) -> anyhow::Result<Instance> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match Instance::try_lock(path) {
                Err(refused) if refused.is::<Occupied>() && Instant::now() < deadline => {
                    tokio::time::sleep(PATIENCE / 20).await;
                }
                settled => return settled,
            }
        }
    }

    fn try_lock(path: &Path) -> anyhow::Result<Instance> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)
                .with_context(|| format!("making the directory {}", dir.display()))?;
        }
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            .open(path)
            .with_context(|| format!("opening the lock {}", path.display()))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => bail!(Occupied(refusal(&mut lock, path))),
            Err(error) => return Err(error).with_context(|| format!("locking {}", path.display())),
        }
        let note = |lock: &mut File| {
            lock.set_len(0)?;
            lock.write_all(format!("{}\n", std::process::id()).as_bytes())
        };
        // The lock holds without the note; only a second instance's message would be poorer.
        if let Err(error) = note(&mut lock) {
            tracing::warn!(%error, path = %path.display(), "cannot note our process id in the lock");
        }
        Ok(Instance { _lock: lock })
    }
}

/// Another flanneld has the lock.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Occupied(String);

/// Who holds the lock, and what to do about it.
fn refusal(lock: &mut File, path: &Path) -> String {
    let mut pid = String::new();
    let read = lock.rewind().and_then(|()| lock.read_to_string(&mut pid));
    let pid = pid.trim();
    let holder = match read {
        Ok(_) if !pid.is_empty() => {
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let name = command.split(|byte| *byte == 0).next().unwrap_or_default();
            format!("process {pid} ({})", String::from_utf8_lossy(name))
        }
        _ => "another process".to_owned(),
    };
    format!(
        "flanneld already runs on this node: {holder} holds {}; stop it first (`kill {}`; pods keep their network \
         meanwhile), or give this one a -subnet-file of another name",
        path.display(),
        if pid.is_empty() { "PID" } else { pid }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_second_instance_is_refused_by_name_and_pid_until_the_first_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/flanneld.lock");
        let first = Instance::lock(&path).await.unwrap();
        let error = Instance::lock(&path).await.unwrap_err().to_string();
        assert!(error.contains(&format!("process {} (", std::process::id())), "{error}");
        assert!(error.contains("-subnet-file"), "{error}");
        drop(first);
        Instance::lock(&path).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_just_ending_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("flanneld.lock");
        let first = Instance::lock(&path).await.unwrap();
        let ending = async {
            tokio::time::sleep(PATIENCE / 2).await;
            drop(first);
        };
        let (second, ()) = tokio::join!(Instance::lock(&path), ending);
        second.unwrap();
    }

    #[tokio::test]
    async fn a_stale_pid_in_the_file_hinders_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("flanneld.lock");
        std::fs::write(&path, "4194304 some longer text\n").unwrap();
        let _held = Instance::lock(&path).await.unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
    }
}
