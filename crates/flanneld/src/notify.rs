//! systemd notification (sd_notify(3)): one datagram per message to the socket in `NOTIFY_SOCKET`.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Where systemd listens, if it does.
#[derive(Debug, Clone, Default)]
pub struct Systemd {
    address: Option<SocketAddr>,
}

impl Systemd {
    /// From `NOTIFY_SOCKET`: a path, or `@name` in the abstract namespace.
    pub fn from_environment() -> Systemd {
        Systemd { address: std::env::var_os("NOTIFY_SOCKET").and_then(|name| address(name.as_bytes())) }
    }

    /// We are up: dependants may start.
    pub fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={status}"));
    }

    /// What `systemctl status` shows.
    pub fn status(&self, status: &str) {
        self.send(&format!("STATUS={status}"));
    }

    /// We are about to end.
    pub fn stopping(&self) {
        self.send("STOPPING=1");
    }

    fn send(&self, message: &str) {
        let Some(address) = &self.address else { return };
        let sent = UnixDatagram::unbound().and_then(|socket| {
            socket.set_nonblocking(true)?;
            socket.send_to_addr(message.as_bytes(), address)
        });
        if let Err(error) = sent {
            tracing::warn!(%error, "cannot notify systemd");
        }
    }
}

fn address(name: &[u8]) -> Option<SocketAddr> {
    match name.split_first()? {
        (b'@', name) => SocketAddr::from_abstract_name(name).ok(),
        _ => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(name)).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_at_a_path_and_at_an_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let abstract_name = format!("@flanneld-test-{}", std::process::id());
        for name in [path.as_os_str().as_bytes(), abstract_name.as_bytes()] {
            let listener = UnixDatagram::bind_addr(&address(name).unwrap()).unwrap();
            Systemd { address: address(name) }.ready("up");
            let mut buffer = [0; 64];
            let len = listener.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..len], b"READY=1\nSTATUS=up");
        }
    }

    #[test]
    fn nobody_listening_is_no_error() {
        Systemd::default().ready("up");
        Systemd { address: address(b"/nowhere/at/all") }.stopping();
    }
}
