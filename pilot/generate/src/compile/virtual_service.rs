//! VirtualServices as route templates.
//!
//! Every rule × match becomes one [`HttpRoute`]: a finished Envoy route but for the names of its clusters, which depend on the
//! ports of the services a client sees. Filling them in is all that is left to do per scope.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;
use mesh_config::{Meta, Object};
use proto_networking::networking::{
    L4MatchAttributes, RouteDestination, TlsMatchAttributes, VirtualService,
};

use super::{Context, MESH, gateway_name, route_action, route_match};
use crate::{
    envoy::{self, route},
    model::{Labels, Visibility, host},
    report::{Rejection, Rejector},
};

/// A VirtualService, checked and translated.
#[derive(Clone, Debug, PartialEq)]
pub struct VirtualServiceConfig {
    /// Metadata of the object.
    pub meta: Arc<Meta>,
    /// The object's content, to recognise that it did not change.
    pub spec: Arc<VirtualService>,
    /// Fully qualified, usable, without duplicates.
    pub hosts: Vec<Arc<str>>,
    /// Gateways it is bound to, `mesh` included where it applies to sidecars.
    pub gateways: Vec<Arc<str>>,
    /// Who may see it.
    pub visibility: Visibility,
    /// `http` rules, one entry per match, in order.
    pub http: Vec<HttpRoute>,
    /// `tls` rules.
    pub tls: Vec<TlsRoute>,
    /// `tcp` rules.
    pub tcp: Vec<L4Route>,
    /// What could not be used.
    pub rejections: Vec<Rejection>,
}

/// Where a route sends requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// Fully qualified host.
    pub host: Arc<str>,
    /// Subset, or empty.
    pub subset: String,
    /// Port, if the user named one.
    pub port: Option<u32>,
}

/// A destination with its share.
#[derive(Clone, Debug, PartialEq)]
pub struct Weighted {
    /// Where to.
    pub destination: Destination,
    /// At least 1.
    pub weight: u32,
    /// Header operations of this destination; name and weight are still to be filled in.
    pub template: route::weighted_cluster::ClusterWeight,
}

/// Where copies of requests go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// Where to.
    pub destination: Destination,
    /// Share of requests, 1..=100.
    pub percent: u32,
}

/// One Envoy route but for its clusters.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpRoute {
    /// Gateways of the match; empty: those of the VirtualService.
    pub gateways: Vec<Arc<str>>,
    /// Labels the client must have (sidecars only).
    pub source_labels: Labels,
    /// Port the client must call.
    pub port: Option<u32>,
    /// Matches everything that gets here.
    pub catch_all: bool,
    /// Match, name, header operations, filters' options, and the action without clusters.
    pub template: route::Route,
    /// Destinations with a weight of at least 1; empty for redirects and refusals.
    pub destinations: Vec<Weighted>,
    /// Mirror.
    pub mirror: Option<Mirror>,
}

/// Conditions on a connection.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct L4Match {
    /// As for [`HttpRoute`].
    pub gateways: Vec<Arc<str>>,
    /// As for [`HttpRoute`].
    pub source_labels: Labels,
    /// As for [`HttpRoute`].
    pub port: Option<u32>,
    /// Destination addresses; empty: all.
    pub subnets: Vec<IpNet>,
    /// SNI names (tls rules only).
    pub sni_hosts: Vec<String>,
}

/// A `tcp` rule: the first that matches a connection takes it.
#[derive(Clone, Debug, PartialEq)]
pub struct L4Route {
    /// Alternatives; never empty.
    pub matches: Vec<L4Match>,
    /// Shares with a weight of at least 1; never empty.
    pub destinations: Vec<(Destination, u32)>,
}

/// A `tls` rule.
pub type TlsRoute = L4Route;

impl VirtualServiceConfig {
    /// Checks and translates an object. Cost is linear in it.
    pub fn compile(object: &Object<VirtualService>, context: &Context) -> VirtualServiceConfig {
        let (meta, spec) = (&object.meta, &object.spec);
        let namespace = meta.namespace.as_str();
        let mut rejections = Vec::new();
        let mut rejector = Rejector {
            kind: "VirtualService",
            namespace: namespace.into(),
            name: meta.name.as_str().into(),
            out: &mut rejections,
        };
        let gateways: Vec<Arc<str>> = match spec.gateways.as_slice() {
            [] => vec![MESH.into()],
            some => some.iter().map(|g| gateway_name(g, namespace)).collect(),
        };
        let mut hosts: Vec<Arc<str>> = Vec::with_capacity(spec.hosts.len());
        for (i, text) in spec.hosts.iter().enumerate() {
            let resolved = host::resolve(text, namespace, &context.domain);
            if !host::is_valid(&resolved) {
                let reason = format!(
                    "{text:?} is no host; accepted: a DNS name, a wildcard such as *.example.com, or an IP"
                );
                rejector.reject(format!("hosts[{i}]"), reason, "the host is left out");
            } else if !hosts.contains(&resolved) {
                hosts.push(resolved);
            }
        }
        let config_path = format!(
            "/apis/networking.istio.io/v1alpha3/namespaces/{namespace}/virtual-service/{}",
            meta.name
        );
        let mut http = Vec::new();
        for (i, rule) in spec.http.iter().enumerate() {
            let path = format!("http[{i}]");
            let mut action =
                route_action::compile(rule, &path, namespace, &context.domain, &mut rejector);
            action.template.metadata = Some(envoy::config_metadata(&config_path));
            let matches = route_match::compile(rule, &path, namespace, &mut rejector);
            let ends = matches.iter().any(|m| m.catch_all && m.is_unconditional());
            http.extend(matches.into_iter().map(|m| m.with(&action)));
            if ends {
                break;
            }
        }
        let tls = l4_routes(
            "tls",
            spec.tls.iter().map(|r| (&r.r#match, &r.route)),
            namespace,
            context,
            &mut rejector,
        );
        let tcp = l4_routes(
            "tcp",
            spec.tcp.iter().map(|r| (&r.r#match, &r.route)),
            namespace,
            context,
            &mut rejector,
        );
        VirtualServiceConfig {
            meta: meta.clone(),
            spec: spec.clone(),
            hosts,
            gateways,
            visibility: Visibility::of(&spec.export_to, &context.virtual_service_export_to),
            http,
            // A tls rule without SNI would take every connection, encrypted or not.
            tls: tls
                .into_iter()
                .filter(|r| r.matches.iter().all(|m| !m.sni_hosts.is_empty()))
                .collect(),
            tcp,
            rejections,
        }
    }

    /// Whether sidecars use it.
    pub fn on_mesh(&self) -> bool {
        self.gateways.iter().any(|g| &**g == MESH)
    }

    /// Whether routers use it.
    pub fn on_gateways(&self) -> bool {
        self.gateways.iter().any(|g| &**g != MESH)
    }

    /// Label keys that it asks of its clients.
    pub fn source_label_keys(&self) -> impl Iterator<Item = &String> {
        let http = self.http.iter().map(|r| &r.source_labels);
        let l4 = self.tcp.iter().chain(&self.tls).flat_map(|r| &r.matches);
        http.chain(l4.map(|m| &m.source_labels))
            .flat_map(|l| l.keys())
    }

    /// `NAME.NS`, as statistics name it.
    pub fn full_name(&self) -> String {
        format!("{}.{}", self.meta.name, self.meta.namespace)
    }
}

/// What tcp and tls matches have in common.
trait L4MatchSpec {
    fn compile(&self, path: &str, namespace: &str, rejector: &mut Rejector<'_>) -> Option<L4Match>;
}

impl L4MatchSpec for L4MatchAttributes {
    fn compile(&self, path: &str, namespace: &str, rejector: &mut Rejector<'_>) -> Option<L4Match> {
        Some(L4Match {
            gateways: self
                .gateways
                .iter()
                .map(|g| gateway_name(g, namespace))
                .collect(),
            source_labels: self.source_labels.clone(),
            port: (self.port != 0).then_some(self.port),
            subnets: subnets(&self.destination_subnets, path, rejector)?,
            sni_hosts: Vec::new(),
        })
    }
}

impl L4MatchSpec for TlsMatchAttributes {
    fn compile(&self, path: &str, namespace: &str, rejector: &mut Rejector<'_>) -> Option<L4Match> {
        let mut sni_hosts: Vec<String> = Vec::new();
        for (i, sni) in self.sni_hosts.iter().enumerate() {
            let lower = sni.to_ascii_lowercase();
            // A lone `*` would be a chain without SNI condition, which Envoy spells by leaving it out.
            if !host::is_valid(&lower) || lower == "*" {
                let reason = format!(
                    "{sni:?} is no SNI name; accepted: a DNS name or a wildcard such as *.example.com"
                );
                rejector.reject(
                    format!("{path}.sniHosts[{i}]"),
                    reason,
                    "the name is left out",
                );
            } else if !sni_hosts.contains(&lower) {
                sni_hosts.push(lower);
            }
        }
        if sni_hosts.is_empty() {
            rejector.reject(
                format!("{path}.sniHosts"),
                "no usable SNI name is left",
                "the match is left out",
            );
            return None;
        }
        Some(L4Match {
            gateways: self
                .gateways
                .iter()
                .map(|g| gateway_name(g, namespace))
                .collect(),
            source_labels: self.source_labels.clone(),
            port: (self.port != 0).then_some(self.port),
            subnets: subnets(&self.destination_subnets, path, rejector)?,
            sni_hosts,
        })
    }
}

/// All subnets, or `None` if one cannot be read: a match with fewer of them would take connections it should not.
fn subnets(list: &[String], path: &str, rejector: &mut Rejector<'_>) -> Option<Vec<IpNet>> {
    let mut out = Vec::with_capacity(list.len());
    for (i, text) in list.iter().enumerate() {
        let parsed = text
            .parse::<IpNet>()
            .or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        match parsed {
            Ok(net) if !out.contains(&net.trunc()) => out.push(net.trunc()),
            Ok(_) => {}
            Err(_) => {
                let reason = format!(
                    "{text:?} is no subnet; accepted: an address, or a CIDR such as 10.0.0.0/8"
                );
                rejector.reject(
                    format!("{path}.destinationSubnets[{i}]"),
                    reason,
                    "the match is left out",
                );
                return None;
            }
        }
    }
    Some(out)
}

fn l4_routes<'a, M: L4MatchSpec + 'a>(
    kind: &str,
    rules: impl Iterator<Item = (&'a Vec<M>, &'a Vec<RouteDestination>)>,
    namespace: &str,
    context: &Context,
    rejector: &mut Rejector<'_>,
) -> Vec<L4Route> {
    let mut out = Vec::new();
    for (i, (matches, destinations)) in rules.enumerate() {
        let path = format!("{kind}[{i}]");
        let compiled: Vec<L4Match> = matches
            .iter()
            .enumerate()
            .filter_map(|(j, m)| m.compile(&format!("{path}.match[{j}]"), namespace, rejector))
            .collect();
        let matches = if matches.is_empty() && kind == "tcp" {
            vec![L4Match::default()]
        } else {
            compiled
        };
        let several = destinations.len() > 1;
        let destinations: Vec<(Destination, u32)> = destinations
            .iter()
            .enumerate()
            .filter_map(|(j, d)| {
                let path = format!("{path}.route[{j}]");
                let destination = route_action::destination(
                    d.destination.as_ref(),
                    &path,
                    namespace,
                    &context.domain,
                    rejector,
                )?;
                let weight = route_action::weight(d.weight, several, &path, rejector)?;
                Some((destination, weight))
            })
            .collect();
        if matches.is_empty() || destinations.is_empty() {
            rejector.reject(
                path,
                "no usable match or destination is left",
                "the rule is left out",
            );
            continue;
        }
        out.push(L4Route {
            matches,
            destinations,
        });
    }
    out
}
