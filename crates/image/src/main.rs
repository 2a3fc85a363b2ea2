//! `pack`: what `make image` and `make release` call.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program that talks to the terminal")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use image::{Bill, Image, NAME, PROGRAMS, Platform, platform};

/// Packs the programs of flannel-rs into a container image, and lists what they are made of.
#[derive(Debug, Parser)]
#[command(max_term_width = 100)]
struct Arguments {
    /// The time of everything that is packed, in seconds since 1970.
    #[arg(long, env = "SOURCE_DATE_EPOCH", default_value_t = 0)]
    time: u64,
    /// The version that is packed.
    #[arg(long, value_name = "VERSION")]
    release: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Pack an image that containerd, podman and docker can load.
    Image {
        /// With registry and tag.
        #[arg(long, default_value = NAME)]
        name: String,
        /// The archive to write.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// The commit that the programs are built from.
        #[arg(long, default_value = "")]
        revision: String,
        /// Directories with static flanneld, flannelctl and flannel-cni, one for each processor.
        #[arg(required = true)]
        programs: Vec<PathBuf>,
    },
    /// Write a bill of materials (CycloneDX).
    Sbom {
        /// The file to write.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// What cargo metadata --format-version 1 printed.
        #[arg(long, value_name = "FILE")]
        metadata: PathBuf,
        /// Cargo.lock
        #[arg(long, value_name = "FILE", default_value = "Cargo.lock")]
        lock: PathBuf,
        /// The packages of the programs.
        #[arg(required = true)]
        packages: Vec<String>,
    },
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(said) => {
            println!("{said}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("pack: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<String> {
    match &arguments.command {
        Command::Image { name, out, revision, programs } => {
            let platforms = programs.iter().map(|dir| of_directory(dir)).collect::<Result<Vec<_>>>()?;
            let mut seen: Vec<_> = platforms.iter().map(|platform| platform.architecture).collect();
            seen.sort_unstable();
            seen.dedup();
            ensure!(seen.len() == platforms.len(), "two of the directories are for the same processor");
            let names: Vec<_> = seen.iter().map(|architecture| architecture.name()).collect();
            let image = Image::of_flannel(name, &arguments.release, revision, arguments.time, platforms);
            let size = image.write(out)?;
            Ok(format!("{} ({}): {:.1} MB", out.display(), names.join(", "), megabytes(size)))
        }
        Command::Sbom { out, metadata, lock, packages } => {
            let read =
                |path: &Path| fs::read_to_string(path).with_context(|| format!("reading {}", path.display()));
            let bill = Bill::read(&read(metadata)?, &read(lock)?, packages)?;
            let document = bill.cyclone_dx("flannel-rs", &arguments.release, arguments.time);
            let text = serde_json::to_string_pretty(&document)? + "\n";
            fs::write(out, text).with_context(|| format!("writing {}", out.display()))?;
            Ok(format!("{}: {} packages", out.display(), bill.len()))
        }
    }
}

fn of_directory(dir: &Path) -> Result<Platform> {
    let read = |name: &str| {
        let path = dir.join(name);
        fs::read(&path).with_context(|| format!("reading {}; `make build` builds it", path.display()))
    };
    let programs = PROGRAMS.map(|name| Ok((name, read(name)?))).into_iter().collect::<Result<Vec<_>>>()?;
    platform(programs).with_context(|| format!("packing the programs in {}", dir.display()))
}

#[allow(clippy::cast_precision_loss, reason = "to one decimal")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
