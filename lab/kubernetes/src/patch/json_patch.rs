//! JSON patch (RFC 6902).

use serde_json::Value;

use crate::json;

/// One operation; pointers are split and unescaped.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Operation {
    Add(Vec<String>, Value),
    Remove(Vec<String>),
    Replace(Vec<String>, Value),
    Move(Vec<String>, Vec<String>),
    Copy(Vec<String>, Vec<String>),
    Test(Vec<String>, Value),
}

/// Reads a list of operations.
pub(crate) fn parse(patch: &Value) -> Result<Vec<Operation>, String> {
    let list = patch
        .as_array()
        .ok_or("a JSON patch must be a list of operations")?;
    list.iter()
        .enumerate()
        .map(|(i, op)| one(op).map_err(|e| format!("operation {i}: {e}")))
        .collect()
}

fn one(op: &Value) -> Result<Operation, String> {
    let pointer = |key: &str| -> Result<Vec<String>, String> {
        let text = op
            .get(key)
            .and_then(Value::as_str)
            .ok_or_else(|| format!("\"{key}\" is missing"))?;
        if !text.is_empty() && !text.starts_with('/') {
            return Err(format!("{key} \"{text}\" must be empty or start with /"));
        }
        Ok(text
            .split('/')
            .skip(1)
            .map(|s| s.replace("~1", "/").replace("~0", "~"))
            .collect())
    };
    let value = || {
        op.get("value")
            .cloned()
            .ok_or_else(|| "\"value\" is missing".to_owned())
    };
    Ok(match json::str_at(op, &["op"]) {
        "add" => Operation::Add(pointer("path")?, value()?),
        "remove" => Operation::Remove(pointer("path")?),
        "replace" => Operation::Replace(pointer("path")?, value()?),
        "move" => Operation::Move(pointer("from")?, pointer("path")?),
        "copy" => Operation::Copy(pointer("from")?, pointer("path")?),
        "test" => Operation::Test(pointer("path")?, value()?),
        other => {
            return Err(format!(
                "unknown op \"{other}\": add, remove, replace, move, copy and test are known"
            ));
        }
    })
}

/// Applies all operations, or says which one does not apply; the value is then of no use.
pub(crate) fn apply(value: &mut Value, operations: &[Operation]) -> Result<(), String> {
    for operation in operations {
        match operation {
            Operation::Add(path, new) => add(value, path, new.clone())?,
            Operation::Remove(path) => drop(remove(value, path, "remove")?),
            Operation::Replace(path, new) => {
                *get(value, path).ok_or_else(|| missing("replace", path))? = new.clone();
            }
            Operation::Move(from, path) => {
                let moved = remove(value, from, "move")?;
                add(value, path, moved)?;
            }
            Operation::Copy(from, path) => {
                let copy = get(value, from)
                    .ok_or_else(|| missing("copy", from))?
                    .clone();
                add(value, path, copy)?;
            }
            Operation::Test(path, wanted) => {
                let found = get(value, path).map(|v| &*v).unwrap_or(&Value::Null);
                if found != wanted {
                    return Err(format!("testing value {} failed", show(path)));
                }
            }
        }
    }
    Ok(())
}

fn show(path: &[String]) -> String {
    path.iter()
        .map(|s| format!("/{}", s.replace('~', "~0").replace('/', "~1")))
        .collect()
}

fn missing(op: &str, path: &[String]) -> String {
    format!(
        "{op} operation does not apply: doc is missing path: {}: missing value",
        show(path)
    )
}

fn get<'a>(value: &'a mut Value, path: &[String]) -> Option<&'a mut Value> {
    path.iter().try_fold(value, |v, key| match v {
        Value::Object(map) => map.get_mut(key),
        Value::Array(list) => list.get_mut(index(key)?),
        _ => None,
    })
}

fn index(key: &str) -> Option<usize> {
    (key == "0" || !key.starts_with('0'))
        .then(|| key.parse().ok())
        .flatten()
}

fn add(value: &mut Value, path: &[String], new: Value) -> Result<(), String> {
    let Some((last, parents)) = path.split_last() else {
        *value = new;
        return Ok(());
    };
    match get(value, parents) {
        Some(Value::Object(map)) => drop(map.insert(last.clone(), new)),
        Some(Value::Array(list)) => {
            let at = if last == "-" {
                Some(list.len())
            } else {
                index(last)
            };
            let at = at.filter(|i| *i <= list.len()).ok_or_else(|| {
                format!(
                    "add operation does not apply: doc is missing path: {}: index out of range",
                    show(path)
                )
            })?;
            list.insert(at, new);
        }
        _ => return Err(missing("add", path)),
    }
    Ok(())
}

fn remove(value: &mut Value, path: &[String], op: &str) -> Result<Value, String> {
    let gone = || missing(op, path);
    let (last, parents) = path.split_last().ok_or_else(gone)?;
    match get(value, parents) {
        Some(Value::Object(map)) => map.shift_remove(last).ok_or_else(gone),
        Some(Value::Array(list)) => {
            let at = index(last).filter(|i| *i < list.len()).ok_or_else(gone)?;
            Ok(list.remove(at))
        }
        _ => Err(gone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn run(mut value: Value, patch: Value) -> Result<Value, String> {
        apply(&mut value, &parse(&patch)?)?;
        Ok(value)
    }

    #[test]
    fn operations() {
        let doc = || json!({"a": {"b/c": [1, 2]}, "x": 1});
        assert_eq!(
            run(
                doc(),
                json!([{"op": "add", "path": "/a/b~1c/-", "value": 3}])
            )
            .unwrap()["a"]["b/c"],
            json!([1, 2, 3])
        );
        assert_eq!(
            run(
                doc(),
                json!([{"op": "add", "path": "/a/b~1c/0", "value": 0}])
            )
            .unwrap()["a"]["b/c"],
            json!([0, 1, 2])
        );
        assert_eq!(
            run(doc(), json!([{"op": "remove", "path": "/a"}])).unwrap(),
            json!({"x": 1})
        );
        assert_eq!(
            run(doc(), json!([{"op": "move", "from": "/x", "path": "/y"}])).unwrap()["y"],
            1
        );
        assert_eq!(
            run(doc(), json!([{"op": "copy", "from": "/x", "path": "/y"}])).unwrap(),
            json!({"a": {"b/c": [1, 2]}, "x": 1, "y": 1})
        );
        assert_eq!(
            run(doc(), json!([{"op": "test", "path": "/x", "value": 2}])).unwrap_err(),
            "testing value /x failed"
        );
        assert_eq!(
            run(
                doc(),
                json!([{"op": "replace", "path": "/nope/x", "value": 2}])
            )
            .unwrap_err(),
            "replace operation does not apply: doc is missing path: /nope/x: missing value"
        );
        assert!(run(doc(), json!({"op": "add"})).is_err());
        assert!(
            run(
                doc(),
                json!([{"op": "add", "path": "/a/b~1c/9", "value": 3}])
            )
            .is_err()
        );
    }
}
