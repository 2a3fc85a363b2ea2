//! Files that are written as a whole: a reader sees the old content or the new one, also after the
//! machine stopped in between.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{BufWriter, Write};
use std::ops::RangeInclusive;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;

/// A file that is kept equal to something that changes: written off the loop, not more often than writing it
/// deserves.
#[derive(Debug)]
pub struct Kept {
    complaint: &'static str,
    times: u32,
    gather: RangeInclusive<Duration>,
    failing: bool,
}

impl Kept {
    /// One of which it is said once, by `complaint`, that it cannot be written. After each time changes are
    /// gathered for so many times as long as it took, within limits.
    pub fn new(complaint: &'static str, times: u32, gather: RangeInclusive<Duration>) -> Kept {
        Kept { complaint, times, gather, failing: false }
    }

    /// Writes it, and waits until it is time for the next.
    pub async fn write(&mut self, write: impl FnOnce() -> anyhow::Result<()> + Send + 'static) {
        let began = tokio::time::Instant::now();
        let written = tokio::task::spawn_blocking(write).await;
        let written = written.unwrap_or_else(|panicked| Err(panicked.into()));
        if let Err(error) = &written
            && !self.failing
        {
            tracing::warn!("{}: {error:#}", self.complaint);
        }
        self.failing = written.is_err();
        let gathering = (began.elapsed() * self.times).clamp(*self.gather.start(), *self.gather.end());
        tokio::time::sleep(gathering).await;
    }

    /// Returns after a while if it could not be written, and never if it was.
    pub async fn try_again(&self, after: Duration) {
        if !self.failing {
            return std::future::pending().await;
        }
        tokio::time::sleep(after).await;
    }
}

/// Replaces the file at `path` by what `content` writes: a temporary file beside it, fsync, rename,
/// fsync of the directory. The directory is made if it is not there.
///
/// Compatibility: the mode is 0644 whatever the umask says; a file that is there keeps its own.
pub fn write(
    path: &Path,
    content: impl FnOnce(&mut BufWriter<&File>) -> std::io::Result<()>,
) -> anyhow::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir).with_context(|| format!("making the directory {}", dir.display()))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = dir.join(format!(".{name}.new"));
    let written = fill(&temporary, mode(path), content).and_then(|()| std::fs::rename(&temporary, path));
    if let Err(error) = written {
        // What is there of it may be what fills the disk; it is of no use to anybody.
        std::fs::remove_file(&temporary).ok();
        return Err(error).with_context(|| format!("writing {}{}", path.display(), space_hint(path)));
    }
    // A file system that cannot sync a directory (some overlays) has still renamed the file.
    File::open(dir).and_then(|dir| dir.sync_all()).ok();
    Ok(())
}

fn fill(
    path: &Path,
    mode: u32,
    content: impl FnOnce(&mut BufWriter<&File>) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    let mut writer = BufWriter::new(&file);
    content(&mut writer)?;
    writer.flush()?;
    drop(writer);
    file.sync_all()
}

fn mode(path: &Path) -> u32 {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_file() => metadata.permissions().mode() & 0o7777,
        _ => 0o644,
    }
}

fn space_hint(path: &Path) -> String {
    let dir = path.parent().unwrap_or(Path::new("/"));
    match rustix::fs::statvfs(dir) {
        Ok(space) if space.f_bavail == 0 => format!(" (the file system of {} is full)", dir.display()),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_mode_and_leftovers_are_as_promised() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/subnet.env");
        write(&path, |to| to.write_all(b"one")).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"one");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o644);

        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        write(&path, |to| to.write_all(b"two")).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing temporary stays");
    }

    #[test]
    fn a_write_that_fails_leaves_the_old_content_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("subnet.env");
        write(&path, |to| to.write_all(b"old")).unwrap();
        let full = |to: &mut BufWriter<&File>| {
            to.write_all(b"half")?;
            Err(std::io::Error::from(std::io::ErrorKind::StorageFull))
        };
        let error = write(&path, full).unwrap_err();
        assert!(format!("{error:#}").contains("no storage space"), "{error:#}");
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
