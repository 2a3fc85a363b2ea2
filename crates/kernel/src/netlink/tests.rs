use proptest::prelude::*;

use super::decode::{ACK_HAS_ATTRIBUTES, ERROR_TEXT, HEADER_LEN, Message};
use super::*;

fn encoded(body: impl FnOnce(&mut Encoder)) -> Vec<u8> {
    let mut encoder = Encoder::default();
    body(&mut encoder);
    encoder.bytes().to_vec()
}

#[test]
fn attributes_are_padded_to_four_bytes_and_read_back() {
    let bytes = encoded(|e| {
        e.attribute(1, &[1, 2, 3, 4, 5, 6]);
        e.nest(2, |e| {
            e.text(3, "eth0");
            e.flag(4);
        });
        e.be32(5, 7);
    });
    assert_eq!(bytes.len(), 12 + 4 + 12 + 4 + 8);
    let read: Vec<_> = attributes(&bytes).collect();
    assert_eq!(read[0], (1, &[1, 2, 3, 4, 5, 6][..]));
    assert_eq!(read[1].0, 2, "the nesting flag is not part of the type");
    let inner: Vec<_> = attributes(read[1].1).collect();
    assert_eq!((inner[0].0, read_text(inner[0].1)), (3, "eth0".to_owned()));
    assert_eq!(inner[1], (4, &[][..]));
    assert_eq!(read_be32(read[2].1, 0), Some(7));
}

#[test]
fn an_attribute_that_its_length_field_cannot_hold_is_refused() {
    let mut batch = Batch::default();
    batch.push(16, 0, |body| body.attribute(1, &vec![0; 70_000]));
    assert!(matches!(batch.check(), Err(NetlinkError::TooLong(_))));
}

#[test]
fn chunks_end_at_a_message_and_hold_at_least_one() {
    let mut batch = Batch::default();
    for size in [100, 100, 5000, 100] {
        batch.push(16, 0, |body| body.put(&vec![0; size]));
    }
    assert_eq!(batch.chunk_end(0, 10, 300), 2);
    assert_eq!(batch.chunk_end(2, 10, 300), 3, "a message larger than a chunk goes alone");
    assert_eq!(batch.chunk_end(0, 1, 1 << 20), 1);
    assert_eq!(batch.chunk_end(0, 10, 1 << 20), 4);
}

#[test]
fn a_refusal_carries_the_kernels_words() {
    let mut payload = (-libc::EINVAL).to_ne_bytes().to_vec();
    payload.extend([0; HEADER_LEN]);
    payload.extend(encoded(|e| e.text(ERROR_TEXT, "Nexthop has invalid gateway")));
    let message =
        Message { kind: MESSAGE_ERROR, flags: ACK_HAS_ATTRIBUTES, sequence: 0, port: 0, payload: &payload };
    let refusal = message.refusal().unwrap().unwrap();
    assert_eq!(refusal.to_string(), "Nexthop has invalid gateway: Invalid argument (os error 22)");
}

#[test]
fn messages_stop_at_the_first_false_length() {
    let mut batch = Batch::default();
    batch.push(16, 0, |body| body.put(&[1, 2, 3, 4]));
    batch.push(17, 0, |body| body.put(&[5, 6, 7, 8]));
    let mut bytes = batch.bytes().to_vec();
    assert_eq!(messages(&bytes).map(|m| m.kind).collect::<Vec<_>>(), [16, 17]);
    bytes[20] = 200;
    assert_eq!(messages(&bytes).map(|m| m.kind).collect::<Vec<_>>(), [16]);
    bytes[0] = 3;
    assert_eq!(messages(&bytes).count(), 0);
}

proptest! {
    #[test]
    fn no_bytes_make_the_parsers_panic_or_loop(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(messages(&bytes).count() <= bytes.len());
        for message in messages(&bytes) {
            let _ = message.refusal();
            prop_assert!(attributes(message.payload).count() <= bytes.len());
        }
        prop_assert!(attributes(&bytes).count() <= bytes.len());
        for at in [0, 1, 399, usize::MAX] {
            let _ = (read_u8(&bytes, at), read_u16(&bytes, at), read_u32(&bytes, at));
        }
        let _ = (read_ip(&bytes), read_text(&bytes));
    }
}

#[test]
fn the_kernel_answers_requests_lists_and_batches() {
    // Listing and refusals need no privileges.
    let mut socket = Socket::open(Protocol::Route).unwrap();
    let links = socket
        .dump(
            libc::RTM_GETLINK,
            |body| body.put(&[0; 16]),
            |count: &mut usize, answer| {
                *count += usize::from(answer.kind == libc::RTM_NEWLINK);
                Ok(())
            },
        )
        .unwrap();
    assert!(links >= 1, "there is at least the loopback device");

    let mut batch = Batch::default();
    for _ in 0..2500 {
        // A route message that is too short, which the kernel refuses by itself each time.
        batch.push(libc::RTM_GETROUTE, 0, |body| body.put(&[2, 255, 0, 0]));
    }
    let failures = socket.batch(&mut batch);
    assert_eq!(failures.len(), 2500);
    assert!(failures.iter().enumerate().all(|(at, failure)| failure.0 == at));
    assert!(matches!(failures[0].1, NetlinkError::Refused(_)));
}
