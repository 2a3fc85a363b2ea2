//! Ten thousand peers.

use std::time::Instant;

use fabric::dataplane::{Change, Prune, changes};
use kernel::{Kernel, link};

use crate::namespace;
use crate::underlay::{Way, add_peer, converge, name, open, ownership, scope, tunnels};

#[test]
fn ten_thousand_peers_are_applied_observed_and_removed() {
    if !namespace::enter(&[]) {
        return;
    }
    let mut linux = open();
    let mut wanted = tunnels();
    for peer in 0..10_000 {
        add_peer(&mut wanted, peer, 256 + peer, Way::Object);
    }
    let observed = linux.observe(&scope()).unwrap();
    let todo = changes(&wanted, &observed, &ownership(), Prune::Yes);
    let start = Instant::now();
    assert_eq!(linux.apply(&todo), []);
    let applied = start.elapsed();

    let start = Instant::now();
    let observed = linux.observe(&scope()).unwrap();
    let looked = start.elapsed();
    let left = changes(&wanted, &observed, &ownership(), Prune::Yes);
    assert_eq!(left, []);
    println!("{} changes in {applied:?}, one look in {looked:?}", todo.len());

    // Every answer is a refusal: none may be lost.
    let up = link::index(linux.socket(), name("flannel.1")).unwrap().unwrap();
    link::set_down(linux.socket(), up).unwrap();
    let refused: Vec<Change> =
        todo.iter().filter(|change| matches!(change, Change::SetRoute(_))).cloned().collect();
    assert_eq!(linux.apply(&refused).len(), 10_000);

    converge(&mut linux, &wanted);
    converge(&mut linux, &tunnels());
}
