//! The device that the configuration names, by one of five ways.

use std::fs;
use std::path::{Path, PathBuf};

use cni::{Error, Request};
use fabric::{LinkName, Mac};
use kernel::link::{self, Link};
use kernel::netlink::Socket;

use crate::attachment::internal;

const PCI: &str = "/sys/bus/pci/devices";
const AUXILIARY: &str = "/sys/bus/auxiliary/devices";

/// Drivers that hand a device to a program of user space.
const USER_SPACE_DRIVERS: [&str; 3] = ["vfio-pci", "uio_pci_generic", "igb_uio"];

/// How a device is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Device {
    /// By its name.
    Name(String),
    /// By its Ethernet address.
    Mac(String),
    /// By its directory below `/sys/devices`.
    Path(String),
    /// By its place on the PCI bus.
    Pci(String),
    /// By its name on the auxiliary bus.
    Auxiliary(String),
}

impl Device {
    /// What the configuration says; a device that the runtime chose counts more than a PCI address.
    pub(super) fn of(request: &Request) -> Result<Device, Error> {
        let config = request.config.object();
        let text = |key| -> Result<Option<String>, Error> {
            Ok(config.string(key)?.filter(|text| !text.is_empty()).map(str::to_owned))
        };
        let runtime = config.object("runtimeConfig")?;
        let chosen = runtime.map(|runtime| runtime.string("deviceID")).transpose()?.flatten();
        let chosen = chosen.filter(|id| !id.is_empty()).map(by_id).transpose()?;
        let pci = text("pciBusID")?.map(Device::Pci);
        let ways = [
            text("device")?.map(Device::Name),
            text("hwaddr")?.map(Device::Mac),
            text("kernelpath")?.map(Device::Path),
            chosen.or(pci),
        ];
        ways.into_iter().flatten().next().ok_or_else(|| {
            Error::internal(r#"specify either "device", "hwaddr", "kernelpath" or "pciBusID""#)
        })
    }

    /// Whether a program of user space drives the device, so that the kernel has no link for it.
    pub(super) fn belongs_to_a_program(&self) -> Result<bool, Error> {
        let Device::Pci(address) = self else { return Ok(false) };
        let path = on_bus(PCI, address)?.join("driver");
        let driver = fs::canonicalize(&path).map_err(|error| {
            Error::internal(format!("error with host device: {}: {error}", path.display()))
        })?;
        let name = driver.file_name().unwrap_or_default();
        Ok(USER_SPACE_DRIVERS.iter().any(|user| name == *user))
    }

    /// Finds its link on the host.
    pub(super) fn find(&self, host: &mut Socket) -> Result<Link, Error> {
        let found = match self {
            Device::Name(name) => by_name(host, name),
            Device::Mac(text) => by_mac(host, text),
            Device::Path(path) => by_path(host, path),
            Device::Pci(address) => by_pci(host, address),
            Device::Auxiliary(name) => first_of(host, &on_bus(AUXILIARY, name)?.join("net")),
        };
        found.map_err(|error| error.context("failed to find host device"))
    }
}

fn by_id(id: &str) -> Result<Device, Error> {
    if on_bus(PCI, id)?.exists() {
        Ok(Device::Pci(id.to_owned()))
    } else if on_bus(AUXILIARY, id)?.exists() {
        Ok(Device::Auxiliary(id.to_owned()))
    } else {
        Err(Error::internal(format!("runtime config DeviceID {id} not found or unsupported")))
    }
}

/// The directory of a device on a bus; names with slashes would lead elsewhere.
fn on_bus(bus: &str, name: &str) -> Result<PathBuf, Error> {
    if name.contains('/') || name == "." || name == ".." {
        return Err(Error::internal(format!("invalid device {name:?}: want a name of {bus}")));
    }
    Ok(Path::new(bus).join(name))
}

fn by_name(host: &mut Socket, name: &str) -> Result<Link, Error> {
    let missing = || {
        Error::internal(format!("Link {name:?} not found"))
            .details("the host has no device of that name; it may be on loan to another container")
    };
    let name: LinkName = name.parse().map_err(|error| Error::internal(format!("{error}")))?;
    link::by_name(host, name).map_err(internal)?.ok_or_else(missing)
}

fn by_mac(host: &mut Socket, text: &str) -> Result<Link, Error> {
    let mac: Mac = text.parse().map_err(|_| {
        Error::internal(format!("failed to parse MAC address {text:?}: address {text}: invalid MAC address"))
    })?;
    let links = link::list(host).map_err(internal)?;
    links.into_iter().find(|link| link.mac == Some(mac)).ok_or_else(|| {
        Error::internal("failed to find physical interface").details(format!("none has {mac}"))
    })
}

fn by_path(host: &mut Socket, path: &str) -> Result<Link, Error> {
    if !path.starts_with("/sys/devices/") || path.split('/').any(|part| part == "..") {
        return Err(Error::internal(format!(
            "kernel device path {path:?} must be absolute and begin with /sys/devices/"
        )));
    }
    first_of(host, &Path::new(path).join("net"))
}

fn by_pci(host: &mut Socket, address: &str) -> Result<Link, Error> {
    let device = on_bus(PCI, address)?;
    if device.join("net").exists() {
        return first_of(host, &device.join("net"));
    }
    // The link of a virtio device is one level further down.
    let below = fs::read_dir(&device).into_iter().flatten().flatten();
    let mut virtio = below.filter(|entry| entry.file_name().to_string_lossy().starts_with("virtio"));
    let net = virtio.find_map(|entry| Some(entry.path().join("net")).filter(|net| net.exists()));
    let net = net.ok_or_else(|| Error::internal(format!("no net directory under pci device {address}")))?;
    first_of(host, &net)
}

/// The first device of a directory of them.
fn first_of(host: &mut Socket, directory: &Path) -> Result<Link, Error> {
    let shown = directory.display();
    let entries = fs::read_dir(directory)
        .map_err(|error| Error::internal(format!("failed to read directory {shown}: {error}")))?;
    let mut names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    match names.first() {
        Some(name) => by_name(host, name),
        None => Err(Error::internal(format!("failed to find network device in path {shown}"))),
    }
}
