//! Files that change all at once.
//!
//! ```text
//! NAME            -> ..data/NAME
//! ..data          -> ..2026_11_21_00_54_05.802477122
//! ..2026_…/NAME      the content
//! ```
//! A new version is written to a new directory, then `..data` is replaced by a rename: readers see the old set or the new
//! one. The directory that is no longer pointed at goes last.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::{PermissionsExt as _, chown, symlink},
    path::{Component, Path},
};

use jiff::Timestamp;

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) content: Vec<u8>,
    pub(crate) mode: u32,
}

/// Relative path → file.
pub(crate) type Payload = BTreeMap<String, File>;

const DATA: &str = "..data";

/// Makes `dir` show exactly `payload`.
pub(crate) fn write(dir: &Path, payload: &Payload, group: Option<u32>) -> io::Result<()> {
    if let Some(bad) = payload.keys().find(|path| !is_plain(path)) {
        return Err(io::Error::other(format!(
            "path {bad:?} must be relative, without .. and not start with .."
        )));
    }
    let version = format!("..{}", Timestamp::now().strftime("%Y_%m_%d_%H_%M_%S.%9f"));
    let staged = dir.join(&version);
    fs::create_dir(&staged)?;
    fs::set_permissions(&staged, fs::Permissions::from_mode(0o755))?;
    for (path, file) in payload {
        let target = staged.join(path);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&target, &file.content)?;
        // A group that shall read gets to, whatever the mode says.
        let mode = if group.is_some() {
            file.mode | 0o440
        } else {
            file.mode
        };
        fs::set_permissions(&target, fs::Permissions::from_mode(mode))?;
        if group.is_some() {
            chown(&target, None, group)?;
        }
    }
    let old = fs::read_link(dir.join(DATA)).ok();
    let next = dir.join("..data_tmp");
    let _ = fs::remove_file(&next);
    symlink(&version, &next)?;
    fs::rename(&next, dir.join(DATA))?;
    show(dir, payload)?;
    if let Some(old) = old {
        fs::remove_dir_all(dir.join(old))?;
    }
    Ok(())
}

/// Makes the visible names match: new links in, stale links out.
fn show(dir: &Path, payload: &Payload) -> io::Result<()> {
    let wanted: BTreeSet<&str> = payload
        .keys()
        .filter_map(|path| path.split('/').next())
        .collect();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if !name.starts_with("..") && !wanted.contains(name) {
            fs::remove_file(entry.path())?;
        }
    }
    for name in wanted {
        let link = dir.join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(name), link)?;
        }
    }
    Ok(())
}

fn is_plain(path: &str) -> bool {
    !path.is_empty()
        && !path.starts_with("..")
        && Path::new(path)
            .components()
            .all(|component| matches!(component, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        files
            .iter()
            .map(|(path, text)| {
                (
                    (*path).to_owned(),
                    File {
                        content: text.as_bytes().to_vec(),
                        mode: 0o644,
                    },
                )
            })
            .collect()
    }

    #[test]
    fn a_new_version_replaces_the_old_one_whole() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &payload(&[("a", "1"), ("sub/b", "1")]), None).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("a")).unwrap(), "1");
        let first = fs::read_link(dir.path().join(DATA)).unwrap();
        write(dir.path(), &payload(&[("a", "2")]), None).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("a")).unwrap(), "2");
        assert!(!dir.path().join("sub").exists());
        assert!(!dir.path().join(first).exists());
        assert_eq!(
            fs::read_link(dir.path().join("a")).unwrap(),
            Path::new("..data/a")
        );
    }

    #[test]
    fn a_path_that_leaves_the_volume_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["../x", "/x", "a/../../x", "..data"] {
            let error = write(dir.path(), &payload(&[(path, "1")]), None).unwrap_err();
            assert!(error.to_string().contains(path), "{error}");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
