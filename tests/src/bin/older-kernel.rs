//! `older-kernel WITHOUT... -- PROGRAM [ARGUMENT...]`: runs a program that gets the answers which a kernel
//! without something gives, by a seccomp filter. For the stories about what flanneld does then; no kernel
//! that is still to be had lacks all of it.

#![forbid(unsafe_code)]

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context, Result, bail};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

const SOL_UDP: u64 = 17;
const UDP_SEGMENT: u64 = 103;
const UDP_GRO: u64 = 104;
const TUNGETFEATURES: u64 = 0x8004_54cf;
const TUNSETOFFLOAD: u64 = 0x4004_54d0;
/// `TUN_F_USO4 | TUN_F_USO6`
const USO: u64 = 0x20 | 0x40;

/// A system call that is answered by an error if its arguments are these.
struct Refusal {
    name: &'static str,
    call: i64,
    /// Which argument, how it is compared, and with what.
    arguments: &'static [(u8, SeccompCmpOp, u64)],
    /// What a kernel answers that has never heard of it.
    errno: i32,
}

const REFUSALS: [Refusal; 5] = [
    // Before Linux 4.18.
    Refusal {
        name: "udp-segment",
        call: libc::SYS_setsockopt,
        arguments: &[(1, SeccompCmpOp::Eq, SOL_UDP), (2, SeccompCmpOp::Eq, UDP_SEGMENT)],
        errno: libc::ENOPROTOOPT,
    },
    // Before Linux 5.0.
    Refusal {
        name: "udp-gro",
        call: libc::SYS_setsockopt,
        arguments: &[(1, SeccompCmpOp::Eq, SOL_UDP), (2, SeccompCmpOp::Eq, UDP_GRO)],
        errno: libc::ENOPROTOOPT,
    },
    // Before Linux 6.2.
    Refusal {
        name: "uso",
        call: libc::SYS_ioctl,
        arguments: &[(1, SeccompCmpOp::Eq, TUNSETOFFLOAD), (2, SeccompCmpOp::MaskedEq(USO), USO)],
        errno: libc::EINVAL,
    },
    // Before Linux 2.6.27, and drivers of other systems that call themselves Linux.
    Refusal {
        name: "tun-offload",
        call: libc::SYS_ioctl,
        arguments: &[(1, SeccompCmpOp::Eq, TUNSETOFFLOAD)],
        errno: libc::EINVAL,
    },
    // The same: whoever cannot be asked what there is has no virtio header.
    Refusal {
        name: "vnet-header",
        call: libc::SYS_ioctl,
        arguments: &[(1, SeccompCmpOp::Eq, TUNGETFEATURES)],
        errno: libc::EINVAL,
    },
];

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    for name in arguments.by_ref().take_while(|argument| argument != "--") {
        let Some(refusal) = REFUSALS.iter().find(|refusal| refusal.name == name) else {
            bail!("{name} is none of {}", REFUSALS.map(|refusal| refusal.name).join(", "));
        };
        seccompiler::apply_filter(&refusal.filter()?).with_context(|| format!("refusing {name}"))?;
    }
    let program = arguments.next().context("usage: older-kernel WITHOUT... -- PROGRAM [ARGUMENT...]")?;
    let error = run(&program, arguments);
    Err(error).with_context(|| format!("running {program}"))
}

#[expect(clippy::disallowed_methods, reason = "it becomes the program")]
fn run(program: &str, arguments: impl Iterator<Item = String>) -> std::io::Error {
    Command::new(program).args(arguments).exec()
}

impl Refusal {
    fn filter(&self) -> Result<BpfProgram> {
        let conditions = self.arguments.iter().map(|(number, compared, with)| {
            SeccompCondition::new(*number, SeccompCmpArgLen::Dword, compared.clone(), *with)
        });
        let rule = SeccompRule::new(conditions.collect::<Result<_, _>>()?)?;
        let filter = SeccompFilter::new(
            [(self.call, vec![rule])].into(),
            SeccompAction::Allow,
            SeccompAction::Errno(self.errno.unsigned_abs()),
            std::env::consts::ARCH.try_into()?,
        )?;
        Ok(filter.try_into()?)
    }
}
