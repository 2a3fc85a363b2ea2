//! `loopback`: sets up `lo` of a container.

use std::path::Path;

use cni::{AddResult, Error, Interface, IpConfig, Plugin, Request, Version};
use fabric::LinkName;
use kernel::link::{self, Link};
use kernel::netlink::{Protocol, Socket};
use kernel::{KernelError, address, netns};

/// The plugin.
#[derive(Debug, Clone, Copy)]
pub struct Loopback;

impl Plugin for Loopback {
    fn name(&self) -> &'static str {
        "loopback"
    }

    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        let prev_result = request.config.prev_result()?;
        let addresses = inside(request, |socket, lo| {
            link::set_up(socket, lo.index)?;
            address::list(socket, Some(lo.index))
        })?;
        if let Some(foreign) = addresses.iter().find(|address| !address.net.addr().is_loopback()) {
            return Err(Error::internal(format!(
                "loopback interface found with non-loopback address {:?}",
                foreign.net.to_string()
            )));
        }
        if let Some(result) = prev_result {
            return result.convert(request.version);
        }
        let mut result = AddResult::empty(Version::CURRENT);
        result.interfaces.push(Interface {
            name: "lo".into(),
            mac: "00:00:00:00:00:00".into(),
            sandbox: request.environment.netns.clone(),
            ..Interface::default()
        });
        for ipv4 in [true, false] {
            let first = addresses.iter().find(|address| address.net.addr().is_ipv4() == ipv4);
            result.ips.extend(first.map(|address| IpConfig {
                interface: Some(0),
                address: address.net,
                gateway: None,
            }));
        }
        result.convert(request.version)
    }

    fn del(&self, request: &Request) -> Result<(), Error> {
        let path = Path::new(&request.environment.netns);
        if request.environment.netns.is_empty() || netns::open(path).is_err() {
            // The namespace took its loopback along.
            return Ok(());
        }
        inside(request, |socket, lo| link::set_down(socket, lo.index))
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        if inside(request, |_, lo| Ok(lo.is_up()))? {
            return Ok(());
        }
        Err(Error::internal("loopback interface is down"))
    }
}

/// Does something with `lo` of the container's namespace.
fn inside<T>(
    request: &Request,
    work: impl FnOnce(&mut Socket, &Link) -> Result<T, KernelError>,
) -> Result<T, Error> {
    let path = &request.environment.netns;
    let failed = |error: &dyn std::fmt::Display| Error::internal(error.to_string());
    let namespace = netns::open(Path::new(path))
        .map_err(|error| Error::internal(format!("failed to open netns {path:?}: {error}")))?;
    let done = namespace.enter(|| {
        let mut socket = Socket::open(Protocol::Route).map_err(|error| failed(&error))?;
        let name: LinkName = "lo".parse().expect("lo is a name of a device");
        let lo = link::by_name(&mut socket, name).map_err(|error| failed(&error))?;
        let lo = lo.ok_or_else(|| Error::internal("the namespace has no device \"lo\""))?;
        work(&mut socket, &lo).map_err(|error| failed(&error))
    });
    done.map_err(|error| failed(&error))?
}
