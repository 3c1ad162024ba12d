//! Watches: a chunked body fed by a cursor into the collection's ring of events.
//!
//! Nothing is queued per watcher beyond one batch of at most [`BATCH`] events: a client that does not
//! read stops the body from being polled, and when it comes back after the window has moved on it gets
//! an ERROR event with code 410 and the end of the stream.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::stream;
use rand::Rng;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::Context;
use super::read::Filter;
use super::view::View;
use crate::negotiate::Shape;
use crate::server::Server;
use crate::status::{ApiError, Result, json_response};
use crate::store::{Collection, Event, Object, WatcherGuard};

/// Events fetched and encoded at a time.
const BATCH: usize = 64;
/// Between bookmarks.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// The last bookmark comes this long before the timeout.
const BOOKMARK_BEFORE_END: Duration = Duration::from_secs(2);

/// A parsed watch request.
pub(super) struct Request {
    pub(super) filter: Filter,
    pub(super) view: View,
    /// Events after this version; `None`: the current objects first.
    pub(super) from: Option<u64>,
    pub(super) bookmarks: bool,
    /// A bookmark marks the end of the initial objects.
    pub(super) initial_end: bool,
    pub(super) timeout: Option<Duration>,
}

pub(super) fn start(context: &Context, request: Request) -> Result<Response> {
    let collection = context.collection()?.clone();
    let changed = collection.subscribe();
    let (initial, cursor) = match request.from {
        Some(rv) => (Vec::new(), rv),
        None => request.filter.current(context)?,
    };
    // As the original: without a wish, half an hour to an hour.
    let timeout = request
        .timeout
        .unwrap_or_else(|| Duration::from_secs(rand::rng().random_range(1800..3600)));
    let now = Instant::now();
    let watcher = Watcher {
        server: context.server.clone(),
        _guard: collection.watcher(),
        collection,
        changed,
        stop: context.server.stop.clone(),
        initial: initial.into_iter(),
        initial_end: request.initial_end,
        filter: request.filter,
        view: request.view,
        bookmarks: request.bookmarks,
        cursor,
        columns: true,
        deadline: now + timeout,
        next_bookmark: now + BOOKMARK_EVERY.min(timeout.saturating_sub(BOOKMARK_BEFORE_END)),
        done: false,
    };
    let body = stream::unfold(watcher, |mut watcher| async move {
        let bytes = watcher.next().await?;
        Some((Ok::<_, std::convert::Infallible>(bytes), watcher))
    });
    Ok(json_response(200, Body::from_stream(body)))
}

struct Watcher {
    server: Arc<Server>,
    collection: Arc<Collection>,
    _guard: WatcherGuard,
    changed: watch::Receiver<u64>,
    stop: CancellationToken,
    initial: std::vec::IntoIter<Arc<Object>>,
    initial_end: bool,
    filter: Filter,
    view: View,
    bookmarks: bool,
    cursor: u64,
    /// The next event carries a table's columns.
    columns: bool,
    deadline: Instant,
    next_bookmark: Instant,
    done: bool,
}

impl Watcher {
    /// The next chunk; `None` ends the body.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if self.done {
                return None;
            }
            let mut out = Vec::new();
            self.write_initial(&mut out);
            if out.is_empty() {
                self.write_events(&mut out);
            }
            if !out.is_empty() {
                return Some(Bytes::from(out));
            }
            tokio::select! {
                changed = self.changed.changed() => self.done = changed.is_err(),
                () = sleep_until(self.next_bookmark), if self.bookmarks => return Some(self.bookmark()),
                () = sleep_until(self.deadline) => self.done = true,
                () = self.stop.cancelled() => self.done = true,
            }
        }
    }

    fn bookmark(&mut self) -> Bytes {
        let now = Instant::now();
        let last = self
            .deadline
            .checked_sub(BOOKMARK_BEFORE_END)
            .filter(|t| *t > now)
            .unwrap_or(self.deadline);
        self.next_bookmark = (now + BOOKMARK_EVERY).min(last);
        if self.next_bookmark <= now {
            self.bookmarks = false;
        }
        // Nothing is pending here, so everything published has been seen.
        let mut out = Vec::new();
        let seen = self.cursor.max(self.seen());
        line(
            &mut out,
            "BOOKMARK",
            self.view.bookmark(seen, false).to_string().as_bytes(),
        );
        Bytes::from(out)
    }

    /// A version up to which this collection has no event left for us.
    fn seen(&self) -> u64 {
        let published = self.server.store.version();
        match self.collection.events_after(self.cursor, 1) {
            Ok(events) if events.is_empty() => published,
            _ => self.cursor,
        }
    }

    fn write_initial(&mut self, out: &mut Vec<u8>) {
        for object in self.initial.by_ref().take(BATCH) {
            let columns = std::mem::take(&mut self.columns);
            line(out, "ADDED", &self.view.event(&object, columns));
        }
        if self.initial.len() == 0 && std::mem::take(&mut self.initial_end) {
            line(
                out,
                "BOOKMARK",
                self.view.bookmark(self.cursor, true).to_string().as_bytes(),
            );
        }
    }

    fn write_events(&mut self, out: &mut Vec<u8>) {
        loop {
            self.changed.mark_unchanged();
            let events = match self.collection.events_after(self.cursor, BATCH) {
                Ok(events) => events,
                Err(gone) => {
                    let message = format!(
                        "too old resource version: {} ({})",
                        self.cursor, gone.oldest
                    );
                    let status: Value = ApiError::expired(message).body();
                    line(out, "ERROR", status.to_string().as_bytes());
                    self.done = true;
                    return;
                }
            };
            let more = events.len() == BATCH;
            for event in events {
                self.cursor = event.rv;
                self.write_event(out, &event);
            }
            if !more || !out.is_empty() {
                return;
            }
        }
    }

    /// Selectors turn changes into the appearance or disappearance of the object.
    fn write_event(&mut self, out: &mut Vec<u8>, event: &Event) {
        let was = event.old.as_ref().is_some_and(|o| self.filter.matches(o));
        let is = event.new.as_ref().is_some_and(|o| self.filter.matches(o));
        let (kind, object) = match (was, is) {
            (false, false) => return,
            (false, true) => ("ADDED", event.last.clone()),
            (true, true) => ("MODIFIED", event.last.clone()),
            (true, false) if event.new.is_none() => ("DELETED", event.last.clone()),
            // The previous state, with the version at which it stopped to match.
            (true, false) => match &event.old {
                Some(old) => (
                    "DELETED",
                    Arc::new(Object::new(old.value.clone(), event.rv)),
                ),
                None => return,
            },
        };
        let columns = std::mem::take(&mut self.columns) && self.view.shape == Shape::Table;
        line(out, kind, &self.view.event(&object, columns));
    }
}

fn line(out: &mut Vec<u8>, kind: &str, object: &[u8]) {
    out.extend_from_slice(b"{\"type\":\"");
    out.extend_from_slice(kind.as_bytes());
    out.extend_from_slice(b"\",\"object\":");
    out.extend_from_slice(object);
    out.extend_from_slice(b"}\n");
}
