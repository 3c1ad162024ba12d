//! Looks before it leaps: is everything here that a lab needs, and if not, what exactly is missing and how to get it.

use std::path::{Path, PathBuf};

/// Programs of this project that the lab with Bookinfo runs.
const OWN: &[&str] = &[
    "mesozoic-lab",
    "pilot-discovery",
    "pilot-agent",
    "istio-iptables",
    "bookinfo",
];
/// Programs of the system, and the Debian package that has them.
const SYSTEM: &[(&str, &str)] = &[("ip", "iproute2"), ("iptables-restore", "iptables")];
/// Directories that hold administrators' programs even when PATH does not name them.
const SBIN: &[&str] = &["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// Where things are.
#[derive(Debug, Clone)]
pub(super) struct Binaries {
    pub(super) dir: PathBuf,
    pub(super) envoy: PathBuf,
}

/// Finds everything, or says everything that is missing at once.
pub(super) fn find(bin_dir: Option<PathBuf>, envoy: Option<PathBuf>) -> anyhow::Result<Binaries> {
    let dir = match bin_dir {
        Some(dir) => std::path::absolute(dir)?,
        None => own_directory()?,
    };
    let mut missing = Vec::new();
    if !nix::unistd::geteuid().is_root() {
        missing.push(
            "root: the lab makes network namespaces and iptables rules of its own; run it with sudo (rootless, in a user namespace, is not supported yet)".to_owned(),
        );
    }
    for (program, package) in SYSTEM {
        if on_path(program).is_none() {
            missing.push(format!(
                "{program}: install it with `apt-get install {package}`"
            ));
        }
    }
    let absent: Vec<_> = OWN
        .iter()
        .filter(|n| !is_program(&dir.join(n)))
        .copied()
        .collect();
    if !absent.is_empty() {
        missing.push(format!(
            "{} in {}: build them with `make build`, or name their directory with --bin-dir",
            absent.join(", "),
            dir.display()
        ));
    }
    let found = match &envoy {
        Some(path) => is_program(path).then(|| path.clone()),
        None => find_envoy(&dir),
    };
    if found.is_none() {
        missing.push(match envoy {
            Some(path) => format!("Envoy: {} is not a program", path.display()),
            None => format!(
                "envoy: not in {}, not in a directory .tools above it, not on PATH; get it with `make setup`, or name it with --envoy",
                dir.display()
            ),
        });
    }
    match (missing.is_empty(), found) {
        (true, Some(envoy)) => Ok(Binaries {
            dir,
            envoy: std::path::absolute(envoy)?,
        }),
        _ => anyhow::bail!(
            "this machine lacks what a lab needs:\n  {}",
            missing.join("\n  ")
        ),
    }
}

/// Where this program lies; the others lie beside it.
fn own_directory() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    Ok(own.parent().unwrap_or(Path::new("/")).to_owned())
}

fn find_envoy(bin_dir: &Path) -> Option<PathBuf> {
    let beside = bin_dir.join("envoy");
    if is_program(&beside) {
        return Some(beside);
    }
    // Builds lie in target/release below the checkout, or in a target directory elsewhere: try both ways up.
    let here = std::env::current_dir().ok();
    bin_dir
        .ancestors()
        .chain(here.iter().flat_map(|d| d.ancestors()))
        .find_map(|dir| in_tools(&dir.join(".tools")))
        .or_else(|| on_path("envoy"))
}

/// `make setup` puts each version into a directory of its own: the highest one counts.
fn in_tools(tools: &Path) -> Option<PathBuf> {
    let mut versions: Vec<PathBuf> = std::fs::read_dir(tools)
        .ok()?
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("envoy-"))
        .map(|entry| entry.path().join("envoy"))
        .chain([tools.join("envoy")])
        .filter(|path| is_program(path))
        .collect();
    versions.sort();
    versions.pop()
}

fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(SBIN.iter().map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|candidate| is_program(candidate))
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    path.metadata()
        .is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_missing_is_named_at_once() {
        let empty = tempfile::tempdir().expect("a directory");
        let envoy = empty.path().join("no-envoy");
        let error = find(Some(empty.path().to_owned()), Some(envoy)).expect_err("nothing is there");
        let text = error.to_string();
        for name in OWN {
            assert!(text.contains(name), "{name} is missing in: {text}");
        }
        assert!(text.contains("no-envoy is not a program"), "{text}");
        assert!(text.contains("make build"), "{text}");
    }

    #[test]
    fn envoy_is_found_above_the_build() {
        use std::os::unix::fs::PermissionsExt as _;
        let root = tempfile::tempdir().expect("a directory");
        let bin = root.path().join("target/release");
        let tools = root.path().join(".tools/envoy-1.40.0");
        std::fs::create_dir_all(&bin).expect("made");
        std::fs::create_dir_all(&tools).expect("made");
        let envoy = tools.join("envoy");
        std::fs::write(&envoy, "").expect("written");
        let mode = |m| std::fs::set_permissions(&envoy, std::fs::Permissions::from_mode(m));
        mode(0o755).expect("changed");
        assert_eq!(find_envoy(&bin), Some(envoy.clone()));
        mode(0o644).expect("changed");
        assert_ne!(find_envoy(&bin), Some(envoy.clone()), "not executable");
    }
}
