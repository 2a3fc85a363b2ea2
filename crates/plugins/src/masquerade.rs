//! Giving packets that leave a pod's network the node's address, where flanneld does not.
//!
//! Rules of nftables, over netlink. Rules of iptables are made only if asked for or if the kernel has no
//! nftables, but always taken away: a pod may have been attached by the reference plugin.
//!
//! Compatibility: tables, chains, rules and comments are those of the reference plugin, so that either
//! program takes away what the other one made.

mod iptables;

use std::os::fd::{AsFd as _, AsRawFd as _};
use std::thread;
use std::time::Duration;

use cni::json::Object;
use cni::{Attachment, Error, Request};
use fabric::firewall::{
    Chain, ChainKind, Family, Hook, HookPoint, Is, Match, Policy, Rule, SourcePorts, Table, TableName,
    Verdict, priority,
};
use ipnet::IpNet;
use kernel::nftables::Nftables;
use kernel::{KernelError, process};
use rustix::pipe::PipeFlags;
use rustix::time::ClockId;
use sha2::{Digest as _, Sha512};

pub(crate) use self::iptables::{IptablesTrace, iptables_traces};

/// How packets that leave the node are given its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backend {
    /// Rules of nftables, or of iptables where the kernel has no nftables.
    Automatic,
    /// Rules of iptables, made by running it.
    Iptables,
    /// Rules of nftables.
    Nftables,
}

impl Backend {
    /// What the configuration wants (`ipMasqBackend`).
    pub(crate) fn of(config: &Object<'_>) -> Result<Backend, Error> {
        match config.string("ipMasqBackend")? {
            None => Ok(Backend::Automatic),
            Some("iptables") => Ok(Backend::Iptables),
            Some("nftables") => Ok(Backend::Nftables),
            Some(other) => Err(Error::internal(format!("unknown ipmasq backend {other:?}"))
                .details("ipMasqBackend can be \"iptables\", \"nftables\", or left out")),
        }
    }
}

/// The chain that holds a rule per address.
const CHAIN: &str = "masq_checks";

/// The longest comment that nft takes.
const COMMENT_LENGTH: usize = 128;

/// Masquerades what the addresses send out of their network.
pub(crate) fn install(backend: Backend, request: &Request, addresses: &[IpNet]) -> Result<(), Error> {
    let failed = |error: KernelError| Error::internal(format!("failed to set up ip masquerading: {error}"));
    let nftables = || install_nftables(request, addresses);
    let iptables = || iptables::install(request, addresses);
    match backend {
        Backend::Nftables => nftables(),
        Backend::Iptables => iptables(),
        Backend::Automatic => nftables().or_else(|error| iptables().map_err(|_| error)),
    }
    .map_err(failed)
}

/// Takes the rules of an attachment away. `addresses` are those it had, none if that is not known.
pub(crate) fn remove(request: &Request, traces: &[IptablesTrace], addresses: &[IpNet]) -> Result<(), Error> {
    let failed =
        |error: KernelError| Error::internal(format!("failed to tear down ip masquerading: {error}"));
    let own = instance(request.config.name(), &request.environment.ifname, &request.environment.container_id);
    let nftables = match Nftables::open() {
        Ok(mut nft) => {
            let removed = nft.remove_rules(&table_name(), &[CHAIN], |comment| comment.starts_with(&own));
            close_later(nft);
            removed
        }
        // Then there are none.
        Err(_) => Ok(()),
    };
    for trace in traces {
        trace.remove(addresses).map_err(failed)?;
    }
    nftables.map_err(failed)
}

/// How long the kernel usually takes until no packet can be in a replaced rule any more (an RCU grace
/// period).
const GRACE: Duration = Duration::from_millis(50);

/// At which moments sockets are closed: whenever this long has passed since the host was started.
const BEAT: Duration = Duration::from_secs(1);

/// Leaves it to a process of its own to be the last that closes the socket: the kernel then waits until
/// no packet can be in a replaced rule any more, which changes nothing for anybody: the transaction is
/// done. While it waits, nobody else in the namespace can change rules (`nft_rcv_nl_event`). So all such
/// processes wait for the same moment, by which their own rules are gone in all likelihood: the first of
/// them then waits for what others have just replaced, at most, and none after it.
pub(crate) fn close_later(nft: Nftables) {
    let Ok((read, _write)) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC) else { return };
    // The other process has a copy of the socket, and none of the pipe's end that is to be closed.
    let kept = [nft.as_fd().as_raw_fd(), read.as_raw_fd()];
    let _ = process::detach(&kept, || {
        // Ends when this process has closed its own.
        let closed = rustix::io::read(&read, &mut [0]).is_ok();
        let now = rustix::time::clock_gettime(ClockId::Monotonic);
        let now = Duration::try_from(now).unwrap_or_default();
        thread::sleep(until_closing(now));
        closed
    });
    drop(nft);
}

/// How long to wait from a moment until the sockets of this and other processes are closed.
fn until_closing(now: Duration) -> Duration {
    let past = (now + GRACE).as_nanos() % BEAT.as_nanos();
    let rest = BEAT.saturating_sub(Duration::from_nanos(u64::try_from(past).unwrap_or_default()));
    GRACE + rest
}

/// Takes away the rules of all attachments of this network that are not listed.
pub(crate) fn keep_only(request: &Request, valid: &[Attachment]) -> Result<(), Error> {
    let network = request.config.name();
    let of_network = format!("{}-", hash(network));
    let kept: Vec<String> = valid.iter().map(|a| instance(network, &a.ifname, &a.container_id)).collect();
    let is_stale =
        |comment: &str| comment.starts_with(&of_network) && !kept.iter().any(|own| comment.starts_with(own));
    let mut nft = Nftables::open().ok();
    let nftables = match &mut nft {
        Some(nft) => nft.remove_rules(&table_name(), &[CHAIN], is_stale),
        // Then there are none.
        None => Ok(()),
    };
    let iptables = iptables::keep_only(nft.as_mut(), network, valid);
    if let Some(nft) = nft {
        close_later(nft);
    }
    nftables
        .and(iptables)
        .map_err(|error| Error::internal(format!("failed to tear down stale ip masquerading: {error}")))
}

/// Whether the rules of an attachment are there, made by either backend.
pub(crate) fn is_installed(request: &Request, addresses: &[IpNet]) -> Result<bool, Error> {
    let own = instance(request.config.name(), &request.environment.ifname, &request.environment.container_id);
    let rules = Nftables::open().and_then(|mut nft| nft.rules(&table_name(), CHAIN));
    let count = rules.map_or(0, |rules| {
        let is_own = |comment: &String| comment.starts_with(&own);
        rules.iter().filter(|placed| placed.rule.comment.as_ref().is_some_and(is_own)).count()
    });
    Ok(count >= addresses.len() || !iptables_traces(request).is_empty())
}

fn install_nftables(request: &Request, addresses: &[IpNet]) -> Result<(), KernelError> {
    let environment = &request.environment;
    let (network, ifname, id) = (request.config.name(), &environment.ifname, &environment.container_id);
    let own = instance(network, ifname, id);
    let mut comment = format!("{own}, net: {network}, if: {ifname}, id: {id}").replace('"', "");
    while comment.len() > COMMENT_LENGTH {
        comment.pop();
    }
    let rules: Vec<Rule> = addresses
        .iter()
        .map(|net| {
            let source = Match::Source(Is::Equal, IpNet::from(net.addr()));
            let elsewhere = Match::Destination(Is::NotEqual, net.trunc());
            Rule::new(vec![source, elsewhere], Verdict::Masquerade(SourcePorts::Kept))
                .comment(comment.clone())
        })
        .collect();
    let mut nft = Nftables::open()?;
    let mut frame = frame();
    // Where it stands already it is not written again: replacing rules costs the kernel a grace period,
    // during which nobody else can change any.
    let stands = |chain: &Chain, nft: &mut Nftables| -> Result<bool, KernelError> {
        let present = nft.rules(&table_name(), &chain.name)?;
        Ok(present.iter().map(|placed| &placed.rule).eq(&chain.rules))
    };
    if let Some(entry) = frame.chains.iter().find(|chain| chain.hook.is_some())
        && stands(entry, &mut nft)?
    {
        frame.chains.clear();
    }
    let installed = nft.replace_rules(&frame, CHAIN, |comment| comment.starts_with(&own), &rules);
    close_later(nft);
    installed
}

fn table_name() -> TableName {
    TableName { family: Family::Inet, name: "cni_plugins_masquerade".to_owned() }
}

/// The table without the rules of addresses.
fn frame() -> Table {
    let multicast = |net: &str| {
        let net = net.parse().expect("a network");
        Rule::new(vec![Match::Destination(Is::Equal, net)], Verdict::Return)
    };
    Table {
        name: table_name(),
        comment: Some("Masquerading for plugins from github.com/containernetworking/plugins".to_owned()),
        chains: vec![
            Chain {
                name: CHAIN.to_owned(),
                hook: None,
                comment: Some(
                    "Masquerade traffic from certain IPs to any (non-multicast) IP outside their subnet"
                        .to_owned(),
                ),
                rules: Vec::new(),
            },
            Chain {
                name: "postrouting".to_owned(),
                hook: Some(Hook {
                    kind: ChainKind::Nat,
                    point: HookPoint::Postrouting,
                    priority: priority::SRCNAT,
                    policy: Policy::Accept,
                }),
                comment: None,
                rules: vec![
                    multicast("224.0.0.0/4"),
                    multicast("ff00::/8"),
                    Rule::new(Vec::new(), Verdict::Goto(CHAIN.to_owned())),
                ],
            },
        ],
    }
}

/// What the comments of an attachment's rules begin with.
fn instance(network: &str, ifname: &str, container_id: &str) -> String {
    format!("{}-{}", hash(network), hash(&format!("{ifname}:{container_id}")))
}

fn hash(text: &str) -> String {
    hex(text, 16)
}

/// The first digits of the SHA-512 of a text.
fn hex(text: &str, digits: usize) -> String {
    let mut hex: String =
        Sha512::digest(text.as_bytes()).iter().map(|octet| format!("{octet:02x}")).collect();
    hex.truncate(digits);
    hex
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_closed_together() {
        let closed = |milliseconds| {
            let now = Duration::from_millis(milliseconds);
            (now + until_closing(now)).as_millis()
        };
        assert_eq!([closed(7_001), closed(7_500), closed(7_949)], [8_000; 3]);
        // Too late for that one.
        assert_eq!([closed(7_951), closed(8_000)], [9_000; 2]);
    }

    #[test]
    fn comments_begin_as_the_reference_plugin_begins_them() {
        assert_eq!(instance("unit-test", "eth0", "one"), "6fd94d501e58f0aa-287fc69eff0574a2");
    }

    #[test]
    fn the_frame_reads_as_the_reference_plugin_writes_it() {
        let expected = "table inet cni_plugins_masquerade {\n\
            \tcomment \"Masquerading for plugins from github.com/containernetworking/plugins\"\n\
            \tchain masq_checks {\n\
            \t\tcomment \"Masquerade traffic from certain IPs to any (non-multicast) IP outside their subnet\"\n\
            \t}\n\n\
            \tchain postrouting {\n\
            \t\ttype nat hook postrouting priority srcnat; policy accept;\n\
            \t\tip daddr 224.0.0.0/4 return\n\
            \t\tip6 daddr ff00::/8 return\n\
            \t\tgoto masq_checks\n\
            \t}\n}\n";
        assert_eq!(frame().to_string(), expected);
    }
}
