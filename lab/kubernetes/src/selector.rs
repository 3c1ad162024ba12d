//! Label and field selectors, from query strings and from LabelSelector objects.

use serde_json::{Map, Value};

use crate::json;
use crate::status::{ApiError, Result};

/// A conjunction of label requirements.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Labels(Vec<Requirement>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Requirement {
    key: String,
    op: Op,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Op {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Absent,
    Greater(i64),
    Less(i64),
}

impl Labels {
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let mut tokens = Tokens { rest: text };
        let mut requirements = Vec::new();
        loop {
            match tokens.next()? {
                None => break,
                Some(Token::Comma) => continue,
                Some(Token::Not) => {
                    let key = tokens.word("identifier")?;
                    requirements.push(Requirement {
                        key: checked_key(key)?,
                        op: Op::Absent,
                    });
                }
                Some(Token::Word(key)) => {
                    let key = checked_key(key)?;
                    let op = tokens.operator()?;
                    let stop = op == Op::Exists;
                    requirements.push(Requirement { key, op });
                    if stop {
                        continue;
                    }
                }
                Some(other) => {
                    return Err(bad(format!(
                        "found '{}', expected: !, identifier, or 'end of string'",
                        other.text()
                    )));
                }
            }
            match tokens.next()? {
                None => break,
                Some(Token::Comma) => {}
                Some(other) => {
                    return Err(bad(format!(
                        "found '{}', expected: ',' or 'end of string'",
                        other.text()
                    )));
                }
            }
        }
        Ok(Self(requirements))
    }

    /// From `{matchLabels, matchExpressions}`; an empty selector matches all.
    pub(crate) fn from_object(selector: &Value) -> Result<Self> {
        let mut requirements = Vec::new();
        for (key, value) in json::map_at(selector, &["matchLabels"])
            .into_iter()
            .flatten()
        {
            let value = value.as_str().unwrap_or_default().to_owned();
            requirements.push(Requirement {
                key: key.clone(),
                op: Op::In(vec![value]),
            });
        }
        for expression in json::list_at(selector, &["matchExpressions"]) {
            let values = || {
                json::list_at(expression, &["values"])
                    .iter()
                    .filter_map(Value::as_str)
                    .map(str::to_owned)
                    .collect()
            };
            let op = match json::str_at(expression, &["operator"]) {
                "In" => Op::In(values()),
                "NotIn" => Op::NotIn(values()),
                "Exists" => Op::Exists,
                "DoesNotExist" => Op::Absent,
                other => {
                    return Err(bad(format!(
                        "\"{other}\" is not a valid label selector operator"
                    )));
                }
            };
            requirements.push(Requirement {
                key: json::str_at(expression, &["key"]).to_owned(),
                op,
            });
        }
        Ok(Self(requirements))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a set of labels satisfies every requirement.
    pub(crate) fn matches(&self, labels: Option<&Map<String, Value>>) -> bool {
        self.0.iter().all(|r| {
            let value = labels.and_then(|l| l.get(&r.key)).and_then(Value::as_str);
            match (&r.op, value) {
                (Op::In(set), Some(v)) => set.iter().any(|s| s == v),
                (Op::NotIn(set), Some(v)) => !set.iter().any(|s| s == v),
                (Op::Greater(n), Some(v)) => v.parse::<i64>().is_ok_and(|v| v > *n),
                (Op::Less(n), Some(v)) => v.parse::<i64>().is_ok_and(|v| v < *n),
                (Op::Exists, v) => v.is_some(),
                (Op::Absent, v) => v.is_none(),
                (Op::NotIn(_), None) => true,
                (Op::In(_) | Op::Greater(_) | Op::Less(_), None) => false,
            }
        })
    }

    pub(crate) fn matches_object(&self, object: &Value) -> bool {
        self.0.is_empty() || self.matches(json::map_at(object, &["metadata", "labels"]))
    }
}

fn bad(why: String) -> ApiError {
    ApiError::bad_request(format!("unable to parse requirement: {why}"))
}

/// `[prefix/]name`, both of bounded length and alphabet.
fn checked_key(key: &str) -> Result<String> {
    let name = key.rsplit('/').next().unwrap_or_default();
    if name.is_empty() || !is_label_value(name) {
        return Err(bad(format!(
            "<nil>: Invalid value: \"{key}\": name part must consist of alphanumeric characters, '-', '_' or '.', and \
             must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used \
             for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
        )));
    }
    Ok(key.to_owned())
}

/// A label value: empty, or at most 63 of the label alphabet.
pub(crate) fn is_label_value(value: &str) -> bool {
    let alnum = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    value.is_empty()
        || value.len() <= 63
            && alnum(value.chars().next())
            && alnum(value.chars().last())
            && value
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token<'a> {
    Word(&'a str),
    Comma,
    Not,
    Equal,
    NotEqual,
    Greater,
    Less,
    Open,
    Close,
}

impl Token<'_> {
    fn text(&self) -> &str {
        match self {
            Token::Word(w) => w,
            Token::Comma => ",",
            Token::Not => "!",
            Token::Equal => "=",
            Token::NotEqual => "!=",
            Token::Greater => ">",
            Token::Less => "<",
            Token::Open => "(",
            Token::Close => ")",
        }
    }
}

struct Tokens<'a> {
    rest: &'a str,
}

impl<'a> Tokens<'a> {
    fn next(&mut self) -> Result<Option<Token<'a>>> {
        self.rest = self.rest.trim_start();
        let symbols = [
            ("==", Token::Equal),
            ("!=", Token::NotEqual),
            ("=", Token::Equal),
            ("!", Token::Not),
            (",", Token::Comma),
            (">", Token::Greater),
            ("<", Token::Less),
            ("(", Token::Open),
            (")", Token::Close),
        ];
        for (text, token) in symbols {
            if let Some(rest) = self.rest.strip_prefix(text) {
                self.rest = rest;
                return Ok(Some(token));
            }
        }
        let end = self
            .rest
            .find(|c: char| c.is_whitespace() || "=!,><()".contains(c))
            .unwrap_or(self.rest.len());
        if end == 0 {
            return Ok(None);
        }
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        Ok(Some(Token::Word(word)))
    }

    fn peek(&self) -> Result<Option<Token<'a>>> {
        Tokens { rest: self.rest }.next()
    }

    fn word(&mut self, expected: &str) -> Result<&'a str> {
        match self.next()? {
            Some(Token::Word(w)) => Ok(w),
            other => Err(bad(format!(
                "found '{}', expected: {expected}",
                other.as_ref().map_or("", Token::text)
            ))),
        }
    }

    /// What follows a key. A lone key means "exists"; the separator is left for the caller.
    fn operator(&mut self) -> Result<Op> {
        match self.peek()? {
            None => Ok(Op::Exists),
            Some(Token::Comma) => {
                self.next()?;
                Ok(Op::Exists)
            }
            Some(token) => {
                self.next()?;
                match token {
                    Token::Equal => Ok(Op::In(vec![self.value()?])),
                    Token::NotEqual => Ok(Op::NotIn(vec![self.value()?])),
                    Token::Greater => Ok(Op::Greater(self.integer()?)),
                    Token::Less => Ok(Op::Less(self.integer()?)),
                    Token::Word("in") => Ok(Op::In(self.set()?)),
                    Token::Word("notin") => Ok(Op::NotIn(self.set()?)),
                    other => Err(bad(format!(
                        "found '{}', expected: in, notin, =, ==, !=, gt, lt",
                        other.text()
                    ))),
                }
            }
        }
    }

    fn value(&mut self) -> Result<String> {
        match self.peek()? {
            None | Some(Token::Comma) => Ok(String::new()),
            _ => {
                let value = self.word("identifier")?;
                if is_label_value(value) {
                    Ok(value.to_owned())
                } else {
                    Err(bad(format!(
                        "<nil>: Invalid value: \"{value}\": a valid label must be an empty string or consist of \
                         alphanumeric characters, '-', '_' or '.', at most 63 of them"
                    )))
                }
            }
        }
    }

    fn integer(&mut self) -> Result<i64> {
        let word = self.word("identifier")?;
        word.parse().map_err(|_| {
            bad(format!(
                "for 'Gt', 'Lt' operators, the value must be an integer, found '{word}'"
            ))
        })
    }

    fn set(&mut self) -> Result<Vec<String>> {
        match self.next()? {
            Some(Token::Open) => {}
            other => {
                return Err(bad(format!(
                    "found '{}' expected: '('",
                    other.as_ref().map_or("", Token::text)
                )));
            }
        }
        let mut values = Vec::new();
        loop {
            match self.next()? {
                Some(Token::Word(w)) => values.push(w.to_owned()),
                Some(Token::Comma) => {}
                Some(Token::Close) => return Ok(values),
                other => {
                    return Err(bad(format!(
                        "found '{}', expected: ',', or ')'",
                        other.as_ref().map_or("", Token::text)
                    )));
                }
            }
        }
    }
}

/// A conjunction of field requirements, checked against what the kind supports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Fields(Vec<(String, bool, String)>);

impl Fields {
    /// `supported` lists the kind's labels beside metadata.name and metadata.namespace.
    pub(crate) fn parse(text: &str, kind: &str, supported: &[&str], custom: bool) -> Result<Self> {
        let mut terms = Vec::new();
        for term in text.split(',').filter(|t| !t.is_empty()) {
            let (key, equal, value) = if let Some((k, v)) = term.split_once("!=") {
                (k, false, v)
            } else if let Some((k, v)) = term.split_once("==").or_else(|| term.split_once('=')) {
                (k, true, v)
            } else {
                return Err(ApiError::bad_request(format!(
                    "invalid selector: '{text}'; can't understand '{term}'"
                )));
            };
            if !matches!(key, "metadata.name" | "metadata.namespace") && !supported.contains(&key) {
                let message = if custom || kind == "Pod" {
                    format!("field label not supported: {key}")
                } else {
                    format!(
                        "\"{key}\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\"{}",
                        supported
                            .iter()
                            .map(|s| format!(", \"{s}\""))
                            .collect::<String>()
                    )
                };
                return Err(ApiError::bad_request(message));
            }
            terms.push((
                key.to_owned(),
                equal,
                value.replace("\\,", ",").replace("\\=", "="),
            ));
        }
        Ok(Self(terms))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The name asked for by `metadata.name=X`, so that a watch or list of one object is cheap.
    pub(crate) fn name(&self) -> Option<&str> {
        self.0
            .iter()
            .find(|(k, equal, _)| k == "metadata.name" && *equal)
            .map(|(_, _, v)| v.as_str())
    }

    pub(crate) fn matches(&self, object: &Value) -> bool {
        self.0
            .iter()
            .all(|(key, equal, value)| (field(object, key) == *value) == *equal)
    }
}

fn field(object: &Value, key: &str) -> String {
    // Events: the label `source` means source.component.
    let path: Vec<&str> = if key == "source" {
        vec!["source", "component"]
    } else {
        key.split('.').collect()
    };
    match json::at(object, &path) {
        Some(Value::String(s)) => s.clone(),
        Some(Value::Bool(b)) => b.to_string(),
        Some(Value::Number(n)) => n.to_string(),
        Some(Value::Array(list)) => list
            .iter()
            .map(|i| json::str_at(i, &["ip"]))
            .collect::<Vec<_>>()
            .join(","),
        _ if matches!(key, "spec.unschedulable" | "spec.hostNetwork") => "false".to_owned(),
        _ if key == "status.successful" => "0".to_owned(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn matches(selector: &str, labels: Value) -> bool {
        Labels::parse(selector).unwrap().matches(labels.as_object())
    }

    #[test]
    fn label_operators() {
        let web = || json!({"app": "web", "n": "5"});
        for yes in [
            "app=web",
            "app==web",
            "x!=y",
            "app in (db,web)",
            "x notin (y)",
            "app",
            "!x",
            "n>4",
            "n<6",
            "",
            "app=web,!x",
            "x,,",
        ] {
            let wanted = yes != "x,,";
            assert_eq!(matches(yes, web()), wanted, "{yes}");
        }
        for no in [
            "app=db",
            "app!=web",
            "app in (db)",
            "app notin (web)",
            "x",
            "!app",
            "n>5",
            "n<5",
            "app,x",
        ] {
            assert!(!matches(no, web()), "{no}");
        }
    }

    #[test]
    fn bad_label_selectors_say_what_is_accepted() {
        let error = Labels::parse("a b c").unwrap_err();
        assert_eq!(
            error.message(),
            "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"
        );
        assert_eq!(error.code(), 400);
        assert!(Labels::parse("a in b").is_err());
        assert!(Labels::parse("-a=b").is_err());
    }

    #[test]
    fn fields_are_checked_and_matched() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {}, "status": {"phase": "Running"}});
        let parse = |t| Fields::parse(t, "Pod", &["status.phase", "spec.nodeName"], false);
        assert!(
            parse("status.phase=Running,spec.nodeName=")
                .unwrap()
                .matches(&pod)
        );
        assert!(!parse("status.phase!=Running").unwrap().matches(&pod));
        assert_eq!(
            parse("spec.foo=1").unwrap_err().message(),
            "field label not supported: spec.foo"
        );
        let error = Fields::parse("data.x=1", "ConfigMap", &[], false).unwrap_err();
        assert_eq!(
            error.message(),
            "\"data.x\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
        );
    }
}
