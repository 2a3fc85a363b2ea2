//! [`Claim`]: a name that no other bench has, with a directory and network namespaces of that name.
//!
//! As with labs, the owner holds a lock for as long as it lives. What nobody holds a lock of, a bench that was
//! killed has left behind: the next one takes it away.

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use lab::Namespace;

/// A directory for each claim.
const ALL: &str = "/run/flannel-bench";
const LOCK: &str = "owner.lock";

/// A name with a directory and namespaces. Dropping it takes them away, and ends what runs in them.
#[derive(Debug)]
pub struct Claim {
    name: String,
    /// Locked for as long as the claim is ours.
    _owner: File,
}

impl Claim {
    /// Takes a name that nobody has.
    pub fn new() -> Result<Claim> {
        fs::create_dir_all(ALL).with_context(|| format!("making {ALL}"))?;
        let _all = lock_all()?;
        let pid = std::process::id();
        let name = (0..).map(|number| format!("fb{pid}.{number}")).find(|name| !directory(name).exists());
        let name = name.context("numbers do not run out")?;
        fs::create_dir(directory(&name)).with_context(|| format!("making a directory in {ALL}"))?;
        Ok(Claim { _owner: lock(&directory(&name).join(LOCK))?, name })
    }

    /// Makes a network namespace; its name begins with that of the claim.
    pub fn namespace(&self, name: &str) -> Result<Namespace> {
        Namespace::create(&format!("{}-{name}", self.name))
    }

    /// A directory for whatever a bench needs.
    pub fn directory(&self) -> PathBuf {
        directory(&self.name)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // What cannot be taken away now will be by the next bench.
        let _ = take_away(&self.name);
        remove_all_if_empty();
    }
}

/// Takes away what killed benches, and labs whose owner was killed, left behind.
pub(crate) fn sweep() -> Result<()> {
    lab::sweep()?;
    let Ok(entries) = fs::read_dir(ALL) else { return Ok(()) };
    let _all = lock_all()?;
    for entry in entries {
        let path = entry?.path();
        let abandoned = match File::open(path.join(LOCK)).map(|lock| lock.try_lock()) {
            Ok(Err(TryLockError::WouldBlock)) => false,
            Ok(Err(TryLockError::Error(error))) => return Err(error.into()),
            Ok(Ok(())) | Err(_) => true,
        };
        if abandoned && let Some(name) = path.file_name().and_then(|name| name.to_str()) {
            take_away(name)?;
        }
    }
    remove_all_if_empty();
    Ok(())
}

/// Lets one bench at a time make or sweep claims. The directory itself is locked, so that nothing is left in it.
fn lock_all() -> Result<File> {
    let all = File::open(ALL).with_context(|| format!("opening {ALL}"))?;
    all.lock().with_context(|| format!("locking {ALL}"))?;
    Ok(all)
}

fn remove_all_if_empty() {
    // It is not while others have claims.
    let _ = fs::remove_dir(ALL);
}

fn take_away(name: &str) -> Result<()> {
    for namespace in Namespace::names(&format!("{name}-")) {
        Namespace::existing(&namespace)?.destroy()?;
    }
    match fs::remove_dir_all(directory(name)) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

fn directory(name: &str) -> PathBuf {
    Path::new(ALL).join(name)
}

fn lock(path: &Path) -> Result<File> {
    let file = File::create(path).with_context(|| format!("making {}", path.display()))?;
    file.lock().with_context(|| format!("locking {}", path.display()))?;
    Ok(file)
}
