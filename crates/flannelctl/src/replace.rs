//! Files and links that are put in place as a whole: whoever looks sees the old one or the new one.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Replaces a file.
pub(crate) fn file(path: &Path, mode: u32, content: &[u8]) -> Result<()> {
    by(path, |temporary| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(temporary)?;
        // Whatever the umask says.
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(content)?;
        file.sync_all()
    })
}

/// Replaces a symbolic link.
pub(crate) fn link(path: &Path, target: &str) -> Result<()> {
    by(path, |temporary| symlink(target, temporary))
}

fn by(path: &Path, make: impl FnOnce(&Path) -> io::Result<()>) -> Result<()> {
    let temporary = beside(path);
    let _ = fs::remove_file(&temporary);
    let made = make(&temporary).and_then(|()| fs::rename(&temporary, path));
    if made.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    made.with_context(|| format!("writing {}", path.display()))
}

fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}", std::process::id()))
}
