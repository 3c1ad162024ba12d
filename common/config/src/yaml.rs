//! YAML to JSON values that remember their lines.
//!
//! A text is cut into documents at `---` lines first, so that a syntax error in one leaves the others alone. Each is
//! parsed under a budget (bytes, nodes, depth, alias expansion), so that hostile input costs a bounded amount.
//! YAML 1.2 types are used; keys are text.

use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_saphyr::Spanned;

use crate::path::{FieldPath, Segment, camel, snake};

/// Largest document accepted. Kubernetes' own limit for an object is 1.5 MiB.
pub const MAX_DOCUMENT_BYTES: usize = 3 << 20;

/// One document of a text.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Document<'a> {
    pub(crate) text: &'a str,
    /// Lines before it.
    pub(crate) offset: u64,
}

/// Cuts a text at lines that start a document; leaves out documents without content.
pub(crate) fn documents(text: &str) -> Vec<Document<'_>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut documents = Vec::new();
    let (mut start, mut offset, mut position, mut line) = (0, 0, 0, 0);
    for l in text.split_inclusive('\n') {
        if l.strip_prefix("---")
            .is_some_and(|rest| rest.trim_end().is_empty() || rest.starts_with([' ', '\t']))
        {
            documents.push(Document {
                text: &text[start..position],
                offset,
            });
            // The marker line stays with its document: it may carry content, and lines stay countable.
            (start, offset) = (position, line);
        }
        position += l.len();
        line += 1;
    }
    documents.push(Document {
        text: &text[start..],
        offset,
    });
    documents.retain(|d| {
        d.text
            .lines()
            .any(|l| !matches!(l.trim(), "" | "---" | "...") && !l.trim_start().starts_with('#'))
    });
    documents
}

/// What is wrong with a document as YAML.
#[derive(Debug)]
pub(crate) struct SyntaxError {
    pub(crate) line: Option<u64>,
    pub(crate) message: String,
}

/// A value with the line it starts at.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    line: u64,
    value: NodeValue,
}

#[derive(Debug, Clone)]
enum NodeValue {
    Scalar(Value),
    List(Vec<Node>),
    /// Key, line of the key, value.
    Map(Vec<(String, u64, Node)>),
}

impl Node {
    pub(crate) fn parse(document: Document<'_>) -> Result<Self, SyntaxError> {
        if document.text.len() > MAX_DOCUMENT_BYTES {
            return Err(SyntaxError {
                line: Some(document.offset + 1),
                message: format!(
                    "the document has {} bytes; accepted: at most {MAX_DOCUMENT_BYTES}",
                    document.text.len()
                ),
            });
        }
        let options = serde_saphyr::options! {
            budget: serde_saphyr::budget! {
                max_depth: 40,
                max_nodes: 300_000,
                max_documents: 1,
                max_aliases: 1_000,
                max_anchors: 1_000,
                max_total_scalar_bytes: MAX_DOCUMENT_BYTES,
            },
            alias_limits: serde_saphyr::alias_limits! {
                max_total_replayed_events: 100_000,
                max_replay_stack_depth: 16,
                max_alias_expansions_per_anchor: 1_000,
            },
            strict_booleans: true,
            with_snippet: false,
        };
        let mut node: Self =
            serde_saphyr::from_str_with_options(document.text, options).map_err(|error| {
                let line = error.location().map(|l| l.line() + document.offset);
                SyntaxError {
                    line,
                    message: message(&error),
                }
            })?;
        node.shift(document.offset);
        Ok(node)
    }

    fn shift(&mut self, offset: u64) {
        self.line += offset;
        match &mut self.value {
            NodeValue::Scalar(_) => {}
            NodeValue::List(list) => list.iter_mut().for_each(|n| n.shift(offset)),
            NodeValue::Map(map) => {
                for (_, line, node) in map {
                    *line += offset;
                    node.shift(offset);
                }
            }
        }
    }

    pub(crate) fn line(&self) -> u64 {
        self.line
    }

    /// The elements, if this is a list.
    pub(crate) fn elements(&self) -> &[Self] {
        match &self.value {
            NodeValue::List(list) => list,
            _ => &[],
        }
    }

    /// The value of a key, if this is a map.
    pub(crate) fn get(&self, key: &str) -> Option<&Self> {
        match &self.value {
            NodeValue::Map(map) => map.iter().find(|(k, ..)| k == key).map(|(.., node)| node),
            _ => None,
        }
    }

    pub(crate) fn to_json(&self) -> Value {
        match &self.value {
            NodeValue::Scalar(value) => value.clone(),
            NodeValue::List(list) => list.iter().map(Self::to_json).collect(),
            NodeValue::Map(map) => map
                .iter()
                .map(|(k, _, v)| (k.clone(), v.to_json()))
                .collect(),
        }
    }

    /// The line of a field, or of the nearest part of the path that is there.
    pub(crate) fn line_of(&self, path: &FieldPath) -> u64 {
        let (mut node, mut line) = (self, self.line);
        for segment in path.segments() {
            let next = match (&node.value, segment) {
                (NodeValue::List(list), Segment::Index(i)) => list.get(*i).map(|n| (n.line, n)),
                (NodeValue::Map(map), Segment::Key(key)) => {
                    let (snake, camel) = (snake(key), camel(key));
                    map.iter()
                        .find(|(k, ..)| k == key || *k == snake || *k == camel)
                        .map(|(_, line, node)| (*line, node))
                }
                _ => None,
            };
            let Some(next) = next else { break };
            (line, node) = next;
        }
        line
    }
}

/// The library's message without its position, which we report ourselves; only one line of it.
fn message(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().to_string();
    let text = text.lines().next().unwrap_or_default();
    let end = text.rfind(" at line ").unwrap_or(text.len());
    format!("not readable as YAML: {}", &text[..end])
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<NodeValue>::deserialize(deserializer)?;
        Ok(Self {
            line: spanned.referenced.line(),
            value: spanned.value,
        })
    }
}

impl<'de> Deserialize<'de> for NodeValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NodeVisitor;

        impl<'de> Visitor<'de> for NodeVisitor {
            type Value = NodeValue;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a value")
            }

            fn visit_bool<E: de::Error>(self, v: bool) -> Result<NodeValue, E> {
                Ok(NodeValue::Scalar(v.into()))
            }

            fn visit_i64<E: de::Error>(self, v: i64) -> Result<NodeValue, E> {
                Ok(NodeValue::Scalar(v.into()))
            }

            fn visit_u64<E: de::Error>(self, v: u64) -> Result<NodeValue, E> {
                Ok(NodeValue::Scalar(v.into()))
            }

            fn visit_f64<E: de::Error>(self, v: f64) -> Result<NodeValue, E> {
                serde_json::Number::from_f64(v)
                    .map(|n| NodeValue::Scalar(n.into()))
                    .ok_or_else(|| E::custom("a number that is not finite has no place in config"))
            }

            fn visit_str<E: de::Error>(self, v: &str) -> Result<NodeValue, E> {
                Ok(NodeValue::Scalar(v.into()))
            }

            fn visit_unit<E: de::Error>(self) -> Result<NodeValue, E> {
                Ok(NodeValue::Scalar(Value::Null))
            }

            fn visit_none<E: de::Error>(self) -> Result<NodeValue, E> {
                Ok(NodeValue::Scalar(Value::Null))
            }

            fn visit_some<D: Deserializer<'de>>(
                self,
                deserializer: D,
            ) -> Result<NodeValue, D::Error> {
                NodeValue::deserialize(deserializer)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<NodeValue, A::Error> {
                let mut list = Vec::new();
                while let Some(node) = seq.next_element()? {
                    list.push(node);
                }
                Ok(NodeValue::List(list))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<NodeValue, A::Error> {
                let mut map = Vec::new();
                while let Some(key) = access.next_key::<Spanned<String>>()? {
                    map.push((key.value, key.referenced.line(), access.next_value()?));
                }
                Ok(NodeValue::Map(map))
            }
        }

        deserializer.deserialize_any(NodeVisitor)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    fn node(text: &str) -> Node {
        Node::parse(documents(text)[0]).unwrap()
    }

    #[test]
    fn documents_are_cut_at_markers() {
        let text = "# nothing\n---\na: 1\n---\n# only a comment\n--- # note\nb: |\n  --- inside\nc: 2\n---\n";
        let docs = documents(text);
        assert_eq!(docs.len(), 2);
        assert_eq!((docs[0].offset, docs[1].offset), (1, 5));
        assert_eq!(
            node(docs[1].text).to_json(),
            json!({"b": "--- inside\n", "c": 2})
        );
        assert!(documents("\n---\n---\n").is_empty());
    }

    #[test]
    fn values_keep_type_and_line() {
        let text = "a: 1\nb:\n- x\n- {c: 'yes', d: yes, e: true, f: 1.5, g: null, h: ~}\n1: one\n";
        let n = node(text);
        assert_eq!(
            n.to_json(),
            json!({"a": 1, "b": ["x", {"c": "yes", "d": "yes", "e": true, "f": 1.5, "g": null, "h": null}], "1": "one"})
        );
        let path = FieldPath::root().key("b");
        assert_eq!(n.line_of(&path), 2);
        assert_eq!(n.line_of(&path.index(1).key("f")), 4);
        assert_eq!(n.line_of(&path.index(7)), 2, "nearest part that is there");
        assert_eq!(n.line_of(&FieldPath::root().key("1")), 5);
    }

    #[test]
    fn syntax_errors_have_lines() {
        let error = Node::parse(Document {
            text: "a: 1\nb: [1\nc: 2\n",
            offset: 10,
        })
        .unwrap_err();
        assert!(
            error.line.is_some_and(|l| (12..=14).contains(&l)),
            "{error:?}"
        );
        let error = Node::parse(Document {
            text: "a: 1\na: 2\n",
            offset: 0,
        })
        .unwrap_err();
        assert_eq!(error.line, Some(2), "{error:?}");
        assert!(error.message.contains('a'), "{error:?}");
    }

    #[test]
    fn bombs_are_bounded() {
        let mut laughs = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
        for i in 1..30 {
            let refs = vec![format!("*a{}", i - 1); 10].join(",");
            laughs += &format!("a{i}: &a{i} [{refs}]\n");
        }
        assert!(
            Node::parse(Document {
                text: &laughs,
                offset: 0
            })
            .is_err()
        );
        let deep = "[".repeat(100_000);
        assert!(
            Node::parse(Document {
                text: &deep,
                offset: 0
            })
            .is_err()
        );
        let deep: String = (0..2000)
            .map(|i| format!("{}a:\n", " ".repeat(i)))
            .collect();
        assert!(
            Node::parse(Document {
                text: &deep,
                offset: 0
            })
            .is_err()
        );
        let big = "a: ".to_owned() + &"x".repeat(MAX_DOCUMENT_BYTES);
        let error = Node::parse(Document {
            text: &big,
            offset: 4,
        })
        .unwrap_err();
        assert!(error.message.contains("at most"), "{error:?}");
        let wide = "- x\n".repeat(400_000);
        assert!(
            Node::parse(Document {
                text: &wide,
                offset: 0
            })
            .is_err()
        );
    }
}
