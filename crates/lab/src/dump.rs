//! What everything looked like, for a person who must find out why a story failed.

use std::fmt::Write;
use std::fs;

use crate::laboratory::Lab;
use crate::namespace::Namespace;

impl Lab {
    /// Links, addresses, routes, next hops, neighbors, forwarding entries, firewall, status and log of
    /// every node, and the addresses and routes of every pod, as text.
    pub fn dump(&self) -> String {
        const NODE: [&str; 8] = [
            "ip -d -br link",
            "ip -br address",
            "ip -d route",
            "ip -6 -d route",
            "ip nexthop",
            "ip neighbor show nud permanent",
            "bridge fdb show",
            "nft list ruleset",
        ];
        const POD: [&str; 3] = ["ip -br address", "ip route", "ip -6 route"];
        let mut text = format!("==== lab {}\n", self.name());
        for node in self.nodes() {
            let running =
                node.pid().map_or("no flanneld runs".to_owned(), |pid| format!("flanneld is {pid}"));
            let _ = writeln!(text, "==== {}: {running}", node.name());
            for command in NODE {
                show(&mut text, node.namespace(), command);
            }
            for file in [node.files().subnet, node.files().status] {
                let content = fs::read_to_string(&file).unwrap_or_else(|error| error.to_string());
                let _ = writeln!(text, "-- {}\n{}", file.display(), content.trim_end());
            }
            let _ = writeln!(text, "-- {}, the last lines\n{}", node.log_file().display(), node.log_tail(60));
            let prefix = format!("{}-", node.namespace().name());
            for pod in Namespace::names(&prefix) {
                let Ok(namespace) = Namespace::existing(&pod) else { continue };
                let _ = writeln!(text, "==== {}: pod {}", node.name(), &pod[prefix.len()..]);
                for command in POD {
                    show(&mut text, &namespace, command);
                }
            }
        }
        text
    }
}

fn show(text: &mut String, namespace: &Namespace, command: &str) {
    let words: Vec<&str> = command.split(' ').collect();
    let printed = namespace.run(&words).unwrap_or_else(|error| format!("{error:#}"));
    let _ = writeln!(text, "-- {command}\n{}", printed.trim_end());
}
