//! Connections as the kernel tracks them.
//!
//! UDP has no end: while packets keep coming, a tracked flow keeps the translation that it had when it
//! began, or that it had none, whatever rules are made meanwhile. Whoever redirects a port lets the
//! kernel forget the flows to it.
//!
//! Source: `linux/netfilter/nfnetlink_conntrack.h`, `net/netfilter/nf_conntrack_netlink.c`.

use fabric::dataplane::IpFamily;
use rustix::io::Errno;

use crate::error::{Doing, KernelError};
use crate::netlink::{Answer, Batch, Encoder, NetlinkError, Protocol, Socket, attributes, read_u8};

/// `NFNL_SUBSYS_CTNETLINK`, with `IPCTNL_MSG_CT_{GET,DELETE}`
const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;
// `CTA_*`
const TUPLE_ORIGINAL: u16 = 1;
const ID: u16 = 12;
const ZONE: u16 = 18;
const FILTER: u16 = 25;
// `CTA_TUPLE_PROTO`, `CTA_PROTO_NUM`, `CTA_PROTO_DST_PORT`
const TUPLE_PROTOCOL: u16 = 2;
const PROTOCOL_NUMBER: u16 = 1;
const DESTINATION_PORT: u16 = 3;
/// `CTA_FILTER_ORIG_FLAGS`
const FILTER_ORIGINAL: u16 = 1;
/// `CTA_FILTER_F_CTA_PROTO_NUM`, `CTA_FILTER_F_CTA_PROTO_DST_PORT` (`nf_internals.h`)
const BY_PROTOCOL: u32 = 1 << 3;
const BY_DESTINATION_PORT: u32 = 1 << 5;
/// `struct nfgenmsg`
const HEADER_LEN: usize = 4;
/// `IPPROTO_UDP`
const UDP: u8 = 17;

/// What deletes one flow: its tuple, its number and its zone, as the kernel told them.
type Flow = Vec<(u16, Vec<u8>)>;

/// Lets the kernel forget the UDP flows that were begun to one of these ports of whatever address.
pub fn forget_udp(family: IpFamily, ports: &[u16]) -> Result<(), KernelError> {
    if ports.is_empty() {
        return Ok(());
    }
    let doing = || format!("forget tracked UDP flows to the ports {ports:?}");
    let mut socket = Socket::open(Protocol::Netfilter).doing(doing)?;
    let mut batch = Batch::default();
    for port in ports {
        for flow in flows(&mut socket, family, *port).doing(doing)? {
            batch.push(DELETE, 0, |body| {
                header(body, family);
                for (kind, value) in &flow {
                    // The flag that there are attributes inside (NLA_F_NESTED).
                    let nested = if *kind == TUPLE_ORIGINAL { 0x8000 } else { 0 };
                    body.attribute(*kind | nested, value);
                }
            });
        }
    }
    let failures = socket.batch(&mut batch);
    // It may have ended by itself.
    match failures.into_iter().find(|(_, error)| error.errno() != Some(Errno::NOENT)) {
        Some((_, cause)) => Err(KernelError::Netlink { doing: doing(), cause }),
        None => Ok(()),
    }
}

fn flows(socket: &mut Socket, family: IpFamily, port: u16) -> Result<Vec<Flow>, NetlinkError> {
    let take = |flows: &mut Vec<Flow>, answer: Answer<'_>| {
        let body = answer.payload.get(HEADER_LEN..).unwrap_or_default();
        if is_udp_to(body, port) {
            let kept = attributes(body).filter(|(kind, _)| [TUPLE_ORIGINAL, ID, ZONE].contains(kind));
            flows.push(kept.map(|(kind, value)| (kind, value.to_vec())).collect());
        }
        Ok(())
    };
    let filtered = socket.dump(
        GET,
        |body| {
            header(body, family);
            body.nest(TUPLE_ORIGINAL, |tuple| {
                tuple.nest(TUPLE_PROTOCOL, |protocol| {
                    protocol.u8(PROTOCOL_NUMBER, UDP);
                    protocol.be16(DESTINATION_PORT, port);
                });
            });
            body.nest(FILTER, |filter| filter.u32(FILTER_ORIGINAL, BY_PROTOCOL | BY_DESTINATION_PORT));
        },
        take,
    );
    match filtered {
        // Kernels before 5.8 tell everything, whatever was asked for; some refuse the question.
        Err(error) if matches!(error.errno(), Some(Errno::INVAL | Errno::OPNOTSUPP)) => {
            socket.dump(GET, |body| header(body, family), take)
        }
        other => other,
    }
}

fn is_udp_to(body: &[u8], port: u16) -> bool {
    let find = |bytes, wanted| attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let protocol = find(body, TUPLE_ORIGINAL).and_then(|tuple| find(tuple, TUPLE_PROTOCOL));
    let protocol = protocol.unwrap_or_default();
    find(protocol, PROTOCOL_NUMBER).and_then(|number| read_u8(number, 0)) == Some(UDP)
        && find(protocol, DESTINATION_PORT) == Some(&port.to_be_bytes())
}

fn header(body: &mut Encoder, family: IpFamily) {
    let number = match family {
        IpFamily::V4 => libc::AF_INET,
        IpFamily::V6 => libc::AF_INET6,
    };
    body.put(&[number as u8, 0, 0, 0]);
}
