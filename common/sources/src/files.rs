//! Reading files that others write, and learning when they do.

use std::collections::BTreeSet;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, CreateKind, ModifyKind};
use notify::{EventKind, RecursiveMode, Watcher as _};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Larger files are refused.
const MAX_FILE_BYTES: u64 = 32 << 20;

/// The text of a file.
pub(crate) fn load(path: &Path) -> io::Result<String> {
    let file = std::fs::File::open(path)?;
    let mut text = String::new();
    file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::other(format!(
            "larger than {MAX_FILE_BYTES} bytes"
        )));
    }
    Ok(text)
}

/// A file that its writer closed, or renamed into place, is whole: nothing more is waited for than the next file of the
/// same hand.
const WHOLE: Duration = Duration::from_millis(10);

/// News of changes in folders. The operating system's notifications write, one reader waits.
#[derive(Debug)]
pub(crate) struct News {
    sender: mpsc::Sender<()>,
    receiver: mpsc::Receiver<()>,
    /// Files that somebody is still writing, as far as notifications tell.
    unfinished: Arc<Mutex<BTreeSet<PathBuf>>>,
}

impl News {
    pub(crate) fn new() -> Self {
        let (sender, receiver) = mpsc::channel(1);
        Self {
            sender,
            receiver,
            unfinished: Arc::default(),
        }
    }

    /// Starts notifications of changes in a folder and below; `None` if it is not there or the system has no more to
    /// give (callers poll as well).
    pub(crate) fn watch(&self, folder: &Path) -> Option<notify::RecommendedWatcher> {
        let (sender, unfinished) = (self.sender.clone(), self.unfinished.clone());
        let handler = move |event: notify::Result<notify::Event>| {
            let Ok(event) = event else { return };
            match event.kind {
                EventKind::Create(CreateKind::File) | EventKind::Modify(ModifyKind::Data(_)) => {
                    unfinished.lock().extend(event.paths);
                }
                // Reading a file is an event too; answering it by reading would never end.
                EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write) => return,
                _ => {
                    let mut unfinished = unfinished.lock();
                    for path in &event.paths {
                        unfinished.remove(path);
                    }
                }
            }
            // A full channel already holds the news.
            let _ = sender.try_send(());
        };
        let mut watcher = notify::recommended_watcher(handler).ok()?;
        watcher.watch(folder, RecursiveMode::Recursive).ok()?;
        Some(watcher)
    }

    /// Returns when something changed and has come to rest: 10 ms after the last file was closed or renamed, `quiet` after
    /// the last change of a file that is still open for writing, and in any case after ten times `quiet`.
    pub(crate) async fn settled(&mut self, quiet: Duration) {
        self.receiver.recv().await;
        let end = Instant::now() + quiet * 10;
        loop {
            let whole = self.unfinished.lock().is_empty();
            let wait = if whole { WHOLE.min(quiet) } else { quiet };
            let next =
                tokio::time::timeout_at(end.min(Instant::now() + wait), self.receiver.recv());
            if !matches!(next.await, Ok(Some(()))) {
                break;
            }
        }
        self.unfinished.lock().clear();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write as _;

    use super::*;

    #[tokio::test]
    async fn a_file_that_is_still_open_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let mut news = News::new();
        let _watcher = news.watch(folder.path()).unwrap();
        let mut file = std::fs::File::create(folder.path().join("a")).unwrap();
        file.write_all(b"half").unwrap();
        let unfinished = news.unfinished.clone();
        news.receiver.recv().await;
        assert!(!unfinished.lock().is_empty());
        news.sender.try_send(()).unwrap();
        // An hour of quiet is not over; closing ends the wait.
        let settled = news.settled(Duration::from_secs(3600));
        tokio::pin!(settled);
        assert!(
            futures::poll!(settled.as_mut()).is_pending(),
            "the file is open"
        );
        drop(file);
        settled.await;
        assert!(unfinished.lock().is_empty());
    }

    #[tokio::test]
    async fn a_renamed_file_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let (partial, whole) = (folder.path().join("a.partial"), folder.path().join("a"));
        std::fs::write(&partial, "text").unwrap();
        let mut news = News::new();
        let _watcher = news.watch(folder.path()).unwrap();
        std::fs::rename(&partial, &whole).unwrap();
        news.settled(Duration::from_secs(3600)).await;
    }
}
