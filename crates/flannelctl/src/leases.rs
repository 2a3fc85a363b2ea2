//! `flannelctl leases`: which node has which pod subnet.

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use fabric::lease::{LeaseSet, Subnets};
use ipnet::IpNet;
use serde_json::{Value, json};
use store::Listing;

use crate::output::{self, Output};
use crate::store::Location;

/// What to do with the leases.
#[derive(Debug, Default, Subcommand)]
pub(crate) enum Verb {
    /// List them.
    #[default]
    List,
    /// Take leases away. A node that still runs leases its subnet again at once.
    Remove {
        /// Pod subnets, such as 10.244.3.0/24.
        #[arg(required = true, value_name = "SUBNET")]
        subnets: Vec<String>,
    },
}

pub(crate) fn run(store: &Location, verb: Verb, out: &mut Output) -> Result<()> {
    match verb {
        Verb::List => list(store, out),
        Verb::Remove { subnets } => remove(store, &subnets, out),
    }
}

fn list(store: &Location, out: &mut Output) -> Result<()> {
    let listing = store.ask(async |store| Ok(store.list().await?))?;
    let term = if store.is_kubernetes() { "as long as the Node" } else { "while the node renews it" };
    if out.is_json() {
        return out.json(&as_json(&listing));
    }
    let rows: Vec<Vec<String>> = listing
        .leases
        .iter()
        .map(|lease| {
            let nodes: Vec<String> = lease.attributes.public_addresses().map(|ip| ip.to_string()).collect();
            let reserved = listing.reservations.contains(&lease.subnets);
            vec![
                lease.subnets.to_string(),
                nodes.join(" "),
                lease.attributes.backend_type.to_string(),
                if reserved { "for ever (a reservation)" } else { term }.to_owned(),
            ]
        })
        .collect();
    out.table(&["SUBNET", "NODE", "BACKEND", "LASTS"], &rows)?;
    for (key, reason) in &listing.leases.skipped {
        output::complain(&format!("the record {key:?} is left out: {reason}"));
    }
    Ok(())
}

fn as_json(listing: &Listing) -> Value {
    let leases: Vec<Value> = listing
        .leases
        .iter()
        .map(|lease| {
            json!({
                "subnets": lease.subnets.iter().collect::<Vec<_>>(),
                "reserved": listing.reservations.contains(&lease.subnets),
                "attributes": lease.attributes,
            })
        })
        .collect();
    let skipped: Vec<Value> =
        listing.leases.skipped.iter().map(|(key, reason)| json!({ "key": key, "reason": reason })).collect();
    json!({ "leases": leases, "skipped": skipped })
}

fn remove(store: &Location, names: &[String], out: &mut Output) -> Result<()> {
    let removed = store.ask(async |store| {
        let leases = store.list().await?.leases;
        // All names are understood before anything is removed.
        let chosen: Vec<Subnets> = names.iter().map(|name| find(&leases, name)).collect::<Result<_>>()?;
        for subnets in &chosen {
            store.remove(subnets).await.with_context(|| format!("removing {subnets}"))?;
        }
        Ok(chosen)
    })?;
    if out.is_json() {
        return out
            .json(&removed.iter().map(|subnets| subnets.iter().collect::<Vec<_>>()).collect::<Vec<_>>());
    }
    removed.iter().try_for_each(|subnets| out.line(format!("removed {subnets}")))
}

/// The lease that a person means by one of its subnets, or by its key.
fn find(leases: &LeaseSet, name: &str) -> Result<Subnets> {
    let subnet: Option<IpNet> = name.parse().ok();
    let key = Subnets::from_key(name).ok();
    if subnet.is_none() && key.is_none() {
        bail!("{name:?} is no subnet: want the form 10.244.3.0/24");
    }
    let meant = |of: Subnets| key == Some(of) || of.iter().any(|net| Some(net) == subnet);
    let lease = leases.iter().find(|lease| meant(lease.subnets));
    lease
        .map(|lease| lease.subnets)
        .with_context(|| format!("no lease of {name}: `flannelctl leases` lists them"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use fabric::lease::{Attributes, Lease};

    #[test]
    fn a_lease_is_meant_by_its_subnet_or_its_key() {
        let subnets = Subnets::from_key("10.5.1.0-24&fd00:0:0:1::-64").unwrap();
        let mut leases = LeaseSet::default();
        leases.insert(Lease { subnets, attributes: Attributes::default(), created: 1 });
        for name in ["10.5.1.0/24", "fd00:0:0:1::/64", "10.5.1.0-24&fd00:0:0:1::-64"] {
            assert_eq!(find(&leases, name).unwrap(), subnets);
        }
        assert!(find(&leases, "10.5.2.0/24").unwrap_err().to_string().contains("no lease of 10.5.2.0/24"));
        assert!(find(&leases, "node1").unwrap_err().to_string().contains("want the form"));
    }
}
