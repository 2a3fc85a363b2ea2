//! What the configuration says to `host-local`.

use std::net::IpAddr;
use std::path::PathBuf;

use cni::json::{DecodeError, Object};
use cni::{Arguments, Error, Request, Route, Version};
use ipnet::IpNet;

use super::range::{Range, RangeSet};

/// Where leases are kept unless the configuration says otherwise.
const DATA_DIR: &str = "/var/lib/cni/networks";

/// Checked settings.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    /// The directory of this network's leases.
    pub(super) directory: PathBuf,
    /// A `resolv.conf` whose content goes into the result.
    pub(super) resolv_conf: Option<PathBuf>,
    /// Routes that go into the result as they are.
    pub(super) routes: Vec<Route>,
    /// One address comes from each.
    pub(super) ranges: Vec<RangeSet>,
    /// Addresses that are wished for.
    pub(super) requested: Vec<IpAddr>,
}

impl Settings {
    /// Reads and checks all of it.
    pub(super) fn parse(request: &Request) -> Result<Settings, Error> {
        let config = request.config.object();
        let ipam = ipam(request)?;
        let runtime = config.object("runtimeConfig")?;
        let routes = ipam.objects("routes")?.unwrap_or_default();
        Ok(Settings {
            directory: directory(request)?,
            resolv_conf: ipam.string("resolvConf")?.filter(|path| !path.is_empty()).map(PathBuf::from),
            routes: routes.iter().map(Route::parse).collect::<Result<_, _>>()?,
            ranges: ranges(&ipam, runtime.as_ref(), request)?,
            requested: requested(&config, runtime.as_ref(), request)?,
        })
    }
}

/// The directory of the network's leases, which is all that giving back needs.
pub(super) fn directory(request: &Request) -> Result<PathBuf, Error> {
    let data_dir = ipam(request)?.string("dataDir")?.filter(|path| !path.is_empty()).unwrap_or(DATA_DIR);
    Ok(PathBuf::from(data_dir).join(request.config.name()))
}

fn ipam(request: &Request) -> Result<Object<'_>, Error> {
    request.config.object().object("ipam")?.ok_or_else(|| Error::internal("IPAM config missing 'ipam' key"))
}

/// The sets that the runtime gives, then the single range of old configurations, then the list.
fn ranges(
    ipam: &Object<'_>,
    runtime: Option<&Object<'_>>,
    request: &Request,
) -> Result<Vec<RangeSet>, Error> {
    let mut sets = Vec::new();
    if let Some(runtime) = runtime {
        sets.extend(range_sets(runtime, "ipRanges")?);
    }
    if ipam.string("subnet")?.is_some_and(|subnet| !subnet.is_empty()) {
        sets.push(vec![range(ipam)?]);
    }
    sets.extend(range_sets(ipam, "ranges")?);
    if sets.is_empty() {
        return Err(Error::internal("no IP ranges specified").details(
            "ipam.ranges must hold at least one list of ranges, for example [[{\"subnet\": \"10.244.1.0/24\"}]]",
        ));
    }
    let mut checked: Vec<RangeSet> = Vec::new();
    for (index, set) in sets.into_iter().enumerate() {
        let set = set.into_iter().collect::<Result<Vec<Range>, String>>().and_then(RangeSet::new);
        checked.push(set.map_err(|why| Error::internal(format!("invalid range set {index}: {why}")))?);
    }
    let ipv4 = checked.iter().filter(|set| set.is_ipv4()).count();
    if request.version < Version::V0_3_0 && (ipv4 > 1 || checked.len() - ipv4 > 1) {
        return Err(Error::internal(format!(
            "CNI version {} does not support more than 1 address per family",
            request.config.version_text()?
        )));
    }
    for (at, set) in checked.iter().enumerate() {
        if let Some(other) = checked.iter().skip(at + 1).position(|other| set.overlaps(other)) {
            return Err(Error::internal(format!("range set {at} overlaps with {}", at + 1 + other)));
        }
    }
    Ok(checked)
}

/// A range that is well formed, but may make no sense.
type Unchecked = Result<Range, String>;

fn range_sets(object: &Object<'_>, key: &str) -> Result<Vec<Vec<Unchecked>>, DecodeError> {
    let mut sets = Vec::new();
    for (path, set) in object.list(key)?.unwrap_or_default() {
        let list = set.as_array().cloned().unwrap_or_default();
        if !set.is_array() && !set.is_null() {
            return Err(object.error(key, "a list of lists of ranges"));
        }
        let ranges = list
            .iter()
            .enumerate()
            .map(|(at, value)| Object::of(value, &format!("{path}[{at}]")).and_then(|object| range(&object)));
        sets.push(ranges.collect::<Result<_, _>>()?);
    }
    Ok(sets)
}

fn range(object: &Object<'_>) -> Result<Unchecked, DecodeError> {
    let address =
        |key| object.parsed::<IpAddr>(key, "an IP address").map(|ip| ip.map(|ip| ip.to_canonical()));
    let (start, end, gateway) = (address("rangeStart")?, address("rangeEnd")?, address("gateway")?);
    let subnet: Option<IpNet> = object.parsed("subnet", "an address with a prefix length")?;
    Ok(match subnet {
        Some(subnet) => Range::new(subnet, start, end, gateway),
        None => Err("IP <nil> not v4 nor v6: a range needs a \"subnet\"".to_owned()),
    })
}

/// The wishes of `CNI_ARGS`, of the configuration and of the runtime, in this order.
fn requested(
    config: &Object<'_>,
    runtime: Option<&Object<'_>>,
    request: &Request,
) -> Result<Vec<IpAddr>, Error> {
    let mut wishes: Vec<String> = Vec::new();
    let arguments = Arguments::parse(&request.environment.args, &["IP"])?;
    wishes.extend(arguments.get("IP").map(str::to_owned));
    let args = config.object("args")?.map(|args| args.object("cni")).transpose()?.flatten();
    if let Some(args) = args {
        wishes.extend(args.strings("ips")?.unwrap_or_default());
    }
    if let Some(runtime) = runtime {
        wishes.extend(runtime.strings("ips")?.unwrap_or_default());
    }
    let mut addresses = Vec::new();
    for wish in wishes.iter().filter(|wish| !wish.is_empty()) {
        let address = wish.parse::<IpNet>().map(|net| net.addr()).or_else(|_| wish.parse::<IpAddr>());
        let address = address
            .map_err(|_| Error::internal(format!("cannot understand ip: {wish:?} is not an IP address")))?
            .to_canonical();
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Ok(addresses)
}
