//! `kubeconfig` files: which server, whom to trust, and who we are. Pure.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use yaml_rust2::{Yaml, YamlLoader};

use crate::Secret;

/// A server, and how to be let in.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Access {
    /// `https://10.96.0.1:443`, perhaps with a path.
    pub(super) server: String,
    /// The authorities that the server's certificate may be from; none for the system's.
    pub(super) authorities: Option<Pem>,
    /// Take any certificate.
    pub(super) insecure: bool,
    /// The name that the certificate must be for, where it is not the server's.
    pub(super) server_name: Option<String>,
    /// The client's certificate and its key.
    pub(super) certificate: Option<(Pem, Pem)>,
    pub(super) credentials: Credentials,
}

/// Certificates or a key, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Pem {
    Text(Secret),
    /// Read each time that it is needed, since it may be replaced.
    File(PathBuf),
}

/// What goes into the header `Authorization`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) enum Credentials {
    #[default]
    None,
    Token(Secret),
    /// Read for each request, since tokens are replaced long before they expire.
    TokenFile(PathBuf),
    Password {
        name: String,
        password: Secret,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    #[serde(default)]
    current_context: Option<String>,
    #[serde(default)]
    clusters: Option<Vec<NamedCluster>>,
    #[serde(default)]
    contexts: Option<Vec<NamedContext>>,
    #[serde(default)]
    users: Option<Vec<NamedUser>>,
}

#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    #[serde(default)]
    cluster: Option<Cluster>,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    #[serde(default)]
    context: Option<Context>,
}

#[derive(Deserialize)]
struct NamedUser {
    name: String,
    #[serde(default)]
    user: Option<User>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case", default)]
struct Cluster {
    server: Option<String>,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    insecure_skip_tls_verify: bool,
    tls_server_name: Option<String>,
    proxy_url: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Context {
    cluster: String,
    user: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct User {
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
    #[serde(rename = "client-certificate")]
    certificate: Option<PathBuf>,
    #[serde(rename = "client-certificate-data")]
    certificate_data: Option<String>,
    #[serde(rename = "client-key")]
    key: Option<PathBuf>,
    #[serde(rename = "client-key-data")]
    key_data: Option<String>,
    username: Option<String>,
    password: Option<String>,
    exec: Option<serde::de::IgnoredAny>,
    #[serde(rename = "auth-provider")]
    auth_provider: Option<serde::de::IgnoredAny>,
}

/// Reads a kubeconfig. Files that it names are relative to `directory`, its own.
pub(super) fn read(text: &str, directory: &Path) -> Result<Access, String> {
    let file: File = from_yaml(text)?;
    let current = file.current_context.filter(|name| !name.is_empty()).ok_or(
        "it has no current-context, so it does not say which cluster; set one with `kubectl config use-context`",
    )?;
    let context = file.contexts.unwrap_or_default().into_iter().find(|entry| entry.name == current);
    let context =
        context.ok_or_else(|| format!("its current-context is {current:?}, which is not in contexts"))?;
    let context = context.context.unwrap_or_default();
    let missing = |kind: &str, name: &str| {
        format!("its context {current:?} names the {kind} {name:?}, which is not in {kind}s")
    };
    let cluster = file.clusters.unwrap_or_default().into_iter().find(|entry| entry.name == context.cluster);
    let cluster = cluster.ok_or_else(|| missing("cluster", &context.cluster))?.cluster.unwrap_or_default();
    let user = file.users.unwrap_or_default().into_iter().find(|entry| entry.name == context.user);
    let user = match user {
        Some(entry) => entry.user.unwrap_or_default(),
        None if context.user.is_empty() => User::default(),
        None => return Err(missing("user", &context.user)),
    };
    access(cluster, user, directory).map_err(|why| format!("in its context {current:?}: {why}"))
}

fn access(cluster: Cluster, user: User, directory: &Path) -> Result<Access, String> {
    if user.exec.is_some() || user.auth_provider.is_some() {
        return Err(
            "the user is known by an exec or auth-provider plugin, and no program is run here; use a \
                    token, a tokenFile or a client certificate"
                .to_owned(),
        );
    }
    if cluster.proxy_url.is_some_and(|url| !url.is_empty()) {
        return Err(
            "the cluster has a proxy-url, and proxies are not used here; name the server itself".to_owned()
        );
    }
    let pem = |data: Option<String>, file: Option<PathBuf>, key: &str| match (data, file) {
        (Some(data), _) if !data.is_empty() => decode(&data, key).map(|text| Some(Pem::Text(text))),
        (_, Some(file)) if !file.as_os_str().is_empty() => Ok(Some(Pem::File(directory.join(file)))),
        _ => Ok(None),
    };
    let authorities =
        pem(cluster.certificate_authority_data, cluster.certificate_authority, "certificate-authority-data")?;
    let certificate = pem(user.certificate_data, user.certificate, "client-certificate-data")?;
    let key = pem(user.key_data, user.key, "client-key-data")?;
    let certificate = match (certificate, key) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        (Some(_), None) => return Err("the user has a client-certificate without its client-key".to_owned()),
        (None, Some(_)) => return Err("the user has a client-key without its client-certificate".to_owned()),
    };
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    let credentials = match (user.token_file, given(user.token), given(user.username)) {
        (Some(file), _, _) if !file.as_os_str().is_empty() => Credentials::TokenFile(directory.join(file)),
        (_, Some(token), _) => Credentials::Token(Secret(token)),
        (_, None, Some(name)) => {
            Credentials::Password { name, password: Secret(user.password.unwrap_or_default()) }
        }
        _ => Credentials::None,
    };
    Ok(Access {
        server: cluster.server.unwrap_or_default(),
        authorities,
        insecure: cluster.insecure_skip_tls_verify,
        server_name: given(cluster.tls_server_name),
        certificate,
        credentials,
    })
}

fn decode(data: &str, key: &str) -> Result<Secret, String> {
    let compact: String = data.chars().filter(|letter| !letter.is_whitespace()).collect();
    let bytes = BASE64.decode(compact).map_err(|error| format!("{key} is not base64: {error}"))?;
    String::from_utf8(bytes).map(Secret).map_err(|_| format!("{key} is not PEM in base64"))
}

/// YAML, of which JSON is a part.
fn from_yaml<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    let documents = YamlLoader::load_from_str(text).map_err(|error| format!("it is not YAML: {error}"))?;
    let document = documents.into_iter().next().unwrap_or(Yaml::Null);
    serde_json::from_value(to_json(document)).map_err(|error| format!("it is no kubeconfig: {error}"))
}

fn to_json(yaml: Yaml) -> serde_json::Value {
    use serde_json::Value;
    match yaml {
        // A token of digits is a text all the same; those who want a number do not live here.
        Yaml::Integer(number) => Value::String(number.to_string()),
        Yaml::Real(text) | Yaml::String(text) => Value::String(text),
        Yaml::Boolean(value) => Value::Bool(value),
        Yaml::Array(items) => items.into_iter().map(to_json).collect(),
        Yaml::Hash(entries) => {
            let entries = entries.into_iter().filter_map(|(key, value)| match key {
                Yaml::String(key) => Some((key, to_json(value))),
                _ => None,
            });
            Value::Object(entries.filter(|(_, value)| !value.is_null()).collect())
        }
        Yaml::Null | Yaml::BadValue | Yaml::Alias(_) => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FULL: &str = r#"
apiVersion: v1
kind: Config
current-context: lab
clusters:
- name: other
  cluster: {server: "https://other"}
- cluster:
    certificate-authority-data: Q0E=
    server: https://192.0.2.1:6443
    tls-server-name: kubernetes
  name: lab
contexts:
- {name: lab, context: {cluster: lab, user: admin, namespace: x}}
users:
- name: admin
  user:
"#;

    fn with_user(user: &str) -> Result<Access, String> {
        read(&format!("{FULL}{user}"), Path::new("/etc/kubernetes"))
    }

    #[test]
    fn the_current_context_leads_to_a_server_and_a_user() {
        let access = with_user("    token: s3cret\n").unwrap();
        assert_eq!(access.server, "https://192.0.2.1:6443");
        assert_eq!(access.authorities, Some(Pem::Text(Secret("CA".into()))));
        assert_eq!(access.server_name.as_deref(), Some("kubernetes"));
        assert_eq!(access.credentials, Credentials::Token(Secret("s3cret".into())));
        assert!(!format!("{access:?}").contains("s3cret"));
    }

    #[test]
    fn each_way_to_say_who_we_are_is_understood() {
        let credentials = |user| with_user(user).unwrap().credentials;
        assert_eq!(
            credentials("    token: a\n    tokenFile: token\n"),
            Credentials::TokenFile("/etc/kubernetes/token".into()),
            "files are read anew, so they are preferred; relative ones are beside the kubeconfig"
        );
        let password = Credentials::Password { name: "me".into(), password: Secret("1234".into()) };
        assert_eq!(credentials("    username: me\n    password: 1234\n"), password);
        assert_eq!(with_user("").unwrap().credentials, Credentials::None);
        let certificate =
            with_user("    client-certificate: c.pem\n    client-key-data: S0VZ\n").unwrap().certificate;
        let key = Pem::Text(Secret("KEY".into()));
        assert_eq!(certificate, Some((Pem::File("/etc/kubernetes/c.pem".into()), key)));
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        for (text, named) in [
            ("", "no kubeconfig"),
            ("a: [", "not YAML"),
            ("clusters: 3", "no kubeconfig"),
            ("current-context: ''", "no current-context"),
            ("current-context: a", "not in contexts"),
            ("current-context: a\ncontexts: [{name: a, context: {cluster: c}}]", "names the cluster \"c\""),
        ] {
            let error = read(text, Path::new("/")).unwrap_err();
            assert!(error.contains(named), "{text}: {error}");
        }
        for (user, named) in [
            ("    exec: {command: aws}\n", "exec"),
            ("    client-certificate: c.pem\n", "without its client-key"),
            (
                "    client-certificate-data: '%'\n    client-key: k\n",
                "client-certificate-data is not base64",
            ),
        ] {
            let error = with_user(user).unwrap_err();
            assert!(error.contains(named), "{user}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[a-z:\\-\\[\\]{}\"'&*|> \n]{0,80}") {
            let _ = read(&text, Path::new("/"));
            let _ = with_user(&text);
        }
    }
}
