//! Dropping frames that a pod sends under another Ethernet address than its own.
//!
//! Compatibility: table, chains, comments and order are those of the reference plugin, so that either
//! program finds what the other one made.

use cni::{Error, Request};
use fabric::firewall::{
    Chain, ChainKind, Family, Hook, HookPoint, Match, Policy, Rule, Table, TableName, Verdict,
};
use kernel::KernelError;
use kernel::nftables::Nftables;

use crate::veth::Pair;

const PREROUTING: &str = "PREROUTING";

/// Lets only frames with the container's address through.
pub(super) fn install(request: &Request, pair: &Pair) -> Result<(), Error> {
    let names = Names::of(request);
    let comment = |rule: Rule| rule.comment(names.comment.clone());
    let base = Table {
        name: table(),
        comment: None,
        chains: vec![
            Chain {
                name: PREROUTING.to_owned(),
                hook: Some(Hook {
                    kind: ChainKind::Filter,
                    point: HookPoint::Prerouting,
                    priority: -300,
                    policy: Policy::Accept,
                }),
                comment: None,
                rules: Vec::new(),
            },
            Chain {
                name: names.mac.clone(),
                hook: None,
                comment: None,
                rules: vec![
                    comment(Rule::new(vec![Match::EtherSource(pair.container_mac)], Verdict::Return)),
                    comment(Rule::new(Vec::new(), Verdict::Drop)),
                ],
            },
            Chain {
                name: names.iface.clone(),
                hook: None,
                comment: None,
                rules: vec![comment(Rule::new(Vec::new(), Verdict::Jump(names.mac.clone())))],
            },
        ],
    };
    let entry = comment(Rule::new(
        vec![Match::InputLink(pair.host.as_str().to_owned())],
        Verdict::Jump(names.iface.clone()),
    ));
    let install = |nft: &mut Nftables| {
        nft.replace_rules(&base, PREROUTING, |text| text == names.comment, std::slice::from_ref(&entry))
    };
    Nftables::open()
        .and_then(|mut nft| install(&mut nft))
        .map_err(|error| Error::internal(format!("failed to setup spoof-check: {error}")))
}

/// Takes the rules of an attachment away.
pub(super) fn remove(request: &Request) -> Result<(), Error> {
    let names = Names::of(request);
    let remove = |nft: &mut Nftables| -> Result<(), KernelError> {
        nft.remove_rules(&table(), &[PREROUTING], |text| text == names.comment)?;
        nft.remove_chains(&table(), &[&names.iface, &names.mac])
    };
    Nftables::open()
        .and_then(|mut nft| remove(&mut nft))
        .map_err(|error| Error::internal(format!("failed to tear down spoof-check: {error}")))
}

fn table() -> TableName {
    TableName { family: Family::Bridge, name: "nat".to_owned() }
}

/// The names that belong to one attachment.
struct Names {
    iface: String,
    mac: String,
    comment: String,
}

impl Names {
    fn of(request: &Request) -> Names {
        let id = format!("{}-{}", request.environment.container_id, request.environment.ifname);
        Names {
            iface: format!("cni-br-iface-{id}"),
            mac: format!("cni-br-iface-{id}-mac"),
            comment: format!("macspoofchk-{id}"),
        }
    }
}
