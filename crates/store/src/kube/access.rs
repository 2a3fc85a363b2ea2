//! From options and files to a server and a TLS configuration. Everything is read anew for each
//! connection, so that rotated certificates and a replaced kubeconfig are seen.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::kubeconfig::{self, Access, Credentials, Pem};
use super::options::KubeOptions;

impl Access {
    /// Where the options lead. Says why they lead nowhere.
    ///
    /// Compatibility: what is looked at, in which order, is the original's.
    pub(super) fn find(options: &KubeOptions) -> Result<Access, String> {
        let mut access = match &options.kubeconfig_file {
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|error| format!("-kubeconfig-file {}: {error}", path.display()))?;
                let directory = path.parent().unwrap_or(Path::new("/"));
                kubeconfig::read(&text, directory)
                    .map_err(|why| format!("-kubeconfig-file {}: {why}", path.display()))?
            }
            None if options.api_url.is_empty() => match Access::of_pod(options) {
                Some(access) => access,
                None => Access { server: options.master.clone(), ..Access::default() },
            },
            None => Access::default(),
        };
        if !options.api_url.is_empty() {
            access.server = options.api_url.clone();
        }
        if access.server.is_empty() {
            return Err(
                "nothing says where the Kubernetes API is: this is no pod with a service account, so give \
                        -kubeconfig-file or -kube-api-url"
                    .to_owned(),
            );
        }
        if !access.server.contains("://") {
            let is_tls = access.authorities.is_some() || access.certificate.is_some() || access.insecure;
            access.server = format!("{}://{}", if is_tls { "https" } else { "http" }, access.server);
        }
        let trimmed = access.server.trim_end_matches('/').len();
        access.server.truncate(trimmed);
        Ok(access)
    }

    /// What a pod with a service account is given.
    fn of_pod(options: &KubeOptions) -> Option<Access> {
        let (host, port) = (&options.service_host, &options.service_port);
        let token = options.service_account.join("token");
        if host.is_empty() || port.is_empty() || !token.exists() {
            return None;
        }
        let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        let authorities = Some(options.service_account.join("ca.crt")).filter(|file| file.exists());
        Some(Access {
            server: format!("https://{host}:{port}"),
            authorities: authorities.map(Pem::File),
            credentials: Credentials::TokenFile(token),
            ..Access::default()
        })
    }

    /// The TLS configuration, from certificates as they are now.
    pub(super) fn tls(&self) -> Result<Arc<ClientConfig>, String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let algorithms = provider.signature_verification_algorithms;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("TLS cannot be used: {error}"))?;
        let builder = match self.insecure {
            true => builder.dangerous().with_custom_certificate_verifier(Arc::new(TakeAny(algorithms))),
            false => builder.with_root_certificates(self.roots()?),
        };
        let config = match &self.certificate {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = certificates(certificate, "the client certificate")?;
                let key = PrivateKeyDer::from_pem_slice(key.read("the client's key")?.as_bytes())
                    .map_err(|error| format!("the client's key{} is no PEM key: {error}", key.place()))?;
                builder.with_client_auth_cert(chain, key).map_err(|error| {
                    format!("the client certificate{} does not do: {error}", certificate.place())
                })?
            }
        };
        Ok(Arc::new(config))
    }

    fn roots(&self) -> Result<RootCertStore, String> {
        let mut roots = RootCertStore::empty();
        match &self.authorities {
            Some(pem) => {
                let (_, unusable) =
                    roots.add_parsable_certificates(certificates(pem, "the authority's certificate")?);
                if roots.is_empty() {
                    return Err(format!(
                        "the authority's certificate{}: {unusable} certificates, none of which can be used",
                        pem.place()
                    ));
                }
            }
            None => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                if roots.is_empty() {
                    return Err("this system trusts no authority, and no other is given: name the API server's in the \
                                kubeconfig (certificate-authority), or mount ca.crt into the pod"
                        .to_owned());
                }
            }
        }
        Ok(roots)
    }

    /// The value of the header `Authorization`.
    pub(super) fn authorization(&self) -> Result<Option<String>, String> {
        use base64::Engine as _;
        Ok(match &self.credentials {
            Credentials::None => None,
            Credentials::Token(token) => Some(format!("Bearer {}", token.0.trim())),
            Credentials::TokenFile(path) => {
                let token = std::fs::read_to_string(path)
                    .map_err(|error| format!("the token in {} cannot be read: {error}", path.display()))?;
                Some(format!("Bearer {}", token.trim()))
            }
            Credentials::Password { name, password } => {
                let pair = format!("{name}:{}", password.0);
                Some(format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair)))
            }
        })
    }
}

impl Pem {
    fn read(&self, what: &str) -> Result<String, String> {
        match self {
            Pem::Text(text) => Ok(text.0.clone()),
            Pem::File(path) => std::fs::read_to_string(path)
                .map_err(|error| format!("{what} in {} cannot be read: {error}", path.display())),
        }
    }

    fn place(&self) -> String {
        match self {
            Pem::Text(_) => String::new(),
            Pem::File(path) => format!(" in {}", path.display()),
        }
    }
}

fn certificates(pem: &Pem, what: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = pem.read(what)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(format!("{what}{}: there is no certificate in it", pem.place())),
        Err(error) => Err(format!("{what}{} is not PEM: {error}", pem.place())),
    }
}

/// For `insecure-skip-tls-verify`: any certificate will do, as long as the server has its key.
#[derive(Debug)]
struct TakeAny(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for TakeAny {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> KubeOptions {
        KubeOptions::from_environment(|_| None)
    }

    #[test]
    fn a_url_goes_before_a_kubeconfig_before_the_pod_before_the_variable() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("token"), "t0\n").unwrap();
        let mut options =
            KubeOptions { master: "master:8080".into(), service_account: dir.path().into(), ..options() };
        let server = |options: &KubeOptions| Access::find(options).unwrap().server;
        assert_eq!(server(&options), "http://master:8080");
        (options.service_host, options.service_port) = ("fd00::1".into(), "443".into());
        assert_eq!(server(&options), "https://[fd00::1]:443");
        let kubeconfig = dir.path().join("config");
        std::fs::write(
            &kubeconfig,
            "current-context: a\ncontexts: [{name: a, context: {cluster: c}}]\n\
             clusters: [{name: c, cluster: {server: 'https://named/path/', certificate-authority: ca.crt}}]",
        )
        .unwrap();
        options.kubeconfig_file = Some(kubeconfig);
        assert_eq!(server(&options), "https://named/path");
        options.api_url = "given".into();
        assert_eq!(server(&options), "https://given", "TLS is wanted, since there is an authority");
        options.kubeconfig_file = None;
        assert_eq!(server(&options), "http://given");
    }

    #[test]
    fn a_token_is_read_anew_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let access = Access { credentials: Credentials::TokenFile(path.clone()), ..Access::default() };
        for token in ["first", "second"] {
            std::fs::write(&path, format!("{token}\n")).unwrap();
            assert_eq!(access.authorization().unwrap().unwrap(), format!("Bearer {token}"));
        }
        std::fs::remove_file(&path).unwrap();
        assert!(access.authorization().unwrap_err().contains("cannot be read"));
    }

    #[test]
    fn a_password_is_sent_as_basic_authorization() {
        let password = Credentials::Password { name: "a".into(), password: crate::Secret("b".into()) };
        let access = Access { credentials: password, ..Access::default() };
        assert_eq!(access.authorization().unwrap().unwrap(), "Basic YTpi");
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = Access::find(&options()).unwrap_err();
        assert!(error.contains("-kubeconfig-file or -kube-api-url"), "{error}");
        let missing = KubeOptions { kubeconfig_file: Some("/nowhere/config".into()), ..options() };
        assert!(Access::find(&missing).unwrap_err().contains("-kubeconfig-file /nowhere/config"));
        let with = |pem| Access { authorities: Some(pem), ..Access::default() };
        let error = with(Pem::File("/nowhere/ca.crt".into())).tls().unwrap_err();
        assert!(error.contains("the authority's certificate in /nowhere/ca.crt cannot be read"), "{error}");
        let error = with(Pem::Text(crate::Secret("nothing".into()))).tls().unwrap_err();
        assert!(error.contains("no certificate in it"), "{error}");
    }
}
