//! What becomes of a choice when the host has changed.

use std::net::IpAddr;

use fabric::host::ExternalInterface;

use super::{Choice, Families, NoInterface, Surroundings, Wanted, choose, is_link_local};

/// Chooses once more, after something has changed.
///
/// A node keeps its address as long as it has it, even where a new choice would fall on another:
/// moving costs every peer an update, and packets on their way. Only a link-local address, which other nodes
/// do not reach, makes way for another, and none makes way for it: when an interface goes down and up again,
/// it is the first to be there, and the others follow.
pub fn choose_again(
    last: &Choice,
    wanted: &Wanted,
    families: Families,
    surroundings: &Surroundings,
) -> Result<Choice, NoInterface> {
    let before = link_local(last).count();
    match choose(wanted, families, surroundings) {
        Ok(next) if link_local(&next).count() < before => Ok(next),
        _ if still_stands(last, surroundings) => Ok(last.clone()),
        Ok(next) if link_local(&next).count() > before => {
            let addresses: Vec<_> = link_local(&next).map(|ip| ip.to_string()).collect();
            let (link, addresses) = (next.external.link, addresses.join(" and "));
            Err(NoInterface(format!("what {link} has is {addresses}, which leads no further than its link")))
        }
        next => next,
    }
}

/// Whether the interface is up and has its addresses.
pub(super) fn still_stands(choice: &Choice, surroundings: &Surroundings) -> bool {
    let external = &choice.external;
    let Some(interface) = surroundings.interfaces.iter().find(|interface| interface.name == external.link)
    else {
        return false;
    };
    let has = |ip: IpAddr| interface.addresses.iter().any(|address| address.ip == ip && !address.unusable);
    interface.up && interface.mtu == external.mtu && addresses(external).all(has)
}

fn addresses(external: &ExternalInterface) -> impl Iterator<Item = IpAddr> + use<> {
    external.ipv4.map(IpAddr::V4).into_iter().chain(external.ipv6.map(IpAddr::V6))
}

fn link_local(choice: &Choice) -> impl Iterator<Item = IpAddr> + use<> {
    addresses(&choice.external).filter(is_link_local)
}
