//! Container images that are made on the spot: a static program and nothing else.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use image::{Files, Image, Packing, Platform, static_architecture};

/// The name under which runtimes know the image of [`write()`].
pub const IMAGE: &str = "docker.io/library/story:1";

/// Where the package busybox-static puts it.
const BUSYBOX: [&str; 2] = ["/usr/bin/busybox", "/bin/busybox"];
/// The programs of busybox that the stories run.
const APPLETS: [&str; 5] = ["sh", "nc", "echo", "sleep", "ip"];
/// What runtimes mount something on.
const MOUNTS: [&str; 5] = ["dev", "etc", "proc", "sys", "tmp"];
/// The time of everything in them.
const TIME: u64 = 1_700_000_000;

/// Writes an image with busybox to a file.
pub fn write(path: &Path) -> Result<()> {
    let found = BUSYBOX.iter().map(Path::new).find(|path| path.exists());
    let busybox = found.context("no busybox: install the package busybox-static")?;
    let links = APPLETS.map(|applet| (format!("bin/{applet}"), "busybox"));
    // What a pod's sandbox runs: nothing, until it is told to end.
    let command = ["/bin/sh", "-c", "trap 'exit 0' TERM INT; while :; do sleep 1000 & wait; done"];
    let mut image = of_program(IMAGE, busybox, "bin/busybox", &links)?;
    image.command = command.map(str::to_owned).to_vec();
    image.write(path).map(drop)
}

/// Writes an image with a static program, which its containers run, to a file.
pub fn write_program(path: &Path, name: &str, program: &Path) -> Result<()> {
    let mut image = of_program(name, program, "bin/program", &[])?;
    image.entrypoint = vec!["/bin/program".to_owned()];
    image.write(path).map(drop)
}

fn of_program(name: &str, program: &Path, at: &str, links: &[(String, &str)]) -> Result<Image> {
    let content = fs::read(program).with_context(|| format!("reading {}", program.display()))?;
    let architecture = static_architecture(&content).with_context(|| program.display().to_string())?;
    let mut files = Files::default();
    MOUNTS.iter().for_each(|mount| files.directory(mount));
    files.program(at, content);
    links.iter().for_each(|(path, target)| files.link(path, target));
    Ok(Image {
        name: name.to_owned(),
        entrypoint: Vec::new(),
        command: Vec::new(),
        labels: [].into(),
        time: TIME,
        platforms: vec![Platform { architecture, files }],
        packing: Packing::Quick,
    })
}
