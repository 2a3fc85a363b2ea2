use proptest::prelude::*;

use super::super::expression::{read_all, write_all};
use super::*;
use crate::netlink::{Encoder, attributes};

const FAMILIES: [Family; 4] = [Family::Ipv4, Family::Ipv6, Family::Inet, Family::Bridge];
const NFTA_RULE_EXPRESSIONS: u16 = 4;

/// The instructions as the kernel would hand them back.
fn over_the_wire(expressions: &[Expression]) -> Vec<Expression> {
    let mut encoder = Encoder::default();
    write_all(&mut encoder, NFTA_RULE_EXPRESSIONS, expressions);
    let (kind, bytes) = attributes(encoder.bytes()).next().unwrap();
    assert_eq!(kind, NFTA_RULE_EXPRESSIONS);
    read_all(bytes)
}

fn any_net() -> impl Strategy<Value = IpNet> {
    prop_oneof![
        (any::<u32>(), 0_u8..=32)
            .prop_map(|(bits, length)| IpNet::new(Ipv4Addr::from(bits).into(), length).unwrap().trunc()),
        (any::<u128>(), 0_u8..=128).prop_map(|(bits, length)| IpNet::new(
            Ipv6Addr::from(bits).into(),
            length
        )
        .unwrap()
        .trunc()),
    ]
}

fn any_is() -> impl Strategy<Value = Is> {
    prop_oneof![Just(Is::Equal), Just(Is::NotEqual)]
}

fn any_match() -> impl Strategy<Value = Match> {
    prop_oneof![
        (any::<u32>(), any::<Option<u32>>()).prop_map(|(value, mask)| Match::Mark { mask, value }),
        (any_is(), any_net()).prop_map(|(is, net)| Match::Source(is, net)),
        (any_is(), any_net()).prop_map(|(is, net)| Match::Destination(is, net)),
        any::<[u8; 6]>().prop_map(|octets| Match::EtherSource(Mac(octets))),
        "[a-z0-9.@_-]{1,15}".prop_map(Match::InputLink),
        (any_is(), "[a-z0-9.@_-]{1,15}").prop_map(|(is, name)| Match::OutputLink(is, name)),
        any::<u8>().prop_map(Match::Protocol),
        any::<(u8, u16)>().prop_map(|(protocol, port)| Match::DestinationPort(protocol, port)),
        Just(Match::DestinationIsLocal),
        any::<u32>().prop_map(Match::ConnectionState),
    ]
}

fn any_verdict() -> impl Strategy<Value = Verdict> {
    prop_oneof![
        Just(Verdict::Accept),
        Just(Verdict::Drop),
        Just(Verdict::Return),
        "[a-zA-Z0-9_-]{1,30}".prop_map(Verdict::Jump),
        "[a-zA-Z0-9_-]{1,30}".prop_map(Verdict::Goto),
        Just(Verdict::Masquerade(SourcePorts::Kept)),
        Just(Verdict::Masquerade(SourcePorts::FullyRandom)),
        (any_net(), any::<u16>()).prop_map(|(net, port)| Verdict::DestinationNat(net.addr(), port)),
        any::<u32>().prop_map(Verdict::SetMarkBits),
        Just(Verdict::Continue),
    ]
}

/// An address of the other IP version in a table of one has no instructions that could mean it.
fn can_be_said(family: Family, condition: &Match) -> bool {
    match condition {
        Match::Source(_, net) | Match::Destination(_, net) => {
            only_protocol(family).is_none_or(|protocol| protocol == nfproto(net.addr()))
        }
        _ => true,
    }
}

proptest! {
    #[test]
    fn every_rule_reads_back_as_it_was_written(
        at in 0_usize..4,
        matches in prop::collection::vec(any_match(), 0..6),
        counted in prop_oneof![Just(Counted::No), Just(Counted::Yes)],
        verdict in any_verdict(),
    ) {
        let family = FAMILIES[at];
        let matches: Vec<Match> =
            matches.into_iter().filter(|condition| can_be_said(family, condition)).collect();
        let rule = Rule { matches, counted, verdict, comment: None };
        let expressions = encode(family, &rule);
        prop_assert_eq!(&over_the_wire(&expressions), &expressions);
        prop_assert_eq!(decode(family, &expressions), rule);
    }

    #[test]
    fn no_answer_of_the_kernel_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for family in FAMILIES {
            decode(family, &read_all(&bytes));
        }
    }

    #[test]
    fn no_damaged_rule_makes_it_panic(
        at in 0_usize..4,
        matches in prop::collection::vec(any_match(), 0..4),
        verdict in any_verdict(),
        damage in any::<(prop::sample::Index, u8)>(),
        cut in any::<prop::sample::Index>(),
    ) {
        let family = FAMILIES[at];
        let mut encoder = Encoder::default();
        let rule = Rule::new(matches, verdict);
        write_all(&mut encoder, NFTA_RULE_EXPRESSIONS, &encode(family, &rule));
        let mut bytes = encoder.bytes()[4..].to_vec();
        if !bytes.is_empty() {
            let place = damage.0.index(bytes.len());
            bytes[place] ^= damage.1;
            bytes.truncate(cut.index(bytes.len()) + 1);
        }
        decode(family, &read_all(&bytes));
    }
}

#[test]
fn an_order_that_we_do_not_write_is_foreign() {
    let counter_first = [
        Expression::Counter,
        Expression::Load(Key::Mark),
        Expression::Compare(Is::Equal, vec![0; 4]),
        Expression::Verdict(verdict::ACCEPT, None),
    ];
    let after_the_verdict = [Expression::Verdict(verdict::ACCEPT, None), Expression::Counter];
    let unused = [
        Expression::Load(Key::NetfilterProtocol),
        Expression::Compare(Is::Equal, vec![NFPROTO_IPV4]),
        Expression::Verdict(verdict::ACCEPT, None),
    ];
    for expressions in [&counter_first[..], &after_the_verdict, &unused] {
        let rule = decode(Family::Inet, expressions);
        assert!(rule.matches.iter().any(|m| matches!(m, Match::Foreign(_))), "{rule:?}");
    }
}
