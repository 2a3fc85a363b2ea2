//! [`ApiServer`]: a real API server on a real etcd, in the switch of a lab.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use lab::{Lab, Namespace, Process, wait_for};
use rustix::process::Signal;
use rustls::ClientConfig;
use serde_json::{Value, json};

use super::certificates::{Authority, Identity, key_pair};
use super::connection::Connection;
use super::programs::Programs;
use super::sample::SampleNode;

/// How long a server may take to start or to end on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(60);
const PORT: u16 = 6443;
/// In the switch, beside the etcd that a lab may have.
const ETCD: &str = "http://127.0.0.1:2479";
const ETCD_PEERS: &str = "http://127.0.0.1:2480";
/// The cluster's services; the first address is the API server's own.
pub(crate) const SERVICES: &str = "10.96.0.0/16";
const OWN_SERVICE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 96, 0, 1));
/// Where flannel's manifest puts everything, and under which account it runs.
const FLANNEL_NAMESPACE: &str = "kube-flannel";
const FLANNEL_ACCOUNT: &str = "flannel";
const FLANNEL_USER: &str = "system:serviceaccount:kube-flannel:flannel";
/// Everything that a cluster is given to have flannel.
pub(crate) const MANIFEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/kube-flannel.yml");
/// So many connections fill a server faster than fewer, and more do not.
const CONNECTIONS: usize = 4;

/// A real API server (with RBAC, Node authorization and NodeRestriction) on a real etcd. It is in the
/// switch of a lab and listens on the switch's address, so the nodes of the lab reach it; the machine
/// does not. It takes about two seconds to start. Dropping it ends both.
///
/// ```no_run
/// # use flannel_rs_tests::kubernetes::{ApiServer, SampleNode, is_available};
/// # use lab::{Topology, story};
/// if !is_available() {
///     return;
/// }
/// story(Topology::vxlan(2), |lab| {
///     let api = ApiServer::start(lab)?;
///     // Nodes that are objects only, of realistic size; or write your own with `request`.
///     api.create_nodes(&(1..=1000).map(SampleNode::vxlan).collect::<Vec<_>>())?;
///     api.request("PATCH", "/api/v1/nodes/node-1", &serde_json::json!({ "metadata": { "labels": { "a": "b" } } }))?;
///     // What flanneld outside of a pod is given. Whoever connects must be in a namespace of the lab:
///     // a node's, or with `lab.switch().within(|| …)` the switch's.
///     let flag = format!("--kubeconfig-file={}", api.flannel_kubeconfig().display());
///     lab.node(1).start_with(&["--kube-subnet-mgr", &flag])?;
///     // A server that hangs (requests are accepted and never answered), dies, comes back, moves.
///     api.hang()?;
///     api.go_on()?;
///     api.kill()?;
///     api.restart()?;
///     api.move_to("192.168.64.253".parse()?)?;
///     print!("{}", api.kubectl(&["get", "nodes"])?);
///     Ok(())
/// });
/// ```
///
/// The directory of [`ApiServer::service_account`] holds what a pod finds below
/// `/var/run/secrets/kubernetes.io/serviceaccount`; the account has the rights that
/// `deploy/kube-flannel.yml` gives it and no others. The logs are `kube-apiserver.log` and `etcd.log` in
/// [`ApiServer::dir`].
#[derive(Debug)]
pub struct ApiServer {
    programs: Programs,
    dir: PathBuf,
    switch: Namespace,
    authority: Authority,
    admin: Identity,
    tls: Arc<ClientConfig>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    address: SocketAddr,
    etcd: Option<Process>,
    server: Option<Process>,
}

impl ApiServer {
    /// Starts etcd and the API server, waits until it is ready, and gives flannel its account.
    pub fn start(lab: &Lab) -> Result<ApiServer> {
        let api = ApiServer::begin(lab)?;
        api.admit_flannel()?;
        Ok(api)
    }

    /// A server that knows nothing of flannel.
    pub(crate) fn begin(lab: &Lab) -> Result<ApiServer> {
        let programs = Programs::find()?;
        let dir = lab.dir().join("kubernetes");
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        let authority = Authority::new()?;
        let admin = authority.client("admin", Some("system:masters"))?;
        let tls = authority.tls(&admin)?;
        let address = SocketAddr::new(lab.topology().switch_address(), PORT);
        let state = Mutex::new(State { address, etcd: None, server: None });
        let api = ApiServer { programs, dir, switch: lab.switch().clone(), authority, admin, tls, state };
        api.write_keys()?;
        api.start_etcd()?;
        api.restart()?;
        Ok(api)
    }

    fn write_keys(&self) -> Result<()> {
        let (private, public) = key_pair()?;
        self.write("service-accounts.key", &private)?;
        self.write("service-accounts.pub", &public)?;
        self.write("ca.crt", &self.authority.certificate)?;
        let kubelet_client = self.authority.client("kube-apiserver", Some("system:masters"))?;
        self.write("kubelet-client.crt", &kubelet_client.certificate)?;
        self.write("kubelet-client.key", &kubelet_client.key)
    }

    fn start_etcd(&self) -> Result<()> {
        let command = [
            "etcd".to_owned(),
            format!("--data-dir={}", self.dir.join("etcd").display()),
            format!("--listen-client-urls={ETCD}"),
            format!("--advertise-client-urls={ETCD}"),
            format!("--listen-peer-urls={ETCD_PEERS}"),
            format!("--initial-advertise-peer-urls={ETCD_PEERS}"),
            format!("--initial-cluster=default={ETCD_PEERS}"),
            // Ten thousand nodes that are updated all the time.
            format!("--quota-backend-bytes={}", 4_u64 << 30),
        ];
        let etcd = Process::spawn(&self.switch, &command, &self.dir.join("etcd.log"))
            .context("an API server needs the program etcd: `make setup` installs it")?;
        self.state().etcd = Some(etcd);
        Ok(())
    }

    /// Starts the API server again after [`ApiServer::kill`], with everything that it knew.
    pub fn restart(&self) -> Result<()> {
        let address = self.address();
        let names = ["kubernetes.default.svc", "kubernetes.default", "kubernetes", "localhost"];
        let server = self.authority.server(&names, &[address.ip(), OWN_SERVICE, [127, 0, 0, 1].into()])?;
        self.write("server.crt", &server.certificate)?;
        self.write("server.key", &server.key)?;
        self.write_kubeconfigs()?;
        let file = |name: &str| self.dir.join(name).display().to_string();
        let command = [
            self.programs.path("kube-apiserver"),
            format!("--etcd-servers={ETCD}"),
            format!("--bind-address={}", address.ip()),
            format!("--secure-port={PORT}"),
            format!("--service-cluster-ip-range={SERVICES}"),
            format!("--tls-cert-file={}", file("server.crt")),
            format!("--tls-private-key-file={}", file("server.key")),
            format!("--client-ca-file={}", file("ca.crt")),
            // Nobody resolves names here.
            "--kubelet-preferred-address-types=InternalIP".to_owned(),
            format!("--kubelet-client-certificate={}", file("kubelet-client.crt")),
            format!("--kubelet-client-key={}", file("kubelet-client.key")),
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
            format!("--service-account-key-file={}", file("service-accounts.pub")),
            format!("--service-account-signing-key-file={}", file("service-accounts.key")),
            "--authorization-mode=Node,RBAC".to_owned(),
            "--enable-admission-plugins=NodeRestriction".to_owned(),
            "--allow-privileged=true".to_owned(),
        ];
        let server = Process::spawn(&self.switch, &command, &self.dir.join("kube-apiserver.log"))?;
        self.state().server = Some(server);
        wait_for("the API server to be ready", PATIENCE, || {
            let running = self.state().server.as_ref().is_some_and(Process::is_running);
            ensure!(running, "it has ended, see the end of its log:\n{}", self.log_tail());
            self.request("GET", "/readyz", &Value::Null).map(drop)
        })
    }

    /// Kills the API server: connections are refused until [`ApiServer::restart`].
    pub fn kill(&self) -> Result<()> {
        let server = self.state().server.take();
        server.context("no API server runs")?.end(Signal::KILL, PATIENCE)
    }

    /// Stops the API server in its tracks: connections are accepted, and never answered.
    pub fn hang(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Ends [`ApiServer::hang`].
    pub fn go_on(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        self.state().server.as_ref().context("no API server runs")?.signal(signal)
    }

    /// Replaces the API server by one under another address of the switch's first segment, with a
    /// certificate of the same authority. Kubeconfigs name the new address from then on.
    pub fn move_to(&self, address: IpAddr) -> Result<()> {
        let prefix = if address.is_ipv4() { 24 } else { 64 };
        self.switch.run(&["ip", "address", "replace", &format!("{address}/{prefix}"), "dev", "seg0"])?;
        if self.state().server.is_some() {
            self.kill()?;
        }
        self.state().address = SocketAddr::new(address, PORT);
        self.restart()
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.state().address
    }

    /// Its files: logs, certificates, etcd's data.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The certificate of the authority, which clients trust.
    pub fn ca_file(&self) -> PathBuf {
        self.dir.join("ca.crt")
    }

    /// A kubeconfig with all rights, by a client certificate.
    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.dir.join("admin.kubeconfig")
    }

    /// A kubeconfig with the rights of flannel's service account, by the token in
    /// [`ApiServer::service_account`].
    pub fn flannel_kubeconfig(&self) -> PathBuf {
        self.dir.join("flannel.kubeconfig")
    }

    /// The text of a kubeconfig with the rights of a user, perhaps one of a group, by a client certificate.
    pub fn kubeconfig_for(&self, user: &str, group: Option<&str>) -> Result<String> {
        Ok(self.kubeconfig(user, &certificate_of(&self.authority.client(user, group)?)))
    }

    /// A directory with `token`, `ca.crt` and `namespace`, as a pod of flannel's finds them.
    pub fn service_account(&self) -> PathBuf {
        self.dir.join("service-account")
    }

    /// Makes a new token for flannel's service account and replaces the file in
    /// [`ApiServer::service_account`], as a kubelet does long before the old one expires.
    pub fn renew_token(&self) -> Result<()> {
        let path = format!("/api/v1/namespaces/{FLANNEL_NAMESPACE}/serviceaccounts/{FLANNEL_ACCOUNT}/token");
        let request = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {} });
        let answer = self.request("POST", &path, &request)?;
        let token = answer["status"]["token"].as_str().context("the answer has no token")?;
        self.write("service-account/token.new", token)?;
        let dir = self.service_account();
        Ok(fs::rename(dir.join("token.new"), dir.join("token"))?)
    }

    /// Makes all tokens of flannel's service account worthless, as when they have expired; the server
    /// may believe one that it has just seen for ten seconds more.
    pub fn revoke_tokens(&self) -> Result<()> {
        let accounts = format!("/api/v1/namespaces/{FLANNEL_NAMESPACE}/serviceaccounts");
        self.request("DELETE", &format!("{accounts}/{FLANNEL_ACCOUNT}"), &Value::Null)?;
        let account = json!({ "metadata": { "name": FLANNEL_ACCOUNT } });
        self.request("POST", &accounts, &account).map(drop)
    }

    /// Waits until flannel's account has a right that it was given: the server knows of it a moment after
    /// the role and its binding are made, and who is refused may not ask again for long.
    pub fn wait_allowed(&self, group: &str, resource: &str, verb: &str) -> Result<()> {
        let (kind, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let right = json!({ "group": group, "resource": kind, "subresource": subresource, "verb": verb });
        let review = json!({ "spec": { "user": FLANNEL_USER, "resourceAttributes": right } });
        wait_for(&format!("flannel to be allowed to {verb} {resource}"), PATIENCE, || {
            let reviews = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
            let answer = self.request("POST", reviews, &review)?;
            ensure!(answer["status"]["allowed"] == true, "{}", answer["status"]);
            Ok(())
        })
    }

    /// Asks the API as administrator; a PATCH is a strategic merge. Fails with the server's reason.
    pub fn request(&self, method: &str, path: &str, body: &Value) -> Result<Value> {
        let kind =
            if method == "PATCH" { "application/strategic-merge-patch+json" } else { "application/json" };
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.connect()?.send(method, path, kind, body)
    }

    /// Creates nodes, a thousand in a second or two.
    pub fn create_nodes(&self, nodes: &[SampleNode]) -> Result<()> {
        let share = nodes.len().div_ceil(CONNECTIONS).max(1);
        std::thread::scope(|scope| {
            let create = |nodes: &[SampleNode]| -> Result<()> {
                let mut connection = self.connect()?;
                for node in nodes {
                    connection.send(
                        "POST",
                        "/api/v1/nodes",
                        "application/json",
                        node.object().to_string(),
                    )?;
                }
                Ok(())
            };
            let threads: Vec<_> =
                nodes.chunks(share).map(|nodes| scope.spawn(move || create(nodes))).collect();
            threads.into_iter().try_for_each(|thread| thread.join().expect("creating nodes does not panic"))
        })
    }

    /// Runs kubectl as administrator and returns what it printed.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        let kubectl = self.programs.path("kubectl");
        let config = format!("--kubeconfig={}", self.admin_kubeconfig().display());
        let cache = format!("--cache-dir={}", self.dir.join("kubectl").display());
        self.switch.run(&[&[kubectl.as_str(), &config, &cache], args].concat())
    }

    /// The path of a program of Kubernetes.
    pub fn program(&self, name: &str) -> String {
        self.programs.path(name)
    }

    /// A connection as administrator, for what is measured or done very often.
    pub fn connect(&self) -> Result<Connection> {
        Connection::open(&self.switch, self.address(), self.tls.clone())
    }

    /// Gives flannel its account and its rights: those of the manifest.
    fn admit_flannel(&self) -> Result<()> {
        let manifest = fs::read_to_string(MANIFEST).with_context(|| format!("reading {MANIFEST}"))?;
        for document in manifest.split("\n---\n") {
            let kind = document.lines().find_map(|line| line.strip_prefix("kind: "));
            let path = match kind {
                Some("Namespace") => "/api/v1/namespaces",
                Some("ServiceAccount") => "/api/v1/namespaces/kube-flannel/serviceaccounts",
                Some("ClusterRole") => "/apis/rbac.authorization.k8s.io/v1/clusterroles",
                Some("ClusterRoleBinding") => "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
                _ => continue,
            };
            self.connect()?.send("POST", path, "application/yaml", document.to_owned())?;
        }
        self.write("service-account/ca.crt", &self.authority.certificate)?;
        self.write("service-account/namespace", FLANNEL_NAMESPACE)?;
        self.wait_allowed("", "nodes", "get")?;
        self.renew_token()
    }

    fn write_kubeconfigs(&self) -> Result<()> {
        let token = self.service_account().join("token");
        let text = self.kubeconfig("flannel", &[("tokenFile", token.display().to_string())]);
        self.write("flannel.kubeconfig", &text)?;
        let text = self.kubeconfig("admin", &certificate_of(&self.admin));
        self.write("admin.kubeconfig", &text)
    }

    fn kubeconfig(&self, user: &str, credentials: &[(&str, String)]) -> String {
        let (server, ca) = (self.address(), BASE64.encode(&self.authority.certificate));
        let credentials: String =
            credentials.iter().map(|(name, value)| format!("    {name}: {value}\n")).collect();
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: lab\n\
             clusters:\n- name: lab\n  cluster:\n    server: https://{server}\n    \
             certificate-authority-data: {ca}\n\
             contexts:\n- name: lab\n  context:\n    cluster: lab\n    user: {user}\n\
             users:\n- name: {user}\n  user:\n{credentials}"
        )
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.dir.join(name);
        let dir = path.parent().unwrap_or(&self.dir);
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    }

    fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.dir.join("kube-apiserver.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(5)..].join("\n")
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A story that panicked still wants its servers ended.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn certificate_of(identity: &Identity) -> [(&'static str, String); 2] {
    [
        ("client-certificate-data", BASE64.encode(&identity.certificate)),
        ("client-key-data", BASE64.encode(&identity.key)),
    ]
}

impl Drop for ApiServer {
    #[expect(clippy::print_stderr, reason = "a destructor has nobody else to tell")]
    fn drop(&mut self) {
        let mut state = self.state();
        for mut process in [state.server.take(), state.etcd.take()].into_iter().flatten() {
            if let Err(error) = process.end(Signal::KILL, PATIENCE) {
                eprintln!("ending an API server: {error:#}");
            }
        }
    }
}
