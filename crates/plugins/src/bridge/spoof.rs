//! Dropping frames that a pod sends under another Ethernet address than its own.
//!
//! Compatibility: table, chains, comments and order are those of the reference plugin, so that either
//! program finds what the other one made.

use cni::{Error, Request};
use fabric::firewall::{
    Chain, ChainKind, Family, Hook, HookPoint, Match, Policy, Rule, Table, TableName, Verdict,
};
use kernel::netlink::Socket;
use kernel::nftables::Nftables;
use kernel::{KernelError, link};

use crate::masquerade::close_later;
use crate::veth::Pair;

const PREROUTING: &str = "PREROUTING";
/// What the comments of all rules begin with.
const COMMENT: &str = "macspoofchk-";

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
    let mut nft = Nftables::open().map_err(failed_removal)?;
    let removed = Names::of(request).remove(&mut nft);
    close_later(nft);
    removed.map_err(failed_removal)
}

/// Takes away the rules of all attachments whose device is gone, whatever their network is: nothing can
/// come in by it, and no other attachment's device gets its name.
pub(super) fn remove_unused(host: &mut Socket) -> Result<(), Error> {
    let mut nft = match Nftables::open() {
        Ok(nft) => nft,
        // Then there are none.
        Err(_) => return Ok(()),
    };
    let rules = nft.rules(&table(), PREROUTING).map_err(failed_removal)?;
    let entries = rules.iter().filter_map(|placed| {
        let id = placed.rule.comment.as_deref()?.strip_prefix(COMMENT)?;
        let device = placed.rule.matches.iter().find_map(|condition| match condition {
            Match::InputLink(name) => Some(name),
            _ => None,
        })?;
        Some((id, device))
    });
    // Devices after the rules, since an attachment's device is there first.
    let links = link::list(host).map_err(failed_removal)?;
    let unused = entries.filter(|(_, device)| !links.iter().any(|link| link.name.as_str() == *device));
    let removed = unused.map(|(id, _)| Names::of_id(id).remove(&mut nft)).fold(Ok(()), Result::and);
    close_later(nft);
    removed.map_err(failed_removal)
}

fn failed_removal(error: KernelError) -> Error {
    Error::internal(format!("failed to tear down spoof-check: {error}"))
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
        Names::of_id(&format!("{}-{}", request.environment.container_id, request.environment.ifname))
    }

    fn of_id(id: &str) -> Names {
        Names {
            iface: format!("cni-br-iface-{id}"),
            mac: format!("cni-br-iface-{id}-mac"),
            comment: format!("{COMMENT}{id}"),
        }
    }

    fn remove(&self, nft: &mut Nftables) -> Result<(), KernelError> {
        let chains = [self.iface.as_str(), self.mac.as_str()];
        nft.remove_chains(&table(), &chains, PREROUTING, |text| text == self.comment)
    }
}
