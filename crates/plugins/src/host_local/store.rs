//! The leases of a network on disk.
//!
//! Compatibility: the layout, the contents and the lock are those of the reference plugin. A directory
//! per network holds a file per address, named by the address, containing container ID, CR LF and
//! interface name without a newline (only the container ID in files of old versions);
//! `last_reserved_ip.N` holds the address given last from range set N; `lock` is held with flock(2)
//! by whoever reads or writes.
//!
//! A lease file gets its name only when it is complete, so that no crash leaves an empty one. Where the
//! reference plugin, or a loss of power, left an empty one behind, its address is free: under the lock
//! nobody is about to fill it, and whoever was to get it has never been told.
//!
//! A lease file carries a note of its container's network namespace ([`Sandbox`]), invisible to the
//! reference plugin. A lease whose namespace certainly does not exist any more, after a reboot or a crash of
//! the runtime, is taken back when its address is missed: [`Locked::take_back`]. The namespace of an ADD
//! under way exists, and its lease has its note from the moment it can be seen.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use cni::{Attachment, Error};
use kernel::sandbox::{Census, Sandbox};
use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use rustix::io::Errno;

use crate::files::go_error;

/// What a lease file is called while it is written; none is left when nobody holds the lock.
const UNFINISHED: &str = ".unfinished";

/// The directory of a network.
#[derive(Debug)]
pub(super) struct Store {
    directory: PathBuf,
    lock: File,
}

/// The leases of a network while nobody else may change them.
#[derive(Debug)]
pub(super) struct Locked<'a> {
    store: &'a Store,
    leases: BTreeMap<IpAddr, String>,
    reserved_here: Vec<IpAddr>,
}

impl Store {
    /// Opens the directory and makes it if need be.
    pub(super) fn create(directory: &Path) -> Result<Store, Error> {
        let make = DirBuilder::new().recursive(true).mode(0o755).create(directory);
        make.map_err(|error| Error::internal(go_error("mkdir", directory, &error)))?;
        Store::with_lock(directory, OFlags::CREATE)
            .map_err(|error| Error::internal(go_error("open", &directory.join("lock"), &error)))
    }

    /// Opens the directory if there is one; if not, nothing was ever reserved.
    pub(super) fn open(directory: &Path) -> Result<Option<Store>, Error> {
        match Store::with_lock(directory, OFlags::CREATE) {
            Ok(store) => Ok(Some(store)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::internal(go_error("open", &directory.join("lock"), &error))),
        }
    }

    fn with_lock(directory: &Path, flags: OFlags) -> io::Result<Store> {
        let flags = i32::try_from(flags.bits()).expect("open flags fit an int");
        let lock =
            OpenOptions::new().read(true).custom_flags(flags).mode(0o750).open(directory.join("lock"))?;
        Ok(Store { directory: directory.to_owned(), lock })
    }

    /// Waits for the lock and reads what is reserved. The lock goes with the returned value.
    pub(super) fn lock(&self) -> Result<Locked<'_>, Error> {
        // Dropping `Locked` unlocks; a killed process loses its lock with its files.
        self.lock
            .lock()
            .map_err(|error| Error::internal(go_error("flock", &self.directory.join("lock"), &error)))?;
        let mut locked = Locked { store: self, leases: BTreeMap::new(), reserved_here: Vec::new() };
        locked.read().map_err(|error| Error::internal(go_error("open", &self.directory, &error)))?;
        Ok(locked)
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        // Closing the file would do the same; an error here cannot be acted on.
        let _ = self.store.lock.unlock();
    }
}

impl Locked<'_> {
    fn read(&mut self) -> io::Result<()> {
        // All of this happens under the lock, once for each address that is given: few calls to the kernel.
        let directory = rustix::fs::open(
            &self.store.directory,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        for entry in Dir::read_from(&directory)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            if name.ends_with(UNFINISHED) {
                // Its writer held the lock, so it is dead.
                let _ = rustix::fs::unlinkat(&directory, name, AtFlags::empty());
                continue;
            }
            let Ok(address) = name.parse::<IpAddr>() else { continue };
            let holder = match read_whole(&directory, name) {
                Ok(bytes) => {
                    String::from_utf8_lossy(&bytes).trim_matches(['\0', ' ', '\t', '\r', '\n']).to_owned()
                }
                Err(Errno::NOENT) => continue,
                // Whose it is cannot be told, so it is somebody's.
                Err(_) => "?".to_owned(),
            };
            if !holder.is_empty() {
                self.leases.insert(address, holder);
            }
        }
        Ok(())
    }

    /// How many addresses are reserved.
    pub(super) fn count(&self) -> usize {
        self.leases.len()
    }

    /// Whether an address is reserved.
    pub(super) fn is_taken(&self, address: IpAddr) -> bool {
        self.leases.contains_key(&address)
    }

    /// The addresses of an attachment, including those that old versions reserved for its container.
    pub(super) fn held_by<'a>(&'a self, id: &'a str, ifname: &str) -> impl Iterator<Item = IpAddr> + 'a {
        let holder = holder(id, ifname);
        self.leases
            .iter()
            .filter(move |(_, who)| **who == holder || *who == id.trim())
            .map(|(address, _)| *address)
    }

    /// Whether an attachment has any address.
    pub(super) fn is_holder(&self, id: &str, ifname: &str) -> bool {
        self.held_by(id, ifname).next().is_some()
    }

    /// The address given last from a range set.
    pub(super) fn last_reserved(&self, index: usize) -> Option<IpAddr> {
        fs::read_to_string(self.last_reserved_path(index)).ok()?.parse().ok()
    }

    /// Reserves an address that is free.
    pub(super) fn reserve(
        &mut self,
        address: IpAddr,
        index: usize,
        (id, ifname): (&str, &str),
        sandbox: Option<&Sandbox>,
    ) -> Result<(), Error> {
        let holder = holder(id, ifname);
        let path = self.store.directory.join(address.to_string());
        let unfinished = self.store.directory.join(format!(".{address}{UNFINISHED}"));
        let written = write_private(&unfinished, &holder).and_then(|file| {
            // Without a note, which not every file system can take, a lease is kept until it is released.
            let _ = sandbox.map(|sandbox| sandbox.note_on(&file));
            fs::rename(&unfinished, &path)
        });
        if let Err(error) = written {
            let _ = fs::remove_file(&unfinished);
            return Err(Error::internal(go_error("write", &path, &error)));
        }
        self.leases.insert(address, holder);
        self.reserved_here.push(address);
        let last = self.last_reserved_path(index);
        overwrite(&last, &address.to_string())
            .map_err(|error| Error::internal(go_error("write", &last, &error)))
    }

    /// The addresses that were reserved since the lock was taken.
    pub(super) fn reserved_here(&self) -> Vec<IpAddr> {
        self.reserved_here.clone()
    }

    /// Gives one address back.
    pub(super) fn free(&mut self, address: IpAddr) -> Result<(), Error> {
        let path = self.store.directory.join(address.to_string());
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::internal(go_error("remove", &path, &error)))
            }
            _ => {
                self.leases.remove(&address);
                Ok(())
            }
        }
    }

    /// Gives back all addresses of an attachment. Only where it has none are those given back that old
    /// versions reserved for the container without naming an interface.
    pub(super) fn release(&mut self, id: &str, ifname: &str) -> Result<(), Error> {
        let of = |who: &str| -> Vec<IpAddr> {
            self.leases.iter().filter(|(_, holder)| *holder == who).map(|(address, _)| *address).collect()
        };
        let mut addresses = of(&holder(id, ifname));
        if addresses.is_empty() {
            addresses = of(id.trim());
        }
        self.free_all(addresses)
    }

    /// Gives back every address whose attachment is not listed.
    pub(super) fn keep_only(&mut self, valid: &[Attachment]) -> Result<(), Error> {
        let is_valid = |who: &str| {
            valid
                .iter()
                .any(|a| who == holder(&a.container_id, &a.ifname) || who == a.container_id || who == "?")
        };
        let stale = self.leases.iter().filter(|(_, who)| !is_valid(who)).map(|(address, _)| *address);
        self.free_all(stale.collect())
    }

    /// Gives back every address whose container certainly does not exist any more; returns whether
    /// there was one.
    pub(super) fn take_back(&mut self) -> Result<bool, Error> {
        let noted: Vec<(IpAddr, Sandbox)> = self
            .leases
            .keys()
            .filter_map(|address| {
                let path = self.store.directory.join(address.to_string());
                Sandbox::noted_on(&path).map(|sandbox| (*address, sandbox))
            })
            .collect();
        if noted.is_empty() {
            return Ok(false);
        }
        // Taken after the leases were read, so that no namespace can be younger than what it is held against.
        let census = Census::take();
        let abandoned: Vec<IpAddr> = noted
            .into_iter()
            .filter(|(_, sandbox)| census.misses(sandbox))
            .map(|(address, _)| address)
            .collect();
        let any = !abandoned.is_empty();
        self.free_all(abandoned).map(|()| any)
    }

    /// Goes on after an error and reports all of them.
    fn free_all(&mut self, addresses: Vec<IpAddr>) -> Result<(), Error> {
        let errors: Vec<String> = addresses
            .into_iter()
            .filter_map(|address| self.free(address).err())
            .map(|error| error.msg)
            .collect();
        if errors.is_empty() { Ok(()) } else { Err(Error::internal(errors.join(";"))) }
    }

    fn last_reserved_path(&self, index: usize) -> PathBuf {
        self.store.directory.join(format!("last_reserved_ip.{index}"))
    }
}

/// Reads a file, which usually is short.
fn read_whole(directory: &OwnedFd, name: &str) -> Result<Vec<u8>, Errno> {
    let file = rustix::fs::openat(directory, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut content = vec![0; 512];
    let mut length = 0;
    loop {
        length += rustix::io::read(&file, &mut content[length..])?;
        if length < content.len() {
            content.truncate(length);
            return Ok(content);
        }
        content.resize(content.len() * 2, 0);
    }
}

/// The content of a lease file.
fn holder(id: &str, ifname: &str) -> String {
    format!("{}\r\n{ifname}", id.trim())
}

/// Writes a short file in place: emptying it first would have the file system write the new content to
/// disk there and then, while others wait for the lock.
fn overwrite(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    let length = text.len() as u64;
    if file.metadata()?.len() > length {
        // Before the new content, so that a crash leaves no mixture that is longer than either.
        file.set_len(length)?;
    }
    file.write_all(text.as_bytes())
}

fn write_private(path: &Path, text: &str) -> io::Result<File> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    Ok(file)
}
