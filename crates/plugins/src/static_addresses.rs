//! `static`: hands out the addresses that the configuration or the runtime names, and remembers nothing.

use std::net::IpAddr;

use cni::json::Object;
use cni::{AddResult, Arguments, Dns, Error, IpConfig, Plugin, Request, Route, Version};
use ipnet::IpNet;

/// The plugin.
#[derive(Debug, Clone, Copy)]
pub struct Static;

/// Checked settings.
#[derive(Debug, Clone, PartialEq)]
struct Settings {
    ips: Vec<IpConfig>,
    routes: Vec<Route>,
    dns: Dns,
}

impl Plugin for Static {
    fn name(&self) -> &'static str {
        "static"
    }

    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        let Settings { ips, routes, dns } = Settings::parse(request)?;
        AddResult { ips, routes, dns, ..AddResult::empty(Version::CURRENT) }.convert(request.version)
    }

    fn del(&self, _request: &Request) -> Result<(), Error> {
        Ok(())
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        let settings = Settings::parse(request)?;
        let result =
            request.config.prev_result()?.ok_or_else(|| Error::internal("Required prevResult missing"))?;
        for wanted in &settings.ips {
            let same_ip = |ip: &&IpConfig| ip.address.addr() == wanted.address.addr();
            let Some(found) = result.ips.iter().find(same_ip) else { continue };
            if wanted.gateway.is_some() && wanted.gateway != found.gateway {
                return Err(Error::internal(format!(
                    "static: Failed to match addr {} on interface {}",
                    found.address.addr(),
                    request.environment.ifname
                )));
            }
        }
        Ok(())
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        Settings::parse(request).map(drop)
    }
}

impl Settings {
    fn parse(request: &Request) -> Result<Settings, Error> {
        let config = request.config.object();
        let ipam = config.object("ipam")?.ok_or_else(|| Error::internal("IPAM config missing 'ipam' key"))?;
        let mut ips = configured(&ipam)?;
        let arguments = Arguments::parse(&request.environment.args, &["IP", "GATEWAY"])?;
        ips.extend(of_arguments(&arguments)?);
        set_gateways(&arguments, &mut ips)?;
        // The runtime's wishes come in place of what the configuration says, and each of the other's.
        let args = config.object("args")?.map(|args| args.object("cni")).transpose()?.flatten();
        for wishes in [args, config.object("runtimeConfig")?].into_iter().flatten() {
            let wishes = wishes.strings("ips")?.unwrap_or_default();
            if !wishes.is_empty() {
                let refused = |text: &str| {
                    Error::internal(format!(
                        "an entry in the 'ips' field is NOT in CIDR notation, got: '{text}'"
                    ))
                };
                let parse = |text: &String| text.parse().map(plain).map_err(|_| refused(text));
                ips = wishes.iter().map(parse).collect::<Result<_, _>>()?;
            }
        }
        let several = |ipv4: bool| ips.iter().filter(|ip| ip.address.addr().is_ipv4() == ipv4).count() > 1;
        if request.version < Version::V0_3_0 && (several(true) || several(false)) {
            return Err(Error::internal(format!(
                "CNI version {} does not support more than 1 address per family",
                request.version
            )));
        }
        let routes = ipam.objects("routes")?.unwrap_or_default();
        let dns = ipam.object("dns")?.map(|dns| Dns::parse(&dns)).transpose()?;
        Ok(Settings {
            ips,
            routes: routes.iter().map(Route::parse).collect::<Result<_, _>>()?,
            dns: dns.unwrap_or_default(),
        })
    }
}

fn plain(address: IpNet) -> IpConfig {
    IpConfig { interface: None, address, gateway: None }
}

/// `ipam.addresses`
fn configured(ipam: &Object<'_>) -> Result<Vec<IpConfig>, Error> {
    let entry = |entry: &Object<'_>| -> Result<IpConfig, Error> {
        let text = entry.string("address")?.unwrap_or_default();
        let address = text.parse().map_err(|_| {
            Error::internal(format!("the 'address' field is expected to be in CIDR notation, got: '{text}'"))
        })?;
        Ok(IpConfig { gateway: entry.parsed("gateway", "an IP address")?, ..plain(address) })
    };
    ipam.objects("addresses")?.unwrap_or_default().iter().map(entry).collect()
}

/// `IP=` of `CNI_ARGS`, several separated by commas.
fn of_arguments(arguments: &Arguments) -> Result<Vec<IpConfig>, Error> {
    let texts = arguments.get("IP").filter(|text| !text.is_empty()).map(|text| text.split(','));
    let parse = |text: &str| {
        let text = text.trim();
        text.parse().map(plain).map_err(|_| {
            Error::internal(format!("the 'ip' field is expected to be in CIDR notation, got: '{text}'"))
        })
    };
    texts.into_iter().flatten().map(parse).collect()
}

/// `GATEWAY=` of `CNI_ARGS`: each for the addresses in whose network it is.
fn set_gateways(arguments: &Arguments, ips: &mut [IpConfig]) -> Result<(), Error> {
    let texts = arguments.get("GATEWAY").filter(|text| !text.is_empty()).map(|text| text.split(','));
    for text in texts.into_iter().flatten() {
        let gateway: IpAddr =
            text.trim().parse().map_err(|_| Error::internal(format!("invalid gateway address: {text}")))?;
        for ip in ips.iter_mut().filter(|ip| ip.address.contains(&gateway)) {
            ip.gateway = Some(gateway);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use cni::{Config, Environment};
    use serde_json::{Value, json};

    use super::*;

    fn settings(config: Value, args: &str) -> Result<Settings, String> {
        let mut config = config;
        config["name"] = json!("net");
        let config = Config::parse(config.to_string().into_bytes()).unwrap();
        let version = config.version().unwrap();
        let environment = Environment { args: args.into(), ..Environment::default() };
        Settings::parse(&Request { environment, config, version }).map_err(|error| error.msg)
    }

    fn addresses(config: Value, args: &str) -> Result<Vec<String>, String> {
        let text = |ip: &IpConfig| {
            let gateway = ip.gateway.map(|gateway| format!(" via {gateway}")).unwrap_or_default();
            format!("{}{gateway}", ip.address)
        };
        settings(config, args).map(|settings| settings.ips.iter().map(text).collect())
    }

    #[test]
    fn the_runtimes_addresses_come_in_place_of_the_configurations() {
        let mut config = json!({"cniVersion": "1.0.0", "ipam": {"type": "static", "addresses": [
            {"address": "10.0.0.5/24", "gateway": "10.0.0.1"}, {"address": "fd00::5/64"}]}});
        let own = ["10.0.0.5/24 via 10.0.0.1", "fd00::5/64"];
        assert_eq!(addresses(config.clone(), "").unwrap(), own);
        let more = addresses(config.clone(), "IP=10.9.0.2/16, 10.8.0.2/16;GATEWAY=10.9.0.1,fd00::1").unwrap();
        assert_eq!(more, [own[0], "fd00::5/64 via fd00::1", "10.9.0.2/16 via 10.9.0.1", "10.8.0.2/16"]);
        config["args"] = json!({"cni": {"ips": ["10.1.0.2/16"]}});
        assert_eq!(addresses(config.clone(), "").unwrap(), ["10.1.0.2/16"]);
        config["runtimeConfig"] = json!({"ips": ["10.2.0.2/16", "fd02::2/64"]});
        assert_eq!(addresses(config, "").unwrap(), ["10.2.0.2/16", "fd02::2/64"]);
    }

    #[test]
    fn what_is_no_address_is_named() {
        let with = |addresses: Value| json!({"cniVersion": "0.2.0", "ipam": {"addresses": addresses}});
        for (config, args, expected) in [
            (json!({}), "", "IPAM config missing 'ipam' key"),
            (
                with(json!([{"address": "10.0.0.5"}])),
                "",
                "the 'address' field is expected to be in CIDR notation, got: '10.0.0.5'",
            ),
            (
                with(json!([])),
                "IP=10.0.0.5",
                "the 'ip' field is expected to be in CIDR notation, got: '10.0.0.5'",
            ),
            (with(json!([])), "GATEWAY=x", "invalid gateway address: x"),
            (
                with(json!([{"address": "10.0.0.5/24"}, {"address": "10.0.0.6/24"}])),
                "",
                "CNI version 0.2.0 does not support more than 1 address per family",
            ),
        ] {
            assert_eq!(addresses(config, args).unwrap_err(), expected);
        }
    }
}
