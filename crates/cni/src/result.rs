//! [`AddResult`]: what a plugin answers to ADD, in every version's own shape.
//!
//! One value, in the shape of 1.1.0, stands for all versions; it remembers which version it came in.
//! 1.x prints members in alphabetical order and leaves `dns` out when it is empty; 0.3 and 0.4 give
//! each address its family as `version` and always print `dns`; 0.1 and 0.2 hold one address per
//! family with the routes of that family.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;
use serde_json::Value;

use crate::error::Error;
use crate::json::{self, DecodeError, Object};
use crate::version::Version;

/// The result of ADD.
#[derive(Debug, Clone, PartialEq)]
pub struct AddResult {
    /// The version it was made for or received in.
    pub version: Version,
    /// Links that were made or touched.
    pub interfaces: Vec<Interface>,
    /// Addresses of the container.
    pub ips: Vec<IpConfig>,
    /// Routes of the container.
    pub routes: Vec<Route>,
    /// Name resolution.
    pub dns: Dns,
}

/// A link.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address as text.
    pub mac: String,
    /// Its MTU, 0 if not said (1.1).
    pub mtu: i64,
    /// The path of the network namespace it is in; empty for the host.
    pub sandbox: String,
    /// The path of its socket (1.1).
    pub socket_path: String,
    /// Its PCI address (1.1).
    pub pci_id: String,
}

/// An address of the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpConfig {
    /// Index into `interfaces`.
    pub interface: Option<i64>,
    /// The address with the prefix length of its network.
    pub address: IpNet,
    /// The router of that network.
    pub gateway: Option<IpAddr>,
}

/// A route of the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Route {
    /// Destination.
    pub dst: IpNet,
    /// Router; the address's gateway if not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// MTU along the route, 0 if not said.
    #[serde(skip_serializing_if = "is_zero")]
    pub mtu: i64,
    /// Maximal segment size to advertise, 0 if not said.
    #[serde(skip_serializing_if = "is_zero")]
    pub advmss: i64,
    /// Metric, 0 if not said.
    #[serde(skip_serializing_if = "is_zero")]
    pub priority: i64,
    /// Routing table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table: Option<i64>,
    /// Scope.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<i64>,
}

/// Name resolution of the container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Dns {
    /// Name servers in order of preference.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// Local domain.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Search list.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Resolver options.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl Route {
    /// A route to `dst` and nothing more said about it.
    pub fn to(dst: IpNet) -> Route {
        Route { dst, gw: None, mtu: 0, advmss: 0, priority: 0, table: None, scope: None }
    }

    /// Reads a route object; members it does not know are dropped.
    pub fn parse(object: &Object<'_>) -> Result<Route, DecodeError> {
        let dst = object.parsed("dst", "an address with a prefix length")?;
        let dst = dst.ok_or_else(|| object.error("dst", "an address with a prefix length"))?;
        let number = |key| object.integer(key).map(Option::unwrap_or_default);
        Ok(Route {
            dst,
            gw: object.parsed("gw", "an IP address")?,
            mtu: number("mtu")?,
            advmss: number("advmss")?,
            priority: number("priority")?,
            table: object.integer("table")?,
            scope: object.integer("scope")?,
        })
    }
}

impl Dns {
    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        *self == Dns::default()
    }

    /// Reads the `dns` of a network's configuration, which takes the place of IPAM's if it says anything.
    /// An empty list says something: that IPAM's is not wanted.
    pub fn of_network(object: &Object<'_>) -> Result<Option<Dns>, DecodeError> {
        let dns = Dns::parse(object)?;
        let mut says = !dns.domain.is_empty();
        for list in ["nameservers", "search", "options"] {
            says |= object.strings(list)?.is_some();
        }
        Ok(says.then_some(dns))
    }

    /// Reads a `dns` object.
    pub fn parse(object: &Object<'_>) -> Result<Dns, DecodeError> {
        Ok(Dns {
            nameservers: object.strings("nameservers")?.unwrap_or_default(),
            domain: object.string("domain")?.unwrap_or_default().to_owned(),
            search: object.strings("search")?.unwrap_or_default(),
            options: object.strings("options")?.unwrap_or_default(),
        })
    }
}

impl AddResult {
    /// A result without content.
    pub fn empty(version: Version) -> AddResult {
        AddResult {
            version,
            interfaces: Vec::new(),
            ips: Vec::new(),
            routes: Vec::new(),
            dns: Dns::default(),
        }
    }

    /// Reads what a plugin printed; `config_version` is assumed where the result does not name one.
    pub fn parse(output: &[u8], config_version: Version) -> Result<AddResult, Error> {
        let value = json::parse(output).map_err(Error::internal)?;
        AddResult::from_value(&value, config_version)
    }

    /// Reads a result that is part of a larger document.
    pub fn from_value(value: &Value, config_version: Version) -> Result<AddResult, Error> {
        if value.is_null() {
            return Ok(AddResult::empty(config_version));
        }
        let object = Object::of(value, "result")?;
        let version = match object.string("cniVersion")? {
            None | Some("") => config_version,
            Some(text) => Version::parse(text)
                .ok_or_else(|| Error::internal(format!("unsupported CNI result version {text:?}")))?,
        };
        let mut result = AddResult::empty(version);
        if let Some(dns) = object.object("dns")? {
            result.dns = Dns::parse(&dns)?;
        }
        if version < Version::V0_3_0 {
            for family in ["ip4", "ip6"] {
                if let Some(block) = object.object(family)? {
                    read_family(&block, &mut result)?;
                }
            }
            return Ok(result);
        }
        for interface in object.objects("interfaces")?.unwrap_or_default() {
            result.interfaces.push(read_interface(&interface)?);
        }
        for ip in object.objects("ips")?.unwrap_or_default() {
            result
                .ips
                .push(IpConfig { interface: ip.integer("interface")?, ..read_address(&ip, "address")? });
        }
        result.routes = read_routes(&object)?;
        Ok(result)
    }

    /// The same result as far as `version` can say it.
    ///
    /// Versions before 0.3 cannot say that there is no address, nor more than one of a family.
    pub fn convert(mut self, version: Version) -> Result<AddResult, Error> {
        if version < Version::V0_3_0 && self.version >= Version::V0_3_0 {
            if self.ips.is_empty() {
                return Err(Error::internal("cannot convert: no valid IP addresses"));
            }
            let is_ipv4 = |net: &IpNet| net.addr().is_ipv4();
            let first = |ipv4| self.ips.iter().find(|ip| is_ipv4(&ip.address) == ipv4);
            let ips: Vec<IpConfig> = [true, false].into_iter().filter_map(first).cloned().collect();
            let has_family = |route: &Route| ips.iter().any(|ip| is_ipv4(&ip.address) == is_ipv4(&route.dst));
            self.routes.retain(has_family);
            self.routes.iter_mut().for_each(|route| *route = Route { gw: route.gw, ..Route::to(route.dst) });
            self.ips = ips.into_iter().map(|ip| IpConfig { interface: None, ..ip }).collect();
            self.interfaces.clear();
        }
        self.version = version;
        Ok(self)
    }

    /// The text that a plugin prints, in the shape of the result's version.
    pub fn to_json(&self) -> String {
        match self.version {
            Version::V1_0_0 | Version::V1_1_0 => json::pretty(&Shape1::of(self)),
            Version::V0_3_0 | Version::V0_3_1 | Version::V0_4_0 => json::pretty(&Shape03::of(self)),
            Version::V0_1_0 | Version::V0_2_0 => json::pretty(&Shape01::of(self)),
        }
    }
}

fn read_interface(object: &Object<'_>) -> Result<Interface, DecodeError> {
    let text = |key| object.string(key).map(|text| text.unwrap_or_default().to_owned());
    Ok(Interface {
        name: text("name")?,
        mac: text("mac")?,
        mtu: object.integer("mtu")?.unwrap_or_default(),
        sandbox: text("sandbox")?,
        socket_path: text("socketPath")?,
        pci_id: text("pciID")?,
    })
}

fn read_address(object: &Object<'_>, key: &str) -> Result<IpConfig, DecodeError> {
    let rule = "an address with a prefix length";
    let address = object.parsed(key, rule)?.ok_or_else(|| object.error(key, rule))?;
    Ok(IpConfig { interface: None, address, gateway: object.parsed("gateway", "an IP address")? })
}

fn read_routes(object: &Object<'_>) -> Result<Vec<Route>, DecodeError> {
    object.objects("routes")?.unwrap_or_default().iter().map(Route::parse).collect()
}

/// `ip4` or `ip6` of versions before 0.3.
fn read_family(block: &Object<'_>, result: &mut AddResult) -> Result<(), DecodeError> {
    result.ips.push(read_address(block, "ip")?);
    result.routes.extend(read_routes(block)?);
    Ok(())
}

fn is_zero(number: &i64) -> bool {
    *number == 0
}

/// 1.0.0 and 1.1.0, members in alphabetical order.
#[derive(Serialize)]
struct Shape1<'a> {
    #[serde(rename = "cniVersion")]
    version: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    dns: Option<SortedDns<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    interfaces: Vec<SortedInterface<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ips: Vec<SortedIp>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    routes: Vec<SortedRoute>,
}

#[derive(Serialize)]
struct SortedDns<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    domain: &'a str,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    nameservers: &'a [String],
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    options: &'a [String],
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    search: &'a [String],
}

#[derive(Serialize)]
struct SortedInterface<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    mac: &'a str,
    #[serde(skip_serializing_if = "is_zero")]
    mtu: i64,
    name: &'a str,
    #[serde(rename = "pciID", skip_serializing_if = "str::is_empty")]
    pci_id: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    sandbox: &'a str,
    #[serde(rename = "socketPath", skip_serializing_if = "str::is_empty")]
    socket_path: &'a str,
}

#[derive(Serialize)]
struct SortedIp {
    address: IpNet,
    #[serde(skip_serializing_if = "Option::is_none")]
    gateway: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    interface: Option<i64>,
}

#[derive(Serialize)]
struct SortedRoute {
    #[serde(skip_serializing_if = "is_zero")]
    advmss: i64,
    dst: IpNet,
    #[serde(skip_serializing_if = "Option::is_none")]
    gw: Option<IpAddr>,
    #[serde(skip_serializing_if = "is_zero")]
    mtu: i64,
    #[serde(skip_serializing_if = "is_zero")]
    priority: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    table: Option<i64>,
}

impl<'a> Shape1<'a> {
    fn of(result: &'a AddResult) -> Shape1<'a> {
        let dns = &result.dns;
        let interface = |i: &'a Interface| SortedInterface {
            mac: &i.mac,
            mtu: i.mtu,
            name: &i.name,
            pci_id: &i.pci_id,
            sandbox: &i.sandbox,
            socket_path: &i.socket_path,
        };
        let route = |r: &Route| SortedRoute {
            advmss: r.advmss,
            dst: r.dst,
            gw: r.gw,
            mtu: r.mtu,
            priority: r.priority,
            scope: r.scope,
            table: r.table,
        };
        Shape1 {
            version: result.version.as_str(),
            dns: (!dns.is_empty()).then_some(SortedDns {
                domain: &dns.domain,
                nameservers: &dns.nameservers,
                options: &dns.options,
                search: &dns.search,
            }),
            interfaces: result.interfaces.iter().map(interface).collect(),
            ips: result
                .ips
                .iter()
                .map(|ip| SortedIp { address: ip.address, gateway: ip.gateway, interface: ip.interface })
                .collect(),
            routes: result.routes.iter().map(route).collect(),
        }
    }
}

/// 0.3.0, 0.3.1 and 0.4.0.
#[derive(Serialize)]
struct Shape03<'a> {
    #[serde(rename = "cniVersion")]
    version: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    interfaces: Vec<PlainInterface<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ips: Vec<VersionedIp>,
    #[serde(skip_serializing_if = "<[Route]>::is_empty")]
    routes: &'a [Route],
    dns: &'a Dns,
}

#[derive(Serialize)]
struct PlainInterface<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    mac: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    sandbox: &'a str,
}

#[derive(Serialize)]
struct VersionedIp {
    version: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    interface: Option<i64>,
    address: IpNet,
    #[serde(skip_serializing_if = "Option::is_none")]
    gateway: Option<IpAddr>,
}

impl<'a> Shape03<'a> {
    fn of(result: &'a AddResult) -> Shape03<'a> {
        let ip = |ip: &IpConfig| VersionedIp {
            version: if ip.address.addr().is_ipv4() { "4" } else { "6" },
            interface: ip.interface,
            address: ip.address,
            gateway: ip.gateway,
        };
        Shape03 {
            version: result.version.as_str(),
            interfaces: result
                .interfaces
                .iter()
                .map(|i| PlainInterface { name: &i.name, mac: &i.mac, sandbox: &i.sandbox })
                .collect(),
            ips: result.ips.iter().map(ip).collect(),
            routes: &result.routes,
            dns: &result.dns,
        }
    }
}

/// 0.1.0 and 0.2.0.
#[derive(Serialize)]
struct Shape01<'a> {
    #[serde(rename = "cniVersion")]
    version: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip4: Option<FamilyBlock>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip6: Option<FamilyBlock>,
    dns: &'a Dns,
}

#[derive(Serialize)]
struct FamilyBlock {
    ip: IpNet,
    #[serde(skip_serializing_if = "Option::is_none")]
    gateway: Option<IpAddr>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    routes: Vec<FamilyRoute>,
}

#[derive(Serialize)]
struct FamilyRoute {
    dst: IpNet,
    #[serde(skip_serializing_if = "Option::is_none")]
    gw: Option<IpAddr>,
}

impl<'a> Shape01<'a> {
    fn of(result: &'a AddResult) -> Shape01<'a> {
        let family = |ipv4: bool| {
            let ip = result.ips.iter().find(|ip| ip.address.addr().is_ipv4() == ipv4)?;
            let routes = result.routes.iter().filter(|route| route.dst.addr().is_ipv4() == ipv4);
            Some(FamilyBlock {
                ip: ip.address,
                gateway: ip.gateway,
                routes: routes.map(|route| FamilyRoute { dst: route.dst, gw: route.gw }).collect(),
            })
        };
        Shape01 { version: result.version.as_str(), ip4: family(true), ip6: family(false), dns: &result.dns }
    }
}

#[cfg(test)]
mod tests;
