//! Cluster DNS for `cluster.local`, on 10.96.0.10:53, UDP and TCP.
//!
//! | Name | Answer |
//! |---|---|
//! | `SVC.NS.svc.cluster.local` | A: the VIP; headless: every ready endpoint; ExternalName: CNAME |
//! | `HOST.SVC.NS.svc.cluster.local` | A: the endpoint with that host name, or `10-244-0-17` for any endpoint |
//! | `_PORT._tcp.SVC.NS.svc.cluster.local` | SRV for the named port |
//! | `10-244-0-17.NS.pod.cluster.local` | A: that address |
//! | `17.0.244.10.in-addr.arpa` | PTR of a service VIP |
//!
//! A name that exists without the asked type is NODATA, one that does not is NXDOMAIN, both with the zone's SOA.
//! Everything outside of the zone is NXDOMAIN at once: the lab does not talk to the Internet, and search lists need a
//! quick "no" to go on.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use hickory_proto::{
    op::{Message, OpCode, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{Semaphore, watch},
};
use tokio_util::sync::CancellationToken;

use super::{
    CLUSTER_DOMAIN,
    services::{Kind, PortEntry, ServiceEntry, ServiceTable},
};

/// Seconds a client may cache an answer: endpoints change quickly here.
const TTL: u32 = 5;
/// Largest answer over UDP without EDNS.
const UDP_LIMIT: usize = 512;
const TCP_IDLE: Duration = Duration::from_secs(10);
const MAX_TCP: usize = 256;

/// Binds both sockets and serves until `stop`.
pub(crate) async fn serve(
    address: SocketAddr,
    table: watch::Receiver<Arc<ServiceTable>>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let udp = UdpSocket::bind(address)
        .await
        .with_context(|| format!("DNS on {address}/udp"))?;
    let tcp = TcpListener::bind(address)
        .await
        .with_context(|| format!("DNS on {address}/tcp"))?;
    let slots = Arc::new(Semaphore::new(MAX_TCP));
    let mut buffer = vec![0; 4096];
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            received = udp.recv_from(&mut buffer) => {
                let Ok((length, peer)) = received else { continue };
                let reply = answer(&buffer[..length], &table.borrow(), true);
                if let Some(reply) = reply {
                    // A client that has gone away is no news.
                    let _ = udp.send_to(&reply, peer).await;
                }
            }
            accepted = tcp.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                // At the limit the newcomer is closed: DNS clients retry.
                if let Ok(slot) = slots.clone().try_acquire_owned() {
                    let table = table.clone();
                    tokio::spawn(async move {
                        let _ = connection(stream, table).await;
                        drop(slot);
                    });
                }
            }
        }
    }
}

async fn connection(
    mut stream: TcpStream,
    table: watch::Receiver<Arc<ServiceTable>>,
) -> std::io::Result<()> {
    let mut buffer = Vec::new();
    loop {
        let length = match tokio::time::timeout(TCP_IDLE, stream.read_u16()).await {
            Ok(length) => length?,
            Err(_) => return Ok(()),
        };
        buffer.resize(usize::from(length), 0);
        if tokio::time::timeout(TCP_IDLE, stream.read_exact(&mut buffer))
            .await
            .is_err()
        {
            return Ok(());
        }
        let Some(reply) = answer(&buffer, &table.borrow().clone(), false) else {
            return Ok(());
        };
        let Ok(length) = u16::try_from(reply.len()) else {
            return Ok(());
        };
        stream.write_all(&length.to_be_bytes()).await?;
        stream.write_all(&reply).await?;
    }
}

/// The reply to one message; `None` for what does not deserve one.
fn answer(query: &[u8], table: &ServiceTable, udp: bool) -> Option<Vec<u8>> {
    let query = Message::from_vec(query).ok()?;
    let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
    reply.metadata.recursion_desired = query.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    reply.metadata.authoritative = true;
    reply.add_queries(query.queries.clone());
    let limit = query.edns.as_ref().map_or(UDP_LIMIT, |edns| {
        usize::from(edns.max_payload()).max(UDP_LIMIT)
    });
    match query.queries.as_slice() {
        [question] if query.metadata.op_code == OpCode::Query => {
            let outcome = resolve(table, question.name(), question.query_type());
            reply.metadata.response_code = outcome.code;
            if outcome.answers.is_empty()
                && let Some(soa) = soa()
            {
                reply.add_authority(soa);
            }
            reply.add_answers(outcome.answers);
            for record in outcome.additional {
                reply.add_additional(record);
            }
        }
        _ => reply.metadata.response_code = ResponseCode::NotImp,
    }
    let bytes = reply.to_vec().ok()?;
    if udp && bytes.len() > limit {
        return reply.truncate().to_vec().ok();
    }
    Some(bytes)
}

struct Outcome {
    code: ResponseCode,
    answers: Vec<Record>,
    additional: Vec<Record>,
}

impl Outcome {
    /// The name exists; there may be no record of the asked type.
    fn found(answers: Vec<Record>) -> Self {
        Self {
            code: ResponseCode::NoError,
            answers,
            additional: Vec::new(),
        }
    }
    fn missing() -> Self {
        Self {
            code: ResponseCode::NXDomain,
            answers: Vec::new(),
            additional: Vec::new(),
        }
    }
}

fn resolve(table: &ServiceTable, name: &Name, kind: RecordType) -> Outcome {
    let text = name.to_ascii().trim_end_matches('.').to_ascii_lowercase();
    if let Some(reversed) = text.strip_suffix(".in-addr.arpa") {
        return pointer(table, name, reversed, kind);
    }
    if text == CLUSTER_DOMAIN {
        return Outcome::found(Vec::new());
    }
    let Some(inside) = text
        .strip_suffix(CLUSTER_DOMAIN)
        .and_then(|rest| rest.strip_suffix('.'))
    else {
        return Outcome::missing();
    };
    let labels: Vec<&str> = inside.split('.').collect();
    match labels.as_slice() {
        ["svc" | "pod"] => Outcome::found(Vec::new()),
        [namespace, "svc"] => {
            if table.services.keys().any(|(ns, _)| ns == namespace) {
                Outcome::found(Vec::new())
            } else {
                Outcome::missing()
            }
        }
        [service, namespace, "svc"] => match table.get(namespace, service) {
            Some(service) => service_records(service, name, kind),
            None => Outcome::missing(),
        },
        [port, protocol, service, namespace, "svc"]
            if port.starts_with('_') && protocol.starts_with('_') =>
        {
            table
                .get(namespace, service)
                .map_or_else(Outcome::missing, |service| {
                    srv(service, name, kind, Some((&port[1..], &protocol[1..])))
                })
        }
        [host, service, namespace, "svc"] => table
            .get(namespace, service)
            .map_or_else(Outcome::missing, |service| {
                host_records(service, name, kind, host)
            }),
        [dashed, _namespace, "pod"] => match dashed.replace('-', ".").parse::<Ipv4Addr>() {
            Ok(ip) => Outcome::found(addresses(name, kind, [ip])),
            Err(_) => Outcome::missing(),
        },
        _ => Outcome::missing(),
    }
}

fn service_records(service: &ServiceEntry, name: &Name, kind: RecordType) -> Outcome {
    if let Kind::ExternalName(target) = &service.kind {
        let Ok(target) = Name::from_ascii(format!("{}.", target.trim_end_matches('.'))) else {
            return Outcome::found(Vec::new());
        };
        return Outcome::found(vec![Record::from_rdata(
            name.clone(),
            TTL,
            RData::CNAME(rdata::CNAME(target)),
        )]);
    }
    if kind == RecordType::SRV {
        return srv(service, name, kind, None);
    }
    match service.cluster_ip {
        Some(vip) => Outcome::found(addresses(name, kind, [vip])),
        // A headless service without endpoints is unknown, so that clients fail at once.
        None if service.hosts.is_empty() => Outcome::missing(),
        None => Outcome::found(addresses(
            name,
            kind,
            service.hosts.iter().map(|host| host.ip),
        )),
    }
}

fn host_records(service: &ServiceEntry, name: &Name, kind: RecordType, host: &str) -> Outcome {
    let ips: Vec<_> = service
        .hosts
        .iter()
        .filter(|candidate| {
            host_label(candidate) == host || candidate.ip.to_string().replace('.', "-") == host
        })
        .map(|candidate| candidate.ip)
        .collect();
    if ips.is_empty() {
        Outcome::missing()
    } else {
        Outcome::found(addresses(name, kind, ips))
    }
}

fn host_label(host: &super::services::Host) -> String {
    host.hostname
        .clone()
        .unwrap_or_else(|| host.ip.to_string().replace('.', "-"))
}

fn addresses(
    name: &Name,
    kind: RecordType,
    ips: impl IntoIterator<Item = Ipv4Addr>,
) -> Vec<Record> {
    if !matches!(kind, RecordType::A | RecordType::ANY) {
        return Vec::new();
    }
    ips.into_iter()
        .map(|ip| Record::from_rdata(name.clone(), TTL, RData::A(rdata::A(ip))))
        .collect()
}

/// SRV records: of one named port, or of all ports of the service.
fn srv(
    service: &ServiceEntry,
    name: &Name,
    kind: RecordType,
    wanted: Option<(&str, &str)>,
) -> Outcome {
    let ports: Vec<&PortEntry> = service
        .ports
        .iter()
        .filter(|port| {
            wanted.is_none_or(|(name, protocol)| {
                port.name == name && port.protocol.eq_ignore_ascii_case(protocol)
            })
        })
        .collect();
    if ports.is_empty() {
        return Outcome::missing();
    }
    let mut outcome = Outcome::found(Vec::new());
    if !matches!(kind, RecordType::SRV | RecordType::ANY) {
        return outcome;
    }
    let base = format!(
        "{}.{}.svc.{CLUSTER_DOMAIN}.",
        service.name, service.namespace
    );
    for port in ports {
        let targets: Vec<(String, Ipv4Addr, u16)> = match service.cluster_ip {
            Some(vip) => vec![(base.clone(), vip, port.port)],
            None => port
                .targets
                .iter()
                .filter_map(|target| {
                    let host = service.hosts.iter().find(|host| host.ip == *target.ip())?;
                    Some((
                        format!("{}.{base}", host_label(host)),
                        *target.ip(),
                        target.port(),
                    ))
                })
                .collect(),
        };
        for (target, ip, port) in targets {
            let Ok(target) = Name::from_ascii(target) else {
                continue;
            };
            let record = rdata::SRV::new(0, 100, port, target.clone());
            outcome
                .answers
                .push(Record::from_rdata(name.clone(), TTL, RData::SRV(record)));
            outcome
                .additional
                .push(Record::from_rdata(target, TTL, RData::A(rdata::A(ip))));
        }
    }
    outcome
}

fn pointer(table: &ServiceTable, name: &Name, reversed: &str, kind: RecordType) -> Outcome {
    let forward: Vec<&str> = reversed.rsplit('.').collect();
    let Ok(ip) = forward.join(".").parse::<Ipv4Addr>() else {
        return Outcome::missing();
    };
    let Some(service) = table
        .services
        .values()
        .find(|service| service.cluster_ip == Some(ip))
    else {
        return Outcome::missing();
    };
    let target = Name::from_ascii(format!(
        "{}.{}.svc.{CLUSTER_DOMAIN}.",
        service.name, service.namespace
    ));
    match target {
        Ok(target) if matches!(kind, RecordType::PTR | RecordType::ANY) => {
            Outcome::found(vec![Record::from_rdata(
                name.clone(),
                TTL,
                RData::PTR(rdata::PTR(target)),
            )])
        }
        _ => Outcome::found(Vec::new()),
    }
}

fn soa() -> Option<Record> {
    let zone = Name::from_ascii(format!("{CLUSTER_DOMAIN}.")).ok()?;
    let server = Name::from_ascii(format!("ns.dns.{CLUSTER_DOMAIN}.")).ok()?;
    let mailbox = Name::from_ascii(format!("hostmaster.{CLUSTER_DOMAIN}.")).ok()?;
    let soa = rdata::SOA::new(server, mailbox, 1, 7200, 1800, 86400, TTL);
    Some(Record::from_rdata(zone, TTL, RData::SOA(soa)))
}
