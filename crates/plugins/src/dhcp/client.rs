//! [`Client`]: the DHCP client as a state machine, without sockets and clocks.
//!
//! Whoever drives it sends what [`Client::next`] says, waits until when it says, and hands over what
//! arrives meanwhile ([`Client::receive`]).
//!
//! Source: RFC 2131, sections 4.3 and 4.4. Compatibility: how often a message is sent again is the reference
//! plugin's way; the address of a lease that a server refused to prolong is asked for anew while it lasts.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use super::message::{self, Answer, Grant, Identity, Say};

/// A bridge may not forward yet what comes first from an interface that was just set up.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The first messages are sent again soon, the later ones after longer and longer pauses.
const SHORT_PAUSES: u32 = 4;
const SHORT_PAUSE: Duration = Duration::from_secs(2);
const LONGER_PAUSE: Duration = Duration::from_secs(4);
/// If a server does not say how long (reference plugin).
const DEFAULT_LIFETIME: Duration = Duration::from_secs(3600);

/// How patient a client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Timing {
    /// With a server that has offered an address and does not confirm it.
    pub(super) answer: Duration,
    /// The longest pause before a message is sent again.
    pub(super) longest_pause: Duration,
    /// Until there is an address.
    pub(super) patience: Duration,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Todo {
    /// Send this to everybody, from an address if there is one.
    Broadcast { message: Vec<u8>, from: Ipv4Addr },
    /// Send this to a server.
    Send { message: Vec<u8>, from: Ipv4Addr, to: Ipv4Addr },
    /// Nothing until then, unless something arrives.
    Wait(Instant),
    /// There is no address, or not any more.
    Lost(String),
}

/// A client of one interface.
#[derive(Debug)]
pub(super) struct Client {
    identity: Identity,
    timing: Timing,
    state: State,
    xid: u32,
    random: u64,
    /// How often the current message was sent, and when it is sent again.
    sent: u32,
    next: Instant,
}

#[derive(Debug, Clone)]
enum State {
    /// Looking for an address; after a refusal for the one that is in use.
    Selecting {
        held: Option<Binding>,
        until: Instant,
    },
    /// Taking what a server offered.
    Requesting {
        held: Option<Binding>,
        until: Instant,
        offer: Grant,
        confirm_until: Instant,
    },
    Bound(Binding),
    /// Asking the server of the lease.
    Renewing(Binding),
    /// Asking every server.
    Rebinding(Binding),
    Lost(String),
}

#[derive(Debug, Clone)]
struct Binding {
    grant: Grant,
    renew: Instant,
    rebind: Instant,
    expire: Instant,
}

impl Client {
    /// A client without an address that begins at once; `random` should differ between clients.
    pub(super) fn new(identity: Identity, timing: Timing, random: u64, now: Instant) -> Client {
        let state = State::Selecting { held: None, until: now + timing.patience };
        let mut client = Client { identity, timing, state, xid: 0, random: random | 1, sent: 0, next: now };
        client.begin(now);
        client
    }

    /// Who it is.
    pub(super) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The lease, while nothing has to be done about it.
    pub(super) fn bound(&self) -> Option<&Grant> {
        match &self.state {
            State::Bound(binding) => Some(&binding.grant),
            _ => None,
        }
    }

    /// What to do now.
    pub(super) fn next(&mut self, now: Instant) -> Todo {
        loop {
            let (say, wait_until) = match &self.state {
                State::Lost(reason) => return Todo::Lost(reason.clone()),
                State::Selecting { held, until } if now >= *until => {
                    self.state = State::Lost(match held {
                        Some(_) => "the lease has expired: a server refused to prolong it".to_owned(),
                        None => format!("no DHCP server gave an address within {:?}", self.timing.patience),
                    });
                    continue;
                }
                State::Requesting { held, until, confirm_until, .. } if now >= *confirm_until => {
                    self.state = State::Selecting { held: held.clone(), until: *until };
                    self.begin(now);
                    continue;
                }
                State::Bound(binding) if now >= binding.renew => {
                    self.state = State::Renewing(binding.clone());
                    self.begin(now);
                    continue;
                }
                State::Renewing(binding) if now >= binding.rebind => {
                    self.state = State::Rebinding(binding.clone());
                    self.begin(now);
                    continue;
                }
                State::Rebinding(binding) if now >= binding.expire => {
                    self.state = State::Lost("the lease has expired: no server prolonged it".to_owned());
                    continue;
                }
                State::Bound(binding) => return Todo::Wait(binding.renew),
                State::Selecting { held, until } => {
                    (Say::Discover(held.as_ref().map(|held| held.grant.address)), *until)
                }
                State::Requesting { offer, confirm_until, .. } => {
                    (Say::Request { address: offer.address, server: offer.server }, *confirm_until)
                }
                State::Renewing(binding) => (Say::Prolong { address: binding.grant.address }, binding.rebind),
                State::Rebinding(binding) => {
                    (Say::Prolong { address: binding.grant.address }, binding.expire)
                }
            };
            if now < self.next {
                return Todo::Wait(self.next.min(wait_until));
            }
            self.next = now + self.pause();
            self.sent += 1;
            let message = message::encode(&self.identity, self.xid, say);
            return match &self.state {
                State::Renewing(Binding { grant, .. }) => {
                    Todo::Send { message, from: grant.address, to: grant.server }
                }
                State::Rebinding(Binding { grant, .. }) => Todo::Broadcast { message, from: grant.address },
                _ => Todo::Broadcast { message, from: Ipv4Addr::UNSPECIFIED },
            };
        }
    }

    /// Takes a message that has arrived; whatever is not for this client is dropped.
    pub(super) fn receive(&mut self, now: Instant, bytes: &[u8]) {
        let Some(answer) = message::decode(&self.identity, self.xid, bytes) else { return };
        match (&self.state, answer) {
            (State::Selecting { held, until }, Answer::Offer(offer)) if is_same(held.as_ref(), &offer) => {
                let confirm_until = now + self.timing.answer;
                self.state = State::Requesting { held: held.clone(), until: *until, offer, confirm_until };
                // In the same exchange, but at once.
                (self.sent, self.next) = (0, now);
            }
            (State::Requesting { offer, .. }, Answer::Ack(grant)) if grant.address == offer.address => {
                self.state = State::Bound(Binding::new(grant, now));
            }
            (State::Requesting { held, until, .. }, Answer::Nak(_)) => {
                self.state = State::Selecting { held: held.clone(), until: *until };
                let pause = self.pause();
                self.begin(now);
                self.next = now + pause;
            }
            (State::Renewing(binding) | State::Rebinding(binding), Answer::Ack(grant))
                if grant.address == binding.grant.address =>
            {
                self.state = State::Bound(Binding::new(grant, now));
            }
            (State::Renewing(binding) | State::Rebinding(binding), Answer::Nak(_)) => {
                let until = binding.expire;
                self.state = State::Selecting { held: Some(binding.clone()), until };
                self.begin(now);
            }
            _ => {}
        }
    }

    /// What gives the lease back, if there is one, and the server it is for.
    pub(super) fn release(&mut self) -> Option<(Vec<u8>, Grant)> {
        let binding = match &self.state {
            State::Bound(binding) | State::Renewing(binding) | State::Rebinding(binding) => binding,
            State::Selecting { held, .. } | State::Requesting { held, .. } => held.as_ref()?,
            State::Lost(_) => return None,
        };
        let grant = binding.grant.clone();
        self.xid = self.draw() as u32;
        let say = Say::Release { address: grant.address, server: grant.server };
        Some((message::encode(&self.identity, self.xid, say), grant))
    }

    /// Begins a new exchange.
    fn begin(&mut self, now: Instant) {
        self.xid = self.draw() as u32;
        (self.sent, self.next) = (0, now);
    }

    /// The pause after a message, a second longer or shorter so that not all clients ask at once.
    fn pause(&mut self) -> Duration {
        if self.sent == 0 && matches!(self.state, State::Selecting { held: None, .. }) {
            return FIRST_PAUSE;
        }
        let pause = match self.sent.checked_sub(SHORT_PAUSES) {
            None => SHORT_PAUSE,
            Some(more) => LONGER_PAUSE.saturating_mul(1 << more.min(16)),
        };
        let jitter = Duration::from_millis(self.draw() % 2000);
        pause.min(self.timing.longest_pause.max(SHORT_PAUSE)) + jitter - Duration::from_secs(1)
    }

    /// xorshift64
    fn draw(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

/// Whether an offer can be used: an interface that has an address keeps that one.
fn is_same(held: Option<&Binding>, offer: &Grant) -> bool {
    held.is_none_or(|held| held.grant.address == offer.address)
}

impl Binding {
    fn new(grant: Grant, now: Instant) -> Binding {
        let lifetime = grant.lifetime.unwrap_or(DEFAULT_LIFETIME).max(Duration::from_secs(2));
        let rebind = grant.rebind_after.unwrap_or(lifetime * 85 / 100).min(lifetime);
        // A server that says 0 must not be asked without end.
        let renew = grant.renew_after.unwrap_or(lifetime / 2).min(rebind).max(Duration::from_secs(1));
        Binding { renew: now + renew, rebind: now + rebind.max(renew), expire: now + lifetime, grant }
    }
}

#[cfg(test)]
mod tests {
    use dhcproto::Decodable as _;
    use dhcproto::v4::{Message, MessageType};

    use super::super::message::tests::{identity, reply};
    use super::*;

    const TIMING: Timing = Timing {
        answer: Duration::from_secs(10),
        longest_pause: Duration::from_secs(62),
        patience: Duration::from_secs(208),
    };
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    fn kind(message: &[u8]) -> MessageType {
        Message::from_bytes(message).unwrap().opts().msg_type().unwrap()
    }

    fn broadcast(client: &mut Client, now: Instant) -> Vec<u8> {
        match client.next(now) {
            Todo::Broadcast { message, .. } => message,
            other => panic!("{other:?}"),
        }
    }

    /// A client with a lease of 100 s.
    fn bound(start: Instant) -> Client {
        let mut client = Client::new(identity(), TIMING, 42, start);
        let discover = broadcast(&mut client, start);
        assert_eq!(kind(&discover), MessageType::Discover);
        client.receive(start, &reply(&discover, MessageType::Offer, ADDRESS, 100));
        let request = broadcast(&mut client, start);
        assert_eq!(kind(&request), MessageType::Request);
        client.receive(start, &reply(&request, MessageType::Ack, ADDRESS, 100));
        assert_eq!(client.bound().unwrap().address, ADDRESS);
        assert_eq!(client.next(start), Todo::Wait(after(start, 50)));
        client
    }

    #[test]
    fn a_lease_is_renewed_at_its_server_after_half_of_its_time() {
        let start = Instant::now();
        let mut client = bound(start);
        let at = after(start, 50);
        let Todo::Send { message, from, to } = client.next(at) else { panic!() };
        assert_eq!((from, to), (ADDRESS, Ipv4Addr::new(10, 0, 0, 1)));
        assert_eq!(Message::from_bytes(&message).unwrap().ciaddr(), ADDRESS);
        client.receive(at, &reply(&message, MessageType::Ack, ADDRESS, 100));
        assert_eq!(client.next(at), Todo::Wait(after(start, 100)));
    }

    #[test]
    fn every_server_is_asked_before_the_lease_expires() {
        let start = Instant::now();
        let mut client = bound(start);
        assert!(matches!(client.next(after(start, 50)), Todo::Send { .. }));
        let at = after(start, 85);
        let Todo::Broadcast { message, from } = client.next(at) else { panic!() };
        assert_eq!((kind(&message), from), (MessageType::Request, ADDRESS));
        let mut other = Client { state: client.state.clone(), identity: identity(), ..bound(start) };
        client.receive(at, &reply(&message, MessageType::Ack, ADDRESS, 100));
        assert!(client.bound().is_some());
        assert!(matches!(other.next(after(start, 100)), Todo::Lost(why) if why.contains("expired")));
    }

    #[test]
    fn a_refused_lease_is_asked_for_anew_but_never_another_address() {
        let start = Instant::now();
        let mut client = bound(start);
        let at = after(start, 50);
        let Todo::Send { message, .. } = client.next(at) else { panic!() };
        client.receive(at, &reply(&message, MessageType::Nak, Ipv4Addr::UNSPECIFIED, 0));
        let discover = broadcast(&mut client, at);
        assert_eq!(kind(&discover), MessageType::Discover);
        client.receive(at, &reply(&discover, MessageType::Offer, Ipv4Addr::new(10, 0, 0, 10), 100));
        assert!(matches!(client.next(at), Todo::Wait(_)), "another address is no use");
        assert!(client.release().is_some(), "it is held until it expires");
        let mut client = bound(start);
        let Todo::Send { message, .. } = client.next(at) else { panic!() };
        client.receive(at, &reply(&message, MessageType::Nak, Ipv4Addr::UNSPECIFIED, 0));
        let discover = broadcast(&mut client, at);
        client.receive(at, &reply(&discover, MessageType::Offer, ADDRESS, 100));
        let request = broadcast(&mut client, at);
        client.receive(at, &reply(&request, MessageType::Ack, ADDRESS, 100));
        assert!(client.bound().is_some());
    }

    #[test]
    fn without_a_server_it_gives_up_in_time_and_does_not_flood() {
        let start = Instant::now();
        let mut client = Client::new(identity(), TIMING, 42, start);
        let (mut now, mut sent) = (start, 0);
        loop {
            match client.next(now) {
                Todo::Broadcast { message, .. } => {
                    assert_eq!(kind(&message), MessageType::Discover);
                    sent += 1;
                }
                Todo::Wait(until) => now = until,
                Todo::Lost(why) => {
                    assert_eq!(why, "no DHCP server gave an address within 208s");
                    break;
                }
                Todo::Send { .. } => panic!("there is no server to send to"),
            }
        }
        assert_eq!(now, after(start, 208));
        assert!((8..13).contains(&sent), "{sent}");
        assert!(client.release().is_none());
    }

    #[test]
    fn an_offer_that_is_not_confirmed_is_forgotten() {
        let start = Instant::now();
        let mut client = Client::new(identity(), TIMING, 42, start);
        let discover = broadcast(&mut client, start);
        client.receive(start, &reply(&discover, MessageType::Offer, ADDRESS, 100));
        assert_eq!(kind(&broadcast(&mut client, start)), MessageType::Request);
        assert_eq!(kind(&broadcast(&mut client, after(start, 10))), MessageType::Discover);
        let mut client = Client::new(identity(), TIMING, 42, start);
        let discover = broadcast(&mut client, start);
        client.receive(start, &reply(&discover, MessageType::Offer, ADDRESS, 100));
        let request = broadcast(&mut client, start);
        client.receive(start, &reply(&request, MessageType::Nak, Ipv4Addr::UNSPECIFIED, 0));
        assert!(matches!(client.next(start), Todo::Wait(_)), "it takes a breath");
        assert_eq!(kind(&broadcast(&mut client, after(start, 5))), MessageType::Discover);
    }
}
