//! How an etcd cluster is reached: what was typed, and what it is checked to.

use std::fmt;
use std::path::{Path, PathBuf};

use http::Uri;
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

use crate::StoreError;

/// How an etcd cluster is reached.
#[derive(Debug, Clone)]
pub struct EtcdOptions {
    /// `http://host:port` or `https://host:port`; one that is down is passed over.
    pub endpoints: Vec<String>,
    /// What all keys begin with, `/coreos.com/network`.
    pub prefix: String,
    /// The certificate authorities to trust, PEM; the system's where there is none.
    pub ca_file: Option<PathBuf>,
    /// Our certificate, PEM; only together with `key_file`.
    pub cert_file: Option<PathBuf>,
    /// The private key of our certificate, PEM.
    pub key_file: Option<PathBuf>,
    /// The name to log in with; only together with `password`.
    pub username: Option<String>,
    /// The password to log in with. Never shown.
    pub password: Option<Secret>,
}

impl Default for EtcdOptions {
    fn default() -> EtcdOptions {
        EtcdOptions {
            endpoints: vec!["http://127.0.0.1:4001".into(), "http://127.0.0.1:2379".into()],
            prefix: "/coreos.com/network".into(),
            ca_file: None,
            cert_file: None,
            key_file: None,
            username: None,
            password: None,
        }
    }
}

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl EtcdOptions {
    /// The endpoints, checked.
    pub(super) fn uris(&self) -> Result<Vec<Uri>, StoreError> {
        let uris: Vec<Uri> = self
            .endpoints
            .iter()
            .map(|text| text.trim())
            .filter(|text| !text.is_empty())
            .map(|text| self.endpoint(text))
            .collect::<Result<_, _>>()?;
        if uris.is_empty() {
            return Err(StoreError::Options("no etcd endpoint: want http://host:2379 or https://…".into()));
        }
        Ok(uris)
    }

    fn endpoint(&self, text: &str) -> Result<Uri, StoreError> {
        let bad = |why: &str| {
            StoreError::Options(format!(
                "{text:?} is no etcd endpoint: {why}; want http://host:2379 or https://host:2379"
            ))
        };
        // Compatibility: without a scheme, TLS is spoken if there are files for it.
        let files = [&self.ca_file, &self.cert_file, &self.key_file];
        let uri = match (text.contains("://"), files.iter().any(|file| file.is_some())) {
            (true, _) => text.to_owned(),
            (false, true) => format!("https://{text}"),
            (false, false) => format!("http://{text}"),
        };
        let uri: Uri = uri.parse().map_err(|error| bad(&format!("{error}")))?;
        match uri.scheme_str() {
            Some("http" | "https") => {}
            other => return Err(bad(&format!("{}:// cannot be spoken", other.unwrap_or_default()))),
        }
        match uri.host() {
            None | Some("") => Err(bad("it has no host")),
            Some(_) => Ok(uri),
        }
    }

    /// The name and password, if one is to log in.
    pub(super) fn login(&self) -> Option<(&str, &Secret)> {
        // Compatibility: an empty value is no value.
        let username = self.username.as_deref().filter(|text| !text.is_empty())?;
        let password = self.password.as_ref().filter(|secret| !secret.0.is_empty())?;
        Some((username, password))
    }

    /// How to speak TLS. The files are read each time, so that certificates that were renewed are
    /// taken up with the next connection.
    pub(super) fn tls(&self) -> Result<ClientTlsConfig, StoreError> {
        let config = match &self.ca_file {
            Some(file) => {
                let pem = read(file, "certificate authority", "CERTIFICATE")?;
                ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem))
            }
            None => ClientTlsConfig::new().with_native_roots(),
        };
        match (&self.cert_file, &self.key_file) {
            (Some(cert), Some(key)) => {
                let cert = read(cert, "client certificate", "CERTIFICATE")?;
                let key = read(key, "private key", "PRIVATE KEY")?;
                Ok(config.identity(Identity::from_pem(cert, key)))
            }
            (None, None) => Ok(config),
            (Some(cert), None) => Err(one_without_the_other("certificate", cert, "private key")),
            (None, Some(key)) => Err(one_without_the_other("private key", key, "certificate")),
        }
    }
}

/// A PEM file that has what it should. Its content is never shown.
fn read(file: &Path, what: &str, label: &str) -> Result<Vec<u8>, StoreError> {
    let pem = std::fs::read(file).map_err(|error| {
        StoreError::Options(format!("cannot read the etcd {what} {}: {error}", file.display()))
    })?;
    let text = String::from_utf8_lossy(&pem);
    let has_it = text.lines().any(|line| line.starts_with("-----BEGIN ") && line.contains(label));
    match has_it {
        true => Ok(pem),
        false => Err(StoreError::Options(format!(
            "the etcd {what} {} has no PEM block of a {}",
            file.display(),
            label.to_lowercase()
        ))),
    }
}

fn one_without_the_other(one: &str, file: &Path, other: &str) -> StoreError {
    StoreError::Options(format!(
        "an etcd client {one} ({}) without its {other}: give both or neither",
        file.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_trimmed_and_checked() {
        let options = |text: &str| EtcdOptions {
            endpoints: text.split(',').map(str::to_owned).collect(),
            ..EtcdOptions::default()
        };
        let uris = options("http://a:2379, https://[::1]:2379,").uris().unwrap();
        assert_eq!(uris.len(), 2);
        for (text, why) in [
            ("10.0.0.1:2379:1", "is no etcd endpoint"),
            ("unix:///run/etcd", "is no etcd endpoint"),
            ("tcp://10.0.0.1:2379", "cannot be spoken"),
            ("http://", "is no etcd endpoint"),
            ("", "no etcd endpoint"),
        ] {
            let error = options(text).uris().unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn an_endpoint_without_a_scheme_is_spoken_to_by_tls_where_there_are_certificates() {
        let options = |ca_file| EtcdOptions {
            endpoints: vec!["10.0.0.1:2379".into()],
            ca_file,
            ..EtcdOptions::default()
        };
        assert_eq!(options(None).uris().unwrap()[0].to_string(), "http://10.0.0.1:2379/");
        assert_eq!(options(Some("/ca".into())).uris().unwrap()[0].to_string(), "https://10.0.0.1:2379/");
    }

    #[test]
    fn a_certificate_needs_its_key_and_a_file_needs_its_block() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("cert.pem");
        std::fs::write(&file, "nonsense").unwrap();
        let only_cert = EtcdOptions { cert_file: Some(file.clone()), ..EtcdOptions::default() };
        assert!(only_cert.tls().unwrap_err().to_string().contains("without its private key"));
        let no_block = EtcdOptions { ca_file: Some(file), ..EtcdOptions::default() };
        assert!(no_block.tls().unwrap_err().to_string().contains("has no PEM block"));
    }

    #[test]
    fn secrets_are_not_shown() {
        let options = EtcdOptions {
            username: Some("root".into()),
            password: Some(Secret("hunter2".into())),
            ..EtcdOptions::default()
        };
        assert!(!format!("{options:?}").contains("hunter2"));
    }
}
