//! Where the leases are: flags with flanneld's names and variables, so that one environment file
//! serves both.

use std::path::PathBuf;

use ::store::{EtcdOptions, Secret, Store};
use anyhow::{Result, bail};
use clap::Args;

/// Where the leases are.
#[derive(Args)]
pub(crate) struct Location {
    /// `etcd`, or `file:DIR` for a directory shared by the nodes of one machine.
    #[arg(long, env = "FLANNELD_STORE", default_value = "etcd", global = true)]
    store: String,
    /// Comma-separated.
    #[arg(
        long,
        env = "FLANNELD_ETCD_ENDPOINTS",
        default_value = "http://127.0.0.1:4001,http://127.0.0.1:2379",
        global = true
    )]
    etcd_endpoints: String,
    /// What all keys begin with.
    #[arg(long, env = "FLANNELD_ETCD_PREFIX", default_value = "/coreos.com/network", global = true)]
    etcd_prefix: String,
    /// The key of the client certificate, PEM.
    #[arg(long, env = "FLANNELD_ETCD_KEYFILE", global = true)]
    etcd_keyfile: Option<PathBuf>,
    /// The client certificate, PEM.
    #[arg(long, env = "FLANNELD_ETCD_CERTFILE", global = true)]
    etcd_certfile: Option<PathBuf>,
    /// The certificate authorities that etcd's certificate is checked against, PEM.
    #[arg(long, env = "FLANNELD_ETCD_CAFILE", global = true)]
    etcd_cafile: Option<PathBuf>,
    /// The etcd user.
    #[arg(long, env = "FLANNELD_ETCD_USERNAME", global = true)]
    etcd_username: Option<String>,
    /// The user's password; better given in the environment, since everybody sees arguments.
    #[arg(long, env = "FLANNELD_ETCD_PASSWORD", hide_env_values = true, global = true)]
    etcd_password: Option<String>,
}

impl std::fmt::Debug for Location {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Location").field("store", &self.store).finish_non_exhaustive()
    }
}

impl Location {
    /// Asks the store something.
    pub(crate) fn ask<T>(&self, question: impl AsyncFnOnce(&Store) -> Result<T>) -> Result<T> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let store = self.open()?;
            question(&store).await
        })
    }

    fn open(&self) -> Result<Store> {
        if let Some(dir) = self.store.strip_prefix("file:") {
            return Ok(Store::file(dir)?);
        }
        if self.store != "etcd" {
            bail!("--store={:?}: want etcd, or file:DIR", self.store);
        }
        Ok(Store::etcd(EtcdOptions {
            endpoints: self.etcd_endpoints.split(',').map(|endpoint| endpoint.trim().to_owned()).collect(),
            prefix: self.etcd_prefix.clone(),
            ca_file: self.etcd_cafile.clone(),
            cert_file: self.etcd_certfile.clone(),
            key_file: self.etcd_keyfile.clone(),
            username: self.etcd_username.clone(),
            password: self.etcd_password.clone().map(Secret),
        })?)
    }
}
