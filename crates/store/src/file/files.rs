//! Files that are there whole or not at all.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use crate::StoreError;

const TEMPORARY: &str = ".new-";

/// The lock of the directory, held until dropped.
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    pub(super) fn take(path: &Path) -> Result<Lock, StoreError> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .map_err(failed("open the lock", path))?;
        loop {
            match flock(&file, FlockOperation::LockExclusive) {
                Ok(()) => return Ok(Lock { _file: file }),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(failed("take the lock", path)(error.into())),
            }
        }
    }
}

/// Whether a name is that of a file on its way to its place (or of another program's: names with a
/// dot in front are nobody's lease).
pub(super) fn is_temporary(name: &str) -> bool {
    name.starts_with('.')
}

/// Writes a file beside its place, syncs it, moves it there and syncs the directory. The lock is
/// held, so nobody else writes to the same place beside it.
pub(super) fn write(path: &Path, content: &[u8]) -> Result<(), StoreError> {
    let failed = || failed("write", path);
    let dir = path.parent().unwrap_or(Path::new("/"));
    let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    let beside = dir.join(format!("{TEMPORARY}{name}"));
    let written = File::create(&beside).and_then(|mut file| {
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&beside, path)
    });
    if let Err(error) = written {
        // A full disk must not stay full of our attempts.
        let _ = std::fs::remove_file(&beside);
        return Err(failed()(error));
    }
    sync(dir).map_err(failed())
}

/// Removes a file; one that is not there is no error.
pub(super) fn remove(path: &Path) -> Result<(), StoreError> {
    match std::fs::remove_file(path) {
        Ok(()) => sync(path.parent().unwrap_or(Path::new("/"))).map_err(failed("remove", path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed("remove", path)(error)),
    }
}

pub(super) fn read_up_to(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)?.take(most).read_to_end(&mut content)?;
    Ok(content)
}

pub(super) fn failed(attempted: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError + use<> {
    let path = path.to_owned();
    move |error| StoreError::File { attempted, path, cause: error.to_string() }
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
