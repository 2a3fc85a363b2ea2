//! Makes changes in the kernel: what can go in one send goes in one send, in order.
//!
//! Which answers mean "it is so already" or "it is gone already" is said in [`is_done_already`] and
//! nowhere else.

use std::collections::BTreeMap;

use fabric::dataplane::{Change, Link, LinkKind, Route, Target};
use fabric::firewall::{Table, TableName};
use fabric::link_name::LinkName;
use rustix::io::Errno;

use crate::error::KernelError;
use crate::linux::{Failure, Linux};
use crate::netlink::{Batch, CHUNK_MESSAGES, NetlinkError, Socket};
use crate::{address, fdb, iptables, link, neighbor, nexthop, route, sysctl, tun};

/// Makes changes in order and returns those that failed, by their place.
pub(crate) fn apply(linux: &mut Linux, changes: &[Change]) -> Vec<Failure> {
    let mut run = Run { changes, failures: Vec::new(), queue: Queue::default(), indexes: BTreeMap::new() };
    let mut tables_done = false;
    for (at, change) in changes.iter().enumerate() {
        match change {
            Change::SetSysctl(path, value) => {
                run.flush(&mut linux.socket);
                run.note(at, sysctl::write(path, value));
            }
            Change::CreateLink(link) => {
                run.flush(&mut linux.socket);
                let made = create_link(&mut linux.socket, link);
                run.indexes.clear();
                run.note(at, made);
            }
            Change::DeleteLink(name) => {
                run.flush(&mut linux.socket);
                let deleted = link::delete_by_name(&mut linux.socket, *name);
                run.indexes.clear();
                run.note(at, deleted);
            }
            // Every table of one call is changed in one transaction, so that no packet sees some
            // of them new and some old.
            Change::SetTable(_) | Change::DeleteTable(_) if !tables_done => {
                run.flush(&mut linux.socket);
                run.change_tables(linux);
                tables_done = true;
            }
            Change::SetTable(_) | Change::DeleteTable(_) => {}
            Change::AcceptForward(net) => {
                run.flush(&mut linux.socket);
                let applied = linux.nftables().and_then(|nft| iptables::apply_forward(nft, &[*net], &[]));
                run.note(at, applied);
            }
            Change::RetractForward(net) => {
                run.flush(&mut linux.socket);
                let applied = linux.nftables().and_then(|nft| iptables::apply_forward(nft, &[], &[*net]));
                run.note(at, applied);
            }
            _ => {
                run.queue(at, &linux.socket);
                // What fills a send goes out, so that ten thousand peers are not all in memory once more as
                // messages.
                if run.queue.places.len() >= CHUNK_MESSAGES {
                    run.flush(&mut linux.socket);
                }
            }
        }
    }
    run.flush(&mut linux.socket);
    run.failures.sort_by_key(|failure| failure.index);
    run.failures
}

/// Changes being made.
struct Run<'a> {
    changes: &'a [Change],
    failures: Vec<Failure>,
    queue: Queue,
    /// Device numbers looked up so far; forgotten whenever a device is made or deleted.
    indexes: BTreeMap<LinkName, Option<u32>>,
}

/// Messages not yet sent.
#[derive(Default)]
struct Queue {
    batch: Batch,
    /// For each message the place of its change.
    places: Vec<usize>,
}

impl Run<'_> {
    fn note(&mut self, at: usize, result: Result<(), KernelError>) {
        if let Err(error) = result {
            self.failures.push(Failure { index: at, change: self.changes[at].clone(), error });
        }
    }

    /// Adds the message of a change to the queue.
    fn queue(&mut self, at: usize, socket: &Socket) {
        let change = &self.changes[at];
        let index = match device(change).map(|name| self.index(socket, name)).transpose() {
            Ok(index) => index,
            // Nothing is left on a device that is gone.
            Err(error) if change.removes() && error.errno() == Some(Errno::NODEV) => return,
            Err(error) => return self.note(at, Err(error)),
        };
        let before = self.queue.batch.len();
        push(&mut self.queue.batch, change, index);
        debug_assert_eq!(self.queue.batch.len(), before + 1, "{change} is one message");
        self.queue.places.push(at);
    }

    fn index(&mut self, socket: &Socket, name: LinkName) -> Result<u32, KernelError> {
        let found = match self.indexes.get(&name) {
            Some(found) => *found,
            None => {
                let found = link::index(socket, name)?;
                self.indexes.insert(name, found);
                found
            }
        };
        found.ok_or_else(|| KernelError::NoLink(name.to_string()))
    }

    /// Sends what is queued.
    fn flush(&mut self, socket: &mut Socket) {
        let failures = socket.batch(&mut self.queue.batch);
        self.queue.batch.clear();
        for (place, cause) in failures {
            let at = self.queue.places[place];
            let change = &self.changes[at];
            if !is_done_already(change, &cause, socket) {
                self.note(at, Err(KernelError::Netlink { doing: format!("do `{change}`"), cause }));
            }
        }
        self.queue.places.clear();
    }

    /// Makes all changes of firewall tables, in one transaction.
    fn change_tables(&mut self, linux: &mut Linux) {
        let (mut set, mut delete): (Vec<Table>, Vec<TableName>) = (Vec::new(), Vec::new());
        for change in self.changes {
            match change {
                Change::SetTable(table) => set.push(table.clone()),
                Change::DeleteTable(name) => delete.push(name.clone()),
                _ => {}
            }
        }
        let result = linux.nftables().and_then(|nftables| nftables.transact(&set, &delete));
        if let Err(error) = result {
            for (at, change) in self.changes.iter().enumerate() {
                if matches!(change, Change::SetTable(_) | Change::DeleteTable(_)) {
                    self.note(at, Err(error.clone()));
                }
            }
        }
    }
}

fn create_link(socket: &mut Socket, link: &Link) -> Result<(), KernelError> {
    match &link.kind {
        LinkKind::Vxlan(vxlan) => {
            let underlay = link::index(socket, vxlan.underlay)?
                .ok_or_else(|| KernelError::NoLink(vxlan.underlay.to_string()))?;
            link::create_vxlan(socket, link, vxlan, underlay)
        }
        LinkKind::Tun(tun) => tun::create(socket, link, tun),
    }
}

/// The device that a queued change names.
fn device(change: &Change) -> Option<LinkName> {
    match change {
        Change::SetMtu(name, _)
        | Change::SetMac(name, _)
        | Change::SetUp(name)
        | Change::AddAddress(name, _)
        | Change::RemoveAddress(name, _)
        | Change::SetNeighbor(name, ..)
        | Change::RemoveNeighbor(name, _)
        | Change::SetFdb(name, ..)
        | Change::RemoveFdb(name, ..) => Some(*name),
        Change::AddNextHop(_, next_hop) => Some(next_hop.link),
        Change::SetRoute(route) | Change::RemoveRoute(route) => route.link(),
        _ => None,
    }
}

/// Adds the message of a change; `link` is the number of its device.
fn push(batch: &mut Batch, change: &Change, link: Option<u32>) {
    let number = link.unwrap_or(0);
    match change {
        Change::SetMtu(_, mtu) => {
            link::push_change(batch, number, 0, |body| body.u32(libc::IFLA_MTU, *mtu));
        }
        Change::SetMac(_, mac) => {
            link::push_change(batch, number, 0, |body| body.attribute(libc::IFLA_ADDRESS, &mac.0));
        }
        Change::SetUp(_) => link::push_change(batch, number, link::UP, |_| ()),
        Change::AddAddress(_, net) => address::push_add(batch, number, *net),
        Change::RemoveAddress(_, net) => address::push_remove(batch, number, *net),
        Change::SetNeighbor(_, ip, mac) => neighbor::push_set(batch, number, *ip, *mac),
        Change::RemoveNeighbor(_, ip) => neighbor::push_remove(batch, number, *ip),
        Change::SetFdb(_, mac, to) => fdb::push_set(batch, number, *mac, *to),
        Change::RemoveFdb(_, mac, to) => fdb::push_remove(batch, number, *mac, *to),
        Change::AddNextHop(id, next_hop) => nexthop::push_add(batch, *id, next_hop, number),
        Change::RemoveNextHop(id) => nexthop::push_remove(batch, *id),
        Change::SetRoute(route) => route::push_set(batch, route, link),
        Change::RemoveRoute(route) => route::push_remove(batch, route, link),
        Change::SetSysctl(..)
        | Change::CreateLink(_)
        | Change::DeleteLink(_)
        | Change::SetTable(_)
        | Change::DeleteTable(_)
        | Change::AcceptForward(_)
        | Change::RetractForward(_) => unreachable!("`{change}` is no single message"),
    }
}

/// Whether a refusal means that there was nothing to do.
fn is_done_already(change: &Change, refusal: &NetlinkError, socket: &mut Socket) -> bool {
    let Some(errno) = refusal.errno() else { return false };
    match change {
        Change::AddAddress(..) => errno == Errno::EXIST,
        Change::AddNextHop(id, next_hop) if errno == Errno::EXIST => same_next_hop(socket, *id, next_hop),
        Change::RemoveAddress(..) => matches!(errno, Errno::ADDRNOTAVAIL | Errno::NODEV),
        Change::RemoveNeighbor(..) | Change::RemoveFdb(..) | Change::RemoveNextHop(_) => {
            matches!(errno, Errno::NOENT | Errno::NODEV)
        }
        // The kernel takes the routes of a next-hop object away with it, and then does not know the
        // number in the request any more.
        Change::RemoveRoute(Route { target: Target::NextHopObject(id), .. }) if errno == Errno::INVAL => {
            matches!(nexthop::by_id(socket, *id), Ok(None))
        }
        Change::RemoveRoute(_) => matches!(errno, Errno::SRCH | Errno::NOENT | Errno::NODEV),
        _ => false,
    }
}

/// Whether the object that has the number is the one wanted: it may also be somebody else's.
fn same_next_hop(socket: &mut Socket, id: u32, wanted: &fabric::dataplane::NextHop) -> bool {
    let Ok(Some(found)) = nexthop::by_id(socket, id) else { return false };
    let link = link::index(socket, wanted.link).ok().flatten();
    found.protocol == fabric::ownership::ROUTE_PROTOCOL
        && found.gateway == wanted.gateway
        && found.onlink == wanted.onlink
        && Some(found.link) == link
}
