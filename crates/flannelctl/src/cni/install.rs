//! `flannelctl cni install` and `uninstall`: the program of the plugins, a link for each of them, and
//! the network configuration.
//!
//! A plugin counts as ours if it is a link to our program, or a copy of it; whatever else is there under
//! a plugin's name belongs to somebody else and stays, unless told otherwise. Everything is put in place
//! by renaming: a runtime that calls a plugin meanwhile gets the old one or the new one.
//!
//! The plugin flannel is a copy. Compatibility: the original is installed by `cp -f`, which writes through
//! a link, and then all our plugins would be the original's flannel.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use cni::runtime::PLUGIN_PATH;
use serde_json::{Value, json};

use crate::output::{self, Output};
use crate::replace;

/// The program that holds all plugins.
const PROGRAM: &str = "flannel-cni";
/// The plugin that is nobody's but flannel's.
const FLANNEL: &str = "flannel";
/// The name that the original's installer uses, so that there is one network and not two.
const CONFLIST: &str = "10-flannel.conflist";
const CONF_DIR: &str = "/etc/cni/net.d";

/// Where to put the plugins.
#[derive(Debug, Args)]
pub(crate) struct Install {
    /// Where the plugins go.
    #[arg(long, default_value = PLUGIN_PATH)]
    dir: PathBuf,
    /// Where the network configuration goes, as 10-flannel.conflist.
    #[arg(long, default_value = CONF_DIR, value_name = "DIR")]
    conf: PathBuf,
    /// The name of the network in it.
    #[arg(long, default_value = "cbr0", value_name = "NAME")]
    name: String,
    /// The program to install; the flannel-cni beside this program unless given.
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// Replace plugins of other projects and a configuration that says something else.
    #[arg(long)]
    force: bool,
    /// Install plugins only.
    #[arg(long)]
    no_conf: bool,
    /// The text of the network configuration, such as cni-conf.json of a ConfigMap; replaces what is there.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["no_conf", "name"])]
    conf_from: Option<PathBuf>,
    /// Replace the plugin flannel whoever's it is, keep other plugins of other projects, and call that
    /// success: what a DaemonSet wants of its init container.
    #[arg(long, conflicts_with = "force")]
    keep_others: bool,
}

/// What to remove.
#[derive(Debug, Args)]
pub(crate) struct Uninstall {
    /// Where the plugins are.
    #[arg(long, default_value = PLUGIN_PATH)]
    dir: PathBuf,
    /// Where the network configuration is.
    #[arg(long, default_value = CONF_DIR, value_name = "DIR")]
    conf: PathBuf,
    /// The name of the network in it.
    #[arg(long, default_value = "cbr0", value_name = "NAME")]
    name: String,
    /// Remove the configuration even if somebody changed it.
    #[arg(long)]
    force: bool,
}

/// What became of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It is there now.
    Installed,
    /// It was there as it should be.
    Unchanged,
    /// It is somebody else's and was left alone.
    Kept,
}

impl Fate {
    fn word(self) -> &'static str {
        match self {
            Fate::Installed => "installed",
            Fate::Unchanged => "unchanged",
            Fate::Kept => "kept",
        }
    }
}

impl Install {
    /// The exit code is 1 if something of somebody else's was in the way.
    pub(super) fn run(&self, out: &mut Output) -> Result<ExitCode> {
        let from = match &self.from {
            Some(file) => file.clone(),
            None => super::beside()?.join(PROGRAM),
        };
        let program = fs::read(&from).with_context(|| {
            format!("reading {}; name the program with --from if it is somewhere else", from.display())
        })?;
        let plugins = names(&from)?;
        for directory in [Some(&self.dir), (!self.no_conf).then_some(&self.conf)].into_iter().flatten() {
            fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
        }

        // The program comes first, so that no link ever points to nothing; the configuration comes
        // last, because with it the runtime begins to call.
        let flannel = owner(&self.dir.join(FLANNEL))?;
        let mut fates = vec![put_program(self.dir.join(PROGRAM), &program)?];
        for plugin in &plugins {
            fates.push(match plugin.as_str() {
                FLANNEL => self.put_flannel(flannel, &program)?,
                other => self.put_link(other)?,
            });
        }
        if !self.no_conf {
            fates.push(self.put_conflist()?);
        }
        report(&fates, out)?;
        let kept: Vec<&PathBuf> =
            fates.iter().filter(|(_, fate)| *fate == Fate::Kept).map(|(path, _)| path).collect();
        if self.keep_others {
            return Ok(ExitCode::SUCCESS);
        }
        for path in &kept {
            output::complain(&format!("kept {}, which is not ours: --force replaces it", path.display()));
        }
        Ok(if kept.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn put_flannel(&self, owner: Owner, program: &[u8]) -> Result<(PathBuf, Fate)> {
        let path = self.dir.join(FLANNEL);
        if owner == Owner::Others && !self.force && !self.keep_others {
            return Ok((path, Fate::Kept));
        }
        put_program(path, program)
    }

    fn put_link(&self, plugin: &str) -> Result<(PathBuf, Fate)> {
        let path = self.dir.join(plugin);
        let fate = match owner(&path)? {
            Owner::Us => Fate::Unchanged,
            Owner::Others if !self.force => Fate::Kept,
            Owner::Others | Owner::Nobody => {
                replace::link(&path, PROGRAM)?;
                Fate::Installed
            }
        };
        Ok((path, fate))
    }

    fn put_conflist(&self) -> Result<(PathBuf, Fate)> {
        let path = self.conf.join(CONFLIST);
        let text = match &self.conf_from {
            Some(file) => given(file)?,
            None => conflist(&self.name)?,
        };
        let fate = match fs::read(&path) {
            Ok(there) if there == text.as_bytes() => Fate::Unchanged,
            Ok(_) if !self.force && self.conf_from.is_none() => Fate::Kept,
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("reading {}", path.display()));
            }
            _ => {
                replace::file(&path, 0o644, text.as_bytes())?;
                Fate::Installed
            }
        };
        Ok((path, fate))
    }
}

/// A file with this program, and no link to one.
fn put_program(path: PathBuf, program: &[u8]) -> Result<(PathBuf, Fate)> {
    if !path.is_symlink() && fs::read(&path).is_ok_and(|there| there == program) {
        return Ok((path, Fate::Unchanged));
    }
    replace::file(&path, 0o755, program)?;
    Ok((path, Fate::Installed))
}

impl Uninstall {
    pub(super) fn run(&self, out: &mut Output) -> Result<()> {
        // The configuration goes first: without it the runtime calls no plugin.
        let mut removed = Vec::new();
        let conflist_path = self.conf.join(CONFLIST);
        let ours = conflist(&self.name)?;
        match fs::read(&conflist_path) {
            Ok(there) if there == ours.as_bytes() || self.force => removed.push(conflist_path),
            Ok(_) => output::complain(&format!(
                "kept {}, which says something else than `install` wrote: --force removes it",
                conflist_path.display()
            )),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => {
                return Err(error).with_context(|| format!("reading {}", conflist_path.display()));
            }
        }
        // Every link to our program, also those of an older version with other plugins.
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries.filter_map(|entry| Some(entry.ok()?.path())).collect(),
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error).with_context(|| format!("reading {}", self.dir.display())),
        };
        let mut links: Vec<PathBuf> = Vec::new();
        for path in entries {
            if owner(&path)? == Owner::Us {
                links.push(path);
            }
        }
        links.sort();
        removed.extend(links);
        let program = self.dir.join(PROGRAM);
        removed.extend(program.exists().then_some(program));
        for path in &removed {
            fs::remove_file(path).with_context(|| format!("removing {}", path.display()))?;
        }
        if out.is_json() {
            return out.json(&json!({ "removed": removed }));
        }
        removed.iter().try_for_each(|path| out.line(format!("removed {}", path.display())))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Us,
    Others,
    Nobody,
}

/// Whose a file in the plugins' directory is: ours are links to our program beside it, or copies of it.
fn owner(path: &Path) -> Result<Owner> {
    match fs::read_link(path) {
        Ok(target) if target.file_name().is_some_and(|name| name == PROGRAM) => Ok(Owner::Us),
        Ok(_) => Ok(Owner::Others),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Owner::Nobody),
        // There, and no link.
        Err(error) if error.kind() == ErrorKind::InvalidInput => {
            Ok(if is_copy(path) { Owner::Us } else { Owner::Others })
        }
        Err(error) => Err(error).with_context(|| format!("looking at {}", path.display())),
    }
}

/// Whether a file is the same program as ours beside it, under another name.
fn is_copy(path: &Path) -> bool {
    let program = path.with_file_name(PROGRAM);
    let length = |path: &Path| fs::metadata(path).ok().map(|file| file.len());
    path != program
        && length(path).is_some_and(|own| length(&program) == Some(own))
        && fs::read(path).ok().zip(fs::read(&program).ok()).is_some_and(|(one, other)| one == other)
}

/// The plugins that the program says it holds.
fn names(program: &Path) -> Result<Vec<String>> {
    let path = std::path::absolute(program)?;
    let path = path.to_str().context("the program's path is not UTF-8")?;
    let printed = kernel::command::run(path, &["--list"], "")?;
    let names: Vec<String> = printed.lines().map(str::to_owned).collect();
    let is_name = |name: &String| !name.is_empty() && !name.contains(['/', ' ']);
    if names.is_empty() || !names.iter().all(is_name) {
        bail!("{path} does not say which plugins it holds: it is no {PROGRAM} of this version");
    }
    Ok(names)
}

/// A configuration that somebody wrote: taken as it is, if a runtime can read it.
fn given(file: &Path) -> Result<String> {
    let text = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    cni::NetworkList::parse(text.as_bytes())
        .with_context(|| format!("{} is no list of CNI plugins", file.display()))?;
    Ok(text)
}

/// The network as the original's installer has it: flannel, then portmap.
fn conflist(name: &str) -> Result<String> {
    let list = json!({
        "name": name,
        // The highest that a runtime knows; those that know no `cniVersions` take the first line.
        "cniVersion": "1.0.0",
        "cniVersions": ["0.4.0", "1.0.0", "1.1.0"],
        "plugins": [
            { "type": "flannel", "delegate": { "hairpinMode": true, "isDefaultGateway": true } },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    });
    let text = serde_json::to_string_pretty(&list)? + "\n";
    cni::NetworkList::parse(text.as_bytes())?;
    Ok(text)
}

fn report(fates: &[(PathBuf, Fate)], out: &mut Output) -> Result<()> {
    if out.is_json() {
        let shown: Vec<Value> =
            fates.iter().map(|(path, fate)| json!({ "path": path, "fate": fate.word() })).collect();
        return out.json(&json!({ "files": shown }));
    }
    fates.iter().try_for_each(|(path, fate)| out.line(format!("{} {}", fate.word(), path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_suits_old_runtimes_and_new_ones() {
        let text = conflist("cbr0").unwrap();
        let list = cni::NetworkList::parse(text.as_bytes()).unwrap();
        assert_eq!((list.name.as_str(), list.version_text.as_str()), ("cbr0", "1.1.0"));
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["cniVersion"], "1.0.0");
        assert!(conflist("a b").is_err());
    }
}
