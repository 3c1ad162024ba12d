//! Service VIPs: address translation in the lab's network namespace, as kube-proxy's iptables mode does it.
//!
//! The namespace belongs to the lab alone, so the whole rule set is replaced at once: `iptables-restore` commits a table
//! as one transaction, and there is never a moment with half the rules. Existing connections keep their translation in
//! conntrack. Cost: one restore (some 20 ms) per published table that changed the rules.

use std::{fmt::Write as _, sync::Arc};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{DNS_IP, KUBERNETES_IP, SERVICE_CIDR, services::ServiceTable};
use crate::tools;

/// The rule set for a table of services, in `iptables-restore` format.
pub(crate) fn rules(table: &ServiceTable) -> String {
    let mut chains = String::new();
    let mut dispatch = String::new();
    let mut balance = String::new();
    let mut refuse = String::new();
    let mut number = 0;
    for service in table.services.values() {
        // What the daemon itself serves is an address of this namespace.
        let Some(vip) = service
            .cluster_ip
            .filter(|ip| *ip != KUBERNETES_IP && *ip != DNS_IP)
        else {
            continue;
        };
        for port in &service.ports {
            let protocol = match port.protocol.as_str() {
                "TCP" => "tcp",
                "UDP" => "udp",
                // SCTP needs kernel modules that a lab cannot count on; such a port is simply not there.
                _ => continue,
            };
            let matching = format!(
                "-d {vip}/32 -p {protocol} -m {protocol} --dport {}",
                port.port
            );
            let comment = format!(
                "-m comment --comment \"{}/{}:{}\"",
                service.namespace, service.name, port.name
            );
            if port.targets.is_empty() {
                let _ = writeln!(
                    refuse,
                    "-A MESH-REFUSE {matching} {comment} -j REJECT --reject-with icmp-port-unreachable"
                );
                continue;
            }
            let chain = format!("MESH-SVC-{number}");
            number += 1;
            let _ = writeln!(chains, ":{chain} - [0:0]");
            let _ = writeln!(dispatch, "-A MESH-SERVICES {matching} {comment} -j {chain}");
            let count = port.targets.len();
            for (index, target) in port.targets.iter().enumerate() {
                let left = count - index;
                let chance = if left == 1 {
                    String::new()
                } else {
                    #[expect(clippy::cast_precision_loss, reason = "endpoint counts are small")]
                    let probability = 1.0 / left as f64;
                    format!("-m statistic --mode random --probability {probability:.10} ")
                };
                let _ = writeln!(
                    balance,
                    "-A {chain} -p {protocol} {chance}-j DNAT --to-destination {target}"
                );
            }
        }
    }
    format!(
        "*nat\n\
         :PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n\
         :MESH-SERVICES - [0:0]\n{chains}\
         -A PREROUTING -d {SERVICE_CIDR} -j MESH-SERVICES\n\
         -A OUTPUT -d {SERVICE_CIDR} -j MESH-SERVICES\n\
         {dispatch}{balance}\
         {hairpin}\
         COMMIT\n\
         *filter\n\
         :INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:MESH-REFUSE - [0:0]\n\
         -A FORWARD -d {SERVICE_CIDR} -j MESH-REFUSE\n\
         -A OUTPUT -d {SERVICE_CIDR} ! -o lo -j MESH-REFUSE\n\
         {refuse}\
         -A MESH-REFUSE -j REJECT --reject-with icmp-port-unreachable\n\
         COMMIT\n",
        hairpin = hairpin(table),
    )
}

/// A pod that reaches itself through a VIP must see the gateway as its peer, or it would answer itself directly.
fn hairpin(table: &ServiceTable) -> String {
    let mut ips: Vec<_> = table
        .services
        .values()
        .flat_map(|s| &s.ports)
        .flat_map(|p| &p.targets)
        .map(|target| *target.ip())
        .collect();
    ips.sort_unstable();
    ips.dedup();
    ips.iter().fold(String::new(), |mut text, ip| {
        let _ = writeln!(text, "-A POSTROUTING -s {ip}/32 -d {ip}/32 -j MASQUERADE");
        text
    })
}

/// Keeps the rules equal to the table, until `stop`.
pub(crate) async fn run(mut table: watch::Receiver<Arc<ServiceTable>>, stop: CancellationToken) {
    let mut applied = String::new();
    loop {
        let wanted = rules(&table.borrow_and_update());
        let mut retry = false;
        if wanted != applied {
            let input = wanted.clone();
            let result = tokio::task::spawn_blocking(move || {
                tools::feed("iptables-restore", &["-w", "5"], &input)
            })
            .await;
            match result {
                Ok(Ok(())) => applied = wanted,
                Ok(Err(error)) => {
                    tracing::error!("service VIPs keep their previous rules: {error:#}");
                    retry = true;
                }
                Err(_) => return,
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = table.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(std::time::Duration::from_secs(1)), if retry => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::services::{Kind, PortEntry, ServiceEntry};

    fn table(targets: &[&str]) -> ServiceTable {
        let entry = ServiceEntry {
            namespace: "default".into(),
            name: "web".into(),
            kind: Kind::ClusterIp,
            cluster_ip: Some([10, 96, 3, 4].into()),
            ports: vec![PortEntry {
                name: "http".into(),
                protocol: "TCP".into(),
                port: 80,
                node_port: None,
                targets: targets.iter().map(|t| t.parse().unwrap()).collect(),
            }],
            hosts: Vec::new(),
        };
        ServiceTable {
            services: [(("default".to_owned(), "web".to_owned()), entry)].into(),
        }
    }

    #[test]
    fn endpoints_share_connections_evenly() {
        let text = rules(&table(&[
            "10.244.0.3:8080",
            "10.244.0.4:8080",
            "10.244.0.5:8080",
        ]));
        assert!(
            text.contains("--probability 0.3333333333 -j DNAT --to-destination 10.244.0.3:8080"),
            "{text}"
        );
        assert!(
            text.contains("--probability 0.5000000000 -j DNAT --to-destination 10.244.0.4:8080")
        );
        assert!(text.contains("-A MESH-SVC-0 -p tcp -j DNAT --to-destination 10.244.0.5:8080"));
    }

    #[test]
    fn a_service_without_endpoints_refuses() {
        let text = rules(&table(&[]));
        assert!(
            text.contains("-A MESH-REFUSE -d 10.96.3.4/32 -p tcp -m tcp --dport 80"),
            "{text}"
        );
        assert!(!text.contains("MESH-SVC-0"));
    }
}
