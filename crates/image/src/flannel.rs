//! The image of flannel-rs: its three programs where the original's image has them, and nothing else.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

use crate::{Files, Image, Packing, Platform, static_architecture};

/// The programs in the image.
pub const PROGRAMS: [&str; 3] = ["flanneld", "flannelctl", "flannel-cni"];

/// Compatibility: the original's manifests call `/opt/bin/flanneld`.
const DIRECTORY: &str = "opt/bin";
/// What the manifests mount something on: the root is read-only.
const MOUNTS: [&str; 5] = ["run/flannel", "etc/kube-flannel", "etc/cni/net.d", "opt/cni/bin", "host"];

/// The files for one processor, from programs by their names.
pub fn platform(programs: Vec<(&str, Vec<u8>)>) -> Result<Platform> {
    let mut files = Files::default();
    for mount in MOUNTS {
        files.directory(mount);
    }
    let mut architecture = None;
    for (name, program) in programs {
        let this = static_architecture(&program).with_context(|| format!("{name} cannot be in an image"))?;
        let first = *architecture.get_or_insert(this);
        ensure!(
            first == this,
            "{name} is for {} and the programs before it are for {}",
            this.name(),
            first.name()
        );
        files.program(&format!("{DIRECTORY}/{name}"), program);
    }
    Ok(Platform { architecture: architecture.context("there is no program")?, files })
}

impl Image {
    /// The image of flannel-rs.
    pub fn of_flannel(
        name: &str,
        version: &str,
        revision: &str,
        time: u64,
        platforms: Vec<Platform>,
    ) -> Image {
        let label = |key: &str, value: &str| (format!("org.opencontainers.image.{key}"), value.to_owned());
        let mut labels = BTreeMap::from([
            label("title", "flannel-rs"),
            label("description", "Pod networks: flanneld, its CNI plugins and flannelctl"),
            label("version", version),
            label("licenses", "Apache-2.0"),
            label("source", "https://github.com/flannel-rs/flannel-rs"),
        ]);
        if !revision.is_empty() {
            labels.extend([label("revision", revision)]);
        }
        let entrypoint = vec![format!("/{DIRECTORY}/flanneld")];
        let packing = Packing::Small;
        Image { name: name.to_owned(), entrypoint, command: Vec::new(), labels, time, platforms, packing }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Architecture;
    use crate::elf::tests::program;

    #[test]
    fn programs_of_two_processors_do_not_get_into_one_image() {
        let both = vec![("flanneld", program(62, &[1])), ("flannelctl", program(183, &[1]))];
        let error = platform(both).unwrap_err().to_string();
        assert_eq!(error, "flannelctl is for arm64 and the programs before it are for amd64");
        assert_eq!(
            platform(vec![("flanneld", program(183, &[1]))]).unwrap().architecture,
            Architecture::Arm64
        );
        assert!(platform(Vec::new()).is_err());
    }
}
