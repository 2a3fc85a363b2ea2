//! [`Cluster`]: real nodes on a real API server.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Binaries, Lab, Node, Process, Topology, wait_for};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::api_server::{ApiServer, MANIFEST, SERVICES};
use super::flannel_image::flannel_image;
use super::programs::is_available;
use crate::image;
use crate::machine::Machine;

/// How long a thing may take that takes seconds on an idle machine.
pub const PATIENCE: Duration = Duration::from_secs(90);
/// The image of the pods that stories run: the program `test-pod`.
pub const TEST_POD: &str = "docker.io/library/test-pod:1";
/// So many clusters at a time, however many processors there are: each takes a gigabyte, and twenty of the
/// 128 instances of inotify that a machine has by default.
const AT_A_TIME: usize = 2;
/// What pods get their subnets from.
const PODS: &str = "10.244.0.0/16";

/// What a cluster is made of, besides its nodes.
#[derive(Debug, Clone)]
pub struct Shape {
    /// How kube-proxy programs services.
    pub proxy: Proxy,
    /// How flanneld gets onto the nodes.
    pub agent: Agent,
}

/// Names another agent than ours, see [`Agent::parse`]: how stories are told of the original.
const AGENT: &str = "FLANNEL_TEST_AGENT";

impl Shape {
    /// With our agent, or the one that the environment asks for.
    pub fn new(proxy: Proxy) -> Shape {
        let agent = env::var(AGENT).map_or(Agent::Ours, |agent| Agent::parse(&agent));
        Shape { proxy, agent }
    }
}

impl Agent {
    /// `PROGRAM`, or `MANIFEST,IMAGE` for a DaemonSet.
    pub fn parse(text: &str) -> Agent {
        match text.split_once(',') {
            Some((manifest, image)) => Agent::DaemonSet { manifest: manifest.into(), image: image.into() },
            None => Agent::Process(text.into()),
        }
    }
}

/// A mode of kube-proxy. There is no IPVS in every kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proxy {
    /// `iptables`
    Iptables,
    /// `nftables`
    Nftables,
}

/// How flanneld gets onto the nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Agent {
    /// As `deploy/kube-flannel.yml` has it, in an image of the programs that were just built.
    Ours,
    /// This program runs on every node, beside kubelet, on our plugins.
    Process(PathBuf),
    /// As a DaemonSet.
    DaemonSet {
        /// What is applied.
        manifest: PathBuf,
        /// The image that it names, as an archive.
        image: PathBuf,
    },
}

/// Where the manifests put it.
const FLANNEL: [&str; 2] = ["--namespace=kube-flannel", "daemonset/kube-flannel-ds"];

/// A cluster in a lab: API server, controller manager and scheduler in the switch; on every node a real
/// containerd, kubelet and kube-proxy. Dropping it ends all of it.
#[derive(Debug)]
pub struct Cluster<'lab> {
    lab: &'lab Lab,
    nodes: Vec<Machine<'lab>>,
    controllers: Vec<Process>,
    api: ApiServer,
}

/// Tells a story on a cluster of two nodes, as a test; see [`lab::story`]. When it fails, what the
/// cluster thinks of its pods is printed as well.
#[expect(
    clippy::print_stderr,
    reason = "only what the macros print is shown beside the test that printed it"
)]
pub fn cluster_story(shape: &Shape, tell: impl FnOnce(&mut Cluster<'_>) -> Result<()>) {
    if !is_available() {
        return;
    }
    let _room = Room::wait();
    lab::story(Topology::vxlan(2), |lab| {
        let mut cluster = Cluster::start(lab, shape)?;
        let told = cluster.wait_ready().and_then(|()| tell(&mut cluster));
        if told.is_err() {
            eprintln!("{}", cluster.dump());
        }
        told
    });
}

/// Room for a cluster on this machine, until dropped.
struct Room;

static TAKEN: Mutex<usize> = Mutex::new(0);
static FREED: Condvar = Condvar::new();

impl Room {
    fn wait() -> Room {
        // A story that fails frees its room as well.
        let taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = FREED.wait_while(taken, |taken| *taken == AT_A_TIME);
        *taken.unwrap_or_else(PoisonError::into_inner) += 1;
        Room
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        *TAKEN.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        FREED.notify_one();
    }
}

impl<'lab> Cluster<'lab> {
    /// Starts everything; does not wait for nodes to be ready.
    pub fn start(lab: &'lab Lab, shape: &Shape) -> Result<Cluster<'lab>> {
        let mut images = vec![write_image(lab)?];
        let manifest = match &shape.agent {
            Agent::Ours => {
                images.push(flannel_image()?);
                Some(PathBuf::from(MANIFEST))
            }
            Agent::DaemonSet { manifest, image } => {
                images.push(image.clone());
                Some(manifest.clone())
            }
            Agent::Process(_) => None,
        };
        // Machines and the API server have nothing to wait for each other for.
        let (api, nodes) = std::thread::scope(|scope| {
            let machines: Vec<_> =
                lab.nodes().iter().map(|node| scope.spawn(|| start_runtime(node, &images))).collect();
            let api = ApiServer::begin(lab);
            let machines: Vec<_> =
                machines.into_iter().map(|thread| thread.join().expect("a machine does not panic")).collect();
            anyhow::Ok((api?, machines.into_iter().collect::<Result<Vec<_>>>()?))
        })?;
        let mut cluster = Cluster { lab, nodes, controllers: Vec::new(), api };
        cluster.start_controllers()?;
        for number in 1..=cluster.nodes.len() {
            cluster.start_kubelet(number)?;
            cluster.start_proxy(number, shape.proxy)?;
            if let Agent::Process(program) = &shape.agent {
                cluster.start_agent(number, program)?;
            }
        }
        if let Some(manifest) = manifest {
            cluster.api.kubectl(&["apply", "-f", &manifest.display().to_string()])?;
        }
        Ok(cluster)
    }

    fn start_controllers(&mut self) -> Result<()> {
        let file = |name: &str| self.api.dir().join(name).display().to_string();
        let kubeconfig = format!("--kubeconfig={}", self.api.admin_kubeconfig().display());
        let controller_manager = [
            self.api.program("kube-controller-manager"),
            kubeconfig.clone(),
            "--allocate-node-cidrs=true".to_owned(),
            format!("--cluster-cidr={PODS}"),
            format!("--service-cluster-ip-range={SERVICES}"),
            format!("--root-ca-file={}", file("ca.crt")),
            format!("--service-account-private-key-file={}", file("service-accounts.key")),
            // Nothing is handed out before the last of its controllers has started.
            "--kube-api-qps=1000".to_owned(),
            "--kube-api-burst=1000".to_owned(),
            "--leader-elect=false".to_owned(),
            "--bind-address=127.0.0.1".to_owned(),
        ];
        let scheduler = [
            self.api.program("kube-scheduler"),
            kubeconfig,
            "--leader-elect=false".to_owned(),
            "--bind-address=127.0.0.1".to_owned(),
        ];
        for (name, command) in
            [("kube-controller-manager", &controller_manager[..]), ("kube-scheduler", &scheduler[..])]
        {
            let log = self.api.dir().join(format!("{name}.log"));
            self.controllers.push(Process::spawn(self.lab.switch(), command, &log)?);
        }
        Ok(())
    }

    fn start_kubelet(&mut self, number: usize) -> Result<()> {
        let name = self.lab.node(number).name();
        let address = self.lab.node(number).address();
        let kubeconfig = self.api.kubeconfig_for(&format!("system:node:{name}"), Some("system:nodes"))?;
        let kubelet = self.api.program("kubelet");
        let ca = fs::read_to_string(self.api.ca_file())?;
        let machine = &mut self.nodes[number - 1];
        machine.write("/etc/kubernetes/ca.crt", &ca)?;
        machine.write("/etc/kubernetes/kubelet.kubeconfig", &kubeconfig)?;
        machine.write("/etc/kubernetes/kubelet.json", &kubelet_config().to_string())?;
        machine.serve(
            "kubelet",
            &[
                &kubelet,
                "--config=/etc/kubernetes/kubelet.json",
                "--kubeconfig=/etc/kubernetes/kubelet.kubeconfig",
                &format!("--hostname-override={name}"),
                &format!("--node-ip={address}"),
            ],
        )
    }

    fn start_proxy(&mut self, number: usize, mode: Proxy) -> Result<()> {
        let kubeconfig = self.api.kubeconfig_for("system:kube-proxy", None)?;
        let proxy = self.api.program("kube-proxy");
        let config = proxy_config(&self.lab.node(number).name(), mode);
        let machine = &mut self.nodes[number - 1];
        machine.write("/etc/kubernetes/kube-proxy.kubeconfig", &kubeconfig)?;
        machine.write("/etc/kubernetes/kube-proxy.json", &config.to_string())?;
        machine.serve("kube-proxy", &[&proxy, "--config=/etc/kubernetes/kube-proxy.json"])
    }

    fn start_agent(&mut self, number: usize, program: &Path) -> Result<()> {
        let name = self.lab.node(number).name();
        let kubeconfig = fs::read_to_string(self.api.admin_kubeconfig())?;
        let machine = &mut self.nodes[number - 1];
        machine.install()?;
        machine.write("/etc/kubernetes/flannel.kubeconfig", &kubeconfig)?;
        let net_conf = json!({ "Network": PODS, "Backend": { "Type": "vxlan" } });
        machine.write("/etc/kube-flannel/net-conf.json", &net_conf.to_string())?;
        machine.serve(
            "flanneld",
            &[
                "env",
                &format!("NODE_NAME={name}"),
                // As the kubelet would: the original ends where ours waits.
                "sh",
                "-c",
                "until \"$0\" \"$@\"; do sleep 0.5; done",
                &program.display().to_string(),
                "--kube-subnet-mgr",
                "--kubeconfig-file=/etc/kubernetes/flannel.kubeconfig",
                "--ip-masq",
            ],
        )
    }

    /// Starts the kubelet of a node again.
    pub fn restart_kubelet(&mut self, number: usize) -> Result<()> {
        self.nodes[number - 1].kill_service("kubelet")?;
        self.start_kubelet(number)
    }

    /// Replaces flanneld on one node after the other, as an update of its DaemonSet does.
    pub fn roll_flannel(&self) -> Result<()> {
        let [namespace, set] = FLANNEL;
        self.api.kubectl(&["rollout", "restart", namespace, set])?;
        let limit = format!("--timeout={}s", PATIENCE.as_secs());
        self.api.kubectl(&["rollout", "status", namespace, set, &limit]).map(drop)
    }

    /// Waits until every node has joined, is ready, has a network, and runs flanneld.
    pub fn wait_ready(&self) -> Result<()> {
        wait_for("all nodes to be ready", PATIENCE, || {
            self.nodes_ready()?;
            self.flannel_ready()
        })
    }

    /// Fails unless every node has joined, is ready, and has a network.
    pub fn nodes_ready(&self) -> Result<()> {
        let nodes = self.api.request("GET", "/api/v1/nodes", &Value::Null)?;
        let nodes = nodes["items"].as_array().map_or(&[][..], Vec::as_slice);
        ensure!(nodes.len() == self.nodes.len(), "{} nodes have joined", nodes.len());
        for (node, kind, wanted) in
            nodes.iter().flat_map(|node| [(node, "Ready", "True"), (node, "NetworkUnavailable", "False")])
        {
            let name = &node["metadata"]["name"];
            let condition = condition(node, kind).with_context(|| format!("{name} has no {kind}"))?;
            ensure!(condition["status"] == wanted, "{name}, {kind}: {}", condition["message"]);
        }
        Ok(())
    }

    /// Fails unless flanneld is ready on every node, if it runs in a pod.
    fn flannel_ready(&self) -> Result<()> {
        let sets = self.api.request("GET", "/apis/apps/v1/daemonsets", &Value::Null)?;
        for set in sets["items"].as_array().map_or(&[][..], Vec::as_slice) {
            let ready = &set["status"]["numberReady"];
            ensure!(*ready == self.nodes.len(), "{} is ready on {ready} nodes", set["metadata"]["name"]);
        }
        Ok(())
    }

    /// The lab that it is in.
    pub fn lab(&self) -> &'lab Lab {
        self.lab
    }

    /// The API server.
    pub fn api(&self) -> &ApiServer {
        &self.api
    }

    /// A node by its number, from 1.
    pub fn node(&self, number: usize) -> &Machine<'lab> {
        &self.nodes[number - 1]
    }

    /// What a person would look at first.
    pub fn dump(&self) -> String {
        let mut text = String::new();
        for args in [
            "get nodes -o wide",
            "get pods -A -o wide",
            "get services -A",
            "get events -A --sort-by=.lastTimestamp",
        ] {
            let said = self.api.kubectl(&args.split(' ').collect::<Vec<_>>());
            let said = said.unwrap_or_else(|error| format!("{error:#}"));
            text += &format!("==== kubectl {args}\n{}\n", tail(&said, 40));
        }
        for machine in &self.nodes {
            for service in ["containerd", "kubelet", "kube-proxy", "flanneld"] {
                let log = tail(&machine.log(service), 15);
                text += &format!("==== {} {service}, the last lines\n{log}\n", machine.node().name());
            }
        }
        text
    }
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        for controller in &mut self.controllers {
            // The lab kills it again, and says so if that fails.
            let _ = controller.end(Signal::KILL, PATIENCE);
        }
    }
}

/// The image of test pods, as an archive; a machine has no registry.
fn write_image(lab: &Lab) -> Result<PathBuf> {
    let archive = lab.dir().join("test-pod.tar");
    image::write_program(&archive, TEST_POD, &test_pod_program()?)?;
    Ok(archive)
}

/// The program in the image of test pods.
pub fn test_pod_program() -> Result<PathBuf> {
    Ok(Binaries::find()?.flanneld.with_file_name("test-pod"))
}

/// A machine whose containerd runs and has the images.
fn start_runtime<'lab>(node: &'lab Node, images: &[PathBuf]) -> Result<Machine<'lab>> {
    let mut machine = Machine::bare(node)?;
    machine.write("/etc/containerd/config.toml", &containerd_config())?;
    machine.serve("containerd", &["containerd"])?;
    wait_for("containerd to answer", PATIENCE, || machine.run(&["ctr", "version"]).map(drop))?;
    for image in images {
        let copy = machine.path("/tmp/image.tar");
        fs::copy(image, &copy).with_context(|| format!("copying {}", image.display()))?;
        machine.run(&["ctr", "--namespace=k8s.io", "images", "import", "/tmp/image.tar"])?;
        fs::remove_file(copy)?;
    }
    Ok(machine)
}

/// What a node without systemd and without a registry needs besides the defaults.
fn containerd_config() -> String {
    format!(
        r#"version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{TEST_POD}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
"#
    )
}

fn kubelet_config() -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": true },
            "x509": { "clientCAFile": "/etc/kubernetes/ca.crt" },
        },
        "authorization": { "mode": "Webhook" },
        "cgroupDriver": "cgroupfs",
        "clusterDNS": ["10.96.0.10"],
        "clusterDomain": "cluster.local",
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        // Nobody's disk fills for a story's sake.
        "evictionHard": { "memory.available": "0%", "nodefs.available": "0%", "imagefs.available": "0%" },
        "failCgroupV1": false,
        "failSwapOn": false,
        // Where it stands by default is not a directory of the machine's own.
        "volumePluginDir": "/var/lib/kubelet/plugins",
    })
}

fn proxy_config(node: &str, mode: Proxy) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": match mode { Proxy::Iptables => "iptables", Proxy::Nftables => "nftables" },
        "clusterCIDR": PODS,
        "clientConnection": { "kubeconfig": "/etc/kubernetes/kube-proxy.kubeconfig" },
        "hostnameOverride": node,
        // Limits of connection tracking are the whole machine's.
        "conntrack": {
            "maxPerCore": 0, "min": 0, "tcpCloseWaitTimeout": "0s", "tcpEstablishedTimeout": "0s",
            "udpTimeout": "0s", "udpStreamTimeout": "0s",
        },
    })
}

/// A condition of an object's status.
pub fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    object["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == kind)
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
