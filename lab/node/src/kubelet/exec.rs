//! Interactive commands.

use std::{
    fs::File,
    io,
    os::fd::{AsFd as _, OwnedFd},
    pin::Pin,
    process::Stdio,
    task::{Context, Poll, ready},
};

use anyhow::Context as _;
use lab_kubernetes::{ExecOptions, ExecSession, ExitStatus};
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    unistd::{Uid, fchown},
};
use rustix::{
    pty::{ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};
use std::os::unix::{fs::OpenOptionsExt as _, process::ExitStatusExt as _};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf, unix::AsyncFd},
    process::{Child, Command},
    sync::{mpsc, oneshot},
};

use crate::container::runtime::Running;

/// Starts a command in a running container.
pub(super) fn start(running: &Running, options: ExecOptions) -> anyhow::Result<ExecSession> {
    let command = running.command(options.command.clone(), options.tty)?;
    if options.tty {
        with_terminal(running, command, &options)
    } else {
        with_pipes(command, &options)
    }
}

fn with_pipes(mut command: Command, options: &ExecOptions) -> anyhow::Result<ExecSession> {
    let wanted = |wanted: bool| {
        if wanted {
            Stdio::piped()
        } else {
            Stdio::null()
        }
    };
    let mut child = command
        .stdin(wanted(options.stdin))
        .stdout(wanted(options.stdout))
        .stderr(wanted(options.stderr))
        .spawn()
        .context("starting the command")?;
    let stdin = child
        .stdin
        .take()
        .map(|pipe| Box::new(pipe) as Box<dyn AsyncWrite + Send + Unpin>);
    let stdout = child
        .stdout
        .take()
        .map(|pipe| Box::new(pipe) as Box<dyn AsyncRead + Send + Unpin>);
    let stderr = child
        .stderr
        .take()
        .map(|pipe| Box::new(pipe) as Box<dyn AsyncRead + Send + Unpin>);
    Ok(ExecSession {
        stdin,
        stdout,
        stderr,
        resize: None,
        status: status_of(child),
    })
}

/// The two ends of a terminal.
struct Pty {
    master: OwnedFd,
    slave: OwnedFd,
}

/// A terminal of the container's own /dev/pts, else programs in it do not find the name of theirs (`tty`: not a tty).
/// It belongs to the user that the container runs as.
fn terminal_of(running: &Running) -> anyhow::Result<Pty> {
    let root = format!("/proc/{}/root", running.state.init.pid);
    let open = |path: &str| {
        let file = File::options()
            .read(true)
            .write(true)
            .custom_flags(OFlag::O_NOCTTY.bits())
            .open(format!("{root}{path}"));
        file.map(OwnedFd::from)
            .with_context(|| format!("opening the container's {path}"))
    };
    let master = open("/dev/pts/ptmx")?;
    unlockpt(&master).context("unlocking the terminal")?;
    let name = ptsname(&master, Vec::new()).context("naming the terminal")?;
    let slave = open(name.to_str().context("naming the terminal")?)?;
    // The paths are named after a process id: what was opened counts only if it is still that process's.
    anyhow::ensure!(
        running.state.init.is_alive(),
        "the container is no longer running"
    );
    let owner = Uid::from_raw(running.spec()?.privileges.uid);
    fchown(&slave, Some(owner), None).context("giving the terminal to the container's user")?;
    Ok(Pty { master, slave })
}

fn with_terminal(
    running: &Running,
    mut command: Command,
    options: &ExecOptions,
) -> anyhow::Result<ExecSession> {
    let pty = terminal_of(running)?;
    let slave = |what: &str| {
        pty.slave
            .try_clone()
            .with_context(|| format!("terminal for {what}"))
    };
    let child = command
        .stdin(Stdio::from(slave("standard input")?))
        .stdout(Stdio::from(slave("standard output")?))
        .stderr(Stdio::from(slave("standard error")?))
        .spawn()
        .context("starting the command")?;
    // The command keeps its own Stdio copies of the slave; ours must go, or the master never sees the end.
    drop(command);
    drop(pty.slave);
    let reader = Terminal::new(pty.master.try_clone().context("terminal")?)?;
    let writer = Terminal::new(pty.master.try_clone().context("terminal")?)?;
    let (resize, mut sizes) = mpsc::channel::<(u16, u16)>(4);
    let master = pty.master;
    tokio::spawn(async move {
        while let Some((columns, rows)) = sizes.recv().await {
            let size = Winsize {
                ws_row: rows,
                ws_col: columns,
                ws_xpixel: 0,
                ws_ypixel: 0,
            };
            // The command may have ended meanwhile.
            let _ = tcsetwinsize(master.as_fd(), size);
        }
    });
    Ok(ExecSession {
        stdin: options
            .stdin
            .then(|| Box::new(writer) as Box<dyn AsyncWrite + Send + Unpin>),
        stdout: options
            .stdout
            .then(|| Box::new(reader) as Box<dyn AsyncRead + Send + Unpin>),
        stderr: None,
        resize: Some(resize),
        status: status_of(child),
    })
}

/// Reports the end of the command; kills it when nobody waits any more.
fn status_of(mut child: Child) -> oneshot::Receiver<ExitStatus> {
    let (mut sender, receiver) = oneshot::channel();
    tokio::spawn(async move {
        let status = tokio::select! {
            status = child.wait() => status,
            () = sender.closed() => {
                let _ = child.kill().await;
                return;
            }
        };
        if let Ok(status) = status {
            let code = status
                .code()
                .or(status.signal().map(|signal| 128 + signal))
                .unwrap_or(255);
            let _ = sender.send(ExitStatus { code });
        }
    });
    receiver
}

/// The master side of a terminal as an async stream.
#[derive(Debug)]
struct Terminal(AsyncFd<File>);

impl Terminal {
    fn new(fd: OwnedFd) -> anyhow::Result<Self> {
        let flags = fcntl(&fd, FcntlArg::F_GETFL).context("terminal flags")?;
        let flags = OFlag::from_bits_truncate(flags) | OFlag::O_NONBLOCK;
        fcntl(&fd, FcntlArg::F_SETFL(flags)).context("terminal flags")?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe to call; a File keeps its promise, always the same descriptor"
        )]
        let watched = AsyncFd::new(File::from(fd)).context("terminal")?;
        Ok(Self(watched))
    }
}

impl AsyncRead for Terminal {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(context))?;
            let unfilled = buffer.initialize_unfilled();
            match guard.try_io(|fd| io::Read::read(&mut fd.get_ref(), unfilled)) {
                Ok(Ok(n)) => {
                    buffer.advance(n);
                    return Poll::Ready(Ok(()));
                }
                // The last slave was closed: that is how a terminal says end of file.
                Ok(Err(error)) if error.raw_os_error() == Some(nix::libc::EIO) => {
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_) => {}
            }
        }
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(context))?;
            if let Ok(result) = guard.try_io(|fd| io::Write::write(&mut fd.get_ref(), bytes)) {
                return Poll::Ready(result);
            }
        }
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
