//! Validation of custom resources against their schema, with the original's messages.

use serde_json::Value;

use super::schema::Node;
use crate::json;
use crate::status::FieldError;

/// All faults of a value; `path` is empty at the root.
pub(crate) fn validate(node: &Node, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    if value.is_null() && node.nullable {
        return;
    }
    if !type_matches(node, value) {
        errors.push(wrong_type(node, value, path));
        return;
    }
    scalars(node, value, path, errors);
    match value {
        Value::Object(map) => {
            count(
                map.len() as u64,
                node.min_properties,
                node.max_properties,
                "properties",
                value,
                path,
                errors,
            );
            for name in node.required.iter().filter(|r| !map.contains_key(*r)) {
                errors.push(FieldError::required(join(path, name), ""));
            }
            for (key, value) in map {
                if let Some(child) = node.properties.get(key) {
                    validate(child, value, &join(path, key), errors);
                } else if let Some(child) = &node.additional {
                    validate(child, value, &join(path, key), errors);
                }
            }
        }
        Value::Array(list) => {
            count(
                list.len() as u64,
                node.min_items,
                node.max_items,
                "items",
                value,
                path,
                errors,
            );
            if node.unique_items && list.iter().enumerate().any(|(i, v)| list[..i].contains(v)) {
                errors.push(FieldError::invalid(
                    path,
                    value,
                    &format!("{path} in body shouldn't contain duplicates"),
                ));
            }
            if let Some(items) = &node.items {
                for (i, value) in list.iter().enumerate() {
                    validate(items, value, &format!("{path}[{i}]"), errors);
                }
            }
        }
        _ => {}
    }
    combinations(node, value, path, errors);
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

fn type_matches(node: &Node, value: &Value) -> bool {
    if node.int_or_string {
        return value.is_i64() || value.is_u64() || value.is_string();
    }
    match node.kind.as_str() {
        "" => true,
        "integer" => {
            value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|f| f.fract() == 0.0)
        }
        "number" => value.is_number(),
        kind => json::type_name(value) == kind,
    }
}

fn wrong_type(node: &Node, value: &Value, path: &str) -> FieldError {
    let wanted = if node.int_or_string {
        "integer,string"
    } else {
        &node.kind
    };
    let found = json::type_name(value);
    FieldError {
        field: path.to_owned(),
        reason: "FieldValueInvalid",
        message: format!(
            "Invalid value: \"{found}\": {path} in body must be of type {wanted}: \"{found}\""
        ),
    }
}

fn scalars(node: &Node, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let mut bad = |detail: String| errors.push(FieldError::invalid(path, value, &detail));
    if let Some(n) = value.as_f64() {
        if let Some((bound, exclusive)) = node.minimum
            && (n < bound || exclusive && n == bound)
        {
            let or_equal = if exclusive { "" } else { " or equal to" };
            bad(format!(
                "{path} in body should be greater than{or_equal} {bound}"
            ));
        }
        if let Some((bound, exclusive)) = node.maximum
            && (n > bound || exclusive && n == bound)
        {
            let or_equal = if exclusive { "" } else { " or equal to" };
            bad(format!(
                "{path} in body should be less than{or_equal} {bound}"
            ));
        }
        if let Some(m) = node.multiple_of.filter(|m| (n / m).fract() != 0.0) {
            bad(format!("{path} in body should be a multiple of {m}"));
        }
    }
    if let Some(s) = value.as_str() {
        let length = s.chars().count() as u64;
        if let Some(min) = node.min_length.filter(|m| length < *m) {
            bad(format!(
                "{path} in body should be at least {min} chars long"
            ));
        }
        if node.max_length.is_some_and(|m| length > m) {
            let max = node.max_length.unwrap_or_default();
            errors.push(FieldError {
                field: path.to_owned(),
                reason: "FieldValueTooLong",
                message: format!("Too long: may not be more than {max} bytes"),
            });
        } else if let Some((text, _)) = node.pattern.as_ref().filter(|(_, p)| !p.is_match(s)) {
            bad(format!("{path} in body should match '{text}'"));
        } else if let Some(format) = wrong_format(&node.format, s) {
            bad(format!("{path} in body must be of type {format}: {value}"));
        }
    }
    if !node.choices.is_empty() && !node.choices.contains(value) {
        let accepted: Vec<String> = node.choices.iter().map(Value::to_string).collect();
        errors.push(FieldError {
            field: path.to_owned(),
            reason: "FieldValueNotSupported",
            message: format!(
                "Unsupported value: {value}: supported values: {}",
                accepted.join(", ")
            ),
        });
    }
}

/// The format a text does not have, for the formats that are checked.
fn wrong_format<'a>(format: &'a str, text: &str) -> Option<&'a str> {
    let ok = match format {
        "date-time" => text.parse::<jiff::Timestamp>().is_ok(),
        "date" => text.parse::<jiff::civil::Date>().is_ok(),
        "ipv4" => text.parse::<std::net::Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<std::net::Ipv6Addr>().is_ok(),
        "cidr" => text.parse::<ipnet::IpNet>().is_ok(),
        "uuid" => uuid::Uuid::parse_str(text).is_ok(),
        "uri" => text.parse::<http::Uri>().is_ok(),
        "byte" => {
            use base64::Engine;
            base64::engine::general_purpose::STANDARD
                .decode(text)
                .is_ok()
        }
        _ => true,
    };
    (!ok).then_some(format)
}

fn count(
    found: u64,
    min: Option<u64>,
    max: Option<u64>,
    what: &str,
    value: &Value,
    path: &str,
    errors: &mut Vec<FieldError>,
) {
    if let Some(min) = min.filter(|m| found < *m) {
        errors.push(FieldError::invalid(
            path,
            &found.into(),
            &format!("{path} in body should have at least {min} {what}"),
        ));
    }
    if let Some(max) = max.filter(|m| found > *m) {
        let _ = value;
        errors.push(FieldError {
            field: path.to_owned(),
            reason: "FieldValueTooMany",
            message: format!("Too many: {found}: must have at most {max} items"),
        });
    }
}

fn combinations(node: &Node, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let valid = |n: &Node| {
        let mut found = Vec::new();
        validate(n, value, path, &mut found);
        found.is_empty()
    };
    let mut bad = |detail: String| {
        errors.push(FieldError {
            field: if path.is_empty() {
                "<nil>".to_owned()
            } else {
                path.to_owned()
            },
            reason: "FieldValueInvalid",
            message: format!(
                "Invalid value: {}: {detail}",
                if path.is_empty() {
                    "\"\"".to_owned()
                } else {
                    value.to_string()
                }
            ),
        });
    };
    let body = if path.is_empty() { "\"\"" } else { path };
    if !node.any_of.is_empty() && !node.any_of.iter().any(valid) {
        bad(format!("{body} must validate at least one schema (anyOf)"));
    }
    if !node.one_of.is_empty() {
        match node.one_of.iter().filter(|n| valid(n)).count() {
            1 => {}
            0 => bad(format!(
                "{body} must validate one and only one schema (oneOf). Found none valid"
            )),
            n => bad(format!(
                "{body} must validate one and only one schema (oneOf). Found {n} valid alternatives"
            )),
        }
    }
    if node.not.as_deref().is_some_and(valid) {
        bad(format!("{body} must not validate the schema (not)"));
    }
    for part in &node.all_of {
        validate(part, value, path, errors);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crd::schema::Schema;
    use serde_json::json;

    fn texts(schema: Value, value: &Value) -> Vec<String> {
        let schema = Schema::new(schema).unwrap();
        let mut errors = Vec::new();
        validate(&schema.root, value, "", &mut errors);
        errors
            .iter()
            .map(|e| format!("{}: {}", e.field, e.message))
            .collect()
    }

    #[test]
    fn messages() {
        let schema = || {
            json!({"type": "object", "properties": {"spec": {"type": "object", "required": ["size"], "properties": {
                "size": {"type": "integer", "minimum": 1}, "hosts": {"type": "array", "items": {"type": "string"}},
                "mode": {"type": "string", "enum": ["A", "B"]}, "port": {"x-kubernetes-int-or-string": true}}}}})
        };
        assert_eq!(
            texts(schema(), &json!({"spec": {"size": 0, "hosts": "x"}})),
            [
                "spec.size: Invalid value: 0: spec.size in body should be greater than or equal to 1",
                "spec.hosts: Invalid value: \"string\": spec.hosts in body must be of type array: \"string\""
            ]
        );
        assert_eq!(
            texts(schema(), &json!({"spec": {"port": "http"}})),
            ["spec.size: Required value"]
        );
        assert_eq!(
            texts(schema(), &json!({"spec": {"size": 1, "mode": "C"}})),
            ["spec.mode: Unsupported value: \"C\": supported values: \"A\", \"B\""]
        );
        let one_of = json!({"type": "object", "oneOf": [{"required": ["a"]}, {"required": ["b"]}]});
        assert_eq!(texts(one_of.clone(), &json!({"a": 1})).len(), 0);
        assert_eq!(texts(one_of, &json!({"a": 1, "b": 1})).len(), 1);
    }
}
