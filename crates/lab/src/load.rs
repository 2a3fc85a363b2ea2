//! Load: streams, requests and datagrams by our own hand, so that neither a lab nor a user on two nodes
//! needs a program to measure with.
//!
//! One side serves ([`serve`]), the other measures ([`measure`]). Each measurement begins with one TCP
//! connection on which the client says in one line what it wants:
//!
//! | line | then |
//! |---|---|
//! | `sink` | the client sends; the server reads until the end and answers with the number of bytes |
//! | `sinks NUMBER` | the server answers with a TCP port, reads so many connections to it by one thread until all end, and answers with the number of bytes |
//! | `source MILLISECONDS` | the server sends for so long |
//! | `echo` | the server sends each byte back |
//! | `datagrams` | the server answers with a UDP port, counts what comes there until the client ends the connection's sending side, and answers with the number |

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, poll};

/// The port that a server listens on unless told otherwise.
pub const PORT: u16 = 8478;
/// How much is written and read at once.
const CHUNK: usize = 128 * 1024;
/// How long a side waits for the other before it gives up.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest line of a client.
const LINE: u64 = 64;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// So many TCP streams at once from client to server.
    Send(usize),
    /// The same, and the server reads all of them by one thread, as servers with an event loop do.
    SendToOne(usize),
    /// So many TCP streams at once from server to client.
    Receive(usize),
    /// Requests of one byte, each answered by one byte before the next, over one TCP connection.
    Requests,
    /// Datagrams with so many octets of payload, as fast as they can be sent.
    Datagrams(usize),
    /// Datagrams with so many octets of payload, so many a second, evenly.
    Paced(usize, u32),
}

/// What came of it. Figures that a load does not have are zero.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Measured {
    /// How long it took.
    pub seconds: f64,
    /// Payload that arrived.
    pub gigabits_per_second: f64,
    /// Requests answered.
    pub requests_per_second: f64,
    /// How long half of the requests took at most, in microseconds.
    pub p50_microseconds: f64,
    /// How long 99 % of the requests took at most, in microseconds.
    pub p99_microseconds: f64,
    /// Datagrams that arrived.
    pub datagrams_per_second: f64,
    /// Datagrams that did not, of all that were sent: from 0 to 1.
    pub lost: f64,
    /// Processor time of the whole machine on which the client runs, in seconds.
    pub processor_seconds: f64,
}

impl Measured {
    /// Processor seconds for each gigabit of payload.
    pub fn processor_per_gigabit(&self) -> f64 {
        self.processor_seconds / (self.gigabits_per_second * self.seconds).max(f64::MIN_POSITIVE)
    }
}

/// Serves clients until the process ends or `stop` is set; each has a thread.
pub fn serve(listener: &TcpListener, stop: &AtomicBool) -> io::Result<()> {
    for stream in listener.incoming() {
        if stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        let stream = stream?;
        thread::Builder::new().name("client".to_owned()).spawn(move || {
            // A client that breaks off, or says what nobody understands, harms only itself.
            let _ = answer(stream);
        })?;
    }
    Ok(())
}

fn answer(stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::with_capacity(CHUNK, stream.try_clone()?);
    let mut line = String::new();
    reader.by_ref().take(LINE).read_line(&mut line)?;
    let mut writer = stream;
    match line.split_whitespace().collect::<Vec<_>>()[..] {
        ["sink"] => {
            let bytes = drain(&mut reader)?;
            Ok(writer.write_all(&bytes.to_be_bytes())?)
        }
        ["sinks", number] => drain_all(number.parse()?, &mut writer),
        ["source", milliseconds] => {
            let time = Duration::from_millis(milliseconds.parse::<u32>()?.into());
            pour(&mut writer, time.min(Duration::from_secs(600)))?;
            Ok(())
        }
        ["echo"] => {
            let mut byte = [0];
            while reader.read(&mut byte)? == 1 {
                writer.write_all(&byte)?;
            }
            Ok(())
        }
        ["datagrams"] => count_datagrams(&mut reader, &mut writer),
        _ => bail!("a client wants {line:?}"),
    }
}

/// Reads so many streams by this one thread.
fn drain_all(number: usize, writer: &mut TcpStream) -> Result<()> {
    const MOST: usize = 256;
    ensure!(number <= MOST, "{number} streams are more than the {MOST} that one thread reads");
    let mut here = writer.local_addr()?;
    here.set_port(0);
    let listener = TcpListener::bind(here)?;
    writer.write_all(&listener.local_addr()?.port().to_be_bytes())?;
    let mut streams = Vec::new();
    while streams.len() < number {
        readable(&[&listener])?;
        streams.push(listener.accept()?.0);
    }
    let (mut chunk, mut bytes) = (vec![0; CHUNK], 0);
    while !streams.is_empty() {
        for at in readable(&streams.iter().collect::<Vec<_>>())?.into_iter().rev() {
            match streams[at].read(&mut chunk)? {
                0 => drop(streams.swap_remove(at)),
                some => bytes += some as u64,
            }
        }
    }
    Ok(writer.write_all(&bytes.to_be_bytes())?)
}

/// Waits until some can be read; which, in order.
fn readable<S: AsFd>(sockets: &[&S]) -> Result<Vec<usize>> {
    let mut polled: Vec<_> = sockets.iter().map(|socket| PollFd::new(*socket, PollFlags::IN)).collect();
    let patience = PATIENCE.try_into().expect("seconds fit");
    ensure!(poll(&mut polled, Some(&patience))? > 0, "nothing came for {} s", PATIENCE.as_secs());
    Ok((0..polled.len()).filter(|at| !polled[*at].revents().is_empty()).collect())
}

fn count_datagrams(reader: &mut impl Read, writer: &mut TcpStream) -> Result<()> {
    let mut here = writer.local_addr()?;
    here.set_port(0);
    let socket = UdpSocket::bind(here)?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    // A burst must fit, as it would with any receiver that cares; refused, it stays as it is.
    let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, 4 << 20);
    writer.write_all(&socket.local_addr()?.port().to_be_bytes())?;
    let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let counter = {
        let (stop, seen) = (Arc::clone(&stop), Arc::clone(&seen));
        thread::spawn(move || {
            let mut datagram = [0; 65_536];
            loop {
                match socket.recv(&mut datagram) {
                    Ok(_) => drop(seen.fetch_add(1, Ordering::Relaxed)),
                    // Not sooner: what has arrived may not be read yet on a busy machine.
                    Err(_) if stop.load(Ordering::Relaxed) => return,
                    Err(_) => {}
                }
            }
        })
    };
    // The client says when it has sent all; what is still on its way has the timeout above to arrive.
    let ended = drain(reader);
    stop.store(true, Ordering::Relaxed);
    let _ = counter.join();
    ended?;
    Ok(writer.write_all(&seen.load(Ordering::Relaxed).to_be_bytes())?)
}

/// Puts a load on the way to a server for so long, and says what came of it.
pub fn measure(server: SocketAddr, load: Load, time: Duration) -> Result<Measured> {
    let doing = || format!("measuring with the server at {server} (`flannelctl bench serve` runs one)");
    let processor = busy_time();
    let mut measured = match load {
        Load::Send(streams) => in_parallel(streams, || send(server, time)),
        Load::SendToOne(streams) => send_to_one(server, streams, time),
        Load::Receive(streams) => in_parallel(streams, || receive(server, time)),
        Load::Requests => requests(server, time),
        Load::Datagrams(octets) => datagrams(server, octets, time, &mut flood()),
        Load::Paced(octets, rate) => datagrams(server, octets, time, &mut paced(rate)),
    }
    .with_context(doing)?;
    measured.processor_seconds = (busy_time() - processor).max(0.0);
    Ok(measured)
}

fn dial(server: SocketAddr, wish: &str) -> Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    writeln!(stream, "{wish}")?;
    Ok(stream)
}

/// Runs as many as wanted at once; each says how many bytes it moved.
fn in_parallel(streams: usize, one: impl Fn() -> Result<u64> + Sync) -> Result<Measured> {
    let began = Instant::now();
    let moved = thread::scope(|scope| {
        let threads: Vec<_> = (0..streams.max(1)).map(|_| scope.spawn(&one)).collect();
        threads.into_iter().map(|thread| thread.join().expect("it does not panic")).sum::<Result<u64>>()
    })?;
    Ok(moved_since(began, moved))
}

fn moved_since(began: Instant, bytes: u64) -> Measured {
    let seconds = began.elapsed().as_secs_f64();
    Measured { seconds, gigabits_per_second: bytes as f64 * 8e-9 / seconds, ..Measured::default() }
}

fn send_to_one(server: SocketAddr, streams: usize, time: Duration) -> Result<Measured> {
    let began = Instant::now();
    let mut control = dial(server, &format!("sinks {}", streams.max(1)))?;
    let (mut port, mut arrived) = ([0; 2], [0; 8]);
    control.read_exact(&mut port)?;
    let sink = SocketAddr::new(server.ip(), u16::from_be_bytes(port));
    in_parallel(streams, || {
        let mut stream = TcpStream::connect_timeout(&sink, PATIENCE)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        pour(&mut stream, time)?;
        Ok(0)
    })?;
    control.read_exact(&mut arrived)?;
    Ok(moved_since(began, u64::from_be_bytes(arrived)))
}

fn send(server: SocketAddr, time: Duration) -> Result<u64> {
    let mut stream = dial(server, "sink")?;
    pour(&mut stream, time)?;
    stream.shutdown(Shutdown::Write)?;
    let mut arrived = [0; 8];
    stream.read_exact(&mut arrived)?;
    Ok(u64::from_be_bytes(arrived))
}

fn receive(server: SocketAddr, time: Duration) -> Result<u64> {
    let mut stream = dial(server, &format!("source {}", time.as_millis()))?;
    Ok(drain(&mut stream)?)
}

fn requests(server: SocketAddr, time: Duration) -> Result<Measured> {
    let mut stream = dial(server, "echo")?;
    let (began, mut took, mut byte) = (Instant::now(), Vec::new(), [0]);
    // At least one, also where the time is over before this thread is run.
    while took.is_empty() || began.elapsed() < time {
        let asked = Instant::now();
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
        took.push(asked.elapsed());
    }
    let seconds = began.elapsed().as_secs_f64();
    took.sort_unstable();
    let at = |percent: usize| took[(took.len() * percent / 100).min(took.len() - 1)].as_secs_f64() * 1e6;
    Ok(Measured {
        seconds,
        requests_per_second: took.len() as f64 / seconds,
        p50_microseconds: at(50),
        p99_microseconds: at(99),
        ..Measured::default()
    })
}

fn datagrams(
    server: SocketAddr,
    octets: usize,
    time: Duration,
    due: &mut dyn FnMut(Duration) -> u32,
) -> Result<Measured> {
    let mut control = dial(server, "datagrams")?;
    let mut port = [0; 2];
    control.read_exact(&mut port)?;
    let mut here = control.local_addr()?;
    here.set_port(0);
    let socket = UdpSocket::bind(here)?;
    socket.connect(SocketAddr::new(server.ip(), u16::from_be_bytes(port)))?;
    let (began, mut sent, payload) = (Instant::now(), 0u64, vec![0; octets]);
    let mut now = Duration::ZERO;
    // Once more when the time is over: what was due by then is sent also where this thread was not run.
    while now < time {
        now = began.elapsed();
        for _ in 0..due(now) {
            match socket.send(&payload) {
                Ok(_) => sent += 1,
                // The queue of the device is full: that one is lost, as on a wire.
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NOBUFS.raw_os_error()) => {
                    sent += 1
                }
                Err(error) => return Err(error).context("sending a datagram"),
            }
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    control.shutdown(Shutdown::Write)?;
    let mut seen = [0; 8];
    control.read_exact(&mut seen)?;
    let seen = u64::from_be_bytes(seen).min(sent);
    Ok(Measured {
        seconds,
        gigabits_per_second: seen as f64 * octets as f64 * 8e-9 / seconds,
        datagrams_per_second: seen as f64 / seconds,
        lost: (sent - seen) as f64 / sent.max(1) as f64,
        ..Measured::default()
    })
}

/// As many as there is time for: looked at the clock for every one, the clock would be what is measured.
fn flood() -> impl FnMut(Duration) -> u32 {
    |_| 32
}

/// So many a second. Waits until some are due; a sender that was kept from sending does not make up for more
/// than a few of what it missed, or it would be its own burst that is lost.
fn paced(rate: u32) -> impl FnMut(Duration) -> u32 {
    const BURST: u64 = 16;
    let mut done = 0u64;
    move |now| {
        let due = (now.as_secs_f64() * f64::from(rate)) as u64;
        let some = due.saturating_sub(done).min(BURST);
        done = due;
        if some == 0 {
            thread::sleep(
                Duration::from_secs_f64(0.5 / f64::from(rate.max(1))).min(Duration::from_millis(10)),
            );
        }
        some as u32
    }
}

/// Writes for so long, and ends.
fn pour(to: &mut TcpStream, time: Duration) -> io::Result<()> {
    let (began, chunk) = (Instant::now(), vec![0; CHUNK]);
    loop {
        to.write_all(&chunk)?;
        if began.elapsed() >= time {
            return Ok(());
        }
    }
}

/// Reads to the end; returns how many bytes there were.
fn drain(from: &mut impl Read) -> io::Result<u64> {
    let (mut chunk, mut bytes) = (vec![0; CHUNK], 0);
    loop {
        match from.read(&mut chunk)? {
            0 => return Ok(bytes),
            some => bytes += some as u64,
        }
    }
}

/// Processor time that the machine has spent on anything since it started, in seconds; zero where that
/// cannot be told. See proc_stat(5).
fn busy_time() -> f64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    busy_ticks(&stat) as f64 / 100.0
}

fn busy_ticks(stat: &str) -> u64 {
    let fields = stat.lines().next().unwrap_or_default().split_ascii_whitespace().skip(1);
    let ticks: Vec<u64> = fields.map(|field| field.parse().unwrap_or(0)).collect();
    // user, nice, system, then irq and softirq behind idle and iowait.
    [0, 1, 2, 5, 6].iter().filter_map(|at| ticks.get(*at)).sum()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use rustix::net::{AddressFamily, SocketType};

    use super::*;

    fn server() -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || serve(&listener, &AtomicBool::new(false)));
        address
    }

    const MOMENT: Duration = Duration::from_millis(30);

    #[test]
    fn streams_move_bytes_both_ways() {
        let server = server();
        for load in [Load::Send(1), Load::Send(3), Load::SendToOne(3), Load::Receive(2)] {
            let measured = measure(server, load, MOMENT).unwrap();
            assert!(measured.gigabits_per_second > 0.0 && measured.seconds >= 0.03, "{load:?}: {measured:?}");
        }
    }

    #[test]
    fn requests_are_answered_one_by_one() {
        let measured = measure(server(), Load::Requests, MOMENT).unwrap();
        assert!(measured.requests_per_second > 0.0);
        assert!(0.0 < measured.p50_microseconds && measured.p50_microseconds <= measured.p99_microseconds);
    }

    #[test]
    fn datagrams_arrive_or_are_lost() {
        let measured = measure(server(), Load::Datagrams(1300), MOMENT).unwrap();
        assert!(measured.datagrams_per_second > 0.0, "{measured:?}");
        assert!((0.0..1.0).contains(&measured.lost), "{measured:?}");
        let measured = measure(server(), Load::Paced(1300, 1000), MOMENT).unwrap();
        assert!(
            measured.datagrams_per_second > 0.0 && measured.datagrams_per_second <= 1000.0,
            "{measured:?}"
        );
    }

    #[test]
    fn a_pace_is_kept_and_what_was_missed_is_made_up_for_in_part() {
        let mut due = paced(1000);
        let at = Duration::from_millis;
        assert_eq!([due(at(0)), due(at(1)), due(at(1)), due(at(5))], [0, 1, 0, 4]);
        assert_eq!([due(at(505)), due(at(506))], [16, 1], "half a second missed");
    }

    #[test]
    fn nobody_there_is_said_with_the_remedy_and_rubbish_ends_only_its_connection() {
        // The port is taken, so that it becomes nobody else's, and nobody listens.
        let taken = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        rustix::net::bind(&taken, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
        let gone = rustix::net::getsockname(&taken).unwrap().try_into().unwrap();
        let error = measure(gone, Load::Requests, MOMENT).unwrap_err();
        assert!(format!("{error:#}").contains("flannelctl bench serve"), "{error:#}");
        let server = server();
        let mut stream = dial(server, "GET / HTTP/1.1").unwrap();
        assert_eq!(drain(&mut stream).unwrap_or(0), 0);
        measure(server, Load::Requests, MOMENT).unwrap();
    }

    #[test]
    fn idle_time_does_not_count_as_busy() {
        assert_eq!(busy_ticks("cpu  10 20 30 4000 500 6 7 8 0 0\ncpu0 1 1 1 1"), 10 + 20 + 30 + 6 + 7);
        assert_eq!(busy_ticks(""), 0);
    }
}
