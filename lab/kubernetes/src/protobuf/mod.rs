//! Protobuf request bodies into JSON.
//!
//! Current kubectl sends the imperative forms of `create`, `autoscale`, `create token`, `auth …` in
//! protobuf and does not fall back to JSON. Instead of generated types for some 300 messages, a table of
//! field numbers (`messages.txt`) drives one small decoder that gives JSON, which is what the rest of the
//! server works on. Answers are always JSON, which every client accepts.

use std::collections::HashMap;
use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

const MAGIC: &[u8] = b"k8s\0";
const TABLE: &str = include_str!("messages.txt");
/// Messages nest this deep at most.
const MAX_DEPTH: usize = 48;

/// What a field holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Integer,
    Bool,
    Double,
    Bytes,
    Time,
    MicroTime,
    Quantity,
    IntOrString,
    Message(&'static str),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    One,
    /// A pointer in Go: present even if zero.
    Pointer,
    List,
    Map,
}

#[derive(Debug, Clone, Copy)]
struct Field {
    name: &'static str,
    shape: Shape,
    kind: Kind,
}

type Message = HashMap<u64, Field>;

struct Table {
    /// (apiVersion, kind) → message.
    kinds: HashMap<(&'static str, &'static str), &'static str>,
    messages: HashMap<&'static str, Message>,
}

static MESSAGES: LazyLock<Table> = LazyLock::new(|| {
    let mut table = Table {
        kinds: HashMap::new(),
        messages: HashMap::new(),
    };
    for line in TABLE.lines().filter(|l| !l.starts_with('#')) {
        let mut words = line.split_whitespace();
        let Some(first) = words.next() else { continue };
        if let Some(api_version) = first.strip_prefix('@') {
            if let (Some(kind), Some(message)) = (words.next(), words.next()) {
                table.kinds.insert((api_version, kind), message);
            }
            continue;
        }
        table
            .messages
            .insert(first, words.filter_map(field).collect());
    }
    table
});

/// `name=7:*type`.
fn field(text: &'static str) -> Option<(u64, Field)> {
    let (name, rest) = text.split_once('=')?;
    let (number, kind) = rest.split_once(':')?;
    let (shape, kind) = match kind.as_bytes().first()? {
        b'*' => (Shape::List, &kind[1..]),
        b'?' => (Shape::Pointer, &kind[1..]),
        b'{' => (Shape::Map, kind[1..].trim_end_matches('}')),
        _ => (Shape::One, kind),
    };
    let kind = match kind {
        "s" => Kind::Text,
        "i" => Kind::Integer,
        "b" => Kind::Bool,
        "f" => Kind::Double,
        "y" => Kind::Bytes,
        "time" => Kind::Time,
        "microtime" => Kind::MicroTime,
        "quantity" => Kind::Quantity,
        "intstr" => Kind::IntOrString,
        message => Kind::Message(message),
    };
    Some((number.parse().ok()?, Field { name, shape, kind }))
}

/// Decodes an object in the Kubernetes envelope.
pub(crate) fn decode(bytes: &[u8]) -> Result<Value, String> {
    let body = bytes
        .strip_prefix(MAGIC)
        .ok_or("the body is not a Kubernetes protobuf object: it does not begin with the bytes 6b 38 73 00")?;
    let (mut api_version, mut kind, mut raw): (String, String, &[u8]) = Default::default();
    let mut reader = Reader(body);
    while let Some((number, wire)) = reader.next()? {
        match (number, wire) {
            (1, Wire::Bytes(meta)) => {
                let mut reader = Reader(meta);
                while let Some((number, wire)) = reader.next()? {
                    match (number, wire) {
                        (1, Wire::Bytes(b)) => api_version = text(b)?,
                        (2, Wire::Bytes(b)) => kind = text(b)?,
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(b)) => raw = b,
            _ => {}
        }
    }
    let Some(message) = MESSAGES.kinds.get(&(api_version.as_str(), kind.as_str())) else {
        return Err(format!(
            "{kind} in {api_version} cannot be read as protobuf by this server; send it as application/json (e.g. kubectl create -f)"
        ));
    };
    let mut value = json!({"kind": kind, "apiVersion": api_version});
    if let (Value::Object(out), Value::Object(fields)) =
        (&mut value, self::message(message, raw, 0)?)
    {
        out.extend(fields);
    }
    Ok(value)
}

fn text(bytes: &[u8]) -> Result<String, String> {
    String::from_utf8(bytes.to_vec()).map_err(|e| format!("a protobuf string is not UTF-8: {e}"))
}

fn message(name: &'static str, bytes: &[u8], depth: usize) -> Result<Value, String> {
    if depth > MAX_DEPTH {
        return Err(format!("protobuf messages nest deeper than {MAX_DEPTH}"));
    }
    let Some(fields) = MESSAGES.messages.get(name) else {
        return Err(format!("protobuf message {name} is not known"));
    };
    let mut out = Map::new();
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.next()? {
        // Fields this table does not have are newer than the server; they are dropped as unknown.
        let Some(field) = fields.get(&number) else {
            continue;
        };
        match field.shape {
            Shape::Map => {
                let Wire::Bytes(entry) = wire else {
                    return Err(format!("{name}.{}: wrong wire type", field.name));
                };
                let (key, value) = map_entry(field.kind, entry, depth)?;
                crate::json::as_map(out.entry(field.name).or_insert(Value::Null))
                    .insert(key, value);
            }
            Shape::List => {
                let value = scalar(name, field, wire, depth)?;
                crate::json::list_mut(&mut out, field.name).push(value);
            }
            Shape::One | Shape::Pointer => {
                let value = scalar(name, field, wire, depth)?;
                if field.name == "^" {
                    if let Value::Object(inner) = value {
                        out.extend(inner);
                    }
                } else if field.shape == Shape::Pointer || !is_zero(&value) {
                    out.insert(field.name.to_owned(), value);
                }
            }
        }
    }
    // A list wrapped in a message for protobuf's sake is the bare list in JSON.
    if name.ends_with(".ExtraValue") {
        return Ok(out.shift_remove("items").unwrap_or_else(|| json!([])));
    }
    Ok(Value::Object(out))
}

/// Go writes fields that are not pointers even when they are empty; JSON leaves them out.
fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
    }
}

fn map_entry(kind: Kind, entry: &[u8], depth: usize) -> Result<(String, Value), String> {
    let field = Field {
        name: "value",
        shape: Shape::One,
        kind,
    };
    let mut key = String::new();
    let mut value = match kind {
        Kind::Text | Kind::Bytes | Kind::Quantity => Value::from(""),
        _ => Value::Null,
    };
    let mut reader = Reader(entry);
    while let Some((number, wire)) = reader.next()? {
        match (number, wire) {
            (1, Wire::Bytes(b)) => key = text(b)?,
            (2, wire) => value = scalar("map", &field, wire, depth)?,
            _ => {}
        }
    }
    Ok((key, value))
}

fn scalar(
    message_name: &str,
    field: &Field,
    wire: Wire<'_>,
    depth: usize,
) -> Result<Value, String> {
    Ok(match (field.kind, wire) {
        (Kind::Text, Wire::Bytes(b)) => text(b)?.into(),
        (Kind::Bytes, Wire::Bytes(b)) => STANDARD.encode(b).into(),
        (Kind::Integer, Wire::Varint(n)) => n.cast_signed().into(),
        (Kind::Bool, Wire::Varint(n)) => (n != 0).into(),
        (Kind::Double, Wire::Fixed64(bits)) => f64::from_bits(bits).into(),
        (Kind::Time | Kind::MicroTime, Wire::Bytes(b)) => time(b, field.kind == Kind::MicroTime)?,
        (Kind::Quantity, Wire::Bytes(b)) => match Reader(b).next()? {
            Some((1, Wire::Bytes(b))) => text(b)?.into(),
            _ => Value::from("0"),
        },
        (Kind::IntOrString, Wire::Bytes(b)) => int_or_string(b)?,
        (Kind::Message(name), Wire::Bytes(b)) => message(name, b, depth + 1)?,
        _ => return Err(format!("{message_name}.{}: wrong wire type", field.name)),
    })
}

fn time(bytes: &[u8], micro: bool) -> Result<Value, String> {
    let (mut seconds, mut nanos) = (0, 0);
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.next()? {
        match (number, wire) {
            (1, Wire::Varint(n)) => seconds = n.cast_signed(),
            (2, Wire::Varint(n)) => nanos = n.cast_signed(),
            _ => {}
        }
    }
    // The zero time of Go stands for none.
    if seconds <= 0 && nanos == 0 {
        return Ok(Value::Null);
    }
    let time = jiff::Timestamp::new(seconds, i32::try_from(nanos).unwrap_or(0))
        .map_err(|e| e.to_string())?;
    Ok(if micro {
        format!("{time:.6}").into()
    } else {
        crate::json::seconds(time).into()
    })
}

fn int_or_string(bytes: &[u8]) -> Result<Value, String> {
    let (mut kind, mut number_value, mut string) = (0, 0, String::new());
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.next()? {
        match (number, wire) {
            (1, Wire::Varint(n)) => kind = n,
            (2, Wire::Varint(n)) => number_value = n.cast_signed(),
            (3, Wire::Bytes(b)) => string = text(b)?,
            _ => {}
        }
    }
    Ok(if kind == 0 {
        number_value.into()
    } else {
        string.into()
    })
}

enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32,
    Bytes(&'a [u8]),
}

/// Walks the fields of a message.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<Option<(u64, Wire<'a>)>, String> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let wire = match tag & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => Wire::Fixed64(
                self.take(8)?
                    .iter()
                    .rev()
                    .fold(0, |n, b| n << 8 | u64::from(*b)),
            ),
            2 => {
                let length = self.varint()?;
                Wire::Bytes(
                    self.take(
                        usize::try_from(length)
                            .map_err(|_| "a protobuf field is too long".to_owned())?,
                    )?,
                )
            }
            5 => {
                self.take(4)?;
                Wire::Fixed32
            }
            other => {
                return Err(format!(
                    "protobuf wire type {other} is not used by Kubernetes"
                ));
            }
        };
        Ok(Some((tag >> 3, wire)))
    }

    fn varint(&mut self) -> Result<u64, String> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self
                .0
                .split_first()
                .ok_or("the protobuf body ends within a number")?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("a protobuf number has more than ten bytes".to_owned())
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], String> {
        if length > self.0.len() {
            return Err("the protobuf body ends within a field".to_owned());
        }
        let (taken, rest) = self.0.split_at(length);
        self.0 = rest;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A length-delimited field.
    fn bytes(number: u8, content: &[u8]) -> Vec<u8> {
        [
            &[number << 3 | 2, u8::try_from(content.len()).unwrap()],
            content,
        ]
        .concat()
    }

    fn envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let meta = [bytes(1, api_version.as_bytes()), bytes(2, kind.as_bytes())].concat();
        [
            MAGIC.to_vec(),
            bytes(1, &meta),
            bytes(2, raw),
            bytes(3, b""),
            bytes(4, b""),
        ]
        .concat()
    }

    #[test]
    fn every_type_in_the_table_is_known() {
        for (name, fields) in &MESSAGES.messages {
            for field in fields.values() {
                if let Kind::Message(inner) = field.kind {
                    assert!(
                        MESSAGES.messages.contains_key(inner),
                        "{name}.{}: {inner}",
                        field.name
                    );
                }
            }
        }
        assert!(
            MESSAGES
                .kinds
                .values()
                .all(|m| MESSAGES.messages.contains_key(m))
        );
    }

    #[test]
    fn a_config_map() {
        let metadata = [bytes(1, b"cm"), bytes(2, b"")].concat();
        let entry = [bytes(1, b"k"), bytes(2, b"v")].concat();
        let raw = [bytes(1, &metadata), bytes(2, &entry)].concat();
        assert_eq!(
            decode(&envelope("v1", "ConfigMap", &raw)).unwrap(),
            json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "cm"}, "data": {"k": "v"}})
        );
    }

    #[test]
    fn garbage_is_refused_without_panic() {
        assert!(decode(b"nonsense").is_err());
        assert!(
            decode(&envelope("v1", "Unheard", b""))
                .unwrap_err()
                .contains("application/json")
        );
        let whole = envelope("v1", "ConfigMap", &bytes(1, &bytes(1, b"cm")));
        for cut in 4..whole.len() {
            // Cuts at field boundaries are valid messages; none may panic.
            drop(decode(&whole[..cut]));
        }
        assert!(
            decode(&envelope(
                "v1",
                "ConfigMap",
                &[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f]
            ))
            .is_err()
        );
    }
}
