//! Envoy's standard output and error.
//!
//! Pilot tells Envoy to write its access log to `/dev/stdout`, which Envoy opens anew. That fails if the container's
//! output is a pipe or file of root while Envoy runs as 1337, as some container runtimes leave it. Then, and only then,
//! Envoy gets pipes of the agent's own, and the agent copies them: a little CPU per line instead of no access log.

use std::{fs::OpenOptions, process::Stdio};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    process::{Child, Command},
};

/// Whether Envoy could not open its own output.
pub fn need_relay() -> bool {
    ["/dev/stdout", "/dev/stderr"].into_iter().any(|path| {
        OpenOptions::new()
            .append(true)
            .open(path)
            .is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
    })
}

/// Prepares a command for relaying.
pub fn pipe(command: &mut Command) {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
}

/// Copies until the process closes its outputs.
pub fn relay(child: &mut Child) {
    if let Some(stdout) = child.stdout.take() {
        tokio::spawn(copy(stdout, tokio::io::stdout()));
    }
    if let Some(stderr) = child.stderr.take() {
        tokio::spawn(copy(stderr, tokio::io::stderr()));
    }
}

async fn copy(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
    // Nobody reads the container's output any more: Envoy must not block on a full pipe, so the rest is thrown away.
    if tokio::io::copy(&mut from, &mut to).await.is_err() {
        let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
    }
}
