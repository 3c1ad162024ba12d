//! DestinationRules with every number checked, ready to be laid over a cluster.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use mesh_config::{Meta, Object};
use proto_networking::networking::{
    ConnectionPoolSettings, DestinationRule, LoadBalancerSettings, OutlierDetection as OutlierSpec,
    TlsSettings, TrafficPolicy,
    connection_pool_settings::tcp_settings::TcpKeepalive,
    load_balancer_settings::{LbPolicy, SimpleLb, consistent_hash_lb},
};

use super::{Context, Tls, TlsPolicyMode, duration, tls};
use crate::{
    envoy::{self, cluster, safe},
    model::{Labels, Visibility, host},
    report::{Rejection, Rejector},
};

/// Envoy's bound on ring sizes.
const MAX_RING: u64 = 8 * 1024 * 1024;

/// A DestinationRule, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct DestinationRuleConfig {
    /// Metadata of the object.
    pub meta: Arc<Meta>,
    /// The object's content, to recognise that it did not change.
    pub spec: Arc<DestinationRule>,
    /// Fully qualified; may be a wildcard.
    pub host: Arc<str>,
    /// Who may see it.
    pub visibility: Visibility,
    /// Rule-level policy.
    pub policy: Policy,
    /// Subsets with unique names.
    pub subsets: Vec<SubsetConfig>,
    /// What could not be used.
    pub rejections: Vec<Rejection>,
}

/// A subset.
#[derive(Clone, Debug, PartialEq)]
pub struct SubsetConfig {
    /// Unique within the host.
    pub name: Arc<str>,
    /// What endpoints must carry.
    pub labels: Arc<Labels>,
    /// Laid over the rule's policy.
    pub policy: Policy,
}

/// A traffic policy. A component that is absent was not mentioned.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Policy {
    /// Connection pool.
    pub pool: Option<Pool>,
    /// Outlier detection and the panic threshold in percent that goes with it.
    pub outlier: Option<(cluster::OutlierDetection, u32)>,
    /// Load balancing.
    pub lb: Option<LoadBalancer>,
    /// TLS towards the service.
    pub tls: Option<Tls>,
    /// Policies of single ports: they replace all four components.
    pub ports: BTreeMap<u32, Policy>,
}

impl Policy {
    /// What holds for a port: its own settings alone, or these.
    pub fn for_port(&self, port: u32) -> &Policy {
        self.ports.get(&port).unwrap_or(self)
    }

    /// Lays `over` on top, component by component.
    pub fn overlaid(&self, over: &Policy) -> Policy {
        Policy {
            pool: match (self.pool, over.pool) {
                (Some(under), Some(over)) => Some(over.over(under)),
                (under, over) => over.or(under),
            },
            outlier: over.outlier.clone().or_else(|| self.outlier.clone()),
            lb: over.lb.clone().or_else(|| self.lb.clone()),
            tls: over.tls.clone().or_else(|| self.tls.clone()),
            ports: BTreeMap::new(),
        }
    }
}

/// Limits of a connection pool; absent ones are unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[allow(missing_docs)] // the fields are those of connectionPool
pub struct Pool {
    pub max_connections: Option<u32>,
    pub connect_timeout: Option<Duration>,
    pub keepalive: Option<Keepalive>,
    pub max_pending_requests: Option<u32>,
    pub max_requests: Option<u32>,
    pub max_requests_per_connection: Option<u32>,
    pub max_retries: Option<u32>,
    pub idle_timeout: Option<Duration>,
}

impl Pool {
    /// This pool over another: its limits alone count, what else it leaves out stays.
    fn over(self, under: Pool) -> Pool {
        Pool {
            connect_timeout: self.connect_timeout.or(under.connect_timeout),
            keepalive: match (self.keepalive, under.keepalive) {
                (Some(over), Some(under)) => Some(over.over(under)),
                (over, under) => over.or(under),
            },
            max_requests_per_connection: self
                .max_requests_per_connection
                .or(under.max_requests_per_connection),
            idle_timeout: self.idle_timeout.or(under.idle_timeout),
            ..self
        }
    }
}

/// TCP keepalive; absent parts take the system's defaults.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[allow(missing_docs)]
pub struct Keepalive {
    pub probes: Option<u32>,
    pub time: Option<u32>,
    pub interval: Option<u32>,
}

impl Keepalive {
    /// This setting, completed by another.
    pub fn over(self, under: Keepalive) -> Keepalive {
        Keepalive {
            probes: self.probes.or(under.probes),
            time: self.time.or(under.time),
            interval: self.interval.or(under.interval),
        }
    }

    /// Reads the setting; seconds are whole.
    pub fn of(spec: &TcpKeepalive) -> Keepalive {
        let seconds = |d: &Option<proto_networking::Duration>| {
            d.as_ref()
                .and_then(|d| u32::try_from(d.seconds).ok())
                .filter(|s| (1..=65535).contains(s))
        };
        Keepalive {
            probes: (1..=1000).contains(&spec.probes).then_some(spec.probes),
            time: seconds(&spec.time),
            interval: seconds(&spec.interval),
        }
    }
}

/// How a host is chosen.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum LoadBalancer {
    RoundRobin,
    LeastRequest,
    Random,
    /// Keep the client's destination address.
    Passthrough,
    /// By hash over a ring.
    RingHash {
        key: Option<HashKey>,
        minimum_ring_size: u64,
    },
}

/// What is hashed.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum HashKey {
    Header(String),
    Cookie {
        name: String,
        path: String,
        ttl: Option<Duration>,
    },
    SourceIp,
}

impl DestinationRuleConfig {
    /// Checks an object; `None` if its host cannot be any service's (the rejection is then in `orphaned`).
    pub fn compile(
        object: &Object<DestinationRule>,
        context: &Context,
        orphaned: &mut Vec<Rejection>,
    ) -> Option<DestinationRuleConfig> {
        let (meta, spec) = (&object.meta, &object.spec);
        let mut rejections = Vec::new();
        let mut rejector = Rejector {
            kind: "DestinationRule",
            namespace: meta.namespace.as_str().into(),
            name: meta.name.as_str().into(),
            out: &mut rejections,
        };
        let host = host::resolve(&spec.host, &meta.namespace, &context.domain);
        if !host::is_valid(&host) {
            let reason = format!(
                "{:?} is no host; accepted: the name of a service, or a wildcard",
                spec.host
            );
            rejector.reject("host", reason, "the rule is left out");
            orphaned.append(&mut rejections);
            return None;
        }
        let policy = policy(spec.traffic_policy.as_ref(), "trafficPolicy", &mut rejector);
        let mut subsets: Vec<SubsetConfig> = Vec::with_capacity(spec.subsets.len());
        for (i, subset) in spec.subsets.iter().enumerate() {
            let path = format!("subsets[{i}]");
            let usable = !subset.name.is_empty()
                && subset
                    .name
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
            if !usable {
                let reason = format!(
                    "{:?} is no subset name; accepted: letters, digits, - _ .",
                    subset.name
                );
                rejector.reject(format!("{path}.name"), reason, "the subset is left out");
                continue;
            }
            subsets.push(SubsetConfig {
                name: subset.name.as_str().into(),
                labels: Arc::new(subset.labels.clone()),
                policy: self::policy(
                    subset.traffic_policy.as_ref(),
                    &format!("{path}.trafficPolicy"),
                    &mut rejector,
                ),
            });
        }
        Some(DestinationRuleConfig {
            meta: meta.clone(),
            spec: spec.clone(),
            host,
            visibility: Visibility::of(&spec.export_to, &context.destination_rule_export_to),
            policy,
            subsets,
            rejections,
        })
    }
}

impl DestinationRuleConfig {
    /// Whether some policy asks for mesh mTLS.
    pub(crate) fn uses_mesh_tls(&self) -> bool {
        let policies = std::iter::once(&self.policy).chain(self.subsets.iter().map(|s| &s.policy));
        let mut all = policies.flat_map(|p| std::iter::once(p).chain(p.ports.values()));
        all.any(|p| {
            p.tls
                .as_ref()
                .is_some_and(|t| t.mode == TlsPolicyMode::IstioMutual)
        })
    }
}

fn policy(spec: Option<&TrafficPolicy>, path: &str, rejector: &mut Rejector<'_>) -> Policy {
    let Some(spec) = spec else {
        return Policy::default();
    };
    let mut out = components(
        spec.connection_pool.as_ref(),
        spec.outlier_detection.as_ref(),
        spec.load_balancer.as_ref(),
        spec.tls.as_ref(),
        path,
        rejector,
    );
    for (i, port) in spec.port_level_settings.iter().enumerate() {
        let path = format!("{path}.portLevelSettings[{i}]");
        let Some(number) = port
            .port
            .as_ref()
            .map(|p| p.number)
            .filter(|n| (1..=65535).contains(n))
        else {
            rejector.reject(
                format!("{path}.port.number"),
                "a port is required; accepted: 1 to 65535",
                "the entry is left out",
            );
            continue;
        };
        let components = components(
            port.connection_pool.as_ref(),
            port.outlier_detection.as_ref(),
            port.load_balancer.as_ref(),
            port.tls.as_ref(),
            &path,
            rejector,
        );
        out.ports.entry(number).or_insert(components);
    }
    out
}

fn components(
    pool: Option<&ConnectionPoolSettings>,
    outlier: Option<&OutlierSpec>,
    lb: Option<&LoadBalancerSettings>,
    tls: Option<&TlsSettings>,
    path: &str,
    rejector: &mut Rejector<'_>,
) -> Policy {
    Policy {
        pool: pool.map(|p| self::pool(p, &format!("{path}.connectionPool"), rejector)),
        outlier: outlier.map(|o| self::outlier(o, &format!("{path}.outlierDetection"), rejector)),
        lb: lb.map(|l| load_balancer(l, &format!("{path}.loadBalancer"), rejector)),
        tls: tls.map(|t| tls::client(t, &format!("{path}.tls"), rejector)),
        ports: BTreeMap::new(),
    }
}

/// A limit: 0 is unset, and a negative one cannot be meant.
fn limit(value: i32, field: String, rejector: &mut Rejector<'_>) -> Option<u32> {
    match u32::try_from(value) {
        Ok(0) => None,
        Ok(limit) => Some(limit),
        Err(_) => {
            rejector.reject(
                field,
                format!("{value} is negative; accepted: 1 or more"),
                "there is no limit",
            );
            None
        }
    }
}

fn positive(
    value: Option<&proto_networking::Duration>,
    field: String,
    rejector: &mut Rejector<'_>,
) -> Option<Duration> {
    match value.map(duration).transpose() {
        Ok(time) => time.filter(|t| *t >= Duration::from_millis(1)),
        Err(reason) => {
            rejector.reject(field, reason, "the default holds");
            None
        }
    }
}

fn pool(spec: &ConnectionPoolSettings, path: &str, rejector: &mut Rejector<'_>) -> Pool {
    let mut out = Pool::default();
    if let Some(tcp) = &spec.tcp {
        out.max_connections = limit(
            tcp.max_connections,
            format!("{path}.tcp.maxConnections"),
            rejector,
        );
        out.connect_timeout = positive(
            tcp.connect_timeout.as_ref(),
            format!("{path}.tcp.connectTimeout"),
            rejector,
        );
        out.keepalive = tcp.tcp_keepalive.as_ref().map(Keepalive::of);
    }
    if let Some(http) = &spec.http {
        let mut limit = |value, field: &str| limit(value, format!("{path}.http.{field}"), rejector);
        out.max_pending_requests =
            limit(http.http1_max_pending_requests, "http1MaxPendingRequests");
        out.max_requests = limit(http.http2_max_requests, "http2MaxRequests");
        out.max_requests_per_connection =
            limit(http.max_requests_per_connection, "maxRequestsPerConnection");
        out.max_retries = limit(http.max_retries, "maxRetries");
        out.idle_timeout = positive(
            http.idle_timeout.as_ref(),
            format!("{path}.http.idleTimeout"),
            rejector,
        );
    }
    out
}

/// Consecutive gateway errors eject (502, 503, 504); a plain 500 does not. Fields that are 0 keep Envoy's defaults.
fn outlier(
    spec: &OutlierSpec,
    path: &str,
    rejector: &mut Rejector<'_>,
) -> (cluster::OutlierDetection, u32) {
    let errors = limit(
        spec.consecutive_errors,
        format!("{path}.consecutiveErrors"),
        rejector,
    );
    let percent = |value: i32, field: &str, rejector: &mut Rejector<'_>| match u32::try_from(value)
    {
        Ok(value) if value <= 100 => value,
        _ => {
            let reason = format!("{value} is no percentage; accepted: 0 to 100");
            rejector.reject(format!("{path}.{field}"), reason, "the default holds");
            0
        }
    };
    let max_ejection = percent(spec.max_ejection_percent, "maxEjectionPercent", rejector);
    let min_health = percent(spec.min_health_percent, "minHealthPercent", rejector);
    let interval = positive(spec.interval.as_ref(), format!("{path}.interval"), rejector);
    let base = positive(
        spec.base_ejection_time.as_ref(),
        format!("{path}.baseEjectionTime"),
        rejector,
    );
    let detection = cluster::OutlierDetection {
        consecutive_gateway_failure: errors.and_then(envoy::uint),
        enforcing_consecutive_gateway_failure: errors.and_then(|_| envoy::uint(100)),
        enforcing_consecutive_5xx: errors.and_then(|_| envoy::uint(0)),
        interval: interval.and_then(envoy::duration),
        base_ejection_time: base.and_then(envoy::duration),
        // What the Envoy of 1.4 always did; newer ones must be told, or 10% of two hosts is none.
        always_eject_one_host: envoy::boolean(true),
        max_ejection_percent: (max_ejection > 0)
            .then_some(max_ejection)
            .and_then(envoy::uint),
        ..Default::default()
    };
    (detection, min_health)
}

fn load_balancer(
    spec: &LoadBalancerSettings,
    path: &str,
    rejector: &mut Rejector<'_>,
) -> LoadBalancer {
    let hash = match spec.lb_policy.as_ref() {
        // An empty setting is one: it takes the place of an enclosing policy's.
        None => return LoadBalancer::RoundRobin,
        Some(LbPolicy::Simple(simple)) => {
            return match SimpleLb::try_from(*simple) {
                Ok(SimpleLb::LeastConn) => LoadBalancer::LeastRequest,
                Ok(SimpleLb::Random) => LoadBalancer::Random,
                Ok(SimpleLb::Passthrough) => LoadBalancer::Passthrough,
                Ok(SimpleLb::RoundRobin) | Err(_) => LoadBalancer::RoundRobin,
            };
        }
        Some(LbPolicy::ConsistentHash(hash)) => hash,
    };
    let path = format!("{path}.consistentHash");
    let minimum_ring_size = match hash.minimum_ring_size {
        0 => 1024,
        size if size <= MAX_RING => size,
        size => {
            let reason = format!("{size} is too large; accepted: 1 to {MAX_RING}");
            rejector.reject(
                format!("{path}.minimumRingSize"),
                reason,
                "the ring has its largest size",
            );
            MAX_RING
        }
    };
    let key = match hash.hash_key.as_ref() {
        Some(consistent_hash_lb::HashKey::HttpHeaderName(name)) => match safe::matched_header(name)
        {
            Ok(()) => Some(HashKey::Header(name.to_ascii_lowercase())),
            Err(reason) => {
                rejector.reject(
                    format!("{path}.httpHeaderName"),
                    reason,
                    "requests are spread without a hash",
                );
                None
            }
        },
        Some(consistent_hash_lb::HashKey::HttpCookie(cookie)) => {
            let ttl = cookie.ttl.as_ref().map(duration).transpose();
            let name =
                safe::matched_header(&cookie.name).and_then(|()| safe::header_value(&cookie.path));
            match (name, ttl) {
                (Ok(()), Ok(ttl)) => Some(HashKey::Cookie {
                    name: cookie.name.clone(),
                    path: cookie.path.clone(),
                    ttl,
                }),
                (Err(reason), _) | (_, Err(reason)) => {
                    rejector.reject(
                        format!("{path}.httpCookie"),
                        reason,
                        "requests are spread without a hash",
                    );
                    None
                }
            }
        }
        Some(consistent_hash_lb::HashKey::UseSourceIp(true)) => Some(HashKey::SourceIp),
        _ => None,
    };
    LoadBalancer::RingHash {
        key,
        minimum_ring_size,
    }
}
