//! [`Etcd`]: a real etcd, spoken to over its JSON gateway, which needs nothing but a TCP stream.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base64::prelude::{BASE64_STANDARD, Engine};
use lab::{Namespace, Process, wait_for};
use rustix::process::Signal;
use serde_json::{Value, json};

/// The lifetime of a lease, as flannel has it.
const TTL: u32 = 86400;

/// An etcd that runs in a namespace and keeps its data for as long as it runs.
#[derive(Debug)]
pub struct Etcd {
    process: Process,
    stream: BufReader<TcpStream>,
    lease: Option<String>,
}

impl Etcd {
    /// Starts one that listens on port 2379 of `address`.
    pub fn start(namespace: &Namespace, address: IpAddr, directory: &Path) -> Result<Etcd> {
        let endpoint = format!("http://{}", SocketAddr::new(address, 2379));
        let command = [
            "etcd".to_owned(),
            format!("--data-dir={}", directory.join("etcd").display()),
            format!("--listen-client-urls={endpoint}"),
            format!("--advertise-client-urls={endpoint}"),
            "--listen-peer-urls=http://127.0.0.1:2380".to_owned(),
            "--max-txn-ops=20000".to_owned(),
            "--max-request-bytes=10000000".to_owned(),
            // The disk is not what is measured.
            "--unsafe-no-fsync".to_owned(),
        ];
        let process = Process::spawn(namespace, &command, &directory.join("etcd.log"))?;
        let stream = wait_for("etcd to listen", Duration::from_secs(20), || {
            Ok(namespace.within(|| TcpStream::connect(SocketAddr::new(address, 2379)))??)
        })?;
        stream.set_nodelay(true)?;
        let mut etcd = Etcd { process, stream: BufReader::new(stream), lease: None };
        wait_for("etcd to have a leader", Duration::from_secs(20), || etcd.put("/ready", "yes"))?;
        Ok(etcd)
    }

    /// Writes one key.
    pub fn put(&mut self, key: &str, value: &str) -> Result<()> {
        self.call("/v3/kv/put", &json!({ "key": encode(key), "value": encode(value) })).map(drop)
    }

    /// Writes one key under a lease of a day, as flannel does.
    pub fn put_leased(&mut self, (key, value): &(String, String)) -> Result<()> {
        let lease = self.lease()?;
        let put = json!({ "key": encode(key), "value": encode(value), "lease": lease });
        self.call("/v3/kv/put", &put).map(drop)
    }

    /// Writes many keys under a lease of a day, in one transaction.
    pub fn put_all_leased(&mut self, pairs: &[(String, String)]) -> Result<()> {
        let lease = self.lease()?;
        let puts: Vec<Value> = pairs
            .iter()
            .map(|(key, value)| {
                json!({ "request_put": { "key": encode(key), "value": encode(value), "lease": lease } })
            })
            .collect();
        self.call("/v3/kv/txn", &json!({ "success": puts })).map(drop)
    }

    fn lease(&mut self) -> Result<String> {
        if let Some(lease) = &self.lease {
            return Ok(lease.clone());
        }
        let granted = self.call("/v3/lease/grant", &json!({ "TTL": TTL }))?;
        let id = granted["ID"].as_str().context("etcd granted a lease without an ID")?.to_owned();
        self.lease = Some(id.clone());
        Ok(id)
    }

    /// One request and its answer over the connection that is kept open.
    fn call(&mut self, path: &str, body: &Value) -> Result<Value> {
        let body = body.to_string();
        let request =
            format!("POST {path} HTTP/1.1\r\nHost: etcd\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        self.stream.get_mut().write_all(request.as_bytes())?;
        let mut status = String::new();
        self.stream.read_line(&mut status)?;
        let (mut length, mut chunked) = (0, false);
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line)?;
            let line = line.trim_end().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length: ") {
                length = value.parse()?;
            }
            chunked |= line == "transfer-encoding: chunked";
        }
        let answer = if chunked { self.chunks()? } else { self.exactly(length)? };
        if !status.contains(" 200 ") {
            bail!("etcd answered {path} with {}: {}", status.trim_end(), String::from_utf8_lossy(&answer));
        }
        Ok(serde_json::from_slice(&answer)?)
    }

    fn chunks(&mut self) -> Result<Vec<u8>> {
        let mut answer = Vec::new();
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line)?;
            let length = usize::from_str_radix(line.trim_end(), 16)?;
            answer.extend(self.exactly(length)?);
            self.exactly(2)?;
            if length == 0 {
                return Ok(answer);
            }
        }
    }

    fn exactly(&mut self, length: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.process.end(Signal::KILL, Duration::from_secs(5));
    }
}

fn encode(text: &str) -> String {
    BASE64_STANDARD.encode(text)
}
