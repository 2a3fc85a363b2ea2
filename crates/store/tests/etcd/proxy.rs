//! A wire between a store and an etcd that can be cut, or fall silent.

use std::net::SocketAddr;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What becomes of the connections through a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wire {
    Works,
    /// Connections are broken, and new ones are refused.
    Cut,
    /// Of connections made up to this one nothing more comes or goes; later ones work.
    SilentUpTo(usize),
}

pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    wire: watch::Sender<Wire>,
    accepted: watch::Receiver<usize>,
    task: JoinHandle<()>,
}

impl Proxy {
    pub(crate) async fn to(port: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (wire, seen) = watch::channel(Wire::Works);
        let (count, accepted) = watch::channel(0);
        let task = tokio::spawn(async move {
            loop {
                let (near, _) = listener.accept().await.unwrap();
                count.send_modify(|count| *count += 1);
                let number = *count.borrow();
                tokio::spawn(connect(near, port, seen.clone(), number));
            }
        });
        Proxy { address, wire, accepted, task }
    }

    pub(crate) fn cut(&self) {
        self.wire.send_replace(Wire::Cut);
    }

    pub(crate) fn silence(&self) {
        self.wire.send_replace(Wire::SilentUpTo(self.connections()));
    }

    pub(crate) fn mend(&self) {
        self.wire.send_replace(Wire::Works);
    }

    pub(crate) fn connections(&self) -> usize {
        *self.accepted.borrow()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn connect(mut near: TcpStream, port: u16, mut wire: watch::Receiver<Wire>, number: usize) {
    if *wire.borrow() == Wire::Cut {
        return;
    }
    let Ok(mut far) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    let ended = async {
        let is_over = |wire: &Wire| match wire {
            Wire::Works => false,
            Wire::Cut => true,
            Wire::SilentUpTo(last) => number <= *last,
        };
        wire.wait_for(is_over).await.is_ok_and(|wire| *wire != Wire::Cut)
    };
    let is_silent = tokio::select! {
        _ = copy_bidirectional(&mut near, &mut far) => false,
        is_silent = ended => is_silent,
    };
    if is_silent {
        // Both ends stay open, and nobody reads.
        std::future::pending::<()>().await;
    }
}
