//! How to reach the Kubernetes API, and which node this is.

use std::path::PathBuf;

use crate::StoreError;

/// Where a pod finds its service account.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// How to reach the Kubernetes API, and which node this is.
///
/// Start from [`KubeOptions::from_environment`], then put in what the flags say.
#[derive(Debug, Clone)]
pub struct KubeOptions {
    /// `-kube-api-url`; empty if not given. Takes the place of the server that a kubeconfig names.
    pub api_url: String,
    /// `-kubeconfig-file`.
    pub kubeconfig_file: Option<PathBuf>,
    /// `-kube-annotation-prefix`, as typed.
    pub annotation_prefix: String,
    /// `-net-config-path`: the file with the network configuration.
    pub net_config_path: PathBuf,
    /// `NODE_NAME`; empty if not set, and then the pod's node is asked for.
    pub node_name: String,
    /// `POD_NAMESPACE`.
    pub pod_namespace: String,
    /// `POD_NAME`.
    pub pod_name: String,
    /// `KUBERNETES_SERVICE_HOST`: the API server as a pod sees it; empty outside of pods.
    pub service_host: String,
    /// `KUBERNETES_SERVICE_PORT`.
    pub service_port: String,
    /// `KUBERNETES_MASTER`: the API server where nothing else names one.
    pub master: String,
    /// The directory with `token` and `ca.crt` of a pod.
    pub service_account: PathBuf,
}

impl KubeOptions {
    /// The original's defaults, and what variables say. `variable` looks one up.
    pub fn from_environment(variable: impl Fn(&str) -> Option<String>) -> KubeOptions {
        let text = |name| variable(name).unwrap_or_default();
        KubeOptions {
            api_url: String::new(),
            kubeconfig_file: None,
            annotation_prefix: "flannel.alpha.coreos.com".to_owned(),
            net_config_path: "/etc/kube-flannel/net-conf.json".into(),
            node_name: text("NODE_NAME"),
            pod_namespace: text("POD_NAMESPACE"),
            pod_name: text("POD_NAME"),
            service_host: text("KUBERNETES_SERVICE_HOST"),
            service_port: text("KUBERNETES_SERVICE_PORT"),
            master: text("KUBERNETES_MASTER"),
            service_account: SERVICE_ACCOUNT.into(),
        }
    }

    /// What each annotation's name begins with, from [`KubeOptions::annotation_prefix`].
    ///
    /// Compatibility: without a slash one is appended; what then ends neither in a slash nor in a dash
    /// gets a dash.
    pub(super) fn prefix(&self) -> Result<String, StoreError> {
        let typed = &self.annotation_prefix;
        let refuse = |why: &str| {
            Err(StoreError::Options(format!(
                "-kube-annotation-prefix {typed:?}: {why}; want a domain and perhaps a part of a name, such as \
                 flannel.alpha.coreos.com or example.org/net-"
            )))
        };
        let mut prefix = typed.clone();
        match prefix.matches('/').count() {
            0 => prefix.push('/'),
            1 => {}
            _ => return refuse("subnet/kube: prefix can contain at most single slash"),
        }
        if !prefix.ends_with(['/', '-']) {
            prefix.push('-');
        }
        let Some((domain, name)) = prefix.split_once('/') else { return refuse("it has no slash") };
        let is_word = |text: &str| {
            !text.is_empty()
                && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'z' | b'_' | b'-'))
        };
        let is_domain = domain.contains('.') && domain.split('.').all(is_word);
        if !is_domain || !(name.is_empty() || is_word(name)) {
            return refuse("subnet/kube: prefix must be in a format: fqdn/[0-9a-z-_]*");
        }
        Ok(prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(typed: &str) -> Result<String, StoreError> {
        let mut options = KubeOptions::from_environment(|_| None);
        options.annotation_prefix = typed.to_owned();
        options.prefix()
    }

    #[test]
    fn prefixes_are_completed_as_the_original_completes_them() {
        for (typed, whole) in [
            ("flannel.alpha.coreos.com", "flannel.alpha.coreos.com/"),
            ("flannel.alpha.coreos.com/", "flannel.alpha.coreos.com/"),
            ("flannel.alpha.coreos.com/prefix", "flannel.alpha.coreos.com/prefix-"),
            ("flannel.alpha.coreos.com/prefix-", "flannel.alpha.coreos.com/prefix-"),
            ("org.com/9", "org.com/9-"),
        ] {
            assert_eq!(prefix(typed).unwrap(), whole);
        }
        for typed in
            ["org", "org/", "org/prefix", "org.COM", "org.com/PREFIX", "a.b/c/d", "", "a..b", "a.b/ä"]
        {
            let error = prefix(typed).unwrap_err().to_string();
            assert!(error.contains("subnet/kube: prefix") && error.contains("want a domain"), "{error}");
        }
    }
}
