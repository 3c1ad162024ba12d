//! Every message inside a message, with the path to it.
//!
//! Enters messages, lists, maps, and the content of each `Any` whose type is known; the content of an `Any` is at the
//! path of the `Any`, as in its JSON.

use std::fmt::{self, Write as _};

use prost_reflect::{DynamicMessage, MapKey, ReflectMessage as _, Value};

use crate::json::named;
use crate::merge::{ANY, any_type, any_value};

/// Deeper than Envoy decodes.
const MAX_DEPTH: usize = 200;

/// One step into a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A field, by its name in the `.proto` file.
    Field(String),
    /// An element of a list, from 0.
    Index(usize),
    /// An entry of a map.
    Key(String),
}

/// The way from the outermost message to a place in it, such as `filter_chains[0].filters[1].typed_config.stat_prefix`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path(Vec<Step>);

impl Path {
    /// The path of a field below this one.
    pub fn field(&self, name: &str) -> Path {
        let mut path = self.clone();
        path.0.push(Step::Field(name.to_owned()));
        path
    }

    /// The steps from the outermost message.
    pub fn steps(&self) -> &[Step] {
        &self.0
    }

    pub(crate) fn push(&mut self, step: Step) {
        self.0.push(step);
    }

    pub(crate) fn pop(&mut self) {
        self.0.pop();
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, step) in self.0.iter().enumerate() {
            match step {
                Step::Field(name) if i == 0 => f.write_str(name)?,
                Step::Field(name) => write!(f, ".{name}")?,
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Key(key) => {
                    f.write_char('[')?;
                    write!(f, "{key:?}")?;
                    f.write_char(']')?;
                }
            }
        }
        Ok(())
    }
}

/// What stopped a walk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Where, from the outermost message.
    pub path: Path,
    /// What is wrong there.
    pub reason: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.0.is_empty() {
            true => f.write_str(&self.reason),
            false => write!(f, "{}: {}", self.path, self.reason),
        }
    }
}

/// Says what is wrong with one message, not looking into the messages inside it.
pub type Visitor<'a> = dyn FnMut(&Path, &DynamicMessage) -> Result<(), Finding> + 'a;

/// Shows a message and all messages inside to a visitor, outer ones first, until it finds something.
pub fn walk(message: &DynamicMessage, visitor: &mut Visitor<'_>) -> Result<(), Finding> {
    enter(message, &mut Path::default(), visitor)
}

fn enter(
    message: &DynamicMessage,
    path: &mut Path,
    visitor: &mut Visitor<'_>,
) -> Result<(), Finding> {
    if path.0.len() > MAX_DEPTH {
        return Err(Finding {
            path: Path::default(),
            reason: format!("messages are nested more than {MAX_DEPTH} deep"),
        });
    }
    visitor(path, message)?;
    if message.descriptor().full_name() == ANY {
        return content(message, path, visitor);
    }
    for (field, value) in message.fields() {
        path.push(Step::Field(field.name().to_owned()));
        match value {
            Value::Message(inner) => enter(inner, path, visitor)?,
            Value::List(list) => {
                for (index, value) in list.iter().enumerate() {
                    if let Value::Message(inner) = value {
                        path.push(Step::Index(index));
                        enter(inner, path, visitor)?;
                        path.pop();
                    }
                }
            }
            Value::Map(map) => {
                let mut entries: Vec<_> = map.iter().collect();
                entries.sort_by_key(|(key, _)| *key);
                for (key, value) in entries {
                    if let Value::Message(inner) = value {
                        path.push(Step::Key(key_text(key)));
                        enter(inner, path, visitor)?;
                        path.pop();
                    }
                }
            }
            _ => {}
        }
        path.pop();
    }
    Ok(())
}

fn content(
    any: &DynamicMessage,
    path: &mut Path,
    visitor: &mut Visitor<'_>,
) -> Result<(), Finding> {
    let Some(descriptor) = any_type(any).and_then(|url| named(&url)) else {
        return Ok(());
    };
    let name = descriptor.full_name().to_owned();
    match DynamicMessage::decode(descriptor, any_value(any)) {
        Ok(inner) => enter(&inner, path, visitor),
        Err(error) => Err(Finding {
            path: path.clone(),
            reason: format!("not a {name} on the wire: {error}"),
        }),
    }
}

fn key_text(key: &MapKey) -> String {
    match key {
        MapKey::Bool(b) => b.to_string(),
        MapKey::I32(n) => n.to_string(),
        MapKey::I64(n) => n.to_string(),
        MapKey::U32(n) => n.to_string(),
        MapKey::U64(n) => n.to_string(),
        MapKey::String(s) => s.clone(),
    }
}
