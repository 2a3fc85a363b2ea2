//! A rule as the kernel's instructions, and back.
//!
//! The instructions are those that nft (1.0) writes, so that `nft list` prints our rules as if it had
//! made them: an address of a prefix on a byte boundary is loaded only as far as the prefix goes,
//! any other is masked; where a table sees more than one protocol, the protocol is compared first,
//! once per rule. Reading back knows the same forms and calls everything else [`Match::Foreign`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fabric::firewall::{Counted, Family, Is, Match, Rule, SourcePorts, Verdict};
use fabric::mac::Mac;
use ipnet::IpNet;

use super::expression::{Expression, Header, Key, verdict};

/// `NFPROTO_IPV4`, `NFPROTO_IPV6`: also the families of netfilter's address translation.
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
/// Ethernet types, as they are on the wire.
const ETHERTYPE_IPV4: [u8; 2] = 0x0800_u16.to_be_bytes();
const ETHERTYPE_IPV6: [u8; 2] = 0x86dd_u16.to_be_bytes();
/// `ARPHRD_ETHER`
const ARPHRD_ETHER: u16 = 1;
/// Where the link header has its source address.
const ETHER_SOURCE: Field = Field { header: Header::Link, offset: 6, length: 6 };
/// Where TCP, UDP and SCTP have the destination port.
const DESTINATION_PORT: Field = Field { header: Header::Transport, offset: 2, length: 2 };
/// `RTN_LOCAL`, what `fib daddr type local` compares with.
const RTN_LOCAL: u32 = 2;
/// `NF_NAT_RANGE_PROTO_SPECIFIED`: the translation names a port.
const NAT_RANGE_PROTO_SPECIFIED: u32 = 1 << 1;
/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY`
const NAT_RANGE_RANDOM_FULLY: u32 = 1 << 4;
/// `IFNAMSIZ`: link names are compared with their padding.
const LINK_NAME_SIZE: usize = 16;

/// The instructions of a rule in a table of `family`.
pub(crate) fn encode(family: Family, rule: &Rule) -> Vec<Expression> {
    let mut encoder = Encoder { family, protocol: None, ether: family == Family::Bridge, out: Vec::new() };
    for condition in &rule.matches {
        encoder.condition(condition);
    }
    if rule.counted == Counted::Yes {
        encoder.out.push(Expression::Counter);
    }
    encoder.verdict(&rule.verdict);
    encoder.out
}

/// The rule that these instructions make in a table of `family`; the comment is the caller's.
pub(crate) fn decode(family: Family, expressions: &[Expression]) -> Rule {
    let mut decoder = Decoder { family, protocol: None, ether: None, rest: expressions };
    decoder.rule()
}

/// Part of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Field {
    header: Header,
    offset: u32,
    length: u32,
}

/// The end of a packet's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Source,
    Destination,
}

/// Where the IP header has an address (RFC 791 §3.1, RFC 8200 §3).
fn address_field(end: End, address: IpAddr) -> Field {
    let (offset, length) = match (end, address) {
        (End::Source, IpAddr::V4(_)) => (12, 4),
        (End::Destination, IpAddr::V4(_)) => (16, 4),
        (End::Source, IpAddr::V6(_)) => (8, 16),
        (End::Destination, IpAddr::V6(_)) => (24, 16),
    };
    Field { header: Header::Network, offset, length }
}

/// Which IP version a table of this family sees, if it sees only one.
fn only_protocol(family: Family) -> Option<u8> {
    match family {
        Family::Ipv4 => Some(NFPROTO_IPV4),
        Family::Ipv6 => Some(NFPROTO_IPV6),
        Family::Inet | Family::Bridge => None,
    }
}

fn nfproto(address: IpAddr) -> u8 {
    if address.is_ipv4() { NFPROTO_IPV4 } else { NFPROTO_IPV6 }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// A prefix's mask as bytes.
fn mask(net: &IpNet) -> Vec<u8> {
    octets(net.netmask())
}

/// The test `FIELD & MASK is NETWORK` on whole addresses; also the form in which iptables-nft of all
/// versions reads a prefix.
pub(crate) fn masked_address(source: bool, is: Is, net: &IpNet) -> Vec<Expression> {
    let end = if source { End::Source } else { End::Destination };
    let field = address_field(end, net.addr());
    let mut expressions = vec![Expression::Payload(field.header, field.offset, field.length)];
    if net.prefix_len() < net.max_prefix_len() {
        expressions.push(Expression::Bitwise { mask: mask(net), xor: vec![0; field.length as usize] });
    }
    expressions.push(Expression::Compare(is, octets(net.network())));
    expressions
}

struct Encoder {
    family: Family,
    /// The IP version that earlier conditions of the rule made sure of.
    protocol: Option<u8>,
    /// Whether it is sure that there is an Ethernet header.
    ether: bool,
    out: Vec<Expression>,
}

impl Encoder {
    fn condition(&mut self, condition: &Match) {
        match condition {
            Match::Mark { mask, value } => {
                self.out.push(Expression::Load(Key::Mark));
                if let Some(mask) = mask {
                    self.out.push(Expression::Bitwise { mask: mask.to_ne_bytes().to_vec(), xor: vec![0; 4] });
                }
                self.compare(Is::Equal, &value.to_ne_bytes());
            }
            Match::Source(is, net) => self.address(End::Source, *is, net),
            Match::Destination(is, net) => self.address(End::Destination, *is, net),
            Match::EtherSource(mac) => {
                if !self.ether {
                    self.out.push(Expression::Load(Key::InputLinkType));
                    self.compare(Is::Equal, &ARPHRD_ETHER.to_ne_bytes());
                    self.ether = true;
                }
                self.load(ETHER_SOURCE);
                self.compare(Is::Equal, &mac.0);
            }
            Match::InputLink(name) => {
                self.out.push(Expression::Load(Key::InputLink));
                self.compare(Is::Equal, &padded(name));
            }
            Match::OutputLink(is, name) => {
                self.out.push(Expression::Load(Key::OutputLink));
                self.compare(*is, &padded(name));
            }
            Match::Protocol(number) => self.transport_protocol(*number),
            Match::DestinationPort(number, port) => {
                self.transport_protocol(*number);
                self.load(DESTINATION_PORT);
                self.compare(Is::Equal, &port.to_be_bytes());
            }
            Match::DestinationIsLocal => {
                self.out.push(Expression::DestinationType);
                self.compare(Is::Equal, &RTN_LOCAL.to_ne_bytes());
            }
            Match::ConnectionState(bits) => {
                self.out.push(Expression::ConnectionState);
                self.out.push(Expression::Bitwise { mask: bits.to_ne_bytes().to_vec(), xor: vec![0; 4] });
                self.compare(Is::NotEqual, &[0; 4]);
            }
            // Nobody wants what this program does not understand; written all the same, the kernel
            // refuses it by name.
            Match::Foreign(text) => self.out.push(Expression::Other(text.clone())),
        }
    }

    fn address(&mut self, end: End, is: Is, net: &IpNet) {
        let protocol = nfproto(net.addr());
        if self.protocol.or(only_protocol(self.family)) != Some(protocol) {
            if self.family == Family::Bridge {
                self.out.push(Expression::Load(Key::Protocol));
                self.compare(
                    Is::Equal,
                    if protocol == NFPROTO_IPV4 { &ETHERTYPE_IPV4 } else { &ETHERTYPE_IPV6 },
                );
            } else {
                self.out.push(Expression::Load(Key::NetfilterProtocol));
                self.compare(Is::Equal, &[protocol]);
            }
            self.protocol = Some(protocol);
        }
        let on_byte_boundary = net.prefix_len() > 0 && net.prefix_len().is_multiple_of(8);
        if on_byte_boundary {
            let length = net.prefix_len() / 8;
            self.load(Field { length: length.into(), ..address_field(end, net.addr()) });
            self.compare(is, &octets(net.network())[..length.into()]);
        } else {
            self.out.extend(masked_address(end == End::Source, is, net));
        }
    }

    fn transport_protocol(&mut self, number: u8) {
        self.out.push(Expression::Load(Key::TransportProtocol));
        self.compare(Is::Equal, &[number]);
    }

    fn verdict(&mut self, what: &Verdict) {
        let simple = |code| Expression::Verdict(code, None);
        match what {
            Verdict::Accept => self.out.push(simple(verdict::ACCEPT)),
            Verdict::Drop => self.out.push(simple(verdict::DROP)),
            Verdict::Return => self.out.push(simple(verdict::RETURN)),
            Verdict::Jump(chain) => self.out.push(Expression::Verdict(verdict::JUMP, Some(chain.clone()))),
            Verdict::Goto(chain) => self.out.push(Expression::Verdict(verdict::GOTO, Some(chain.clone()))),
            Verdict::Masquerade(SourcePorts::Kept) => self.out.push(Expression::Masquerade(0)),
            Verdict::Masquerade(SourcePorts::FullyRandom) => {
                self.out.push(Expression::Masquerade(NAT_RANGE_RANDOM_FULLY));
            }
            Verdict::DestinationNat(address, port) => self.out.extend([
                Expression::Value(1, octets(*address)),
                Expression::Value(2, port.to_be_bytes().to_vec()),
                Expression::DestinationNat(nfproto(*address).into(), NAT_RANGE_PROTO_SPECIFIED),
            ]),
            Verdict::SetMarkBits(bits) => self.out.extend([
                Expression::Load(Key::Mark),
                Expression::Bitwise {
                    mask: (!bits).to_ne_bytes().to_vec(),
                    xor: bits.to_ne_bytes().to_vec(),
                },
                Expression::SetMark,
            ]),
            Verdict::Continue => {}
        }
    }

    fn load(&mut self, field: Field) {
        self.out.push(Expression::Payload(field.header, field.offset, field.length));
    }

    fn compare(&mut self, is: Is, data: &[u8]) {
        self.out.push(Expression::Compare(is, data.to_vec()));
    }
}

fn padded(name: &str) -> [u8; LINK_NAME_SIZE] {
    let mut bytes = [0; LINK_NAME_SIZE];
    let length = name.len().min(LINK_NAME_SIZE - 1);
    bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
    bytes
}

struct Decoder<'a> {
    family: Family,
    /// The IP version compared so far, and whether an address made use of that.
    protocol: Option<(u8, bool)>,
    /// Whether the link type was compared, and whether an Ethernet address made use of that.
    ether: Option<bool>,
    rest: &'a [Expression],
}

impl Decoder<'_> {
    fn rule(&mut self) -> Rule {
        let mut rule = Rule::new(Vec::new(), Verdict::Continue);
        while let Some(first) = self.rest.first() {
            if let Some(verdict) = self.verdict() {
                rule.verdict = verdict;
                // What follows a verdict, or a counter that others follow, is not of our making.
                let trailing = self.rest.iter().map(|e| Match::Foreign(format!("{e} after the verdict")));
                rule.matches.extend(trailing);
                break;
            }
            if *first == Expression::Counter && rule.counted == Counted::No {
                rule.counted = Counted::Yes;
                self.rest = &self.rest[1..];
                continue;
            }
            let found = match self.condition() {
                Some(condition) => condition,
                None => {
                    self.rest = &self.rest[1..];
                    Some(Match::Foreign(first.to_string()))
                }
            };
            if let Some(condition) = found {
                if rule.counted == Counted::Yes {
                    rule.matches.push(Match::Foreign("a condition after the counter".to_owned()));
                }
                rule.matches.push(condition);
            }
        }
        if let Some((protocol, false)) = self.protocol {
            rule.matches.push(Match::Foreign(format!("meta nfproto {protocol}")));
        }
        if self.ether == Some(false) {
            rule.matches.push(Match::Foreign("meta iiftype ether".to_owned()));
        }
        rule
    }

    /// The verdict at this place, if there is one.
    fn verdict(&mut self) -> Option<Verdict> {
        let (verdict, length) = match self.rest {
            [Expression::Verdict(code, chain), ..] => (simple_verdict(*code, chain.as_deref())?, 1),
            [Expression::Masquerade(0), ..] => (Verdict::Masquerade(SourcePorts::Kept), 1),
            [Expression::Masquerade(NAT_RANGE_RANDOM_FULLY), ..] => {
                (Verdict::Masquerade(SourcePorts::FullyRandom), 1)
            }
            [
                Expression::Value(1, address),
                Expression::Value(2, port),
                Expression::DestinationNat(family, NAT_RANGE_PROTO_SPECIFIED),
                ..,
            ] => {
                let address = address_from(address)?;
                if *family != u32::from(nfproto(address)) {
                    return None;
                }
                (Verdict::DestinationNat(address, u16::from_be_bytes(port.as_slice().try_into().ok()?)), 3)
            }
            [Expression::Load(Key::Mark), Expression::Bitwise { mask, xor }, Expression::SetMark, ..] => {
                let (mask, bits) = (u32_from(mask)?, u32_from(xor)?);
                if mask != !bits {
                    return None;
                }
                (Verdict::SetMarkBits(bits), 3)
            }
            _ => return None,
        };
        self.rest = &self.rest[length..];
        Some(verdict)
    }

    /// The condition at this place; none within if it only prepares the next.
    fn condition(&mut self) -> Option<Option<Match>> {
        let [load, after @ ..] = self.rest else { return None };
        let (mask, after) = match after {
            [Expression::Bitwise { mask, xor }, after @ ..] if xor.iter().all(|byte| *byte == 0) => {
                (Some(mask.as_slice()), after)
            }
            _ => (None, after),
        };
        let [Expression::Compare(is, value), after @ ..] = after else { return None };
        let equal = *is == Is::Equal;
        let mut after = after;
        let found = match (load, mask) {
            (Expression::Load(Key::Mark), mask) if equal => {
                let mask = match mask {
                    Some(mask) => Some(u32_from(mask)?),
                    None => None,
                };
                Some(Match::Mark { mask, value: u32_from(value)? })
            }
            (Expression::Load(Key::NetfilterProtocol), None) if equal && self.protocol_is_open() => {
                let [protocol @ (NFPROTO_IPV4 | NFPROTO_IPV6)] = value[..] else { return None };
                self.protocol = Some((protocol, false));
                None
            }
            (Expression::Load(Key::Protocol), None) if equal && self.protocol_is_open() => {
                let protocol = match <[u8; 2]>::try_from(value.as_slice()).ok()? {
                    ETHERTYPE_IPV4 => NFPROTO_IPV4,
                    ETHERTYPE_IPV6 => NFPROTO_IPV6,
                    _ => return None,
                };
                self.protocol = Some((protocol, false));
                None
            }
            (Expression::Load(Key::InputLinkType), None) if equal && *value == ARPHRD_ETHER.to_ne_bytes() => {
                self.ether = Some(false);
                None
            }
            (Expression::Load(Key::TransportProtocol), None) if equal => {
                let [number] = value[..] else { return None };
                if let [Expression::Payload(header, offset, length), Expression::Compare(Is::Equal, port), ..] =
                    after
                    && (Field { header: *header, offset: *offset, length: *length }) == DESTINATION_PORT
                    && let Ok(port) = port.as_slice().try_into()
                {
                    after = &after[2..];
                    Some(Match::DestinationPort(number, u16::from_be_bytes(port)))
                } else {
                    Some(Match::Protocol(number))
                }
            }
            (Expression::Load(Key::InputLink), None) if equal => Some(Match::InputLink(link_name(value)?)),
            (Expression::Load(Key::OutputLink), None) => Some(Match::OutputLink(*is, link_name(value)?)),
            (Expression::DestinationType, None) if equal && u32_from(value) == Some(RTN_LOCAL) => {
                Some(Match::DestinationIsLocal)
            }
            (Expression::ConnectionState, Some(mask)) if !equal && u32_from(value) == Some(0) => {
                Some(Match::ConnectionState(u32_from(mask)?))
            }
            (Expression::Payload(header, offset, length), mask) => {
                let field = Field { header: *header, offset: *offset, length: *length };
                Some(self.payload(field, mask, *is, value)?)
            }
            _ => return None,
        };
        self.rest = after;
        Some(found)
    }

    /// Whether a comparison with the IP version can begin here: one that nothing made use of would
    /// be forgotten.
    fn protocol_is_open(&self) -> bool {
        self.protocol.is_none_or(|(_, used)| used)
    }

    /// A comparison with part of the packet.
    fn payload(&mut self, field: Field, mask: Option<&[u8]>, is: Is, value: &[u8]) -> Option<Match> {
        if field == ETHER_SOURCE && mask.is_none() && is == Is::Equal {
            if self.family != Family::Bridge {
                *self.ether.as_mut()? = true;
            }
            return Some(Match::EtherSource(Mac(value.try_into().ok()?)));
        }
        let protocol = match (only_protocol(self.family), &mut self.protocol) {
            (Some(protocol), _) => protocol,
            (None, Some((protocol, used))) => {
                *used = true;
                *protocol
            }
            (None, None) => return None,
        };
        let (end, net) = address_test(protocol, field, mask, value)?;
        Some(match end {
            End::Source => Match::Source(is, net),
            End::Destination => Match::Destination(is, net),
        })
    }
}

/// Which address a comparison looks at, and the network it compares with. Both forms are known: the
/// whole address under a mask, and as many bytes of it as the prefix has.
fn address_test(protocol: u8, field: Field, mask: Option<&[u8]>, value: &[u8]) -> Option<(End, IpNet)> {
    let unspecified: IpAddr = match protocol {
        NFPROTO_IPV4 => Ipv4Addr::UNSPECIFIED.into(),
        _ => Ipv6Addr::UNSPECIFIED.into(),
    };
    let end = [End::Source, End::Destination]
        .into_iter()
        .find(|end| address_field(*end, unspecified).offset == field.offset)?;
    let whole = address_field(end, unspecified);
    let bytes = usize::try_from(field.length).ok()?;
    if field.header != Header::Network || field.length > whole.length || value.len() != bytes {
        return None;
    }
    let prefix_len = match mask {
        None => u8::try_from(bytes * 8).ok()?,
        Some(mask) if field == whole => prefix_length(mask)?,
        Some(_) => return None,
    };
    let mut address = value.to_vec();
    address.resize(usize::try_from(whole.length).ok()?, 0);
    let net = IpNet::new(address_from(&address)?, prefix_len).ok()?;
    Some((end, net))
}

/// The length of a mask that is a run of ones.
fn prefix_length(mask: &[u8]) -> Option<u8> {
    let ones: u32 = mask.iter().map(|byte| byte.leading_ones()).take_while(|ones| *ones > 0).sum();
    let all: u32 = mask.iter().map(|byte| byte.count_ones()).sum();
    if ones == all { u8::try_from(ones).ok() } else { None }
}

fn simple_verdict(code: i32, chain: Option<&str>) -> Option<Verdict> {
    match (code, chain) {
        (verdict::ACCEPT, None) => Some(Verdict::Accept),
        (verdict::DROP, None) => Some(Verdict::Drop),
        (verdict::RETURN, None) => Some(Verdict::Return),
        (verdict::JUMP, Some(chain)) => Some(Verdict::Jump(chain.to_owned())),
        (verdict::GOTO, Some(chain)) => Some(Verdict::Goto(chain.to_owned())),
        _ => None,
    }
}

fn address_from(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(<[u8; 4]>::try_from(bytes).ok()?.into()),
        16 => Some(<[u8; 16]>::try_from(bytes).ok()?.into()),
        _ => None,
    }
}

fn u32_from(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

/// A link name compared with its padding; without, it would be the beginning of names.
fn link_name(bytes: &[u8]) -> Option<String> {
    if bytes.len() != LINK_NAME_SIZE {
        return None;
    }
    let name = bytes.split(|byte| *byte == 0).next()?;
    if bytes[name.len()..].iter().any(|byte| *byte != 0) {
        return None;
    }
    String::from_utf8(name.to_vec()).ok()
}

#[cfg(test)]
mod tests;
