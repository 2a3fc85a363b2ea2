//! `flannel`: turns the lease of this node into the configuration of the plugin that attaches pods.
//!
//! flanneld writes what it leased to `subnet.env`; this plugin puts it together with the `delegate` of
//! the network configuration ([`delegation`]) and calls the delegate, usually `bridge`. What the
//! delegate was called with is kept in a file, because DEL must use the same ([`state`]).

mod delegation;
mod state;

use std::fs;
use std::io::{self, Write as _};
use std::path::PathBuf;

use cni::delegate::CallError;
use cni::error::code;
use cni::{AddResult, Config, Error, Plugin, Request, Verb};
use fabric::subnet_file::SubnetFile;

use self::delegation::Delegation;
use self::state::States;
use crate::delegate;
use crate::files::go_error;

/// Where flanneld writes its lease unless told otherwise.
const SUBNET_FILE: &str = "/run/flannel/subnet.env";

/// Where state is kept unless the configuration says otherwise.
const DATA_DIR: &str = "/var/lib/cni/flannel";

/// The plugin.
#[derive(Debug, Clone, Copy)]
pub struct Flannel;

impl Plugin for Flannel {
    fn name(&self) -> &'static str {
        "flannel"
    }

    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        let settings =
            Settings::parse(request).map_err(|error| error.context("failed to load flannel netconf file"))?;
        let subnet_file = settings.subnet_file()?;
        let delegation = Delegation::build(request, Some(&subnet_file))?;
        // Before the delegate does anything, so that DEL knows of everything that was begun.
        settings.states(request).save(&delegation.json)?;
        let config = delegation.config()?;
        match delegate::call(&delegation.plugin, Verb::Add, &request.environment, config) {
            Ok(result) => Ok(result.expect("ADD has a result")),
            Err(CallError::Reported(error)) => Err(error),
            Err(CallError::Failed(error)) => Err(error.context("failed to delegate add")),
        }
    }

    fn del(&self, request: &Request) -> Result<(), Error> {
        let settings = Settings::parse(request)?;
        let states = settings.states(request);
        let saved = states.load()?;
        let (delegation, begun) = match saved.as_deref().map(Delegation::read) {
            Some(Some(delegation)) => (delegation, Begun::Yes),
            // Cut short by a crash.
            Some(None) => (settings.derived(request)?, Begun::Yes),
            // Never begun, or already done. It costs little to make sure.
            None => match settings.derived(request) {
                Ok(delegation) => (delegation, Begun::Hardly),
                Err(_) => return Ok(()),
            },
        };
        let done = delegate::call(&delegation.plugin, Verb::Del, &request.environment, delegation.config()?);
        match (done, begun) {
            // Only now: a DEL that failed is tried again, and needs the state again.
            (Ok(_), _) => states.remove(),
            (Err(error), Begun::Yes) => Err(error.into()),
            (Err(error), Begun::Hardly) => {
                let _ = writeln!(
                    io::stderr().lock(),
                    "nothing is known of this attachment: {}",
                    Error::from(error)
                );
                Ok(())
            }
        }
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        let settings = Settings::parse(request)?;
        let saved = settings.states(request).load()?;
        let delegation = match saved.as_deref().and_then(Delegation::read) {
            Some(delegation) => delegation,
            None => settings.derived(request)?,
        };
        let config = delegation.with_members(request, &["prevResult", "runtimeConfig"])?;
        delegate::call(&delegation.plugin, Verb::Check, &request.environment, config)?;
        Ok(())
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        let unavailable = |error: Error| Error { code: code::PLUGIN_NOT_AVAILABLE, ..error };
        let settings = Settings::parse(request).map_err(unavailable)?;
        let subnet_file = settings.subnet_file().map_err(unavailable)?;
        let delegation = Delegation::build(request, Some(&subnet_file)).map_err(unavailable)?;
        delegate::call(&delegation.plugin, Verb::Status, &request.environment, delegation.config()?)
            .map_err(Error::from)
            .map_err(|error| if error.code == code::INTERNAL { unavailable(error) } else { error })?;
        Ok(())
    }

    fn gc(&self, request: &Request) -> Result<(), Error> {
        let settings = Settings::parse(request)?;
        let valid = request.config.valid_attachments()?;
        let delegation = settings.derived(request)?;
        let config =
            delegation.with_members(request, &["cni.dev/valid-attachments", "cni.dev/attachments"])?;
        delegate::call(&delegation.plugin, Verb::Gc, &request.environment, config)?;
        settings.states(request).keep_only(&valid)
    }
}

/// Whether there is a sign that an attachment was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Begun {
    Yes,
    Hardly,
}

/// What the configuration says to `flannel` itself.
struct Settings {
    subnet_file: PathBuf,
    data_dir: PathBuf,
}

impl Settings {
    fn parse(request: &Request) -> Result<Settings, Error> {
        let config = request.config.object();
        let path = |key, default: &str| {
            config
                .string(key)
                .map(|path| PathBuf::from(path.unwrap_or(default)))
                .map_err(|error| Error::internal(format!("failed to load netconf: {error}")))
        };
        Ok(Settings { subnet_file: path("subnetFile", SUBNET_FILE)?, data_dir: path("dataDir", DATA_DIR)? })
    }

    /// What flanneld leased. That it is not there passes once flanneld is up, so the runtime is told to
    /// try again.
    fn subnet_file(&self) -> Result<SubnetFile, Error> {
        let path = &self.subnet_file;
        let read = fs::read(path).map_err(|error| go_error("open", path, &error)).and_then(|bytes| {
            let file =
                SubnetFile::parse(&String::from_utf8_lossy(&bytes)).map_err(|error| error.to_string())?;
            match file.missing().as_slice() {
                [] => Ok(file),
                missing => Err(format!("{} is missing {}", path.display(), missing.join(", "))),
            }
        });
        read.map_err(|why| {
            let msg = format!(
                "failed to load flannel 'subnet.env' file: {why}. Check the flannel pod log for this node."
            );
            Error::new(code::TRY_AGAIN_LATER, msg).details(
                "flanneld writes this file as soon as the node has a lease: see whether it runs (flannelctl \
                 status) and what it logs",
            )
        })
    }

    /// The delegate's configuration as far as it can be told without the state file.
    fn derived(&self, request: &Request) -> Result<Delegation, Error> {
        Delegation::build(request, self.subnet_file().ok().as_ref())
    }

    fn states(&self, request: &Request) -> States {
        States::new(&self.data_dir, request)
    }
}

impl Delegation {
    fn config(&self) -> Result<Config, Error> {
        Config::parse(self.json.clone().into_bytes())
    }
}
