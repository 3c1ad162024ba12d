//! Small files that must never be seen half-written.
//!
//! State that a shim leaves for the daemon (or the daemon for its successor) is JSON, written to a sibling and renamed.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use serde::{Serialize, de::DeserializeOwned};

/// Writes `bytes` to `path` so that a reader sees either the old or the new content.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut staged: PathBuf = path.to_owned();
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("file");
    staged.set_file_name(format!(".{name}.{}", std::process::id()));
    fs::write(&staged, bytes)?;
    fs::rename(&staged, path)
}

/// Writes `value` as JSON by [`write_atomic`].
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> anyhow::Result<()> {
    let bytes = serde_json::to_vec_pretty(value).context("encoding state")?;
    write_atomic(path, &bytes).with_context(|| format!("writing {}", path.display()))
}

/// Reads a JSON file; `None` if it does not exist.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> anyhow::Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .with_context(|| format!("{} is not the JSON this version writes", path.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}
