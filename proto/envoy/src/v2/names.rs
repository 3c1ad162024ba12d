//! Names of extensions in the v2 API, and the messages they configure.

/// What kind of extension a name is of: some names stand for several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Category {
    Http,
    Network,
    Listener,
    AccessLog,
    Downstream,
    Upstream,
    Tracer,
    RetryHost,
}

impl Category {
    /// What the messages of this type configure.
    pub(super) fn of(holder: &str, upstream: bool) -> Option<Category> {
        Some(match holder {
            "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter" => Self::Http,
            "envoy.config.listener.v3.Filter" => Self::Network,
            "envoy.config.listener.v3.ListenerFilter" => Self::Listener,
            "envoy.config.accesslog.v3.AccessLog" => Self::AccessLog,
            "envoy.config.core.v3.TransportSocket" if upstream => Self::Upstream,
            "envoy.config.core.v3.TransportSocket" => Self::Downstream,
            "envoy.config.trace.v3.Tracing.Http" => Self::Tracer,
            "envoy.config.route.v3.RetryPolicy.RetryHostPredicate" => Self::RetryHost,
            _ => return None,
        })
    }
}

/// An extension that v2 knew.
#[derive(Debug)]
pub(super) struct Extension {
    category: Category,
    /// Its name in v2; empty if it has always had the one it has now.
    old: &'static str,
    /// Its name.
    pub(super) name: &'static str,
    /// The message that configures it.
    pub(super) message: &'static str,
    /// The message that configures it for a route, if there is one.
    pub(super) per_route: &'static str,
}

const fn row(
    category: Category,
    old: &'static str,
    name: &'static str,
    message: &'static str,
    per_route: &'static str,
) -> Extension {
    Extension {
        category,
        old,
        name,
        message,
        per_route,
    }
}

/// The extension of a v2 or v3 name.
pub(super) fn find(category: Category, name: &str) -> Option<&'static Extension> {
    EXTENSIONS.iter().find(|e| {
        e.category == category && (e.name == name || (!e.old.is_empty() && e.old == name))
    })
}

/// The v2 name of an extension, if it had another one.
pub(super) fn old(name: &str) -> Option<&'static str> {
    let known = EXTENSIONS.iter().find(|e| e.name == name)?;
    (!known.old.is_empty()).then_some(known.old)
}

use Category::{AccessLog, Downstream, Http, Listener, Network, RetryHost, Tracer, Upstream};

#[rustfmt::skip]
static EXTENSIONS: &[Extension] = &[
    row(Http, "envoy.buffer", "envoy.filters.http.buffer", "envoy.extensions.filters.http.buffer.v3.Buffer", "envoy.extensions.filters.http.buffer.v3.BufferPerRoute"),
    row(Http, "envoy.cors", "envoy.filters.http.cors", "envoy.extensions.filters.http.cors.v3.Cors", "envoy.extensions.filters.http.cors.v3.CorsPolicy"),
    row(Http, "envoy.csrf", "envoy.filters.http.csrf", "envoy.extensions.filters.http.csrf.v3.CsrfPolicy", "envoy.extensions.filters.http.csrf.v3.CsrfPolicy"),
    row(Http, "envoy.ext_authz", "envoy.filters.http.ext_authz", "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz", "envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute"),
    row(Http, "envoy.fault", "envoy.filters.http.fault", "envoy.extensions.filters.http.fault.v3.HTTPFault", "envoy.extensions.filters.http.fault.v3.HTTPFault"),
    row(Http, "envoy.grpc_http1_bridge", "envoy.filters.http.grpc_http1_bridge", "envoy.extensions.filters.http.grpc_http1_bridge.v3.Config", ""),
    row(Http, "envoy.grpc_json_transcoder", "envoy.filters.http.grpc_json_transcoder", "envoy.extensions.filters.http.grpc_json_transcoder.v3.GrpcJsonTranscoder", "envoy.extensions.filters.http.grpc_json_transcoder.v3.GrpcJsonTranscoder"),
    row(Http, "envoy.grpc_web", "envoy.filters.http.grpc_web", "envoy.extensions.filters.http.grpc_web.v3.GrpcWeb", ""),
    row(Http, "envoy.health_check", "envoy.filters.http.health_check", "envoy.extensions.filters.http.health_check.v3.HealthCheck", ""),
    row(Http, "envoy.ip_tagging", "envoy.filters.http.ip_tagging", "envoy.extensions.filters.http.ip_tagging.v3.IPTagging", ""),
    row(Http, "envoy.lua", "envoy.filters.http.lua", "envoy.extensions.filters.http.lua.v3.Lua", "envoy.extensions.filters.http.lua.v3.LuaPerRoute"),
    row(Http, "envoy.rate_limit", "envoy.filters.http.ratelimit", "envoy.extensions.filters.http.ratelimit.v3.RateLimit", "envoy.extensions.filters.http.ratelimit.v3.RateLimitPerRoute"),
    row(Http, "envoy.router", "envoy.filters.http.router", "envoy.extensions.filters.http.router.v3.Router", ""),
    row(Http, "", "envoy.filters.http.adaptive_concurrency", "envoy.extensions.filters.http.adaptive_concurrency.v3.AdaptiveConcurrency", ""),
    row(Http, "", "envoy.filters.http.dynamic_forward_proxy", "envoy.extensions.filters.http.dynamic_forward_proxy.v3.FilterConfig", "envoy.extensions.filters.http.dynamic_forward_proxy.v3.PerRouteConfig"),
    row(Http, "", "envoy.filters.http.grpc_http1_reverse_bridge", "envoy.extensions.filters.http.grpc_http1_reverse_bridge.v3.FilterConfig", "envoy.extensions.filters.http.grpc_http1_reverse_bridge.v3.FilterConfigPerRoute"),
    row(Http, "", "envoy.filters.http.grpc_stats", "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig", ""),
    row(Http, "", "envoy.filters.http.header_to_metadata", "envoy.extensions.filters.http.header_to_metadata.v3.Config", "envoy.extensions.filters.http.header_to_metadata.v3.Config"),
    row(Http, "", "envoy.filters.http.jwt_authn", "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication", "envoy.extensions.filters.http.jwt_authn.v3.PerRouteConfig"),
    row(Http, "", "envoy.filters.http.original_src", "envoy.extensions.filters.http.original_src.v3.OriginalSrc", ""),
    row(Http, "", "envoy.filters.http.rbac", "envoy.extensions.filters.http.rbac.v3.RBAC", "envoy.extensions.filters.http.rbac.v3.RBACPerRoute"),
    row(Http, "", "envoy.filters.http.tap", "envoy.extensions.filters.http.tap.v3.Tap", ""),
    row(Http, "", "envoy.filters.http.wasm", "envoy.extensions.filters.http.wasm.v3.Wasm", ""),

    row(Network, "envoy.echo", "envoy.filters.network.echo", "envoy.extensions.filters.network.echo.v3.Echo", ""),
    row(Network, "envoy.ext_authz", "envoy.filters.network.ext_authz", "envoy.extensions.filters.network.ext_authz.v3.ExtAuthz", ""),
    row(Network, "envoy.http_connection_manager", "envoy.filters.network.http_connection_manager", "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager", ""),
    row(Network, "envoy.mongo_proxy", "envoy.filters.network.mongo_proxy", "envoy.extensions.filters.network.mongo_proxy.v3.MongoProxy", ""),
    row(Network, "envoy.ratelimit", "envoy.filters.network.ratelimit", "envoy.extensions.filters.network.ratelimit.v3.RateLimit", ""),
    row(Network, "envoy.redis_proxy", "envoy.filters.network.redis_proxy", "envoy.extensions.filters.network.redis_proxy.v3.RedisProxy", ""),
    row(Network, "envoy.tcp_proxy", "envoy.filters.network.tcp_proxy", "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy", ""),
    row(Network, "", "envoy.filters.network.dubbo_proxy", "envoy.extensions.filters.network.dubbo_proxy.v3.DubboProxy", ""),
    row(Network, "", "envoy.filters.network.local_ratelimit", "envoy.extensions.filters.network.local_ratelimit.v3.LocalRateLimit", ""),
    row(Network, "", "envoy.filters.network.rbac", "envoy.extensions.filters.network.rbac.v3.RBAC", ""),
    row(Network, "", "envoy.filters.network.sni_cluster", "envoy.extensions.filters.network.sni_cluster.v3.SniCluster", ""),
    row(Network, "", "envoy.filters.network.thrift_proxy", "envoy.extensions.filters.network.thrift_proxy.v3.ThriftProxy", ""),
    row(Network, "", "envoy.filters.network.wasm", "envoy.extensions.filters.network.wasm.v3.Wasm", ""),
    row(Network, "", "envoy.filters.network.zookeeper_proxy", "envoy.extensions.filters.network.zookeeper_proxy.v3.ZooKeeperProxy", ""),

    row(Listener, "envoy.listener.http_inspector", "envoy.filters.listener.http_inspector", "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector", ""),
    row(Listener, "envoy.listener.original_dst", "envoy.filters.listener.original_dst", "envoy.extensions.filters.listener.original_dst.v3.OriginalDst", ""),
    row(Listener, "envoy.listener.original_src", "envoy.filters.listener.original_src", "envoy.extensions.filters.listener.original_src.v3.OriginalSrc", ""),
    row(Listener, "envoy.listener.proxy_protocol", "envoy.filters.listener.proxy_protocol", "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol", ""),
    row(Listener, "envoy.listener.tls_inspector", "envoy.filters.listener.tls_inspector", "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector", ""),

    row(AccessLog, "envoy.file_access_log", "envoy.access_loggers.file", "envoy.extensions.access_loggers.file.v3.FileAccessLog", ""),
    row(AccessLog, "envoy.http_grpc_access_log", "envoy.access_loggers.http_grpc", "envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig", ""),
    row(AccessLog, "envoy.tcp_grpc_access_log", "envoy.access_loggers.tcp_grpc", "envoy.extensions.access_loggers.grpc.v3.TcpGrpcAccessLogConfig", ""),

    row(Downstream, "raw_buffer", "envoy.transport_sockets.raw_buffer", "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer", ""),
    row(Downstream, "tls", "envoy.transport_sockets.tls", "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext", ""),
    row(Upstream, "raw_buffer", "envoy.transport_sockets.raw_buffer", "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer", ""),
    row(Upstream, "tls", "envoy.transport_sockets.tls", "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext", ""),

    row(Tracer, "envoy.zipkin", "envoy.tracers.zipkin", "envoy.config.trace.v3.ZipkinConfig", ""),

    row(RetryHost, "envoy.retry_host_predicates.previous_hosts", "envoy.retry_host_predicates.previous_hosts", "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate", ""),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extensions::TABLE;
    use crate::json::named;

    #[test]
    fn every_extension_is_one_that_envoy_has() {
        for extension in EXTENSIONS {
            let line = format!("\t{}\t{}\n", extension.name, extension.message);
            assert!(TABLE.contains(&line), "{extension:?}");
            for message in [extension.message, extension.per_route] {
                assert!(message.is_empty() || named(message).is_some(), "{message}");
            }
        }
    }
}
