//! Two real network namespaces, `pod` and `peer`, joined by a veth pair: who gets a connection?
//!
//! A namespace is held by a thread that unshared it; nothing is left when the thread ends. The user of a connection is
//! the thread's file-system uid, which is what the `owner` match looks at.

use std::{
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd as _,
    process::{Command, Output},
    sync::mpsc,
    thread,
    time::Duration,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, unshare},
    sys::socket::{getsockopt, setsockopt, sockopt},
    unistd::{Uid, geteuid, gettid, setfsuid},
};

type Job = Box<dyn FnOnce() + Send>;

/// A thread in its own network namespace that runs what it is given.
struct Namespace {
    jobs: mpsc::Sender<Job>,
    tid: i32,
}

impl Namespace {
    fn new() -> Result<Self, String> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (ready, is_ready) = mpsc::channel();
        thread::spawn(move || {
            let outcome = unshare(CloneFlags::CLONE_NEWNET).map(|()| gettid().as_raw());
            let failed = outcome.is_err();
            ready.send(outcome).unwrap();
            if failed {
                return;
            }
            for job in queue {
                job();
            }
        });
        let tid = is_ready.recv().unwrap().map_err(|e| e.to_string())?;
        Ok(Self { jobs, tid })
    }

    fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        self.jobs
            .send(Box::new(move || {
                let _ = done.send(job());
            }))
            .unwrap();
        result.recv().expect("the job panicked")
    }

    fn command(&self, line: &str) -> Output {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        self.run(move || {
            Command::new(&words[0])
                .args(&words[1..])
                .env_remove("PROXY_UID")
                .output()
                .unwrap()
        })
    }

    fn must(&self, line: &str) -> String {
        let output = self.command(line);
        assert!(
            output.status.success(),
            "{line}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    fn iptables(&self, flags: &str) -> String {
        self.must(&format!("{} {flags}", env!("CARGO_BIN_EXE_istio-iptables")))
    }

    fn listen(&self, address: &str, transparent: bool) -> TcpListener {
        let address: SocketAddr = address.parse().unwrap();
        self.run(move || {
            let listener = TcpListener::bind(address).unwrap();
            listener.set_nonblocking(true).unwrap();
            if transparent {
                setsockopt(&listener, sockopt::IpTransparent, &true).unwrap();
            }
            listener
        })
    }

    /// Connects as `uid`; the stream is kept open by the caller.
    fn dial(&self, uid: u32, to: &str) -> Result<TcpStream, String> {
        let to: SocketAddr = to.parse().unwrap();
        self.run(move || {
            setfsuid(Uid::from_raw(uid));
            let outcome = TcpStream::connect_timeout(&to, Duration::from_secs(5));
            setfsuid(Uid::from_raw(0));
            outcome.map_err(|error| error.to_string())
        })
    }
}

struct Mesh {
    pod: Namespace,
    peer: Namespace,
    /// Name, listener.
    listeners: Vec<(&'static str, TcpListener)>,
}

fn mesh() -> Option<Mesh> {
    let skip = |why: &str| {
        eprintln!("SKIPPED: {why}");
        None
    };
    if !geteuid().is_root() {
        return skip("network namespaces and iptables need root");
    }
    let (pod, peer) = match (Namespace::new(), Namespace::new()) {
        (Ok(pod), Ok(peer)) => (pod, peer),
        (Err(error), _) | (_, Err(error)) => {
            return skip(&format!("no network namespace to be had: {error}"));
        }
    };
    if !pod.command("iptables -t nat -S").status.success() {
        return skip("this kernel has no nat table");
    }
    pod.must(&format!(
        "ip link add eth0 type veth peer name eth0 netns {}",
        peer.tid
    ));
    for (namespace, host) in [(&pod, 2), (&peer, 1)] {
        namespace.must("ip link set lo up");
        namespace.must("ip link set eth0 up");
        for net in ["10.77.0", "10.88.0"] {
            namespace.must(&format!("ip addr add {net}.{host}/24 dev eth0"));
        }
    }
    let mut listeners = Vec::new();
    for (name, port) in [
        ("outbound", 15001),
        ("inbound", 15006),
        ("status", 15020),
        ("app", 8080),
    ] {
        listeners.push((name, pod.listen(&format!("0.0.0.0:{port}"), false)));
    }
    for (name, port) in [("peer", 9080), ("peer-mysql", 3306)] {
        listeners.push((name, peer.listen(&format!("0.0.0.0:{port}"), false)));
    }
    Some(Mesh {
        pod,
        peer,
        listeners,
    })
}

impl Mesh {
    /// Which listener a connection lands on, and with which original port.
    fn lands(&self, from: &Namespace, uid: u32, to: &str) -> (String, u16) {
        let stream = match from.dial(uid, to) {
            Ok(stream) => stream,
            Err(error) => return (error, 0),
        };
        let mut wanted: Vec<PollFd<'_>> = self
            .listeners
            .iter()
            .map(|(_, listener)| PollFd::new(listener.as_fd(), PollFlags::POLLIN))
            .collect();
        poll(&mut wanted, PollTimeout::from(5000u16)).unwrap();
        for (name, listener) in &self.listeners {
            if let Ok((accepted, _)) = listener.accept() {
                let original = match accepted.local_addr().unwrap().ip() {
                    IpAddr::V4(_) => getsockopt(&accepted, sockopt::OriginalDst)
                        .map(|o| u16::from_be(o.sin_port)),
                    IpAddr::V6(_) => getsockopt(&accepted, sockopt::Ip6tOriginalDst)
                        .map(|o| u16::from_be(o.sin6_port)),
                };
                let port = original.unwrap_or_else(|_| accepted.local_addr().unwrap().port());
                drop(stream);
                return ((*name).to_owned(), port);
            }
        }
        ("nobody".to_owned(), 0)
    }
}

fn landed(name: &str, port: u16) -> (String, u16) {
    (name.to_owned(), port)
}

const APP: u32 = 1000;
const ENVOY: u32 = 1337;
const INJECTED: &str =
    "-p 15001 -z 15006 -u 1337 -m REDIRECT -i * -x 10.88.0.0/16 -b * -d 15020 -o 3306";

fn captured_as_injected(mesh: &Mesh) {
    let (pod, peer) = (&mesh.pod, &mesh.peer);
    // Inbound: everything to Envoy, the status port excepted.
    assert_eq!(
        mesh.lands(peer, APP, "10.77.0.2:8080"),
        landed("inbound", 8080)
    );
    assert_eq!(mesh.lands(peer, APP, "10.77.0.2:7"), landed("inbound", 7));
    assert_eq!(
        mesh.lands(peer, APP, "10.77.0.2:15020"),
        landed("status", 15020)
    );
    // Outbound: everything to Envoy, root too; Envoy itself, excluded CIDRs and ports excepted.
    assert_eq!(
        mesh.lands(pod, APP, "10.77.0.1:9080"),
        landed("outbound", 9080)
    );
    assert_eq!(
        mesh.lands(pod, 0, "10.77.0.1:9080"),
        landed("outbound", 9080)
    );
    assert_eq!(
        mesh.lands(pod, ENVOY, "10.77.0.1:9080"),
        landed("peer", 9080)
    );
    assert_eq!(mesh.lands(pod, APP, "10.88.0.1:9080"), landed("peer", 9080));
    assert_eq!(
        mesh.lands(pod, APP, "10.77.0.1:3306"),
        landed("peer-mysql", 3306)
    );
    // Inside the pod: localhost is direct, the pod's own address enters by the inbound side.
    assert_eq!(mesh.lands(pod, APP, "127.0.0.1:8080"), landed("app", 8080));
    assert_eq!(
        mesh.lands(pod, ENVOY, "127.0.0.1:8080"),
        landed("app", 8080)
    );
    assert_eq!(
        mesh.lands(pod, ENVOY, "10.77.0.2:8080"),
        landed("inbound", 8080)
    );
}

fn redirects(variant: &str) {
    let Some(mesh) = mesh() else { return };
    let pod = &mesh.pod;
    if !pod
        .command(&format!("iptables-{variant} -t nat -S"))
        .status
        .success()
    {
        eprintln!("SKIPPED: iptables-{variant} does not work here");
        return;
    }
    let save = format!("iptables-{variant}-save -t nat");
    let rules = |pod: &Namespace| -> Vec<String> {
        let saved = pod.must(&save);
        saved
            .lines()
            .filter(|line| line.starts_with('-'))
            .map(str::to_owned)
            .collect()
    };
    // A rule of somebody else survives all of it.
    pod.must(&format!(
        "iptables-{variant} -t nat -A OUTPUT -p tcp --dport 1 -j ACCEPT"
    ));
    let theirs = rules(pod);

    let flags = format!("{INJECTED} --iptables-variant {variant}");
    pod.iptables(&flags);
    captured_as_injected(&mesh);
    let once = rules(pod);
    pod.iptables(&flags);
    assert_eq!(rules(pod), once, "a second run changes nothing");

    pod.iptables(&format!(
        "-u 1337 -b 8080 -i 10.88.0.0/16 --iptables-variant {variant}"
    ));
    assert_eq!(
        mesh.lands(&mesh.peer, APP, "10.77.0.2:8080"),
        landed("outbound", 8080),
        "-b LIST goes to -p"
    );
    assert_eq!(
        mesh.lands(pod, APP, "10.77.0.1:9080"),
        landed("peer", 9080),
        "not in -i"
    );
    assert_eq!(
        mesh.lands(pod, APP, "10.88.0.1:9080"),
        landed("outbound", 9080),
        "in -i"
    );

    pod.iptables(&format!("clean --iptables-variant {variant}"));
    assert_eq!(rules(pod), theirs);
    assert!(!pod.must(&save).contains("ISTIO"), "no chain is left");
    assert_eq!(
        mesh.lands(&mesh.peer, APP, "10.77.0.2:8080"),
        landed("app", 8080)
    );
    pod.iptables(&format!("clean --iptables-variant {variant}"));
}

#[test]
fn redirect_over_nftables() {
    redirects("nft");
}

#[test]
fn redirect_over_legacy() {
    redirects("legacy");
}

#[test]
fn ipv6_is_captured_alike() {
    let Some(mut mesh) = mesh() else { return };
    for (namespace, host) in [(&mesh.pod, 2), (&mesh.peer, 1)] {
        if !namespace
            .command(&format!("ip addr add fd77::{host}/64 dev eth0 nodad"))
            .status
            .success()
        {
            eprintln!("SKIPPED: this kernel has no IPv6");
            return;
        }
    }
    mesh.listeners.clear();
    for (name, port) in [("outbound", 15001), ("inbound", 15006), ("app", 8080)] {
        mesh.listeners
            .push((name, mesh.pod.listen(&format!("[fd77::2]:{port}"), false)));
    }
    mesh.listeners
        .push(("outbound", mesh.pod.listen("[::1]:15001", false)));
    mesh.listeners
        .push(("peer", mesh.peer.listen("[::]:9080", false)));
    mesh.pod.iptables("-u 1337 -i * -b * -d 15020");
    assert_eq!(
        mesh.lands(&mesh.peer, APP, "[fd77::2]:8080"),
        landed("inbound", 8080)
    );
    assert_eq!(
        mesh.lands(&mesh.pod, APP, "[fd77::1]:9080"),
        landed("outbound", 9080)
    );
    assert_eq!(
        mesh.lands(&mesh.pod, ENVOY, "[fd77::1]:9080"),
        landed("peer", 9080)
    );
    // Again: the passthrough address is there already.
    mesh.pod.iptables("-u 1337 -i * -b * -d 15020");
}

#[test]
fn tproxy_keeps_the_callers_address() {
    let Some(mut mesh) = mesh() else { return };
    mesh.listeners.retain(|(name, _)| *name != "outbound");
    mesh.listeners
        .push(("transparent", mesh.pod.listen("0.0.0.0:15001", true)));
    for _ in 0..2 {
        mesh.pod.iptables("-u 1337 -m TPROXY -i * -b * -d 15020");
        assert_eq!(
            mesh.lands(&mesh.peer, APP, "10.77.0.2:8080"),
            landed("transparent", 8080)
        );
        assert_eq!(
            mesh.lands(&mesh.peer, APP, "10.77.0.2:15020"),
            landed("status", 15020)
        );
    }
    let rule = mesh.pod.must("ip -4 rule list");
    assert_eq!(rule.matches("0x539").count(), 1, "{rule}");
    mesh.pod.iptables("--clean");
    assert!(!mesh.pod.must("ip -4 rule list").contains("0x539"));
    assert_eq!(
        mesh.lands(&mesh.peer, APP, "10.77.0.2:8080"),
        landed("app", 8080)
    );
}

#[test]
fn validation_tells_a_redirected_pod_from_another() {
    let Some(mut mesh) = mesh() else { return };
    mesh.listeners.clear();
    let program = env!("CARGO_BIN_EXE_istio-iptables");
    let failed = mesh.pod.command(&format!(
        "{program} -u 1337 -b * -i * --skip-rule-apply --run-validation --probe-timeout 1"
    ));
    assert_eq!(failed.status.code(), Some(126));
    let said = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(said.contains("was not redirected to port 15006"), "{said}");
    let passed = mesh
        .pod
        .iptables("-u 1337 -b * -i * --run-validation --probe-timeout 20");
    assert!(passed.contains("validation passed"), "{passed}");
}
