//! `flannelctl cni`: the plugins of a network called by hand, as a container runtime calls them, and
//! put in place.
//!
//! Arguments and variables are those of the reference `cnitool`: `NETCONFPATH`, `CNI_PATH`, `CNI_ARGS`,
//! `CNI_IFNAME`, `CAP_ARGS`; the container gets the name that `cnitool` gives it, so that either takes
//! away what the other made.

mod install;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, path};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand};
use cni::cache::{self, Cache};
use cni::runtime::{Keep, PLUGIN_PATH};
use cni::{Attachment, NetworkList, Runtime, Sandbox};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha512};

use crate::output::Output;

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Attach a network namespace and print the result.
    Add(Place),
    /// Say whether an attachment is still as it was made.
    Check(Place),
    /// Detach a network namespace.
    Del(Place),
    /// Take away what belongs to containers whose network namespace is gone.
    Gc {
        #[command(flatten)]
        network: Network,
        /// Ignored; cnitool wants one.
        #[arg(hide = true)]
        netns: Option<PathBuf>,
        /// Take away every attachment of the network, living containers included, as cnitool does.
        #[arg(long)]
        all: bool,
    },
    /// Ask the plugins whether they could attach a container now; needs cniVersion 1.1.0.
    Status {
        #[command(flatten)]
        network: Network,
        /// Ignored; cnitool wants one.
        #[arg(hide = true)]
        netns: Option<PathBuf>,
    },
    /// Show which versions of CNI each plugin of the network speaks.
    Version {
        #[command(flatten)]
        network: Network,
        /// Ignored; so that all verbs take the same.
        #[arg(hide = true)]
        netns: Option<PathBuf>,
    },
    /// Put the plugins and a network configuration in place.
    Install(install::Install),
    /// Remove the plugins and the network configuration that `install` put in place.
    Uninstall(install::Uninstall),
}

/// Which network, and where its plugins are.
#[derive(Debug, Args)]
pub(crate) struct Network {
    /// The name of a network in NETCONFPATH, or the path of a .conflist or .conf file.
    #[arg(value_name = "CONFLIST")]
    network: String,
    /// Where networks are looked up by name.
    #[arg(long, env = "NETCONFPATH", default_value = "/etc/cni/net.d", value_name = "DIR")]
    conf_dir: PathBuf,
    /// Where plugins are looked for, separated by colons.
    #[arg(long, env = "CNI_PATH", default_value = PLUGIN_PATH, value_name = "DIRS")]
    plugin_path: String,
    /// Where results are remembered; shared with the runtimes of this machine.
    #[arg(long, default_value = cache::DIRECTORY, value_name = "DIR")]
    cache_dir: PathBuf,
}

/// A container's interface.
#[derive(Debug, Args)]
pub(crate) struct Place {
    #[command(flatten)]
    network: Network,
    /// The path of the network namespace, or its name as `ip netns` has it.
    netns: PathBuf,
    /// The interface to make inside.
    #[arg(short, long, env = "CNI_IFNAME", default_value = "eth0")]
    ifname: String,
    /// The name by which plugins know the container; made of the namespace's path unless given.
    #[arg(long)]
    container_id: Option<String>,
    /// Further arguments for plugins, KEY=VALUE;KEY=VALUE.
    #[arg(long, env = "CNI_ARGS", value_name = "ARGS")]
    cni_args: Option<String>,
    /// What is wanted of the plugins' capabilities, as a JSON object:
    /// '{"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}'.
    #[arg(long, env = "CAP_ARGS", value_name = "JSON")]
    capabilities: Option<String>,
}

pub(crate) fn run(verb: Verb, out: &mut Output) -> Result<ExitCode> {
    match verb {
        Verb::Add(place) => {
            let (list, runtime) = place.network.open()?;
            out.line(runtime.add(&list, &place.sandbox()?)?.to_json())?;
        }
        Verb::Check(place) => {
            let (list, runtime) = place.network.open()?;
            runtime.check(&list, &place.sandbox()?)?;
        }
        Verb::Del(place) => {
            let (list, runtime) = place.network.open()?;
            runtime.del(&list, &place.sandbox()?)?;
        }
        Verb::Gc { network, all, .. } => {
            let (list, runtime) = network.open()?;
            let keep = if all { Keep::Nothing } else { living(&runtime, &list)? };
            runtime.gc(&list, &keep)?;
        }
        Verb::Status { network, .. } => {
            let (list, runtime) = network.open()?;
            runtime.status(&list)?;
        }
        Verb::Version { network, .. } => versions(&network, out)?,
        Verb::Install(install) => return install.run(out),
        Verb::Uninstall(uninstall) => uninstall.run(out)?,
    }
    Ok(ExitCode::SUCCESS)
}

impl Network {
    fn open(&self) -> Result<(NetworkList, Runtime)> {
        let as_file = Path::new(&self.network);
        let list = match self.network.contains('/') || as_file.is_file() {
            true => NetworkList::read(as_file)?,
            false => NetworkList::find(&self.conf_dir, &self.network)?,
        };
        let cache = Cache::at(&self.cache_dir);
        Ok((list, Runtime { path: self.plugin_path.clone(), cache }))
    }
}

impl Place {
    fn sandbox(&self) -> Result<Sandbox> {
        let netns = absolute(&self.netns)?;
        let container_id = self.container_id.clone().unwrap_or_else(|| name_of(&netns));
        Ok(Sandbox {
            container_id,
            netns,
            ifname: self.ifname.clone(),
            args: self.cni_args.as_deref().map_or(Ok(Vec::new()), pairs)?,
            capability_args: self.capabilities.as_deref().map_or(Ok(Map::new()), capabilities)?,
        })
    }
}

/// The path of a namespace that was given as a path or by name.
fn absolute(netns: &Path) -> Result<String> {
    let named = Path::new(kernel::netns::DIRECTORY).join(netns);
    let path = match netns.components().count() == 1 && !netns.exists() && named.exists() {
        true => named,
        false => path::absolute(netns).with_context(|| format!("finding {}", netns.display()))?,
    };
    path.into_os_string().into_string().map_err(|path| anyhow::anyhow!("the path {path:?} is not UTF-8"))
}

/// Compatibility: the container's name of cnitool, ten bytes of a hash over the path.
fn name_of(netns: &str) -> String {
    let hash = Sha512::digest(netns.as_bytes());
    hash[..10].iter().fold("cnitool-".to_owned(), |name, byte| format!("{name}{byte:02x}"))
}

fn pairs(text: &str) -> Result<Vec<(String, String)>> {
    let pair = |pair: &str| match pair.split('=').collect::<Vec<_>>()[..] {
        [key, value] if !key.is_empty() && !value.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => bail!("invalid CNI_ARGS pair {pair:?}: want KEY=VALUE;KEY=VALUE"),
    };
    text.split(';').filter(|_| !text.is_empty()).map(pair).collect()
}

fn capabilities(text: &str) -> Result<Map<String, Value>> {
    if text.is_empty() {
        return Ok(Map::new());
    }
    serde_json::from_str(text).with_context(|| format!("CAP_ARGS {text:?} is no JSON object"))
}

/// The attachments whose network namespace is there.
fn living(runtime: &Runtime, list: &NetworkList) -> Result<Keep> {
    let remembered = runtime.cache.attachments(&list.name).context("reading the remembered results")?;
    let living = remembered.into_iter().filter(|entry| Path::new(&entry.netns).exists());
    let kept = living.map(|entry| Attachment { container_id: entry.container_id, ifname: entry.ifname });
    Ok(Keep::Only(kept.collect()))
}

fn versions(network: &Network, out: &mut Output) -> Result<()> {
    let (list, runtime) = network.open()?;
    let mut spoken = Vec::new();
    for plugin in &list.plugins {
        let versions = runtime.versions(&plugin.kind).with_context(|| format!("asking {}", plugin.kind))?;
        spoken.push((plugin.kind.clone(), versions));
    }
    if out.is_json() {
        let plugins: Vec<Value> = spoken
            .iter()
            .map(|(kind, versions)| json!({ "type": kind, "supportedVersions": versions }))
            .collect();
        out.json(&json!({ "cniVersion": list.version_text, "plugins": plugins }))?;
    } else {
        let rows: Vec<Vec<String>> =
            spoken.iter().map(|(kind, versions)| vec![kind.clone(), versions.join(" ")]).collect();
        out.table(&["PLUGIN", "VERSIONS"], &rows)?;
    }
    let wanted = list.version()?;
    for (kind, versions) in &spoken {
        let speaks = versions.iter().any(|version| version == wanted.as_str());
        ensure!(speaks, "{kind} does not speak {wanted}, which network {:?} asks for", list.name);
    }
    Ok(())
}

/// The directory of the running program, where its siblings are.
fn beside() -> Result<PathBuf> {
    let exe = env::current_exe().context("finding this program")?;
    Ok(exe.parent().unwrap_or(Path::new("/")).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_have_the_names_that_cnitool_gives_them() {
        // sha512sum over the path without a newline.
        assert_eq!(name_of("/var/run/netns/testing"), "cnitool-77383ca0a0715733ca6f");
    }

    #[test]
    fn arguments_are_pairs_and_nothing_else() {
        assert_eq!(pairs("A=1;B=2").unwrap(), [("A".into(), "1".into()), ("B".into(), "2".into())]);
        assert_eq!(pairs("").unwrap(), []);
        for wrong in ["A", "A=", "=1", "A=1;", "A=1=2"] {
            assert!(pairs(wrong).unwrap_err().to_string().contains("KEY=VALUE"), "{wrong}");
        }
    }

    #[test]
    fn capabilities_are_an_object() {
        assert_eq!(capabilities(r#"{"mac":"a"}"#).unwrap()["mac"], "a");
        assert!(capabilities("[1]").unwrap_err().to_string().contains("CAP_ARGS"));
    }
}
