//! The loop on a kernel in memory, with the clock paused: hours pass in milliseconds.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, mpsc};

use fabric::Mac;
use fabric::backend::VtepMacs;
use fabric::config::NetworkConfig;
use fabric::dataplane::{Change, Route};
use fabric::firewall::SourcePorts;
use fabric::host::{ExternalInterface, Host};
use fabric::lease::{Attributes, Lease, Subnets};
use fabric::ownership;
use fabric::plan::{Masquerade, Options};
use fabric::status::Status;
use kernel::fake::Fake;
use rustix::io::Errno;

use super::*;

const INTERVAL: Duration = Duration::from_secs(10);

/// A node whose reconciler runs as a task, and all that it listens to.
struct Bench {
    kernel: Fake,
    intent: watch::Sender<Option<Intent>>,
    leases: watch::Sender<Option<LeaseSet>>,
    kernel_changed: watch::Sender<Heard>,
    board: Board,
    task: tokio::task::JoinHandle<()>,
}

impl Bench {
    fn start(remembered: Option<LeaseSet>) -> Bench {
        Bench::on(kernel(), remembered)
    }

    fn on(kernel: Fake, remembered: Option<LeaseSet>) -> Bench {
        Bench::with(kernel, remembered, vec![])
    }

    fn after_networks(kernel: Fake, former_networks: Vec<IpNet>) -> Bench {
        Bench::with(kernel, None, former_networks)
    }

    fn with(kernel: Fake, remembered: Option<LeaseSet>, former_networks: Vec<IpNet>) -> Bench {
        Bench::through((kernel.clone(), kernel.clone()), kernel, remembered, former_networks)
    }

    fn through<K: Kernel + Send + 'static>(
        handles: (K, K),
        kernel: Fake,
        remembered: Option<LeaseSet>,
        former_networks: Vec<IpNet>,
    ) -> Bench {
        let (intent, leases, kernel_changed) =
            (watch::Sender::new(Some(intent())), watch::Sender::new(None), watch::Sender::default());
        let board = Board::new("a test");
        let inputs = Inputs {
            intent: intent.subscribe(),
            leases: leases.subscribe(),
            remembered,
            former_networks,
            kernel_changed: kernel_changed.subscribe(),
        };
        let manner = Manner { interval: INTERVAL, next_hop_objects: true };
        let mut reconciler = Reconciler::new(handles, inputs, manner, board.clone());
        let task = tokio::spawn(async move { reconciler.run().await });
        Bench { kernel, intent, leases, kernel_changed, board, task }
    }

    fn lease(&self, leases: impl IntoIterator<Item = Lease>) {
        self.leases.send_replace(Some(leases.into_iter().chain([own()]).collect()));
    }

    /// Somebody interferes, and the kernel says so.
    fn disturb(&self, how: impl FnOnce(&Fake)) {
        how(&self.kernel);
        self.kernel_changed.send_modify(|heard| heard.of_others += 1);
    }

    /// The pod subnets with a route through our device.
    fn routed(&self) -> Vec<String> {
        let state = self.kernel.state();
        let ours = state.routes.iter().filter(|route| route.protocol == ownership::ROUTE_PROTOCOL);
        ours.map(|route| route.destination.to_string()).collect()
    }

    fn status(&self) -> Status {
        self.board.subscribe().borrow().clone()
    }

    fn is_done(&self, step: Step) -> bool {
        let mut waiting = std::pin::pin!(self.board.wait_for(step));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        waiting.as_mut().poll(&mut context).is_ready()
    }
}

async fn pass_time(time: Duration) {
    tokio::time::sleep(time).await;
}

const MOMENT: Duration = Duration::from_millis(1);

fn kernel() -> Fake {
    let kernel = Fake::new();
    kernel.add_device("eth0".parse().unwrap(), 1500, &["192.0.2.1/24".parse().unwrap()]);
    kernel
}

fn intent() -> Intent {
    let config = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;
    let ip = Some(Ipv4Addr::new(192, 0, 2, 1));
    let external = ExternalInterface {
        link: "eth0".parse().unwrap(),
        mtu: 1500,
        ipv4: ip,
        ipv6: None,
        public_ipv4: ip,
        public_ipv6: None,
    };
    Intent {
        config: NetworkConfig::from_json(config).unwrap(),
        options: Options {
            masquerade: Masquerade {
                ipv4: true,
                ipv6: false,
                except: vec![],
                source_ports: SourcePorts::FullyRandom,
            },
            forward_rules: true,
            blackhole_route: false,
            instance: fabric::instance::Instance::default(),
        },
        host: Host::new(external, own().subnets),
        macs: VtepMacs { ipv4: Some(Mac([2, 0, 0, 0, 0, 1])), ipv6: None },
    }
}

fn own() -> Lease {
    node(1)
}

/// The lease of the node 192.0.2.x, or of 192.0.3.x and so on beyond 200.
fn node(number: u16) -> Lease {
    let (high, low) = (number / 200, number % 200);
    let json = format!(
        r#"{{"PublicIP":"192.0.{}.{}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:{high:02x}:{low:02x}"}}}}"#,
        2 + high,
        low + 1 - u16::from(high == 0),
    );
    Lease {
        subnets: Subnets::from_key(&format!("10.5.{}.{}-28", number / 16, number % 16 * 16)).unwrap(),
        attributes: Attributes::from_json(json.as_bytes()).unwrap(),
        created: u64::from(number),
    }
}

fn flannel() -> fabric::LinkName {
    "flannel.1".parse().unwrap()
}

#[tokio::test(start_paused = true)]
async fn nothing_is_touched_before_there_is_a_lease() {
    let bench = Bench::start(None);
    bench.intent.send_replace(None);
    pass_time(3 * INTERVAL).await;
    assert_eq!(bench.kernel.made(), []);
}

#[tokio::test(start_paused = true)]
async fn the_node_stands_before_its_peers_are_known_and_both_steps_are_told() {
    let bench = Bench::start(None);
    pass_time(MOMENT).await;
    assert!(bench.kernel.state().links.contains_key(&flannel()));
    assert!(bench.is_done(Step::Node) && !bench.is_done(Step::Peers));
    bench.lease([node(2), node(3)]);
    pass_time(MOMENT).await;
    assert_eq!(bench.routed(), ["10.5.0.32/28", "10.5.0.48/28"]);
    assert!(bench.is_done(Step::Peers));
    assert_eq!(bench.status().peers.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_no_lease_wants_is_removed_only_after_the_first_complete_list() {
    let bench = Bench::start(Some([own(), node(2), node(3)].into_iter().collect()));
    pass_time(3 * INTERVAL).await;
    assert_eq!(bench.routed().len(), 2, "those remembered are programmed");
    assert!(bench.is_done(Step::Peers));

    // A restart remembers less than there is: nobody has said that node 3 has left.
    bench.task.abort();
    let bench = Bench::on(bench.kernel, Some([own(), node(2)].into_iter().collect()));
    pass_time(3 * INTERVAL).await;
    assert_eq!(bench.routed().len(), 2);
    bench.lease([node(2)]);
    pass_time(MOMENT).await;
    assert_eq!(bench.routed(), ["10.5.0.32/28"]);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_takes_nobody_away() {
    let bench = Bench::start(None);
    bench.lease([node(2)]);
    pass_time(MOMENT).await;
    let made = bench.kernel.made().len();
    pass_time(Duration::from_secs(24 * 3600)).await;
    assert_eq!(bench.routed(), ["10.5.0.32/28"]);
    assert_eq!(bench.kernel.made().len(), made);
}

#[tokio::test(start_paused = true)]
async fn a_changed_lease_is_answered_at_once_and_checked_when_leases_are_quiet() {
    let bench = Bench::start(None);
    bench.lease([node(2)]);
    pass_time(Duration::from_secs(1)).await;
    let looks = bench.kernel.looks();
    for last in 3..=12 {
        bench.lease((2..=last).map(node));
        pass_time(MOMENT).await;
        assert_eq!(bench.routed().len(), usize::from(last) - 1, "the route is there at once");
    }
    assert_eq!(bench.kernel.looks(), looks, "without a look at the kernel");
    pass_time(crate::schedule::QUIET).await;
    assert_eq!(bench.kernel.looks(), looks + 1);
    assert_eq!(bench.status().peers.len(), 11);
    assert_eq!(bench.status().repairs, [], "our own changes are no repairs");

    bench.lease([node(3)]);
    pass_time(MOMENT).await;
    assert_eq!(bench.routed(), ["10.5.0.48/28"], "those who left are gone at once as well");
}

/// A handle of a kernel that, once a gate is put up, keeps who looks or makes changes waiting until the gate's
/// other end is dropped, or the test has failed.
#[derive(Clone)]
struct Gated(Fake, Arc<Mutex<Option<mpsc::Receiver<()>>>>);

impl Gated {
    fn new(fake: &Fake) -> Gated {
        Gated(fake.clone(), Arc::default())
    }

    fn close(&self) -> mpsc::Sender<()> {
        let (open, closed) = mpsc::channel();
        self.1.lock().unwrap().replace(closed);
        open
    }

    /// Waits until somebody stands before the gate.
    async fn reached(&self) {
        while self.1.lock().unwrap().is_some() {
            tokio::time::advance(MOMENT).await;
        }
    }

    fn pass(&self) {
        let gate = self.1.lock().unwrap().take();
        gate.map(|gate| gate.recv_timeout(Duration::from_secs(20)));
    }
}

impl Kernel for Gated {
    fn observe(&mut self, scope: &kernel::Scope) -> Result<dataplane::Observed, KernelError> {
        let seen = self.0.observe(scope);
        self.pass();
        seen
    }

    fn apply(&mut self, changes: &[Change]) -> Vec<Failure> {
        self.pass();
        self.0.apply(changes)
    }
}

#[tokio::test(start_paused = true)]
async fn leases_that_change_during_a_look_are_answered_at_once_and_have_the_last_word() {
    let fake = kernel();
    let eye = Gated::new(&fake);
    let bench = Bench::through((Gated::new(&fake), eye.clone()), fake, None, vec![]);
    bench.lease([node(2), node(3)]);
    pass_time(Duration::from_secs(1)).await;

    let open = eye.close();
    bench.disturb(|kernel| kernel.interfere(|state| state.neighbors.clear()));
    eye.reached().await;
    // The look has seen node 3, and not node 4.
    bench.lease([node(2), node(4)]);
    while bench.routed() != ["10.5.0.32/28", "10.5.0.64/28"] {
        tokio::task::yield_now().await;
    }
    drop(open);
    pass_time(MOMENT).await;
    let made = bench.kernel.made();
    let [.., last] = made.as_slice() else { panic!() };
    assert_eq!(
        last.to_string(),
        "ip neighbor replace 10.5.0.32 lladdr 02:00:00:00:00:02 dev flannel.1 nud permanent"
    );
    assert_eq!(bench.routed(), ["10.5.0.32/28", "10.5.0.64/28"]);
    pass_time(Duration::from_secs(2)).await;
    assert_eq!(bench.kernel.state().neighbors.len(), 2, "the next pass finds nothing amiss");
}

#[tokio::test(start_paused = true)]
async fn a_kernel_that_lets_us_wait_keeps_nothing_else_waiting_and_the_last_word_is_last() {
    let fake = kernel();
    let hand = Gated::new(&fake);
    let bench = Bench::through((hand.clone(), Gated::new(&fake)), fake, None, vec![]);
    bench.lease([node(2)]);
    pass_time(Duration::from_secs(1)).await;

    let open = hand.close();
    bench.lease([node(2), node(3)]);
    hand.reached().await;
    assert_eq!(bench.routed(), ["10.5.0.32/28"], "this runs beside the reconciler, which waits");
    bench.lease([node(2), node(4)]);
    bench.disturb(|kernel| kernel.interfere(|state| state.neighbors.clear()));
    tokio::time::advance(MOMENT).await;
    drop(open);
    pass_time(Duration::from_secs(2)).await;
    assert_eq!(bench.routed(), ["10.5.0.32/28", "10.5.0.64/28"], "the answer of before is taken back");
    assert_eq!(bench.kernel.state().neighbors.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn ending_waits_for_no_kernel_and_the_next_run_puts_right_what_was_left() {
    let fake = kernel();
    let hand = Gated::new(&fake);
    let mut bench = Bench::through((hand.clone(), Gated::new(&fake)), fake, None, vec![]);
    bench.lease([node(2)]);
    pass_time(Duration::from_secs(1)).await;

    let open = hand.close();
    bench.lease([node(2), node(3)]);
    hand.reached().await;
    bench.task.abort();
    assert!((&mut bench.task).await.unwrap_err().is_cancelled());
    assert_eq!(bench.routed(), ["10.5.0.32/28"], "what was begun is still waiting");
    drop(open);
    while bench.routed().len() < 2 {
        tokio::task::yield_now().await;
    }
    let next = Bench::on(bench.kernel, None);
    next.lease([node(2)]);
    pass_time(MOMENT).await;
    assert_eq!(next.routed(), ["10.5.0.32/28"]);
}

#[tokio::test(start_paused = true)]
async fn a_panic_at_the_kernel_ends_the_run() {
    let kernel = kernel();
    kernel.fail_when(Errno::INVAL, |change| panic!("a bug at `{change}`"));
    Bench::on(kernel, None).task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn many_new_leases_are_one_pass_with_next_hop_objects() {
    let bench = Bench::start(None);
    bench.lease([node(2)]);
    pass_time(Duration::from_secs(1)).await;
    let looks = bench.kernel.looks();
    bench.lease((2..=700).map(node));
    pass_time(MOMENT).await;
    assert_eq!(bench.kernel.looks(), looks + 1);
    assert_eq!(bench.kernel.state().next_hops.len(), 699);
    assert_eq!(bench.routed().len(), 699);

    bench.lease((2..=450).map(node));
    pass_time(INTERVAL * 2).await;
    assert_eq!(bench.kernel.state().next_hops.len(), 449, "it does not swing back at once");
    bench.lease((2..=300).map(node));
    pass_time(INTERVAL * 2).await;
    assert_eq!((bench.kernel.state().next_hops.len(), bench.routed().len()), (0, 299));
}

#[tokio::test(start_paused = true)]
async fn whatever_is_broken_is_put_right_within_a_second_and_reported() {
    let bench = Bench::start(None);
    bench.lease([node(2), node(3)]);
    pass_time(Duration::from_secs(1)).await;
    let good = bench.kernel.state();
    type Harm = fn(&Fake);
    let harms: [(&str, Harm, &str); 7] = [
        ("device deleted", |kernel| kernel.delete_link(flannel()), "ip link add flannel.1"),
        ("device down", |kernel| kernel.set_down(flannel()), "ip link set flannel.1 up"),
        (
            "routes lost",
            |kernel| {
                kernel.interfere(|state| state.routes.retain(|r| r.protocol != ownership::ROUTE_PROTOCOL))
            },
            "ip route replace",
        ),
        ("neighbors lost", |kernel| kernel.interfere(|state| state.neighbors.clear()), "ip neighbor replace"),
        ("forwarding lost", |kernel| kernel.interfere(|state| state.fdb.clear()), "bridge fdb replace"),
        (
            "rules flushed",
            |kernel| kernel.interfere(|state| state.tables.clear()),
            "nft replace table ip flannel-ipv4",
        ),
        (
            "another address",
            |kernel| {
                kernel.interfere(|state| {
                    state.links.get_mut(&flannel()).unwrap().mac = Some(Mac([2; 6]));
                })
            },
            "ip link set flannel.1 address",
        ),
    ];
    for (name, harm, repair) in harms {
        bench.disturb(harm);
        pass_time(Duration::from_secs(1)).await;
        let mut now = bench.kernel.state();
        for (link, is) in &mut now.links {
            is.index = good.links[link].index;
        }
        assert_eq!(now, good, "{name}");
        let repairs = bench.status().repairs;
        assert!(repairs.iter().any(|r| r.change.starts_with(repair)), "{name}: {repairs:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_no_notification_told_is_found_by_the_clock() {
    let bench = Bench::start(None);
    bench.lease([node(2)]);
    pass_time(MOMENT).await;
    bench.kernel.delete_link(flannel());
    pass_time(INTERVAL.mul_f64(1.3)).await;
    assert_eq!(bench.routed(), ["10.5.0.32/28"]);
}

#[tokio::test(start_paused = true)]
async fn the_echo_of_our_own_changes_ends() {
    let bench = Bench::start(None);
    bench.lease([node(2)]);
    // A kernel that notifies of each change that is made, as the real one does.
    let (kernel, notify) = (bench.kernel.clone(), bench.kernel_changed.clone());
    tokio::spawn(async move {
        let mut heard = 0;
        loop {
            let made = kernel.made().len();
            if made != heard {
                heard = made;
                notify.send_modify(|heard| heard.of_others += 1);
            }
            tokio::time::sleep(MOMENT).await;
        }
    });
    pass_time(Duration::from_secs(5)).await;
    assert!(bench.kernel.looks() <= 4, "{} looks", bench.kernel.looks());
}

#[tokio::test(start_paused = true)]
async fn a_refused_change_keeps_no_other_from_being_made_and_is_tried_again() {
    let kernel = kernel();
    kernel.fail_when(Errno::INVAL, |change| change.to_string().starts_with("ip route replace 10.5.0.32/28"));
    let bench = Bench::on(kernel, None);
    bench.lease([node(2), node(3)]);
    pass_time(MOMENT).await;
    assert_eq!(bench.routed(), ["10.5.0.48/28"]);
    assert!(!bench.is_done(Step::Peers), "the first set of peers is not complete");
    let failures = bench.status().failures;
    assert_eq!(failures.len(), 1, "{failures:?}");
    assert!(failures[0].what.contains("ip route replace 10.5.0.32/28"), "{failures:?}");

    pass_time(Duration::from_secs(5)).await;
    assert!(
        bench.is_done(Step::Peers),
        "one peer that the kernel goes on refusing does not hold the node back"
    );
    bench.disturb(|kernel| kernel.interfere(|state| state.tables.clear()));
    pass_time(Duration::from_secs(1)).await;
    let repairs: Vec<_> = bench.status().repairs.into_iter().map(|repair| repair.change).collect();
    assert_eq!(repairs, ["nft replace table ip flannel-ipv4"], "a refusal is no repair, and hides none");
    bench.kernel.heal();
    pass_time(INTERVAL * 2).await;
    assert_eq!(bench.routed().len(), 2);
    assert_eq!(bench.status().failures, []);
}

#[tokio::test(start_paused = true)]
async fn a_node_whose_device_cannot_be_made_is_not_ready_and_says_why() {
    let kernel = kernel();
    kernel.fail_when(Errno::OPNOTSUPP, |change| matches!(change, Change::CreateLink(_)));
    let bench = Bench::on(kernel, None);
    bench.lease([node(2)]);
    pass_time(INTERVAL * 5).await;
    assert!(!bench.is_done(Step::Node) && !bench.is_done(Step::Peers));
    let failures = bench.status().failures;
    assert!(failures.iter().any(|failure| failure.remedy.contains("modprobe vxlan")), "{failures:?}");
    bench.kernel.heal();
    pass_time(INTERVAL * 2).await;
    assert!(bench.is_done(Step::Node) && bench.is_done(Step::Peers));
}

#[tokio::test(start_paused = true)]
async fn a_kernel_that_cannot_be_observed_is_asked_again() {
    let kernel = kernel();
    kernel.fail_looks(3);
    let bench = Bench::on(kernel, None);
    bench.lease([node(2)]);
    pass_time(MOMENT).await;
    assert_eq!(bench.status().failures.len(), 1);
    pass_time(Duration::from_secs(3)).await;
    assert_eq!(bench.routed(), ["10.5.0.32/28"]);
    assert_eq!(bench.status().failures, []);
}

#[tokio::test(start_paused = true)]
async fn a_moved_address_takes_device_and_peers_along() {
    let bench = Bench::start(None);
    bench.lease([node(2)]);
    pass_time(Duration::from_secs(1)).await;
    let mut moved = intent();
    moved.host.external.ipv4 = Some([192, 0, 2, 77].into());
    moved.host.external.public_ipv4 = moved.host.external.ipv4;
    bench.intent.send_replace(Some(moved));
    pass_time(MOMENT).await;
    let state = bench.kernel.state();
    let kind = &state.links[&flannel()].kind;
    assert!(format!("{kind:?}").contains("192.0.2.77"), "{kind:?}");
    assert_eq!(bench.routed(), ["10.5.0.32/28"]);
    assert_eq!(bench.status().repairs, [], "what was asked for is no repair");
}

#[tokio::test(start_paused = true)]
async fn ending_leaves_everything_where_it_is() {
    let bench = Bench::start(None);
    bench.lease([node(2)]);
    pass_time(MOMENT).await;
    let before = bench.kernel.state();
    bench.task.abort();
    pass_time(INTERVAL).await;
    assert_eq!(bench.kernel.state(), before);
}

#[tokio::test(start_paused = true)]
async fn skipped_records_are_in_the_status() {
    let bench = Bench::start(None);
    let mut leases: LeaseSet = [own(), node(2)].into_iter().collect();
    leases.skipped.insert("subnets/rubbish".to_owned(), "names no pod subnet".to_owned());
    bench.leases.send_replace(Some(leases));
    pass_time(MOMENT).await;
    let skipped = bench.status().skipped;
    assert_eq!((skipped.len(), skipped[0].key.as_str()), (1, "subnets/rubbish"));
}

#[tokio::test(start_paused = true)]
async fn what_a_former_network_left_is_taken_away_once() {
    let old = Route {
        destination: "10.9.2.0/24".parse().unwrap(),
        metric: 0,
        target: dataplane::Target::Via(dataplane::NextHop {
            gateway: "192.0.2.2".parse().unwrap(),
            link: "eth0".parse().unwrap(),
            onlink: false,
        }),
        protocol: ownership::ROUTE_PROTOCOL,
    };
    let put_back = |kernel: &Fake| kernel.interfere(|state| assert!(state.routes.insert(old)));
    let kernel = kernel();
    put_back(&kernel);
    let bench = Bench::after_networks(kernel, vec!["10.9.0.0/16".parse().unwrap()]);
    pass_time(MOMENT).await;
    assert!(bench.kernel.state().routes.contains(&old), "not before the leases are known");
    bench.lease([node(2)]);
    pass_time(MOMENT).await;
    assert_eq!(bench.routed(), ["10.5.0.32/28"]);

    bench.disturb(put_back);
    pass_time(2 * INTERVAL).await;
    assert!(bench.kernel.state().routes.contains(&old), "another flannel's by now");
    assert_eq!(bench.status().repairs, []);
}

#[tokio::test(start_paused = true)]
async fn who_lost_to_a_rival_is_reached_at_once_when_it_leaves() {
    let bench = Bench::start(None);
    let mut rival = node(3);
    rival.subnets = Subnets::from_key("10.5.0.32-27").unwrap();
    rival.created = 1;
    bench.lease([node(2), rival]);
    pass_time(Duration::from_secs(1)).await;
    assert_eq!(bench.routed(), ["10.5.0.32/27"]);
    let looks = bench.kernel.looks();
    bench.lease([node(2)]);
    pass_time(MOMENT).await;
    assert_eq!((bench.routed(), bench.kernel.looks()), (vec!["10.5.0.32/28".to_owned()], looks));
}

#[tokio::test(start_paused = true)]
async fn a_setting_that_a_container_may_not_write_holds_nothing_back_and_is_no_failure() {
    let kernel = kernel();
    kernel.fail_when(Errno::ROFS, |change| matches!(change, Change::SetSysctl(..)));
    let bench = Bench::on(kernel, None);
    bench.lease([node(2)]);
    pass_time(MOMENT).await;
    assert!(bench.is_done(Step::Peers));
    pass_time(3 * INTERVAL).await;
    let status = bench.status();
    assert_eq!((status.failures, status.repairs), (vec![], vec![]));

    bench.kernel.heal();
    pass_time(2 * INTERVAL).await;
    assert!(bench.kernel.made().iter().any(|change| matches!(change, Change::SetSysctl(..))), "once it may");
}

#[tokio::test(start_paused = true)]
async fn what_keeps_the_whole_node_back_is_told_apart_from_what_keeps_a_peer() {
    let kernel = kernel();
    kernel.fail_when(Errno::OPNOTSUPP, |change| matches!(change, Change::CreateLink(_)));
    let bench = Bench::on(kernel, None);
    bench.lease([node(2)]);
    pass_time(MOMENT).await;
    let topics: Vec<_> = bench.status().failures.into_iter().map(|failure| failure.topic).collect();
    assert!(topics.contains(&"node".to_owned()), "{topics:?}");
    bench.kernel.heal();
    pass_time(INTERVAL).await;
    assert_eq!(bench.status().failures, vec![]);
}
