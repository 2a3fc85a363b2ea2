//! Files that outlive a call, and errors about files.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, OFlags};

/// An error about a file in the words that users of the reference plugins search for:
/// `open /run/flannel/subnet.env: no such file or directory`.
pub(crate) fn go_error(attempted: &str, path: &Path, error: &io::Error) -> String {
    let why = match error.raw_os_error() {
        // Rust writes "No such file or directory (os error 2)".
        Some(_) => {
            let text = error.to_string();
            let text = text.split(" (os error").next().unwrap_or_default();
            let mut letters = text.chars();
            letters.next().map(|first| first.to_lowercase().chain(letters).collect()).unwrap_or_default()
        }
        None => error.to_string(),
    };
    format!("{attempted} {}: {why}", path.display())
}

/// Writes a file that only root reads so that it is seen complete or not at all.
pub(crate) fn replace(path: &Path, content: &str) -> io::Result<()> {
    // A file without a name leaves nothing behind if this process is killed. Not every file system has
    // them, and a name that is taken cannot be given to one.
    if create_whole(path, content).is_ok() {
        return Ok(());
    }
    let unfinished = unfinished(path);
    let write = || {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
        file.write_all(content.as_bytes())?;
        fs::rename(&unfinished, path)
    };
    write().inspect_err(|_| {
        let _ = fs::remove_file(&unfinished);
    })
}

fn create_whole(path: &Path, content: &str) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let nameless =
        rustix::fs::open(directory, OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC, 0o600.into())?;
    let mut file = File::from(nameless);
    file.write_all(content.as_bytes())?;
    let through_proc = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::linkat(CWD, through_proc, CWD, path, AtFlags::SYMLINK_FOLLOW)?;
    Ok(())
}

/// What a file is called while it is written: hidden, so that nobody takes it for the state of a
/// container of that name.
pub(crate) fn unfinished(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.unfinished"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_about_files_read_like_those_of_the_reference_plugins() {
        let path = Path::new("/nowhere/subnet.env");
        let error = fs::read(path).unwrap_err();
        assert_eq!(go_error("open", path, &error), "open /nowhere/subnet.env: no such file or directory");
    }

    #[test]
    fn a_replaced_file_leaves_no_other_behind() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        replace(&path, "long first content").unwrap();
        replace(&path, "second").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "second");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
