//! Networks of the mesh, with the names of their gateways resolved.
//!
//! Load assignments hold addresses only, so a gateway that is given by name is looked up here, again every
//! [`AGAIN`] as long as there are names. A name that cannot be resolved keeps the address it had; if it never had one the
//! gateway stays a name, which the snapshot leaves out and reports.

use std::{collections::HashMap, net::IpAddr, sync::Arc, time::Duration};

use mesh_config::mesh::{MeshNetworks, network::istio_network_gateway::Gw};
use mesh_service::{Condition, Drain};
use mesh_sources::NetworksSource;

use crate::inputs::Intake;

/// Names are resolved this often.
const AGAIN: Duration = Duration::from_secs(30);

/// Hands networks to the intake until the drain.
pub(crate) async fn follow(
    source: Arc<NetworksSource>,
    intake: Intake,
    condition: Condition,
    drain: Drain,
) {
    let mut written = source.subscribe();
    let mut known: HashMap<String, Option<IpAddr>> = HashMap::new();
    let mut published: Option<MeshNetworks> = None;
    let mut look = tokio::time::interval(Duration::from_millis(100));
    let mut again = tokio::time::interval(AGAIN);
    loop {
        let status = source.status();
        if status.synced {
            let networks = written.borrow_and_update().clone();
            let resolved = tokio::select! {
                resolved = resolve(&networks, &mut known) => resolved,
                () = drain.begun() => return,
            };
            if published.as_ref() != Some(&resolved) {
                intake.set_networks(Arc::new(resolved.clone()));
                published = Some(resolved);
            }
            condition.met();
        } else {
            condition.missing(status.error.unwrap_or_else(|| "not read yet".to_owned()));
        }
        tokio::select! {
            changed = written.changed() => if changed.is_err() { return },
            // That there are none is a status, not a change.
            _ = look.tick(), if !status.synced => {}
            _ = again.tick(), if !known.is_empty() => {}
            () = drain.begun() => return,
        }
    }
}

/// Puts addresses in place of names.
async fn resolve(
    networks: &MeshNetworks,
    known: &mut HashMap<String, Option<IpAddr>>,
) -> MeshNetworks {
    let mut networks = networks.clone();
    let mut names = HashMap::new();
    for gateway in networks.networks.values_mut().flat_map(|n| &mut n.gateways) {
        let Some(Gw::Address(name)) = &mut gateway.gw else {
            continue;
        };
        if name.parse::<IpAddr>().is_ok() {
            continue;
        }
        let found = match tokio::net::lookup_host((name.as_str(), 0)).await {
            // DNS answers in changing order: always the same choice, or every look would be a change.
            Ok(all) => all.map(|a| a.ip()).min_by_key(|ip| (ip.is_ipv6(), *ip)),
            Err(error) => {
                tracing::warn!(%name, %error, "the gateway of a network cannot be resolved");
                None
            }
        };
        let ip = found.or_else(|| known.get(name).copied().flatten());
        names.insert(name.clone(), ip);
        if let Some(ip) = ip {
            *name = ip.to_string();
        }
    }
    *known = names;
    networks
}
