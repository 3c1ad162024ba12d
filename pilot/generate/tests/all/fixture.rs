//! Inputs from YAML: Kubernetes objects, Istio config, mesh config, and the node of the proxy to generate for.

use std::{net::IpAddr, sync::Arc};

use k8s_openapi::api::{
    core::v1::{Endpoints, Pod, Service},
    discovery::v1::EndpointSlice,
};
use mesh_config::{Configs, MeshConfig, parse};
use pilot_generate::{
    Inputs, Options, Proxy, Report, Scope, Shard, Snapshot,
    envoy::core::Node,
    generate,
    model::{EndpointMap, Registry, ServiceEndpoints, WorkloadMap},
    registry::kubernetes::{self, Context, PodName},
};
use serde_json::Value;

/// One fixture file, read.
pub(crate) struct Fixture {
    pub(crate) inputs: Inputs,
    pub(crate) proxies: Vec<Proxy>,
}

/// Everything generated for one proxy.
pub(crate) struct Output {
    pub(crate) clusters: Vec<pilot_generate::envoy::cluster::Cluster>,
    pub(crate) listeners: Vec<pilot_generate::envoy::listener::Listener>,
    pub(crate) routes: Vec<pilot_generate::envoy::route::RouteConfiguration>,
    pub(crate) endpoints: Vec<pilot_generate::envoy::endpoint::ClusterLoadAssignment>,
    pub(crate) report: Report,
}

pub(crate) fn context() -> Context {
    Context {
        cluster: "Kubernetes".into(),
        domain: "cluster.local".to_owned(),
        trust_domain: "cluster.local".to_owned(),
        default_export_to: vec!["*".to_owned()],
    }
}

impl Fixture {
    pub(crate) fn parse(text: &str) -> Fixture {
        let docs: Vec<Value> = text
            .split("\n---")
            .filter(|doc| {
                doc.lines()
                    .any(|l| !l.trim().is_empty() && !l.trim_start().starts_with('#'))
            })
            .map(|doc| serde_saphyr::from_str(doc).unwrap_or_else(|e| panic!("{e}\n{doc}")))
            .collect();
        let kind = |doc: &Value| doc["kind"].as_str().unwrap_or_default().to_owned();
        fn all<T: serde::de::DeserializeOwned>(docs: &[Value], kind: &str) -> Vec<T> {
            docs.iter()
                .filter(|d| d["kind"] == kind)
                .map(|d| {
                    serde_json::from_value(d.clone()).unwrap_or_else(|e| panic!("{kind}: {e}"))
                })
                .collect()
        }
        let context = context();
        let mut workloads = WorkloadMap::default();
        for pod in all::<Pod>(&docs, "Pod") {
            if let Some(pod) = kubernetes::workload(&pod, None, &context) {
                workloads.extend(pod.ips.iter().map(|ip| (*ip, pod.workload.clone())));
            }
        }
        let lookup = |ip: IpAddr, _: Option<PodName<'_>>| workloads.get(&ip).cloned();
        let services = all::<Service>(&docs, "Service")
            .iter()
            .filter_map(|s| kubernetes::service(s, &context))
            .map(Arc::new)
            .collect();
        let mut endpoints = EndpointMap::default();
        for object in all::<Endpoints>(&docs, "Endpoints") {
            let key = context.key(
                object.metadata.name.as_deref().unwrap(),
                object.metadata.namespace.as_deref().unwrap(),
            );
            endpoints.insert(
                key,
                Arc::new(kubernetes::endpoints(&object, &lookup, &context).0),
            );
        }
        for slice in all::<EndpointSlice>(&docs, "EndpointSlice") {
            let name =
                slice.metadata.labels.as_ref().unwrap()["kubernetes.io/service-name"].clone();
            let key = context.key(&name, slice.metadata.namespace.as_deref().unwrap());
            let (mut set, _) = kubernetes::endpoint_slices([&slice], &lookup, &context);
            if let Some(before) = endpoints.get(&key) {
                set = ServiceEndpoints::new(
                    before
                        .endpoints
                        .iter()
                        .cloned()
                        .chain(set.endpoints)
                        .collect(),
                );
            }
            endpoints.insert(key, Arc::new(set));
        }
        let istio: Vec<Value> = docs
            .iter()
            .filter(|d| {
                d["apiVersion"]
                    .as_str()
                    .is_some_and(|v| v.contains("istio.io") || d["kind"] == "Ingress")
            })
            .cloned()
            .collect();
        let text: String = istio.iter().map(|d| format!("---\n{d}\n")).collect();
        // Not validated on purpose: what gets past validation must not hurt either.
        let parsed = parse::from_yaml(
            &text,
            parse::Options {
                file: None,
                default_namespace: "default",
            },
        );
        assert!(parsed.errors.is_empty(), "{:?}", parsed.errors);
        let mesh = docs
            .iter()
            .find(|d| kind(d) == "MeshConfig")
            .map_or_else(MeshConfig::default, |d| {
                MeshConfig::from_json(d["spec"].clone()).unwrap_or_else(|e| panic!("{e:?}"))
            });
        let asked = |name: &str| {
            let of_kind = |d: &&Value| kind(d) == "Options";
            docs.iter()
                .find(of_kind)
                .is_some_and(|d| d["spec"][name] == true)
        };
        let options = Options {
            redis_filter: asked("redis_filter"),
            ..Options::default()
        };
        let networks = docs
            .iter()
            .find(|d| kind(d) == "MeshNetworks")
            .map(|d| serde_json::from_value(d["spec"].clone()).unwrap())
            .unwrap_or_default();
        let proxies = docs
            .iter()
            .filter(|d| kind(d) == "Proxy")
            .map(|d| {
                let node: Node = proto_envoy::json::from_json(&d["node"]).unwrap();
                Proxy::from_node(&node).unwrap()
            })
            .collect();
        Fixture {
            inputs: Inputs {
                mesh: Arc::new(mesh),
                networks: Arc::new(networks),
                options: Arc::new(options),
                configs: Arc::new(Configs::from_objects(parsed.objects)),
                shards: vec![Shard {
                    services: Arc::new(services),
                    endpoints: Arc::new(endpoints),
                    workloads: Arc::new(workloads),
                    ..Shard::new("Kubernetes", Registry::Kubernetes)
                }],
            },
            proxies,
        }
    }

    pub(crate) fn output(&self) -> Output {
        let snapshot = Arc::new(Snapshot::build(&self.inputs, None));
        Output::of(&snapshot, &self.proxies[0])
    }
}

impl Output {
    pub(crate) fn of(snapshot: &Arc<Snapshot>, proxy: &Proxy) -> Output {
        use pilot_generate::envoy::cluster::cluster::{ClusterDiscoveryType, DiscoveryType};
        let scope = Scope::of(snapshot, proxy);
        let mut report = Report::default();
        report.merge(snapshot.report());
        let clusters = generate::clusters(&scope, proxy, &mut report);
        let eds = Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into()));
        let endpoints = clusters
            .iter()
            .filter(|c| c.cluster_discovery_type == eds)
            .map(|c| generate::endpoints(&scope, &c.name, &mut report))
            .collect();
        let listeners = generate::listeners(&scope, proxy, &mut report);
        let routes = generate::route_names(&scope)
            .iter()
            .map(|name| generate::route(&scope, name, &mut report).message)
            .collect();
        Output {
            clusters: clusters.into_iter().map(|c| c.message).collect(),
            listeners: listeners.into_iter().map(|l| l.message).collect(),
            routes,
            endpoints,
            report,
        }
    }
}
