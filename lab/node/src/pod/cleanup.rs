//! Removing what a pod leaves: its memory volumes and its directory.

use std::{fs, io, path::Path};

use nix::mount::{MntFlags, umount2};

/// Unmounts the pod's volumes and removes its directory. Logs go, too, unless they shall stay.
pub(crate) fn remove(pod_dir: &Path, logs: Option<&Path>) {
    if let Ok(volumes) = fs::read_dir(pod_dir.join("volumes")) {
        for volume in volumes.flatten() {
            // Only memory volumes are mounts; for the others this says EINVAL.
            let _ = umount2(&volume.path(), MntFlags::MNT_DETACH);
        }
    }
    for dir in std::iter::once(pod_dir).chain(logs) {
        match fs::remove_dir_all(dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!("{} stays behind: {error}", dir.display());
            }
            _ => {}
        }
    }
}
