//! flannelctl: shows what a node does and what is wrong, and lets flannel-rs be tried in a laboratory.

#![forbid(unsafe_code)]

mod bench;
mod cleanup;
mod cni;
mod lab;
mod leases;
mod leftovers;
mod mk_docker_opts;
mod network;
mod output;
mod plan;
mod replace;
mod status;
mod store;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::output::{Format, Output};

/// Shows what flannel-rs does on this node, and lets it be tried in a laboratory.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct Arguments {
    /// How to print: a table for people, JSON for programs.
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    output: Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show this node on one screen: lease, peers, repairs, and what is wrong with its remedy.
    ///
    /// The exit code is 1 if flanneld does not run, is not ready, or says that something is wrong.
    Status {
        #[command(flatten)]
        node: NodeFiles,
        /// Show every peer, however many there are.
        #[arg(long)]
        all: bool,
    },
    /// Show what flanneld would change in the kernel now, as ip and nft commands; nothing, usually.
    Plan {
        #[command(flatten)]
        node: NodeFiles,
        /// Show everything that the node wants in its kernel, whether it is there or not.
        #[arg(long)]
        all: bool,
    },
    /// Remove from the kernel and from disk what flanneld left there; it must not run.
    Cleanup {
        #[command(flatten)]
        node: NodeFiles,
        /// Only show what would be removed.
        #[arg(long)]
        dry_run: bool,
    },
    /// Show or set the configuration of the network.
    Network {
        #[command(flatten)]
        store: store::Location,
        #[command(subcommand)]
        verb: network::Verb,
    },
    /// List or remove leases: which node has which pod subnet.
    Leases {
        #[command(flatten)]
        store: store::Location,
        #[command(subcommand)]
        verb: Option<leases::Verb>,
    },
    /// Call the CNI plugins of a network by hand, as a container runtime does, or install them.
    Cni {
        #[command(subcommand)]
        verb: cni::Verb,
    },
    /// Write dockerd's options, made of subnet.env: the original's mk-docker-opts.sh with its flags.
    #[command(disable_help_flag = true)]
    MkDockerOpts {
        /// -f FILE -d FILE -i -c -m -k KEY; -h explains them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Measure how fast pods or nodes reach each other: streams, requests, datagrams.
    ///
    /// Run `flannelctl bench serve` on one side, in a pod or on a node, and `flannelctl bench ADDRESS` on
    /// the other. Pods and nodes of the same two machines side by side say what the network costs.
    Bench(bench::Bench),
    /// Several nodes on this machine, each a network namespace with a real flanneld.
    Lab {
        #[command(subcommand)]
        verb: lab::Verb,
    },
}

/// Which node of this machine: flanneld's `--subnet-file` tells several apart.
#[derive(Debug, clap::Args)]
struct NodeFiles {
    /// The file that flanneld writes; its other files are beside it.
    #[arg(
        long,
        value_name = "FILE",
        env = "FLANNELD_SUBNET_FILE",
        default_value = "/run/flannel/subnet.env"
    )]
    subnet_file: PathBuf,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(code) => code,
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<ExitCode> {
    let mut output = Output::new(arguments.output);
    let out = &mut output;
    let done = ExitCode::SUCCESS;
    match arguments.command {
        Command::Status { node, all } => return status::run(&node.subnet_file, all, out),
        Command::Plan { node, all } => plan::run(&node.subnet_file, all, out)?,
        Command::Cleanup { node, dry_run } => return cleanup::run(&node.subnet_file, dry_run, out),
        Command::Network { store, verb } => network::run(&store, verb, out)?,
        Command::Leases { store, verb } => leases::run(&store, verb.unwrap_or_default(), out)?,
        Command::Cni { verb } => return cni::run(verb, out),
        Command::MkDockerOpts { arguments } => mk_docker_opts::run(&arguments)?,
        Command::Bench(bench) => return bench::run(&bench, out),
        Command::Lab { verb } => return lab::run(verb, out),
    }
    Ok(done)
}

/// Whether the reader of our output has gone, as `head` does: nobody is left to be told.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    })
}
