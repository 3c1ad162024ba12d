//! Pilot's switches that change what is generated: the flags and `PILOT_*` variables of Istio 1.4, as one value.

use std::time::Duration;

/// Set once at start; part of every snapshot.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// DNS domain of Kubernetes services (`--domain`).
    pub domain: String,
    /// Sniff unnamed ports of outbound traffic (`PILOT_ENABLE_PROTOCOL_SNIFFING_FOR_OUTBOUND`).
    pub sniff_outbound: bool,
    /// Sniff unnamed ports of inbound traffic (`PILOT_ENABLE_PROTOCOL_SNIFFING_FOR_INBOUND`).
    pub sniff_inbound: bool,
    /// Listener-filter timeout of virtualInbound (`PILOT_INBOUND_PROTOCOL_DETECTION_TIMEOUT`).
    pub inbound_detection_timeout: Duration,
    /// One TCP listener per pod of a headless service (`PILOT_ENABLE_HEADLESS_SERVICE_POD_LISTENERS`).
    pub headless_pod_listeners: bool,
    /// No outbound listener for an HTTP port 443 (`PILOT_BLOCK_HTTP_ON_443`).
    pub block_http_on_443: bool,
    /// Refuse outbound connections to the pod's own addresses (`PILOT_RESTRICT_POD_UP_TRAFFIC_LOOP`).
    pub restrict_pod_loop: bool,
    /// Passthrough or black hole at the end of wildcard listeners and routes (`PILOT_ENABLE_FALLTHROUGH_ROUTE`).
    pub fallthrough: bool,
    /// STRICT_DNS clusters respect the record's TTL (`PILOT_RESPECT_DNS_TTL`).
    pub respect_dns_ttl: bool,
    /// Emit Envoy's Redis filter (`PILOT_ENABLE_REDIS_FILTER`).
    pub redis_filter: bool,
    /// Accept HTTP/1.0 from everybody (`PILOT_HTTP10`).
    pub http10: bool,
    /// `use_remote_address` on outbound sidecar listeners (`PILOT_SIDECAR_USE_REMOTE_ADDRESS`).
    pub sidecar_use_remote_address: bool,
    /// Random trace sampling, percent (`PILOT_TRACE_SAMPLING`); outside 0..=100 counts as 100.
    pub trace_sampling: f64,
    /// Gateway objects select only workloads of their own namespace (`PILOT_SCOPE_GATEWAY_TO_NAMESPACE`).
    pub scope_gateway_to_namespace: bool,
    /// How long Envoy waits for a first RDS or EDS answer (`PILOT_INITIAL_FETCH_TIMEOUT`); unset: Envoy's 15 s.
    pub initial_fetch_timeout: Option<Duration>,
    /// Cluster that tracing spans go to. Tracing is written into listeners only if this is set: a provider that
    /// names a cluster the bootstrap lacks makes Envoy refuse the listener.
    pub zipkin_cluster: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            domain: "cluster.local".to_owned(),
            sniff_outbound: true,
            sniff_inbound: false,
            inbound_detection_timeout: Duration::from_secs(1),
            headless_pod_listeners: true,
            block_http_on_443: true,
            restrict_pod_loop: true,
            fallthrough: true,
            respect_dns_ttl: true,
            redis_filter: false,
            http10: false,
            sidecar_use_remote_address: false,
            trace_sampling: 100.0,
            scope_gateway_to_namespace: false,
            initial_fetch_timeout: None,
            zipkin_cluster: None,
        }
    }
}
