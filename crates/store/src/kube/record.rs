//! A lease as a Node holds it: podCIDRs, which somebody gives the Node, and annotations, in which the
//! node tells the others how to reach it. Pure.
//!
//! | annotation, after the prefix | what |
//! |---|---|
//! | `kube-subnet-manager` | `true`, or the Node is none of ours |
//! | `backend-type` | [`Attributes::backend_type`], perhaps empty |
//! | `backend-data`, `backend-v6-data` | JSON, `null` where there is none |
//! | `public-ip`, `public-ipv6` | where peers send to |
//! | `public-ip-overwrite`, `public-ipv6-overwrite` | written by people: to be published instead |
//! | `node-public-ip`, `node-public-ipv6` | written by people: to be used by the node itself |

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use fabric::config::NetworkConfig;
use fabric::lease::{Attributes, Lease, Subnets};
use ipnet::IpNet;
use serde_json::value::RawValue;

use super::object::Object;

const MANAGED: &str = "kube-subnet-manager";
const TYPE: &str = "backend-type";
const DATA: [&str; 2] = ["backend-data", "backend-v6-data"];
const PUBLIC: [&str; 2] = ["public-ip", "public-ipv6"];
const OVERWRITE: [&str; 2] = ["public-ip-overwrite", "public-ipv6-overwrite"];
const OF_NODE: [&str; 2] = ["node-public-ip", "node-public-ipv6"];

/// Which families a network has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Families {
    pub(super) ipv4: bool,
    pub(super) ipv6: bool,
}

impl From<&NetworkConfig> for Families {
    fn from(config: &NetworkConfig) -> Families {
        Families { ipv4: config.ipv4.is_some(), ipv6: config.ipv6.is_some() }
    }
}

/// Our own Node, as far as it matters to our lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OwnNode {
    pub(super) uid: String,
    pub(super) created: u64,
    pub(super) pod_cidrs: Vec<String>,
    /// By the rest of their names.
    pub(super) annotations: BTreeMap<String, String>,
}

impl OwnNode {
    pub(super) fn new(object: &Object<'_>, prefix: &str) -> OwnNode {
        OwnNode {
            uid: object.metadata.uid.clone().into_owned(),
            created: object.created(),
            pod_cidrs: object.pod_cidrs().map(str::to_owned).collect(),
            annotations: object.annotations(prefix).collect(),
        }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.annotations.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// What somebody wants this node to use as its own addresses, or why that cannot be read.
    pub(super) fn node_addresses(
        &self,
    ) -> (Result<Option<Ipv4Addr>, String>, Result<Option<Ipv6Addr>, String>) {
        (self.address(OF_NODE[0]), self.address(OF_NODE[1]))
    }

    fn address<T: FromStr<Err: Display>>(&self, name: &str) -> Result<Option<T>, String> {
        let parsed = self.get(name).map(|text| (text, text.parse()));
        match parsed {
            None => Ok(None),
            Some((_, Ok(address))) => Ok(Some(address)),
            Some((text, Err(error))) => Err(format!("the annotation {name} is {text:?}: {error}")),
        }
    }

    /// What peers are to be told in place of our own addresses; what cannot be read is not heeded.
    pub(super) fn overwritten(&self, attributes: &Attributes) -> (Attributes, Vec<String>) {
        let mut published = attributes.clone();
        let mut complaints = Vec::new();
        match self.address(OVERWRITE[0]) {
            Ok(Some(address)) => published.public_ipv4 = Some(address),
            Ok(None) => {}
            Err(why) => complaints.push(why),
        }
        match self.address(OVERWRITE[1]) {
            Ok(Some(address)) if published.public_ipv6.is_some() => published.public_ipv6 = Some(address),
            Ok(_) => {}
            Err(why) => complaints.push(why),
        }
        (published, complaints)
    }

    /// What has to be written for the Node to tell peers what `published` says; none is to be removed.
    pub(super) fn missing(&self, published: &Attributes) -> BTreeMap<&'static str, Option<String>> {
        let mut wanted = annotations(published);
        wanted.retain(|name, value| self.annotations.get(*name) != value.as_ref());
        wanted
    }
}

/// All annotations of a node that publishes these attributes; none for those that it must not have.
fn annotations(attributes: &Attributes) -> BTreeMap<&'static str, Option<String>> {
    let json = |data: &Option<Box<RawValue>>| data.as_ref().map_or("null", |data| data.get()).to_owned();
    let is_vxlan = &*attributes.backend_type == "vxlan";
    // Compatibility: an IPv6 network has 0.0.0.0 here, but for vxlan.
    let has_ipv4 = !is_vxlan || attributes.backend_data.is_some();
    let public_ipv4 = attributes.public_ipv4.unwrap_or(Ipv4Addr::UNSPECIFIED);
    let has_ipv6 = attributes.public_ipv6.is_some()
        && (attributes.backend_v6_data.is_some()
            || matches!(&*attributes.backend_type, "host-gw" | "extension"));
    BTreeMap::from([
        (MANAGED, Some("true".to_owned())),
        (TYPE, Some(attributes.backend_type.to_string())),
        (DATA[0], has_ipv4.then(|| json(&attributes.backend_data))),
        (PUBLIC[0], has_ipv4.then(|| public_ipv4.to_string())),
        (DATA[1], has_ipv6.then(|| json(&attributes.backend_v6_data))),
        (PUBLIC[1], attributes.public_ipv6.filter(|_| has_ipv6).map(|address| address.to_string())),
    ])
}

/// The pod subnets among podCIDRs, those of other families left out.
pub(super) fn subnets<'a>(
    pod_cidrs: impl Iterator<Item = &'a str>,
    families: Families,
) -> Result<Subnets, String> {
    let mut subnets = Subnets::default();
    for (index, text) in pod_cidrs.enumerate() {
        // Compatibility: the original refuses these as well.
        if index == 2 {
            return Err(
                "pod cidrs should be IPv4/IPv6 only or dualstack, but there are more than two".to_owned()
            );
        }
        match text.parse::<IpNet>() {
            Ok(IpNet::V4(net)) if families.ipv4 => subnets.ipv4 = Some(net.trunc()),
            Ok(IpNet::V6(net)) if families.ipv6 => subnets.ipv6 = Some(net.trunc()),
            Ok(_) => {}
            Err(error) => return Err(format!("its podCIDR {text:?} cannot be read: {error}")),
        }
    }
    Ok(subnets)
}

/// What a Node says to its peers.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Read {
    /// None if nothing can be made of it.
    pub(super) lease: Option<Lease>,
    /// What is wrong with it: with all of it, or with one family.
    pub(super) complaint: Option<String>,
}

/// The lease that a Node is; none if it is none of flannel's.
///
/// Where one family of two cannot be read the other one counts: a node that has not got its IPv6 yet
/// is reached over IPv4.
pub(super) fn read(object: &Object<'_>, prefix: &str, families: Families) -> Option<Read> {
    if object.annotation(prefix, MANAGED).as_deref() != Some("true") {
        return None;
    }
    let subnets = match subnets(object.pod_cidrs(), families) {
        Ok(subnets) => subnets,
        Err(complaint) => return Some(Read { lease: None, complaint: Some(complaint) }),
    };
    let mut complaints = Vec::new();
    let ipv4 = families.ipv4.then(|| family(object, prefix, 0, subnets.ipv4, "IPv4"));
    let ipv6 = families.ipv6.then(|| family(object, prefix, 1, subnets.ipv6, "IPv6"));
    let ipv4 = ipv4.and_then(|found| found.map_err(|why| complaints.push(why)).ok());
    let ipv6 = ipv6.and_then(|found| found.map_err(|why| complaints.push(why)).ok());
    let complaint = (!complaints.is_empty()).then(|| complaints.join("; "));
    if ipv4.is_none() && ipv6.is_none() {
        return Some(Read { lease: None, complaint });
    }
    let (ipv4, ipv6) =
        (ipv4.map(|(n, ip, d)| (Some(n), Some(ip), d)), ipv6.map(|(n, ip, d)| (Some(n), Some(ip), d)));
    let (ipv4, public_ipv4, backend_data) = ipv4.unwrap_or_default();
    let (ipv6, public_ipv6, backend_v6_data) = ipv6.unwrap_or_default();
    let backend_type = object.annotation(prefix, TYPE).unwrap_or_default().into();
    let attributes = Attributes { public_ipv4, public_ipv6, backend_type, backend_data, backend_v6_data };
    let lease = Lease { subnets: Subnets { ipv4, ipv6 }, attributes, created: object.created() };
    Some(Read { lease: Some(lease), complaint })
}

/// The half of a lease that is of one family.
fn family<N, A: FromStr>(
    object: &Object<'_>,
    prefix: &str,
    index: usize,
    subnet: Option<N>,
    words: &str,
) -> Result<(N, A, Option<Box<RawValue>>), String> {
    let (public, data) = (PUBLIC[index], DATA[index]);
    let address = object.annotation(prefix, public).unwrap_or_default();
    let parsed = address
        .parse()
        .map_err(|_| format!("its annotation {public} is {address:?}, which is no {words} address"))?;
    let data = match object.annotation(prefix, data) {
        None => None,
        Some(text) if text.is_empty() || text == "null" => None,
        Some(text) => Some(
            RawValue::from_string(text)
                .map_err(|error| format!("its annotation {data} is not JSON: {error}"))?,
        ),
    };
    let subnet = subnet.ok_or_else(|| format!("it has no {words} podCIDR"))?;
    Ok((subnet, parsed, data))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::object;
    use super::*;

    const P: &str = "flannel.alpha.coreos.com/";
    const V4: Families = Families { ipv4: true, ipv6: false };
    const V6: Families = Families { ipv4: false, ipv6: true };
    const DUAL: Families = Families { ipv4: true, ipv6: true };

    fn node(annotations: &[(&str, &str)], pod_cidrs: &[&str]) -> String {
        let mut map = serde_json::Map::new();
        map.insert("node.alpha.kubernetes.io/ttl".into(), "0".into());
        annotations.iter().for_each(|(name, value)| drop(map.insert(format!("{P}{name}"), (*value).into())));
        json!({ "metadata": { "name": "n", "uid": "u", "annotations": map }, "spec": { "podCIDRs": pod_cidrs } })
            .to_string()
    }

    fn read_node(annotations: &[(&str, &str)], pod_cidrs: &[&str], families: Families) -> Option<Read> {
        read(&object::object(node(annotations, pod_cidrs).as_bytes()).unwrap(), P, families)
    }

    fn own(annotations: &[(&str, &str)]) -> OwnNode {
        OwnNode::new(&object::object(node(annotations, &[]).as_bytes()).unwrap(), P)
    }

    const FULL: &[(&str, &str)] = &[
        ("kube-subnet-manager", "true"),
        ("backend-type", "vxlan"),
        ("backend-data", r#"{"VNI":1}"#),
        ("backend-v6-data", r#"{"VNI":2}"#),
        ("public-ip", "192.0.2.1"),
        ("public-ipv6", "2001:db8::1"),
    ];

    fn without(name: &str) -> Vec<(&'static str, &'static str)> {
        FULL.iter().copied().filter(|(known, _)| *known != name).collect()
    }

    fn attributes(json: &str) -> Attributes {
        Attributes::from_json(json.as_bytes()).unwrap()
    }

    #[test]
    fn a_node_is_read_in_the_families_of_the_network() {
        let cidrs = ["10.0.1.0/24", "fd00:0:0:1::/64"];
        let key = |families| read_node(FULL, &cidrs, families).unwrap().lease.unwrap().subnets.to_string();
        assert_eq!(key(DUAL), "10.0.1.0/24 fd00:0:0:1::/64");
        assert_eq!(key(V4), "10.0.1.0/24");
        assert_eq!(key(V6), "fd00:0:0:1::/64");
        let lease = read_node(FULL, &cidrs, DUAL).unwrap().lease.unwrap();
        let whole = r#"{"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1","BackendType":"vxlan","BackendData":{"VNI":1},"BackendV6Data":{"VNI":2}}"#;
        assert_eq!(lease.attributes.to_json(), whole);
        assert_eq!(read_node(&without("kube-subnet-manager"), &cidrs, DUAL), None);
        let other = [&[("kube-subnet-manager", "True")], &without("kube-subnet-manager")[..]].concat();
        assert_eq!(read_node(&other, &cidrs, DUAL), None, "exactly true");
    }

    #[test]
    fn what_is_wrong_costs_one_family_and_is_named() {
        let cidrs = ["10.0.1.0/24", "fd00:0:0:1::/64"];
        let found = read_node(&without("public-ipv6"), &cidrs, DUAL).unwrap();
        assert_eq!(found.lease.unwrap().subnets.to_string(), "10.0.1.0/24");
        assert!(found.complaint.unwrap().contains("public-ipv6 is \"\""));
        let found = read_node(FULL, &cidrs[1..], DUAL).unwrap();
        assert_eq!(found.lease.unwrap().subnets.to_string(), "fd00:0:0:1::/64");
        assert_eq!(found.complaint.unwrap(), "it has no IPv4 podCIDR");
        let broken = [&without("backend-data")[..], &[("backend-data", "{")]].concat();
        let found = read_node(&broken, &cidrs, V4).unwrap();
        assert!(found.lease.is_none() && found.complaint.unwrap().contains("backend-data is not JSON"));
        for (cidrs, named) in [
            (vec!["10.0.1.0"], "\"10.0.1.0\" cannot be read"),
            (vec!["10.0.1.0/24", "10.0.2.0/24", "10.0.3.0/24"], "more than two"),
            (vec![], "no IPv4 podCIDR"),
        ] {
            let found = read_node(FULL, &cidrs, V4).unwrap();
            assert!(found.lease.is_none() && found.complaint.as_ref().unwrap().contains(named), "{found:?}");
        }
    }

    #[test]
    fn no_backend_data_is_written_as_null_and_read_as_none() {
        for data in ["null", ""] {
            let annotations = [&without("backend-data")[..], &[("backend-data", data)]].concat();
            let lease = read_node(&annotations, &["10.0.1.0/24"], V4).unwrap().lease.unwrap();
            assert!(lease.attributes.backend_data.is_none());
        }
        let host_gw = attributes(r#"{"PublicIP":"192.0.2.1","BackendType":"host-gw"}"#);
        assert_eq!(annotations(&host_gw)["backend-data"].as_deref(), Some("null"));
    }

    #[test]
    fn each_backend_writes_what_the_original_writes() {
        let names = |json: &str| {
            let all = annotations(&attributes(json));
            all.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", value?))).collect::<Vec<_>>()
        };
        assert_eq!(
            names(r#"{"PublicIP":"1.2.3.4","BackendType":"vxlan","BackendData":{"VNI":1}}"#),
            [
                r#"backend-data={"VNI":1}"#,
                "backend-type=vxlan",
                "kube-subnet-manager=true",
                "public-ip=1.2.3.4"
            ]
        );
        assert_eq!(
            names(
                r#"{"PublicIP":"0.0.0.0","PublicIPv6":"fd00::1","BackendType":"vxlan","BackendV6Data":{"VNI":1}}"#
            ),
            [
                "backend-type=vxlan",
                r#"backend-v6-data={"VNI":1}"#,
                "kube-subnet-manager=true",
                "public-ipv6=fd00::1"
            ]
        );
        assert_eq!(
            names(r#"{"PublicIPv6":"fd00::1","BackendType":"host-gw"}"#),
            [
                "backend-data=null",
                "backend-type=host-gw",
                "backend-v6-data=null",
                "kube-subnet-manager=true",
                "public-ip=0.0.0.0",
                "public-ipv6=fd00::1"
            ]
        );
        assert_eq!(
            names(r#"{"PublicIP":"1.2.3.4","PublicIPv6":"fd00::1"}"#),
            ["backend-data=null", "backend-type=", "kube-subnet-manager=true", "public-ip=1.2.3.4"]
        );
    }

    #[test]
    fn only_what_differs_is_written_and_what_is_stale_is_removed() {
        let ours = attributes(r#"{"PublicIP":"192.0.2.1","BackendType":"vxlan","BackendData":{"VNI":1}}"#);
        let node = own(FULL);
        let missing: Vec<_> = node.missing(&ours).into_iter().collect();
        assert_eq!(missing, [("backend-v6-data", None), ("public-ipv6", None)]);
        let bare = OwnNode { annotations: BTreeMap::new(), ..node };
        assert_eq!(bare.missing(&ours).len(), 4, "there is nothing to remove");
    }

    #[test]
    fn an_address_can_be_overwritten_by_hand() {
        let ours = attributes(r#"{"PublicIP":"192.0.2.1","BackendType":"host-gw"}"#);
        let (published, complaints) = own(&[("public-ip-overwrite", "203.0.113.1")]).overwritten(&ours);
        assert_eq!((published.public_ipv4, complaints), (Some(Ipv4Addr::new(203, 0, 113, 1)), vec![]));
        let (published, _) = own(&[("public-ipv6-overwrite", "2001:db8::1")]).overwritten(&ours);
        assert_eq!(published.public_ipv6, None, "there is nothing to overwrite");
        let (published, complaints) = own(&[("public-ip-overwrite", "here")]).overwritten(&ours);
        assert_eq!(published, ours);
        assert!(complaints[0].contains("public-ip-overwrite is \"here\""));
        let (ipv4, ipv6) =
            own(&[("node-public-ip", "192.0.2.7"), ("node-public-ipv6", "x")]).node_addresses();
        assert_eq!(ipv4, Ok(Some(Ipv4Addr::new(192, 0, 2, 7))));
        assert!(ipv6.unwrap_err().contains("node-public-ipv6"));
    }
}
