//! Equal messages to equal bytes.
//!
//! The Rust types keep maps in hash maps, so the same message is encoded with its map entries in another order every
//! time. Whoever compares encoded messages (content hashes, resource versions) puts them into canonical form first: the
//! entries of each map sorted by key, in nested messages and in the content of every `Any` whose type is known. Works on
//! the wire: what it does not know it copies. Cost: linear, one copy per level of nesting.

use prost::DecodeError;
use prost::encoding::{
    DecodeContext, WireType, decode_key, decode_varint, encode_key, encode_varint, skip_field,
};
use prost_reflect::{Kind, MessageDescriptor};

use crate::json::{JsonError, descriptor, named};

/// `Any.type_url` and `Any.value`.
const ANY_TYPE_URL: u32 = 1;
const ANY_VALUE: u32 = 2;
/// The key of a map entry.
const KEY: u32 = 1;
/// Deeper than Envoy decodes: what lies below is copied as it is.
const MAX_DEPTH: usize = 100;

/// The canonical form of an encoded message.
pub fn canonical(full_name: &str, bytes: &[u8]) -> Result<Vec<u8>, JsonError> {
    let descriptor = descriptor(full_name)?;
    let mut out = Vec::with_capacity(bytes.len());
    message(&descriptor, bytes, &mut out, 0).map_err(|source| JsonError::Wire {
        message: full_name.to_owned(),
        source,
    })?;
    Ok(out)
}

/// One field of a message, in the order it will be written.
struct Item {
    /// Where the first field of its number stood, if it is a map entry; else where it stood itself.
    slot: usize,
    key: Vec<u8>,
    encoded: Vec<u8>,
}

fn message(
    descriptor: &MessageDescriptor,
    mut bytes: &[u8],
    out: &mut Vec<u8>,
    depth: usize,
) -> Result<(), DecodeError> {
    if depth > MAX_DEPTH {
        out.extend_from_slice(bytes);
        return Ok(());
    }
    let content = if descriptor.full_name() == "google.protobuf.Any" {
        any_content(bytes)?
    } else {
        None
    };
    let mut items: Vec<Item> = Vec::new();
    let mut slots: Vec<(u32, usize)> = Vec::new();
    while !bytes.is_empty() {
        let Field {
            number,
            wire_type,
            whole,
            body,
        } = field(&mut bytes)?;
        let known = descriptor.get_field(number);
        let nested = match known.as_ref().map(|f| f.kind()) {
            Some(Kind::Message(nested)) => Some(nested),
            _ => content.clone().filter(|_| number == ANY_VALUE),
        };
        let encoded = match (nested, wire_type) {
            (Some(nested), WireType::LengthDelimited) => {
                let mut inner = Vec::with_capacity(body.len());
                message(&nested, body, &mut inner, depth + 1)?;
                let mut encoded = Vec::with_capacity(whole.len());
                encode_key(number, wire_type, &mut encoded);
                encode_varint(inner.len() as u64, &mut encoded);
                encoded.extend_from_slice(&inner);
                encoded
            }
            _ => whole.to_vec(),
        };
        let (mut slot, mut key) = (items.len(), Vec::new());
        if known.is_some_and(|f| f.is_map()) {
            key = entry_key(body)?;
            match slots.iter().find(|(n, _)| *n == number) {
                Some((_, first)) => slot = *first,
                None => slots.push((number, slot)),
            }
        }
        items.push(Item { slot, key, encoded });
    }
    if !slots.is_empty() {
        // Stable: of two entries with one key the later one stays the later one, which wins.
        items.sort_by(|a, b| (a.slot, &a.key).cmp(&(b.slot, &b.key)));
    }
    for item in items {
        out.extend_from_slice(&item.encoded);
    }
    Ok(())
}

/// One encoded field.
struct Field<'a> {
    number: u32,
    wire_type: WireType,
    whole: &'a [u8],
    /// What it holds, if it has a length.
    body: &'a [u8],
}

/// Takes the first field off.
fn field<'a>(bytes: &mut &'a [u8]) -> Result<Field<'a>, DecodeError> {
    let whole = *bytes;
    let (number, wire_type) = decode_key(bytes)?;
    let mut body = *bytes;
    skip_field(wire_type, number, bytes, DecodeContext::default())?;
    let whole = &whole[..whole.len() - bytes.len()];
    if wire_type == WireType::LengthDelimited {
        decode_varint(&mut body)?;
        body = &body[..body.len() - bytes.len()];
    }
    Ok(Field {
        number,
        wire_type,
        whole,
        body,
    })
}

/// The message that an encoded `Any` holds, if it is one of Envoy's.
fn any_content(mut bytes: &[u8]) -> Result<Option<MessageDescriptor>, DecodeError> {
    let mut found = None;
    while !bytes.is_empty() {
        let Field { number, body, .. } = field(&mut bytes)?;
        if number == ANY_TYPE_URL {
            found = std::str::from_utf8(body).ok().and_then(named);
        }
    }
    Ok(found)
}

/// The encoded key of a map entry; the default key is not written, so it is empty.
fn entry_key(mut entry: &[u8]) -> Result<Vec<u8>, DecodeError> {
    let mut key = Vec::new();
    while !entry.is_empty() {
        let field = field(&mut entry)?;
        if field.number == KEY {
            let sized = field.wire_type == WireType::LengthDelimited;
            key = if sized { field.body } else { field.whole }.to_vec();
        }
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::core::v3::{Metadata, Node};
    use envoy_types::util::pack_any;
    use prost::{Message as _, Name as _};
    use serde_json::json;

    use super::*;
    use crate::json::{from_json, to_struct};

    fn node() -> Node {
        let fields: serde_json::Map<_, _> = (0..40)
            .map(|i| (format!("k{i}"), json!({"b": i, "a": [i]})))
            .collect();
        Node {
            id: "x".to_owned(),
            metadata: Some(to_struct(&fields.into())),
            ..Node::default()
        }
    }

    #[test]
    fn equal_messages_get_equal_bytes() {
        let make = || canonical(&Node::full_name(), &node().encode_to_vec()).unwrap();
        let first = make();
        assert!((0..20).all(|_| make() == first));
        assert_eq!(Node::decode(&*first).unwrap(), node());
        assert_eq!(canonical(&Node::full_name(), &first).unwrap(), first);
        // Inside an Any in a map, too.
        let inside = || Metadata {
            typed_filter_metadata: [("a".to_owned(), pack_any(node()))].into(),
            ..Metadata::default()
        };
        let make = || canonical(&Metadata::full_name(), &inside().encode_to_vec()).unwrap();
        let first = make();
        assert!((0..20).all(|_| make() == first));
    }

    #[test]
    fn other_fields_keep_their_order_and_the_last_of_two_entries_wins() {
        let one: Metadata =
            from_json(&json!({"filter_metadata": {"b": {}, "a": {"x": 1}}})).unwrap();
        let two: Metadata = from_json(&json!({"filter_metadata": {"a": {"x": 2}}})).unwrap();
        let both = [one.encode_to_vec(), two.encode_to_vec()].concat();
        let sorted = canonical(&Metadata::full_name(), &both).unwrap();
        assert_eq!(
            Metadata::decode(&*sorted).unwrap(),
            Metadata::decode(&*both).unwrap()
        );
        assert!(canonical(&Metadata::full_name(), &[0x0a, 0x05]).is_err());
        assert!(canonical("envoy.Nothing", &[]).is_err());
    }
}
