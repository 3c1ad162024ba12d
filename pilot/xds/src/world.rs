//! The published world and the short history of how it came about.
//!
//! One writer (the [`crate::pipeline`]), read by every stream through a `watch` channel. A stream keeps only the number
//! of the world it was last brought to; what it missed meanwhile is read from the history here. So a client that is slow
//! has no queue of its own: its backlog is one integer, and catching up costs one merge however much it missed.

use std::{collections::VecDeque, sync::Arc};

use tokio::{sync::watch, time::Instant};

use crate::resource::ResourceType;
use crate::source::{ResourceSource, Touched};

/// How many changes back a stream can catch up by name; one further behind looks at everything.
const HISTORY: usize = 128;

/// One published world.
pub struct Published<S: ResourceSource> {
    /// Counts worlds from 1.
    pub number: u64,
    /// What goes into `version_info`: RFC 3339 time, `/`, counter from 0.
    pub version: Arc<str>,
    /// The snapshot.
    pub world: Arc<S::World>,
    /// When it was published.
    pub at: Instant,
    history: VecDeque<Arc<S::Change>>,
}

impl<S: ResourceSource> Published<S> {
    /// The changes after world `since` up to this one; `None` if that is too long ago to know.
    pub(crate) fn since(&self, since: u64) -> Option<impl Iterator<Item = &Arc<S::Change>>> {
        let missed = usize::try_from(self.number.checked_sub(since)?).ok()?;
        let skip = self.history.len().checked_sub(missed)?;
        (since > 0).then(|| self.history.iter().skip(skip))
    }

    /// What may differ for `proxy` since world `since`.
    pub(crate) fn touched(
        &self,
        source: &S,
        proxy: &S::Proxy,
        ty: ResourceType,
        since: u64,
    ) -> Touched {
        let Some(changes) = self.since(since) else {
            return Touched::Everything;
        };
        changes
            .map(|change| source.touched(proxy, ty, change))
            .fold(Touched::Nothing, Touched::or)
    }
}

/// The receiving end; `None` until the first world, and nobody is served before.
pub type WorldReceiver<S> = watch::Receiver<Option<Arc<Published<S>>>>;

/// Publishes worlds.
pub struct Publisher<S: ResourceSource> {
    sender: watch::Sender<Option<Arc<Published<S>>>>,
}

impl<S: ResourceSource> Default for Publisher<S> {
    fn default() -> Self {
        Self {
            sender: watch::Sender::new(None),
        }
    }
}

impl<S: ResourceSource> Publisher<S> {
    /// Makes `world` the current one. `change` says how it differs from the one before. Returns the world's number.
    pub fn publish(&self, world: Arc<S::World>, change: S::Change) -> u64 {
        let mut number = 1;
        self.sender.send_modify(|current| {
            let mut history = VecDeque::new();
            if let Some(previous) = current {
                number = previous.number + 1;
                history.extend(previous.history.iter().cloned());
            }
            history.push_back(Arc::new(change));
            if history.len() > HISTORY {
                history.pop_front();
            }
            let version = format!("{:.0}/{}", jiff::Timestamp::now(), number - 1);
            *current = Some(Arc::new(Published {
                number,
                version: version.into(),
                world,
                at: Instant::now(),
                history,
            }));
        });
        number
    }

    /// A new reader.
    pub fn subscribe(&self) -> WorldReceiver<S> {
        self.sender.subscribe()
    }

    /// The current world, if there is one.
    pub fn current(&self) -> Option<Arc<Published<S>>> {
        self.sender.borrow().clone()
    }
}
