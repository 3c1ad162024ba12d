//! What experiments ask the mesh: where the ingress is, what every Envoy has, what Pilot believes it sent.
//!
//! Whether a change "arrived" is never taken from one side's word. It is read three times: in Envoy's own config dump
//! (admin port 15000), in Pilot's `/debug/syncz` (sent and acknowledged nonces), and in responses through the ingress.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use kube::api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::cluster::{Cluster, FIELD_MANAGER, pod_id};
use crate::error::{ChaosError, Result};
use crate::load::Connection;

/// Envoy's admin port inside a pod.
pub const ENVOY_ADMIN: u16 = 15000;
/// The agent's readiness port inside a pod.
pub const AGENT_STATUS: u16 = 15020;
/// Pilot's HTTP port: readiness and debug.
pub const PILOT_HTTP: u16 = 8080;
/// Response header that tells which generation of the probe route answered.
pub const GENERATION_HEADER: &str = "x-chaos-generation";

/// The application that the load goes to.
#[derive(Debug, Clone)]
pub struct Application {
    /// Value of its entry service's label `app`.
    pub entry: String,
    /// Port of the entry service.
    pub port: u16,
    /// A page of it.
    pub path: String,
}

impl Default for Application {
    /// Bookinfo.
    fn default() -> Self {
        Self {
            entry: "productpage".to_owned(),
            port: 9080,
            path: "/productpage".to_owned(),
        }
    }
}

/// `host:port` under which the ingress gateway's plain HTTP port is reached from here.
pub async fn ingress(cluster: &Cluster) -> Result<String> {
    let name = "istio-ingressgateway";
    let namespace = &cluster.istio_namespace;
    let service = Api::<Service>::namespaced(cluster.client.clone(), namespace)
        .get(name)
        .await
        .map_err(ChaosError::kube(format!(
            "reading Service {namespace}/{name}"
        )))?;
    ingress_address(&service).ok_or_else(|| {
        ChaosError::Precondition(format!(
            "Service {namespace}/{name} has no address yet: status.loadBalancer.ingress is empty or there is no port 80; \
             name the address yourself with --ingress HOST:PORT"
        ))
    })
}

/// On a loopback address only the node port listens; elsewhere the service port does.
fn ingress_address(service: &Service) -> Option<String> {
    let ports = service.spec.as_ref()?.ports.as_ref()?;
    let port = ports
        .iter()
        .find(|p| p.name.as_deref() == Some("http2"))
        .or_else(|| ports.iter().find(|p| p.port == 80))?;
    let status = service.status.as_ref()?.load_balancer.as_ref()?;
    let point = status.ingress.as_ref()?.first()?;
    let host = point.ip.as_ref().or(point.hostname.as_ref())?;
    let loopback = host
        .parse::<std::net::IpAddr>()
        .is_ok_and(|ip| ip.is_loopback());
    let number = if loopback { port.node_port? } else { port.port };
    Some(match host.contains(':') {
        true => format!("[{host}]:{number}"),
        false => format!("{host}:{number}"),
    })
}

/// What Pilot says about one proxy in `/debug/syncz`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct SyncStatus {
    /// `<pod>.<namespace>`.
    pub proxy: String,
    /// Istio version of the proxy.
    pub istio_version: String,
    /// Proxy version, when the Istio version is unknown.
    pub proxy_version: String,
    /// Nonces sent and acknowledged, per type.
    pub cluster_sent: String,
    /// See above.
    pub cluster_acked: String,
    /// See above.
    pub listener_sent: String,
    /// See above.
    pub listener_acked: String,
    /// See above.
    pub route_sent: String,
    /// See above.
    pub route_acked: String,
    /// See above.
    pub endpoint_sent: String,
    /// See above.
    pub endpoint_acked: String,
    /// Why the last answered response was refused, per type; empty if it was accepted.
    pub cluster_error: String,
    /// See above.
    pub listener_error: String,
    /// See above.
    pub route_error: String,
    /// See above.
    pub endpoint_error: String,
}

impl SyncStatus {
    /// `(type, sent, acked)` for the four types.
    pub fn types(&self) -> [(&'static str, &str, &str); 4] {
        [
            ("CDS", &self.cluster_sent, &self.cluster_acked),
            ("LDS", &self.listener_sent, &self.listener_acked),
            ("EDS", &self.endpoint_sent, &self.endpoint_acked),
            ("RDS", &self.route_sent, &self.route_acked),
        ]
    }

    /// `(type, error)` of the types whose last response the proxy refused.
    pub fn refusals(&self) -> impl Iterator<Item = (&'static str, &str)> {
        [
            ("CDS", self.cluster_error.as_str()),
            ("LDS", &self.listener_error),
            ("EDS", &self.endpoint_error),
            ("RDS", &self.route_error),
        ]
        .into_iter()
        .filter(|(_, error)| !error.is_empty())
    }

    /// The types that were sent and not acknowledged.
    pub fn stale(&self) -> Vec<&'static str> {
        let types = self.types().into_iter();
        types
            .filter(|(_, sent, acked)| sent != acked)
            .map(|(name, ..)| name)
            .collect()
    }
}

/// `/debug/syncz` of every running Pilot, by pod name.
pub async fn syncz(cluster: &Cluster) -> Result<BTreeMap<String, Vec<SyncStatus>>> {
    crate::pilot::pages(cluster, "/debug/syncz").await
}

/// `Ok` when every running proxy is connected to some Pilot and has acknowledged all it was sent; else who has not.
pub async fn all_acked(cluster: &Cluster) -> Result<std::result::Result<usize, String>> {
    let known: Vec<SyncStatus> = syncz(cluster).await?.into_values().flatten().collect();
    let mut missing = Vec::new();
    let proxies = cluster.proxies().await?;
    for pod in &proxies {
        let id = format!("{}.{}", pod.name_any(), pod.namespace().unwrap_or_default());
        match known.iter().find(|s| s.proxy == id) {
            None => missing.push(format!("{id} is not connected")),
            Some(status) if !status.stale().is_empty() => {
                missing.push(format!(
                    "{id} has not acknowledged {}",
                    status.stale().join(", ")
                ));
            }
            Some(_) => {}
        }
    }
    Ok(if missing.is_empty() {
        Ok(proxies.len())
    } else {
        Err(missing.join("; "))
    })
}

/// Sum of Envoy's counters `*.update_rejected` over all running proxies, and the names that are not zero.
pub async fn rejected(cluster: &Cluster) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for pod in cluster.proxies().await? {
        let namespace = pod.namespace().unwrap_or_default();
        let path = "/stats?filter=update_rejected&usedonly";
        let reply = cluster
            .pod_get(&namespace, &pod.name_any(), ENVOY_ADMIN, path)
            .await?;
        for line in reply.text().lines() {
            if let Some((name, value)) = line.split_once(": ")
                && value.trim() != "0"
            {
                found.push(format!("{} {name}={}", pod_id(&pod), value.trim()));
            }
        }
    }
    Ok(found)
}

/// A service and a VirtualService of our own, whose every change can be told apart: responses and Envoy's routes carry
/// its generation in a header. It goes through the ingress gateway and through every sidecar, and leaves the user's
/// own config alone.
#[derive(Clone)]
pub struct ProbeRoute {
    cluster: Cluster,
    application: Application,
    gateway: String,
}

impl ProbeRoute {
    /// Name of both objects.
    pub const NAME: &'static str = "chaos-probe";

    /// Finds a Gateway to attach to.
    pub async fn new(cluster: &Cluster, application: &Application) -> Result<Self> {
        let gateways = networking(cluster, "Gateway", "gateways")
            .list(&kube::api::ListParams::default())
            .await
            .map_err(ChaosError::kube(format!(
                "listing Gateways in namespace {}",
                cluster.namespace
            )))?;
        let gateway = gateways
            .items
            .iter()
            .find(|g| g.data["spec"]["selector"]["istio"] == json!("ingressgateway"))
            .ok_or_else(|| {
                ChaosError::Precondition(format!(
                    "namespace {} has no Gateway with selector istio=ingressgateway; apply Bookinfo's bookinfo-gateway first",
                    cluster.namespace
                ))
            })?;
        Ok(Self {
            cluster: cluster.clone(),
            application: application.clone(),
            gateway: gateway.name_any(),
        })
    }

    /// Host of the probe route.
    pub fn host(&self) -> String {
        format!(
            "{}.{}.svc.cluster.local",
            Self::NAME,
            self.cluster.namespace
        )
    }

    /// Creates or changes the route so that it says `generation`.
    pub async fn apply(&self, generation: u32) -> Result<()> {
        let namespace = &self.cluster.namespace;
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": Self::NAME},
            "spec": {
                "selector": {"app": self.application.entry},
                "ports": [{"name": "http", "port": self.application.port}]
            }
        });
        Api::<Service>::namespaced(self.cluster.client.clone(), namespace)
            .patch(Self::NAME, &params, &Patch::Apply(&service))
            .await
            .map_err(ChaosError::kube(format!(
                "applying Service {namespace}/{}",
                Self::NAME
            )))?;
        let route = json!({
            "apiVersion": "networking.istio.io/v1alpha3", "kind": "VirtualService",
            "metadata": {"name": Self::NAME},
            "spec": {
                "hosts": [self.host()],
                "gateways": [self.gateway, "mesh"],
                "http": [{
                    "route": [{"destination": {"host": self.host(), "port": {"number": self.application.port}}}],
                    "headers": {"response": {"set": {GENERATION_HEADER: generation.to_string()}}}
                }]
            }
        });
        networking(&self.cluster, "VirtualService", "virtualservices")
            .patch(Self::NAME, &params, &Patch::Apply(&route))
            .await
            .map_err(ChaosError::kube(format!(
                "applying VirtualService {namespace}/{}",
                Self::NAME
            )))?;
        Ok(())
    }

    /// Removes both objects; absent ones are fine.
    pub async fn remove(self) -> Result<()> {
        let namespace = &self.cluster.namespace;
        let route = networking(&self.cluster, "VirtualService", "virtualservices")
            .delete(Self::NAME, &DeleteParams::default())
            .await;
        gone(route.map(drop), "VirtualService", namespace)?;
        let service = Api::<Service>::namespaced(self.cluster.client.clone(), namespace)
            .delete(Self::NAME, &DeleteParams::default())
            .await;
        gone(service.map(drop), "Service", namespace)
    }

    /// The generation that a response through the ingress carries.
    pub async fn answered(&self, ingress: &str) -> std::result::Result<u32, String> {
        let mut connection = Connection::new(ingress.to_owned());
        let host = self.host();
        let reply = tokio::time::timeout(
            Duration::from_secs(5),
            connection.get(&host, &self.application.path),
        )
        .await
        .map_err(|_| "no answer within 5 s".to_owned())??;
        let value = reply.header(GENERATION_HEADER).and_then(|v| v.parse().ok());
        value.ok_or_else(|| {
            format!(
                "{} without a header {GENERATION_HEADER}",
                if reply.status < 400 {
                    format!("status {}", reply.status)
                } else {
                    reply.describe()
                }
            )
        })
    }

    /// The generation in the routes of every running proxy, read from Envoy itself. `pod → generation`, `None` where
    /// the route is missing.
    pub async fn installed(&self) -> Result<BTreeMap<String, Option<u32>>> {
        let proxies = self.cluster.proxies().await?;
        let asked = proxies.iter().map(|pod| async move {
            let namespace = pod.namespace().unwrap_or_default();
            let path = "/config_dump?resource=dynamic_route_configs";
            let reply = self
                .cluster
                .pod_get(&namespace, &pod.name_any(), ENVOY_ADMIN, path)
                .await?;
            let dump: Value =
                serde_json::from_slice(&reply.body).map_err(|e| ChaosError::PodHttp {
                    pod: pod_id(pod),
                    port: ENVOY_ADMIN,
                    path: path.to_owned(),
                    message: format!("status {}, not JSON: {e}", reply.status),
                })?;
            Ok::<_, ChaosError>((pod_id(pod), generation_in(&dump)))
        });
        let found = futures::future::try_join_all(asked).await?;
        Ok(found.into_iter().collect())
    }

    /// `Ok(proxies)` when every running proxy has `generation` and a response shows it; else what is missing.
    pub async fn arrived(
        &self,
        generation: u32,
        ingress: &str,
    ) -> Result<std::result::Result<usize, String>> {
        let installed = self.installed().await?;
        let behind: Vec<String> = installed
            .iter()
            .filter(|(_, seen)| **seen != Some(generation))
            .map(|(pod, seen)| match seen {
                Some(seen) => format!("{pod} has {seen}"),
                None => format!("{pod} has none"),
            })
            .collect();
        if !behind.is_empty() {
            return Ok(Err(format!(
                "generation {generation} is not everywhere: {}",
                behind.join(", ")
            )));
        }
        Ok(match self.answered(ingress).await {
            Ok(seen) if seen == generation => Ok(installed.len()),
            Ok(seen) => Err(format!("a response shows generation {seen}")),
            Err(text) => Err(text),
        })
    }
}

/// Different generations in words: `1 on all 8 proxies` or `1 on 7, none on 1 proxies`.
pub fn generations(installed: &BTreeMap<String, Option<u32>>) -> String {
    let distinct: BTreeSet<_> = installed.values().collect();
    let name = |g: &Option<u32>| g.map_or("none".to_owned(), |g| g.to_string());
    if let (1, Some(only)) = (distinct.len(), distinct.first()) {
        return format!(
            "generation {} on all {} proxies",
            name(only),
            installed.len()
        );
    }
    let counts: Vec<String> = distinct
        .into_iter()
        .map(|g| {
            let on: Vec<&str> = installed
                .iter()
                .filter(|(_, seen)| *seen == g)
                .map(|(pod, _)| pod.as_str())
                .collect();
            format!("generation {} on {}", name(g), on.join(", "))
        })
        .collect();
    counts.join("; ")
}

fn networking(cluster: &Cluster, kind: &str, plural: &str) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("networking.istio.io", "v1alpha3", kind);
    let resource = ApiResource::from_gvk_with_plural(&kind, plural);
    Api::namespaced_with(cluster.client.clone(), &cluster.namespace, &resource)
}

fn gone(result: std::result::Result<(), kube::Error>, kind: &str, namespace: &str) -> Result<()> {
    match result {
        Ok(()) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(e) => Err(ChaosError::kube(format!(
            "deleting {kind} {namespace}/{}",
            ProbeRoute::NAME
        ))(e)),
    }
}

/// Finds `{"key": "x-chaos-generation", "value": N}` anywhere in a config dump. The lowest wins: an old copy that is
/// still active counts against arrival.
fn generation_in(dump: &Value) -> Option<u32> {
    match dump {
        Value::Object(fields) => {
            let key = fields.get("key").and_then(Value::as_str);
            if key.is_some_and(|k| k.eq_ignore_ascii_case(GENERATION_HEADER)) {
                return fields.get("value").and_then(Value::as_str)?.parse().ok();
            }
            fields.values().filter_map(generation_in).min()
        }
        Value::Array(items) => items.iter().filter_map(generation_in).min(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_port_counts_only_on_loopback() {
        let service = |ip: &str| -> Service {
            serde_json::from_value(json!({
                "spec": {"ports": [
                    {"name": "status-port", "port": 15020, "nodePort": 30001},
                    {"name": "http2", "port": 80, "nodePort": 31380}
                ]},
                "status": {"loadBalancer": {"ingress": [{"ip": ip}]}}
            }))
            .expect("a Service")
        };
        let address = |ip| ingress_address(&service(ip)).expect("an address");
        assert_eq!(address("127.0.0.1"), "127.0.0.1:31380");
        assert_eq!(address("192.0.2.7"), "192.0.2.7:80");
        assert_eq!(address("2001:db8::7"), "[2001:db8::7]:80");
        let pending: Service =
            serde_json::from_value(json!({"spec": {"ports": [{"port": 80}]}})).expect("a Service");
        assert_eq!(ingress_address(&pending), None);
    }

    #[test]
    fn generations_are_found_at_any_depth_and_the_oldest_counts() {
        let header = |n: &str| json!({"header": {"key": "x-chaos-generation", "value": n}});
        let dump = json!({"configs": [
            {"route_config": {"virtual_hosts": [{"routes": [{"response_headers_to_add": [header("2")]}]}]}},
            {"route_config": {"virtual_hosts": [{"response_headers_to_add": [header("1")]}]}},
            {"route_config": {"virtual_hosts": [{"response_headers_to_add": [{"header": {"key": "x-other", "value": "0"}}]}]}}
        ]});
        assert_eq!(generation_in(&dump), Some(1));
        assert_eq!(generation_in(&json!({"configs": []})), None);
    }

    #[test]
    fn sync_status_reads_istios_json_and_says_what_is_stale() {
        let status: SyncStatus = serde_json::from_value(json!({
            "proxy": "a.default", "cluster_sent": "n1", "cluster_acked": "n1",
            "route_sent": "n4", "route_acked": "n3", "endpoint_percent": 100
        }))
        .expect("syncz entry");
        assert_eq!(status.stale(), ["RDS"]);
    }

    #[test]
    fn generations_in_words() {
        let one = BTreeMap::from([("a".to_owned(), Some(1)), ("b".to_owned(), Some(1))]);
        assert_eq!(generations(&one), "generation 1 on all 2 proxies");
        let two = BTreeMap::from([("a".to_owned(), Some(1)), ("b".to_owned(), None)]);
        assert_eq!(generations(&two), "generation none on b; generation 1 on a");
    }
}
