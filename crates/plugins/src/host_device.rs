//! `host-device`: moves a device of the host into a container, and back.
//!
//! The device's own name is kept as its alias, so that it can be given back whatever happened since.
//! What the configuration names is found in [`device`].

mod device;

use std::os::fd::AsFd as _;

use cni::{AddResult, Error, Plugin, Request, Verb, Version};
use fabric::LinkName;
use kernel::link::{self, Link};
use kernel::netlink::Socket;
use kernel::netns::{self, Namespace};
use kernel::{KernelError, loan};

use self::device::Device;
use crate::addressing::Detection;
use crate::attachment::{self, Addresses, internal};
use crate::container::{enter, open_namespace, open_socket, sandbox};
use crate::interface;
use crate::ipam::Ipam;

/// The plugin.
#[derive(Debug, Clone, Copy)]
pub struct HostDevice;

impl Plugin for HostDevice {
    fn name(&self) -> &'static str {
        "host-device"
    }

    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        let (device, ipam) = (Device::of(request)?, Ipam::of(request)?);
        let namespace = open_namespace(request)?;
        if device.belongs_to_a_program()? {
            return without_a_link(request, &ipam);
        }
        let mut host = open_socket()?;
        let link = device.find(&mut host)?;
        lend(&mut host, &link, &namespace, request).map_err(|error| error.context("failed to move link"))?;
        attachment::complete(request, &namespace, Addresses::Ipam(&ipam), Detection::KernelDefault, || {
            let _ = take_back(&namespace, request);
            restore_flags(&mut host, &link);
        })
    }

    fn del(&self, request: &Request) -> Result<(), Error> {
        let ipam = Ipam::for_removal(request);
        ipam.let_go_through_device(request);
        match sandbox(request) {
            Some(namespace) => take_back(&namespace, request)?,
            // The kernel gave it back, under the container's name for it.
            None => rename_returned(request)?,
        }
        ipam.tell(Verb::Del, request)
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        let ipam = Ipam::of(request)?;
        if Device::of(request)?.belongs_to_a_program()? {
            ipam.tell(Verb::Check, request)?;
            let previous = request.config.prev_result()?;
            return previous.map(drop).ok_or_else(|| Error::internal("Required prevResult missing"));
        }
        attachment::check(request, &ipam, |_, _| Ok(())).map(drop)
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        // Whether the device is here says nothing: it may be on loan.
        Device::of(request)?;
        Ipam::of(request)?.tell(Verb::Status, request)
    }

    fn gc(&self, request: &Request) -> Result<(), Error> {
        Ipam::for_removal(request).tell(Verb::Gc, request)
    }
}

/// A device that a program of user space drives (DPDK) has no link to be moved: the result names the
/// addresses, and the container's program does the rest.
fn without_a_link(request: &Request, ipam: &Ipam) -> Result<AddResult, Error> {
    let mut result = if ipam.is_given() { ipam.add(request)? } else { AddResult::empty(Version::CURRENT) };
    result.version = Version::CURRENT;
    let name = request.environment.ifname.parse().map_err(|error| Error::internal(format!("{error}")))?;
    result.interfaces = vec![interface::describe_inside(name, None, request)];
    result.ips.iter_mut().for_each(|ip| ip.interface = Some(0));
    if ipam.is_given() {
        attachment::override_dns(request, &mut result)?;
    }
    result.convert(request.version)
}

/// Moves a device into the container. Should that fail, it is where and what it was.
fn lend(host: &mut Socket, device: &Link, namespace: &Namespace, request: &Request) -> Result<(), Error> {
    let ifname = &request.environment.ifname;
    let wanted: LinkName = ifname.parse().map_err(|error| Error::internal(format!("{error}")))?;
    let own = device.name;
    let is_taken = enter(namespace, |socket| link::exists(socket, wanted).map_err(internal))?;
    if is_taken {
        return Err(Error::internal(format!(
            "failed to rename host device {:?} to {ifname:?}: file exists",
            own.as_str()
        ))
        .details("the container has an interface of that name: an ADD without a DEL before it?"));
    }
    let home = netns::current().map_err(internal)?;
    loan::hand_over(host, device.index, namespace.as_fd(), wanted, own.as_str()).map_err(|error| {
        // It may be in the container by now, under either name.
        let _ = enter(namespace, |socket| {
            for name in [wanted, own] {
                return_from(socket, name, own, &home).map_err(internal)?;
            }
            Ok(())
        });
        restore_flags(host, device);
        Error::internal(format!("failed to move {:?} to container NS: {error}", own.as_str()))
    })
}

/// Moves the device of that name out of the container if it is the one that is called `own` at home.
fn return_from(
    socket: &mut Socket,
    name: LinkName,
    own: LinkName,
    host: &Namespace,
) -> Result<(), KernelError> {
    let Some(index) = link::index(socket, name)? else { return Ok(()) };
    if name != own && loan::alias(socket, index)? != own.as_str() {
        return Ok(());
    }
    loan::hand_over(socket, index, host.as_fd(), own, "")
}

/// A device is down after it was moved.
fn restore_flags(host: &mut Socket, device: &Link) {
    if device.is_up()
        && let Ok(Some(index)) = link::index(host, device.name)
    {
        let _ = link::set_up(host, index);
    }
}

/// Moves the container's interface to the host, under the name that it had there. That it is gone is no
/// error.
fn take_back(namespace: &Namespace, request: &Request) -> Result<(), Error> {
    let ifname = &request.environment.ifname;
    let Ok(name) = ifname.parse::<LinkName>() else { return Ok(()) };
    let host = netns::current().map_err(internal)?;
    let at_home = open_socket()?;
    enter(namespace, |socket| {
        let Some(index) = link::index(socket, name).map_err(internal)? else { return Ok(()) };
        let alias = loan::alias(socket, index).map_err(internal)?;
        let own: LinkName = alias.parse().map_err(|_| {
            Error::internal(format!("failed to find original ifname for {ifname:?} (alias is not set)"))
                .details("the interface was not moved there by this plugin; it is left alone")
        })?;
        let failed = |error: &dyn std::fmt::Display| {
            Error::internal(format!("failed to move {:?} to hostNS: {error}", own.as_str())).details(format!(
                "rename or delete the host's own {own}, if there is one, and the next DEL succeeds"
            ))
        };
        // The kernel moves first and renames then: the device would come to the host as the pod called it.
        if link::exists(&at_home, own).map_err(internal)? {
            return Err(failed(&format!("a device of the host is called {own} by now")));
        }
        loan::hand_over(socket, index, host.as_fd(), own, "").map_err(|error| failed(&error))
    })
}

/// Gives a device its name back that came home by itself when its container ended.
fn rename_returned(request: &Request) -> Result<(), Error> {
    let config = request.config.object();
    let Ok(Some(own)) = config.parsed::<LinkName>("device", "a name of a device") else { return Ok(()) };
    let mut host = open_socket()?;
    if link::exists(&host, own).map_err(internal)? {
        return Ok(());
    }
    let here = netns::current().map_err(internal)?;
    for link in link::list(&mut host).map_err(internal)? {
        if loan::alias(&mut host, link.index).map_err(internal)? == own.as_str() {
            return loan::hand_over(&mut host, link.index, here.as_fd(), own, "").map_err(internal);
        }
    }
    Ok(())
}
