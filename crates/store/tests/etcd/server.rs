//! A real etcd for a test: its own directory, loopback ports nobody else has, gone with the value.

use std::ffi::OsStr;
use std::io::Write;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use store::{EtcdOptions, Store};
use tempfile::TempDir;

/// A running etcd.
pub(crate) struct Server {
    pub(crate) dir: TempDir,
    process: Option<Child>,
    port: u16,
    peer_port: u16,
    extra: Vec<String>,
    tls: bool,
}

/// Whether there is an etcd to run. Where there is none the tests say so and pass, except in CI.
pub(crate) fn is_installed() -> bool {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join("etcd").is_file()));
    if !found {
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "etcd is not installed, and CI skips nothing");
        let _ =
            writeln!(std::io::stderr(), "skipped: etcd is not installed (Debian: etcd-server, etcd-client)");
    }
    found
}

/// Two ports that are free now.
fn ports() -> (u16, u16) {
    let [one, two] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    (one.local_addr().unwrap().port(), two.local_addr().unwrap().port())
}

impl Server {
    /// Starts an etcd that speaks plain HTTP.
    pub(crate) fn start(extra: &[&str]) -> Server {
        Server::start_in(tempfile::tempdir().unwrap(), extra, false)
    }

    pub(crate) fn start_in(dir: TempDir, extra: &[&str], tls: bool) -> Server {
        let extra = extra.iter().map(|&text| text.to_owned()).collect();
        let mut server = Server { dir, process: None, port: 0, peer_port: 0, extra, tls };
        // Between our look and its bind somebody else may have taken a port.
        for _ in 0..5 {
            (server.port, server.peer_port) = ports();
            if server.try_run() {
                return server;
            }
            let _ = std::fs::remove_dir_all(server.path("data"));
        }
        panic!("etcd does not start: {}", server.log());
    }

    /// Starts the process again, on the same data and ports.
    pub(crate) fn run(&mut self) {
        for _ in 0..600 {
            if self.try_run() {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("etcd does not start again: {}", self.log());
    }

    /// Whether it serves in the end. It listens sooner, and so might somebody else who has the port.
    fn try_run(&mut self) -> bool {
        let log = std::fs::File::create(self.path("log")).unwrap();
        let peer = format!("http://127.0.0.1:{}", self.peer_port);
        let process = command("etcd")
            .arg("--data-dir")
            .arg(self.path("data"))
            .args(["--listen-client-urls", &self.endpoint(), "--advertise-client-urls", &self.endpoint()])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}")])
            .args(&self.extra)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.process = Some(process);
        let deadline = Instant::now() + Duration::from_secs(60);
        while Instant::now() < deadline {
            if self.process.as_mut().is_none_or(|process| process.try_wait().unwrap().is_some()) {
                return false;
            }
            if self.log().contains("ready to serve client requests") {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.kill();
        false
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("{}://127.0.0.1:{}", if self.tls { "https" } else { "http" }, self.port)
    }

    pub(crate) fn options(&self) -> EtcdOptions {
        EtcdOptions { endpoints: vec![self.endpoint()], ..EtcdOptions::default() }
    }

    pub(crate) fn store(&self) -> Store {
        Store::etcd(self.options()).unwrap()
    }

    /// Runs etcdctl and returns what it prints. Somebody else's hand on the store.
    pub(crate) fn etcdctl<A: AsRef<OsStr>>(&self, arguments: &[A]) -> String {
        let output = self.etcdctl_command().args(arguments).output().unwrap();
        assert!(output.status.success(), "etcdctl: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a transaction given as etcdctl reads it.
    pub(crate) fn transact(&self, text: &str) {
        let mut process =
            self.etcdctl_command().arg("txn").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        process.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        assert!(process.wait().unwrap().success());
    }

    /// The etcd lease under a key, in hexadecimal as etcdctl wants it; `0` for none.
    pub(crate) fn lease_of(&self, key: &str) -> String {
        let json: serde_json::Value =
            serde_json::from_str(&self.etcdctl(&["get", key, "-w", "json"])).unwrap();
        format!("{:x}", json["kvs"][0]["lease"].as_i64().unwrap_or(0))
    }

    fn etcdctl_command(&self) -> Command {
        let mut command = command("etcdctl");
        command.env("ETCDCTL_API", "3").env("ETCDCTL_ENDPOINTS", self.endpoint());
        // Its own patience ends after five seconds, or two.
        command.env("ETCDCTL_COMMAND_TIMEOUT", "60s").env("ETCDCTL_DIAL_TIMEOUT", "60s");
        if self.tls {
            command.env("ETCDCTL_CACERT", self.path("ca.pem"));
            command.env("ETCDCTL_CERT", self.path("client.pem"));
            command.env("ETCDCTL_KEY", self.path("client.key"));
        }
        command
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

#[allow(clippy::disallowed_methods, reason = "kernel::command is not ours to use, and a test bounds itself")]
fn command(program: &str) -> Command {
    Command::new(program)
}
