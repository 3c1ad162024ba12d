//! The object store: one writer, many readers, SQLite as the durable log of current objects.
//!
//! A write is a precondition (absent, or a resource version) and a new state. The writer task takes
//! whatever writes are waiting (up to [`BATCH`]), checks each against the state left by its
//! predecessors, assigns the next resource version, writes the batch in one transaction, and only
//! then publishes to the collections and answers. So an acknowledged write survives SIGKILL, readers
//! never see what is not on disk, and a burst costs one transaction.

mod collection;
mod object;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;
use serde_json::Value;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{Connection, Row};
use tokio::sync::{mpsc, oneshot};

pub(crate) use collection::{Collection, Event, Key, WatcherGuard};
pub(crate) use object::Object;

/// Most writes in one transaction.
const BATCH: usize = 256;

/// What must hold for a write to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expect {
    Absent,
    Version(u64),
}

/// Why a write did not happen.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum WriteError {
    #[error("the object exists")]
    Exists,
    #[error("the object does not exist")]
    Missing,
    #[error("the object has been modified")]
    Conflict,
    #[error("the store's log could not be written: {0}")]
    Log(String),
}

/// Where a write is answered.
type Reply = oneshot::Sender<Result<Arc<Object>, WriteError>>;

struct Write {
    collection: Arc<Collection>,
    key: Key,
    expect: Expect,
    change: Change,
    reply: Reply,
}

enum Change {
    Put(Value),
    /// The last state to show, if it differs from the stored one.
    Delete(Option<Value>),
}

/// The store. Shared behind `Arc`; the writer ends when the last sender is gone.
pub(crate) struct Store {
    collections: RwLock<HashMap<String, Arc<Collection>>>,
    published: Arc<AtomicU64>,
    start: u64,
    window: usize,
    writes: mpsc::Sender<Write>,
}

impl Store {
    /// Opens the log, reads all objects and starts the writer.
    pub(crate) async fn open(path: &Path, window: usize) -> Result<Arc<Self>, String> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // WAL with NORMAL survives the death of the process, which is what the lab injects.
            .synchronous(SqliteSynchronous::Normal)
            .busy_timeout(std::time::Duration::from_secs(5));
        let describe = |e: sqlx::Error| format!("{}: {e}", path.display());
        let mut db = SqliteConnection::connect_with(&options)
            .await
            .map_err(describe)?;
        for statement in [
            "CREATE TABLE IF NOT EXISTS objects (resource TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL, \
             rv INTEGER NOT NULL, data BLOB NOT NULL, PRIMARY KEY (resource, namespace, name)) WITHOUT ROWID",
            "CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID",
        ] {
            sqlx::query(statement)
                .execute(&mut db)
                .await
                .map_err(describe)?;
        }
        let start = sqlx::query("SELECT value FROM counters WHERE name = 'rv'")
            .fetch_optional(&mut db)
            .await
            .map_err(describe)?
            .map_or(1, |row| row.get::<i64, _>(0).max(1) as u64);
        let (writes, inbox) = mpsc::channel(1024);
        let published = Arc::new(AtomicU64::new(start));
        let store = Self {
            collections: RwLock::default(),
            published: published.clone(),
            start,
            window,
            writes,
        };
        let rows = sqlx::query("SELECT resource, rv, data FROM objects")
            .fetch_all(&mut db)
            .await
            .map_err(describe)?;
        for row in rows {
            let (resource, rv): (String, i64) = (row.get(0), row.get(1));
            match serde_json::from_slice::<Value>(row.get::<&[u8], _>(2)) {
                Ok(value) => store
                    .collection(&resource)
                    .load(Object::from_stamped(value, rv as u64)),
                Err(error) => {
                    tracing::error!(resource, rv, %error, "an object in the log is not JSON and was skipped")
                }
            }
        }
        tokio::spawn(writer(db, inbox, published, start));
        Ok(Arc::new(store))
    }

    /// The collection of a resource, made on first use.
    pub(crate) fn collection(&self, id: &str) -> Arc<Collection> {
        if let Some(found) = self.collections.read().get(id) {
            return found.clone();
        }
        self.collections
            .write()
            .entry(id.to_owned())
            .or_insert_with(|| Arc::new(Collection::new(id, self.start, self.window)))
            .clone()
    }

    /// The latest published resource version.
    pub(crate) fn version(&self) -> u64 {
        self.published.load(Ordering::Acquire)
    }

    pub(crate) async fn create(
        &self,
        c: &Arc<Collection>,
        key: Key,
        value: Value,
    ) -> Result<Arc<Object>, WriteError> {
        self.write(c, key, Expect::Absent, Change::Put(value)).await
    }

    pub(crate) async fn update(
        &self,
        c: &Arc<Collection>,
        key: Key,
        rv: u64,
        value: Value,
    ) -> Result<Arc<Object>, WriteError> {
        self.write(c, key, Expect::Version(rv), Change::Put(value))
            .await
    }

    /// Deletes; answers the last state (`last`, or what was stored), stamped with the version of the deletion.
    pub(crate) async fn delete(
        &self,
        c: &Arc<Collection>,
        key: Key,
        rv: u64,
        last: Option<Value>,
    ) -> Result<Arc<Object>, WriteError> {
        self.write(c, key, Expect::Version(rv), Change::Delete(last))
            .await
    }

    async fn write(
        &self,
        collection: &Arc<Collection>,
        key: Key,
        expect: Expect,
        change: Change,
    ) -> Result<Arc<Object>, WriteError> {
        let (reply, answer) = oneshot::channel();
        let write = Write {
            collection: collection.clone(),
            key,
            expect,
            change,
            reply,
        };
        let gone = || WriteError::Log("the writer has ended".to_owned());
        self.writes.send(write).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

async fn writer(
    mut db: SqliteConnection,
    mut inbox: mpsc::Receiver<Write>,
    published: Arc<AtomicU64>,
    mut rv: u64,
) {
    let mut waiting = Vec::with_capacity(BATCH);
    while inbox.recv_many(&mut waiting, BATCH).await > 0 {
        let mut batch = Batch {
            rv,
            ..Batch::default()
        };
        for write in waiting.drain(..) {
            batch.add(write);
        }
        if batch.done.is_empty() {
            batch.publish(&published);
            continue;
        }
        match batch.log(&mut db).await {
            Ok(()) => {
                rv = batch.rv;
                batch.publish(&published);
            }
            Err(error) => {
                tracing::error!(%error, writes = batch.done.len(), "the store's log could not be written; the writes were refused");
                batch.refuse(&error.to_string());
            }
        }
    }
    if let Err(error) = db.close().await {
        tracing::warn!(%error, "the store's log did not close cleanly; its content is safe in the write-ahead log");
    }
}

struct Done {
    collection: Arc<Collection>,
    event: Event,
    reply: Reply,
}

/// Writes accepted together. `overlay` holds the state that earlier writes of the batch leave behind.
#[derive(Default)]
struct Batch {
    rv: u64,
    overlay: HashMap<(String, Key), Option<Arc<Object>>>,
    done: Vec<Done>,
    /// Answered after publishing: who is told of a conflict must be able to read what it conflicts with.
    refused: Vec<(Reply, WriteError)>,
}

impl Batch {
    fn add(&mut self, write: Write) {
        let Write {
            collection,
            key,
            expect,
            change,
            reply,
        } = write;
        let slot = (collection.id.clone(), key);
        let old = match self.overlay.get(&slot) {
            Some(state) => state.clone(),
            None => collection.get(&slot.1.0, &slot.1.1),
        };
        let refusal = match (&old, expect) {
            (Some(_), Expect::Absent) => Some(WriteError::Exists),
            (None, Expect::Version(_)) => Some(WriteError::Missing),
            (Some(o), Expect::Version(v)) if o.rv != v => Some(WriteError::Conflict),
            _ => None,
        };
        if let Some(error) = refusal {
            self.refused.push((reply, error));
            return;
        }
        self.rv += 1;
        let (new, last) = match (change, &old) {
            (Change::Put(value), _) => {
                let object = Arc::new(Object::new(value, self.rv));
                (Some(object.clone()), object)
            }
            (Change::Delete(last), Some(old)) => (
                None,
                Arc::new(Object::new(
                    last.unwrap_or_else(|| old.value.clone()),
                    self.rv,
                )),
            ),
            (Change::Delete(_), None) => return,
        };
        self.overlay.insert(slot, new.clone());
        self.done.push(Done {
            collection,
            event: Event {
                rv: self.rv,
                old,
                new,
                last,
            },
            reply,
        });
    }

    async fn log(&self, db: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        let mut tx = db.begin().await?;
        for Done {
            collection, event, ..
        } in &self.done
        {
            let last = &event.last;
            let query = match &event.new {
                Some(object) => sqlx::query(
                    "INSERT OR REPLACE INTO objects (resource, namespace, name, rv, data) VALUES (?1, ?2, ?3, ?4, ?5)",
                )
                .bind(&collection.id)
                .bind(&last.namespace)
                .bind(&last.name)
                .bind(event.rv as i64)
                .bind(object.json.as_ref()),
                None => sqlx::query("DELETE FROM objects WHERE resource = ?1 AND namespace = ?2 AND name = ?3")
                    .bind(&collection.id)
                    .bind(&last.namespace)
                    .bind(&last.name),
            };
            query.execute(&mut *tx).await?;
        }
        sqlx::query("INSERT OR REPLACE INTO counters (name, value) VALUES ('rv', ?1)")
            .bind(self.rv as i64)
            .execute(&mut *tx)
            .await?;
        tx.commit().await
    }

    fn publish(self, published: &AtomicU64) {
        let mut touched: Vec<Arc<Collection>> = Vec::new();
        let mut replies = Vec::with_capacity(self.done.len());
        for Done {
            collection,
            event,
            reply,
        } in self.done
        {
            replies.push((reply, event.last.clone()));
            collection.apply(event);
            if !touched.iter().any(|c| Arc::ptr_eq(c, &collection)) {
                touched.push(collection);
            }
        }
        published.store(self.rv, Ordering::Release);
        for collection in touched {
            collection.wake();
        }
        // A caller that went away does not care.
        for (reply, object) in replies {
            drop(reply.send(Ok(object)));
        }
        for (reply, error) in self.refused {
            drop(reply.send(Err(error)));
        }
    }

    fn refuse(self, error: &str) {
        let replies = self.done.into_iter().map(|done| done.reply);
        // A refusal may rest on what was not written after all.
        for reply in replies.chain(self.refused.into_iter().map(|(reply, _)| reply)) {
            drop(reply.send(Err(WriteError::Log(error.to_owned()))));
        }
    }
}
