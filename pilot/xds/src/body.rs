//! The response stream as an HTTP body.
//!
//! Written by the stream's task, read by hyper as fast as the client's flow-control window lets it. tonic's own encoder
//! would copy every response into a buffer of the stream; here the shared run goes to the socket as it is, in slices, and
//! each slice that is taken counts as progress: that is how a client that does not read is told from one that is slow.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use hyper::body::{Body, Frame};
use tokio::sync::mpsc;
use tonic::Status;

use crate::wire::Message;

/// Small enough that progress is seen, large enough that slicing costs nothing.
const SLICE: usize = 256 * 1024;

/// How far the client has read, in slices and ends of messages.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    taken: AtomicU64,
    messages: AtomicU64,
}

impl Progress {
    /// Grows whenever the client makes room for more.
    pub(crate) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// How many messages have left entirely.
    pub(crate) fn messages(&self) -> u64 {
        self.messages.load(Ordering::Relaxed)
    }
}

pub(crate) enum Item {
    Message(Message),
    End(Status),
}

/// The body; ends with the trailers of [`Item::End`].
pub(crate) struct ResponseBody {
    items: mpsc::Receiver<Item>,
    chunks: std::vec::IntoIter<Bytes>,
    current: Bytes,
    progress: Arc<Progress>,
    ended: bool,
}

impl ResponseBody {
    pub(crate) fn new(items: mpsc::Receiver<Item>, progress: Arc<Progress>) -> Self {
        Self {
            items,
            chunks: Vec::new().into_iter(),
            current: Bytes::new(),
            progress,
            ended: false,
        }
    }

    fn slice(&mut self) -> Option<Bytes> {
        if self.current.is_empty() {
            self.current = self.chunks.next()?;
        }
        let slice = self.current.split_to(self.current.len().min(SLICE));
        self.progress.taken.fetch_add(1, Ordering::Relaxed);
        if self.current.is_empty() && self.chunks.len() == 0 {
            self.progress.messages.fetch_add(1, Ordering::Relaxed);
        }
        Some(slice)
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Some(slice) = self.slice() {
            return Poll::Ready(Some(Ok(Frame::data(slice))));
        }
        if self.ended {
            return Poll::Ready(None);
        }
        let item = ready!(self.items.poll_recv(cx));
        if let Some(Item::Message(message)) = item {
            self.chunks = message.chunks.into_iter();
            return Poll::Ready(self.slice().map(|slice| Ok(Frame::data(slice))));
        }
        let status = match item {
            Some(Item::End(status)) => status,
            // The task is gone without a word: it panicked.
            _ => Status::internal("the stream's task ended unexpectedly"),
        };
        self.ended = true;
        let mut trailers = http::HeaderMap::new();
        if status.add_header(&mut trailers).is_err() {
            trailers.insert("grpc-status", http::HeaderValue::from_static("13"));
        }
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }
}
