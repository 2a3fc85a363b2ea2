//! The image of flannel-rs: its three programs where the original's image has them, and nothing else.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

use crate::{Files, Image, Packing, Platform, static_architecture};

/// The name of the image, as the manifests in `deploy/` ask for it.
pub const NAME: &str = concat!("ghcr.io/flannel-rs/flannel-rs:v", env!("CARGO_PKG_VERSION"));

/// The programs in the image.
pub const PROGRAMS: [&str; 3] = ["flanneld", "flannelctl", "flannel-cni"];

/// Compatibility: the original's manifests call `/opt/bin/flanneld`.
const DIRECTORY: &str = "opt/bin";
/// What the manifests mount something on: the root is read-only.
const MOUNTS: [&str; 6] =
    ["run/flannel", "etc/kube-flannel", "etc/cni/net.d", "opt/cni/bin", "var/lib/cni/networks", "host"];

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

    /// What follows a key in the manifest, wherever it is.
    fn values<'text>(manifest: &'text str, key: &str) -> Vec<&'text str> {
        let values: Vec<_> = manifest
            .lines()
            .filter_map(|line| line.trim().trim_start_matches("- ").strip_prefix(key))
            .collect();
        assert!(!values.is_empty(), "the manifest has no {key}");
        values.into_iter().map(str::trim).collect()
    }

    #[test]
    fn the_manifest_asks_for_this_image_and_for_what_is_in_it() {
        let manifest = include_str!("../../../deploy/kube-flannel.yml");
        for image in values(manifest, "image:") {
            assert_eq!(image, NAME);
        }
        for program in values(manifest, &format!("/{DIRECTORY}/")) {
            assert!(PROGRAMS.contains(&program), "there is no {program}");
        }
        for mount in values(manifest, "mountPath:") {
            assert!(
                MOUNTS.contains(&mount.trim_matches('/')),
                "{mount} could not be made in a read-only root"
            );
        }
    }

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
