//! Leases from the API server: a node becomes available when it is, and says what is missing.
//!
//! ```text
//!   node1  a  ⇄  node2  b
//!     └────────────┴──── switch: kube-apiserver, etcd
//! ```
//!
//! What the stories in `kubernetes_*.rs` share is here too: [`Kube`].

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use flannel_rs_tests::kubernetes::{ApiServer, is_available};
use flannel_rs_tests::{PATIENCE, everyone_answers, mac, reaches, says, shows};
use lab::{Binaries, Families, Lab, Node, Pod, Topology, story, wait_for};
use serde_json::{Value, json};

/// The annotations of flannel.
pub(crate) const PREFIX: &str = "flannel.alpha.coreos.com/";

/// A lab whose nodes are nodes of a Kubernetes that has no more of it than its API.
pub(crate) struct Kube<'a> {
    pub(crate) lab: &'a Lab,
    pub(crate) api: ApiServer,
}

/// A story on an API server, unless there is none to be had.
pub(crate) fn kubernetes(topology: Topology, tell: impl FnOnce(&Kube<'_>) -> Result<()>) {
    if !is_available() {
        return;
    }
    story(topology, |lab| {
        let kube = Kube { lab, api: ApiServer::start(lab)? };
        fs::write(kube.net_conf(), lab.topology().net_conf().to_string())?;
        tell(&kube)
    });
}

impl Kube<'_> {
    pub(crate) fn node(&self, number: usize) -> &Node {
        self.lab.node(number)
    }

    pub(crate) fn net_conf(&self) -> PathBuf {
        self.lab.dir().join("net-conf.json")
    }

    /// The podCIDRs that a node is given, in the families of the lab.
    pub(crate) fn pod_cidrs(&self, number: usize) -> Vec<String> {
        let families = self.lab.topology().families;
        let ipv4 = families.ipv4().then(|| format!("10.244.{number}.0/24"));
        let ipv6 = families.ipv6().then(|| format!("fd10:244:0:{number}::/64"));
        ipv4.into_iter().chain(ipv6).collect()
    }

    /// Makes the Node object of a node of the lab, as a kubelet and the controller-manager do.
    pub(crate) fn create(&self, number: usize, pod_cidrs: &[String]) -> Result<()> {
        let node = self.node(number);
        let addresses: Vec<_> = node
            .addresses()
            .iter()
            .map(|net| json!({ "type": "InternalIP", "address": net.addr().to_string() }))
            .collect();
        let object = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": { "name": node.name() },
            "spec": { "podCIDR": pod_cidrs.first(), "podCIDRs": pod_cidrs },
        });
        self.api.request("POST", "/api/v1/nodes", &object)?;
        let status = json!({ "status": { "addresses": addresses } });
        self.api.request("PATCH", &format!("/api/v1/nodes/{}/status", node.name()), &status).map(drop)
    }

    /// Makes the Node objects of all nodes.
    pub(crate) fn create_all(&self) -> Result<()> {
        (1..=self.lab.nodes().len()).try_for_each(|number| self.create(number, &self.pod_cidrs(number)))
    }

    /// Starts a node's flanneld as the DaemonSet does, with the rights of its account.
    pub(crate) fn start(&self, number: usize, more: &[&str]) -> Result<()> {
        let kubeconfig = self.api.flannel_kubeconfig();
        self.start_as(number, &kubeconfig.display().to_string(), more)
    }

    pub(crate) fn start_as(&self, number: usize, kubeconfig: &str, more: &[&str]) -> Result<()> {
        let node = self.node(number);
        let mut command = vec![
            "env".to_owned(),
            format!("NODE_NAME={}", node.name()),
            Binaries::find()?.flanneld.display().to_string(),
            "--kube-subnet-mgr".to_owned(),
            format!("--kubeconfig-file={kubeconfig}"),
            format!("--net-config-path={}", self.net_conf().display()),
            format!("--subnet-file={}", node.files().subnet.display()),
        ];
        command.extend(more.iter().map(|flag| (*flag).to_owned()));
        node.start_command(&command)
    }

    /// Starts all nodes, and waits until they are ready.
    pub(crate) fn start_all(&self) -> Result<()> {
        let nodes = self.lab.nodes().len();
        (1..=nodes).try_for_each(|number| self.start(number, &["--ip-masq"]))?;
        (1..=nodes).try_for_each(|number| self.node(number).wait_ready(nodes - 1).map(drop))
    }

    /// All nodes, and a pod on each of the first two that reach each other.
    pub(crate) fn two_pods(&self) -> Result<(Pod<'_>, Pod<'_>)> {
        self.create_all()?;
        self.start_all()?;
        let (a, b) = (self.node(1).attach("a")?, self.node(2).attach("b")?);
        reaches(&a, &b)?;
        Ok((a, b))
    }

    pub(crate) fn get(&self, number: usize) -> Result<Value> {
        self.api.request("GET", &format!("/api/v1/nodes/{}", self.node(number).name()), &Value::Null)
    }

    pub(crate) fn delete(&self, number: usize) -> Result<()> {
        let path = format!("/api/v1/nodes/{}", self.node(number).name());
        self.api.request("DELETE", &path, &Value::Null).map(drop)
    }

    /// Annotates a node; null takes the annotation away.
    pub(crate) fn annotate(&self, number: usize, name: &str, value: Value) -> Result<()> {
        let path = format!("/api/v1/nodes/{}", self.node(number).name());
        let annotations = json!({ format!("{PREFIX}{name}"): value });
        self.api.request("PATCH", &path, &json!({ "metadata": { "annotations": annotations } })).map(drop)
    }

    /// A flannel annotation of a node.
    pub(crate) fn annotation(&self, number: usize, name: &str) -> Result<Option<String>> {
        let node = self.get(number)?;
        Ok(node["metadata"]["annotations"][format!("{PREFIX}{name}")].as_str().map(str::to_owned))
    }

    /// Status, reason and message of a node's condition NetworkUnavailable.
    pub(crate) fn condition(&self, number: usize) -> Result<Option<[String; 3]>> {
        let node = self.get(number)?;
        let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let condition = conditions.iter().find(|condition| condition["type"] == "NetworkUnavailable");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(condition.map(|condition| ["status", "reason", "message"].map(|field| text(&condition[field]))))
    }

    /// Waits until the condition has this status and reason.
    pub(crate) fn wait_condition(&self, number: usize, status: &str, reason: &str) -> Result<()> {
        wait_for(&format!("NetworkUnavailable={status}, {reason}"), PATIENCE, || {
            let condition = self.condition(number)?.context("there is no such condition")?;
            ensure!(condition[0] == status && condition[1] == reason, "{condition:?}");
            Ok(())
        })
    }

    /// Allows flannel's account more than the original needs.
    pub(crate) fn allow(
        &self,
        name: &str,
        groups: &[&str],
        resources: &[&str],
        verbs: &[&str],
    ) -> Result<()> {
        let rbac = "/apis/rbac.authorization.k8s.io/v1";
        let rule = json!({ "apiGroups": groups, "resources": resources, "verbs": verbs });
        let role = json!({ "metadata": { "name": name }, "rules": [rule] });
        self.api.request("POST", &format!("{rbac}/clusterroles"), &role)?;
        let binding = json!({
            "metadata": { "name": name },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name },
            "subjects": [{ "kind": "ServiceAccount", "name": "flannel", "namespace": "kube-flannel" }],
        });
        self.api.request("POST", &format!("{rbac}/clusterrolebindings"), &binding)?;
        for (group, resource) in groups.iter().flat_map(|group| resources.iter().map(move |is| (group, is))) {
            verbs.iter().try_for_each(|verb| self.api.wait_allowed(group, resource, verb))?;
        }
        Ok(())
    }

    /// Reason and message of each event of a node.
    pub(crate) fn events(&self, number: usize) -> Result<Vec<(String, String)>> {
        let list = self.api.request("GET", "/api/v1/events", &Value::Null)?;
        let name = self.node(number).name();
        let of_node = list["items"].as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(of_node
            .iter()
            .filter(|event| event["involvedObject"]["name"] == name.as_str())
            .map(|event| (text(&event["reason"]), text(&event["message"])))
            .collect())
    }

    /// Waits for an event of this reason that has this in its message.
    pub(crate) fn wait_event(&self, number: usize, reason: &str, part: &str) -> Result<()> {
        wait_for(&format!("an event {reason} with {part:?}"), PATIENCE, || {
            let events = self.events(number)?;
            ensure!(events.iter().any(|(is, message)| is == reason && message.contains(part)), "{events:?}");
            Ok(())
        })
    }
}

#[test]
fn nodes_become_available_once_pods_reach_each_other() {
    kubernetes(Topology::vxlan(2).families(Families::Dual), |kube| {
        kube.create_all()?;
        kube.start_all()?;
        let (a, b) = (kube.node(1).attach("a")?, kube.node(2).attach("b")?);
        everyone_answers(kube.lab, &[a, b])?;
        for number in [1, 2] {
            kube.wait_condition(number, "False", "FlannelIsUp")?;
            let condition = kube.condition(number)?.context("no condition")?;
            ensure!(condition[2] == "Flannel is running on this node", "{condition:?}");
            // The very texts that the original writes.
            let data = |link| {
                Ok::<_, anyhow::Error>(format!(
                    r#"{{"VNI":1,"VtepMAC":"{}"}}"#,
                    mac(kube.node(number), link)?
                ))
            };
            let golden = json!({
                format!("{PREFIX}backend-data"): data("flannel.1")?,
                format!("{PREFIX}backend-type"): "vxlan",
                format!("{PREFIX}backend-v6-data"): data("flannel-v6.1")?,
                format!("{PREFIX}kube-subnet-manager"): "true",
                format!("{PREFIX}public-ip"): format!("192.168.64.{number}"),
                format!("{PREFIX}public-ipv6"): format!("fd64::{number}"),
            });
            let annotations = &kube.get(number)?["metadata"]["annotations"];
            ensure!(*annotations == golden, "{annotations}");
            let subnet = kube.node(number).subnet_file()?.subnets();
            ensure!(subnet.iter().map(|net| net.to_string()).eq(kube.pod_cidrs(number)), "{subnet}");
        }
        Ok(())
    });
}

#[test]
fn a_podcidr_that_is_missing_is_waited_for_and_reported() {
    kubernetes(Topology::vxlan(2), |kube| {
        kube.allow("events", &["", "events.k8s.io"], &["events"], &["create", "patch"])?;
        kube.create(1, &[])?;
        kube.create(2, &kube.pod_cidrs(2))?;
        kube.start(2, &[])?;
        kube.start(1, &[])?;
        says(kube.node(1), "pod cidr not assigned")?;
        wait_for("the status to say what is missing", PATIENCE, || {
            let status = kube.node(1).status()?;
            ensure!(!status.ready, "ready without a podCIDR");
            let failure = status.failures.iter().find(|failure| failure.topic == "lease");
            let failure = failure.context("no failure")?;
            ensure!(failure.what.contains("pod cidr not assigned"), "{failure:?}");
            ensure!(failure.remedy.contains("--allocate-node-cidrs"), "no remedy: {failure:?}");
            Ok(())
        })?;
        kube.wait_event(1, "FlannelNoLease", "pod cidr not assigned")?;
        kube.wait_condition(1, "True", "FlannelNoLease")?;
        ensure!(kube.node(1).is_running(), "flanneld has ended");

        let path = format!("/api/v1/nodes/{}", kube.node(1).name());
        let cidrs = kube.pod_cidrs(1);
        let spec = json!({ "spec": { "podCIDR": cidrs[0], "podCIDRs": cidrs } });
        kube.api.request("PATCH", &path, &spec)?;
        kube.node(1).wait_ready(1)?;
        kube.wait_condition(1, "False", "FlannelIsUp")?;
        let (a, b) = (kube.node(1).attach("a")?, kube.node(2).attach("b")?);
        reaches(&a, &b)
    });
}

#[test]
fn a_node_that_cannot_carry_traffic_is_unavailable_until_it_can() {
    kubernetes(Topology::vxlan(2), |kube| {
        kube.allow("events", &["", "events.k8s.io"], &["events"], &["create", "patch"])?;
        kube.create_all()?;
        // The API server is reached by another address than the one that is lost.
        let node = kube.node(1);
        node.run("ip address add 192.168.64.101/24 dev eth0")?;
        kube.start(1, &["--iface=192.168.64.1", "--healthz-port=10256"])?;
        kube.start(2, &[])?;
        node.wait_ready(1)?;
        kube.wait_condition(1, "False", "FlannelIsUp")?;

        node.run("ip address del 192.168.64.1/24 dev eth0")?;
        node.run("ip address replace 192.168.64.101/24 dev eth0")?;
        node.run("ip route replace default via 192.168.64.254")?;
        kube.wait_condition(1, "True", "FlannelInterfaceLost")?;
        kube.wait_event(1, "FlannelInterfaceLost", "192.168.64.1")?;
        let probe = "curl --silent --show-error --max-time 5 http://127.0.0.1:10256/readyz";
        shows(node, probe, "flanneld is not ready yet\nwrong: eth0 192.168.64.1")?;

        node.run("ip address add 192.168.64.1/24 dev eth0")?;
        kube.wait_condition(1, "False", "FlannelIsUp")?;
        shows(node, probe, "flanneld is ready")?;
        let (a, b) = (node.attach("a")?, kube.node(2).attach("b")?);
        reaches(&a, &b)
    });
}

#[test]
fn a_device_that_cannot_be_made_is_told_and_so_is_damage_that_was_repaired() {
    kubernetes(Topology::vxlan(1), |kube| {
        kube.allow("events", &["", "events.k8s.io"], &["events"], &["create", "patch"])?;
        kube.create_all()?;
        let node = kube.node(1);
        // The kernel has one device of a VNI and port.
        node.run("ip link add other type vxlan id 1 dstport 8472 dev eth0 local 192.168.64.1")?;
        kube.start(1, &[])?;
        kube.wait_condition(1, "True", "FlannelDataPlaneFailed")?;
        kube.wait_event(1, "FlannelDataPlaneFailed", "another device has the same VNI and port")?;
        node.run("ip link del other")?;
        node.wait_ready(0)?;
        kube.wait_condition(1, "False", "FlannelIsUp")?;

        node.run("ip link del flannel.1")?;
        kube.wait_event(1, "FlannelRepaired", "the device was missing")?;
        let condition = kube.condition(1)?.context("no condition")?;
        ensure!(condition[0] == "False", "what is repaired at once makes nobody unavailable: {condition:?}");
        Ok(())
    });
}

#[test]
fn a_startup_taint_goes_when_the_node_is_ready_and_not_before() {
    kubernetes(Topology::vxlan(1), |kube| {
        kube.allow("taints", &[""], &["nodes"], &["patch"])?;
        kube.create(1, &[])?;
        let path = format!("/api/v1/nodes/{}", kube.node(1).name());
        let taint = |key: &str| json!({ "key": key, "effect": "NoSchedule" });
        let taints =
            json!({ "spec": { "taints": [taint("example.org/starting"), taint("example.org/other")] } });
        kube.api.request("PATCH", &path, &taints)?;
        kube.start(1, &["--remove-startup-taint=example.org/starting"])?;
        says(kube.node(1), "pod cidr not assigned")?;
        let keys = || -> Result<Vec<String>> {
            let node = kube.get(1)?;
            let taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
            Ok(taints.iter().filter_map(|taint| taint["key"].as_str()).map(str::to_owned).collect())
        };
        ensure!(keys()?.contains(&"example.org/starting".to_owned()), "{:?}", keys()?);

        let cidrs = kube.pod_cidrs(1);
        kube.api.request("PATCH", &path, &json!({ "spec": { "podCIDR": cidrs[0], "podCIDRs": cidrs } }))?;
        wait_for("the taint to go", PATIENCE, || {
            let keys = keys()?;
            ensure!(!keys.contains(&"example.org/starting".to_owned()), "{keys:?}");
            ensure!(keys.contains(&"example.org/other".to_owned()), "{keys:?}");
            Ok(())
        })
    });
}

#[test]
fn an_interface_that_the_cluster_does_not_know_is_told() {
    kubernetes(Topology::vxlan(1), |kube| {
        kube.allow("events", &["", "events.k8s.io"], &["events"], &["create", "patch"])?;
        kube.create_all()?;
        let path = format!("/api/v1/nodes/{}/status", kube.node(1).name());
        let known =
            json!({ "status": { "addresses": [{ "type": "InternalIP", "address": "192.168.56.11" }] } });
        kube.api.request("PATCH", &path, &known)?;
        kube.start(1, &[])?;
        kube.wait_event(1, "FlannelOddInterface", "192.168.64.1 on eth0")?;
        kube.node(1).stop()?;
        kube.start(1, &["--iface=eth0"])?;
        kube.node(1).wait_ready(0)?;
        let of_it = kube.events(1)?.into_iter().filter(|(reason, _)| reason == "FlannelOddInterface").count();
        ensure!(of_it == 1, "{of_it} events");
        Ok(())
    });
}

#[test]
fn an_annotation_names_the_address_and_the_interface() {
    kubernetes(Topology::vxlan(2), |kube| {
        kube.create_all()?;
        let node = kube.node(1);
        node.run("ip link add eth9 type veth peer name peer9")?;
        node.run("ip link set eth9 up")?;
        node.run("ip address add 198.51.100.7/24 dev eth9")?;
        kube.annotate(1, "node-public-ip", json!("198.51.100.7"))?;
        kube.annotate(2, "public-ip-overwrite", json!("203.0.113.9"))?;
        kube.start_all()?;
        let status = node.status()?;
        let external = status.external.context("no interface")?;
        ensure!(external.link == "eth9", "{external:?}");
        ensure!(kube.annotation(1, "public-ip")?.as_deref() == Some("198.51.100.7"));
        // What is published is overwritten; what the node does is not.
        ensure!(kube.annotation(2, "public-ip")?.as_deref() == Some("203.0.113.9"));
        shows(kube.node(2), "ip -d link show flannel.1", "local 192.168.64.2")?;
        wait_for("the peer to be in the kernel", PATIENCE, || {
            shows(node, "bridge fdb show dev flannel.1", "dst 203.0.113.9")
        })
    });
}
