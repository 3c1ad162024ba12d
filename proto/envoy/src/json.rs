//! Proto3 JSON of Envoy messages, for config dumps, golden files and EnvoyFilter patches.
//!
//! Field names are written as in the `.proto` files (`snake_case`), as Envoy's own config dump does, and read in either
//! spelling. An `Any` is shown with its content and `@type`. Unknown fields are refused when reading.
//!
//! The descriptors of all Envoy messages are embedded (0.6 MB) and decoded on first use, which takes
//! some tens of milliseconds; after that a conversion costs one encode and one dynamic decode.

use std::sync::LazyLock;

use envoy_types::pb::google::protobuf::{
    Any, ListValue, NullValue, Struct, Value as PbValue, value::Kind,
};
use prost::{Message, Name};
use prost_reflect::{
    DescriptorPool, DeserializeOptions, DynamicMessage, MessageDescriptor, ReflectMessage as _,
    SerializeOptions,
};
use serde_json::Value;

use crate::TYPE_PREFIX;

/// Why a message and its JSON do not fit.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// No such message in Envoy's API.
    #[error("{0:?} is not a message of Envoy's v3 API")]
    UnknownType(String),
    /// Bytes that are not the message they are said to be.
    #[error("not a {message} on the wire: {source}")]
    Wire {
        /// Full name of the message.
        message: String,
        /// What the decoder said.
        source: prost::DecodeError,
    },
    /// JSON that is not the message.
    #[error("not a {message}: {source}")]
    Json {
        /// Full name of the message.
        message: String,
        /// What the reader said.
        source: serde_json::Error,
    },
    /// An `Any` in JSON without its type.
    #[error("an Any needs \"@type\": \"type.googleapis.com/<message>\"")]
    NoType,
    /// Messages of two types that should be merged.
    #[error("a {patch} cannot be merged into a {target}")]
    OtherType {
        /// Full name of the message merged into.
        target: String,
        /// Full name of the other one.
        patch: String,
    },
}

static POOL: LazyLock<Option<DescriptorPool>> = LazyLock::new(|| {
    DescriptorPool::decode(&include_bytes!(concat!(env!("OUT_DIR"), "/envoy.bin"))[..]).ok()
});

/// Descriptors of Envoy's API and what it imports.
pub fn pool() -> Option<&'static DescriptorPool> {
    POOL.as_ref()
}

/// The descriptor of a message of Envoy's API.
pub fn descriptor(full_name: &str) -> Result<MessageDescriptor, JsonError> {
    named(full_name).ok_or_else(|| JsonError::UnknownType(full_name.to_owned()))
}

/// The message behind a full name or type URL.
pub(crate) fn named(type_url: &str) -> Option<MessageDescriptor> {
    pool()?.get_message_by_name(crate::merge::message_name(type_url))
}

/// JSON of a message.
pub fn to_json<M: Message + Name>(message: &M) -> Result<Value, JsonError> {
    bytes_to_json(&M::full_name(), &message.encode_to_vec())
}

/// JSON of an encoded message whose type is known by name, such as `envoy.config.cluster.v3.Cluster`.
pub fn bytes_to_json(full_name: &str, bytes: &[u8]) -> Result<Value, JsonError> {
    dynamic_to_json(&decode(full_name, bytes)?)
}

/// A message by its descriptor, from its encoded form.
pub fn decode(full_name: &str, bytes: &[u8]) -> Result<DynamicMessage, JsonError> {
    DynamicMessage::decode(descriptor(full_name)?, bytes).map_err(|source| JsonError::Wire {
        message: full_name.to_owned(),
        source,
    })
}

/// JSON of a message that is known by its descriptor.
pub fn dynamic_to_json(message: &DynamicMessage) -> Result<Value, JsonError> {
    let options = SerializeOptions::new().use_proto_field_name(true);
    message
        .serialize_with_options(serde_json::value::Serializer, &options)
        .map_err(|source| JsonError::Json {
            message: message.descriptor().full_name().to_owned(),
            source,
        })
}

/// JSON of the content of an `Any`, with its type under `@type`.
pub fn any_to_json(any: &Any) -> Result<Value, JsonError> {
    let full_name = any.type_url.rsplit('/').next().unwrap_or_default();
    let content = bytes_to_json(full_name, &any.value)?;
    let mut object = serde_json::Map::new();
    object.insert("@type".to_owned(), any.type_url.clone().into());
    match content {
        Value::Object(fields) if !has_own_form(full_name) => object.extend(fields),
        other => {
            object.insert("value".to_owned(), other);
        }
    }
    Ok(Value::Object(object))
}

/// A message from JSON; an unknown field is an error.
pub fn from_json<M: Message + Name + Default>(json: &Value) -> Result<M, JsonError> {
    let bytes = json_to_bytes(&M::full_name(), json)?;
    M::decode(&*bytes).map_err(|source| JsonError::Wire {
        message: M::full_name(),
        source,
    })
}

/// The encoded message from its JSON.
pub fn json_to_bytes(full_name: &str, json: &Value) -> Result<Vec<u8>, JsonError> {
    dynamic_from_json(full_name, json).map(|message| message.encode_to_vec())
}

/// A message by its descriptor, from its JSON; an unknown field is an error.
pub fn dynamic_from_json(full_name: &str, json: &Value) -> Result<DynamicMessage, JsonError> {
    let options = DeserializeOptions::new().deny_unknown_fields(true);
    DynamicMessage::deserialize_with_options(descriptor(full_name)?, json, &options).map_err(
        |source| JsonError::Json {
            message: full_name.to_owned(),
            source,
        },
    )
}

/// An `Any` from JSON with `@type`.
pub fn any_from_json(json: &Value) -> Result<Any, JsonError> {
    let type_url = json["@type"].as_str().ok_or(JsonError::NoType)?;
    let full_name = type_url.rsplit('/').next().unwrap_or_default();
    let mut content = json.clone();
    if let Value::Object(fields) = &mut content {
        fields.shift_remove("@type");
    }
    let content = if has_own_form(full_name) {
        &content["value"]
    } else {
        &content
    };
    Ok(Any {
        type_url: format!("{TYPE_PREFIX}{full_name}"),
        value: json_to_bytes(full_name, content)?,
    })
}

/// Whether proto3 JSON writes a message otherwise than as its fields, so that in an `Any` it goes under `value`.
pub(crate) fn has_own_form(full_name: &str) -> bool {
    full_name.starts_with("google.protobuf.") && full_name != "google.protobuf.Empty"
}

/// A `google.protobuf.Struct` of a JSON object; anything but an object gives an empty one.
pub fn to_struct(json: &Value) -> Struct {
    let fields = json.as_object().into_iter().flatten();
    Struct {
        fields: fields.map(|(k, v)| (k.clone(), to_value(v))).collect(),
    }
}

fn to_value(json: &Value) -> PbValue {
    let kind = match json {
        Value::Null => Kind::NullValue(NullValue::NullValue.into()),
        Value::Bool(b) => Kind::BoolValue(*b),
        Value::Number(n) => Kind::NumberValue(n.as_f64().unwrap_or_default()),
        Value::String(s) => Kind::StringValue(s.clone()),
        Value::Array(list) => Kind::ListValue(ListValue {
            values: list.iter().map(to_value).collect(),
        }),
        Value::Object(_) => Kind::StructValue(to_struct(json)),
    };
    PbValue { kind: Some(kind) }
}

/// The JSON object of a `google.protobuf.Struct`, such as the metadata of a node.
pub fn from_struct(value: &Struct) -> Value {
    // A Struct does not keep the order of its fields: sort, so that equal ones look equal.
    let mut fields: Vec<_> = value.fields.iter().collect();
    fields.sort_by_key(|(key, _)| *key);
    fields
        .into_iter()
        .map(|(k, v)| (k.clone(), from_value(v)))
        .collect()
}

fn from_value(value: &PbValue) -> Value {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(b)) => (*b).into(),
        Some(Kind::NumberValue(n)) => number(*n),
        Some(Kind::StringValue(s)) => s.as_str().into(),
        Some(Kind::ListValue(list)) => list.values.iter().map(from_value).collect(),
        Some(Kind::StructValue(s)) => from_struct(s),
    }
}

/// Whole numbers without a decimal point, as people wrote them.
fn number(n: f64) -> Value {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if n.fract() == 0.0 && n.abs() < EXACT {
        (n as i64).into()
    } else {
        n.into()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use envoy_types::pb::envoy::config::cluster::v3::{Cluster, cluster};
    use envoy_types::pb::envoy::config::core::v3::TransportSocket;
    use envoy_types::pb::envoy::config::core::v3::transport_socket::ConfigType;
    use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::UpstreamTlsContext;
    use envoy_types::util::pack_any;
    use serde_json::json;

    use super::*;

    fn sample() -> Cluster {
        Cluster {
            name: "outbound|80||a".to_owned(),
            connect_timeout: Some(envoy_types::pb::google::protobuf::Duration {
                seconds: 1,
                nanos: 500_000_000,
            }),
            cluster_discovery_type: Some(cluster::ClusterDiscoveryType::Type(
                cluster::DiscoveryType::Eds.into(),
            )),
            transport_socket: Some(TransportSocket {
                name: "tls".to_owned(),
                config_type: Some(ConfigType::TypedConfig(pack_any(UpstreamTlsContext {
                    sni: "a.example".to_owned(),
                    ..Default::default()
                }))),
            }),
            ..Default::default()
        }
    }

    #[test]
    fn messages_with_anys_round_trip() {
        let json = to_json(&sample()).unwrap();
        assert_eq!(
            json,
            json!({
                "name": "outbound|80||a", "type": "EDS", "connect_timeout": "1.500s",
                "transport_socket": {"name": "tls", "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                    "sni": "a.example"
                }}
            })
        );
        assert_eq!(from_json::<Cluster>(&json).unwrap(), sample());
        let any = pack_any(sample());
        assert_eq!(any_from_json(&any_to_json(&any).unwrap()).unwrap(), any);
    }

    #[test]
    fn camel_case_reads_too_and_unknown_fields_do_not() {
        let cluster: Cluster = from_json(&json!({"name": "a", "connectTimeout": "1.5s"})).unwrap();
        assert_eq!(cluster.connect_timeout.unwrap().nanos, 500_000_000);
        let error =
            from_json::<Cluster>(&json!({"name": "a", "conect_timeout": "1s"})).unwrap_err();
        assert!(error.to_string().contains("conect_timeout"), "{error}");
        let error = any_from_json(&json!({"@type": "type.googleapis.com/envoy.api.v2.Cluster"}))
            .unwrap_err();
        assert!(matches!(error, JsonError::UnknownType(_)), "{error}");
        assert!(matches!(
            any_from_json(&json!({"a": 1})),
            Err(JsonError::NoType)
        ));
        assert!(matches!(
            bytes_to_json("envoy.config.cluster.v3.Cluster", &[0xff, 0xff]),
            Err(JsonError::Wire { .. })
        ));
    }

    #[test]
    fn structs_and_well_known_anys() {
        let value = json!({"a": [1, 1.5, "x", null, true], "b": {"c": {}}});
        assert_eq!(from_struct(&to_struct(&value)), value);
        let any = Any {
            type_url: "type.googleapis.com/google.protobuf.Struct".to_owned(),
            value: to_struct(&value).encode_to_vec(),
        };
        let json = any_to_json(&any).unwrap();
        assert_eq!(json["@type"], "type.googleapis.com/google.protobuf.Struct");
        assert_eq!(json["value"]["b"], json!({"c": {}}));
        assert_eq!(any_from_json(&json).unwrap().type_url, any.type_url);
    }
}
