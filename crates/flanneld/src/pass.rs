//! A pass: one look at the kernel, and what follows from it. All of it takes tens of milliseconds
//! with ten thousand leases, so what it finds is made in slices. Leases that change meanwhile are
//! answered in between, and have the last word about the objects they touch ([`Touched`]): the look
//! knows nothing of them yet. The next pass checks those.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::{panic, thread};

use fabric::dataplane::{self, Change, Kind, Prune};
use fabric::host::RouteStyle;
use fabric::lease::{Lease, LeaseSet};
use fabric::plan::{Intent, Plan};
use fabric::status::{self, Peer, PeerPath};
use fabric::{LinkName, Mac};
use ipnet::IpNet;
use kernel::{Failure, Kernel, KernelError, Scope};
use tokio::time::Instant;

/// How many changes are made at once: about a millisecond's worth, at which a send costs nothing
/// beside them.
const SLICE: usize = 512;
/// With so many leases, or changes, a pass takes enough memory to be worth giving back after it.
pub(crate) const MANY: usize = 1000;

/// A pass on its way.
#[derive(Debug)]
pub(crate) struct Pass {
    pub(crate) began: Instant,
    /// As of when it began.
    pub(crate) known: Known,
    /// Whether leases or intent had changed since the pass before.
    pub(crate) unsettled: bool,
    /// What has been answered since it began.
    pub(crate) touched: Touched,
    /// What the kernel has refused.
    pub(crate) failures: Vec<Failure>,
    /// The intent with the facts filled in, and what is to be made of it; none while it looks.
    pub(crate) making: Option<(Intent, Remaining)>,
}

/// What is known about the leases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Known {
    /// Nothing yet.
    Nothing,
    /// What they were at the end of the last run.
    Remembered,
    /// All of them.
    Complete,
}

impl Pass {
    /// One that looks.
    pub(crate) fn begun(began: Instant, known: Known, unsettled: bool) -> Pass {
        Pass { began, known, unsettled, touched: Touched::default(), failures: Vec::new(), making: None }
    }
}

/// What a look is about.
#[derive(Debug)]
pub(crate) struct Question {
    /// What the node wants; facts that are observed are filled in.
    pub(crate) intent: Intent,
    pub(crate) leases: LeaseSet,
    /// Networks of which nothing is to be left.
    pub(crate) former_networks: Vec<IpNet>,
    pub(crate) route_style: RouteStyle,
    pub(crate) prune: Prune,
    /// Whether leases or intent have changed since the last look.
    pub(crate) unsettled: bool,
    /// How each peer is reached, as the last look found it.
    pub(crate) known_peers: Arc<Vec<Peer>>,
}

/// What a look found.
#[derive(Debug)]
pub(crate) struct Findings {
    /// The intent with the facts filled in.
    pub(crate) intent: Intent,
    /// What to do about it, in order.
    pub(crate) changes: Vec<Change>,
    /// How each peer is reached, by subnet.
    pub(crate) peers: Arc<Vec<Peer>>,
    /// How many objects are wanted in the kernel, by kind.
    pub(crate) desired: BTreeMap<Kind, usize>,
}

/// Looks at the kernel, plans and compares.
///
/// On a thread that ends with it: for as long as it lives, the C library keeps at hand some of what a
/// thread has freed, of each size and from anywhere, and the pages around that stay with us.
pub(crate) fn look(kernel: &mut (impl Kernel + Send), question: Question) -> Result<Findings, KernelError> {
    let many = question.leases.len() >= MANY;
    let found = thread::scope(|scope| scope.spawn(|| compare(kernel, question)).join());
    if many {
        kernel::memory::give_back();
    }
    found.unwrap_or_else(|panicked| panic::resume_unwind(panicked))
}

fn compare(kernel: &mut impl Kernel, question: Question) -> Result<Findings, KernelError> {
    let Question { mut intent, leases, former_networks, route_style, prune, unsettled, known_peers } =
        question;
    // The same objects whoever the peers are: their sysctls are what to ask the kernel for.
    let node = intent.plan(&LeaseSet::default()).dataplane;
    let ownership = intent.ownership().after(&former_networks);
    let scope = Scope {
        links: ownership.links().collect(),
        sysctls: node.sysctls.into_keys().collect(),
        tables: ownership.tables().to_vec(),
    };
    let observed = kernel.observe(&scope)?;
    intent.host.look_at(&observed, &ownership);
    intent.host.route_style = route_style;
    if unsettled && leases.len() >= MANY {
        // What it took to read the leases is free by now, and would add to what the plan takes.
        kernel::memory::give_back();
    }
    let plan = intent.plan(&leases);
    let changes = dataplane::changes(&plan.dataplane, &observed, &ownership, prune);
    let desired = plan.dataplane.counts();
    let peers = match peers(&plan, &leases, &intent) {
        // They go here, before memory is given back: they are as many as are kept.
        same if same == *known_peers => known_peers,
        found => Arc::new(found),
    };
    Ok(Findings { intent, changes, peers, desired })
}

fn peers(plan: &Plan, leases: &LeaseSet, intent: &Intent) -> Vec<Peer> {
    let peer = |lease: &Lease| {
        let (path, refused) = match plan.peers.get(&lease.subnets) {
            Some(Ok(path)) => ((*path).into(), None),
            Some(Err(reason)) => (PeerPath::None, Some(reason.clone())),
            None => (PeerPath::None, None),
        };
        status::Peer {
            ipv4: lease.subnets.ipv4,
            ipv6: lease.subnets.ipv6,
            public_ipv4: lease.attributes.public_ipv4,
            public_ipv6: lease.attributes.public_ipv6,
            path,
            refused,
        }
    };
    // They are kept: room for as many as there are, where gathering would make room for up to twice as many.
    let mut peers = Vec::with_capacity(leases.len());
    // The set is ordered by subnet.
    peers.extend(leases.iter().filter(|lease| lease.subnets != intent.host.own).map(|lease| peer(lease)));
    peers
}

/// An object of the kernel that leases decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Object {
    Neighbor(LinkName, IpAddr),
    Fdb(LinkName, Mac),
    NextHop(u32),
    Route(IpNet, u32),
}

fn object(change: &Change) -> Option<Object> {
    Some(match change {
        Change::SetNeighbor(link, ip, _) | Change::RemoveNeighbor(link, ip) => Object::Neighbor(*link, *ip),
        Change::SetFdb(link, mac, _) | Change::RemoveFdb(link, mac, _) => Object::Fdb(*link, *mac),
        Change::AddNextHop(id, _) | Change::RemoveNextHop(id) => Object::NextHop(*id),
        Change::SetRoute(route) | Change::RemoveRoute(route) => {
            Object::Route(route.destination, route.metric)
        }
        _ => return None,
    })
}

/// What answers to changed leases have touched since a look began.
#[derive(Debug, Default)]
pub(crate) struct Touched(HashSet<Object>);

impl Touched {
    pub(crate) fn by(&mut self, answer: &[Change]) {
        self.0.extend(answer.iter().filter_map(object));
    }

    /// Leaves out what is about one of those objects.
    pub(crate) fn drop_from(&self, changes: &mut Vec<Change>) {
        changes.retain(|change| !self.has(change));
    }

    fn has(&self, change: &Change) -> bool {
        !self.0.is_empty() && object(change).is_some_and(|object| self.0.contains(&object))
    }
}

/// The changes of a pass that are still to be made.
#[derive(Debug)]
pub(crate) struct Remaining(std::iter::Peekable<std::vec::IntoIter<Change>>);

impl Remaining {
    pub(crate) fn new(changes: Vec<Change>) -> Remaining {
        Remaining(changes.into_iter().peekable())
    }

    /// The next of them, without what answers have touched; none when all are made.
    ///
    /// Firewall tables stay together: they are changed in one transaction, so that no packet sees
    /// some of them new and some old.
    pub(crate) fn slice(&mut self, touched: &Touched) -> Option<Vec<Change>> {
        self.0.peek()?;
        let mut slice: Vec<Change> = Vec::new();
        while let Some(next) = self.0.next_if(|next| {
            let amid_tables = slice.last().is_some_and(is_firewall) && is_firewall(next);
            slice.len() < SLICE || amid_tables
        }) {
            if !touched.has(&next) {
                slice.push(next);
            }
        }
        Some(slice)
    }
}

/// Whether a change is one of those between the first and the last change of a table.
fn is_firewall(change: &Change) -> bool {
    matches!(
        change,
        Change::SetTable(_) | Change::DeleteTable(_) | Change::AcceptForward(_) | Change::RetractForward(_)
    )
}

#[cfg(test)]
mod tests {
    use fabric::firewall::{Family, TableName};

    use super::*;

    fn neighbor(number: usize) -> Change {
        let ip = IpAddr::from([10, 5, (number >> 8) as u8, number as u8]);
        Change::SetNeighbor("flannel.1".parse().unwrap(), ip, Mac([2; 6]))
    }

    fn table(name: usize) -> Change {
        Change::DeleteTable(TableName { family: Family::Ipv4, name: name.to_string() })
    }

    fn slices(changes: &[Change], touched: &Touched) -> Vec<Vec<Change>> {
        let mut remaining = Remaining::new(changes.to_vec());
        std::iter::from_fn(|| remaining.slice(touched)).collect()
    }

    #[test]
    fn slices_hold_all_changes_in_order() {
        let changes: Vec<_> = (0..2 * SLICE + 3).map(neighbor).collect();
        let slices = slices(&changes, &Touched::default());
        assert_eq!(slices.iter().map(Vec::len).collect::<Vec<_>>(), [SLICE, SLICE, 3]);
        assert_eq!(slices.concat(), changes);
    }

    #[test]
    fn firewall_tables_are_never_parted() {
        for before in SLICE - 4..=SLICE + 1 {
            let neighbors = (0..before).map(neighbor);
            let changes: Vec<_> = neighbors.chain((0..3).map(table)).chain([neighbor(9999)]).collect();
            let slices = slices(&changes, &Touched::default());
            assert_eq!(slices.concat(), changes);
            let with_tables = slices.iter().filter(|slice| slice.iter().any(is_firewall)).count();
            assert_eq!(with_tables, 1, "{before} changes before them");
        }
    }

    #[test]
    fn what_an_answer_touched_is_left_out() {
        let mut touched = Touched::default();
        touched.by(&[Change::RemoveNeighbor("flannel.1".parse().unwrap(), "10.5.0.1".parse().unwrap())]);
        let changes = [neighbor(0), neighbor(1), neighbor(2), table(0)];
        assert_eq!(slices(&changes, &touched).concat(), [neighbor(0), neighbor(2), table(0)]);
        let mut found = changes.to_vec();
        touched.drop_from(&mut found);
        assert_eq!(found.len(), 3);
        assert_eq!(slices(&[neighbor(1)], &touched), [vec![]], "and what is left may be nothing");
    }
}
