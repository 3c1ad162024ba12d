//! The shim: starts one container, copies its output to the log, and records its end.
//!
//! Single-threaded, because a process that has unshared its PID namespace cannot make threads. It depends on nobody: the
//! daemon may die, be replaced, or never look. If the shim itself is killed, the container's first process goes with
//! it (parent-death signal), so nothing runs unobserved.

use std::{
    fs::File,
    io::{self, Read as _},
    os::{fd::AsFd as _, unix::net::UnixStream, unix::process::ExitStatusExt as _},
    path::Path,
    process::{Child, ChildStderr, ChildStdout, Command, Stdio},
};

use anyhow::Context as _;
use jiff::Timestamp;
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, setns, unshare},
    unistd::setsid,
};

use super::{
    ContainerSpec, Exit, RunState,
    log::{LogWriter, Stream},
};
use crate::{files, lab::SELF, process::ProcId};

/// Runs the shim for the specification at `path`.
pub(crate) fn run(path: &Path) -> anyhow::Result<()> {
    let spec: ContainerSpec =
        files::read_json(path)?.with_context(|| format!("{} does not exist", path.display()))?;
    let _ = setsid();
    let exit = match start(&spec, path) {
        Ok(container) => container.supervise(&spec)?,
        Err(error) => not_started(format!("{error:#}")),
    };
    files::write_json(&spec.dir.join("exit.json"), &exit)
}

fn not_started(message: String) -> Exit {
    Exit {
        code: 128,
        signal: None,
        start_error: Some(message),
        started_at: None,
        finished_at: Timestamp::now(),
    }
}

/// A container whose first process has been made, but may not have reached the program yet.
struct Container {
    child: Child,
    /// Closed by exec; anything read from it is why exec did not happen.
    status: UnixStream,
    stdout: ChildStdout,
    stderr: ChildStderr,
}

fn start(spec: &ContainerSpec, path: &Path) -> anyhow::Result<Container> {
    for (kind, flag) in [
        ("net", CloneFlags::CLONE_NEWNET),
        ("uts", CloneFlags::CLONE_NEWUTS),
        ("ipc", CloneFlags::CLONE_NEWIPC),
    ] {
        let namespace = File::open(spec.pause.proc(&format!("ns/{kind}")))
            .with_context(|| format!("opening the pod's {kind} namespace"))?;
        setns(&namespace, flag).with_context(|| format!("entering the pod's {kind} namespace"))?;
    }
    unshare(CloneFlags::CLONE_NEWPID).context("unshare(NEWPID)")?;
    let (status, child_end) = UnixStream::pair().context("status channel")?;
    let mut child = Command::new(SELF)
        .arg("container-init")
        .arg(path)
        .current_dir("/")
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(child_end)))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting the container's first process")?;
    let stdout = child.stdout.take().context("no stdout pipe")?;
    let stderr = child.stderr.take().context("no stderr pipe")?;
    Ok(Container {
        child,
        status,
        stdout,
        stderr,
    })
}

impl Container {
    /// Copies output until every writer is gone, then collects the exit status.
    fn supervise(self, spec: &ContainerSpec) -> anyhow::Result<Exit> {
        let Self {
            mut child,
            mut status,
            mut stdout,
            mut stderr,
        } = self;
        let mut log = LogWriter::open(&spec.log)
            .with_context(|| format!("opening {}", spec.log.display()))?;
        let (mut out, mut err) = (Stream::new("stdout"), Stream::new("stderr"));
        let (mut status_open, mut out_open, mut err_open) = (true, true, true);
        let mut start_error = Vec::new();
        let mut started_at = None;
        let mut buffer = vec![0; 64 * 1024];
        while status_open || out_open || err_open {
            // Closed descriptors report a hang-up for ever, so only open ones are polled.
            let (s, o, e) = {
                let descriptors = [status.as_fd(), stdout.as_fd(), stderr.as_fd()];
                let open = [status_open, out_open, err_open];
                let mut fds: Vec<PollFd<'_>> = std::iter::zip(descriptors, open)
                    .filter(|(_, open)| *open)
                    .map(|(fd, _)| PollFd::new(fd, PollFlags::POLLIN))
                    .collect();
                match poll(&mut fds, PollTimeout::NONE) {
                    Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                    Err(errno) => return Err(errno).context("poll"),
                }
                let mut results = fds.iter().map(|fd| fd.any().unwrap_or(false));
                let mut ready = open
                    .map(|open| open && results.next().unwrap_or(false))
                    .into_iter();
                let mut next = || ready.next().unwrap_or(false);
                (next(), next(), next())
            };
            if s {
                match status.read(&mut buffer) {
                    Ok(0) | Err(_) => {
                        status_open = false;
                        if start_error.is_empty() {
                            started_at = announce(spec, &child);
                        }
                    }
                    Ok(n) => start_error.extend_from_slice(&buffer[..n]),
                }
            }
            // A log that cannot be written (disk full) loses lines, never blocks the container.
            if o {
                out_open = copy(&mut stdout, &mut buffer, &mut log, &mut out);
            }
            if e {
                err_open = copy(&mut stderr, &mut buffer, &mut log, &mut err);
            }
        }
        let _ = log.finish(&mut out);
        let _ = log.finish(&mut err);
        let result = child.wait().context("waiting for the container")?;
        if !start_error.is_empty() {
            return Ok(not_started(
                String::from_utf8_lossy(&start_error).into_owned(),
            ));
        }
        let signal = result.signal();
        let code = result
            .code()
            .or(signal.map(|signal| 128 + signal))
            .unwrap_or(255);
        Ok(Exit {
            code,
            signal,
            start_error: None,
            started_at,
            finished_at: Timestamp::now(),
        })
    }
}

/// Writes `state.json` and says so to the daemon that started us, if it still listens.
fn announce(spec: &ContainerSpec, child: &Child) -> Option<Timestamp> {
    use io::Write as _;
    let started_at = Timestamp::now();
    let init = i32::try_from(child.id()).ok().and_then(ProcId::of);
    let shim = i32::try_from(std::process::id()).ok().and_then(ProcId::of);
    if let (Some(init), Some(shim)) = (init, shim) {
        let state = RunState {
            shim,
            init,
            started_at,
        };
        if let Err(error) = files::write_json(&spec.dir.join("state.json"), &state) {
            complain(&format!("{error:#}"));
        }
    }
    let _ = io::stdout()
        .write_all(b"started\n")
        .and_then(|()| io::stdout().flush());
    let _ = crate::lab::holder::detach_stdout();
    Some(started_at)
}

/// Says it on standard error if that can be written: it is a file on the same disk, and `eprintln!` panics when it is
/// full, which would end the container.
fn complain(text: &str) {
    use io::Write as _;
    let _ = writeln!(io::stderr(), "{text}");
}

/// Copies what is there; false at the end of the stream.
fn copy(
    from: &mut impl io::Read,
    buffer: &mut [u8],
    log: &mut LogWriter,
    stream: &mut Stream,
) -> bool {
    match from.read(buffer) {
        Ok(0) => false,
        Ok(n) => {
            if let Err(error) = log.write(stream, &buffer[..n]) {
                complain(&format!("container log: {error}"));
            }
            true
        }
        Err(error) => error.kind() == io::ErrorKind::Interrupted,
    }
}
