//! The JSON paths of printer columns: `.spec.a`, `.metadata.labels.x\.y`, `.status.c[0].d`,
//! `.status.conditions[?(@.type=="Ready")].status`.

use serde_json::Value;

/// The first value a path leads to.
pub(super) fn find<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    let mut rest = path
        .trim()
        .trim_start_matches('{')
        .trim_end_matches('}')
        .trim_start_matches('$');
    let mut current = value;
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('.') {
            let (name, tail) = field(after);
            rest = tail;
            if !name.is_empty() {
                current = current.get(&name)?;
            }
        } else if let Some(after) = rest.strip_prefix('[') {
            let end = close(after)?;
            current = bracket(current, &after[..end])?;
            rest = &after[end + 1..];
        } else {
            let (name, tail) = field(rest);
            current = current.get(&name)?;
            rest = tail;
        }
    }
    Some(current)
}

/// A field name up to the next separator; a backslash protects one character.
fn field(text: &str) -> (String, &str) {
    let mut name = String::new();
    let mut chars = text.char_indices();
    while let Some((i, c)) = chars.next() {
        match c {
            '\\' => name.extend(chars.next().map(|(_, c)| c)),
            '.' | '[' => return (name, &text[i..]),
            c => name.push(c),
        }
    }
    (name, "")
}

/// Where the bracket closes, quotes respected.
fn close(text: &str) -> Option<usize> {
    let mut quote = None;
    for (i, c) in text.char_indices() {
        match (quote, c) {
            (None, '"' | '\'') => quote = Some(c),
            (Some(q), c) if q == c => quote = None,
            (None, ']') => return Some(i),
            _ => {}
        }
    }
    None
}

fn bracket<'a>(value: &'a Value, inside: &str) -> Option<&'a Value> {
    let unquote = |s: &str| s.trim().trim_matches(['"', '\'']).to_owned();
    if let Some(filter) = inside.strip_prefix("?(").and_then(|f| f.strip_suffix(')')) {
        let (path, wanted) = filter.split_once("==")?;
        let (path, wanted) = (path.trim().strip_prefix('@')?, unquote(wanted));
        return value.as_array()?.iter().find(|item| {
            find(item, path)
                .is_some_and(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned) == wanted)
        });
    }
    if inside == "*" {
        return value.as_array()?.first();
    }
    match inside.parse::<usize>() {
        Ok(index) => value.get(index),
        Err(_) => value.get(unquote(inside)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths() {
        let value = json!({"spec": {"hosts": ["a", "b"]}, "metadata": {"labels": {"x.y/z": "l"}},
            "status": {"conditions": [{"type": "A", "status": "1"}, {"type": "Ready", "status": "True"}]}});
        assert_eq!(find(&value, ".spec.hosts").unwrap(), &json!(["a", "b"]));
        assert_eq!(find(&value, ".spec.hosts[1]").unwrap(), "b");
        assert_eq!(find(&value, r".metadata.labels.x\.y/z").unwrap(), "l");
        assert_eq!(find(&value, ".metadata.labels['x.y/z']").unwrap(), "l");
        assert_eq!(
            find(&value, r#".status.conditions[?(@.type=="Ready")].status"#).unwrap(),
            "True"
        );
        assert!(find(&value, ".spec.none.x").is_none());
    }
}
