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
/// Aliases of aliases that are followed.
const LONGEST_CHAIN: u32 = 8;

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
            let outcome = resolve(table, question.name(), question.query_type(), 0);
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

fn resolve(table: &ServiceTable, name: &Name, kind: RecordType, depth: u32) -> Outcome {
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
            Some(service) => service_records(table, service, name, kind, depth),
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

fn service_records(
    table: &ServiceTable,
    service: &ServiceEntry,
    name: &Name,
    kind: RecordType,
    depth: u32,
) -> Outcome {
    if let Kind::ExternalName(target) = &service.kind {
        let Ok(target) = Name::from_ascii(format!("{}.", target.trim_end_matches('.'))) else {
            return Outcome::found(Vec::new());
        };
        let alias = Record::from_rdata(
            name.clone(),
            TTL,
            RData::CNAME(rdata::CNAME(target.clone())),
        );
        let mut outcome = Outcome::found(vec![alias]);
        // Stub resolvers expect the whole chain, as far as this server knows it.
        if kind != RecordType::CNAME && depth < LONGEST_CHAIN {
            outcome
                .answers
                .extend(resolve(table, &target, kind, depth + 1).answers);
        }
        return outcome;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::services::Host;

    fn table() -> ServiceTable {
        let service =
            |name: &str, kind: Kind, cluster_ip: Option<[u8; 4]>, hosts: &[(&str, [u8; 4])]| {
                let ports = vec![PortEntry {
                    name: "http".into(),
                    protocol: "TCP".into(),
                    port: 80,
                    node_port: None,
                    targets: hosts
                        .iter()
                        .map(|(_, ip)| std::net::SocketAddrV4::new((*ip).into(), 8080))
                        .collect(),
                }];
                let hosts = hosts
                    .iter()
                    .map(|(name, ip)| Host {
                        ip: (*ip).into(),
                        hostname: (!name.is_empty()).then(|| (*name).to_owned()),
                    })
                    .collect();
                let entry = ServiceEntry {
                    namespace: "ns".into(),
                    name: name.into(),
                    kind,
                    cluster_ip: cluster_ip.map(Into::into),
                    ports,
                    hosts,
                };
                (("ns".to_owned(), name.to_owned()), entry)
            };
        let hosts: &[(&str, [u8; 4])] = &[("db-0", [10, 244, 0, 17]), ("", [10, 244, 0, 18])];
        ServiceTable {
            services: [
                service("web", Kind::ClusterIp, Some([10, 96, 1, 2]), &[]),
                service("db", Kind::ClusterIp, None, hosts),
                service("empty", Kind::ClusterIp, None, &[]),
                service(
                    "alias",
                    Kind::ExternalName("web.ns.svc.cluster.local".into()),
                    None,
                    &[],
                ),
                service(
                    "loop",
                    Kind::ExternalName("loop.ns.svc.cluster.local".into()),
                    None,
                    &[],
                ),
            ]
            .into(),
        }
    }

    fn ask(name: &str, kind: RecordType) -> (ResponseCode, Vec<String>) {
        let name = Name::from_ascii(format!("{name}.")).unwrap();
        let outcome = resolve(&table(), &name, kind, 0);
        (
            outcome.code,
            outcome
                .answers
                .iter()
                .map(|record| record.data.to_string())
                .collect(),
        )
    }

    #[test]
    fn every_sort_of_name() {
        use RecordType::{A, AAAA, PTR, SRV};
        let ok = |answers: &[&str]| {
            (
                ResponseCode::NoError,
                answers.iter().map(ToString::to_string).collect::<Vec<_>>(),
            )
        };
        let missing = (ResponseCode::NXDomain, Vec::new());
        let zone = "ns.svc.cluster.local";
        assert_eq!(ask(&format!("web.{zone}"), A), ok(&["10.96.1.2"]));
        assert_eq!(
            ask(&format!("WEB.{zone}"), AAAA),
            ok(&[]),
            "the name exists, the type does not"
        );
        assert_eq!(
            ask(&format!("db.{zone}"), A),
            ok(&["10.244.0.17", "10.244.0.18"])
        );
        assert_eq!(ask(&format!("db-0.db.{zone}"), A), ok(&["10.244.0.17"]));
        assert_eq!(
            ask(&format!("10-244-0-18.db.{zone}"), A),
            ok(&["10.244.0.18"])
        );
        assert_eq!(ask(&format!("empty.{zone}"), A), missing);
        assert_eq!(ask(&format!("nobody.{zone}"), A), missing);
        assert_eq!(ask("example.com", A), missing);
        assert_eq!(
            ask("web.ns.svc.cluster.local.ns.svc.cluster.local", A),
            missing
        );
        assert_eq!(
            ask(&format!("_http._tcp.web.{zone}"), SRV),
            ok(&["0 100 80 web.ns.svc.cluster.local."])
        );
        assert_eq!(ask(&format!("_http._tcp.db.{zone}"), SRV).1.len(), 2);
        assert_eq!(ask(&format!("_grpc._tcp.web.{zone}"), SRV), missing);
        assert_eq!(
            ask("2.1.96.10.in-addr.arpa", PTR),
            ok(&["web.ns.svc.cluster.local."])
        );
        assert_eq!(
            ask("10-244-0-9.ns.pod.cluster.local", A),
            ok(&["10.244.0.9"])
        );
        assert_eq!(
            ask(&format!("alias.{zone}"), A),
            ok(&["web.ns.svc.cluster.local.", "10.96.1.2"])
        );
        assert_eq!(
            ask(&format!("loop.{zone}"), A).0,
            ResponseCode::NoError,
            "a loop ends"
        );
    }

    #[test]
    fn garbage_gets_no_answer_and_long_answers_are_cut_for_udp() {
        assert_eq!(answer(b"\x00\x01garbage", &table(), true), None);
        let mut many = table();
        let hosts = (0..100)
            .map(|n| Host {
                ip: [10, 244, 1, n].into(),
                hostname: None,
            })
            .collect();
        many.services
            .get_mut(&("ns".into(), "db".into()))
            .unwrap()
            .hosts = hosts;
        let mut query = Message::query();
        query.add_query(hickory_proto::op::Query::query(
            Name::from_ascii("db.ns.svc.cluster.local.").unwrap(),
            RecordType::A,
        ));
        let query = query.to_vec().unwrap();
        let short = Message::from_vec(&answer(&query, &many, true).unwrap()).unwrap();
        assert!(short.metadata.truncation);
        let full = Message::from_vec(&answer(&query, &many, false).unwrap()).unwrap();
        assert_eq!(full.answers.len(), 100);
    }
}
