//! The daemon: keeps leases for the plugin until it is told to give them back.
//!
//! It remembers nothing beyond its own life, as the reference plugin's: leases of a daemon that ended
//! run out, unless an ADD or CHECK of the same attachment comes before that.

use std::collections::HashMap;
use std::fs::{self, Permissions};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use cni::{AddResult, Config, Error, IpConfig, Route, Version};
use ipnet::{IpNet, Ipv4Net};
use kernel::process;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::call::{Call, Reply, SIGN_OF_LIFE, SILENCE};
use super::flags::{Flags, USAGE};
use super::lease::{Lease, Status, Wanted};
use super::message::Grant;
use super::{log, options};

/// No call is longer than this.
const LONGEST_CALL: u64 = 1 << 20;
/// `RT_SCOPE_LINK`
const SCOPE_LINK: i64 = 253;

/// Runs the daemon until a signal ends it. `words` are its flags.
pub fn run(words: impl IntoIterator<Item = String>) -> ExitCode {
    let flags = match Flags::parse(words) {
        Ok(flags) => flags,
        Err(error) => {
            let _ = write!(io::stderr().lock(), "dhcp: {error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match serve(flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log(format_args!("{error}"));
            ExitCode::FAILURE
        }
    }
}

fn serve(flags: Flags) -> Result<(), String> {
    let mut signals =
        Signals::new([SIGTERM, SIGINT]).map_err(|error| format!("cannot take signals: {error}"))?;
    let socket = PathBuf::from(format!("{}{}", flags.host_prefix, flags.socket.display()));
    // systemd listens on, and starts the next daemon, when this one ends.
    let (listener, own_socket) = match process::socket_of_systemd() {
        Some(handed_over) => (UnixListener::from(handed_over), None),
        None => (listen(&socket)?, Some(socket.clone())),
    };
    let pidfile = flags.pidfile.clone();
    if let Some(path) = &pidfile {
        fs::write(path, std::process::id().to_string())
            .map_err(|error| format!("error writing pidfile {}: {error}", path.display()))?;
    }
    match &own_socket {
        Some(socket) => log(format_args!("listening on {}", socket.display())),
        None => log(format_args!("listening where systemd does")),
    }
    let daemon = Arc::new(Daemon { flags, leases: Mutex::default() });
    thread::Builder::new()
        .name("dhcp-listen".into())
        .spawn(move || {
            for stream in listener.incoming() {
                let daemon = Arc::clone(&daemon);
                let answered = stream.and_then(|stream| {
                    thread::Builder::new().name("dhcp-call".into()).spawn(move || daemon.answer(&stream))
                });
                if let Err(error) = answered {
                    log(format_args!("cannot take a call: {error}"));
                    // Out of files or threads: there may be some again soon.
                    thread::sleep(SIGN_OF_LIFE);
                }
            }
        })
        .map_err(|error| format!("cannot start a thread: {error}"))?;
    signals.forever().next();
    for path in pidfile.iter().chain(&own_socket) {
        let _ = fs::remove_file(path);
    }
    Ok(())
}

/// Listens where only root may call; a socket that nobody listens on any more is in nobody's way.
fn listen(socket: &Path) -> Result<UnixListener, String> {
    let failed = |error: &dyn std::fmt::Display| format!("cannot listen on {}: {error}", socket.display());
    if let Some(directory) = socket.parent() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(|error| failed(&error))?;
    }
    let bound = match UnixListener::bind(socket) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => match UnixStream::connect(socket) {
            Ok(_) => return Err(failed(&"another daemon is there already")),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                fs::remove_file(socket).map_err(|error| failed(&error))?;
                UnixListener::bind(socket)
            }
            Err(error) => Err(error),
        },
        other => other,
    };
    let listener = bound.map_err(|error| failed(&error))?;
    fs::set_permissions(socket, Permissions::from_mode(0o600)).map_err(|error| failed(&error))?;
    Ok(listener)
}

/// Container, interface and network.
type Key = (String, String, String);

struct Daemon {
    flags: Flags,
    leases: Mutex<HashMap<Key, Arc<Lease>>>,
}

impl Daemon {
    fn answer(&self, stream: &UnixStream) {
        let patience = Some(SILENCE);
        if stream.set_read_timeout(patience).and(stream.set_write_timeout(patience)).is_err() {
            return;
        }
        let mut line = String::new();
        let read = BufReader::new(stream).take(LONGEST_CALL).read_line(&mut line);
        let text = match read.ok().and_then(|_| serde_json::from_str::<Call>(&line).ok()) {
            None => Reply::to_nonsense(&line),
            Some(call) => Reply::of(self.serve(&call, stream)).line(),
        };
        let mut stream = stream;
        // Whoever went away gets no answer.
        let _ = stream.write_all(text.as_bytes());
    }

    fn serve(&self, call: &Call, stream: &UnixStream) -> Result<AddResult, Error> {
        let config = Config::parse(call.config.clone().into_bytes())?;
        let key = (call.container_id.clone(), call.ifname.clone(), config.name().to_owned());
        match call.command.as_str() {
            "ADD" | "CHECK" => self.lease(&key, call, &config, stream),
            "DEL" => {
                self.drop_lease(&key);
                Ok(AddResult::empty(Version::CURRENT))
            }
            "GC" => {
                let valid = config.valid_attachments()?;
                let is_valid = |(id, ifname, _): &Key| {
                    valid.iter().any(|it| it.container_id == *id && it.ifname == *ifname)
                };
                let known: Vec<Key> = self.leases().keys().cloned().collect();
                for key in known.iter().filter(|key| key.2 == config.name() && !is_valid(key)) {
                    self.drop_lease(key);
                }
                Ok(AddResult::empty(Version::CURRENT))
            }
            _ => Ok(AddResult::empty(Version::CURRENT)),
        }
    }

    /// The lease of an attachment, acquired if there is none.
    fn lease(
        &self,
        key: &Key,
        call: &Call,
        config: &Config,
        caller: &UnixStream,
    ) -> Result<AddResult, Error> {
        let ipam = config.object().object("ipam")?;
        let ipam = ipam.ok_or_else(|| Error::internal("IPAM config missing 'ipam' key"))?;
        let priority = ipam.integer("priority")?.unwrap_or(0);
        let wanted = Wanted {
            name: format!("{}/{}/{}", key.0, key.2, key.1),
            netns: PathBuf::from(format!("{}{}", self.flags.host_prefix, call.netns)),
            ifname: call.ifname.parse().map_err(|error| Error::internal(format!("{error}")))?,
            options: options::of(&ipam, &call.args)?,
            broadcast: self.flags.broadcast,
            timing: self.flags.timing,
        };
        let lease = {
            let mut leases = self.leases();
            let living = leases
                .get(key)
                .filter(|lease| !matches!(lease.status_within(Default::default()), Status::Ended(_)));
            match living {
                Some(lease) => Arc::clone(lease),
                None => {
                    let started = Lease::start(wanted).map(Arc::new);
                    let started = started.map_err(|error| {
                        Error::internal(format!("cannot start a thread for a lease: {error}"))
                    })?;
                    leases.insert(key.clone(), Arc::clone(&started));
                    started
                }
            }
        };
        let result = loop {
            match lease.status_within(SIGN_OF_LIFE) {
                Status::Held(grant) => break result_of(&grant, priority),
                Status::Ended(reason) => {
                    break Err(Error::internal(format!("error calling DHCP.Allocate: {reason}")));
                }
                Status::Acquiring => {
                    let mut caller = caller;
                    if caller.write_all(b"\n").is_err() {
                        break Err(Error::internal("the caller went away"));
                    }
                }
            }
        };
        if result.is_err() {
            self.drop_this(key, &lease);
        }
        result
    }

    fn drop_lease(&self, key: &Key) {
        let lease = self.leases().remove(key);
        // Not while all others wait for the lock.
        lease.inspect(|lease| lease.stop());
    }

    /// Drops the lease of a key unless another one has come in its place.
    fn drop_this(&self, key: &Key, lease: &Arc<Lease>) {
        let mut leases = self.leases();
        if leases.get(key).is_some_and(|found| Arc::ptr_eq(found, lease)) {
            leases.remove(key);
        }
        drop(leases);
        lease.stop();
    }

    fn leases(&self) -> MutexGuard<'_, HashMap<Key, Arc<Lease>>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The result of ADD for what a server granted.
fn result_of(grant: &Grant, priority: i64) -> Result<AddResult, Error> {
    let mask = grant.mask.ok_or_else(|| Error::internal("DHCP option Subnet Mask not found in DHCPACK"))?;
    let address = Ipv4Net::with_netmask(grant.address, mask).map_err(|_| {
        Error::internal(format!("the DHCP server names {mask} as subnet mask, which is none"))
    })?;
    let gateway = grant.routers.first().copied();
    let mut result = AddResult::empty(Version::CURRENT);
    result.ips =
        vec![IpConfig { interface: None, address: IpNet::V4(address), gateway: gateway.map(Into::into) }];
    let via = |net: Ipv4Net, gateway: Ipv4Addr| Route {
        gw: Some(gateway.into()),
        priority,
        ..Route::to(net.into())
    };
    // RFC 3442: where there are classless routes, the others and the router are not looked at.
    if grant.classless_routes.is_empty() {
        result.routes.extend(grant.classful_routes.iter().map(|(to, gateway)| via(classful(*to), *gateway)));
        result.routes.extend(gateway.map(|gateway| via(Ipv4Net::default(), gateway)));
    } else {
        result.routes.extend(grant.classless_routes.iter().map(|(to, gateway)| Route {
            scope: gateway.is_unspecified().then_some(SCOPE_LINK),
            ..via(to.trunc(), *gateway)
        }));
    }
    Ok(result)
}

/// The network of an address in the times before prefix lengths.
fn classful(address: Ipv4Addr) -> Ipv4Net {
    let length = match address.octets()[0] {
        0..128 => 8,
        128..192 => 16,
        192..224 => 24,
        _ => 32,
    };
    Ipv4Net::new(address, length).expect("no length is above 32").trunc()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant() -> Grant {
        Grant {
            address: Ipv4Addr::new(10, 0, 0, 9),
            mask: Some(Ipv4Addr::new(255, 255, 255, 0)),
            routers: vec![Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)],
            classful_routes: vec![(Ipv4Addr::new(192, 168, 7, 0), Ipv4Addr::new(10, 0, 0, 3))],
            classless_routes: Vec::new(),
            server: Ipv4Addr::new(10, 0, 0, 1),
            lifetime: None,
            renew_after: None,
            rebind_after: None,
        }
    }

    fn routes(grant: &Grant) -> Vec<String> {
        let text = |it: &Route| format!("{} {} {:?} {}", it.dst, it.gw.unwrap(), it.scope, it.priority);
        result_of(grant, 7).unwrap().routes.iter().map(text).collect()
    }

    #[test]
    fn classless_routes_come_in_place_of_all_others() {
        assert_eq!(routes(&grant()), ["192.168.7.0/24 10.0.0.3 None 7", "0.0.0.0/0 10.0.0.1 None 7"]);
        let [net, link] = ["10.8.0.0/13", "10.1.2.0/24"].map(|net| net.parse().unwrap());
        let classless_routes = vec![(net, Ipv4Addr::new(10, 0, 0, 4)), (link, Ipv4Addr::UNSPECIFIED)];
        let expected = ["10.8.0.0/13 10.0.0.4 None 7", "10.1.2.0/24 0.0.0.0 Some(253) 7"];
        assert_eq!(routes(&Grant { classless_routes, ..grant() }), expected);
    }

    #[test]
    fn a_grant_without_a_mask_is_an_error() {
        let error = |mask| result_of(&Grant { mask, ..grant() }, 0).unwrap_err().msg;
        assert_eq!(error(None), "DHCP option Subnet Mask not found in DHCPACK");
        assert!(error(Some(Ipv4Addr::new(255, 0, 255, 0))).contains("names 255.0.255.0"));
    }
}
