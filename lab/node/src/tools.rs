//! The few system programs the lab calls, and what to install when one is missing.

use std::{
    io::Write as _,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};

/// Where system programs live, whatever the caller's PATH says.
const SYSTEM_PATH: &[&str] = &[
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
];

/// Finds a program on the system path, then on PATH.
pub(crate) fn which(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    SYSTEM_PATH
        .iter()
        .map(PathBuf::from)
        .chain(std::env::split_paths(&path))
        .map(|dir| dir.join(name))
        .find(|candidate| is_executable(candidate))
}

fn is_executable(path: &std::path::Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    path.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Fails with the packages to install if a tool is missing.
pub(crate) fn check() -> anyhow::Result<()> {
    let missing: Vec<_> = [("ip", "iproute2"), ("iptables-restore", "iptables")]
        .into_iter()
        .filter(|(tool, _)| which(tool).is_none())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let tools: Vec<_> = missing.iter().map(|(tool, _)| *tool).collect();
    let packages: Vec<_> = missing.iter().map(|(_, package)| *package).collect();
    bail!(
        "the lab needs {} to set up its network; install it, for example: apt-get install {}",
        tools.join(" and "),
        packages.join(" ")
    )
}

/// Runs a program with text on its standard input; its error output is the error.
pub(crate) fn feed(program: &str, args: &[&str], input: &str) -> anyhow::Result<()> {
    let path = which(program).with_context(|| format!("{program} is not installed"))?;
    let mut child = Command::new(path)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {program}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin
            .write_all(input.as_bytes())
            .with_context(|| format!("writing to {program}"))?;
    }
    let output = child
        .wait_with_output()
        .with_context(|| format!("waiting for {program}"))?;
    if !output.status.success() {
        bail!(
            "{program} {}: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

/// Runs a batch of `ip` commands in the current network namespace.
pub(crate) fn ip_batch(commands: &str) -> anyhow::Result<()> {
    feed("ip", &["-batch", "-"], commands)
}

/// Writes a kernel setting of the current network namespace.
pub(crate) fn sysctl(path: &str, value: &str) -> anyhow::Result<()> {
    std::fs::write(format!("/proc/sys/{path}"), value)
        .with_context(|| format!("setting {path} to {value}"))
}
