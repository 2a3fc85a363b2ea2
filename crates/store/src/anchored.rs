//! [`Anchored`]: a TCP connection that ends when the host has moved to other addresses.
//!
//! A connection whose local address is gone from the host looks alive from this end: what is sent on
//! it vanishes, and only a deadline tells. Whoever knows that addresses have moved says so, and
//! every call and watch on the old connections fails at once instead, to be tried on a new one.

use std::future::{self, Future};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;

/// A TCP connection that ends when the host has moved.
pub(crate) struct Anchored {
    stream: TcpStream,
    /// Ready once the host has moved; none after that was told.
    moved: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Anchored {
    pub(crate) fn new(stream: TcpStream, mut moves: watch::Receiver<u64>) -> Anchored {
        moves.mark_unchanged();
        let moved = async move {
            if moves.changed().await.is_err() {
                // Nobody is left to say so.
                future::pending::<()>().await;
            }
        };
        Anchored { stream, moved: Some(Box::pin(moved)) }
    }
}

impl AsyncRead for Anchored {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // HTTP/2 reads all the time, so this is asked whatever the connection is used for.
        let has_moved = match &mut self.moved {
            Some(moved) => moved.as_mut().poll(context).is_ready(),
            None => true,
        };
        if has_moved {
            self.moved = None;
            let why = "this host's addresses have changed";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, why)));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Anchored {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_connection_ends_when_the_host_has_moved_and_not_before() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let moves = watch::Sender::new(0);
        moves.send_modify(|count| *count += 1);
        let mut ours = Anchored::new(TcpStream::connect(address).await.unwrap(), moves.subscribe());
        let (mut theirs, _) = listener.accept().await.unwrap();
        theirs.write_all(b"a").await.unwrap();
        assert_eq!(ours.read_u8().await.unwrap(), b'a', "a move before the connection does not matter");
        let reading = tokio::spawn(async move { ours.read_u8().await });
        tokio::task::yield_now().await;
        moves.send_modify(|count| *count += 1);
        assert_eq!(reading.await.unwrap().unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
    }
}
