//! Container images that are made on the spot: a static program and nothing else.
//!
//! The form is that of `docker save`, which every runtime reads: a tar file with a manifest, the
//! image's configuration, and one tar file per layer.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// The name under which runtimes know it.
pub const IMAGE: &str = "docker.io/library/story:1";

/// Where the package busybox-static puts it.
const BUSYBOX: [&str; 2] = ["/usr/bin/busybox", "/bin/busybox"];
/// The programs of busybox that the stories run.
const APPLETS: [&str; 5] = ["sh", "nc", "echo", "sleep", "ip"];

/// Writes an image with busybox to a file.
pub fn write(path: &Path) -> Result<()> {
    let found = BUSYBOX.iter().find(|path| Path::new(path).exists());
    let busybox = fs::read(found.context("no busybox: install the package busybox-static")?)?;
    ensure!(is_static(&busybox), "busybox is not static: install the package busybox-static");

    let mut layer = base();
    layer.entry("bin/busybox", Kind::Program(&busybox));
    for applet in APPLETS {
        layer.entry(&format!("bin/{applet}"), Kind::Link("busybox"));
    }
    // What a pod's sandbox runs: nothing, until it is told to end.
    let command = ["/bin/sh", "-c", "trap 'exit 0' TERM INT; while :; do sleep 1000 & wait; done"];
    pack(path, IMAGE, layer, &json!({ "Cmd": command }))
}

/// Writes an image with a static program, which its containers run, to a file.
pub fn write_program(path: &Path, name: &str, program: &Path) -> Result<()> {
    let text = fs::read(program).with_context(|| format!("reading {}", program.display()))?;
    ensure!(is_static(&text), "{} is not static", program.display());
    let mut layer = base();
    layer.entry("bin/program", Kind::Program(&text));
    pack(path, name, layer, &json!({ "Entrypoint": ["/bin/program"] }))
}

/// What runtimes mount something on.
fn base() -> Tar {
    let mut layer = Tar::default();
    for directory in ["bin/", "dev/", "etc/", "proc/", "sys/", "tmp/"] {
        layer.entry(directory, Kind::Directory);
    }
    layer
}

fn pack(path: &Path, name: &str, layer: Tar, run: &Value) -> Result<()> {
    let layer = layer.end();
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "created": "2024-01-01T00:00:00Z",
        "config": run,
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", hash(&layer))] },
        "history": [{ "created": "2024-01-01T00:00:00Z" }],
    })
    .to_string();
    let config_name = format!("{}.json", hash(config.as_bytes()));
    let manifest = json!([{ "Config": config_name, "RepoTags": [name], "Layers": ["layer.tar"] }]);

    let mut image = Tar::default();
    image.entry(&config_name, Kind::File(config.as_bytes()));
    image.entry("layer.tar", Kind::File(&layer));
    image.entry("manifest.json", Kind::File(manifest.to_string().as_bytes()));
    fs::write(path, image.end()).with_context(|| format!("writing {}", path.display()))
}

/// Whether a 64-bit program asks for no interpreter (PT_INTERP), elf(5).
fn is_static(program: &[u8]) -> bool {
    let number =
        |at: usize| program.get(at..at + 2).map(|two| usize::from(u16::from_le_bytes([two[0], two[1]])));
    // The headers follow the file's header of 64 bytes, 56 bytes each.
    let Some(headers) = number(56) else { return false };
    (0..headers).all(|header| number(64 + header * 56) != Some(3))
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

enum Kind<'a> {
    Directory,
    File(&'a [u8]),
    Program(&'a [u8]),
    Link(&'a str),
}

/// A tar file in the form of POSIX.1-1988 (ustar).
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn entry(&mut self, name: &str, kind: Kind<'_>) {
        let (mode, letter, content, target) = match kind {
            Kind::Directory => (0o755, b'5', &[][..], ""),
            Kind::File(content) => (0o644, b'0', content, ""),
            Kind::Program(content) => (0o755, b'0', content, ""),
            Kind::Link(target) => (0o777, b'2', &[][..], target),
        };
        let mut header = [0_u8; 512];
        let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
        put(0, name);
        put(100, &format!("{mode:07o}"));
        put(108, "0000000");
        put(116, "0000000");
        put(124, &format!("{:011o}", content.len()));
        put(136, &format!("{:011o}", 1_700_000_000));
        // The sum is taken as if there were eight blanks in its place.
        put(148, "        ");
        put(157, target);
        put(257, "ustar\x0000");
        header[156] = letter;
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend(header);
        self.0.extend(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
    }

    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}
