//! The kernel's instructions (`nft_expr`) of which rules are made, one value each, and their
//! attributes (`linux/netfilter/nf_tables.h`).
//!
//! Loads go to register 1, as nft and iptables-nft write them; an instruction that uses others, or
//! has attributes that are not known here, is read as [`Expression::Other`] and never mistaken.

use std::fmt;

use fabric::firewall::Is;

use crate::netlink::{Encoder, attributes, read_be32, read_text};

/// `NFTA_LIST_ELEM`
const LIST_ELEMENT: u16 = 1;
/// `NFTA_EXPR_NAME`, `NFTA_EXPR_DATA`
const NAME: u16 = 1;
const DATA: u16 = 2;
/// `NFTA_DATA_VALUE`, `NFTA_DATA_VERDICT`
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
/// `NFTA_VERDICT_CODE`, `NFTA_VERDICT_CHAIN`
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
/// `NFT_REG_VERDICT`, `NFT_REG_1`, `NFT_REG_2`
const VERDICT_REGISTER: u32 = 0;
const REGISTER_1: u32 = 1;
const REGISTER_2: u32 = 2;
/// `NFT_CT_STATE`
const CT_STATE: u32 = 0;
/// `NFT_FIB_RESULT_ADDRTYPE`, `NFTA_FIB_F_DADDR`
const FIB_RESULT_TYPE: u32 = 3;
const FIB_DESTINATION: u32 = 1 << 1;
/// `NFT_NAT_DNAT`
const NAT_DESTINATION: u32 = 1;
/// `NF_NAT_RANGE_MAP_IPS`
const NAT_RANGE_MAP_IPS: u32 = 1;
/// `NFT_CMP_EQ`, `NFT_CMP_NEQ`
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;
/// `XT_MAX_COMMENT_LEN`
const XT_COMMENT_SIZE: usize = 256;

/// Verdict codes (`enum nft_verdicts`, and `NF_ACCEPT`, `NF_DROP`).
pub(crate) mod verdict {
    pub(crate) const DROP: i32 = 0;
    pub(crate) const ACCEPT: i32 = 1;
    pub(crate) const JUMP: i32 = -3;
    pub(crate) const GOTO: i32 = -4;
    pub(crate) const RETURN: i32 = -5;
}

/// What is loaded into a register (`enum nft_meta_keys`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Key {
    /// `NFT_META_PROTOCOL`, the Ethernet type
    Protocol = 1,
    /// `NFT_META_MARK`
    Mark = 3,
    /// `NFT_META_IIFNAME`
    InputLink = 6,
    /// `NFT_META_OIFNAME`
    OutputLink = 7,
    /// `NFT_META_IIFTYPE`
    InputLinkType = 8,
    /// `NFT_META_NFPROTO`
    NetfilterProtocol = 15,
    /// `NFT_META_L4PROTO`
    TransportProtocol = 16,
}

impl Key {
    const ALL: [Key; 7] = [
        Key::Protocol,
        Key::Mark,
        Key::InputLink,
        Key::OutputLink,
        Key::InputLinkType,
        Key::NetfilterProtocol,
        Key::TransportProtocol,
    ];
}

/// Where a payload's offset counts from (`enum nft_payload_bases`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Header {
    /// `NFT_PAYLOAD_LL_HEADER`
    Link = 0,
    /// `NFT_PAYLOAD_NETWORK_HEADER`
    Network = 1,
    /// `NFT_PAYLOAD_TRANSPORT_HEADER`
    Transport = 2,
}

/// One instruction. What compares, compares register 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Expression {
    /// `meta load`
    Load(Key),
    /// `meta set mark` from register 1
    SetMark,
    /// `payload load`: header, offset, length in bytes
    Payload(Header, u32, u32),
    /// `ct load state`
    ConnectionState,
    /// `fib daddr type`
    DestinationType,
    /// `bitwise`: register & mask ^ xor
    Bitwise {
        /// The bits kept.
        mask: Vec<u8>,
        /// The bits turned over.
        xor: Vec<u8>,
    },
    /// `cmp`
    Compare(Is, Vec<u8>),
    /// `immediate`: a register and the bytes for it
    Value(u32, Vec<u8>),
    /// `immediate` into the verdict register
    Verdict(i32, Option<String>),
    /// `counter`, of which the values are not read
    Counter,
    /// `masq` with its flags
    Masquerade(u32),
    /// `nat dnat` to the address in register 1 and the port in register 2: family, flags
    DestinationNat(u32, u32),
    /// The `comment` match of iptables
    XtComment(String),
    /// A target of iptables, by name
    XtTarget(String),
    /// Anything else, by the kernel's name
    Other(String),
}

/// Writes instructions into the attribute `kind` (`NFTA_RULE_EXPRESSIONS`).
pub(crate) fn write_all(to: &mut Encoder, kind: u16, expressions: &[Expression]) {
    to.nest(kind, |list| {
        for expression in expressions {
            list.nest(LIST_ELEMENT, |element| {
                element.text(NAME, expression.name());
                element.nest(DATA, |data| expression.write(data));
            });
        }
    });
}

/// Reads the value of `NFTA_RULE_EXPRESSIONS`.
pub(crate) fn read_all(bytes: &[u8]) -> Vec<Expression> {
    attributes(bytes)
        .filter(|(kind, _)| *kind == LIST_ELEMENT)
        .map(|(_, element)| {
            let name = find(element, NAME).map(read_text).unwrap_or_default();
            Expression::read(&name, find(element, DATA).unwrap_or_default())
                .unwrap_or(Expression::Other(name))
        })
        .collect()
}

/// The value of the first attribute of this kind.
pub(crate) fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

fn number(bytes: &[u8], kind: u16) -> Option<u32> {
    read_be32(find(bytes, kind)?, 0)
}

/// Whether there are no attributes but these, padding aside.
fn only(bytes: &[u8], known: &[u16]) -> bool {
    attributes(bytes).all(|(kind, _)| known.contains(&kind))
}

impl Expression {
    /// The name by which the kernel knows the instruction.
    fn name(&self) -> &str {
        match self {
            Expression::Load(_) | Expression::SetMark => "meta",
            Expression::Payload(..) => "payload",
            Expression::ConnectionState => "ct",
            Expression::DestinationType => "fib",
            Expression::Bitwise { .. } => "bitwise",
            Expression::Compare(..) => "cmp",
            Expression::Value(..) | Expression::Verdict(..) => "immediate",
            Expression::Counter => "counter",
            Expression::Masquerade(_) => "masq",
            Expression::DestinationNat(..) => "nat",
            Expression::XtComment(_) => "match",
            Expression::XtTarget(_) => "target",
            Expression::Other(name) => name,
        }
    }

    // The numbers are those of the enums nft_*_attributes, in the order of the header file.
    fn write(&self, to: &mut Encoder) {
        match self {
            Expression::Load(key) => {
                to.be32(2, *key as u32);
                to.be32(1, REGISTER_1);
            }
            Expression::SetMark => {
                to.be32(2, Key::Mark as u32);
                to.be32(3, REGISTER_1);
            }
            Expression::Payload(header, offset, length) => {
                to.be32(1, REGISTER_1);
                to.be32(2, *header as u32);
                to.be32(3, *offset);
                to.be32(4, *length);
            }
            Expression::ConnectionState => {
                to.be32(2, CT_STATE);
                to.be32(1, REGISTER_1);
            }
            Expression::DestinationType => {
                to.be32(3, FIB_DESTINATION);
                to.be32(2, FIB_RESULT_TYPE);
                to.be32(1, REGISTER_1);
            }
            Expression::Bitwise { mask, xor } => {
                to.be32(1, REGISTER_1);
                to.be32(2, REGISTER_1);
                to.be32(3, mask.len() as u32);
                to.nest(4, |data| data.attribute(DATA_VALUE, mask));
                to.nest(5, |data| data.attribute(DATA_VALUE, xor));
            }
            Expression::Compare(is, value) => {
                to.be32(1, REGISTER_1);
                to.be32(2, if *is == Is::Equal { EQUAL } else { NOT_EQUAL });
                to.nest(3, |data| data.attribute(DATA_VALUE, value));
            }
            Expression::Value(register, value) => {
                to.be32(1, *register);
                to.nest(2, |data| data.attribute(DATA_VALUE, value));
            }
            Expression::Verdict(code, chain) => {
                to.be32(1, VERDICT_REGISTER);
                to.nest(2, |data| {
                    data.nest(DATA_VERDICT, |verdict| {
                        verdict.be32(VERDICT_CODE, code.cast_unsigned());
                        if let Some(chain) = chain {
                            verdict.text(VERDICT_CHAIN, chain);
                        }
                    });
                });
            }
            Expression::Counter | Expression::Masquerade(0) => {}
            Expression::Masquerade(flags) => to.be32(1, *flags),
            Expression::DestinationNat(family, flags) => {
                to.be32(1, NAT_DESTINATION);
                to.be32(2, *family);
                to.be32(3, REGISTER_1);
                to.be32(5, REGISTER_2);
                to.be32(7, *flags);
            }
            Expression::XtComment(comment) => {
                let mut text = [0; XT_COMMENT_SIZE];
                let length = comment.len().min(XT_COMMENT_SIZE - 1);
                text[..length].copy_from_slice(&comment.as_bytes()[..length]);
                to.text(1, "comment");
                to.be32(2, 0);
                to.attribute(3, &text);
            }
            Expression::XtTarget(name) => to.text(1, name),
            Expression::Other(_) => {}
        }
    }

    fn read(name: &str, data: &[u8]) -> Option<Expression> {
        let number = |kind| number(data, kind);
        let value = |kind| find(find(data, kind)?, DATA_VALUE).map(<[u8]>::to_vec);
        let into_register_1 = |kind| number(kind) == Some(REGISTER_1);
        match name {
            "meta" if into_register_1(1) && find(data, 3).is_none() => {
                let key = number(2)?;
                Key::ALL.into_iter().find(|known| *known as u32 == key).map(Expression::Load)
            }
            "meta" if into_register_1(3) && find(data, 1).is_none() => {
                (number(2)? == Key::Mark as u32).then_some(Expression::SetMark)
            }
            "payload" if into_register_1(1) && only(data, &[1, 2, 3, 4]) => {
                let header = [Header::Link, Header::Network, Header::Transport]
                    .into_iter()
                    .find(|header| number(2) == Some(*header as u32))?;
                Some(Expression::Payload(header, number(3)?, number(4)?))
            }
            "ct" if into_register_1(1) && number(2)? == CT_STATE => Some(Expression::ConnectionState),
            "fib" if into_register_1(1) && number(2)? == FIB_RESULT_TYPE && number(3)? == FIB_DESTINATION => {
                Some(Expression::DestinationType)
            }
            // The kernel tells the operation (6) too; 0 is mask and xor.
            "bitwise" if into_register_1(1) && into_register_1(2) && number(6).unwrap_or(0) == 0 => {
                Some(Expression::Bitwise { mask: value(4)?, xor: value(5)? })
            }
            "cmp" if into_register_1(1) => match number(2)? {
                EQUAL => Some(Expression::Compare(Is::Equal, value(3)?)),
                NOT_EQUAL => Some(Expression::Compare(Is::NotEqual, value(3)?)),
                _ => None,
            },
            "immediate" if number(1)? == VERDICT_REGISTER => {
                let verdict = find(find(data, 2)?, DATA_VERDICT)?;
                let code = read_be32(find(verdict, VERDICT_CODE)?, 0)?.cast_signed();
                Some(Expression::Verdict(code, find(verdict, VERDICT_CHAIN).map(read_text)))
            }
            "immediate" => Some(Expression::Value(number(1)?, value(2)?)),
            "counter" => Some(Expression::Counter),
            "masq" if only(data, &[1]) => Some(Expression::Masquerade(number(1).unwrap_or(0))),
            "nat"
                if number(1)? == NAT_DESTINATION && number(3)? == REGISTER_1 && number(5)? == REGISTER_2 =>
            {
                // The kernel tells the end of a range too, which is its beginning where there is none.
                let range = |end, begin| number(end).is_none_or(|end| Some(end) == number(begin));
                // It also sets the flag that there is an address, which nobody has to write.
                let flags = number(7).unwrap_or(0) & !NAT_RANGE_MAP_IPS;
                (range(4, 3) && range(6, 5)).then_some(Expression::DestinationNat(number(2)?, flags))
            }
            "match" => {
                let known = find(data, 1).map(read_text)? == "comment";
                known.then_some(Expression::XtComment(read_text(find(data, 3)?)))
            }
            "target" => Some(Expression::XtTarget(read_text(find(data, 1)?))),
            _ => None,
        }
    }
}

/// A hint at what the instruction is, for rules that are not understood.
impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Expression::XtTarget(name) => write!(f, "target {name}"),
            other => f.write_str(other.name()),
        }
    }
}
