//! Certificate files as secrets.
//!
//! The names carry the paths. Files that are in use are looked at once a second (a `stat` each), by which also files are seen
//! that did not exist before, in directories that did not. (Inotify would miss those, and has few instances per user,
//! which all proxies of a machine share.) A certificate that is replaced before its key is bad for a moment; the pair is
//! looked at again a second later.

use std::{
    collections::BTreeMap, fs, io::Read as _, os::unix::fs::MetadataExt as _, sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;

use super::{Keeper, Material, Problem, SecretSource};

const PAIR: &str = "file-cert:";
const ROOT: &str = "file-root:";
const POLL: Duration = Duration::from_secs(1);
/// No certificate file is larger.
const MAX_BYTES: u64 = 1024 * 1024;

/// What tells one state of a file from another; symbolic links, as the kubelet makes them, are followed.
type Stamp = Option<(u64, u64, i64, i64, u64)>;

/// See the [module](self).
#[derive(Debug, Default)]
pub struct Files {
    /// As each name's files were when last read.
    stamps: Mutex<BTreeMap<String, Vec<Stamp>>>,
}

/// The paths in a name.
fn paths(name: &str) -> Vec<&str> {
    if let Some(pair) = name.strip_prefix(PAIR) {
        pair.splitn(2, '~').collect()
    } else {
        name.strip_prefix(ROOT).into_iter().collect()
    }
}

fn stamps(name: &str) -> Vec<Stamp> {
    let stamp = |path: &&str| {
        let meta = fs::metadata(path).ok()?;
        Some((
            meta.dev(),
            meta.ino(),
            meta.mtime(),
            meta.mtime_nsec(),
            meta.len(),
        ))
    };
    paths(name).iter().map(stamp).collect()
}

fn read(path: &str) -> Result<Vec<u8>, Problem> {
    let failed = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => Problem::Missing(format!("{path}: no such file")),
        _ => Problem::Bad(format!("{path}: {error}")),
    };
    let file = fs::File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Problem::Bad(format!("{path}: over 1 MiB; accepted: PEM")));
    }
    Ok(bytes)
}

impl SecretSource for Files {
    fn owns(&self, name: &str) -> bool {
        name.starts_with(PAIR) || name.starts_with(ROOT)
    }

    fn find(&self, name: &str) -> Result<Material, Problem> {
        self.stamps.lock().insert(name.to_owned(), stamps(name));
        match paths(name).as_slice() {
            [chain, key] => Material::pair(&format!("{chain} and {key}"), read(chain)?, read(key)?),
            [path] if name.starts_with(ROOT) => Material::authorities(path, read(path)?),
            _ => Err(Problem::Bad(format!("{name}: accepted: {PAIR}CHAIN~KEY"))),
        }
    }
}

impl Files {
    /// Looks at files in use for ever.
    pub async fn follow(self: Arc<Self>, keeper: Arc<Keeper>) {
        let mut ticks = tokio::time::interval(POLL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.look(&keeper);
        }
    }

    fn look(&self, keeper: &Keeper) {
        let changed: Vec<Arc<str>> = keeper
            .asked()
            .into_iter()
            .filter(|name| self.owns(name))
            .filter(|name| self.stamps.lock().get(&**name) != Some(&stamps(name)))
            .collect();
        if !changed.is_empty() {
            keeper.look_again(|name| changed.iter().any(|c| **c == *name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sds::material::tests::pem;

    #[test]
    fn files_are_read_by_name_and_changes_are_seen() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let name = format!("file-cert:{}~{}", path("certs/a.pem"), path("certs/a.key"));
        let files = Files::default();
        assert!(matches!(files.find(&name), Err(Problem::Missing(p)) if p.contains("a.pem")));
        let before = stamps(&name);
        fs::create_dir(folder.path().join("certs")).unwrap();
        let (chain, key) = pem("a");
        fs::write(path("certs/a.pem"), &chain).unwrap();
        fs::write(path("certs/a.key"), key).unwrap();
        assert_ne!(stamps(&name), before);
        assert!(files.find(&name).is_ok());
        assert!(
            files
                .find(&format!("file-root:{}", path("certs/a.pem")))
                .is_ok()
        );
        for odd in ["file-cert:/a", "file-root:/dev/null", "file-root:/"] {
            assert!(matches!(files.find(odd), Err(Problem::Bad(_))), "{odd}");
        }
        assert!(!files.owns("default"));
    }
}
