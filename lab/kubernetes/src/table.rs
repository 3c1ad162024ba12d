//! placeholder
use serde_json::{Value, json};

use crate::registry::Resource;

pub(crate) fn columns(_resource: &Resource, _version: &str) -> Value {
    json!([{"name": "Name", "type": "string", "format": "name", "description": "", "priority": 0},
        {"name": "Age", "type": "string", "format": "", "description": "", "priority": 0}])
}

pub(crate) fn cells(_resource: &Resource, _version: &str, value: &Value) -> Vec<Value> {
    vec![value["metadata"]["name"].clone(), "1s".into()]
}
