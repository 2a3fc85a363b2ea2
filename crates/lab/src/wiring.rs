//! Cables and switches: namespaces, veth pairs, bridges, addresses, default routes.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use ipnet::IpNet;

use crate::namespace::Namespace;

/// Where `ip netns` keeps the names of namespaces.
pub(crate) const NAMESPACES: &str = "/run/netns";

pub(crate) fn create_namespace(name: &str) -> Result<()> {
    ip(&["netns", "add", name])
}

pub(crate) fn remove_namespace(name: &str) -> Result<()> {
    ip(&["netns", "delete", name])
}

pub(crate) fn set_up(namespace: &Namespace, link: &str) -> Result<()> {
    ip(&["-n", namespace.name(), "link", "set", link, "up"])
}

pub(crate) fn set_down(namespace: &Namespace, link: &str) -> Result<()> {
    ip(&["-n", namespace.name(), "link", "set", link, "down"])
}

pub(crate) fn create_bridge(namespace: &Namespace, name: &str, mtu: u32) -> Result<()> {
    ip(&["-n", namespace.name(), "link", "add", name, "mtu", &mtu.to_string(), "type", "bridge"])?;
    set_up(namespace, name)
}

/// A cable from `port` on the bridge of `switch` to `link` in `node`, both ends up.
pub(crate) fn connect(
    (switch, bridge, port): (&Namespace, &str, &str),
    (node, link): (&Namespace, &str),
    mtu: u32,
) -> Result<()> {
    let mtu = mtu.to_string();
    ip(&[
        "-n",
        switch.name(),
        "link",
        "add",
        port,
        "mtu",
        &mtu,
        "type",
        "veth",
        "peer",
        "name",
        link,
        "mtu",
        &mtu,
        "netns",
        node.name(),
    ])?;
    ip(&["-n", switch.name(), "link", "set", port, "master", bridge])?;
    set_up(switch, port)?;
    set_up(node, link)
}

pub(crate) fn add_address(namespace: &Namespace, link: &str, net: IpNet) -> Result<()> {
    let mut args = vec!["-n", namespace.name(), "address", "add"];
    let text = net.to_string();
    args.extend([text.as_str(), "dev", link]);
    if net.addr().is_ipv6() {
        args.push("nodad");
    }
    ip(&args)
}

pub(crate) fn add_default_route(namespace: &Namespace, gateway: IpNet) -> Result<()> {
    ip(&["-n", namespace.name(), "route", "add", "default", "via", &gateway.addr().to_string()])
}

#[expect(clippy::disallowed_methods, reason = "a lab runs the very programs a person would")]
fn ip(args: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(args).output().context("running ip")?;
    if !output.status.success() {
        bail!("ip {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// The addresses of a link that are not link-local, IPv4 first.
pub(crate) fn addresses(namespace: &Namespace, link: &str) -> Result<Vec<IpNet>> {
    let text = namespace.run(&["ip", "-br", "address", "show", "dev", link])?;
    let mut nets: Vec<IpNet> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    nets.retain(|net| !matches!(net, IpNet::V6(net) if net.addr().is_unicast_link_local()));
    nets.sort();
    Ok(nets)
}

/// Writes a file below `/proc/sys` as seen from a namespace.
pub(crate) fn set_sysctl(namespace: &Namespace, path: &str, value: &str) -> Result<()> {
    let file = Path::new("/proc/sys").join(path);
    namespace
        .within(|| std::fs::write(&file, value))?
        .with_context(|| format!("writing {value} to {} in {}", file.display(), namespace.name()))
}
