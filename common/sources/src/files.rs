//! Reading files that others write, and learning when they do.

use std::io::{self, Read as _};
use std::path::Path;
use std::time::Duration;

use notify::{RecursiveMode, Watcher as _};
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

/// Starts notifications of changes in a folder and below; `None` if it is not there or the system has no more to give
/// (callers poll as well).
pub(crate) fn watch(folder: &Path, sender: mpsc::Sender<()>) -> Option<notify::RecommendedWatcher> {
    let handler = move |event: notify::Result<notify::Event>| {
        // Reading a file is an event too; answering it by reading would never end.
        if event.is_ok_and(|e| !e.kind.is_access()) {
            // A full channel already holds the news.
            let _ = sender.try_send(());
        }
    };
    let mut watcher = notify::recommended_watcher(handler).ok()?;
    watcher.watch(folder, RecursiveMode::Recursive).ok()?;
    Some(watcher)
}

/// Returns when nothing has happened for `quiet`, or after ten times as long.
pub(crate) async fn settle(changes: &mut mpsc::Receiver<()>, quiet: Duration) {
    let end = Instant::now() + quiet * 10;
    while let Ok(Some(())) =
        tokio::time::timeout_at(end.min(Instant::now() + quiet), changes.recv()).await
    {}
}
