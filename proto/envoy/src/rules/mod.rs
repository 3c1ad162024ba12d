//! The rules that Envoy's API states about its own messages.
//!
//! Envoy checks every message it is sent against the `validate.rules` options of the `.proto` files (required fields,
//! ranges, lengths, …) and refuses the whole resource for one violation. The options are in the embedded descriptors, so
//! the same can be asked before anything is sent. Also refused, as by Envoy: fields and enum values that are
//! "disallowed by default", and a `typed_config` that no extension of its kind reads ([`extensions`](crate::extensions)).
//!
//! What rules cannot say, Envoy's code says: whether a Lua script compiles, a file exists, a combination makes sense.
//! Passing here therefore does not promise that Envoy takes a message; failing here promises that it does not.
//!
//! Rules of a message are read from its descriptor at first use and kept.

mod field;

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, PoisonError, RwLock};

use prost_reflect::{
    DynamicMessage, EnumDescriptor, ExtensionDescriptor, FieldDescriptor, Kind, MessageDescriptor,
    OneofDescriptor, ReflectMessage as _, Value,
};

use self::field::Rules;
use crate::json::pool;
use crate::walk::{Finding, Path, walk};

/// The first rule that a message, or a message inside it, breaks.
pub fn check(message: &DynamicMessage) -> Result<(), Finding> {
    walk(message, &mut |path, message| {
        own_fields(path, message)?;
        crate::extensions::check(path, message)
    })
}

/// Checks one message, not looking into the messages inside it.
fn own_fields(path: &Path, message: &DynamicMessage) -> Result<(), Finding> {
    let rules = rules_of(&message.descriptor());
    let finding = |name: &str, reason: String| Finding {
        path: path.field(name),
        reason,
    };
    for oneof in &rules.required {
        if !oneof.fields().any(|field| message.has_field(&field)) {
            let members: Vec<String> = oneof.fields().map(|f| f.name().to_owned()).collect();
            return Err(Finding {
                path: path.clone(),
                reason: format!("needs one of {}", members.join(", ")),
            });
        }
    }
    for ruled in &rules.fields {
        let present = message.has_field(&ruled.field);
        if ruled.disallowed && present {
            let reason = "Envoy does not accept this field any more".to_owned();
            return Err(finding(ruled.field.name(), reason));
        }
        if present && let Kind::Enum(values) = ruled.field.kind() {
            ruled
                .enum_values(&values, &message.get_field(&ruled.field))
                .map_err(|reason| finding(ruled.field.name(), reason))?;
        }
        // A field that can be absent and is absent breaks only a rule that requires it.
        let absent = !present && ruled.field.supports_presence();
        let value = message.get_field(&ruled.field);
        let checked = match absent {
            // Of a oneof another member may be set.
            true if ruled.field.containing_oneof().is_some() => Ok(()),
            true => ruled.rules.absent(),
            false => ruled.rules.check(&value),
        };
        checked.map_err(|reason| finding(ruled.field.name(), reason))?;
    }
    Ok(())
}

/// What is asked of the fields of one message.
#[derive(Debug, Default)]
struct MessageRules {
    required: Vec<OneofDescriptor>,
    fields: Vec<Ruled>,
}

#[derive(Debug)]
struct Ruled {
    field: FieldDescriptor,
    rules: Rules,
    disallowed: bool,
    disallowed_values: Vec<i32>,
}

impl Ruled {
    fn enum_values(&self, values: &EnumDescriptor, value: &Value) -> Result<(), String> {
        let numbers: Vec<i32> = match value {
            Value::EnumNumber(number) => vec![*number],
            Value::List(list) => list.iter().filter_map(Value::as_enum_number).collect(),
            _ => Vec::new(),
        };
        for number in numbers {
            if self.disallowed_values.contains(&number) {
                return Err("Envoy does not accept this value any more".to_owned());
            }
            if self.rules.defined_only() && values.get_value(number).is_none() {
                return Err(format!("{number} is no value of {}", values.full_name()));
            }
        }
        Ok(())
    }
}

/// The options that carry rules.
struct Options {
    rules: ExtensionDescriptor,
    required: ExtensionDescriptor,
    disallowed: Option<ExtensionDescriptor>,
    disallowed_enum: Option<ExtensionDescriptor>,
}

static OPTIONS: LazyLock<Option<Options>> = LazyLock::new(|| {
    let pool = pool()?;
    Some(Options {
        rules: pool.get_extension_by_name("validate.rules")?,
        required: pool.get_extension_by_name("validate.required")?,
        disallowed: pool.get_extension_by_name("envoy.annotations.disallowed_by_default"),
        disallowed_enum: pool.get_extension_by_name("envoy.annotations.disallowed_by_default_enum"),
    })
});

static KNOWN: LazyLock<RwLock<HashMap<String, Arc<MessageRules>>>> = LazyLock::new(RwLock::default);

fn rules_of(descriptor: &MessageDescriptor) -> Arc<MessageRules> {
    let name = descriptor.full_name();
    let known = KNOWN.read().unwrap_or_else(PoisonError::into_inner);
    if let Some(rules) = known.get(name) {
        return rules.clone();
    }
    drop(known);
    let rules = Arc::new(
        OPTIONS
            .as_ref()
            .map_or_else(MessageRules::default, |options| {
                MessageRules::read(descriptor, options)
            }),
    );
    let mut known = KNOWN.write().unwrap_or_else(PoisonError::into_inner);
    known.insert(name.to_owned(), rules.clone());
    rules
}

impl MessageRules {
    fn read(descriptor: &MessageDescriptor, options: &Options) -> MessageRules {
        let set = |message: &DynamicMessage, extension: &ExtensionDescriptor| {
            matches!(&*message.get_extension(extension), Value::Bool(true))
        };
        let required = descriptor
            .oneofs()
            .filter(|oneof| set(&oneof.options(), &options.required))
            .collect();
        let ruled = |field: FieldDescriptor| {
            let of_field = field.options();
            let rules = match &*of_field.get_extension(&options.rules) {
                Value::Message(rules) => Rules::read(rules),
                _ => Rules::default(),
            };
            let disallowed = options
                .disallowed
                .as_ref()
                .is_some_and(|e| set(&of_field, e));
            let disallowed_values = match (field.kind(), &options.disallowed_enum) {
                (Kind::Enum(values), Some(extension)) => values
                    .values()
                    .filter(|value| set(&value.options(), extension))
                    .map(|value| value.number())
                    .collect(),
                _ => Vec::new(),
            };
            let nothing = rules == Rules::default() && !disallowed && disallowed_values.is_empty();
            (!nothing).then_some(Ruled {
                field,
                rules,
                disallowed,
                disallowed_values,
            })
        };
        MessageRules {
            required,
            fields: descriptor.fields().filter_map(ruled).collect(),
        }
    }
}

#[cfg(test)]
mod tests;
