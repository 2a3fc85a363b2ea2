//! The only program in the image of the pods that stories run: it sleeps, or serves HTTP.
//!
//! ```text
//! test-pod                     sleeps until it is told to end, as a pod's sandbox does
//! test-pod serve PORT          answers HTTP, and echoes UDP, on a port
//! test-pod ask ADDRESS:PORT    asks such a server, and prints the answer
//! ```
//!
//! | request | answer |
//! |---|---|
//! | `GET /` | its name (`$NAME`, or its host name), and the address that the request came from |
//! | `GET /ask?ADDRESS:PORT` | what that server answers to `GET /`: how the network looks from in here |
//! | `GET /flow?ADDRESS:PORT` | nothing; from now on it sends a UDP packet there every 5 ms, and opens a TCP connection every 50 ms |
//! | `GET /flow` | how that went: `udp SENT LOST tcp OPENED FAILED`; ends it |

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program that talks to the terminal")]

use std::env;
use std::fs;
use std::io::{self, BufRead, BufReader, Error, ErrorKind, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(2);
/// How late the answers of a flow may be: what comes later is lost.
const LATE: Duration = Duration::from_secs(10);
const BETWEEN_PACKETS: Duration = Duration::from_millis(5);
const BETWEEN_CONNECTIONS: Duration = Duration::from_millis(50);

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let done = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => wait_for_the_end(),
        ["serve", port] => {
            port.parse().map_err(Error::other).and_then(serve).and_then(|()| wait_for_the_end())
        }
        ["ask", server] => ask(server, LIMIT).map(|answer| print!("{answer}")),
        _ => Err(Error::other("usage: test-pod [serve PORT | ask ADDRESS:PORT]")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("test-pod: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The first process of a container ends by no signal that it does not await.
fn wait_for_the_end() -> io::Result<()> {
    Signals::new([SIGTERM, SIGINT])?.forever().next();
    Ok(())
}

/// What every thread of the server sees.
#[derive(Default)]
struct Server {
    flow: Mutex<Option<Flow>>,
}

fn serve(port: u16) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))?;
    let echo = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))?;
    thread::spawn(move || {
        let mut packet = [0; 64];
        loop {
            if let Ok((length, from)) = echo.recv_from(&mut packet) {
                let _ = echo.send_to(&packet[..length], from);
            }
        }
    });
    let server = Arc::new(Server::default());
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let server = server.clone();
            // Whoever hangs up early hears nothing.
            thread::spawn(move || answer(&server, &stream));
        }
    });
    Ok(())
}

fn answer(server: &Server, mut stream: &TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(LIMIT))?;
    let mut lines = BufReader::new(stream).lines();
    let request = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
    let target = request.split(' ').nth(1).unwrap_or_default();
    let said = match target.split_once('?').unwrap_or((target, "")) {
        ("/", _) => {
            // A pod in the network of its node has that node's host name.
            let name = env::var("NAME").or_else(|_| fs::read_to_string("/proc/sys/kernel/hostname"))?;
            Ok(format!("{} {}\n", name.trim(), stream.peer_addr()?.ip().to_canonical()))
        }
        ("/ask", whom) => ask(whom, LIMIT),
        ("/flow", "") => end_flow(server),
        ("/flow", whom) => begin_flow(server, whom),
        _ => Err(Error::new(ErrorKind::NotFound, "there is no such page")),
    };
    let (status, body) = match said {
        Ok(body) => ("200 OK", body),
        Err(error) => ("502 Bad Gateway", format!("{error}\n")),
    };
    write!(stream, "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// Asks a server for its first page.
fn ask(server: &str, limit: Duration) -> io::Result<String> {
    let address: SocketAddr = server.parse().map_err(Error::other)?;
    let mut stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_read_timeout(Some(limit))?;
    // In one piece: a server of another kind may hang up at the first.
    let request = format!("GET / HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.1 200 ") => Ok(body.to_owned()),
        Some((_, body)) => Err(Error::other(body.trim().to_owned())),
        None => Err(Error::other("the answer broke off")),
    }
}

/// Traffic that goes on until it is asked about.
struct Flow {
    ends: Arc<AtomicBool>,
    packets: JoinHandle<io::Result<(usize, usize)>>,
    connections: JoinHandle<(usize, usize)>,
}

fn begin_flow(server: &Server, whom: &str) -> io::Result<String> {
    let to: SocketAddr = whom.parse().map_err(Error::other)?;
    let ends = Arc::new(AtomicBool::new(false));
    let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.connect(to)?;
    let packets = thread::spawn({
        let ends = ends.clone();
        move || send_packets(&socket, &ends)
    });
    let connections = thread::spawn({
        let ends = ends.clone();
        move || open_connections(&to.to_string(), &ends)
    });
    let flow = Flow { ends, packets, connections };
    *server.flow.lock().unwrap_or_else(PoisonError::into_inner) = Some(flow);
    Ok(String::new())
}

fn end_flow(server: &Server) -> io::Result<String> {
    let flow = server.flow.lock().unwrap_or_else(PoisonError::into_inner).take();
    let flow = flow.ok_or_else(|| Error::other("there is no flow"))?;
    flow.ends.store(true, Ordering::Relaxed);
    let broken = |_| Error::other("the flow broke off");
    let (sent, lost) = flow.packets.join().map_err(broken)??;
    let (opened, failed) = flow.connections.join().map_err(broken)?;
    Ok(format!("udp {sent} {lost} tcp {opened} {failed}\n"))
}

/// Sends numbered packets, and counts those that came back.
fn send_packets(socket: &UdpSocket, ends: &AtomicBool) -> io::Result<(usize, usize)> {
    let mut answered: Vec<bool> = Vec::new();
    let receive = |answered: &mut Vec<bool>, until: Instant| {
        let mut packet = [0; 8];
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            let _ = socket.set_read_timeout(Some(left));
            // An error may be an ICMP message: a packet that is lost, and will be counted.
            if socket.recv(&mut packet).is_ok_and(|length| length == 8) {
                let number = usize::try_from(u64::from_be_bytes(packet)).unwrap_or(usize::MAX);
                if let Some(answered) = answered.get_mut(number) {
                    *answered = true;
                }
            }
        }
    };
    while !ends.load(Ordering::Relaxed) {
        let number = answered.len() as u64;
        answered.push(false);
        let _ = socket.send(&number.to_be_bytes());
        receive(&mut answered, Instant::now() + BETWEEN_PACKETS);
    }
    let end = Instant::now() + LATE;
    while answered.contains(&false) && Instant::now() < end {
        receive(&mut answered, Instant::now() + BETWEEN_CONNECTIONS);
    }
    let lost = answered.iter().filter(|answered| !**answered).count();
    Ok((answered.len(), lost))
}

/// Opens one connection after the other, and counts those that failed.
fn open_connections(whom: &str, ends: &AtomicBool) -> (usize, usize) {
    let (mut opened, mut failed) = (0, 0);
    while !ends.load(Ordering::Relaxed) {
        opened += 1;
        failed += usize::from(ask(whom, LATE).is_err());
        thread::sleep(BETWEEN_CONNECTIONS);
    }
    (opened, failed)
}
