//! `flannelctl plan`: what flanneld would change in the kernel now.
//!
//! The plan is made here anew, by the same pure function as in the daemon, of what the daemon wrote
//! down last (its status and its snapshot of the leases) and of one look at the kernel.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use fabric::backend::VtepMacs;
use fabric::config::NetworkConfig;
use fabric::dataplane::{self, Change, Dataplane, Observed, Prune, Target};
use fabric::host::{ExternalInterface, Host, RouteStyle};
use fabric::lease::{Attributes, Lease, LeaseSet, Subnets};
use fabric::ownership::Ownership;
use fabric::plan::Intent;
use fabric::status::{Files, Status};
use kernel::{Kernel, Linux, Scope};
use serde::Deserialize;
use serde_json::json;

use crate::output::{Output, Tone};
use crate::status;

/// A plan, and what is between it and the kernel.
pub(crate) struct Planned {
    /// What the node wants in its kernel.
    pub(crate) wanted: Dataplane,
    /// What would make it so.
    pub(crate) changes: Vec<Change>,
}

pub(crate) fn run(subnet_file: &Path, all: bool, out: &mut Output) -> Result<()> {
    let planned = make(&Files::beside(subnet_file))?;
    let changes = if all { Change::all_of(&planned.wanted) } else { planned.changes };
    if out.is_json() {
        let changes: Vec<_> =
            changes.iter().map(|c| json!({ "command": c.to_string(), "removes": c.removes() })).collect();
        return out.json(&changes);
    }
    if changes.is_empty() {
        return out.line(out.toned(Tone::Good, "nothing: the kernel holds what the leases ask for"));
    }
    changes.iter().try_for_each(|change| out.line(change))
}

/// Makes the plan of the node whose files these are, in whose network namespace this thread is.
pub(crate) fn make(files: &Files) -> Result<Planned> {
    let Decided { mut intent, leases } = Decided::read(files)?;
    let ownership = intent.ownership();
    let node = intent.plan(&LeaseSet::default()).dataplane;
    let observed = observe(&ownership, node.sysctls.into_keys().collect())?;
    intent.host.look_at(&observed, &ownership);
    intent.host.route_style = route_style(&observed);
    let wanted = intent.plan(&leases).dataplane;
    let changes = dataplane::changes(&wanted, &observed, &ownership, Prune::Yes);
    Ok(Planned { wanted, changes })
}

/// One look at what could be flannel's.
pub(crate) fn observe(ownership: &Ownership, sysctls: Vec<String>) -> Result<Observed> {
    let scope = Scope { links: ownership.links().collect(), sysctls, tables: ownership.tables().to_vec() };
    Ok(Linux::open()?.observe(&scope)?)
}

/// How the daemon writes routes: the choice is its own, and its routes show it.
fn route_style(observed: &Observed) -> RouteStyle {
    let by_object = |route: &dataplane::Route| matches!(route.target, Target::NextHopObject(id) if observed.next_hops.contains_key(&id));
    if observed.routes.iter().any(by_object) { RouteStyle::NextHopObjects } else { RouteStyle::Plain }
}

/// What the daemon has decided from.
pub(crate) struct Decided {
    pub(crate) intent: Intent,
    pub(crate) leases: LeaseSet,
}

/// What is used here of the daemon's snapshot of the leases.
#[derive(Deserialize)]
struct Snapshot {
    network: String,
    own: Record,
    vtep_mac: Option<String>,
    vtep_v6_mac: Option<String>,
    leases: Vec<Record>,
}

#[derive(Deserialize)]
struct Record {
    key: String,
    value: Attributes,
    created: u64,
}

impl Decided {
    /// Reads what the daemon wrote down.
    pub(crate) fn read(files: &Files) -> Result<Decided> {
        let status = status::read(files)?;
        let path = files.leases.display();
        let text = fs::read(&files.leases)
            .with_context(|| format!("reading {path}, which flanneld writes once it has a lease"))?;
        let snapshot: Snapshot = serde_json::from_slice(&text)
            .with_context(|| format!("{path} is not what a flanneld writes; start flanneld anew"))?;
        let mac = |text: Option<String>| text.map(|text| text.parse()).transpose();
        let macs = VtepMacs { ipv4: mac(snapshot.vtep_mac)?, ipv6: mac(snapshot.vtep_v6_mac)? };
        let asked = status.asked.as_ref().context("this flanneld does not say what it was asked for")?;
        let host = Host::new(external(&status)?, Subnets::from_key(&snapshot.own.key)?);
        let config = NetworkConfig::from_json(&snapshot.network)?;
        let leases = snapshot.leases.into_iter().map(Record::lease).collect::<Result<_>>()?;
        Ok(Decided { intent: Intent { config, options: asked.into(), host, macs }, leases })
    }
}

impl Record {
    fn lease(self) -> Result<Lease> {
        Ok(Lease { subnets: Subnets::from_key(&self.key)?, attributes: self.value, created: self.created })
    }
}

fn external(status: &Status) -> Result<ExternalInterface> {
    let Some(external) = &status.external else {
        bail!("flanneld has not chosen an interface to the other nodes yet: see `flannelctl status`");
    };
    let ipv4 = |of: &[std::net::IpAddr]| {
        of.iter().find_map(|ip| match ip {
            std::net::IpAddr::V4(ip) => Some(*ip),
            std::net::IpAddr::V6(_) => None,
        })
    };
    let ipv6 = |of: &[std::net::IpAddr]| {
        of.iter().find_map(|ip| match ip {
            std::net::IpAddr::V6(ip) => Some(*ip),
            std::net::IpAddr::V4(_) => None,
        })
    };
    Ok(ExternalInterface {
        link: external.link.parse()?,
        mtu: external.mtu,
        ipv4: ipv4(&external.addresses),
        ipv6: ipv6(&external.addresses),
        public_ipv4: ipv4(&external.public),
        public_ipv6: ipv6(&external.public),
    })
}
