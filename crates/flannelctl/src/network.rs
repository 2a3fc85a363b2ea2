//! `flannelctl network`: the configuration that all nodes share.

use std::fs;
use std::io::{self, Read};

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use fabric::config::NetworkConfig;
use serde_json::Value;

use crate::output::{self, Output};
use crate::store::Location;

/// What to do with the configuration.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Show it.
    Show,
    /// Check it and write it. Nodes take it over when their flanneld starts.
    Set {
        /// JSON such as '{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}', a file, or - for
        /// standard input.
        config: String,
    },
}

pub(crate) fn run(store: &Location, verb: Verb, out: &mut Output) -> Result<()> {
    match verb {
        Verb::Show => show(store, out),
        Verb::Set { config } => set(store, &config, out),
    }
}

fn show(store: &Location, out: &mut Output) -> Result<()> {
    let json = store.ask(async |store| Ok(store.network_config().await?))?;
    let value: Value =
        serde_json::from_str(&json).with_context(|| format!("the configuration {json:?} is no JSON"))?;
    out.json(&value)?;
    if out.is_json() {
        return Ok(());
    }
    match NetworkConfig::from_json(&json) {
        Ok(config) => {
            describe(&config, out)?;
            warn(&config);
        }
        Err(error) => output::complain(&format!("no node can use this: {error}")),
    }
    Ok(())
}

fn set(store: &Location, config: &str, out: &mut Output) -> Result<()> {
    let json = match config {
        "-" => {
            let mut text = String::new();
            io::stdin().read_to_string(&mut text).context("reading standard input")?;
            text
        }
        text if text.trim_start().starts_with('{') => text.to_owned(),
        path => fs::read_to_string(path).with_context(|| format!("reading {path}"))?,
    };
    let config = match NetworkConfig::from_json(&json) {
        Ok(config) => config,
        Err(error) => bail!("nothing was written: {error}"),
    };
    warn(&config);
    store.ask(async |store| Ok(store.set_network_config(json.trim()).await?))?;
    if !out.is_json() {
        describe(&config, out)?;
        out.line("written; nodes take it over when their flanneld starts")?;
    }
    Ok(())
}

/// What the configuration means, with everything that it leaves to defaults.
fn describe(config: &NetworkConfig, out: &mut Output) -> Result<()> {
    if let Some(ipv4) = &config.ipv4 {
        let (min, max, len) = (ipv4.subnet_min, ipv4.subnet_max, ipv4.subnet_len);
        out.line(format!("IPv4: {}, subnets from {min}/{len} to {max}/{len}", ipv4.network))?;
    }
    if let Some(ipv6) = &config.ipv6 {
        let (min, max, len) = (ipv6.subnet_min, ipv6.subnet_max, ipv6.subnet_len);
        out.line(format!("IPv6: {}, subnets from {min}/{len} to {max}/{len}", ipv6.network))?;
    }
    out.line(format!("backend: {}", config.backend.name()))
}

fn warn(config: &NetworkConfig) {
    for warning in &config.warnings {
        output::complain(&format!("warning: {warning}"));
    }
}
