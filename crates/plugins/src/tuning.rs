//! `tuning`: sets kernel settings and properties of a container's interface that another plugin made.
//!
//! What the interface was like is kept in a file of the reference plugin's format, from which DEL makes it
//! so again: the interface may outlive the container. Kernel settings go with the container.

mod backup;
mod settings;
mod sysctls;

use std::io::Write as _;

use cni::{AddResult, Error, Plugin, Request};
use fabric::LinkName;
use kernel::link_settings::{self, LinkSettings};
use kernel::netlink::Socket;
use kernel::{link, sysctl};

use self::settings::Settings;
use crate::container::{enter, inside, open_namespace, sandbox};

/// The plugin.
#[derive(Debug, Clone, Copy)]
pub struct Tuning;

impl Plugin for Tuning {
    fn name(&self) -> &'static str {
        "tuning"
    }

    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        let settings = Settings::parse(request)?;
        sysctls::check_allowed(settings.sysctls.keys())?;
        let mut result = previous(request)?;
        let namespace = open_namespace(request)?;
        let ifname = &request.environment.ifname;
        let wanted = settings.to_write();
        enter(&namespace, |_| {
            for (name, value) in &settings.sysctls {
                let path = sysctls::path(name, ifname)?;
                sysctl::write(&path, value).map_err(|error| Error::internal(error.to_string()))?;
            }
            Ok(())
        })?;
        if wanted != LinkSettings::default() {
            inside(&namespace, ifname, |socket, index| {
                let before = read(socket, index, ifname)?;
                let kept = backup::keep(&settings.directory, request, &wanted, &before)?;
                link_settings::write(socket, index, &wanted).map_err(|error| {
                    let _ = link_settings::write(socket, index, &kept);
                    backup::forget(&settings.directory, request);
                    Error::internal(format!("failed to tune {ifname:?}: {error}"))
                })
            })?;
        }
        for interface in result.interfaces.iter_mut().filter(|i| i.name == *ifname && !i.sandbox.is_empty()) {
            if let Some(mac) = wanted.mac {
                interface.mac = mac.to_string();
            }
            if let Some(mtu) = wanted.mtu.filter(|_| interface.mtu != 0) {
                interface.mtu = i64::from(mtu);
            }
        }
        result.convert(request.version)
    }

    fn del(&self, request: &Request) -> Result<(), Error> {
        let directory = settings::directory(request);
        let before = backup::kept(&directory, request);
        if let Some((before, namespace)) = before.zip(sandbox(request)) {
            let restored = enter(&namespace, |socket| restore(socket, &request.environment.ifname, &before));
            if let Err(error) = restored {
                // Nobody could do better at another try; the runtime is to go on to the next plugin.
                let _ = writeln!(std::io::stderr().lock(), "{error}");
            }
        }
        backup::forget(&directory, request);
        Ok(())
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        let settings = Settings::parse(request)?;
        previous(request)?;
        let namespace = open_namespace(request)?;
        let ifname = &request.environment.ifname;
        inside(&namespace, ifname, |socket, index| {
            for (name, value) in &settings.sysctls {
                check_sysctl(&sysctls::path(name, ifname)?, value)?;
            }
            check_link(ifname, &settings.link, &read(socket, index, ifname)?)
        })
    }
}

fn previous(request: &Request) -> Result<AddResult, Error> {
    request.config.prev_result()?.ok_or_else(|| {
        Error::internal("Required prevResult missing").details(
            "tuning changes an interface that another plugin made: it has to come after that one in the list",
        )
    })
}

fn read(socket: &mut Socket, index: u32, ifname: &str) -> Result<LinkSettings, Error> {
    let found =
        link_settings::read(socket, index).map_err(|error| format!("failed to get {ifname:?}: {error}"));
    found
        .and_then(|found| found.ok_or(format!("failed to get {ifname:?}: Link not found")))
        .map_err(Error::internal)
}

/// Makes the interface as it was, if it is still there.
fn restore(socket: &mut Socket, ifname: &str, before: &LinkSettings) -> Result<(), Error> {
    let Ok(name) = ifname.parse::<LinkName>() else { return Ok(()) };
    let failed =
        |error: kernel::KernelError| Error::internal(format!("failed to restore {ifname:?}: {error}"));
    match link::index(socket, name).map_err(failed)? {
        Some(index) => link_settings::write(socket, index, before).map_err(failed),
        None => Ok(()),
    }
}

fn check_sysctl(path: &str, wanted: &str) -> Result<(), Error> {
    let now = sysctl::read(path).map_err(|error| Error::internal(error.to_string()))?;
    let differs = |now: &str| {
        Error::internal(format!(
            "Error: Tuning configured value of /proc/sys/{path} is {wanted}, current value is {now}"
        ))
    };
    match now {
        // The kernel writes several values with tabs between them, however they were written.
        Some(now) if now.split_whitespace().eq(wanted.split_whitespace()) => Ok(()),
        Some(now) => Err(differs(&now)),
        None => Err(differs("not to be had")),
    }
}

fn check_link(ifname: &str, wanted: &LinkSettings, now: &LinkSettings) -> Result<(), Error> {
    fn differs<T: PartialEq + ToString>(wanted: Option<T>, now: Option<T>) -> Option<(String, String)> {
        let wanted = wanted?;
        let text = |now: Option<T>| now.map_or("unknown".to_owned(), |now| now.to_string());
        (Some(&wanted) != now.as_ref()).then(|| (wanted.to_string(), text(now)))
    }
    let compared = [
        ("Ethernet", differs(wanted.mac, now.mac)),
        ("promisc", differs(wanted.promiscuous, now.promiscuous)),
        ("MTU", differs(wanted.mtu, now.mtu)),
        ("all-multicast mode", differs(wanted.all_multicast, now.all_multicast)),
        ("Transmit Queue Length", differs(wanted.queue_length, now.queue_length)),
    ];
    match compared.into_iter().find_map(|(what, differs)| Some((what, differs?))) {
        None => Ok(()),
        Some((what, (wanted, now))) => Err(Error::internal(format!(
            "Error: Tuning configured {what} of {ifname} is {wanted}, current value is {now}"
        ))),
    }
}
