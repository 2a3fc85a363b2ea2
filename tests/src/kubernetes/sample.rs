//! Nodes that are only objects of the API, as large as real ones are.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

/// A node that no kubelet stands behind: an object of some 15 KB, as after a month of life.
#[derive(Debug, Clone)]
pub struct SampleNode {
    /// Its name.
    pub name: String,
    /// What the controller manager gave it; may be empty.
    pub pod_cidrs: Vec<String>,
    /// Its internal address.
    pub address: Ipv4Addr,
    /// Its annotations, besides those that every node has.
    pub annotations: Vec<(String, String)>,
}

impl SampleNode {
    /// Node `number` of a cluster of at most 32,000, with a vxlan lease: `node-<number>`, its subnet the
    /// numberth /24 of 10.128.0.0/9, its address the numberth of 172.16.0.0/16.
    pub fn vxlan(number: u16) -> SampleNode {
        let [high, low] = number.to_be_bytes();
        let address = Ipv4Addr::new(172, 16, high, low);
        let subnet = format!("10.{}.{low}.0/24", 128 + high);
        let mac = format!("02:00:00:00:{high:02x}:{low:02x}");
        let data = json!({ "VNI": 1, "VtepMAC": mac }).to_string();
        let annotation =
            |name: &str, value: &str| (format!("flannel.alpha.coreos.com/{name}"), value.to_owned());
        SampleNode {
            name: format!("node-{number}"),
            pod_cidrs: vec![subnet],
            address,
            annotations: vec![
                annotation("kube-subnet-manager", "true"),
                annotation("public-ip", &address.to_string()),
                annotation("backend-type", "vxlan"),
                annotation("backend-data", &data),
            ],
        }
    }

    /// The object.
    pub fn object(&self) -> Value {
        let mut annotations = json!({
            "node.alpha.kubernetes.io/ttl": "0",
            "volumes.kubernetes.io/controller-managed-attach-detach": "true",
            "csi.volume.kubernetes.io/nodeid": json!({ "ebs.csi.example.org": self.name }).to_string(),
        });
        for (name, value) in &self.annotations {
            annotations[name] = value.as_str().into();
        }
        json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": self.name,
                "annotations": annotations,
                "labels": {
                    "beta.kubernetes.io/arch": "amd64",
                    "beta.kubernetes.io/os": "linux",
                    "kubernetes.io/arch": "amd64",
                    "kubernetes.io/hostname": self.name,
                    "kubernetes.io/os": "linux",
                    "topology.kubernetes.io/zone": "zone-1",
                },
            },
            "spec": {
                "podCIDR": self.pod_cidrs.first(),
                "podCIDRs": self.pod_cidrs,
                "providerID": format!("lab:///zone-1/{}", self.name),
            },
            "status": {
                "addresses": [
                    { "type": "InternalIP", "address": self.address.to_string() },
                    { "type": "Hostname", "address": self.name },
                ],
                "allocatable": resources("3920m", "15Gi"),
                "capacity": resources("4", "16Gi"),
                "conditions": conditions(),
                "daemonEndpoints": { "kubeletEndpoint": { "Port": 10250 } },
                "images": (0..40).map(image).collect::<Vec<_>>(),
                "nodeInfo": {
                    "architecture": "amd64",
                    "bootID": "5f0a4a0e-1b7f-4c52-8a5c-3d9b0c6b2f11",
                    "containerRuntimeVersion": "containerd://1.7.27",
                    "kernelVersion": "6.1.0-37-amd64",
                    "kubeProxyVersion": "",
                    "kubeletVersion": "v1.34.4",
                    "machineID": "2b1c6f0e9d8a4f3b8c7d6e5f4a3b2c1d",
                    "operatingSystem": "linux",
                    "osImage": "Debian GNU/Linux 12 (bookworm)",
                    "systemUUID": "2b1c6f0e-9d8a-4f3b-8c7d-6e5f4a3b2c1d",
                },
            },
        })
    }
}

fn resources(cpu: &str, memory: &str) -> Value {
    json!({ "cpu": cpu, "memory": memory, "ephemeral-storage": "101430960Ki", "hugepages-2Mi": "0", "pods": "110" })
}

fn conditions() -> Vec<Value> {
    let condition = |kind: &str, status: &str, reason: &str, message: &str| {
        json!({
            "type": kind, "status": status, "reason": reason, "message": message,
            "lastHeartbeatTime": "2025-01-01T00:05:00Z",
            "lastTransitionTime": "2025-01-01T00:00:00Z",
        })
    };
    vec![
        condition("NetworkUnavailable", "False", "FlannelIsUp", "Flannel is running on this node"),
        condition(
            "MemoryPressure",
            "False",
            "KubeletHasSufficientMemory",
            "kubelet has sufficient memory available",
        ),
        condition("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        condition("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        condition("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
    ]
}

/// An image that the node has pulled.
fn image(number: u32) -> Value {
    let name = format!("registry.example.org/team-{}/application-{number}", number % 7);
    let digest = format!("{:064x}", u64::from(number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    json!({ "names": [format!("{name}@sha256:{digest}"), format!("{name}:v1.{number}.0")], "sizeBytes": 50_000_000 + number })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_as_large_as_a_real_node() {
        let size = SampleNode::vxlan(7).object().to_string().len();
        assert!((9_000..20_000).contains(&size), "{size} bytes");
    }

    #[test]
    fn no_two_of_ten_thousand_share_anything() {
        let nodes: Vec<SampleNode> = (0..10_000).map(SampleNode::vxlan).collect();
        let mut subnets: Vec<_> = nodes.iter().map(|node| &node.pod_cidrs).collect();
        subnets.sort();
        subnets.dedup();
        assert_eq!(subnets.len(), nodes.len());
    }
}
