//! The Ethernet addresses of this node's tunnel endpoints, kept from one start to the next: peers
//! have them as permanent entries, and a new one would cut them off until they have heard of it.
//!
//! In this order: that of the device, if it is there; that in this node's lease in the store; that
//! in the snapshot; else a new one.

use std::time::Duration;

use fabric::Mac;
use fabric::backend::{Backend, VtepMacs};
use fabric::config::NetworkConfig;
use fabric::dataplane::{LinkKind, ObservedLinkKind};
use fabric::host::{ExternalInterface, Host};
use fabric::lease::{Attributes, Lease, LeaseSet, Subnets};
use fabric::plan::{Intent, Options};
use kernel::{Kernel, Scope};
use serde_json::value::RawValue;
use store::{Store, StoreError};

use crate::start::{Origin, Start};

/// How long the last run's lease is looked for in the store.
const LOOKING_BACK: Duration = Duration::from_secs(2);

/// The addresses of this node; the store is asked only where it must be.
pub async fn find(
    kernel: &mut impl Kernel,
    store: &Store,
    start: &Start,
    (external, options): (&ExternalInterface, &Options),
    previous: Subnets,
) -> VtepMacs {
    let Start { config, snapshot, from, .. } = start;
    let mut known = vec![of_devices(kernel, config, (external, options)).unwrap_or_else(|error| {
        tracing::warn!("cannot look for devices of the last run: {error:#}");
        VtepMacs::default()
    })];
    if *from == Origin::Store && !complete(config, known[0]) {
        let published = async {
            Ok::<_, StoreError>(match store.kube_node() {
                Some(node) => {
                    let own = node.published().await?;
                    own.map_or(VtepMacs::default(), |own| of_attributes(&own.attributes))
                }
                None => of_lease(&store.list().await?.leases, external, previous),
            })
        };
        match tokio::time::timeout(LOOKING_BACK, published).await {
            Ok(Ok(macs)) => known.push(macs),
            Ok(Err(error)) => tracing::warn!(%error, "cannot look for the lease of the last run"),
            Err(_) => tracing::warn!("no time to look for the lease of the last run"),
        }
    }
    known.extend(snapshot.as_ref().map(|snapshot| snapshot.macs));
    first_known(config, &known)
}

/// The addresses of the devices that are there.
fn of_devices(
    kernel: &mut impl Kernel,
    config: &NetworkConfig,
    (external, options): (&ExternalInterface, &Options),
) -> anyhow::Result<VtepMacs> {
    let any = Mac::locally_administered([0; 6]);
    let host = Host::new(external.clone(), Subnets::default());
    let macs = VtepMacs { ipv4: Some(any), ipv6: Some(any) };
    let intent = Intent { config: config.clone(), options: options.clone(), host, macs };
    let wanted = intent.plan(&LeaseSet::default()).dataplane.links;
    let observed = kernel.observe(&Scope::default())?;
    let mut macs = VtepMacs::default();
    for link in wanted.values() {
        let LinkKind::Vxlan(vxlan) = &link.kind else { continue };
        // One with other parameters is made anew, and may keep its address then as well.
        let mac =
            observed.links.get(&link.name).filter(|is| matches!(is.kind, ObservedLinkKind::Vxlan { .. }));
        let mac = mac.and_then(|is| is.mac).filter(|mac| !mac.is_zero());
        if vxlan.local.is_ipv4() {
            macs.ipv4 = mac;
        } else {
            macs.ipv6 = mac;
        }
    }
    Ok(macs)
}

/// The addresses in the lease that this node has from an earlier run.
fn of_lease(leases: &LeaseSet, external: &ExternalInterface, previous: Subnets) -> VtepMacs {
    let ours = |lease: &&std::sync::Arc<Lease>| {
        let public = (lease.attributes.public_ipv4, lease.attributes.public_ipv6);
        lease.subnets == previous || public == (external.public_ipv4, external.public_ipv6)
    };
    leases.iter().find(ours).map_or(VtepMacs::default(), |lease| of_attributes(&lease.attributes))
}

/// The addresses that a node told the others.
fn of_attributes(attributes: &Attributes) -> VtepMacs {
    VtepMacs {
        ipv4: attributes.backend_data.as_deref().and_then(vtep_mac),
        ipv6: attributes.backend_v6_data.as_deref().and_then(vtep_mac),
    }
}

/// The first that is known of each family, in order; new ones where none is.
fn first_known(config: &NetworkConfig, candidates: &[VtepMacs]) -> VtepMacs {
    let Backend::Vxlan(vxlan) = &config.backend else { return VtepMacs::default() };
    let generate = || {
        let mut octets = [0; 6];
        // The kernel gives up to 256 octets without fail once it has booted.
        let filled = rustix::rand::getrandom(&mut octets, rustix::rand::GetRandomFlags::empty());
        debug_assert_eq!(filled, Ok(octets.len()));
        vxlan.generate_mac(octets)
    };
    let known = |family: fn(&VtepMacs) -> Option<Mac>| candidates.iter().find_map(family);
    VtepMacs {
        ipv4: config.ipv4.map(|_| known(|macs| macs.ipv4).unwrap_or_else(generate)),
        ipv6: config.ipv6.map(|_| known(|macs| macs.ipv6).unwrap_or_else(generate)),
    }
}

/// Whether every family that needs one has one.
fn complete(config: &NetworkConfig, macs: VtepMacs) -> bool {
    !matches!(config.backend, Backend::Vxlan(_))
        || ((config.ipv4.is_none() || macs.ipv4.is_some()) && (config.ipv6.is_none() || macs.ipv6.is_some()))
}

fn vtep_mac(data: &RawValue) -> Option<Mac> {
    let data: serde_json::Value = serde_json::from_str(data.get()).ok()?;
    data.get("VtepMAC")?.as_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> NetworkConfig {
        NetworkConfig::from_json(json).unwrap()
    }

    fn external() -> ExternalInterface {
        ExternalInterface {
            link: "eth0".parse().unwrap(),
            mtu: 1500,
            ipv4: Some([192, 0, 2, 1].into()),
            ipv6: None,
            public_ipv4: Some([192, 0, 2, 1].into()),
            public_ipv6: None,
        }
    }

    #[test]
    fn a_lease_of_ours_is_known_by_address_or_subnet() {
        let lease = |key: &str, ip: &str, mac: &str| {
            Lease {
            subnets: Subnets::from_key(key).unwrap(),
            attributes: Attributes::from_json(
                format!(r#"{{"PublicIP":"{ip}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#)
                    .as_bytes(),
            )
            .unwrap(),
            created: 1,
        }
        };
        let leases: LeaseSet = [
            lease("10.5.1.0-24", "192.0.2.1", "0e:00:00:00:00:01"),
            lease("10.5.2.0-24", "192.0.2.2", "0e:00:00:00:00:02"),
        ]
        .into_iter()
        .collect();
        let mac = |text: &str| Some(text.parse::<Mac>().unwrap());
        assert_eq!(of_lease(&leases, &external(), Subnets::default()).ipv4, mac("0e:00:00:00:00:01"));
        let mut moved = external();
        moved.public_ipv4 = Some([192, 0, 2, 9].into());
        let previous = Subnets::from_key("10.5.2.0-24").unwrap();
        assert_eq!(of_lease(&leases, &moved, previous).ipv4, mac("0e:00:00:00:00:02"));
        assert_eq!(of_lease(&leases, &moved, Subnets::default()), VtepMacs::default());
    }

    #[test]
    fn the_first_known_counts_and_new_ones_are_unicast_local_and_different() {
        let config = config(
            r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48","Backend":{"Type":"vxlan"}}"#,
        );
        let mac: Mac = "0e:00:00:00:00:01".parse().unwrap();
        let known = VtepMacs { ipv4: Some(mac), ipv6: None };
        let macs = first_known(&config, &[VtepMacs::default(), known]);
        assert_eq!(macs.ipv4, Some(mac));
        let again = first_known(&config, &[known]);
        assert_ne!(macs.ipv6, again.ipv6);
        assert_eq!(macs.ipv6.unwrap().0[0] & 3, 2);
        assert!(complete(&config, macs) && !complete(&config, known));
    }
}
