//! Messages of DHCP and the packets around them.
//!
//! Source: RFC 2131 and 2132, RFC 3442 (classless static routes), RFC 791 and 768 for the packets.

use std::net::Ipv4Addr;
use std::time::Duration;

use dhcproto::v4::{DhcpOption, Flags, Message, MessageType, Opcode, OptionCode, UnknownOption};
use dhcproto::{Decodable as _, Encodable as _};
use fabric::Mac;
use ipnet::Ipv4Net;

const CLIENT_PORT: u16 = 68;
const SERVER_PORT: u16 = 67;
/// Servers and relays of BOOTP may drop what is shorter (RFC 1542, section 2.1).
const SHORTEST_MESSAGE: usize = 300;

/// Who asks, and with which options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    /// The Ethernet address of the interface.
    pub(super) mac: Mac,
    /// The client identifier, with its type in front.
    pub(super) client_id: Vec<u8>,
    /// Options as the configuration wants them, by number; they come in place of ours.
    pub(super) options: Vec<(u8, Vec<u8>)>,
    /// Whether answers have to be broadcast.
    pub(super) broadcast: bool,
}

/// What a server grants or offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Grant {
    /// The address.
    pub(super) address: Ipv4Addr,
    /// Its network, if told.
    pub(super) mask: Option<Ipv4Addr>,
    /// Routers in order of preference.
    pub(super) routers: Vec<Ipv4Addr>,
    /// Routes of option 33, destinations without a prefix length.
    pub(super) classful_routes: Vec<(Ipv4Addr, Ipv4Addr)>,
    /// Routes of option 121.
    pub(super) classless_routes: Vec<(Ipv4Net, Ipv4Addr)>,
    /// The server.
    pub(super) server: Ipv4Addr,
    /// How long it may be used.
    pub(super) lifetime: Option<Duration>,
    /// When to ask the server to prolong it.
    pub(super) renew_after: Option<Duration>,
    /// When to ask any server.
    pub(super) rebind_after: Option<Duration>,
}

/// An answer of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// It would give this.
    Offer(Grant),
    /// It gives this.
    Ack(Grant),
    /// It refuses, perhaps with its reason.
    Nak(Option<String>),
}

/// What a client says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Say {
    /// Who has an address, best this one?
    Discover(Option<Ipv4Addr>),
    /// I take what that server offered.
    Request { address: Ipv4Addr, server: Ipv4Addr },
    /// Let me keep this address.
    Prolong { address: Ipv4Addr },
    /// I do not need it any more.
    Release { address: Ipv4Addr, server: Ipv4Addr },
}

/// One message in the form that is sent.
pub(super) fn encode(identity: &Identity, xid: u32, say: Say) -> Vec<u8> {
    let zero = Ipv4Addr::UNSPECIFIED;
    let own = match say {
        Say::Prolong { address } | Say::Release { address, .. } => address,
        Say::Discover(_) | Say::Request { .. } => zero,
    };
    let mut message = Message::new_with_id(xid, own, zero, zero, zero, &identity.mac.0);
    message.set_opcode(Opcode::BootRequest);
    if identity.broadcast {
        message.set_flags(Flags::default().set_broadcast());
    }
    let options = message.opts_mut();
    options.insert(DhcpOption::ClientIdentifier(identity.client_id.clone()));
    let releasing = matches!(say, Say::Release { .. });
    for (number, value) in &identity.options {
        // Whoever releases says who it is, no more.
        if !releasing || *number == u8::from(OptionCode::ClientIdentifier) {
            let code = OptionCode::from(*number);
            options.remove(code);
            options.insert(DhcpOption::Unknown(UnknownOption::new(code, value.clone())));
        }
    }
    let kind = match say {
        Say::Discover(wish) => {
            wish.map(|wish| options.insert(DhcpOption::RequestedIpAddress(wish)));
            MessageType::Discover
        }
        Say::Request { address, server } => {
            options.insert(DhcpOption::RequestedIpAddress(address));
            options.insert(DhcpOption::ServerIdentifier(server));
            MessageType::Request
        }
        Say::Prolong { .. } => MessageType::Request,
        Say::Release { server, .. } => {
            options.insert(DhcpOption::ServerIdentifier(server));
            MessageType::Release
        }
    };
    options.insert(DhcpOption::MessageType(kind));
    let mut bytes = message.to_vec().expect("options of up to 255 octets can be encoded");
    bytes.resize(bytes.len().max(SHORTEST_MESSAGE), 0);
    bytes
}

/// The answer to `xid`, if it is one for this client and can be understood.
pub(super) fn decode(identity: &Identity, xid: u32, bytes: &[u8]) -> Option<Answer> {
    let message = Message::from_bytes(bytes).ok()?;
    let hardware = bytes.get(28..34)?;
    if message.opcode() != Opcode::BootReply || message.xid() != xid || hardware != identity.mac.0 {
        return None;
    }
    let options = message.opts();
    let kind = options.msg_type()?;
    if kind == MessageType::Nak {
        return Some(Answer::Nak(match options.get(OptionCode::Message) {
            Some(DhcpOption::Message(text)) => Some(text.escape_debug().to_string()),
            _ => None,
        }));
    }
    let seconds = |code| match options.get(code) {
        Some(
            DhcpOption::AddressLeaseTime(seconds)
            | DhcpOption::Renewal(seconds)
            | DhcpOption::Rebinding(seconds),
        ) => Some(Duration::from_secs((*seconds).into())),
        _ => None,
    };
    let grant = Grant {
        address: message.yiaddr(),
        mask: match options.get(OptionCode::SubnetMask) {
            Some(DhcpOption::SubnetMask(mask)) => Some(*mask),
            _ => None,
        },
        routers: match options.get(OptionCode::Router) {
            Some(DhcpOption::Router(routers)) => routers.clone(),
            _ => Vec::new(),
        },
        classful_routes: match options.get(OptionCode::StaticRoutingTable) {
            Some(DhcpOption::StaticRoutingTable(routes)) => routes.clone(),
            _ => Vec::new(),
        },
        classless_routes: match options.get(OptionCode::ClasslessStaticRoute) {
            Some(DhcpOption::ClasslessStaticRoute(routes)) => routes.clone(),
            _ => Vec::new(),
        },
        server: match options.get(OptionCode::ServerIdentifier) {
            Some(DhcpOption::ServerIdentifier(server)) => *server,
            _ => message.siaddr(),
        },
        lifetime: seconds(OptionCode::AddressLeaseTime),
        renew_after: seconds(OptionCode::Renewal),
        rebind_after: seconds(OptionCode::Rebinding),
    };
    match kind {
        _ if grant.address.is_unspecified() => None,
        MessageType::Offer => Some(Answer::Offer(grant)),
        MessageType::Ack => Some(Answer::Ack(grant)),
        _ => None,
    }
}

/// An IPv4 packet with a message from a client, for everybody or for one server.
pub(super) fn packet(message: &[u8], from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let udp_length = (8 + message.len()) as u16;
    let mut packet = Vec::with_capacity(28 + message.len());
    packet.extend([0x45, 0x10]);
    packet.extend((20 + udp_length).to_be_bytes());
    packet.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    let checksum = checksum(&packet);
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    packet.extend(CLIENT_PORT.to_be_bytes());
    packet.extend(SERVER_PORT.to_be_bytes());
    packet.extend(udp_length.to_be_bytes());
    // Zero: there is none, which IPv4 allows.
    packet.extend([0, 0]);
    packet.extend(message);
    packet
}

/// The message in an IPv4 packet from a server's port.
///
/// The checksum of UDP is not looked at: between two ends of one machine it is not there yet.
pub(super) fn payload(packet: &[u8]) -> Option<&[u8]> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let length: usize = u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]).into();
    let udp = packet.get(header..length)?;
    let word = |at: usize| Some(u16::from_be_bytes([*udp.get(at)?, *udp.get(at + 1)?]));
    let wanted = packet[0] >> 4 == 4 && header >= 20 && packet[9] == 17;
    (wanted && word(0)? == SERVER_PORT && word(2)? == CLIENT_PORT).then_some(())?;
    udp.get(8..usize::from(word(4)?))
}

/// RFC 1071
fn checksum(header: &[u8]) -> u16 {
    let words = header.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !(((folded & 0xffff) + (folded >> 16)) as u16)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::dhcp) fn identity() -> Identity {
        Identity {
            mac: Mac([2, 0, 0, 0, 0, 1]),
            client_id: b"\0a/net/eth0".into(),
            options: Vec::new(),
            broadcast: false,
        }
    }

    /// What a server says to a client's message.
    pub(in crate::dhcp) fn reply(
        asked: &[u8],
        kind: MessageType,
        address: Ipv4Addr,
        seconds: u32,
    ) -> Vec<u8> {
        let asked = Message::from_bytes(asked).unwrap();
        let zero = Ipv4Addr::UNSPECIFIED;
        let mut message = Message::new_with_id(asked.xid(), zero, address, zero, zero, asked.chaddr());
        message.set_opcode(Opcode::BootReply);
        let options = message.opts_mut();
        options.insert(DhcpOption::MessageType(kind));
        options.insert(DhcpOption::ServerIdentifier(Ipv4Addr::new(10, 0, 0, 1)));
        options.insert(DhcpOption::AddressLeaseTime(seconds));
        options.insert(DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 255, 0)));
        message.to_vec().unwrap()
    }

    #[test]
    fn a_packet_carries_its_message_and_has_a_right_checksum() {
        let sent = packet(&[7; 300], Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST);
        assert_eq!(checksum(&sent[..20]), 0);
        assert_eq!(payload(&sent), None, "a client's packet is no server's");
        let mut answer = sent;
        answer[20..24].copy_from_slice(&[0, 67, 0, 68]);
        assert_eq!(payload(&answer), Some(&[7; 300][..]));
        for end in 0..answer.len() {
            assert_eq!(payload(&answer[..end]), None, "cut at {end}");
        }
    }

    #[test]
    fn answers_to_others_are_not_taken() {
        let own = identity();
        let asked = encode(&own, 7, Say::Discover(None));
        let offer = reply(&asked, MessageType::Offer, Ipv4Addr::new(10, 0, 0, 9), 60);
        assert!(matches!(decode(&own, 7, &offer), Some(Answer::Offer(_))));
        assert_eq!(decode(&own, 8, &offer), None);
        assert_eq!(decode(&Identity { mac: Mac([2, 0, 0, 0, 0, 2]), ..own.clone() }, 7, &offer), None);
        assert_eq!(decode(&own, 7, &asked), None);
    }

    #[test]
    fn configured_options_come_in_place_of_ours() {
        let own = Identity { options: vec![(61, b"me".into()), (12, b"pod".into())], ..identity() };
        let message = Message::from_bytes(&encode(&own, 7, Say::Discover(None))).unwrap();
        assert_eq!(
            message.opts().get(OptionCode::ClientIdentifier),
            Some(&DhcpOption::ClientIdentifier(b"me".into()))
        );
        assert_eq!(message.opts().get(OptionCode::Hostname), Some(&DhcpOption::Hostname("pod".into())));
        let server = Ipv4Addr::new(10, 0, 0, 1);
        let release = encode(&own, 7, Say::Release { address: Ipv4Addr::new(10, 0, 0, 9), server });
        let release = Message::from_bytes(&release).unwrap();
        assert!(release.opts().get(OptionCode::Hostname).is_none());
        assert!(release.opts().get(OptionCode::ClientIdentifier).is_some());
    }
}
