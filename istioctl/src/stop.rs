//! Ctrl-C and SIGTERM as a token: what runs decides where it can end.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A token that is cancelled at the first SIGINT or SIGTERM. A second one ends the process at once, with what may be
/// left behind.
pub(crate) fn on_signals() -> anyhow::Result<CancellationToken> {
    let token = CancellationToken::new();
    let (mut interrupt, mut terminate) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    let stop = token.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        eprintln!("stopping: restoring what was changed (press Ctrl-C again to leave it as it is)");
        stop.cancel();
        interrupt.recv().await;
        #[expect(
            clippy::disallowed_methods,
            reason = "the second Ctrl-C means: at once, whatever is left behind"
        )]
        std::process::exit(130);
    });
    Ok(token)
}
