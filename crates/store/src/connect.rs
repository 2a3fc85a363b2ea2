//! From the name of a server to a TCP connection.
//!
//! Names are resolved here and not by the C library: a statically linked glibc would load whatever
//! the host's `nsswitch.conf` names into this process. `/etc/hosts` and `/etc/resolv.conf` are read
//! anew for each connection, so that a change of either is seen.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hickory_resolver::config::{ResolveHosts, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::{Resolver, TokioResolver};
use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tower_service::Service;

use crate::anchored::Anchored;

/// How long one address may take to answer, when a name has several.
const ADDRESS_DEADLINE: Duration = Duration::from_secs(1);

/// Connects to the host and port of a URI, for tonic.
#[derive(Debug, Clone)]
pub(crate) struct Connector {
    /// Changes when this host has moved to other addresses.
    pub(crate) moves: watch::Receiver<u64>,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Anchored>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<Anchored>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let moves = self.moves.clone();
        Box::pin(async move { connect(&uri).await.map(|stream| TokioIo::new(Anchored::new(stream, moves))) })
    }
}

/// Connects to the host and port of a URI, by the first address that answers.
pub(crate) async fn connect(uri: &Uri) -> io::Result<TcpStream> {
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
    let addresses = resolve(host).await?;
    let several = addresses.len() > 1;
    let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address"));
    for address in addresses {
        let address = SocketAddr::new(address, port);
        let attempt = TcpStream::connect(address);
        let outcome = match several {
            true => tokio::time::timeout(ADDRESS_DEADLINE, attempt)
                .await
                .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "no answer"))),
            false => attempt.await,
        };
        match outcome {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => last = io::Error::new(error.kind(), format!("{address}: {error}")),
        }
    }
    Err(last)
}

async fn resolve(host: &str) -> io::Result<Vec<IpAddr>> {
    if let Ok(address) = host.parse() {
        return Ok(vec![address]);
    }
    match look_up(host).await {
        Ok(found) => Ok(found),
        // What every host means by it, also where /etc/hosts does not say so.
        Err(_) if host == "localhost" => {
            Ok(vec![IpAddr::from([127, 0, 0, 1]), IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])])
        }
        Err(error) => Err(io::Error::new(io::ErrorKind::NotFound, format!("no address for {host}: {error}"))),
    }
}

async fn look_up(host: &str) -> Result<Vec<IpAddr>, String> {
    // The resolver would panic without: a static program has /dev/urandom alone, and a root without
    // /dev has none.
    getrandom::fill(&mut [0]).map_err(|error| {
        format!("its query needs a random number: {error}; mount /dev, or give the address itself")
    })?;
    let found = resolver().map_err(|error| error.to_string())?.lookup_ip(host).await;
    found.map(|found| found.iter().collect()).map_err(|error| error.to_string())
}

fn resolver() -> Result<TokioResolver, hickory_resolver::net::NetError> {
    let mut builder = match TokioResolver::builder_tokio() {
        Ok(builder) => builder,
        // No resolv.conf: /etc/hosts alone has to do.
        Err(_) => Resolver::builder_with_config(ResolverConfig::default(), TokioRuntimeProvider::default()),
    };
    let options = builder.options_mut();
    options.use_hosts_file = ResolveHosts::Always;
    // Two tries at this pace fit into the time that a connection may take.
    options.timeout = Duration::from_secs(1);
    builder.build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn literal_addresses_and_localhost_need_no_server() {
        assert_eq!(resolve("192.0.2.1").await.unwrap(), [IpAddr::from([192, 0, 2, 1])]);
        assert_eq!(resolve("2001:db8::1").await.unwrap(), ["2001:db8::1".parse::<IpAddr>().unwrap()]);
        assert!(resolve("localhost").await.unwrap().iter().all(IpAddr::is_loopback));
    }

    #[tokio::test]
    async fn a_bracketed_ipv6_host_is_connected_to() {
        let listener = tokio::net::TcpListener::bind("[::1]:0").await.unwrap();
        let uri = format!("http://[::1]:{}", listener.local_addr().unwrap().port());
        connect(&uri.parse().unwrap()).await.unwrap();
    }

    #[tokio::test]
    async fn a_refusal_names_the_address() {
        // The port is taken, so that it becomes nobody else's, and nobody listens.
        let taken = tokio::net::TcpSocket::new_v4().unwrap();
        taken.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = connect(&format!("http://127.0.0.1:{port}").parse().unwrap()).await.unwrap_err();
        assert!(error.to_string().starts_with(&format!("127.0.0.1:{port}: Connection refused")), "{error}");
    }
}
