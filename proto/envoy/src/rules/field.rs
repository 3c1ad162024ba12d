//! The rules of one field, read from `validate.FieldRules`, and values held against them.

use std::fmt;

use prost_reflect::{DynamicMessage, ReflectMessage as _, Value};
use regex::Regex;

use crate::merge::{ANY, any_type};

/// What is asked of a field.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Rules {
    required: bool,
    check: Check,
}

#[derive(Debug, Default, PartialEq)]
enum Check {
    #[default]
    Nothing,
    /// Numbers, and durations in nanoseconds.
    Number(Range),
    Text(Text),
    Bytes {
        min: Option<u64>,
        max: Option<u64>,
    },
    Bool(bool),
    Enum {
        defined_only: bool,
        range: Range,
    },
    List(Box<List>),
    Map(Box<Map>),
    Any {
        within: Vec<String>,
        without: Vec<String>,
    },
}

#[derive(Debug, Default, PartialEq)]
struct Range {
    lower: Option<(Number, bool)>,
    upper: Option<(Number, bool)>,
    only: Option<Number>,
    within: Vec<Number>,
    without: Vec<Number>,
    ignore_empty: bool,
    duration: bool,
}

#[derive(Debug, Default, PartialEq)]
struct Text {
    min: Option<u64>,
    max: Option<u64>,
    min_bytes: Option<u64>,
    max_bytes: Option<u64>,
    only: Option<String>,
    prefix: Option<String>,
    suffix: Option<String>,
    contains: Option<String>,
    not_contains: Option<String>,
    pattern: Option<Pattern>,
    within: Vec<String>,
    without: Vec<String>,
    ignore_empty: bool,
}

#[derive(Debug)]
struct Pattern(Regex);

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

#[derive(Debug, Default, PartialEq)]
struct List {
    min: Option<u64>,
    max: Option<u64>,
    unique: bool,
    items: Rules,
    ignore_empty: bool,
}

#[derive(Debug, Default, PartialEq)]
struct Map {
    min: Option<u64>,
    max: Option<u64>,
    keys: Rules,
    values: Rules,
    ignore_empty: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
enum Number {
    Whole(i128),
    Real(f64),
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Number::Whole(n) => n.fmt(f),
            Number::Real(n) => n.fmt(f),
        }
    }
}

/// Header names as Envoy's strict rule has them, and as its lenient one.
const HEADER_NAME: [&str; 2] = [r"^:?[0-9a-zA-Z!#$%&'*+,\-.^_|~\x60]+$", r"^[^\x00\n\r]+$"];
/// Likewise header values.
const HEADER_VALUE: [&str; 2] = [r"^[^\x00-\x08\x0A-\x1F\x7F]*$", r"^[^\x00\n\r]*$"];

/// Typed reads of a rules message.
struct Read<'a>(&'a DynamicMessage);

impl Read<'_> {
    fn get(&self, name: &str) -> Option<Value> {
        let field = self.0.descriptor().get_field_by_name(name)?;
        self.0
            .has_field(&field)
            .then(|| self.0.get_field(&field).into_owned())
    }

    fn flag(&self, name: &str) -> bool {
        self.get(name).and_then(|v| v.as_bool()).unwrap_or(false)
    }

    fn count(&self, name: &str) -> Option<u64> {
        self.get(name).and_then(|v| v.as_u64())
    }

    fn text(&self, name: &str) -> Option<String> {
        self.get(name).and_then(|v| v.as_str().map(str::to_owned))
    }

    fn list(&self, name: &str) -> Vec<Value> {
        match self.get(name) {
            Some(Value::List(list)) => list,
            _ => Vec::new(),
        }
    }

    fn texts(&self, name: &str) -> Vec<String> {
        let list = self.list(name);
        list.iter()
            .filter_map(|v| v.as_str().map(str::to_owned))
            .collect()
    }

    fn rules(&self, name: &str) -> Rules {
        match self.get(name) {
            Some(Value::Message(rules)) => Rules::read(&rules),
            _ => Rules::default(),
        }
    }
}

impl Rules {
    /// Reads `validate.FieldRules`.
    pub(super) fn read(rules: &DynamicMessage) -> Rules {
        let mut out = Rules::default();
        for (field, value) in rules.fields() {
            let Value::Message(inner) = value else {
                continue;
            };
            let read = Read(inner);
            out.required |= read.flag("required");
            out.check = match field.name() {
                "message" => continue,
                "string" => Check::Text(Text::read(&read)),
                "bytes" => Check::Bytes {
                    min: read.count("min_len").or(read.count("len")),
                    max: read.count("max_len").or(read.count("len")),
                },
                "bool" => match read.get("const") {
                    Some(Value::Bool(only)) => Check::Bool(only),
                    _ => continue,
                },
                "enum" => Check::Enum {
                    defined_only: read.flag("defined_only"),
                    range: Range::read(&read, false),
                },
                "repeated" => Check::List(Box::new(List {
                    min: read.count("min_items"),
                    max: read.count("max_items"),
                    unique: read.flag("unique"),
                    items: read.rules("items"),
                    ignore_empty: read.flag("ignore_empty"),
                })),
                "map" => Check::Map(Box::new(Map {
                    min: read.count("min_pairs"),
                    max: read.count("max_pairs"),
                    keys: read.rules("keys"),
                    values: read.rules("values"),
                    ignore_empty: read.flag("ignore_empty"),
                })),
                "any" => Check::Any {
                    within: read.texts("in"),
                    without: read.texts("not_in"),
                },
                "duration" => Check::Number(Range::read(&read, true)),
                "timestamp" => continue,
                _ => Check::Number(Range::read(&read, false)),
            };
        }
        out
    }

    /// Whether only numbers that have a name are taken.
    pub(super) fn defined_only(&self) -> bool {
        match &self.check {
            Check::Enum { defined_only, .. } => *defined_only,
            Check::List(list) => list.items.defined_only(),
            _ => false,
        }
    }

    /// What a field that is not there breaks.
    pub(super) fn absent(&self) -> Result<(), String> {
        match self.required {
            true => Err("is required".to_owned()),
            false => Ok(()),
        }
    }

    /// What a value breaks.
    pub(super) fn check(&self, value: &Value) -> Result<(), String> {
        match (&self.check, value) {
            (Check::Nothing, _) => Ok(()),
            (Check::Number(range), _) => number(value).map_or(Ok(()), |n| range.check(n)),
            (Check::Text(rules), _) => match text(value) {
                Some(text) => rules.check(&text),
                None => Ok(()),
            },
            (Check::Bytes { min, max }, Value::Bytes(bytes)) => {
                length(bytes.len(), *min, *max, "bytes")
            }
            (Check::Bool(only), Value::Bool(b)) if b != only => Err(format!("must be {only}")),
            (Check::Enum { range, .. }, Value::EnumNumber(n)) => {
                range.check(Number::Whole(i128::from(*n)))
            }
            (Check::List(rules), Value::List(list)) => rules.check(list),
            (Check::Map(rules), Value::Map(map)) => {
                if map.is_empty() && rules.ignore_empty {
                    return Ok(());
                }
                length(map.len(), rules.min, rules.max, "entries")?;
                for (key, value) in map {
                    let key = Value::from(key.clone());
                    rules.keys.check(&key).map_err(|e| format!("a key {e}"))?;
                    rules
                        .values
                        .check(value)
                        .map_err(|e| format!("a value {e}"))?;
                }
                Ok(())
            }
            (Check::Any { within, without }, Value::Message(any)) => {
                let url = any_type(any).unwrap_or_default();
                let listed = |list: &[String]| list.contains(&url);
                if (!within.is_empty() && !listed(within)) || listed(without) {
                    return Err(format!("cannot hold a {url:?}"));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// The number in a value, a wrapper or a duration.
fn number(value: &Value) -> Option<Number> {
    Some(match value {
        Value::I32(n) => Number::Whole(i128::from(*n)),
        Value::I64(n) => Number::Whole(i128::from(*n)),
        Value::U32(n) => Number::Whole(i128::from(*n)),
        Value::U64(n) => Number::Whole(i128::from(*n)),
        Value::EnumNumber(n) => Number::Whole(i128::from(*n)),
        Value::F32(n) => Number::Real(f64::from(*n)),
        Value::F64(n) => Number::Real(*n),
        Value::Message(message) => match message.descriptor().full_name() {
            "google.protobuf.Duration" | "google.protobuf.Timestamp" => {
                let part = |name: &str| match message.get_field_by_name(name).as_deref() {
                    Some(Value::I64(n)) => i128::from(*n),
                    Some(Value::I32(n)) => i128::from(*n),
                    _ => 0,
                };
                Number::Whole(part("seconds") * 1_000_000_000 + part("nanos"))
            }
            ANY => return None,
            _ => number(&*message.get_field_by_name("value")?)?,
        },
        _ => return None,
    })
}

/// The text in a value or a wrapper.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Message(wrapper) => text(&*wrapper.get_field_by_name("value")?),
        _ => None,
    }
}

fn length(n: usize, min: Option<u64>, max: Option<u64>, what: &str) -> Result<(), String> {
    let n = n as u64;
    if min.is_some_and(|min| n < min) {
        let min = min.unwrap_or_default();
        return Err(match n {
            0 => "must not be empty".to_owned(),
            _ => format!("has {n} {what}, fewer than {min}"),
        });
    }
    if max.is_some_and(|max| n > max) {
        return Err(format!(
            "has {n} {what}, more than {}",
            max.unwrap_or_default()
        ));
    }
    Ok(())
}

impl Range {
    fn read(read: &Read<'_>, duration: bool) -> Range {
        let bound = |open: &str, closed: &str| {
            let open = read.get(open).and_then(|v| number(&v)).map(|n| (n, false));
            open.or_else(|| read.get(closed).and_then(|v| number(&v)).map(|n| (n, true)))
        };
        let numbers = |name: &str| read.list(name).iter().filter_map(number).collect();
        Range {
            lower: bound("gt", "gte"),
            upper: bound("lt", "lte"),
            only: read.get("const").and_then(|v| number(&v)),
            within: numbers("in"),
            without: numbers("not_in"),
            ignore_empty: read.flag("ignore_empty"),
            duration,
        }
    }

    fn check(&self, n: Number) -> Result<(), String> {
        let zero = matches!(n, Number::Whole(0)) || n == Number::Real(0.0);
        if self.ignore_empty && zero {
            return Ok(());
        }
        let above = |(bound, closed): (Number, bool)| n > bound || (closed && n == bound);
        let below = |(bound, closed): (Number, bool)| n < bound || (closed && n == bound);
        let inside = match (self.lower, self.upper) {
            // An upper bound below the lower one means: outside.
            (Some(lower), Some(upper)) if upper.0 < lower.0 => above(lower) || below(upper),
            (lower, upper) => lower.is_none_or(above) && upper.is_none_or(below),
        };
        let listed = |list: &[Number]| list.contains(&n);
        let bad = !inside
            || self.only.is_some_and(|only| only != n)
            || (!self.within.is_empty() && !listed(&self.within))
            || listed(&self.without);
        match bad {
            true => Err(format!(
                "is {}; accepted: {}",
                self.shown(n),
                self.accepted()
            )),
            false => Ok(()),
        }
    }

    fn shown(&self, n: Number) -> String {
        match n {
            Number::Whole(nanos) if self.duration => format!("{}s", nanos as f64 / 1e9),
            n => n.to_string(),
        }
    }

    fn accepted(&self) -> String {
        let mut parts = Vec::new();
        if let Some((n, closed)) = self.lower {
            let words = if closed { "at least" } else { "more than" };
            parts.push(format!("{words} {}", self.shown(n)));
        }
        if let Some((n, closed)) = self.upper {
            let words = if closed { "at most" } else { "less than" };
            parts.push(format!("{words} {}", self.shown(n)));
        }
        let list = |list: &[Number]| {
            let list: Vec<String> = list.iter().map(|n| self.shown(*n)).collect();
            list.join(", ")
        };
        if let Some(only) = self.only {
            parts.push(self.shown(only));
        }
        if !self.within.is_empty() {
            parts.push(list(&self.within));
        }
        if !self.without.is_empty() {
            parts.push(format!("anything but {}", list(&self.without)));
        }
        parts.join(", ")
    }
}

impl Text {
    fn read(read: &Read<'_>) -> Text {
        let well_known = match read.get("well_known_regex") {
            // The numbers of validate.KnownRegex: header name, header value.
            Some(Value::EnumNumber(1)) => Some(HEADER_NAME),
            Some(Value::EnumNumber(2)) => Some(HEADER_VALUE),
            _ => None,
        };
        let lenient = matches!(read.get("strict"), Some(Value::Bool(false)));
        let well_known = well_known.map(|forms| forms[usize::from(lenient)].to_owned());
        let pattern = read.text("pattern").or(well_known);
        Text {
            min: read.count("min_len").or(read.count("len")),
            max: read.count("max_len").or(read.count("len")),
            min_bytes: read.count("min_bytes").or(read.count("len_bytes")),
            max_bytes: read.count("max_bytes").or(read.count("len_bytes")),
            only: read.text("const"),
            prefix: read.text("prefix"),
            suffix: read.text("suffix"),
            contains: read.text("contains"),
            not_contains: read.text("not_contains"),
            pattern: pattern.and_then(|p| Regex::new(&p).ok()).map(Pattern),
            within: read.texts("in"),
            without: read.texts("not_in"),
            ignore_empty: read.flag("ignore_empty"),
        }
    }

    fn check(&self, text: &str) -> Result<(), String> {
        if self.ignore_empty && text.is_empty() {
            return Ok(());
        }
        length(text.chars().count(), self.min, self.max, "characters")?;
        length(text.len(), self.min_bytes, self.max_bytes, "bytes")?;
        let refuse = |wanted: String| Err(format!("is {}; accepted: {wanted}", clipped(text)));
        if let Some(only) = self.only.as_ref().filter(|only| *only != text) {
            return refuse(format!("{only:?}"));
        }
        if let Some(prefix) = self.prefix.as_ref().filter(|p| !text.starts_with(&**p)) {
            return refuse(format!("what starts with {prefix:?}"));
        }
        if let Some(suffix) = self.suffix.as_ref().filter(|s| !text.ends_with(&**s)) {
            return refuse(format!("what ends with {suffix:?}"));
        }
        if let Some(part) = self.contains.as_ref().filter(|c| !text.contains(&**c)) {
            return refuse(format!("what contains {part:?}"));
        }
        if let Some(part) = self.not_contains.as_ref().filter(|c| text.contains(&**c)) {
            return refuse(format!("what does not contain {part:?}"));
        }
        if let Some(Pattern(regex)) = self.pattern.as_ref().filter(|p| !p.0.is_match(text)) {
            return refuse(format!("what matches {regex}"));
        }
        if !self.within.is_empty() && !self.within.iter().any(|t| t == text) {
            return refuse(self.within.join(", "));
        }
        if self.without.iter().any(|t| t == text) {
            return refuse(format!("anything but {}", self.without.join(", ")));
        }
        Ok(())
    }
}

/// Texts of strangers are quoted no longer than this.
fn clipped(text: &str) -> String {
    const MOST: usize = 80;
    match text.chars().nth(MOST) {
        None => format!("{text:?}"),
        Some(_) => format!("{:?}…", text.chars().take(MOST).collect::<String>()),
    }
}

impl List {
    fn check(&self, list: &[Value]) -> Result<(), String> {
        if list.is_empty() && self.ignore_empty {
            return Ok(());
        }
        length(list.len(), self.min, self.max, "items")?;
        for (index, item) in list.iter().enumerate() {
            self.items
                .check(item)
                .map_err(|error| format!("item {index} {error}"))?;
            if self.unique && list[..index].contains(item) {
                return Err(format!("item {index} is there twice"));
            }
        }
        Ok(())
    }
}
