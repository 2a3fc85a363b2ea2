//! The image of flannel-rs, of the programs that tests run.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use image::{Image, PROGRAMS, Packing, platform};
use lab::Binaries;

use super::api_server::MANIFEST;

/// The archive of the image that the manifest asks for, beside the programs. It is packed when one of
/// them is younger.
pub(crate) fn flannel_image() -> Result<PathBuf> {
    let programs = Binaries::find()?.flanneld;
    let dir = programs.parent().context("programs are in a directory")?;
    let archive = dir.join("flannel-image.tar");
    // Another test may be packing it.
    let lock = File::create(dir.join("flannel-image.lock"))?;
    lock.lock().context("waiting for the image")?;
    if !is_current(&archive, dir)? {
        let programs = PROGRAMS
            .map(|name| Ok((name, stripped(&dir.join(name))?)))
            .into_iter()
            .collect::<Result<Vec<_>>>()?;
        let image = Image::of_flannel(&image_name()?, "test", "", 0, vec![platform(programs)?]);
        Image { packing: Packing::Quick, ..image }.write(&archive)?;
    }
    Ok(archive)
}

fn is_current(archive: &Path, dir: &Path) -> Result<bool> {
    let Ok(packed) = fs::metadata(archive) else { return Ok(false) };
    let packed = packed.modified()?;
    let mut sources = PROGRAMS.map(|name| dir.join(name)).to_vec();
    sources.push(MANIFEST.into());
    for source in sources {
        let built = fs::metadata(&source).and_then(|file| file.modified());
        if built.with_context(|| format!("looking at {}", source.display()))? >= packed {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A program without what only a debugger reads, which is most of it.
#[expect(clippy::disallowed_methods, reason = "the linker's companion knows best what can go")]
fn stripped(program: &Path) -> Result<Vec<u8>> {
    let copy = program.with_extension("stripped");
    let strip = Command::new("strip").arg("-o").arg(&copy).arg(program).output();
    let strip = strip.context("running strip, which comes with a C compiler")?;
    ensure!(strip.status.success(), "stripping {}: {strip:?}", program.display());
    let text = fs::read(&copy)?;
    fs::remove_file(copy)?;
    Ok(text)
}

/// What the manifest calls it.
fn image_name() -> Result<String> {
    let manifest = fs::read_to_string(MANIFEST).with_context(|| format!("reading {MANIFEST}"))?;
    let name = manifest.lines().find_map(|line| line.trim().strip_prefix("image: "));
    Ok(name.with_context(|| format!("{MANIFEST} names no image"))?.to_owned())
}
