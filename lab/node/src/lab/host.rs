//! Sockets in the host's network namespace.
//!
//! A socket keeps the namespace it was made in. The daemon lives in the lab's, so listeners for users (node ports) are
//! made by one helper thread that has entered the host's namespace and does nothing else.

use std::{
    fs::File,
    io,
    net::{SocketAddr, TcpListener},
    sync::mpsc,
    thread,
};

use anyhow::Context as _;
use nix::sched::{CloneFlags, setns};
use tokio::sync::oneshot;

struct Request {
    address: SocketAddr,
    reply: oneshot::Sender<io::Result<TcpListener>>,
}

/// Handle to the helper thread. Dropping the last one ends the thread.
#[derive(Clone, Debug)]
pub(crate) struct HostNet {
    requests: mpsc::Sender<Request>,
}

impl HostNet {
    /// Starts the helper thread.
    pub(crate) fn start(host_net: File) -> anyhow::Result<Self> {
        let (requests, inbox) = mpsc::channel::<Request>();
        thread::Builder::new()
            .name("host-net".into())
            .spawn(move || {
                let entered = setns(&host_net, CloneFlags::CLONE_NEWNET);
                for request in inbox {
                    let listener = match entered {
                        Ok(()) => TcpListener::bind(request.address),
                        Err(errno) => Err(errno.into()),
                    };
                    // The asker may have given up; the listener then closes again.
                    let _ = request.reply.send(listener);
                }
            })
            .context("starting the host-net thread")?;
        Ok(Self { requests })
    }

    /// Binds a listener in the host's namespace.
    pub(crate) async fn listen(&self, address: SocketAddr) -> io::Result<tokio::net::TcpListener> {
        let (reply, answer) = oneshot::channel();
        let gone = || io::Error::other("the host-net thread has ended");
        self.requests
            .send(Request { address, reply })
            .map_err(|_| gone())?;
        let listener = answer.await.map_err(|_| gone())??;
        listener.set_nonblocking(true)?;
        tokio::net::TcpListener::from_std(listener)
    }
}

/// Connects to a TCP address from inside another network namespace (a pod's), on a thread of its own.
pub(crate) async fn connect_in(
    namespace: File,
    address: SocketAddr,
) -> io::Result<tokio::net::TcpStream> {
    let (reply, answer) = oneshot::channel();
    thread::Builder::new()
        .name("pod-dial".into())
        .spawn(move || {
            let stream = setns(&namespace, CloneFlags::CLONE_NEWNET)
                .map_err(io::Error::from)
                .and_then(|()| {
                    std::net::TcpStream::connect_timeout(
                        &address,
                        std::time::Duration::from_secs(10),
                    )
                });
            let _ = reply.send(stream);
        })?;
    let stream = answer
        .await
        .map_err(|_| io::Error::other("the dialling thread died"))??;
    stream.set_nonblocking(true)?;
    tokio::net::TcpStream::from_std(stream)
}
