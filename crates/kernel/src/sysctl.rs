//! Kernel settings below `/proc/sys`, of the network namespace of the calling thread.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use crate::error::KernelError;

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

/// Writes a setting.
pub fn write(path: &str, value: &str) -> Result<(), KernelError> {
    let doing = || format!("set sysctl {path} to {value}");
    let file = file(path).ok_or_else(|| refused(doing()))?;
    // Not fs::write: it would create a file where a mount hides /proc/sys.
    let written =
        fs::OpenOptions::new().write(true).open(file).and_then(|mut file| file.write_all(value.as_bytes()));
    written.map_err(|error| match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem => KernelError::Other {
            doing: doing(),
            why: "/proc/sys is read-only here; give the container privileges or set it on the host"
                .to_owned(),
        },
        _ => KernelError::io(doing(), &error),
    })
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
