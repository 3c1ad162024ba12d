//! Network namespaces: the outside, where a test runs, and pods.
//!
//! A namespace is held by a thread that unshared it; sockets that the thread makes and children that it starts are in it
//! and stay in it. So the test's runtime runs on the outside's thread, and a pod's thread only makes sockets, which the
//! test's runtime then uses. Nothing is left in the system when thread, sockets and children have ended.

use std::{
    cell::Cell,
    io::Write as _,
    net::{Ipv4Addr, SocketAddr},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
};

use clap::Parser as _;
use nix::{
    sched::{CloneFlags, unshare},
    unistd::{Uid, geteuid, gettid, setfsuid},
};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::{Backend, Pilot, PilotOptions};

/// Where pods reach the outside, Pilot above all.
pub(crate) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 1, 255, 254);
/// The user that connections from within a pod belong to.
const APP: u32 = 1000;
/// The user that Envoy runs as in a pod.
pub(super) const ENVOY: u32 = 1337;

/// Runs a test in a network namespace of its own; says so and does nothing where that is not permitted.
pub(crate) fn isolated(test: impl AsyncFnOnce(&Net) + Send) {
    if !geteuid().is_root() {
        eprintln!("SKIPPED: network namespaces and iptables need root");
        return;
    }
    let body = || {
        if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
            eprintln!("SKIPPED: no network namespace to be had: {error}");
            return;
        }
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        ip(&format!(
            "link set lo up\naddr add {OUTSIDE}/32 dev lo\nroute add local 10.2.0.0/16 dev lo"
        ));
        sysctl("net/ipv4/ip_forward", "1");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let net = Net {
            pods: Cell::new(0),
            addresses: Cell::new(0),
        };
        runtime.block_on(test(&net));
    };
    if let Err(panic) = thread::scope(|scope| scope.spawn(body).join()) {
        std::panic::resume_unwind(panic);
    }
}

/// Commands for `ip`, one a line, in the calling thread's namespace.
fn ip(commands: &str) {
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("iproute2 is installed");
    let mut input = child.stdin.take().unwrap();
    input.write_all(commands.as_bytes()).unwrap();
    drop(input);
    let output = child.wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip: {error}\n{commands}");
}

fn sysctl(key: &str, value: &str) {
    let path = format!("/proc/sys/{key}");
    std::fs::write(&path, value).unwrap_or_else(|error| panic!("{path}: {error}"));
}

/// The outside: where the test runs.
pub(crate) struct Net {
    pods: Cell<u8>,
    addresses: Cell<u8>,
}

impl Net {
    /// A Pilot that pods can reach.
    #[allow(clippy::unused_self)] // only in a namespace is that address there
    pub(crate) fn pilot(&self) -> PilotOptions {
        Pilot::options().listen(OUTSIDE.into())
    }

    /// An address of the outside that nobody else has.
    pub(crate) fn address(&self) -> Ipv4Addr {
        self.addresses.set(self.addresses.get() + 1);
        Ipv4Addr::new(10, 2, 0, self.addresses.get())
    }

    /// An HTTP backend of this name, on port 8080 of an address of its own.
    pub(crate) async fn http(&self, name: &str) -> Backend {
        let listener = TcpListener::bind((self.address(), 8080)).await.unwrap();
        Backend::http(name, listener)
    }

    /// A TCP backend that says its name and then echoes, on port 9000 of an address of its own.
    pub(crate) async fn tcp(&self, name: &str) -> Backend {
        let listener = TcpListener::bind((self.address(), 9000)).await.unwrap();
        Backend::tcp(name, listener)
    }

    /// A new pod.
    pub(crate) fn pod(&self) -> Pod {
        self.pods.set(self.pods.get() + 1);
        let number = self.pods.get();
        let address = Ipv4Addr::new(10, 1, 0, number);
        let (jobs, queue) = mpsc::channel::<Job>();
        let (ready, is_ready) = mpsc::channel();
        let thread = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            ready.send(gettid().as_raw()).unwrap();
            for job in queue {
                job();
            }
        });
        let thread_id = is_ready.recv().unwrap();
        ip(&format!(
            "link add pod{number} type veth peer name eth0 netns {thread_id}
addr add 169.254.1.1/32 dev pod{number}
link set pod{number} up
route add {address}/32 dev pod{number} src {OUTSIDE}"
        ));
        let pod = Pod {
            ip: address,
            jobs: Some(jobs),
            thread: Some(thread),
        };
        pod.run(move || {
            ip(&format!(
                "link set lo up
addr add {address}/32 dev eth0
link set eth0 up
route add 169.254.1.1 dev eth0
route add default via 169.254.1.1 dev eth0 src {address}"
            ));
            // Envoy binds 80 and 443 without being root.
            sysctl("net/ipv4/ip_unprivileged_port_start", "0");
        });
        pod
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace with an address.
pub(crate) struct Pod {
    pub(crate) ip: Ipv4Addr,
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.jobs.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Pod {
    /// Runs something short in the pod's namespace: what it binds, opens or starts is in there.
    pub(crate) fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        let job = Box::new(move || {
            let _ = done.send(job());
        });
        self.jobs.as_ref().unwrap().send(job).unwrap();
        result.recv().expect("a job in a pod panicked")
    }

    /// Listens inside the pod.
    pub(crate) fn listen(&self, address: &str) -> TcpListener {
        let address: SocketAddr = address.parse().unwrap();
        let listener = self.run(move || std::net::TcpListener::bind(address).unwrap());
        listener.set_nonblocking(true).unwrap();
        TcpListener::from_std(listener).unwrap()
    }

    /// Connects from inside the pod, as the application's user.
    pub(crate) async fn connect(&self, to: &str) -> std::io::Result<TcpStream> {
        let to: SocketAddr = to.parse().unwrap();
        // The `owner` match of iptables looks at the file-system user who made the socket.
        let socket = self.run(|| {
            setfsuid(Uid::from_raw(APP));
            let socket = TcpSocket::new_v4();
            setfsuid(Uid::from_raw(0));
            socket
        })?;
        socket.connect(to).await
    }

    /// All traffic of the pod goes through Envoy, as istio-init arranges it; ports of Envoy's own pages excepted.
    pub(super) fn redirect(&self) {
        self.run(|| {
            let flags =
                "-p 15001 -z 15006 -u 1337 -g 1337 -m REDIRECT -i * -b * -d 15000,15020,15090";
            let line = std::iter::once("istio-iptables").chain(flags.split(' '));
            let args = istio_iptables::Args::try_parse_from(line).unwrap();
            let status = istio_iptables::run(args).unwrap();
            assert_eq!(status, std::process::ExitCode::SUCCESS);
        });
    }
}
