//! Where labs live, who owns them, and how one is found again.

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::binaries::Binaries;
use crate::laboratory::Lab;
use crate::namespace::Namespace;
use crate::process::Process;
use crate::topology::Topology;
use crate::wait::{PATIENCE, wait_for};

/// All labs of a machine, a directory each.
pub(crate) const LABS: &str = "/run/flab";

/// The directory of a lab.
pub(crate) fn dir(name: &str) -> PathBuf {
    Path::new(LABS).join(name)
}

/// The directory of a lab's file store.
pub(crate) fn store_dir(name: &str) -> PathBuf {
    dir(name).join("store")
}

/// What the names of a lab's namespaces begin with.
pub(crate) fn prefix(name: &str) -> String {
    format!("flab-{name}-")
}

/// What is written down of a lab that stays.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    topology: Topology,
    binaries: Binaries,
    daemons: Vec<Option<Process>>,
    etcd: Option<Process>,
}

const RECORD: &str = "lab.json";
const LOCK: &str = "owner.lock";

/// Takes a name and its directory, and first sweeps away labs whose owner is gone.
pub(crate) fn claim(name: Option<&str>) -> Result<(String, File)> {
    if let Some(name) = name {
        check(name)?;
    }
    // Nobody may mistake a lab between its first directory and its lock for an abandoned one.
    let _all = lock_all()?;
    sweep_all()?;
    let name = match name {
        Some(name) => name.to_owned(),
        None => free_name(),
    };
    let dir = dir(&name);
    match fs::create_dir(&dir) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            bail!("a lab called {name} is up already: `flannelctl lab down --name {name}` takes it down")
        }
        Err(error) => return Err(error).with_context(|| format!("making {}", dir.display())),
    }
    let owner = lock(&dir.join(LOCK))?;
    Ok((name, owner))
}

/// Removes the labs that nobody owns and nobody asked to stay, as building a lab does.
pub fn sweep() -> Result<()> {
    if fs::exists(LABS)? {
        let all = lock_all()?;
        sweep_all()?;
        drop(all);
        remove_all_if_empty()?;
    }
    Ok(())
}

fn sweep_all() -> Result<()> {
    for entry in fs::read_dir(LABS)? {
        let path = entry?.path();
        if !path.is_dir() || path.join(RECORD).exists() {
            continue;
        }
        let abandoned = match File::open(path.join(LOCK)) {
            Ok(lock) => match lock.try_lock() {
                Ok(()) => true,
                Err(TryLockError::WouldBlock) => false,
                Err(TryLockError::Error(error)) => return Err(error.into()),
            },
            Err(_) => true,
        };
        if abandoned && let Some(name) = path.file_name().and_then(|name| name.to_str()) {
            remove_one(name)?;
        }
    }
    Ok(())
}

/// Locks the directory of all labs, which the last lab takes away with it.
fn lock_all() -> Result<File> {
    let path = Path::new(LABS).join(LOCK);
    loop {
        fs::create_dir_all(LABS).with_context(|| format!("making {LABS}"))?;
        let file = match lock(&path) {
            Err(_) if !fs::exists(LABS)? => continue,
            locked => locked?,
        };
        // It may have been removed between opening and locking it.
        if fs::metadata(&path).is_ok_and(|there| file.metadata().is_ok_and(|ours| ours.ino() == there.ino()))
        {
            return Ok(file);
        }
    }
}

/// Takes the directory of all labs away if there is none left in it.
fn remove_all_if_empty() -> Result<()> {
    let _all = lock_all()?;
    if fs::read_dir(LABS)?.count() == 1 {
        fs::remove_file(Path::new(LABS).join(LOCK))?;
        fs::remove_dir(LABS)?;
    }
    Ok(())
}

fn lock(path: &Path) -> Result<File> {
    let file = File::create(path).with_context(|| format!("making {}", path.display()))?;
    file.lock().with_context(|| format!("locking {}", path.display()))?;
    Ok(file)
}

/// A name that no lab of this process has had: whoever takes one away, its owner or a sweep, may go on
/// removing what is below its name after somebody else has found the name free.
fn free_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let pid = std::process::id();
    loop {
        let name = format!("{pid}.{}", NEXT.fetch_add(1, Ordering::Relaxed));
        if !dir(&name).exists() {
            return name;
        }
    }
}

/// A name becomes part of file and namespace names.
fn check(name: &str) -> Result<()> {
    let fits = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    if !fits || name.is_empty() || name.len() > 16 {
        bail!("a lab cannot be called {name:?}: want 1 to 16 lower-case letters and digits");
    }
    Ok(())
}

/// Ends every process of a lab and takes its namespaces and its directory away.
pub(crate) fn remove(name: &str) -> Result<()> {
    remove_one(name)?;
    remove_all_if_empty()
}

fn remove_one(name: &str) -> Result<()> {
    for namespace in Namespace::names(&prefix(name)) {
        Namespace::named(namespace).destroy()?;
    }
    let dir = dir(name);
    // A thread of a process that was killed may be in the middle of writing a file.
    wait_for("the files of a lab to be gone", PATIENCE, || match fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", dir.display()))
        }
        _ => Ok(()),
    })
}

impl Lab {
    /// Lets the lab stay when this process ends; [`Lab::open`] finds it again.
    pub fn stay(mut self) -> Result<()> {
        self.save()?;
        self.stays = true;
        Ok(())
    }

    /// Writes down what a lab that stays is made of, and which processes are its own.
    fn save(&mut self) -> Result<()> {
        let record = Record {
            topology: self.topology.clone(),
            binaries: self.nodes[0].binaries.clone(),
            daemons: self.nodes.iter().map(|node| node.daemon().take()).collect(),
            etcd: self.etcd.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take(),
        };
        let path = dir(&self.name).join(RECORD);
        let text = serde_json::to_vec_pretty(&record)?;
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    }

    /// A lab that stays. After changes, [`Lab::stay`] writes it down again.
    pub fn open(name: &str) -> Result<Lab> {
        check(name)?;
        let path = dir(name).join(RECORD);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                bail!("no lab called {name} is up: `flannelctl lab up --name {name}` builds one")
            }
            read => read.with_context(|| format!("reading {}", path.display()))?,
        };
        let record: Record =
            serde_json::from_slice(&text).with_context(|| format!("understanding {}", path.display()))?;
        let mut lab = Lab::assemble(name.to_owned(), record.topology, &record.binaries);
        for (node, daemon) in lab.nodes.iter().zip(record.daemons) {
            *node.daemon() = daemon;
        }
        lab.etcd = Mutex::new(record.etcd);
        lab.stays = true;
        Ok(lab)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_is_given_twice_though_no_lab_has_it() {
        assert_ne!(free_name(), free_name());
    }
}
