//! Which extensions Envoy 1.40 has, by its own account.
//!
//! `extensions.tsv` holds category, name and message of every extension that the release build announces about itself (the
//! `node.extensions` of its `/server_info`), sorted. A `typed_config` whose message no extension of its category
//! reads makes Envoy refuse the resource around it.

use std::collections::HashMap;
use std::sync::LazyLock;

use prost_reflect::{DynamicMessage, ReflectMessage as _};

use crate::merge::{any_type, message_name};
use crate::walk::{Finding, Path};

/// The file as it is: lines of category, name and message, between them tabs.
pub const TABLE: &str = include_str!("../extensions.tsv");

/// Messages that hold an extension, and the categories it may be of.
const HOLDERS: [(&str, &[&str]); 5] = [
    (
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter",
        &["envoy.filters.http", "envoy.filters.http.upstream"],
    ),
    (
        "envoy.config.listener.v3.Filter",
        &["envoy.filters.network"],
    ),
    (
        "envoy.config.listener.v3.ListenerFilter",
        &["envoy.filters.listener", "envoy.filters.udp_listener"],
    ),
    (
        "envoy.config.accesslog.v3.AccessLog",
        &["envoy.access_loggers"],
    ),
    (
        "envoy.config.core.v3.TransportSocket",
        &[
            "envoy.transport_sockets.downstream",
            "envoy.transport_sockets.upstream",
        ],
    ),
];

static BY_MESSAGE: LazyLock<HashMap<&str, Vec<&str>>> = LazyLock::new(|| {
    let mut out: HashMap<&str, Vec<&str>> = HashMap::new();
    for line in TABLE.lines() {
        let mut columns = line.split('\t');
        if let (Some(category), Some(_), Some(message)) =
            (columns.next(), columns.next(), columns.next())
        {
            out.entry(message).or_default().push(category);
        }
    }
    out
});

/// Whether an extension of the category reads this message.
pub fn reads(category: &str, message: &str) -> bool {
    BY_MESSAGE
        .get(message)
        .is_some_and(|categories| categories.contains(&category))
}

/// Checks the `typed_config` of one message, not looking further.
pub(crate) fn check(path: &Path, message: &DynamicMessage) -> Result<(), Finding> {
    let descriptor = message.descriptor();
    let holder = HOLDERS
        .iter()
        .find(|(name, _)| *name == descriptor.full_name());
    let Some((_, categories)) = holder else {
        return Ok(());
    };
    let url = message
        .get_field_by_name("typed_config")
        .and_then(|value| value.as_message().and_then(any_type));
    let found = |reason: String| {
        Err(Finding {
            path: path.field("typed_config"),
            reason,
        })
    };
    match url.as_deref().map(message_name) {
        None => {
            let elsewhere = descriptor
                .get_field_by_name("config_discovery")
                .is_some_and(|field| message.has_field(&field));
            match elsewhere {
                true => Ok(()),
                false => {
                    found("is missing; accepted: the extension's config with its @type".to_owned())
                }
            }
        }
        Some(name) if categories.iter().any(|c| reads(c, name)) => Ok(()),
        Some(name) => found(format!(
            "Envoy 1.40 has no extension of {} that reads {name}",
            categories.join(" or ")
        )),
    }
}
