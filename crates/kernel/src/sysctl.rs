//! Kernel settings below `/proc/sys`, of the network namespace of the calling thread.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::error::KernelError;

/// Where the files of the host are mounted in a container, as in [`crate::command`].
const HOST: &str = "/host";

/// The value of a setting such as `net/ipv4/ip_forward`, without the line end; none where the
/// kernel has no such file.
pub fn read(path: &str) -> Result<Option<String>, KernelError> {
    let doing = || format!("read sysctl {path}");
    match fs::read_to_string(file(path).ok_or_else(|| refused(doing()))?) {
        Ok(value) => Ok(Some(value.trim_end().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(KernelError::io(doing(), &error)),
    }
}

/// Writes a setting. A container that may not is most often given a read-only /proc/sys: there the
/// host's is tried, where that is mounted.
pub fn write(path: &str, value: &str) -> Result<(), KernelError> {
    let doing = || format!("set sysctl {path} to {value}");
    let file = file(path).ok_or_else(|| refused(doing()))?;
    let is_read_only = |error: &io::Error| error.kind() == io::ErrorKind::ReadOnlyFilesystem;
    let error = match put(&file, value) {
        // Settings of the network are those of whoever asks, whichever mount they are seen through.
        Err(error) if is_read_only(&error) => {
            put(&Path::new(HOST).join(file.strip_prefix("/").unwrap_or(&file)), value).err().map(|_| error)
        }
        written => written.err(),
    };
    error.map_or(Ok(()), |error| {
        let hint = if is_read_only(&error) {
            "; /proc/sys is read-only here: set it on the host, give the container privileges, or mount the host's \
             /proc/sys/net at /host/proc/sys/net"
        } else {
            ""
        };
        Err(KernelError::io(doing() + hint, &error))
    })
}

fn put(file: &Path, value: &str) -> io::Result<()> {
    // Not fs::write: it would create a file where a mount hides /proc/sys.
    fs::OpenOptions::new().write(true).open(file)?.write_all(value.as_bytes())
}

/// A device's name is part of some paths, and a device may be called anything without a slash.
fn file(path: &str) -> Option<PathBuf> {
    let plain = path.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    plain.then(|| PathBuf::from("/proc/sys").join(path))
}

fn refused(doing: String) -> KernelError {
    KernelError::Other { doing, why: "that is no path below /proc/sys".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_settings_are_none_and_paths_stay_below_proc_sys() {
        assert_eq!(read("net/ipv4/no_such_setting").unwrap(), None);
        assert!(read("kernel/ostype").unwrap().is_some_and(|value| value == "Linux"));
        for bad in ["../version", "/etc/passwd", "net//ipv4", ""] {
            let error = read(bad).unwrap_err().to_string();
            assert!(error.contains("no path below /proc/sys"), "{error}");
        }
    }
}
