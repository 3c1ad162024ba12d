//! What extensions and their messages were called in v2.

use prost_reflect::Value;

use crate::json::{named, pool};

/// Messages of extensions that had no configuration in Envoy 1.12, or one of another name from version to version. None at all
/// is understood by every one of them.
const WITHOUT_CONFIG: [&str; 9] = [
    "envoy.extensions.filters.http.cors.v3.Cors",
    "envoy.extensions.filters.http.grpc_web.v3.GrpcWeb",
    "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector",
    "envoy.extensions.filters.listener.original_dst.v3.OriginalDst",
    "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol",
    "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector",
    "envoy.extensions.filters.network.sni_cluster.v3.SniCluster",
    "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate",
    "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer",
];

/// Whether a message is sent to v2 clients by leaving it out.
pub(super) fn is_without_config(v3: &str) -> bool {
    WITHOUT_CONFIG.contains(&v3)
}

/// The v2 name of a message: every v3 message that has one names it in its options.
pub(super) fn v2_type(v3: &str) -> Option<String> {
    let versioning = pool()?.get_extension_by_name("udpa.annotations.versioning")?;
    let options = named(v3)?.options();
    let Value::Message(versioning) = &*options.get_extension(&versioning) else {
        return None;
    };
    let previous = versioning.get_field_by_name("previous_message_type")?;
    let previous = previous.as_str().filter(|name| !name.is_empty())?;
    Some(previous.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_v3_message_exists() {
        for name in WITHOUT_CONFIG {
            assert!(named(name).is_some(), "{name}");
        }
    }

    #[test]
    fn messages_know_their_old_names() {
        let router = "envoy.extensions.filters.http.router.v3.Router";
        assert_eq!(
            v2_type(router).as_deref(),
            Some("envoy.config.filter.http.router.v2.Router")
        );
        assert_eq!(
            v2_type("envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext").as_deref(),
            Some("envoy.api.v2.auth.UpstreamTlsContext")
        );
        assert_eq!(v2_type("google.protobuf.Struct"), None);
    }
}
