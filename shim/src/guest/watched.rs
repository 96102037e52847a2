//! A byte stream that tells when it has ended. Called by the agent's client, because ttrpc itself says nothing
//! until the next request.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;

/// Passes everything through and sets its flag at the end of the stream, at an error, or when dropped.
pub(super) struct Watched<S> {
    stream: S,
    closed: watch::Sender<bool>,
}

impl<S> Watched<S> {
    pub(super) fn new(stream: S) -> (Self, watch::Receiver<bool>) {
        let (closed, receiver) = watch::channel(false);
        (Self { stream, closed }, receiver)
    }
}

impl<S> Drop for Watched<S> {
    fn drop(&mut self) {
        self.closed.send_replace(true);
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (before, room) = (buffer.filled().len(), buffer.remaining());
        let result = ready!(Pin::new(&mut self.stream).poll_read(cx, buffer));
        if result.is_err() || (room > 0 && buffer.filled().len() == before) {
            self.closed.send_replace(true);
        }
        Poll::Ready(result)
    }
}

impl<S: AsyncWrite + Unpin> Watched<S> {
    fn note<T>(&self, result: io::Result<T>) -> Poll<io::Result<T>> {
        if result.is_err() {
            self.closed.send_replace(true);
        }
        Poll::Ready(result)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.stream).poll_write(cx, data));
        self.note(result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(&mut self.stream).poll_flush(cx));
        self.note(result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(&mut self.stream).poll_shutdown(cx));
        self.note(result)
    }
}
