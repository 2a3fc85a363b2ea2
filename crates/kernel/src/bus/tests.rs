use std::thread;

use super::*;

// What libdbus 1.14 sent to a dbus-daemon, and what that answered.
const HELLO: &[u8] =
    b"l\x01\0\x01\0\0\0\0\x01\0\0\0n\0\0\0\x01\x01o\0\x15\0\0\0/org/freedesktop/DBus\0\0\0\x06\x01\
      s\0\x14\0\0\0org.freedesktop.DBus\0\0\0\0\x02\x01s\0\x14\0\0\0org.freedesktop.DBus\0\0\0\0\
      \x03\x01s\0\x05\0\0\0Hello\0\0\0";
const HAS_OWNER: &[u8] =
    b"l\x01\0\x01\x15\0\0\0\x02\0\0\0\x7f\0\0\0\x01\x01o\0\x15\0\0\0/org/freedesktop/DBus\0\0\0\
      \x06\x01s\0\x14\0\0\0org.freedesktop.DBus\0\0\0\0\x02\x01s\0\x14\0\0\0org.freedesktop.DBus\0\
      \0\0\0\x03\x01s\0\x0c\0\0\0NameHasOwner\0\0\0\0\x08\x01g\0\x01s\0\0\x10\0\0\0org.example.Non\
      e\0";
const ADD_SOURCE: &[u8] =
    b"l\x01\0\x01\x1c\0\0\0\x03\0\0\0x\0\0\0\x01\x01o\0\x0c\0\0\0/org/example\0\0\0\0\x06\x01s\0\
      \x10\0\0\0org.example.None\0\0\0\0\0\0\0\0\x02\x01s\0\x10\0\0\0org.example.zone\0\0\0\0\0\0\
      \0\0\x03\x01s\0\x09\0\0\0addSource\0\0\0\0\0\0\0\x08\x01g\0\x02ss\0\x07\0\0\0trusted\0\x0b\0\
      \0\x0010.0.0.2/32\0";
const WELCOME: &[u8] =
    b"l\x02\x01\x01\x09\0\0\0\x01\0\0\0=\0\0\0\x06\x01s\0\x04\0\0\0:1.0\0\0\0\0\x05\x01u\0\x01\0\0\
      \0\x08\x01g\0\x01s\0\0\x07\x01s\0\x14\0\0\0org.freedesktop.DBus\0\0\0\0\x04\0\0\0:1.0\0";
const NAME_ACQUIRED: &[u8] =
    b"l\x04\x01\x01\x09\0\0\0\x02\0\0\0\x8d\0\0\0\x01\x01o\0\x15\0\0\0/org/freedesktop/DBus\0\0\0\
      \x02\x01s\0\x14\0\0\0org.freedesktop.DBus\0\0\0\0\x03\x01s\0\x0c\0\0\0NameAcquired\0\0\0\0\
      \x06\x01s\0\x04\0\0\0:1.0\0\0\0\0\x08\x01g\0\x01s\0\0\x07\x01s\0\x14\0\0\0org.freedesktop.DB\
      us\0\0\0\0\x04\0\0\0:1.0\0";
const NO_OWNER: &[u8] =
    b"l\x02\x01\x01\x04\0\0\0\x03\0\0\0=\0\0\0\x06\x01s\0\x04\0\0\0:1.0\0\0\0\0\x05\x01u\0\x02\0\0\
      \0\x08\x01g\0\x01b\0\0\x07\x01s\0\x14\0\0\0org.freedesktop.DBus\0\0\0\0\0\0\0\0";
const UNKNOWN: &[u8] =
    b"l\x03\x01\x01E\0\0\0\x04\0\0\0u\0\0\0\x06\x01s\0\x04\0\0\0:1.0\0\0\0\0\x04\x01s\0)\0\0\0org.\
      freedesktop.DBus.Error.ServiceUnknown\0\0\0\0\0\0\0\x05\x01u\0\x03\0\0\0\x08\x01g\0\x01s\0\0\
      \x07\x01s\0\x14\0\0\0org.freedesktop.DBus\0\0\0\0@\0\0\0The name org.example.None was not pr\
      ovided by any .service files\0";

/// A bus that expects these bytes and answers each with those.
fn bus(talk: &'static [(&'static [u8], &'static [&'static [u8]])]) -> (UnixStream, thread::JoinHandle<()>) {
    let (client, mut server) = UnixStream::pair().unwrap();
    server.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let served = thread::spawn(move || {
        for (expected, answers) in talk {
            let mut got = vec![0; expected.len()];
            server.read_exact(&mut got).unwrap();
            assert_eq!(String::from_utf8_lossy(&got), String::from_utf8_lossy(expected));
            for answer in *answers {
                server.write_all(answer).unwrap();
            }
        }
    });
    (client, served)
}

fn authentication() -> &'static [u8] {
    let user = rustix::process::geteuid().as_raw().to_string();
    let hex: String = user.bytes().map(|byte| format!("{byte:02x}")).collect();
    format!("\0AUTH EXTERNAL {hex}\r\n").into_bytes().leak()
}

#[test]
fn calls_are_those_that_libdbus_makes_and_answers_are_understood() {
    let talk: Vec<(&[u8], &[&[u8]])> = vec![
        (authentication(), &[b"OK bb74db9153f35a5520a80a566b018109\r\n"]),
        (b"BEGIN\r\n", &[]),
        (HELLO, &[WELCOME, NAME_ACQUIRED]),
        (HAS_OWNER, &[NO_OWNER]),
        (ADD_SOURCE, &[UNKNOWN]),
    ];
    let (client, served) = bus(talk.leak());
    let mut bus = Bus::greet(client).unwrap();
    assert!(!bus.has_owner("org.example.None").unwrap());
    let texts = ["trusted", "10.0.0.2/32"];
    let refused = bus.call("org.example.None", "/org/example", "org.example.zone", "addSource", &texts);
    assert_eq!(
        refused.unwrap_err().to_string(),
        "org.freedesktop.DBus.Error.ServiceUnknown: The name org.example.None was not provided by any \
         .service files"
    );
    served.join().unwrap();
}

#[test]
fn a_bus_that_does_not_know_the_user_is_told_of() {
    let talk: Vec<(&[u8], &[&[u8]])> = vec![(authentication(), &[b"REJECTED EXTERNAL\r\n"])];
    let (client, _) = bus(talk.leak());
    assert_eq!(Bus::greet(client).unwrap_err().to_string(), "authentication: REJECTED EXTERNAL");
}

#[test]
fn no_answer_is_trusted() {
    for message in [WELCOME, NAME_ACQUIRED, NO_OWNER, UNKNOWN] {
        let head: &[u8; 16] = message[..16].try_into().unwrap();
        assert!(Message::parse(head, &message[16..]).is_some());
        for length in 0..message.len() - 16 {
            // Cut off anywhere, it is read as far as it makes sense, or refused.
            let _ = Message::parse(head, &message[16..16 + length]);
        }
        for at in 16..message.len() {
            let mut broken = message.to_vec();
            broken[at] ^= 0xff;
            let _ = Message::parse(head, &broken[16..]);
        }
    }
    let mut huge: [u8; 16] = WELCOME[..16].try_into().unwrap();
    huge[4..8].copy_from_slice(&[0xff; 4]);
    assert!(lengths(&huge).is_err());
}
