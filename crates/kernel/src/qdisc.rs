//! Queueing disciplines: a limit to the rate at which a device sends, and sending elsewhere what a device
//! receives, so that it can be limited there.
//!
//! Source: `net/sched/sch_api.c`, `net/sched/sch_tbf.c`, `net/sched/sch_ingress.c`, `net/sched/cls_u32.c`,
//! `net/sched/act_mirred.c`, `include/uapi/linux/{pkt_sched,pkt_cls,rtnetlink}.h`,
//! `include/uapi/linux/tc_act/tc_mirred.h`.

use std::time::Duration;

use rustix::io::Errno;

use crate::error::{Doing, KernelError};
use crate::netlink::{
    Answer, CREATE, EXCL, Encoder, NetlinkError, REPLACE, Socket, attributes, read_text, read_u32,
};

const TC_H_ROOT: u32 = 0xffff_ffff;
const TC_H_INGRESS: u32 = 0xffff_fff1;
/// `1:`, the name of a limit.
const LIMIT: u32 = 0x0001_0000;
/// `ffff:`, the name that the kernel gives the discipline for what is received.
const INGRESS: u32 = 0xffff_0000;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_U32_CLASSID: u16 = 1;
const TCA_U32_SEL: u16 = 5;
const TCA_U32_ACT: u16 = 7;
const TC_U32_TERMINAL: u8 = 1;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_MIRRED_PARMS: u16 = 2;
const TC_ACT_STOLEN: u32 = 4;
const TCA_EGRESS_REDIR: u32 = 1;
const HEADER_LEN: usize = 20; // struct tcmsg

/// Nanoseconds of one tick, in which the kernel wants times (`PSCHED_SHIFT`, constant since Linux 2.6.31).
const TICK: u64 = 64;

/// A token bucket: bytes leave at a rate, and some more at once where few left before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenBucket {
    /// Bytes per second.
    pub rate: u64,
    /// How long it takes to send a full bucket at that rate, in ticks of 64 ns.
    pub buffer: u32,
    /// How many bytes may wait.
    pub limit: u32,
}

impl TokenBucket {
    /// A bucket of `burst` bytes. Bytes wait for at most `latency`; what comes when more than that wait
    /// is dropped. Values that the kernel's format cannot say become the largest that it can.
    pub fn new(rate: u64, burst: u32, latency: Duration) -> TokenBucket {
        let (wide, micros) = (u128::from(rate.max(1)), 1_000_000_u128);
        // Compatibility: in whole microseconds first, as the reference plugin has it.
        let filling = u32::try_from(u128::from(burst) * micros / wide).unwrap_or(u32::MAX);
        let buffer = u32::try_from(u64::from(filling) * 1000 / TICK).unwrap_or(u32::MAX);
        let waiting = wide * latency.as_micros() / micros;
        let limit = u32::try_from(waiting + u128::from(burst)).unwrap_or(u32::MAX);
        TokenBucket { rate, buffer, limit }
    }
}

/// Limits the rate at which a device sends, in place of whatever limited it.
pub fn limit(socket: &mut Socket, link: u32, bucket: &TokenBucket) -> Result<(), KernelError> {
    let limited = socket.request(libc::RTM_NEWQDISC, CREATE | REPLACE, |body| {
        header(body, link, LIMIT, TC_H_ROOT, 0);
        body.text(TCA_KIND, "tbf");
        body.nest(TCA_OPTIONS, |body| {
            let short = u32::try_from(bucket.rate);
            body.attribute(TCA_TBF_PARMS, &tbf_options(bucket));
            if short.is_err() {
                body.attribute(TCA_TBF_RATE64, &bucket.rate.to_ne_bytes());
            }
        });
    });
    lacking(limited, "CONFIG_NET_SCH_TBF (modprobe sch_tbf)", || {
        format!("limit what device number {link} sends to {} bytes per second", bucket.rate)
    })
}

/// `struct tc_tbf_qopt`
fn tbf_options(bucket: &TokenBucket) -> [u8; 36] {
    let mut options = [0; 36];
    // The rate is the last member of the first `struct tc_ratespec`; the second one, the peak, stays 0.
    let rate = u32::try_from(bucket.rate).unwrap_or(u32::MAX);
    for (at, value) in [(8, rate), (24, bucket.limit), (28, bucket.buffer)] {
        options[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    options
}

/// The limit of a device, if it has one.
pub fn limit_of(socket: &mut Socket, link: u32) -> Result<Option<TokenBucket>, KernelError> {
    let found = list(socket, link)?.into_iter().find(|found| found.parent == TC_H_ROOT);
    Ok(found.filter(|found| found.kind == "tbf").and_then(|found| found.bucket))
}

/// Takes the limit of a device away. That there is none is no error.
pub fn remove_limit(socket: &mut Socket, link: u32) -> Result<(), KernelError> {
    if limit_of(socket, link)?.is_none() {
        return Ok(());
    }
    remove(socket, link, (LIMIT, TC_H_ROOT), || format!("take the limit of device number {link} away"))
}

/// Sends what a device receives out of another one, which hands it back after its own queue.
///
/// Refused with EEXIST where another program decides about what the device receives.
pub fn redirect(socket: &mut Socket, from: u32, to: u32) -> Result<(), KernelError> {
    let doing = || format!("redirect what device number {from} receives to device number {to}");
    let prepared = socket.request(libc::RTM_NEWQDISC, CREATE | EXCL, |body| {
        header(body, from, INGRESS, TC_H_INGRESS, 0);
        body.text(TCA_KIND, "ingress");
        body.nest(TCA_OPTIONS, |_| {});
    });
    lacking(prepared, "CONFIG_NET_SCH_INGRESS (modprobe sch_ingress)", doing)?;
    let redirected = socket.request(libc::RTM_NEWTFILTER, CREATE | EXCL, |body| {
        // Priority 1, and any protocol, in network byte order.
        let info = (1 << 16) | u32::from((libc::ETH_P_ALL as u16).to_be());
        header(body, from, 0, INGRESS, info);
        body.text(TCA_KIND, "u32");
        body.nest(TCA_OPTIONS, |body| match_all(body, to));
    });
    let needed = "CONFIG_NET_CLS_U32 and CONFIG_NET_ACT_MIRRED (modprobe cls_u32 act_mirred)";
    lacking(redirected, needed, doing)
}

fn match_all(body: &mut Encoder, to: u32) {
    // `struct tc_u32_sel` with one key, whose mask of zero fits everything.
    let mut selector = [0; 32];
    (selector[0], selector[2]) = (TC_U32_TERMINAL, 1);
    body.attribute(TCA_U32_SEL, &selector);
    body.u32(TCA_U32_CLASSID, LIMIT | 1);
    body.nest(TCA_U32_ACT, |body| {
        body.nest(1, |body| {
            body.text(TCA_ACT_KIND, "mirred");
            body.nest(TCA_ACT_OPTIONS, |body| {
                // `struct tc_mirred`: index, capabilities, action, two counters, what to do, where to.
                let words = [0, 0, TC_ACT_STOLEN, 0, 0, TCA_EGRESS_REDIR, to];
                body.attribute(TCA_MIRRED_PARMS, &words.map(u32::to_ne_bytes).concat());
            });
        });
    });
}

/// The devices to which what a device receives is redirected.
pub fn redirections(socket: &mut Socket, link: u32) -> Result<Vec<u32>, KernelError> {
    if !has_ingress(socket, link)? {
        return Ok(Vec::new());
    }
    socket
        .dump(
            libc::RTM_GETTFILTER,
            |body| header(body, link, 0, INGRESS, 0),
            |found: &mut Vec<u32>, answer| {
                let options = attribute(answer.payload.get(HEADER_LEN..).unwrap_or_default(), TCA_OPTIONS);
                let actions = attribute(options, TCA_U32_ACT);
                found.extend(attributes(actions).filter_map(|(_, action)| redirection(action)));
                Ok(())
            },
        )
        .doing(|| format!("list the filters of device number {link}"))
}

fn redirection(action: &[u8]) -> Option<u32> {
    let words = attribute(attribute(action, TCA_ACT_OPTIONS), TCA_MIRRED_PARMS);
    let is_redirection = read_text(attribute(action, TCA_ACT_KIND)) == "mirred"
        && read_u32(words, 20) == Some(TCA_EGRESS_REDIR);
    read_u32(words, 24).filter(|_| is_redirection)
}

/// Takes redirections of what a device receives away. That there is none is no error.
pub fn remove_redirection(socket: &mut Socket, link: u32) -> Result<(), KernelError> {
    if !has_ingress(socket, link)? {
        return Ok(());
    }
    remove(socket, link, (INGRESS, TC_H_INGRESS), || {
        format!("stop to redirect what device number {link} receives")
    })
}

fn has_ingress(socket: &mut Socket, link: u32) -> Result<bool, KernelError> {
    Ok(list(socket, link)?.iter().any(|found| found.kind == "ingress"))
}

fn remove(
    socket: &mut Socket,
    link: u32,
    (handle, parent): (u32, u32),
    doing: impl FnOnce() -> String,
) -> Result<(), KernelError> {
    match socket.request(libc::RTM_DELQDISC, 0, |body| header(body, link, handle, parent, 0)) {
        // It went in the meantime, or its device did.
        Err(error) if matches!(error.errno(), Some(Errno::NOENT | Errno::NODEV)) => Ok(()),
        other => other.doing(doing),
    }
}

/// A queueing discipline, as far as it matters here.
#[derive(Debug)]
struct Discipline {
    kind: String,
    parent: u32,
    bucket: Option<TokenBucket>,
}

fn list(socket: &mut Socket, link: u32) -> Result<Vec<Discipline>, KernelError> {
    let listed = socket.dump(
        libc::RTM_GETQDISC,
        |body| header(body, link, 0, 0, 0),
        |found: &mut Vec<Discipline>, answer| {
            // The kernel lists those of all devices.
            if read_u32(answer.payload, 4) == Some(link) {
                found.extend(decode(answer));
            }
            Ok(())
        },
    );
    match listed {
        // A kernel that has none.
        Err(error) if error.errno() == Some(Errno::OPNOTSUPP) => Ok(Vec::new()),
        other => other.doing(|| format!("list the queueing disciplines of device number {link}")),
    }
}

fn decode(answer: Answer<'_>) -> Option<Discipline> {
    let parent = read_u32(answer.payload, 12)?;
    let all = answer.payload.get(HEADER_LEN..)?;
    let options = attribute(all, TCA_OPTIONS);
    let parameters = attribute(options, TCA_TBF_PARMS);
    let long: Option<[u8; 8]> = attribute(options, TCA_TBF_RATE64).try_into().ok();
    let kind = read_text(attribute(all, TCA_KIND));
    let bucket = || {
        Some(TokenBucket {
            rate: long.map(u64::from_ne_bytes).or(read_u32(parameters, 8).map(u64::from))?,
            limit: read_u32(parameters, 24)?,
            buffer: read_u32(parameters, 28)?,
        })
    };
    let bucket = if kind == "tbf" { bucket() } else { None };
    Some(Discipline { kind, parent, bucket })
}

fn attribute(all: &[u8], wanted: u16) -> &[u8] {
    attributes(all).find(|(kind, _)| *kind == wanted).map(|(_, value)| value).unwrap_or_default()
}

/// `struct tcmsg`
fn header(body: &mut Encoder, link: u32, handle: u32, parent: u32, info: u32) {
    body.put(&[libc::AF_UNSPEC as u8, 0, 0, 0]);
    for word in [link, handle, parent, info] {
        body.put(&word.to_ne_bytes());
    }
}

/// Says which part of the kernel is missing, where the refusal means that one is.
fn lacking(
    done: Result<(), NetlinkError>,
    feature: &str,
    doing: impl FnOnce() -> String,
) -> Result<(), KernelError> {
    match done {
        Err(error) if matches!(error.errno(), Some(Errno::NOENT | Errno::OPNOTSUPP)) => {
            Err(KernelError::Other {
                doing: doing(),
                why: format!("{error}: the kernel needs CONFIG_NET_SCHED and {feature}"),
            })
        }
        other => other.doing(doing),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_has_the_numbers_of_the_reference_plugin() {
        // 1 Mbit/s with 1 Mbit at once, as read back from a device that the reference plugin limited.
        let bucket = TokenBucket::new(125_000, 125_000, Duration::from_millis(25));
        assert_eq!(bucket, TokenBucket { rate: 125_000, buffer: 15_625_000, limit: 128_125 });
    }

    #[test]
    fn a_part_that_the_kernel_lacks_is_named() {
        let refused = |errno| lacking(Err(NetlinkError::refused(errno)), "CONFIG_X", || "limit".to_owned());
        for errno in [Errno::NOENT, Errno::OPNOTSUPP] {
            let error = refused(errno).unwrap_err().to_string();
            assert!(error.ends_with("the kernel needs CONFIG_NET_SCHED and CONFIG_X"), "{error}");
        }
        assert_eq!(refused(Errno::EXIST).unwrap_err().errno(), Some(Errno::EXIST));
    }

    #[test]
    fn a_bucket_that_is_too_large_for_the_kernel_is_as_large_as_it_can_be() {
        let bucket = TokenBucket::new(1, u32::MAX, Duration::from_millis(25));
        assert_eq!(bucket, TokenBucket { rate: 1, buffer: u32::MAX, limit: u32::MAX });
        assert_eq!(TokenBucket::new(0, 8, Duration::from_millis(25)).buffer, 125_000_000);
        assert_eq!(TokenBucket::new(u64::MAX, 8, Duration::from_millis(25)).limit, u32::MAX);
    }
}
