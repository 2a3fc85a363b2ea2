//! A client of the Container Runtime Interface, which the kubelet speaks: the few calls that a pod's
//! life takes.
//!
//! The messages hold the fields that the stories use, numbered as in `k8s.io/cri-api` v1; the others
//! are skipped in answers and have their defaults in requests.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use prost::Message;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

use crate::image::IMAGE;
use crate::machine::{CONTAINER_PORT, HOST_PORT, SERVER};

/// A connection to a runtime.
#[derive(Debug)]
pub struct Runtime {
    worker: tokio::runtime::Runtime,
    channel: Channel,
}

/// A pod with one container, as the runtime knows it.
#[derive(Debug)]
pub struct CriPod {
    sandbox: String,
    container: String,
    /// The pod's address.
    pub address: IpAddr,
}

impl Runtime {
    /// Connects to the socket of a runtime.
    pub fn connect(socket: &Path) -> Result<Runtime> {
        let worker = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let endpoint =
            Endpoint::from_shared(format!("unix:{}", socket.display()))?.timeout(Duration::from_secs(120));
        let channel =
            worker.block_on(endpoint.connect()).with_context(|| format!("connecting to {socket:?}"))?;
        Ok(Runtime { worker, channel })
    }

    /// Fails with the runtime's reason unless it says that its network is ready.
    pub fn network_ready(&self) -> Result<()> {
        let answer: StatusResponse = self.call("Status", StatusRequest {})?;
        let conditions = answer.status.context("no status")?.conditions;
        let network = conditions.iter().find(|condition| condition.kind == "NetworkReady");
        let network = network.context("no word about the network")?;
        ensure!(network.status, "{}: {}", network.reason, network.message);
        Ok(())
    }

    /// Runs a pod with the server on the host port.
    pub fn run_pod(&self, name: &str) -> Result<CriPod> {
        let config = SandboxConfig {
            metadata: Some(SandboxMetadata {
                name: name.to_owned(),
                uid: format!("uid-{name}"),
                namespace: "default".to_owned(),
                attempt: 0,
            }),
            hostname: name.to_owned(),
            log_directory: "/var/log".to_owned(),
            port_mappings: vec![PortMapping {
                protocol: 0,
                container_port: CONTAINER_PORT.into(),
                host_port: HOST_PORT.into(),
            }],
            linux: Some(LinuxSandbox { cgroup_parent: "/pods".to_owned() }),
        };
        let request = RunPodSandboxRequest { config: Some(config.clone()) };
        let Id { id: sandbox } = self.call("RunPodSandbox", request)?;
        let request = CreateContainerRequest {
            sandbox: sandbox.clone(),
            config: Some(ContainerConfig {
                metadata: Some(ContainerMetadata { name: "server".to_owned() }),
                image: Some(ImageSpec { image: IMAGE.to_owned() }),
                command: SERVER.map(str::to_owned).to_vec(),
            }),
            sandbox_config: Some(config),
        };
        let Id { id: container } = self.call("CreateContainer", request)?;
        let _: Nothing = self.call("StartContainer", Id { id: container.clone() })?;
        let status: SandboxStatusResponse = self.call("PodSandboxStatus", Id { id: sandbox.clone() })?;
        let network = status.status.and_then(|status| status.network).context("the pod has no network")?;
        let address = network.ip.parse().with_context(|| format!("the pod's address is {:?}", network.ip))?;
        Ok(CriPod { sandbox, container, address })
    }

    /// Runs a program in the pod's container and returns what it printed.
    pub fn exec(&self, pod: &CriPod, command: &[&str]) -> Result<String> {
        let command = command.iter().map(|word| (*word).to_owned()).collect();
        let request = ExecRequest { container: pod.container.clone(), command, timeout: 60 };
        let answer: ExecResponse = self.call("ExecSync", request)?;
        let said = String::from_utf8_lossy(&answer.stderr);
        ensure!(answer.exit_code == 0, "exit code {}: {said}", answer.exit_code);
        Ok(String::from_utf8_lossy(&answer.stdout).into_owned())
    }

    /// Stops and removes a pod.
    pub fn remove_pod(&self, pod: &CriPod) -> Result<()> {
        let _: Nothing = self.call("StopPodSandbox", Id { id: pod.sandbox.clone() })?;
        let _: Nothing = self.call("RemovePodSandbox", Id { id: pod.sandbox.clone() })?;
        Ok(())
    }

    fn call<Q, A>(&self, method: &str, request: Q) -> Result<A>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let path = format!("/runtime.v1.RuntimeService/{method}").parse()?;
        let answer = self.worker.block_on(async {
            let mut client = Grpc::new(self.channel.clone());
            client.ready().await?;
            let answer = client.unary(tonic::Request::new(request), path, ProstCodec::default()).await;
            anyhow::Ok(answer.map_err(|status| anyhow::anyhow!("{}", status.message()))?)
        });
        Ok(answer.with_context(|| format!("{method} failed"))?.into_inner())
    }
}

#[derive(Clone, PartialEq, Message)]
struct Nothing {}

/// Requests and answers that are one identifier.
#[derive(Clone, PartialEq, Message)]
struct Id {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, Message)]
struct StatusRequest {}

#[derive(Clone, PartialEq, Message)]
struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    status: Option<RuntimeStatus>,
}

#[derive(Clone, PartialEq, Message)]
struct RuntimeStatus {
    #[prost(message, repeated, tag = "1")]
    conditions: Vec<Condition>,
}

#[derive(Clone, PartialEq, Message)]
struct Condition {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(bool, tag = "2")]
    status: bool,
    #[prost(string, tag = "3")]
    reason: String,
    #[prost(string, tag = "4")]
    message: String,
}

#[derive(Clone, PartialEq, Message)]
struct RunPodSandboxRequest {
    #[prost(message, optional, tag = "1")]
    config: Option<SandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct SandboxConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<SandboxMetadata>,
    #[prost(string, tag = "2")]
    hostname: String,
    #[prost(string, tag = "3")]
    log_directory: String,
    #[prost(message, repeated, tag = "5")]
    port_mappings: Vec<PortMapping>,
    #[prost(message, optional, tag = "8")]
    linux: Option<LinuxSandbox>,
}

#[derive(Clone, PartialEq, Message)]
struct SandboxMetadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    namespace: String,
    #[prost(uint32, tag = "4")]
    attempt: u32,
}

#[derive(Clone, PartialEq, Message)]
struct PortMapping {
    /// 0 is TCP.
    #[prost(int32, tag = "1")]
    protocol: i32,
    #[prost(int32, tag = "2")]
    container_port: i32,
    #[prost(int32, tag = "3")]
    host_port: i32,
}

#[derive(Clone, PartialEq, Message)]
struct LinuxSandbox {
    #[prost(string, tag = "1")]
    cgroup_parent: String,
}

#[derive(Clone, PartialEq, Message)]
struct CreateContainerRequest {
    #[prost(string, tag = "1")]
    sandbox: String,
    #[prost(message, optional, tag = "2")]
    config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    sandbox_config: Option<SandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ContainerMetadata>,
    #[prost(message, optional, tag = "2")]
    image: Option<ImageSpec>,
    #[prost(string, repeated, tag = "3")]
    command: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerMetadata {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct ImageSpec {
    #[prost(string, tag = "1")]
    image: String,
}

#[derive(Clone, PartialEq, Message)]
struct SandboxStatusResponse {
    #[prost(message, optional, tag = "1")]
    status: Option<SandboxStatus>,
}

#[derive(Clone, PartialEq, Message)]
struct SandboxStatus {
    #[prost(message, optional, tag = "5")]
    network: Option<SandboxNetwork>,
}

#[derive(Clone, PartialEq, Message)]
struct SandboxNetwork {
    #[prost(string, tag = "1")]
    ip: String,
}

#[derive(Clone, PartialEq, Message)]
struct ExecRequest {
    #[prost(string, tag = "1")]
    container: String,
    #[prost(string, repeated, tag = "2")]
    command: Vec<String>,
    #[prost(int64, tag = "3")]
    timeout: i64,
}

#[derive(Clone, PartialEq, Message)]
struct ExecResponse {
    #[prost(bytes = "vec", tag = "1")]
    stdout: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    stderr: Vec<u8>,
    #[prost(int32, tag = "3")]
    exit_code: i32,
}
