//! A container's root file system, made of the host's programs and the pod's volumes.
//!
//! A tmpfs root; the host's `/usr` (and `/bin`, `/lib*`) bound read-only; an `/etc` of its own with the few files programs
//! expect; own `/proc`, `/sys`, `/dev`, `/tmp`, `/run`, `/var`. A mount point that would fall inside a read-only bind
//! makes room for itself: the directory is replaced by a tmpfs with the same entries bound one by one ([`open_up`]).
//! About 60 mounts, 3 ms.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Component, Path, PathBuf},
};

use anyhow::{Context as _, bail};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    unistd::pivot_root,
};

use super::{ContainerSpec, Mount};

/// Host directories a container sees, read-only.
const SYSTEM: &[&str] = &["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32"];
/// Host files in `/etc` that programs expect.
const ETC: &[&str] = &[
    "passwd",
    "group",
    "nsswitch.conf",
    "ssl",
    "ca-certificates",
    "ca-certificates.conf",
    "pki",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "alternatives",
    "localtime",
    "timezone",
    "protocols",
    "services",
    "mime.types",
    "debian_version",
    "os-release",
    "python3",
    "python3.11",
    "bash.bashrc",
    "profile",
    "inputrc",
    "terminfo",
    "ethertypes",
    "xtables.conf",
    "host.conf",
    "gai.conf",
];
const DEVICES: &[&str] = &["null", "zero", "full", "random", "urandom", "tty"];

/// Builds the root file system and makes it the process's root. The process must have a mount namespace of its own.
pub(crate) fn build(spec: &ContainerSpec) -> anyhow::Result<()> {
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        None::<&str>,
    )
    .context("making mounts private")?;
    let root = spec.dir.join("root");
    fs::create_dir_all(&root).with_context(|| format!("creating {}", root.display()))?;
    tmpfs(&root, "mode=755")?;
    system(&root)?;
    etc(&root)?;
    devices(&root)?;
    kernel(&root)?;
    for (dir, mode) in [
        ("tmp", 0o1777),
        ("run", 0o755),
        ("var/tmp", 0o1777),
        ("var/lib", 0o755),
        ("var/log", 0o755),
        ("var/cache", 0o755),
        ("home", 0o755),
        ("root", 0o700),
        ("opt", 0o755),
        ("mnt", 0o755),
        ("srv", 0o755),
    ] {
        make_dir(&root.join(dir), mode)?;
    }
    symlink("/run", root.join("var/run")).context("linking /var/run")?;
    for binary in &spec.binaries {
        let target = PathBuf::from("/usr/local/bin").join(&binary.name);
        place(
            &root,
            &Mount {
                source: binary.path.clone(),
                target,
                read_only: true,
            },
        )?;
    }
    for mount in &spec.mounts {
        place(&root, mount).with_context(|| format!("mounting {}", mount.target.display()))?;
    }
    std::env::set_current_dir(&root).context("entering the root file system")?;
    pivot_root(".", ".").context("pivot_root")?;
    umount2(".", MntFlags::MNT_DETACH).context("leaving the host's root")?;
    std::env::set_current_dir("/").context("entering /")?;
    let cwd = Path::new(&spec.cwd);
    if !cwd.exists() {
        fs::create_dir_all(cwd)
            .with_context(|| format!("creating the working directory {}", spec.cwd))?;
    }
    if spec.read_only_root {
        remount_read_only(Path::new("/"), false)?;
    }
    Ok(())
}

fn tmpfs(target: &Path, options: &str) -> anyhow::Result<()> {
    mount(
        Some("tmpfs"),
        target,
        Some("tmpfs"),
        MsFlags::MS_NOSUID,
        Some(options),
    )
    .with_context(|| format!("mounting a tmpfs at {}", target.display()))
}

fn make_dir(path: &Path, mode: u32) -> anyhow::Result<()> {
    fs::create_dir_all(path).with_context(|| format!("creating {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .with_context(|| format!("mode of {}", path.display()))
}

/// Binds `source` to `target`, which must exist and be of the same sort.
fn bind(source: &Path, target: &Path) -> anyhow::Result<()> {
    mount(
        Some(source),
        target,
        None::<&str>,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        None::<&str>,
    )
    .with_context(|| format!("binding {} to {}", source.display(), target.display()))
}

fn remount_read_only(target: &Path, recursive_nosuid: bool) -> anyhow::Result<()> {
    let mut flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    if recursive_nosuid {
        flags |= MsFlags::MS_NOSUID;
    }
    mount(None::<&str>, target, None::<&str>, flags, None::<&str>)
        .with_context(|| format!("making {} read-only", target.display()))
}

/// Binds read-only, creating the mount point.
fn bind_read_only(source: &Path, target: &Path) -> anyhow::Result<()> {
    create_point(source, target)?;
    bind(source, target)?;
    remount_read_only(target, true)
}

/// Creates an empty file or directory to mount `source` on.
fn create_point(source: &Path, target: &Path) -> anyhow::Result<()> {
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
    }
    let made = if source.is_dir() {
        fs::create_dir_all(target)
    } else if target.exists() {
        Ok(())
    } else {
        File::create(target).map(drop)
    };
    made.with_context(|| format!("creating the mount point {}", target.display()))
}

/// Shows one host entry at the same place below `root`: a link as a link, anything else as a bind.
fn mirror(source: &Path, target: &Path) -> anyhow::Result<()> {
    let Ok(meta) = fs::symlink_metadata(source) else {
        return Ok(());
    };
    if meta.is_symlink() {
        let link = fs::read_link(source)
            .with_context(|| format!("reading the link {}", source.display()))?;
        return symlink(link, target).with_context(|| format!("linking {}", target.display()));
    }
    if meta.is_dir() || meta.is_file() {
        return bind_read_only(source, target);
    }
    Ok(())
}

fn system(root: &Path) -> anyhow::Result<()> {
    for dir in SYSTEM {
        mirror(&Path::new("/").join(dir), &root.join(dir))?;
    }
    Ok(())
}

fn etc(root: &Path) -> anyhow::Result<()> {
    make_dir(&root.join("etc"), 0o755)?;
    for name in ETC {
        let source = Path::new("/etc").join(name);
        // A link may point out of what the container sees (localtime does not): then it dangles, harmlessly.
        mirror(&source, &root.join("etc").join(name))?;
    }
    Ok(())
}

fn devices(root: &Path) -> anyhow::Result<()> {
    let dev = root.join("dev");
    make_dir(&dev, 0o755)?;
    for name in DEVICES {
        let source = Path::new("/dev").join(name);
        if source.exists() {
            create_point(&source, &dev.join(name))?;
            bind(&source, &dev.join(name))?;
        }
    }
    make_dir(&dev.join("pts"), 0o755)?;
    mount(
        Some("devpts"),
        &dev.join("pts"),
        Some("devpts"),
        MsFlags::MS_NOSUID,
        Some("newinstance,ptmxmode=0666,mode=0620"),
    )
    .context("mounting /dev/pts")?;
    make_dir(&dev.join("shm"), 0o1777)?;
    tmpfs(&dev.join("shm"), "mode=1777,size=64m")?;
    for (name, link) in [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        symlink(link, dev.join(name)).with_context(|| format!("linking /dev/{name}"))?;
    }
    Ok(())
}

fn kernel(root: &Path) -> anyhow::Result<()> {
    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    make_dir(&root.join("proc"), 0o555)?;
    mount(
        Some("proc"),
        &root.join("proc"),
        Some("proc"),
        safe,
        None::<&str>,
    )
    .context("mounting /proc")?;
    // Settings of the whole machine are not the container's business; those of its network stay writable.
    for path in [
        "proc/sys/kernel",
        "proc/sys/vm",
        "proc/sys/fs",
        "proc/sys/dev",
        "proc/sys/debug",
        "proc/sys/abi",
        "proc/sysrq-trigger",
        "proc/irq",
        "proc/bus",
    ] {
        let target = root.join(path);
        if target.exists() {
            bind(&target, &target)?;
            remount_read_only(&target, true)?;
        }
    }
    make_dir(&root.join("sys"), 0o555)?;
    mount(
        Some("sysfs"),
        &root.join("sys"),
        Some("sysfs"),
        safe | MsFlags::MS_RDONLY,
        None::<&str>,
    )
    .context("mounting /sys")
}

/// Puts one volume mount in place.
fn place(root: &Path, mount: &Mount) -> anyhow::Result<()> {
    let Mount {
        source,
        target,
        read_only,
    } = mount;
    let target = below(root, target)?;
    if !source.exists() {
        bail!("{} does not exist on the host", source.display());
    }
    if !target.exists() {
        make_room(root, &target)?;
        create_point(source, &target)?;
    }
    bind(source, &target)?;
    if *read_only {
        remount_read_only(&target, false)?;
    }
    Ok(())
}

/// `root` + `path`, following the links below `root` that the root file system itself made (`/var/run`, `/bin`).
fn below(root: &Path, path: &Path) -> anyhow::Result<PathBuf> {
    let mut result = root.to_owned();
    let mut components: Vec<PathBuf> = normal(path)?;
    components.reverse();
    let mut hops = 0;
    while let Some(component) = components.pop() {
        let next = result.join(&component);
        match fs::read_link(&next) {
            Ok(link) => {
                hops += 1;
                if hops > 40 {
                    bail!("too many links in {}", path.display());
                }
                if link.is_absolute() {
                    result = root.to_owned();
                }
                for component in normal(&link)?.into_iter().rev() {
                    components.push(component);
                }
            }
            Err(_) => result = next,
        }
    }
    Ok(result)
}

fn normal(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(Ok(PathBuf::from(name))),
            Component::ParentDir => Some(Err(anyhow::anyhow!(
                "{} must not contain ..",
                path.display()
            ))),
            _ => None,
        })
        .collect()
}

/// Makes sure that `target` can be created: opens up each existing directory on the way that is read-only.
fn make_room(root: &Path, target: &Path) -> anyhow::Result<()> {
    let relative = target
        .strip_prefix(root)
        .context("mount point outside of the root")?;
    let mut dir = root.to_owned();
    for component in relative.parent().into_iter().flat_map(Path::components) {
        if dir.exists() && is_read_only(&dir)? {
            open_up(root, &dir)?;
        }
        dir.push(component);
    }
    if dir.exists() && is_read_only(&dir)? {
        open_up(root, &dir)?;
    }
    Ok(())
}

fn is_read_only(dir: &Path) -> anyhow::Result<bool> {
    let stat =
        nix::sys::statvfs::statvfs(dir).with_context(|| format!("statvfs {}", dir.display()))?;
    Ok(stat.flags().contains(nix::sys::statvfs::FsFlags::ST_RDONLY))
}

/// Replaces a read-only directory by a tmpfs with the same entries.
fn open_up(root: &Path, dir: &Path) -> anyhow::Result<()> {
    let host = Path::new("/").join(
        dir.strip_prefix(root)
            .context("directory outside of the root")?,
    );
    tmpfs(dir, "mode=755")?;
    let entries = match fs::read_dir(&host) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("listing {}", host.display())),
    };
    for entry in entries {
        let entry = entry.with_context(|| format!("listing {}", host.display()))?;
        mirror(&entry.path(), &dir.join(entry.file_name()))?;
    }
    Ok(())
}
