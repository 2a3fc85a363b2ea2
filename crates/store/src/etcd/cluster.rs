//! Calls to an etcd cluster: one connection at a time, the next endpoint when it fails, a login
//! where etcd wants one, and a deadline on everything.

use std::sync::Mutex;
use std::time::Duration;

use futures_util::Stream;
use http::Uri;
use http::uri::PathAndQuery;
use prost::Message;
use tokio::sync::watch;
use tonic::client::Grpc;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;
use tracing::debug;

use super::failure::{self, Next};
use super::messages::{AUTHENTICATE, AuthenticateRequest, AuthenticateResponse};
use super::options::EtcdOptions;
use crate::StoreError;
use crate::connect::Connector;

/// How long a connection may take: name, TCP and TLS together.
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);
/// How long one call to one endpoint may take, its connection included.
const CALL_DEADLINE: Duration = Duration::from_secs(5);
/// A connection on which a watch waits is asked for a sign of life this often (etcd allows one in
/// five seconds), and given up when the sign does not come.
const SIGN_OF_LIFE_EVERY: Duration = Duration::from_secs(10);
const SIGN_OF_LIFE_DEADLINE: Duration = Duration::from_secs(5);
/// What etcd may send before we have acknowledged it: several pages of a list, so that a long one does
/// not wait for a round trip every 64 KB.
const WINDOW: u32 = 1024 * 1024;

/// An etcd cluster.
#[derive(Debug)]
pub(super) struct Cluster {
    options: EtcdOptions,
    endpoints: Vec<Uri>,
    current: Mutex<Current>,
    /// How often this host has moved to other addresses.
    moves: watch::Sender<u64>,
}

/// The endpoint in use. Held for moments only, never across an await.
#[derive(Debug, Default)]
struct Current {
    index: usize,
    channel: Option<Channel>,
    token: Option<Token>,
}

/// What a login has given.
#[derive(Clone)]
enum Token {
    Value(AsciiMetadataValue),
    /// The cluster wants no login.
    NotNeeded,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[redacted]")
    }
}

/// A channel to one endpoint.
#[derive(Clone)]
struct Connection {
    index: usize,
    /// Whether earlier calls went over it: it may have died since, which says nothing about etcd.
    is_used: bool,
    endpoint: String,
    channel: Channel,
}

impl Cluster {
    pub(super) fn new(options: EtcdOptions) -> Result<Cluster, StoreError> {
        let endpoints = options.uris()?;
        let any_tls = endpoints.iter().any(|uri| uri.scheme_str() == Some("https"));
        if any_tls {
            options.tls()?;
        } else if options.ca_file.is_some() || options.cert_file.is_some() {
            tracing::warn!("no etcd endpoint is https://, so the certificates are not used");
        }
        Ok(Cluster { options, endpoints, current: Mutex::default(), moves: watch::Sender::new(0) })
    }

    /// The endpoints, as given.
    pub(super) fn describe(&self) -> String {
        let endpoints: Vec<String> = self.endpoints.iter().map(shown).collect();
        endpoints.join(",")
    }

    /// One call, tried once at each endpoint, beginning with the one that answered last.
    pub(super) async fn call<M, R>(
        &self,
        attempted: &str,
        path: &'static str,
        message: M,
    ) -> Result<R, StoreError>
    where
        M: Message + Clone + 'static,
        R: Message + Default + 'static,
    {
        self.at_some_endpoint(attempted, |connection| self.unary(connection, path, message.clone())).await
    }

    /// Opens a stream of answers, at the first endpoint that grants one. `requests` makes the
    /// stream of what we say, which has to stay open.
    pub(super) async fn stream<M, R, S>(
        &self,
        attempted: &str,
        path: &'static str,
        requests: impl Fn() -> S,
    ) -> Result<(Streaming<R>, String), StoreError>
    where
        M: Message + 'static,
        R: Message + Default + 'static,
        S: Stream<Item = M> + Send + 'static,
    {
        self.at_some_endpoint(attempted, |connection| self.open(connection, path, requests())).await
    }

    /// Forgets the login, since etcd no longer takes it.
    pub(super) fn forget_login(&self) {
        self.current().token = None;
    }

    /// Ends all connections, since this host has moved to other addresses.
    pub(super) fn reconnect(&self) {
        self.moves.send_modify(|moves| *moves += 1);
    }

    async fn at_some_endpoint<T, F>(
        &self,
        attempted: &str,
        ask: impl Fn(Connection) -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let mut endpoints_left = self.endpoints.len();
        let mut may_be_stale = true;
        let mut logins_left = usize::from(self.options.login().is_some());
        loop {
            let connection = self.connection()?;
            let endpoint = &connection.endpoint;
            let error = match tokio::time::timeout(CALL_DEADLINE, ask(connection.clone())).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(status)) => match failure::next_after(&status) {
                    Next::LogIn if logins_left > 0 => {
                        logins_left -= 1;
                        self.forget_login();
                        continue;
                    }
                    Next::Elsewhere => failure::explain(attempted, endpoint, &status),
                    Next::LogIn | Next::GiveUp => {
                        return Err(failure::explain(attempted, endpoint, &status));
                    }
                },
                Err(_) => failure::too_late(attempted, endpoint, CALL_DEADLINE),
            };
            self.pass_over(connection.index);
            if !std::mem::take(&mut may_be_stale) || !connection.is_used {
                endpoints_left -= 1;
            }
            if endpoints_left == 0 {
                return Err(error);
            }
            debug!(%error, "asking etcd again, by another connection");
        }
    }

    async fn unary<M, R>(&self, connection: Connection, path: &'static str, message: M) -> Result<R, Status>
    where
        M: Message + 'static,
        R: Message + Default + 'static,
    {
        let mut request = Request::new(message);
        request.set_timeout(CALL_DEADLINE);
        self.authorize(&connection, &mut request).await?;
        unary(&connection, path, request).await
    }

    async fn open<M, R, S>(
        &self,
        connection: Connection,
        path: &'static str,
        requests: S,
    ) -> Result<(Streaming<R>, String), Status>
    where
        M: Message + 'static,
        R: Message + Default + 'static,
        S: Stream<Item = M> + Send + 'static,
    {
        let mut request = Request::new(requests);
        // A member that is cut off from the others ends the watch instead of falling silent.
        request.metadata_mut().insert("hasleader", AsciiMetadataValue::from_static("true"));
        self.authorize(&connection, &mut request).await?;
        let mut grpc = grpc(&connection).await?;
        let codec = ProstCodec::<M, R>::default();
        let answers = grpc.streaming(request, PathAndQuery::from_static(path), codec).await?;
        Ok((answers.into_inner(), connection.endpoint))
    }

    /// Adds the token of a login, where there is a name to log in with.
    async fn authorize<M>(&self, connection: &Connection, request: &mut Request<M>) -> Result<(), Status> {
        let Some((name, password)) = self.options.login() else { return Ok(()) };
        let known = self.current().token.clone();
        let token = match known {
            Some(token) => token,
            None => {
                let login = AuthenticateRequest { name: name.to_owned(), password: password.0.clone() };
                let token = match unary(connection, AUTHENTICATE, Request::new(login)).await {
                    Ok(AuthenticateResponse { token }) => token
                        .parse()
                        .map(Token::Value)
                        .map_err(|_| Status::invalid_argument("etcd's token cannot be put into a header"))?,
                    // Compatibility: a name and password for a cluster without logins is no error.
                    Err(status) if status.code() == Code::FailedPrecondition => Token::NotNeeded,
                    Err(status) => return Err(status),
                };
                self.current().token = Some(token.clone());
                token
            }
        };
        if let Token::Value(token) = token {
            request.metadata_mut().insert("token", token);
        }
        Ok(())
    }

    /// The connection in use, or a new one to the endpoint whose turn it is. It is made when the
    /// first call waits for it.
    fn connection(&self) -> Result<Connection, StoreError> {
        let mut current = self.current();
        let index = current.index;
        let uri = &self.endpoints[index];
        let (channel, is_used) = match &current.channel {
            Some(channel) => (channel.clone(), true),
            None => (self.channel(uri)?, false),
        };
        current.channel = Some(channel.clone());
        Ok(Connection { index, is_used, endpoint: shown(uri), channel })
    }

    fn channel(&self, uri: &Uri) -> Result<Channel, StoreError> {
        let unusable = |error: tonic::transport::Error| {
            let mut text = error.to_string();
            if let Some(source) = std::error::Error::source(&error) {
                text = format!("{text}: {source}");
            }
            let remedy = match text.contains("no native certs") {
                true => "; this system trusts no authority: give the cluster's with --etcd-cafile",
                false => "",
            };
            StoreError::Options(format!("cannot set up TLS for {}: {text}{remedy}", shown(uri)))
        };
        let mut endpoint = Endpoint::from(uri.clone())
            .connect_timeout(CONNECT_DEADLINE)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(2 * WINDOW)
            .http2_keep_alive_interval(SIGN_OF_LIFE_EVERY)
            .keep_alive_timeout(SIGN_OF_LIFE_DEADLINE);
        if uri.scheme_str() == Some("https") {
            endpoint = endpoint.tls_config(self.options.tls()?).map_err(unusable)?;
        }
        Ok(endpoint.connect_with_connector_lazy(Connector { moves: self.moves.subscribe() }))
    }

    /// The next call begins with another endpoint, and with a fresh connection if there is only one.
    fn pass_over(&self, failed: usize) {
        let mut current = self.current();
        if current.index == failed {
            current.index = (failed + 1) % self.endpoints.len();
            current.channel = None;
        }
    }

    fn current(&self) -> std::sync::MutexGuard<'_, Current> {
        self.current.lock().expect("no holder of this lock panics")
    }
}

async fn grpc(connection: &Connection) -> Result<Grpc<Channel>, Status> {
    // Messages are as large as the store is; tonic's own limit of 4 MB is for servers.
    let mut grpc = Grpc::new(connection.channel.clone()).max_decoding_message_size(usize::MAX);
    grpc.ready().await.map_err(|error| Status::from_error(Box::new(error)))?;
    Ok(grpc)
}

async fn unary<M, R>(connection: &Connection, path: &'static str, request: Request<M>) -> Result<R, Status>
where
    M: Message + 'static,
    R: Message + Default + 'static,
{
    let mut grpc = grpc(connection).await?;
    let codec = ProstCodec::<M, R>::default();
    Ok(grpc.unary(request, PathAndQuery::from_static(path), codec).await?.into_inner())
}

/// An endpoint as it was typed, without what the parser adds. A name and password in it are not shown.
fn shown(uri: &Uri) -> String {
    let authority = uri.authority().map(|authority| authority.as_str()).unwrap_or_default();
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{}://{host}", uri.scheme_str().unwrap_or("http"))
}
