//! Config from a folder of YAML files, for running without an API server.
//!
//! The folder is read recursively (`.yaml`, `.yml`, `.json`; hidden entries left out, symbolic links followed, as a
//! mounted ConfigMap needs). The operating system tells of changes; 10 ms after the last file was closed or renamed into
//! place (100 ms while one is still being written, and 1 s at most) the files are read again. A slow poll catches what
//! notifications miss. Files that did not change are not parsed again.
//!
//! A file that is broken keeps its last good objects until it is mended; a file that is gone takes its objects with it;
//! a folder that cannot be read changes nothing. Of several objects with one name the one in the first file (by path)
//! counts.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mesh_config::parse::{self, Options};
use mesh_config::{ConfigError, ObjectKey, Place, Store, TypedObject};
use tokio_util::sync::CancellationToken;

use crate::files;
use crate::publish::{ConfigSource, Publisher, Status, Subscription};

/// More files than this are an error of the folder.
const MAX_FILES: usize = 20_000;
/// Deeper folders are not entered; protects against loops of symbolic links.
const MAX_DEPTH: usize = 16;

/// What to read and how often.
#[derive(Debug, Clone)]
pub struct DirectoryOptions {
    /// The folder.
    pub path: PathBuf,
    /// Namespace of objects that name none.
    pub default_namespace: String,
    /// Quiet time before files are read while one of them is still open for writing.
    pub settle: Duration,
    /// Files are looked at this often even without a notification.
    pub poll: Duration,
}

impl DirectoryOptions {
    /// The usual settings for a folder.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            default_namespace: "default".to_owned(),
            settle: Duration::from_millis(100),
            poll: Duration::from_secs(10),
        }
    }
}

/// Config from a folder.
#[derive(Debug)]
pub struct DirectorySource {
    publisher: Publisher,
    options: DirectoryOptions,
}

impl ConfigSource for DirectorySource {
    fn subscribe(&self) -> Subscription {
        self.publisher.subscribe()
    }

    fn status(&self) -> Status {
        self.publisher.status()
    }
}

impl DirectorySource {
    /// A source that does nothing until it runs.
    pub fn new(options: DirectoryOptions) -> Arc<Self> {
        Arc::new(Self {
            publisher: Publisher::new(),
            options,
        })
    }

    /// Reads and publishes until `shutdown`. Run once.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let mut news = files::News::new();
        let mut watcher = None;
        let (mut store, mut files) = (Store::new(), Files::default());
        loop {
            // Before reading, so that a change while reading is not missed. The folder may appear later.
            if watcher.is_none() {
                watcher = news.watch(&self.options.path);
            }
            let options = self.options.clone();
            let scan = tokio::task::spawn_blocking(move || {
                let result = files.scan(&options);
                (files, result)
            });
            let result = match scan.await {
                Ok((returned, result)) => {
                    files = returned;
                    result
                }
                Err(error) => {
                    // A bug while reading must not stop the source: start over with nothing remembered.
                    files = Files::default();
                    Err(format!("reading the folder failed: {error}"))
                }
            };
            match result {
                Ok(()) => self.take(&mut store, &files),
                Err(error) => self.publisher.update_status(|status| {
                    if status.error.as_ref() != Some(&error) {
                        tracing::warn!(%error, "reading config failed; what is known stays in use, trying again");
                    }
                    status.error = Some(error);
                    // The folder may have been replaced by another.
                    watcher = None;
                }),
            }
            let retry = if watcher.is_none() {
                Duration::from_secs(1)
            } else {
                self.options.poll
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(retry) => {}
                () = news.settled(self.options.settle) => {}
            }
        }
    }

    fn take(&self, store: &mut Store, files: &Files) {
        self.publisher.update_status(|status| status.error = None);
        let mut objects: BTreeMap<ObjectKey, (&Path, &TypedObject)> = BTreeMap::new();
        let mut rejected = BTreeSet::new();
        let mut reject = |what: String, errors: Vec<ConfigError>, previous: bool| {
            self.publisher.reject(what.clone(), errors, previous);
            rejected.insert(what);
        };
        for (path, file) in &files.by_path {
            for (what, errors, previous) in file.rejected() {
                reject(what, errors, previous);
            }
            for object in &file.objects {
                let key = object.meta().key();
                if let Some((first, _)) = objects.get(&key) {
                    let error = duplicate(path, &key, first);
                    reject(format!("{key} in {}", path.display()), vec![error], false);
                } else {
                    objects.insert(key, (path, object));
                }
            }
        }
        self.publisher
            .retain_rejected(|what| rejected.contains(what));
        for kind in mesh_config::ConfigKind::ALL {
            let of_kind = objects.values().filter(|(_, o)| o.kind() == *kind);
            store.replace_kind(*kind, of_kind.map(|(_, o)| (*o).clone()));
        }
        self.publisher.publish(store);
    }
}

fn duplicate(path: &Path, key: &ObjectKey, first: &Path) -> ConfigError {
    ConfigError {
        place: Place {
            file: Some(path.display().to_string()),
            line: None,
            kind: Some(key.kind.to_string()),
            namespace: Some(key.namespace.clone()),
            name: Some(key.name.clone()),
        },
        path: String::new(),
        message: format!("is also in {}, which counts", first.display()),
        accepted: Some("one object of a kind and name".to_owned()),
    }
}

/// What is known of one file.
#[derive(Debug, Default)]
struct File {
    hash: u64,
    /// What counts: of a broken file partly its earlier content.
    objects: Vec<TypedObject>,
    errors: Vec<ConfigError>,
}

impl File {
    fn read(
        text: &str,
        hash: u64,
        path: &Path,
        previous: Option<Self>,
        default_namespace: &str,
    ) -> Self {
        let name = path.display().to_string();
        let parsed = parse::load(
            text,
            Options {
                file: Some(&name),
                default_namespace,
            },
        );
        Self::keeping(parsed.objects, parsed.errors, hash, previous)
    }

    /// Adds to what was read the last good versions of what could not be.
    fn keeping(
        mut objects: Vec<TypedObject>,
        errors: Vec<ConfigError>,
        hash: u64,
        previous: Option<Self>,
    ) -> Self {
        let known: BTreeSet<ObjectKey> = objects.iter().map(|o| o.meta().key()).collect();
        // A document that is not even YAML may be any of the earlier objects.
        let any = errors.iter().any(|e| e.place.name.is_none());
        let broken: BTreeSet<(Option<&str>, Option<&str>)> = errors
            .iter()
            .map(|e| (e.place.kind.as_deref(), e.place.name.as_deref()))
            .collect();
        for object in previous.map(|p| p.objects).unwrap_or_default() {
            let key = object.meta().key();
            if !known.contains(&key)
                && (any || broken.contains(&(Some(key.kind.kind()), Some(&key.name))))
            {
                objects.push(object);
            }
        }
        Self {
            hash,
            objects,
            errors,
        }
    }

    /// Errors by object: its name or, without one, its place.
    fn rejected(&self) -> Vec<(String, Vec<ConfigError>, bool)> {
        let mut by_object: BTreeMap<String, Vec<ConfigError>> = BTreeMap::new();
        for error in &self.errors {
            by_object
                .entry(error.place_without_line())
                .or_default()
                .push(error.clone());
        }
        by_object
            .into_iter()
            .map(|(what, errors)| {
                let name = errors.first().and_then(|e| e.place.name.clone());
                let previous = match name {
                    Some(name) => self.objects.iter().any(|o| o.meta().name == name),
                    None => !self.objects.is_empty(),
                };
                (what, errors, previous)
            })
            .collect()
    }
}

#[derive(Debug, Default)]
struct Files {
    by_path: BTreeMap<PathBuf, File>,
}

impl Files {
    /// Brings the files up to date. An error means the folder as a whole could not be read; nothing changed then.
    fn scan(&mut self, options: &DirectoryOptions) -> Result<(), String> {
        let mut paths = BTreeSet::new();
        list(&options.path, 0, &mut paths)?;
        let mut before = std::mem::take(&mut self.by_path);
        for path in paths {
            let previous = before.remove(&path);
            let file = match files::load(&path) {
                Ok(text) => {
                    let mut hasher = DefaultHasher::new();
                    text.hash(&mut hasher);
                    let hash = hasher.finish();
                    match previous {
                        Some(file) if file.hash == hash => file,
                        previous => {
                            File::read(&text, hash, &path, previous, &options.default_namespace)
                        }
                    }
                }
                Err(error) => {
                    let place = Place {
                        file: Some(path.display().to_string()),
                        ..Place::default()
                    };
                    let error = ConfigError {
                        place,
                        path: String::new(),
                        message: format!("cannot be read: {error}"),
                        accepted: None,
                    };
                    File::keeping(Vec::new(), vec![error], 0, previous)
                }
            };
            self.by_path.insert(path, file);
        }
        Ok(())
    }
}

fn list(folder: &Path, depth: usize, paths: &mut BTreeSet<PathBuf>) -> Result<(), String> {
    let unreadable = |e: std::io::Error| format!("{} cannot be read: {e}", folder.display());
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let hidden = path
            .file_name()
            .is_none_or(|n| n.to_string_lossy().starts_with('.'));
        // Follows links; an entry that vanished meanwhile is no concern.
        let Some(metadata) = std::fs::metadata(&path).ok().filter(|_| !hidden) else {
            continue;
        };
        if metadata.is_dir() && depth < MAX_DEPTH {
            list(&path, depth + 1, paths)?;
        } else if metadata.is_file()
            && path
                .extension()
                .is_some_and(|e| e == "yaml" || e == "yml" || e == "json")
        {
            paths.insert(path);
        }
        if paths.len() > MAX_FILES {
            return Err(format!(
                "{} holds more than {MAX_FILES} files",
                folder.display()
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::publish::Update;

    fn entry(name: &str, host: &str) -> String {
        format!(
            "apiVersion: networking.istio.io/v1alpha3\nkind: ServiceEntry\nmetadata: {{name: {name}, namespace: ns}}\n\
             spec: {{hosts: [{host}], resolution: DNS, ports: [{{number: 80, name: http, protocol: HTTP}}]}}\n---\n"
        )
    }

    fn hosts(update: &Update) -> Vec<String> {
        update
            .configs
            .service_entries
            .iter()
            .map(|o| o.spec.hosts[0].clone())
            .collect()
    }

    struct Running {
        source: Arc<DirectorySource>,
        updates: Subscription,
        _shutdown: tokio_util::sync::DropGuard,
    }

    fn run(path: &Path) -> Running {
        let options = DirectoryOptions {
            settle: Duration::from_millis(20),
            ..DirectoryOptions::new(path)
        };
        let source = DirectorySource::new(options);
        let shutdown = CancellationToken::new();
        tokio::spawn(Arc::clone(&source).run(shutdown.clone()));
        Running {
            updates: source.subscribe(),
            source,
            _shutdown: shutdown.drop_guard(),
        }
    }

    impl Running {
        async fn next(&mut self) -> Update {
            tokio::time::timeout(Duration::from_secs(30), self.updates.next())
                .await
                .unwrap()
                .unwrap()
        }

        /// Waits until the status says so; for changes that lead to no update.
        async fn until(&self, condition: impl Fn(&Status) -> bool) -> Status {
            let mut status = self.source.publisher.follow_status();
            let reached = status.wait_for(condition);
            let reached = tokio::time::timeout(Duration::from_secs(30), reached).await;
            reached.unwrap().unwrap().clone()
        }
    }

    #[tokio::test]
    async fn files_come_change_break_and_go() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (
            folder.path().join("a.yaml"),
            folder.path().join("sub/b.yml"),
        );
        std::fs::create_dir(folder.path().join("sub")).unwrap();
        std::fs::write(&a, entry("one", "one.com") + &entry("two", "two.com")).unwrap();
        std::fs::write(folder.path().join(".hidden.yaml"), entry("x", "x.com")).unwrap();
        std::fs::write(folder.path().join("notes.txt"), "not yaml").unwrap();
        let mut r = run(folder.path());
        assert_eq!(hosts(&r.next().await), ["one.com", "two.com"]);

        std::fs::write(&b, entry("three", "three.com")).unwrap();
        let update = r.next().await;
        assert_eq!((update.configs.len(), update.changes.len()), (3, 1));

        // One document of the file breaks as YAML, another object of it changes.
        std::fs::write(&a, entry("one", "uno.com") + "kind: [\n").unwrap();
        let update = r.next().await;
        assert_eq!(
            hosts(&update),
            ["uno.com", "three.com", "two.com"],
            "two may be what is broken"
        );
        let status = r.source.status();
        assert_eq!(status.rejected.len(), 1, "{status:?}");
        let rejected = status.rejected.values().next().unwrap();
        assert!(
            rejected.previous_in_use && rejected.errors[0].place.line == Some(6),
            "{rejected:?}"
        );

        // An object of it is invalid: its last good version stays; the other is really gone.
        std::fs::write(&a, entry("one", "'*'")).unwrap();
        let update = r.next().await;
        assert_eq!(hosts(&update), ["uno.com", "three.com"]);
        let status = r
            .until(|s| {
                s.rejected
                    .values()
                    .any(|r| r.errors[0].path == "spec.hosts[0]")
            })
            .await;
        assert_eq!(status.rejected.len(), 1);

        std::fs::write(&a, entry("one", "one.com")).unwrap();
        assert_eq!(hosts(&r.next().await), ["one.com", "three.com"]);
        assert!(r.source.status().rejected.is_empty());
        std::fs::remove_file(&a).unwrap();
        assert_eq!(hosts(&r.next().await), ["three.com"]);
    }

    #[tokio::test]
    async fn a_folder_away_changes_nothing() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("config");
        let mut r = run(&path);
        let status = r.until(|s| s.error.is_some()).await;
        assert!(
            !status.synced && status.complaints()[0].contains("config"),
            "{status:?}"
        );

        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("a.yaml"), entry("one", "one.com")).unwrap();
        let mut update = r.next().await;
        if update.configs.is_empty() {
            // It looked between the two steps.
            update = r.next().await;
        }
        assert_eq!(hosts(&update), ["one.com"]);
        assert!(r.source.status().error.is_none());

        std::fs::rename(&path, parent.path().join("away")).unwrap();
        r.until(|s| s.error.is_some()).await;
        assert_eq!(r.updates.latest().len(), 1);
    }

    #[tokio::test]
    async fn of_two_objects_with_one_name_the_first_file_counts() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("b.yaml"), entry("one", "b.com")).unwrap();
        std::fs::write(folder.path().join("a.yaml"), entry("one", "a.com")).unwrap();
        let mut r = run(folder.path());
        assert_eq!(hosts(&r.next().await), ["a.com"]);
        let status = r.source.status();
        let (what, rejected) = status.rejected.iter().next().unwrap();
        assert!(
            what.contains("b.yaml") && rejected.errors[0].message.contains("a.yaml"),
            "{status:?}"
        );
    }
}
