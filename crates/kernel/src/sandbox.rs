//! [`Sandbox`]: the network namespace of a container, noted on a file so that it can be told later whether
//! it still exists.
//!
//! A namespace that was there before the last boot is gone. One of this boot is gone if its path leads
//! elsewhere or nowhere, and no process is in it, and nothing is mounted of it. Its number may be
//! another one's by then; that one is taken for it, so that only what is certainly gone counts as gone.
//!
//! The note is an extended attribute: it appears and goes with its file, and programs that do not know of
//! it are not disturbed. Where the file system has none, nothing is noted.
//!
//! Source: `namespaces(7)`, `proc_pid_mountinfo(5)`, `xattr(7)`, `random(4)` (`boot_id`).

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use crate::netns;

const ATTRIBUTE: &str = "user.flannel.sandbox";

/// A network namespace, as it was when somebody looked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sandbox {
    boot: String,
    identity: Identity,
    path: PathBuf,
}

/// Device and inode number of a namespace.
type Identity = (u64, u64);

impl Sandbox {
    /// The namespace at a path, if there is one.
    pub fn at(path: &Path) -> Option<Sandbox> {
        let namespace = netns::open(path).ok()?;
        let stat = rustix::fs::fstat(namespace.as_fd()).ok()?;
        let path = std::path::absolute(path).ok()?;
        Some(Sandbox { boot: boot()?, identity: (stat.st_dev, stat.st_ino), path })
    }

    /// Notes it on a file; returns whether the file system could.
    pub fn note_on(&self, file: &File) -> bool {
        let text = self.to_string();
        rustix::fs::fsetxattr(file, ATTRIBUTE, text.as_bytes(), XattrFlags::empty()).is_ok()
    }

    /// The one that is noted on a file.
    pub fn noted_on(path: &Path) -> Option<Sandbox> {
        let mut bytes = [0; 4096 + 128];
        let length = rustix::fs::getxattr(path, ATTRIBUTE, &mut bytes[..]).ok()?;
        Sandbox::parse(std::str::from_utf8(bytes.get(..length)?).ok()?)
    }

    fn parse(text: &str) -> Option<Sandbox> {
        let mut words = text.splitn(4, ' ');
        let boot = words.next()?.to_owned();
        let identity = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some(Sandbox { boot, identity, path: PathBuf::from(words.next()?) })
    }
}

impl fmt::Display for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (device, inode) = self.identity;
        write!(f, "{} {device} {inode} {}", self.boot, self.path.display())
    }
}

/// The namespaces that exist.
#[derive(Debug)]
pub struct Census {
    boot: Option<String>,
    /// None where not all could be looked at.
    living: Option<BTreeSet<Identity>>,
}

impl Census {
    /// Looks at every process and every mount.
    pub fn take() -> Census {
        Census { boot: boot(), living: of_processes().and_then(with_mounts) }
    }

    /// Whether a namespace certainly does not exist any more.
    pub fn misses(&self, sandbox: &Sandbox) -> bool {
        match (&self.boot, &self.living) {
            (Some(boot), _) if *boot != sandbox.boot => true,
            (Some(_), Some(living)) => {
                let there = identity(&sandbox.path);
                let elsewhere = there.is_ok_and(|found| found != Some(sandbox.identity));
                elsewhere && !living.contains(&sandbox.identity)
            }
            _ => false,
        }
    }
}

fn boot() -> Option<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned()).filter(|id| !id.is_empty() && !id.contains(' '))
}

/// Device and inode number of what is at a path; none if there is nothing.
fn identity(path: &Path) -> Result<Option<Identity>, Errno> {
    match fs::metadata(path) {
        Ok(file) => Ok(Some((file.dev(), file.ino()))),
        // ESRCH: the process ended between being listed and being looked at.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::SRCH) => Ok(None),
            other => Err(other.unwrap_or(Errno::IO)),
        },
    }
}

fn of_processes() -> Option<BTreeSet<Identity>> {
    let mut living = BTreeSet::new();
    for entry in fs::read_dir("/proc").ok()? {
        let entry = entry.ok()?;
        // The first process belongs to no container, and may not be looked at by a root of few rights.
        if entry.file_name().to_str().and_then(|name| name.parse().ok()).is_some_and(|pid: u32| pid != 1) {
            living.extend(identity(&entry.path().join("ns/net")).ok()?);
        }
    }
    Some(living)
}

/// A namespace that is mounted somewhere lives without a process.
fn with_mounts(mut living: BTreeSet<Identity>) -> Option<BTreeSet<Identity>> {
    let device = identity(Path::new("/proc/self/ns/net")).ok()??.0;
    let mounts = fs::read("/proc/self/mountinfo").ok()?;
    for line in String::from_utf8_lossy(&mounts).lines() {
        // The fourth word is what is mounted: `net:[4026532281]`.
        let root = line.split(' ').nth(3).unwrap_or_default();
        let number = root.strip_prefix("net:[").and_then(|rest| rest.strip_suffix(']'));
        living.extend(number.and_then(|number| Some((device, number.parse().ok()?))));
    }
    Some(living)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Sandbox {
        Sandbox::at(Path::new("/proc/self/ns/net")).unwrap()
    }

    #[test]
    fn a_namespace_with_a_process_in_it_exists_wherever_its_path_leads() {
        let census = Census::take();
        assert!(!census.misses(&own()));
        assert!(!census.misses(&Sandbox { path: "/nowhere/netns".into(), ..own() }));
    }

    #[test]
    fn what_nothing_leads_to_and_what_was_before_the_boot_is_missed() {
        let census = Census::take();
        let gone = Sandbox { path: "/nowhere/netns".into(), identity: (4, 1), ..own() };
        assert!(census.misses(&gone));
        assert!(census.misses(&Sandbox { path: "/proc/version".into(), ..gone.clone() }));
        assert!(census.misses(&Sandbox { boot: "another".into(), ..own() }));
        // Who cannot see says nothing.
        let blind = Census { boot: None, living: None };
        assert!(!blind.misses(&gone));
    }

    #[test]
    fn a_note_says_what_was_noted() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lease");
        let file = File::create(&path).unwrap();
        assert_eq!(Sandbox::noted_on(&path), None);
        let sandbox = Sandbox { path: "/run/netns/with a space".into(), ..own() };
        assert_eq!(Sandbox::parse(&sandbox.to_string()), Some(sandbox.clone()));
        if sandbox.note_on(&file) {
            assert_eq!(Sandbox::noted_on(&path), Some(sandbox));
        }
    }

    #[test]
    fn there_is_no_namespace_in_a_plain_file() {
        assert_eq!(Sandbox::at(Path::new("/proc/version")), None);
    }
}
