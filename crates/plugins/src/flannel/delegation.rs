//! The configuration that the delegate is called with.

use std::collections::BTreeMap;

use cni::json::{self, Object};
use cni::{Config, Error, Request, Route};
use fabric::subnet_file::SubnetFile;
use ipnet::IpNet;
use serde_json::value::RawValue;
use serde_json::{Number, Value, json};

/// A plugin and what it is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Delegation {
    /// The plugin's name.
    pub(super) plugin: String,
    /// Its configuration on one line.
    ///
    /// Compatibility: byte for byte what the original flannel makes of the same input, because it is
    /// the content of the state file.
    pub(super) json: String,
}

/// Members in alphabetical order, each already written.
type Members = BTreeMap<String, Box<RawValue>>;

impl Delegation {
    /// Puts the lease of the node into the `delegate` of the configuration. Without a lease the ranges,
    /// routes, MTU and masquerading are left out, which is enough for taking things away.
    pub(super) fn build(request: &Request, lease: Option<&SubnetFile>) -> Result<Delegation, Error> {
        let config = request.config.object();
        let unloadable = |error| Error::internal(format!("failed to load netconf: {error}"));
        let delegate = config.object("delegate").map_err(unloadable)?;
        let mut members = Members::new();
        if let Some(delegate) = &delegate {
            refuse_reserved(delegate)?;
            members.extend(delegate.members().iter().map(|(key, value)| (key.clone(), raw(&value.clone()))));
        }
        if let Some(runtime) = config.object("runtimeConfig").map_err(unloadable)? {
            members.insert("runtimeConfig".into(), raw(&Value::Object(runtime.members().clone())));
        }
        let mut default = |key: &str, value: Value| {
            members.entry(key.to_owned()).or_insert_with(|| raw(&value));
        };
        let plugin =
            delegate.as_ref().and_then(|delegate| delegate.members().get("type")).and_then(Value::as_str);
        let plugin = plugin.unwrap_or("bridge").to_owned();
        default("type", json!(plugin));
        if plugin == "bridge" {
            default("isGateway", json!(true));
        }
        if let Some(lease) = lease {
            // If flanneld does not masquerade, the delegate has to.
            default("ipMasq", json!(!lease.ip_masq.unwrap_or_default()));
            default("mtu", json!(lease.mtu.unwrap_or_default()));
        }
        members.insert("name".into(), raw(&json!(request.config.name())));
        let version = request.config.version_text()?;
        if !version.is_empty() {
            members.insert("cniVersion".into(), raw(&json!(version)));
        }
        let ipam = ipam(&config, lease).map_err(|error| error.context("failed to assemble Delegate IPAM"))?;
        members.insert("ipam".into(), written(&ipam));
        Ok(Delegation { plugin, json: json::compact(&members) })
    }

    /// Reads what an earlier ADD, ours or the original's, was called with; none if that was cut short.
    pub(super) fn read(state: &str) -> Option<Delegation> {
        let config = Config::parse(state.as_bytes().to_vec()).ok()?;
        let plugin = config.object().string("type").ok()??.to_owned();
        Some(Delegation { plugin, json: state.to_owned() })
    }

    /// The configuration with members that only this call has.
    pub(super) fn with_members(&self, request: &Request, keys: &[&str]) -> Result<Config, Error> {
        let mut value = json::parse(self.json.as_bytes()).map_err(Error::internal)?;
        let given = request.config.object();
        if let Some(members) = value.as_object_mut() {
            for key in keys {
                if let Some(member) = given.get(key) {
                    members.insert((*key).to_owned(), member.clone());
                }
            }
        }
        Config::parse(json::compact(&value).into_bytes())
    }
}

fn refuse_reserved(delegate: &Object<'_>) -> Result<(), Error> {
    if delegate.members().get("type").is_some_and(|plugin| !plugin.is_string()) {
        return Err(Error::internal("'delegate' dictionary, if present, must have (string) 'type' field"));
    }
    for key in ["name", "ipam"] {
        if delegate.members().contains_key(key) {
            return Err(Error::internal(format!(
                "'delegate' dictionary must not have '{key}' field, it'll be set by flannel"
            )));
        }
    }
    Ok(())
}

/// The `ipam` of the configuration with the node's subnets as ranges, and the network as routes after
/// those of the user.
fn ipam(config: &Object<'_>, lease: Option<&SubnetFile>) -> Result<Members, Error> {
    let given =
        config.object("ipam").map_err(|error| Error::internal(format!("failed to load netconf: {error}")))?;
    let mut members = Members::new();
    if let Some(given) = &given {
        members.extend(given.members().iter().map(|(key, value)| (key.clone(), raw(&value.clone()))));
    }
    members.entry("type".into()).or_insert_with(|| raw(&json!("host-local")));
    let Some(lease) = lease else { return Ok(members) };

    let subnets = [lease.subnet.map(IpNet::V4), lease.ipv6_subnet.map(IpNet::V6)];
    let ranges: Vec<Value> =
        subnets.into_iter().flatten().map(|subnet| json!([{"subnet": subnet.trunc().to_string()}])).collect();
    members.insert("ranges".into(), raw(&json!(ranges)));

    let mut routes = user_routes(given.as_ref())?;
    let networks = lease.networks.iter().map(|net| IpNet::V4(net.trunc()));
    let networks = networks.chain(lease.ipv6_networks.iter().map(|net| IpNet::V6(net.trunc())));
    routes.extend(networks.map(Route::to));
    members.insert("routes".into(), written(&routes));
    Ok(members)
}

fn user_routes(ipam: Option<&Object<'_>>) -> Result<Vec<Route>, Error> {
    let Some(ipam) = ipam else { return Ok(Vec::new()) };
    let routes = ipam.objects("routes").and_then(|routes| {
        routes.unwrap_or_default().iter().map(Route::parse).collect::<Result<Vec<Route>, _>>()
    });
    routes.map_err(|error| {
        Error::internal(format!("failed to read IPAM routes: failed to parse ipam.routes: {error}"))
    })
}

/// A member of the user's, its numbers as the original writes them after reading them as floats.
fn raw(value: &Value) -> Box<RawValue> {
    let mut value = value.clone();
    write_whole_numbers_plainly(&mut value);
    written(&value)
}

fn written<T: serde::Serialize + ?Sized>(value: &T) -> Box<RawValue> {
    RawValue::from_string(json::compact(value)).expect("what was just written is JSON")
}

fn write_whole_numbers_plainly(value: &mut Value) {
    match value {
        Value::Number(number) => {
            let float = number.as_f64().filter(|f| number.is_f64() && f.fract() == 0.0 && f.abs() < 1e15);
            if let Some(float) = float {
                *number = Number::from(float as i64);
            }
        }
        Value::Array(values) => values.iter_mut().for_each(write_whole_numbers_plainly),
        Value::Object(members) => members.values_mut().for_each(write_whole_numbers_plainly),
        _ => {}
    }
}
