//! What the header of a program says, by elf(5): for which processor it is, and whether it is static.

use anyhow::{Result, bail, ensure};

/// `PT_INTERP`: the program asks for a loader.
const INTERPRETER: u32 = 3;

/// A processor that images are made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Architecture {
    /// x86-64
    Amd64,
    /// 64-bit ARM
    Arm64,
}

impl Architecture {
    /// As OCI images and Go name it.
    pub fn name(self) -> &'static str {
        match self {
            Architecture::Amd64 => "amd64",
            Architecture::Arm64 => "arm64",
        }
    }
}

/// For which processor a program is; refused unless it is static, for an image has no libraries.
pub fn static_architecture(program: &[u8]) -> Result<Architecture> {
    let short = |at: usize| program.get(at..at + 2).map(|two| u16::from_le_bytes([two[0], two[1]]));
    let long = |at: usize| -> Option<u64> {
        Some(u64::from_le_bytes(program.get(at..at.checked_add(8)?)?.try_into().ok()?))
    };
    let word = |at: usize| -> Option<u32> {
        Some(u32::from_le_bytes(program.get(at..at.checked_add(4)?)?.try_into().ok()?))
    };
    ensure!(program.starts_with(b"\x7fELF\x02\x01"), "it is no little-endian 64-bit ELF program");
    let architecture = match short(18) {
        Some(62) => Architecture::Amd64,
        Some(183) => Architecture::Arm64,
        machine => bail!("it is for the machine {machine:?} of elf(5); want 62 (x86-64) or 183 (aarch64)"),
    };
    let (Some(table), Some(size), Some(count)) = (long(32), short(54), short(56)) else {
        bail!("its ELF header is cut off");
    };
    for number in 0..usize::from(count) {
        let at = usize::try_from(table)?.checked_add(number * usize::from(size));
        let Some(kind) = at.and_then(word) else { bail!("its program headers are cut off") };
        ensure!(kind != INTERPRETER, "it is not static: it asks for a loader, and there is none in an image");
    }
    Ok(architecture)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A program of headers only.
    pub(crate) fn program(machine: u16, headers: &[u32]) -> Vec<u8> {
        let mut bytes = b"\x7fELF\x02\x01".to_vec();
        bytes.resize(64, 0);
        bytes[18..20].copy_from_slice(&machine.to_le_bytes());
        bytes[32..40].copy_from_slice(&64_u64.to_le_bytes());
        bytes[54..56].copy_from_slice(&56_u16.to_le_bytes());
        bytes[56..58].copy_from_slice(&u16::try_from(headers.len()).unwrap().to_le_bytes());
        for kind in headers {
            bytes.extend(kind.to_le_bytes());
            bytes.resize(bytes.len() + 52, 0);
        }
        bytes
    }

    #[test]
    fn programs_of_both_processors_are_known() {
        assert_eq!(static_architecture(&program(62, &[1, 6])).unwrap(), Architecture::Amd64);
        assert_eq!(static_architecture(&program(183, &[1])).unwrap(), Architecture::Arm64);
    }

    #[test]
    fn what_could_not_run_in_an_image_is_refused_with_the_reason() {
        let refused = |bytes: &[u8]| static_architecture(bytes).unwrap_err().to_string();
        assert!(refused(&program(62, &[1, INTERPRETER])).contains("not static"));
        assert!(refused(&program(243, &[1])).contains("243"));
        assert!(refused(b"#!/bin/sh\n").contains("no little-endian"));
        let whole = program(62, &[1, 1]);
        for end in 0..whole.len() {
            assert!(static_architecture(&whole[..end]).is_err() || end > 64 + 56, "cut after {end}");
        }
        let mut far = whole;
        far[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(refused(&far).contains("cut off"));
    }
}
