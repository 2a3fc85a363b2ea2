//! Where the leases are: flags with flanneld's names and variables, so that one environment file
//! serves both.

use std::path::PathBuf;

use ::store::{EtcdOptions, KubeOptions, Secret, Store};
use anyhow::{Result, bail};
use clap::Args;

/// Where the leases are.
#[derive(Args)]
pub(crate) struct Location {
    /// `etcd`, `kube` for the Kubernetes API, or `file:DIR` for a directory shared by the nodes of one
    /// machine.
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
    /// The same as --store=kube.
    #[arg(long, env = "FLANNELD_KUBE_SUBNET_MGR", global = true)]
    kube_subnet_mgr: bool,
    /// URL of the API server; not needed in a pod.
    #[arg(long, env = "FLANNELD_KUBE_API_URL", global = true)]
    kube_api_url: Option<String>,
    /// How to reach the API server; not needed in a pod. Implies --store=kube.
    #[arg(
        long,
        visible_alias = "kubeconfig",
        env = "FLANNELD_KUBECONFIG_FILE",
        value_name = "FILE",
        global = true
    )]
    kubeconfig_file: Option<PathBuf>,
    /// What flannel's annotations of nodes begin with.
    #[arg(
        long,
        env = "FLANNELD_KUBE_ANNOTATION_PREFIX",
        default_value = "flannel.alpha.coreos.com",
        global = true
    )]
    kube_annotation_prefix: String,
    /// The file with the network configuration, with Kubernetes.
    #[arg(
        long,
        env = "FLANNELD_NET_CONFIG_PATH",
        default_value = "/etc/kube-flannel/net-conf.json",
        value_name = "FILE",
        global = true
    )]
    net_config_path: PathBuf,
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

    /// Whether the leases are Nodes of Kubernetes.
    pub(crate) fn is_kubernetes(&self) -> bool {
        self.store == "kube" || self.kube_subnet_mgr || self.kubeconfig_file.is_some()
    }

    fn open(&self) -> Result<Store> {
        if self.is_kubernetes() {
            return Ok(Store::kube(self.kubernetes())?);
        }
        if let Some(dir) = self.store.strip_prefix("file:") {
            return Ok(Store::file(dir)?);
        }
        if self.store != "etcd" {
            bail!("--store={:?}: want etcd, kube, or file:DIR", self.store);
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

    fn kubernetes(&self) -> KubeOptions {
        let environment = KubeOptions::from_environment(|name| std::env::var(name).ok());
        // A kubelet calls its node as the host is called; where this is no node, nothing depends on it.
        let node_name = if environment.node_name.is_empty() && environment.pod_name.is_empty() {
            let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
            host.trim().to_lowercase()
        } else {
            environment.node_name.clone()
        };
        KubeOptions {
            node_name,
            api_url: self.kube_api_url.clone().unwrap_or_default(),
            kubeconfig_file: self.kubeconfig_file.clone(),
            annotation_prefix: self.kube_annotation_prefix.clone(),
            net_config_path: self.net_config_path.clone(),
            ..environment
        }
    }
}
