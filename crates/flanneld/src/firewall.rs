//! What of the firewall is in the way and not ours to change: told, with what would help.
//!
//! An `accept` in our table does not undo a `drop` in somebody else's. Of iptables' `FORWARD` we know
//! how to be let through; of other chains that drop by default (firewalld's, an administrator's)
//! only their owners know how they are kept. A table of which any rule is about our network is
//! taken to have been told of it.

use std::convert::Infallible;
use std::time::Duration;

use fabric::firewall::Family;
use ipnet::IpNet;
use kernel::KernelError;
use kernel::nftables::{DroppingChain, Nftables};
use tokio::sync::watch;

use crate::board::{Board, Step};

/// How seldom is looked: all chains of the host are listed for it.
const SELDOM: Duration = Duration::from_secs(10);

/// What is in the way, and what would help.
pub type Finding = (String, String);

/// Says in the status what is in the way, until dropped: looks once the node stands, and whenever the
/// firewall has changed, but seldom.
pub async fn report(
    mut look: impl AsyncFnMut() -> anyhow::Result<Vec<Finding>>,
    mut changed: watch::Receiver<u64>,
    board: &Board,
) -> Infallible {
    board.wait_for(Step::Node).await;
    let mut known = Vec::new();
    loop {
        changed.mark_unchanged();
        match look().await {
            Ok(findings) => {
                for (what, remedy) in findings.iter().filter(|finding| !known.contains(*finding)) {
                    tracing::warn!(remedy, "{what}");
                }
                board.failing("firewall", findings.iter().cloned());
                known = findings;
            }
            Err(error) => tracing::debug!("cannot look for chains that drop forwarded packets: {error:#}"),
        }
        tokio::time::sleep(SELDOM).await;
        if changed.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Looks off the loop, for it takes a while on a host with many rules.
pub async fn look(networks: Vec<IpNet>) -> anyhow::Result<Vec<Finding>> {
    Ok(tokio::task::spawn_blocking(move || dropping(&networks)).await??)
}

fn dropping(networks: &[IpNet]) -> Result<Vec<Finding>, KernelError> {
    let mut nftables = Nftables::open()?;
    let mut findings = Vec::new();
    for chain in nftables.dropping_chains()? {
        let mut cut_off = Vec::new();
        for network in networks.iter().filter(|network| sees(chain.table.family, network)) {
            if !nftables.mentions(&chain.table, network)? {
                cut_off.push(*network);
            }
        }
        if !cut_off.is_empty() {
            findings.push(finding(&chain, &cut_off));
        }
    }
    Ok(findings)
}

fn sees(family: Family, network: &IpNet) -> bool {
    match family {
        Family::Ipv4 => network.addr().is_ipv4(),
        Family::Ipv6 => network.addr().is_ipv6(),
        Family::Inet => true,
        Family::Bridge => false,
    }
}

fn finding(chain: &DroppingChain, cut_off: &[IpNet]) -> Finding {
    let names: Vec<_> = cut_off.iter().map(IpNet::to_string).collect();
    let what = format!("{chain}, and nothing that flannel writes undoes that for {}", names.join(", "));
    let commands: Vec<String> = if chain.table.name == "firewalld" {
        let add = |net: &String| format!("firewall-cmd --permanent --zone=trusted --add-source={net}");
        names.iter().map(add).chain(["firewall-cmd --reload".to_owned()]).collect()
    } else {
        let rule = |net: &IpNet, direction: &str| {
            let family = if net.addr().is_ipv4() { "ip" } else { "ip6" };
            format!("nft insert rule {} {} {family} {direction} {net} accept", chain.table, chain.chain)
        };
        cut_off.iter().flat_map(|net| [rule(net, "saddr"), rule(net, "daddr")]).collect()
    };
    (what, format!("let its owner accept the pod network: {}", commands.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use fabric::firewall::TableName;
    use kernel::nftables::DropsBy;

    fn chain(family: Family, table: &str) -> DroppingChain {
        let table = TableName { family, name: table.to_owned() };
        DroppingChain { table, chain: "forward".to_owned(), by: DropsBy::Policy }
    }

    #[test]
    fn the_remedy_is_what_the_owner_of_the_chain_would_type() {
        let nets: Vec<IpNet> = ["10.5.0.0/16", "fd00::/48"].map(|net| net.parse().unwrap()).to_vec();
        let (what, remedy) = finding(&chain(Family::Inet, "mine"), &nets);
        assert!(what.contains("chain forward of nftables table inet mine drops forwarded packets by policy"));
        assert!(remedy.contains("nft insert rule inet mine forward ip saddr 10.5.0.0/16 accept"), "{remedy}");
        assert!(remedy.contains("nft insert rule inet mine forward ip6 daddr fd00::/48 accept"), "{remedy}");
        let (_, remedy) = finding(&chain(Family::Inet, "firewalld"), &nets[..1]);
        assert!(remedy.ends_with("--add-source=10.5.0.0/16; firewall-cmd --reload"), "{remedy}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_firewall_that_changes_all_the_time_is_looked_at_seldom() {
        let (board, changes) = (Board::new("a test"), watch::Sender::new(0));
        let looks = std::cell::Cell::new(0);
        let look = async || {
            looks.set(looks.get() + 1);
            let finding = ("it drops".to_owned(), "let it accept".to_owned());
            Ok(if looks.get() == 1 { vec![finding] } else { vec![] })
        };
        let failures = || board.subscribe().borrow().failures.len();
        let story = async {
            tokio::time::sleep(Duration::from_secs(60)).await;
            assert_eq!(looks.get(), 0, "not before the node stands");
            board.done(Step::Node);
            tokio::time::sleep(Duration::from_secs(60)).await;
            assert_eq!((looks.get(), failures()), (1, 1), "nothing changes");
            for _ in 0..300 {
                changes.send_modify(|count| *count += 1);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            assert_eq!(failures(), 0);
            assert!((3..=5).contains(&looks.get()), "{} looks", looks.get());
        };
        tokio::select! {
            never = report(look, changes.subscribe(), &board) => match never {},
            () = story => {}
        }
    }
}
