//! The system's message bus (D-Bus): calls of methods that take texts, one at a time.
//!
//! Only what a plugin needs that tells a service of the host something: authentication as the user that
//! the socket says, no signals, no passing of files.
//!
//! Source: the D-Bus specification, "Message Protocol" and "Authentication Protocol".

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Where the bus is if the environment does not say so.
const SOCKETS: [&str; 2] = ["/run/dbus/system_bus_socket", "/var/run/dbus/system_bus_socket"];
/// What the reference implementation gives a service to answer.
const PATIENCE: Duration = Duration::from_secs(25);
/// The longest message of the specification is 128 MiB; no answer to these calls comes near this.
const LONGEST: usize = 1 << 20;

const BUS: &str = "org.freedesktop.DBus";
const BUS_PATH: &str = "/org/freedesktop/DBus";

// Types of messages.
const CALL: u8 = 1;
const RETURN: u8 = 2;
const ERROR: u8 = 3;
// Fields of the header.
const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SIGNATURE: u8 = 8;

/// A connection to the bus.
#[derive(Debug)]
pub struct Bus {
    stream: UnixStream,
    serial: u32,
}

/// The first value of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// None, or one of another type.
    Other,
    /// A text.
    Text(String),
    /// True or false.
    Boolean(bool),
}

/// Why a call came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// There is no bus, or it does not answer.
    #[error("the system's message bus cannot be reached: {0}")]
    Unreachable(#[from] io::Error),
    /// The bus or the service refused.
    #[error("{name}: {text}")]
    Refused {
        /// The error's name.
        name: String,
        /// What it says.
        text: String,
    },
    /// An answer that cannot be read.
    #[error("the message bus sent something that is not D-Bus: {0}")]
    Malformed(&'static str),
}

impl Bus {
    /// Connects to the system's bus.
    pub fn system() -> Result<Bus, BusError> {
        let told = std::env::var("DBUS_SYSTEM_BUS_ADDRESS").unwrap_or_default();
        let told = told.split(';').find_map(|address| {
            let path =
                address.strip_prefix("unix:")?.split(',').find_map(|pair| pair.strip_prefix("path="))?;
            Some(path.to_owned())
        });
        let mut outcome = Err(io::Error::from(io::ErrorKind::NotFound));
        for path in told.iter().map(String::as_str).chain(SOCKETS.into_iter().filter(|_| told.is_none())) {
            outcome = UnixStream::connect(path);
            if outcome.is_ok() {
                break;
            }
        }
        Bus::greet(outcome?)
    }

    fn greet(stream: UnixStream) -> Result<Bus, BusError> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut bus = Bus { stream, serial: 0 };
        let user: String = rustix::process::geteuid()
            .as_raw()
            .to_string()
            .bytes()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        bus.stream.write_all(format!("\0AUTH EXTERNAL {user}\r\n").as_bytes())?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n") {
            let mut byte = [0];
            bus.stream.read_exact(&mut byte)?;
            answer.push(byte[0]);
            if answer.len() > 1000 {
                return Err(BusError::Malformed("a line without end"));
            }
        }
        if !answer.starts_with(b"OK ") {
            return Err(BusError::Refused {
                name: "authentication".to_owned(),
                text: String::from_utf8_lossy(&answer).trim().to_owned(),
            });
        }
        bus.stream.write_all(b"BEGIN\r\n")?;
        bus.call(BUS, BUS_PATH, BUS, "Hello", &[])?;
        Ok(bus)
    }

    /// Whether a service is running.
    pub fn has_owner(&mut self, name: &str) -> Result<bool, BusError> {
        Ok(self.call(BUS, BUS_PATH, BUS, "NameHasOwner", &[name])? == Reply::Boolean(true))
    }

    /// Calls a method with texts and waits for its answer.
    pub fn call(
        &mut self,
        service: &str,
        path: &str,
        interface: &str,
        method: &str,
        texts: &[&str],
    ) -> Result<Reply, BusError> {
        self.serial += 1;
        let mut body = Writer::default();
        for text in texts {
            body.text(text);
        }
        let mut message = Writer::default();
        message.bytes.extend([b'l', CALL, 0, 1]);
        message.number(body.bytes.len() as u32);
        message.number(self.serial);
        message.fields(&[
            (PATH, "o", path),
            (DESTINATION, "s", service),
            (INTERFACE, "s", interface),
            (MEMBER, "s", method),
            (SIGNATURE, "g", &"s".repeat(texts.len())),
        ]);
        message.bytes.extend(body.bytes);
        self.stream.write_all(&message.bytes)?;
        loop {
            let message = self.receive()?;
            if message.reply_serial != Some(self.serial) {
                // Signals, such as that this connection has got its name.
                continue;
            }
            match message.kind {
                RETURN => return Ok(message.reply),
                ERROR => {
                    let text = match message.reply {
                        Reply::Text(text) => text,
                        _ => String::new(),
                    };
                    return Err(BusError::Refused { name: message.error_name, text });
                }
                _ => {}
            }
        }
    }

    fn receive(&mut self) -> Result<Message, BusError> {
        let mut head = [0; 16];
        self.stream.read_exact(&mut head)?;
        let (body, fields) = lengths(&head)?;
        let mut rest = vec![0; fields.next_multiple_of(8) + body];
        self.stream.read_exact(&mut rest)?;
        Message::parse(&head, &rest).ok_or(BusError::Malformed("a message whose parts do not fit"))
    }
}

/// The lengths of a message's body and of its header's fields.
fn lengths(head: &[u8; 16]) -> Result<(usize, usize), BusError> {
    let mut reader = Reader { bytes: head, at: 4, big: head[0] == b'B' };
    let body = reader.number().unwrap_or(u32::MAX) as usize;
    reader.at = 12;
    let fields = reader.number().unwrap_or(u32::MAX) as usize;
    if !matches!(head[0], b'l' | b'B') || head[3] != 1 {
        return Err(BusError::Malformed("a message of another version"));
    }
    if body > LONGEST || fields > LONGEST {
        return Err(BusError::Malformed("a message that is too long"));
    }
    Ok((body, fields))
}

/// What matters of a received message.
#[derive(Debug, PartialEq, Eq)]
struct Message {
    kind: u8,
    reply_serial: Option<u32>,
    error_name: String,
    reply: Reply,
}

impl Message {
    /// Reads the 16 bytes before the fields, and the rest. Alignment counts from the first byte, and
    /// 16 is a multiple of all.
    fn parse(head: &[u8; 16], rest: &[u8]) -> Option<Message> {
        let (_, fields) = lengths(head).ok()?;
        let mut reader = Reader { bytes: rest.get(..fields)?, at: 0, big: head[0] == b'B' };
        let mut message =
            Message { kind: head[1], reply_serial: None, error_name: String::new(), reply: Reply::Other };
        let mut signature = String::new();
        while reader.at < fields {
            reader.align(8);
            let code = reader.byte()?;
            let kind = reader.signature()?;
            match (code, kind.as_str()) {
                (REPLY_SERIAL, "u") => message.reply_serial = Some(reader.number()?),
                (ERROR_NAME, "s") => message.error_name = reader.text()?,
                (SIGNATURE, "g") => signature = reader.signature()?,
                (_, "s" | "o") => drop(reader.text()?),
                (_, "g") => drop(reader.signature()?),
                (_, "u") => drop(reader.number()?),
                _ => return None,
            }
        }
        let mut reader = Reader { bytes: rest.get(fields.next_multiple_of(8)..)?, at: 0, big: reader.big };
        message.reply = match signature.chars().next() {
            Some('s') => Reply::Text(reader.text()?),
            Some('b') => Reply::Boolean(reader.number()? == 1),
            _ => Reply::Other,
        };
        Some(message)
    }
}

#[derive(Default)]
struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    fn align(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }

    fn number(&mut self, number: u32) {
        self.align(4);
        self.bytes.extend(number.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.number(text.len() as u32);
        self.bytes.extend(text.as_bytes());
        self.bytes.push(0);
    }

    fn signature(&mut self, signature: &str) {
        self.bytes.push(signature.len() as u8);
        self.bytes.extend(signature.as_bytes());
        self.bytes.push(0);
    }

    /// The header's fields: those that are not empty.
    fn fields(&mut self, fields: &[(u8, &str, &str)]) {
        let length_at = self.bytes.len();
        self.number(0);
        let start = self.bytes.len();
        for (code, kind, value) in fields.iter().filter(|(_, _, value)| !value.is_empty()) {
            self.align(8);
            self.bytes.push(*code);
            self.signature(kind);
            if *kind == "g" {
                self.signature(value);
            } else {
                self.text(value);
            }
        }
        let length = (self.bytes.len() - start) as u32;
        self.bytes[length_at..start].copy_from_slice(&length.to_le_bytes());
        self.align(8);
    }
}

/// Reads values in the sender's byte order. Nothing here trusts a length.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    big: bool,
}

impl Reader<'_> {
    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn byte(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    fn number(&mut self) -> Option<u32> {
        self.align(4);
        let bytes: [u8; 4] = self.bytes.get(self.at..self.at.checked_add(4)?)?.try_into().ok()?;
        self.at += 4;
        Some(if self.big { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
    }

    fn text(&mut self) -> Option<String> {
        let length = self.number()? as usize;
        self.terminated(length)
    }

    fn signature(&mut self) -> Option<String> {
        let length = usize::from(self.byte()?);
        self.terminated(length)
    }

    fn terminated(&mut self, length: usize) -> Option<String> {
        let end = self.at.checked_add(length)?;
        let text = String::from_utf8_lossy(self.bytes.get(self.at..end)?).into_owned();
        self.at = end.checked_add(1)?;
        Some(text)
    }
}

#[cfg(test)]
mod tests;
