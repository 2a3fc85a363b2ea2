//! Pods of a cluster that run `test-pod`, and how they are talked to.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lab::{Namespace, wait_for};
use serde_json::{Value, json};

use super::cluster::{Cluster, PATIENCE, TEST_POD};

/// The port that every pod serves.
pub const PORT: u16 = 8080;
const PODS: &str = "/api/v1/namespaces/default/pods";
const SERVICES: &str = "/api/v1/namespaces/default/services";
/// How long an answer may take; the pod itself may have asked somebody, or waited for what was late.
const LIMIT: Duration = Duration::from_secs(30);

/// A pod that runs.
#[derive(Debug, Clone)]
pub struct TestPod {
    /// Its name, under which it answers.
    pub name: String,
    /// The number of its node.
    pub node: usize,
    /// Its address.
    pub address: IpAddr,
    /// The port that it serves.
    pub port: u16,
}

/// A pod to come.
#[derive(Debug, Clone)]
pub struct PodSpec {
    name: String,
    node: usize,
    port: u16,
    host_port: Option<u16>,
    host_network: bool,
}

impl PodSpec {
    /// A pod that serves on a node.
    pub fn new(name: &str, node: usize) -> PodSpec {
        PodSpec { name: name.to_owned(), node, port: PORT, host_port: None, host_network: false }
    }

    /// With a port of the node that leads to it.
    pub fn host_port(self, port: u16) -> PodSpec {
        PodSpec { host_port: Some(port), ..self }
    }

    /// In the network of its node, on a port of its own.
    pub fn host_network(self, port: u16) -> PodSpec {
        PodSpec { port, host_network: true, ..self }
    }

    fn object(&self) -> Value {
        let mut port = json!({ "containerPort": self.port });
        if let Some(host_port) = self.host_port {
            port["hostPort"] = host_port.into();
        }
        json!({
            "metadata": { "name": self.name, "labels": { "app": self.name } },
            "spec": {
                "nodeName": format!("node{}", self.node),
                "hostNetwork": self.host_network,
                // The program needs no time to end, and stories have none to wait.
                "terminationGracePeriodSeconds": 1,
                "enableServiceLinks": false,
                "automountServiceAccountToken": false,
                "containers": [{
                    "name": "server",
                    "image": TEST_POD,
                    "args": ["serve", self.port.to_string()],
                    "env": [{ "name": "NAME", "value": self.name }],
                    "ports": [port],
                }],
            },
        })
    }
}

impl Cluster<'_> {
    /// Creates pods, and waits until they run and answer.
    pub fn run(&self, specs: &[PodSpec]) -> Result<Vec<TestPod>> {
        specs.iter().try_for_each(|spec| self.create(spec))?;
        let pods: Vec<TestPod> = wait_for("the pods to run", PATIENCE, || {
            let list = self.api().request("GET", PODS, &Value::Null)?;
            specs.iter().map(|spec| running(&list, spec)).collect()
        })?;
        // A container runs a moment before its program listens.
        for pod in &pods {
            wait_for(&format!("{} to answer its node", pod.name), PATIENCE, || self.ask(pod, "/"))?;
        }
        Ok(pods)
    }

    /// Creates a pod.
    pub fn create(&self, spec: &PodSpec) -> Result<()> {
        // A namespace has its account a moment after it is there itself.
        let create = || self.api().request("POST", PODS, &spec.object());
        wait_for("a pod to be admitted", PATIENCE, create).map(drop)
    }

    /// Deletes pods, and waits until they are gone.
    pub fn delete(&self, pods: &[TestPod]) -> Result<()> {
        for pod in pods {
            self.api().request("DELETE", &format!("{PODS}/{}", pod.name), &Value::Null)?;
        }
        wait_for("the pods to be gone", PATIENCE, || {
            let list = self.api().request("GET", PODS, &Value::Null)?;
            let named = |name: &str| items(&list).iter().any(|pod| pod["metadata"]["name"] == name);
            let left: Vec<&str> =
                pods.iter().map(|pod| pod.name.as_str()).filter(|name| named(name)).collect();
            ensure!(left.is_empty(), "{} are left: {}", left.len(), left.join(", "));
            Ok(())
        })
    }

    /// Makes a service for a pod on port 80, with a port of every node; returns its address.
    pub fn expose(&self, pod: &TestPod, node_port: u16) -> Result<SocketAddr> {
        let service = json!({
            "metadata": { "name": pod.name },
            "spec": {
                "type": "NodePort",
                "selector": { "app": pod.name },
                "ports": [
                    { "name": "http", "port": 80, "targetPort": pod.port, "nodePort": node_port },
                    { "name": "echo", "port": 80, "targetPort": pod.port, "protocol": "UDP" },
                ],
            },
        });
        let service = self.api().request("POST", SERVICES, &service)?;
        let address = service["spec"]["clusterIP"].as_str().context("the service has no address")?;
        Ok(SocketAddr::new(address.parse()?, 80))
    }

    /// Asks a pod from its own node, as a probe of the kubelet does.
    pub fn ask(&self, pod: &TestPod, page: &str) -> Result<String> {
        let node = self.lab().node(pod.node).namespace();
        ask(node, SocketAddr::new(pod.address, pod.port), page)
    }

    /// Lets a pod ask a server, and returns the answer: the server's name, and whom it saw.
    pub fn ask_from(&self, pod: &TestPod, server: SocketAddr) -> Result<String> {
        self.ask(pod, &format!("/ask?{server}"))
    }

    /// Lets a pod send packets to a server and open connections, from now on.
    pub fn begin_flow(&self, pod: &TestPod, server: SocketAddr) -> Result<()> {
        self.ask(pod, &format!("/flow?{server}")).map(drop)
    }

    /// Ends what [`Cluster::begin_flow`] began; fails if a single packet or connection was lost.
    pub fn end_flow(&self, pod: &TestPod) -> Result<()> {
        let said = self.ask(pod, "/flow")?;
        let words: Vec<&str> = said.split_whitespace().collect();
        let ["udp", sent, "0", "tcp", opened, "0"] = words[..] else {
            bail!("{} sent, lost, opened, failed: {}", pod.name, said.trim())
        };
        ensure!(
            sent.parse::<usize>()? > 10 && opened.parse::<usize>()? > 1,
            "hardly anything was sent: {said}"
        );
        Ok(())
    }
}

impl TestPod {
    /// Where it serves.
    pub fn server(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }
}

/// Asks a server over HTTP from within a namespace.
pub fn ask(from: &Namespace, server: SocketAddr, page: &str) -> Result<String> {
    let answer = from.within(|| -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&server, LIMIT)?;
        stream.set_read_timeout(Some(LIMIT))?;
        write!(stream, "GET {page} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })?;
    let answer = answer.with_context(|| format!("asking {server}"))?;
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("{server} says {answer:?}"))?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "{server}{page}: {}", body.trim());
    Ok(body.trim().to_owned())
}

fn running(pods: &Value, spec: &PodSpec) -> Result<TestPod> {
    let pod = items(pods).iter().find(|pod| pod["metadata"]["name"] == spec.name.as_str());
    let status = &pod.with_context(|| format!("there is no pod {}", spec.name))?["status"];
    let ready = &status["containerStatuses"][0]["ready"];
    ensure!(ready == true, "{} is not ready: {}", spec.name, status["phase"]);
    let address = status["podIP"].as_str().context("a pod runs without an address")?.parse()?;
    Ok(TestPod { name: spec.name.clone(), node: spec.node, address, port: spec.port })
}

fn items(list: &Value) -> &[Value] {
    list["items"].as_array().map_or(&[], Vec::as_slice)
}
